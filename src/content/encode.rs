//! Values in postcard's format, at the end of what is there already.

use postcard::ser_flavors::Flavor;
use serde::Serialize;

/// Adds `value` to `bytes`. (`postcard::to_extend` would do it byte by byte: where code is to be small, as the agent's
/// is, no compiler makes a copy of whole slices of that, and it took a tenth of all that the agent did.)
///
/// # Errors
/// Those of the value's `Serialize`; what was there is lost then.
pub fn append<T: Serialize + ?Sized>(bytes: Vec<u8>, value: &T) -> postcard::Result<Vec<u8>> {
    postcard::serialize_with_flavor(value, Appended(bytes))
}

struct Appended(Vec<u8>);

impl Flavor for Appended {
    type Output = Vec<u8>;

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_follows_what_was_there() {
        let bytes = append(b"before".to_vec(), &(300_u16, "text")).unwrap();
        assert_eq!(bytes, b"before\xac\x02\x04text");
        assert_eq!(postcard::from_bytes::<(u16, &str)>(&bytes[6..]).unwrap(), (300, "text"));
    }
}
