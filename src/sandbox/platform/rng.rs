//! Random names.

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand;

const LETTERS: &[u8; 32] = b"abcdefghijkmnopqrstuvwxyz2345678";

/// Makes a word of `length` random letters and digits.
///
/// # Errors
/// The system gives no random bytes.
pub(super) fn word(length: usize) -> Result<String, Unspecified> {
    let mut bytes = vec![0; length];
    rand::fill(&mut bytes)?;
    let letter = |byte: u8| LETTERS.get(usize::from(byte % 32)).copied().unwrap_or(b'a');
    Ok(bytes.into_iter().map(|byte| char::from(letter(byte))).collect())
}

/// Makes the id of a process: a UUID of version 4.
///
/// # Errors
/// The system gives no random bytes.
pub(super) fn uuid() -> Result<String, Unspecified> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes)?;
    let number = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{number:032x}");
    let part = |from, to| hex.get(from..to).unwrap_or_default();
    Ok([part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-"))
}

/// Makes three random bytes.
///
/// # Errors
/// The system gives no random bytes.
pub(super) fn triple() -> Result<[u8; 3], Unspecified> {
    let mut bytes = [0; 3];
    rand::fill(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_uuids_have_their_shape() {
        assert_eq!(word(24).expect("random bytes").len(), 24);
        assert_ne!(word(24).expect("random bytes"), word(24).expect("random bytes"));
        let uuid = uuid().expect("random bytes");
        let lengths: Vec<_> = uuid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert!(
            uuid.get(14..15) == Some("4") && uuid.get(19..20).is_some_and(|c| "89ab".contains(c)),
            "{uuid}"
        );
    }
}
