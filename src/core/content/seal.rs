//! Sealing: only the holder of a secret can read the bytes, and nobody else can make or change
//! them.
//!
//! The cipher is XChaCha20-Poly1305. Its nonce of 192 bits may be random for every message under
//! one secret. A nonce that repeats within 2^80 messages is as unlikely as a guessed key.

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};

use crate::content::hex;

/// Length of a secret, in bytes.
pub const SECRET_BYTES: usize = 32;

/// Length of a nonce, in bytes.
pub const NONCE_BYTES: usize = 24;

/// A secret shared by two machines. Its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; SECRET_BYTES]);

impl Secret {
    /// Makes a secret of these bytes, which must be random.
    #[must_use]
    pub fn new(random: [u8; SECRET_BYTES]) -> Self {
        Self(random)
    }

    /// Parses the text that [`Secret::to_hex`] writes.
    #[must_use]
    pub fn from_hex(text: &[u8]) -> Option<Self> {
        hex::from_hex(text)?.try_into().ok().map(Self)
    }

    /// The secret as text.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::to_hex(&self.0)
    }

    /// Seals `plain` under a nonce that was never used before. [`Secret::open`] needs the same
    /// `context`.
    #[must_use]
    pub fn seal(&self, nonce: &[u8; NONCE_BYTES], context: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        self.cipher().encrypt(&XNonce::from(*nonce), Payload { msg: plain, aad: context }).ok()
    }

    /// Opens bytes that were sealed with this secret, nonce and context; `None` for all other
    /// bytes.
    #[must_use]
    pub fn open(&self, nonce: &[u8; NONCE_BYTES], context: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        self.cipher().decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: context }).ok()
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&Key::from(self.0))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: [u8; NONCE_BYTES] = [9; NONCE_BYTES];

    #[test]
    fn only_the_same_secret_nonce_and_context_open_a_sealed_message() {
        let secret = Secret::new([7; SECRET_BYTES]);
        let sealed = secret.seal(&NONCE, b"context", b"a name").unwrap();
        assert_eq!(secret.open(&NONCE, b"context", &sealed).unwrap(), b"a name");
        assert_eq!(sealed.len(), b"a name".len() + 16);
        assert!(Secret::new([8; SECRET_BYTES]).open(&NONCE, b"context", &sealed).is_none());
        assert!(secret.open(&[1; NONCE_BYTES], b"context", &sealed).is_none());
        assert!(secret.open(&NONCE, b"another", &sealed).is_none());
        for position in 0..sealed.len() {
            let mut bytes = sealed.clone();
            bytes[position] ^= 1;
            assert!(secret.open(&NONCE, b"context", &bytes).is_none(), "changed at {position}");
            assert!(secret.open(&NONCE, b"context", &sealed[..position]).is_none(), "cut at {position}");
        }
    }

    /// The example of draft-irtf-cfrg-xchacha-03, A.3.1.
    #[test]
    fn cipher_matches_the_example_of_the_draft() {
        let key: Vec<u8> = (0x80..0xa0).collect();
        let nonce: Vec<u8> = (0x40..0x58).collect();
        let context = [0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7];
        let plain =
            b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
            sunscreen would be it.";
        let sealed = Secret::new(key.try_into().unwrap()).seal(&nonce.try_into().unwrap(), &context, plain);
        let sealed = sealed.unwrap();
        assert_eq!(hex::to_hex(&sealed[..8]), "bd6d179d3e83d43b");
        assert_eq!(hex::to_hex(&sealed[plain.len()..]), "c0875924c1c7987947deafd8780acf49");
    }

    #[test]
    fn secret_survives_its_text_and_debug_does_not_show_it() {
        let secret = Secret::new([0xa5; SECRET_BYTES]);
        assert_eq!(Secret::from_hex(secret.to_hex().as_bytes()), Some(secret.clone()));
        assert!(!format!("{secret:?}").contains("a5"));
        for text in ["", "a5", &"a5".repeat(31), &"a5".repeat(33), &"A5".repeat(32), &"+5".repeat(32)] {
            assert_eq!(Secret::from_hex(text.as_bytes()), None, "{text}");
        }
    }
}
