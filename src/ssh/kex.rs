//! Methods of key exchange, all with one packet each way (RFC 5656, RFC 8731; sntrup761x25519 and
//! mlkem768x25519 as OpenSSH has them), and the keys that follow from a secret.

use aws_lc_rs::agreement::{self, ECDH_P256, ECDH_P384, ECDH_P521, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::digest::{self, SHA256, SHA384, SHA512};
use aws_lc_rs::kem::{self, ML_KEM_768};
use aws_lc_rs::rand;

use crate::encoding::Message;
use crate::error::SshError;

/// Bytes of a public key of Curve25519.
const X25519_BYTES: usize = 32;

/// Bytes of a ciphertext of ML-KEM-768.
const ML_KEM_ANSWER_BYTES: usize = 1088;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    MlKem768X25519,
    Sntrup761X25519,
    X25519,
    P256,
    P384,
    P521,
}

impl Method {
    pub(crate) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "mlkem768x25519-sha256" => Self::MlKem768X25519,
            "sntrup761x25519-sha512" | "sntrup761x25519-sha512@openssh.com" => Self::Sntrup761X25519,
            "curve25519-sha256" | "curve25519-sha256@libssh.org" => Self::X25519,
            "ecdh-sha2-nistp256" => Self::P256,
            "ecdh-sha2-nistp384" => Self::P384,
            "ecdh-sha2-nistp521" => Self::P521,
            _ => return None,
        })
    }

    fn digest(self) -> &'static digest::Algorithm {
        match self {
            Self::MlKem768X25519 | Self::X25519 | Self::P256 => &SHA256,
            Self::P384 => &SHA384,
            Self::Sntrup761X25519 | Self::P521 => &SHA512,
        }
    }

    pub(crate) fn hash(self, bytes: &[u8]) -> Vec<u8> {
        digest::digest(self.digest(), bytes).as_ref().to_vec()
    }

    fn curve(self) -> &'static agreement::Algorithm {
        match self {
            Self::MlKem768X25519 | Self::Sntrup761X25519 | Self::X25519 => &X25519,
            Self::P256 => &ECDH_P256,
            Self::P384 => &ECDH_P384,
            Self::P521 => &ECDH_P521,
        }
    }
}

/// This side's key of one exchange.
pub(crate) struct Ephemeral {
    pub(crate) method: Method,
    curve: PrivateKey,
    quantum: Option<Quantum>,
    /// The content of the packet that begins the exchange.
    pub(crate) public: Vec<u8>,
}

/// The part of the key that a quantum computer does not break.
enum Quantum {
    MlKem(Box<kem::DecapsulationKey>),
    Sntrup(Box<sntrup761::DecapsulationKey>),
}

impl Quantum {
    fn generate(method: Method) -> Result<Option<(Self, Vec<u8>)>, SshError> {
        Ok(match method {
            Method::MlKem768X25519 => {
                let key = kem::DecapsulationKey::generate(&ML_KEM_768)?;
                let public = key.encapsulation_key()?.key_bytes()?.as_ref().to_vec();
                Some((Self::MlKem(Box::new(key)), public))
            }
            Method::Sntrup761X25519 => {
                let mut seed = [0; 32];
                rand::fill(&mut seed)?;
                let (public, key) = sntrup761::generate_key_from_seed(seed);
                Some((Self::Sntrup(Box::new(key)), public.as_ref().to_vec()))
            }
            _ => None,
        })
    }

    fn answer_bytes(&self) -> usize {
        match self {
            Self::MlKem(_) => ML_KEM_ANSWER_BYTES,
            Self::Sntrup(_) => sntrup761::CIPHERTEXT_SIZE,
        }
    }

    fn agree(&self, answer: &[u8]) -> Result<Vec<u8>, SshError> {
        Ok(match self {
            Self::MlKem(key) => key.decapsulate(answer.into())?.as_ref().to_vec(),
            Self::Sntrup(key) => {
                let answer = answer.try_into().map_err(|_| SshError::Crypto)?;
                key.decapsulate(&answer).as_ref().to_vec()
            }
        })
    }
}

impl Ephemeral {
    pub(crate) fn generate(method: Method) -> Result<Self, SshError> {
        let curve = PrivateKey::generate(method.curve())?;
        let (quantum, mut public) = Quantum::generate(method)?.unzip();
        let public_of_curve = curve.compute_public_key()?;
        public.get_or_insert_default().extend_from_slice(public_of_curve.as_ref());
        Ok(Self { method, curve, quantum, public: public.unwrap_or_default() })
    }

    /// The shared secret, encoded as the hashes take it: a number, or a string where a quantum part
    /// takes part.
    pub(crate) fn agree(&self, answer: &[u8]) -> Result<Vec<u8>, SshError> {
        let wrong = || SshError::Malformed("its key for the exchange is none");
        let quantum_bytes = self.quantum.as_ref().map_or(0, Quantum::answer_bytes);
        let (quantum_answer, curve_answer) = answer.split_at_checked(quantum_bytes).ok_or_else(wrong)?;
        if self.method.curve() == &X25519 && curve_answer.len() != X25519_BYTES {
            return Err(wrong());
        }
        let theirs = UnparsedPublicKey::new(self.method.curve(), curve_answer);
        // The library refuses points that are on no curve, and secrets that are zero.
        let secret = agreement::agree(&self.curve, theirs, wrong(), |secret| Ok(secret.to_vec()))?;
        Ok(match &self.quantum {
            None => Message::default().positive(&secret),
            Some(quantum) => {
                let both = [quantum.agree(quantum_answer)?, secret].concat();
                Message::default().string(self.method.hash(&both))
            }
        }
        .into_bytes())
    }
}

/// Everything that the keys of a connection follow from (RFC 4253, section 7.2).
pub(crate) struct Secret {
    pub(crate) method: Method,
    /// As [`Ephemeral::agree`] returns it.
    pub(crate) shared: Vec<u8>,
    pub(crate) hash: Vec<u8>,
}

impl Secret {
    pub(crate) fn derive(&self, letter: u8, session_id: &[u8], count: usize) -> Vec<u8> {
        let start = [self.shared.as_slice(), &self.hash].concat();
        let mut bytes = self.method.hash(&[&start, &[letter][..], session_id].concat());
        while bytes.len() < count {
            bytes.extend(self.method.hash(&[start.as_slice(), &bytes].concat()));
        }
        bytes.truncate(count);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::negotiation::KEY_EXCHANGES;

    #[test]
    fn both_sides_of_a_curve_get_one_secret() {
        for method in [Method::X25519, Method::P256, Method::P384, Method::P521] {
            let [one, two] = [0, 1].map(|_| Ephemeral::generate(method).unwrap());
            assert_eq!(one.agree(&two.public).unwrap(), two.agree(&one.public).unwrap());
        }
    }

    #[test]
    fn answers_of_every_wrong_length_and_weak_points_are_refused() {
        for name in KEY_EXCHANGES {
            let ours = Ephemeral::generate(Method::of(name).unwrap()).unwrap();
            for length in (0..200).chain([1038, 1039, 1070, 1072, 1119, 1121, 1158, 1190]) {
                assert!(ours.agree(&vec![0; length]).is_err(), "{name} {length}");
            }
        }
        // The point of order one makes a secret of zeros.
        let ours = Ephemeral::generate(Method::X25519).unwrap();
        assert!(ours.agree(&[0; 32]).is_err());
        assert!(ours.agree(&[9; 32]).is_ok());
    }
}
