//! Message authentication codes, for ciphers that do not authenticate.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;

use crate::error::SshError;
use crate::umac::Umac;

/// Longest tag, in bytes.
pub(crate) const TAG_BYTES_MAX: usize = 64;

/// A method, as it is negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Method {
    function: Function,
    pub(crate) key_bytes: usize,
    tag_bytes: usize,
    /// The MAC covers the encrypted packet.
    pub(crate) is_etm: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    Sha1,
    Sha256,
    Sha512,
    Umac,
}

impl Method {
    pub(crate) fn of(name: &str) -> Option<Self> {
        let base = name.trim_end_matches("@openssh.com");
        let base = base.strip_suffix("-etm").unwrap_or(base);
        let (function, key_bytes, tag_bytes) = match base {
            "hmac-sha1" => (Function::Sha1, 20, 20),
            "hmac-sha2-256" => (Function::Sha256, 32, 32),
            "hmac-sha2-512" => (Function::Sha512, 64, 64),
            "umac-64" => (Function::Umac, 16, 8),
            "umac-128" => (Function::Umac, 16, 16),
            _ => return None,
        };
        Some(Self { function, key_bytes, tag_bytes, is_etm: name.contains("-etm@") })
    }
}

/// A method with its key.
pub(crate) struct Mac {
    key: Key,
    pub(crate) tag_bytes: usize,
    pub(crate) is_etm: bool,
}

enum Key {
    Hmac(Box<hmac::Key>),
    Umac(Box<Umac>),
}

impl Mac {
    pub(crate) fn new(method: Method, key: &[u8]) -> Result<Self, SshError> {
        let hmac = |algorithm| Key::Hmac(Box::new(hmac::Key::new(algorithm, key)));
        let key = match method.function {
            Function::Sha1 => hmac(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY),
            Function::Sha256 => hmac(hmac::HMAC_SHA256),
            Function::Sha512 => hmac(hmac::HMAC_SHA512),
            Function::Umac => Key::Umac(Box::new(Umac::new(key, method.tag_bytes)?)),
        };
        Ok(Self { key, tag_bytes: method.tag_bytes, is_etm: method.is_etm })
    }

    fn tag(&self, sequence: u32, packet: &[u8]) -> Result<[u8; TAG_BYTES_MAX], SshError> {
        let mut tag = [0; TAG_BYTES_MAX];
        let mut fill = |bytes: &[u8]| tag.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        match &self.key {
            Key::Hmac(key) => {
                let mut context = hmac::Context::with_key(key);
                context.update(&sequence.to_be_bytes());
                context.update(packet);
                fill(context.sign().as_ref());
            }
            Key::Umac(umac) => fill(&umac.sign(sequence, packet)?),
        }
        Ok(tag)
    }

    /// Appends the tag of `out` from `start` on.
    pub(crate) fn sign(&self, sequence: u32, out: &mut Vec<u8>, start: usize) -> Result<(), SshError> {
        let tag = self.tag(sequence, out.get(start..).unwrap_or_default())?;
        out.extend_from_slice(tag.get(..self.tag_bytes).unwrap_or_default());
        Ok(())
    }

    pub(crate) fn verify(&self, sequence: u32, packet: &[u8], tag: &[u8]) -> Result<(), SshError> {
        let expected = self.tag(sequence, packet)?;
        let expected = expected.get(..self.tag_bytes).unwrap_or_default();
        verify_slices_are_equal(expected, tag).map_err(|_| SshError::Tampered)
    }
}
