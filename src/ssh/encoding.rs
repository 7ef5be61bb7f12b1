//! SSH's data types (RFC 4251, section 5), and the numbers of its messages.

use crate::error::SshError;

pub(crate) const DISCONNECT: u8 = 1;
pub(crate) const IGNORE: u8 = 2;
pub(crate) const UNIMPLEMENTED: u8 = 3;
pub(crate) const DEBUG: u8 = 4;
pub(crate) const SERVICE_REQUEST: u8 = 5;
pub(crate) const SERVICE_ACCEPT: u8 = 6;
pub(crate) const EXT_INFO: u8 = 7;
pub(crate) const KEXINIT: u8 = 20;
pub(crate) const NEWKEYS: u8 = 21;
pub(crate) const KEX_ECDH_INIT: u8 = 30;
pub(crate) const KEX_ECDH_REPLY: u8 = 31;
pub(crate) const USERAUTH_REQUEST: u8 = 50;
pub(crate) const USERAUTH_FAILURE: u8 = 51;
pub(crate) const USERAUTH_SUCCESS: u8 = 52;
pub(crate) const USERAUTH_BANNER: u8 = 53;
pub(crate) const USERAUTH_PK_OK: u8 = 60;
pub(crate) const GLOBAL_REQUEST: u8 = 80;
pub(crate) const REQUEST_SUCCESS: u8 = 81;
pub(crate) const REQUEST_FAILURE: u8 = 82;
pub(crate) const CHANNEL_OPEN: u8 = 90;
pub(crate) const CHANNEL_OPEN_CONFIRMATION: u8 = 91;
pub(crate) const CHANNEL_OPEN_FAILURE: u8 = 92;
pub(crate) const CHANNEL_WINDOW_ADJUST: u8 = 93;
pub(crate) const CHANNEL_DATA: u8 = 94;
pub(crate) const CHANNEL_EXTENDED_DATA: u8 = 95;
pub(crate) const CHANNEL_EOF: u8 = 96;
pub(crate) const CHANNEL_CLOSE: u8 = 97;
pub(crate) const CHANNEL_REQUEST: u8 = 98;
pub(crate) const CHANNEL_SUCCESS: u8 = 99;
pub(crate) const CHANNEL_FAILURE: u8 = 100;

/// Reads values from the front of a packet. Every length is checked against what is there.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], SshError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(SshError::Malformed("it is too short"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, SshError> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    pub(crate) fn boolean(&mut self) -> Result<bool, SshError> {
        Ok(self.byte()? != 0)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, SshError> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into().unwrap_or_default()))
    }

    pub(crate) fn string(&mut self) -> Result<&'a [u8], SshError> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    /// Text; bytes that are no UTF-8 are replaced.
    pub(crate) fn text(&mut self) -> Result<String, SshError> {
        Ok(String::from_utf8_lossy(self.string()?).into_owned())
    }

    /// A list of names. Names are ASCII; others match none of ours.
    pub(crate) fn names(&mut self) -> Result<Vec<String>, SshError> {
        let text = self.text()?;
        Ok(text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }

    /// A positive number without its leading zeros, of at most `bytes_max` bytes.
    pub(crate) fn positive(&mut self, bytes_max: usize) -> Result<&'a [u8], SshError> {
        let bytes = self.string()?;
        if bytes.first().is_some_and(|first| first & 0x80 != 0) {
            return Err(SshError::Malformed("a number is negative"));
        }
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        let number = bytes.get(zeros..).unwrap_or_default();
        if number.len() > bytes_max {
            return Err(SshError::Malformed("a number is too long"));
        }
        Ok(number)
    }

    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.0
    }
}

/// A message that is being written.
#[derive(Debug, Default, Clone)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    pub(crate) fn new(number: u8) -> Self {
        Self(vec![number])
    }

    pub(crate) fn byte(mut self, byte: u8) -> Self {
        self.0.push(byte);
        self
    }

    pub(crate) fn boolean(self, value: bool) -> Self {
        self.byte(value.into())
    }

    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn string(self, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        // Nothing that is written comes near 4 GiB: packets are limited.
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX)).raw(bytes)
    }

    pub(crate) fn names<S: AsRef<str>>(self, names: &[S]) -> Self {
        self.string(names.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(","))
    }

    /// A positive number, given with or without leading zeros.
    pub(crate) fn positive(self, number: &[u8]) -> Self {
        let zeros = number.iter().take_while(|&&byte| byte == 0).count();
        let number = number.get(zeros..).unwrap_or_default();
        match number.first() {
            Some(first) if first & 0x80 != 0 => self.string([&[0], number].concat()),
            _ => self.string(number),
        }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_encoded_as_in_rfc_4251() {
        let encoded = |number: &[u8]| Message::default().positive(number).into_bytes();
        assert_eq!(encoded(&[]), [0, 0, 0, 0]);
        assert_eq!(encoded(&[0, 0]), [0, 0, 0, 0]);
        let number = [0x09, 0xa3, 0x78, 0xf9, 0xb2, 0xe3, 0x32, 0xa7];
        assert_eq!(encoded(&number), [&[0, 0, 0, 8][..], &number].concat());
        assert_eq!(encoded(&[0x80]), [0, 0, 0, 2, 0, 0x80]);
        assert_eq!(Reader::new(&encoded(&[0x80])).positive(1).unwrap(), [0x80]);
        assert!(Reader::new(&[0, 0, 0, 1, 0x80]).positive(9).is_err());
        assert!(Reader::new(&[0, 0, 0, 2, 1, 1]).positive(1).is_err());
    }

    #[test]
    fn lengths_beyond_the_end_are_refused() {
        for length in [1, 2, u32::MAX] {
            assert!(Reader::new(&length.to_be_bytes()).string().is_err());
        }
        assert!(Reader::new(&[0, 0, 0]).u32().is_err());
        assert_eq!(Reader::new(&[0, 0, 0, 3, b'a', b',', b'b']).names().unwrap(), ["a", "b"]);
        assert!(Reader::new(&[0, 0, 0, 0]).names().unwrap().is_empty());
    }
}
