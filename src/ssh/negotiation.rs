//! KEXINIT: the lists of algorithms, and the choice (RFC 4253, section 7.1).

use crate::cipher::Cipher;
use crate::encoding::{KEXINIT, Message, Reader};
use crate::error::{AlgorithmKind, SshError};
use crate::kex;
use crate::mac;

/// Extensions of the first key exchange, which stand in its list.
const EXT_INFO_CLIENT: &str = "ext-info-c";
const STRICT_CLIENT: &str = "kex-strict-c-v00@openssh.com";
const STRICT_SERVER: &str = "kex-strict-s-v00@openssh.com";

/// Bytes of the cookie.
const COOKIE_BYTES: usize = 16;

/// All key exchanges, in order of preference: those that a quantum computer does not break first.
pub const KEY_EXCHANGES: &[&str] = &[
    "mlkem768x25519-sha256",
    "sntrup761x25519-sha512",
    "sntrup761x25519-sha512@openssh.com",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
];

/// All types of host key, in order of preference. RSA with SHA-1 is missing.
pub const HOST_KEYS: &[&str] = &[
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
];

/// All ciphers, in order of preference: AES-GCM is the fastest with AES instructions.
pub const CIPHERS: &[&str] = &[
    "aes256-gcm@openssh.com",
    "aes128-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-ctr",
    "aes192-ctr",
    "aes128-ctr",
];

/// All MACs for AES-CTR, in order of preference.
pub const MACS: &[&str] = &[
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "umac-128-etm@openssh.com",
    "umac-64-etm@openssh.com",
    "hmac-sha1-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
    "umac-128@openssh.com",
    "umac-64@openssh.com",
    "hmac-sha1",
];

/// The algorithms that this client offers, by their names, in order of preference.
#[derive(Debug, Clone)]
pub struct Algorithms {
    /// The key exchanges.
    pub key_exchanges: Vec<String>,
    /// The types of host key.
    pub host_keys: Vec<String>,
    /// The ciphers of both directions.
    pub ciphers: Vec<String>,
    /// The MACs of both directions.
    pub macs: Vec<String>,
}

impl Default for Algorithms {
    fn default() -> Self {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Self {
            key_exchanges: owned(KEY_EXCHANGES),
            host_keys: owned(HOST_KEYS),
            ciphers: owned(CIPHERS),
            macs: owned(MACS),
        }
    }
}

/// A KEXINIT.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) key_exchanges: Vec<String>,
    pub(crate) host_keys: Vec<String>,
    ciphers: [Vec<String>; 2],
    macs: [Vec<String>; 2],
    compressions: [Vec<String>; 2],
    first_kex_packet_follows: bool,
}

impl Offer {
    pub(crate) fn of(algorithms: &Algorithms, is_first: bool) -> Self {
        let mut key_exchanges = algorithms.key_exchanges.clone();
        if is_first {
            key_exchanges.extend([EXT_INFO_CLIENT, STRICT_CLIENT].map(str::to_owned));
        }
        let both = |names: &Vec<String>| [names.clone(), names.clone()];
        Self {
            key_exchanges,
            host_keys: algorithms.host_keys.clone(),
            ciphers: both(&algorithms.ciphers),
            macs: both(&algorithms.macs),
            compressions: both(&vec!["none".to_owned()]),
            first_kex_packet_follows: false,
        }
    }

    pub(crate) fn parse(payload: &[u8]) -> Result<Self, SshError> {
        let mut reader = Reader::new(payload.get(1..).unwrap_or_default());
        reader.take(COOKIE_BYTES)?;
        let (key_exchanges, host_keys) = (reader.names()?, reader.names()?);
        let mut both = || Ok::<_, SshError>([reader.names()?, reader.names()?]);
        let (ciphers, macs, compressions, _languages) = (both()?, both()?, both()?, both()?);
        let first_kex_packet_follows = reader.boolean()?;
        Ok(Self { key_exchanges, host_keys, ciphers, macs, compressions, first_kex_packet_follows })
    }

    pub(crate) fn encode(&self, cookie: [u8; COOKIE_BYTES]) -> Vec<u8> {
        let none: [&str; 0] = [];
        let lists = [&self.ciphers, &self.macs, &self.compressions];
        let message = Message::new(KEXINIT).raw(&cookie).names(&self.key_exchanges).names(&self.host_keys);
        let message =
            lists.iter().flat_map(|both| both.iter()).fold(message, |message, list| message.names(list));
        message.names(&none).names(&none).boolean(self.first_kex_packet_follows).u32(0).into_bytes()
    }

    pub(crate) fn is_strict_server(&self) -> bool {
        self.key_exchanges.iter().any(|name| name == STRICT_SERVER)
    }

    /// Reports if the packet behind the server's KEXINIT is of a method that was not chosen.
    pub(crate) fn has_wrong_guess(&self, ours: &Self) -> bool {
        let differ = |ours: &[String], theirs: &[String]| ours.first() != theirs.first();
        self.first_kex_packet_follows
            && (differ(&ours.key_exchanges, &self.key_exchanges) || differ(&ours.host_keys, &self.host_keys))
    }
}

/// The algorithms that both sides chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    /// The key exchange.
    pub key_exchange: String,
    /// The type of host key, with the hash of its signature.
    pub host_key: String,
    /// The ciphers to the server and from it.
    pub ciphers: [String; 2],
    /// The MACs to the server and from it, where the cipher needs one.
    pub macs: [Option<String>; 2],
    /// The key exchange is strict: nobody can insert or drop packets in it (CVE-2023-48795).
    pub is_strict: bool,
}

/// Reports if a name in the list of key exchanges is none.
fn is_extension(name: &str) -> bool {
    name.starts_with("ext-info-") || name.starts_with("kex-strict-")
}

fn choose(kind: AlgorithmKind, ours: &[String], theirs: &[String]) -> Result<String, SshError> {
    let is_common = |name: &&String| !is_extension(name) && theirs.contains(name);
    ours.iter().find(is_common).cloned().ok_or_else(|| {
        let without = |names: &[String]| names.iter().filter(|name| !is_extension(name)).cloned().collect();
        SshError::NoCommon { kind, ours: without(ours), theirs: without(theirs) }
    })
}

/// Chooses by the order of the client's lists.
pub(crate) fn negotiate(ours: &Offer, theirs: &Offer, is_strict: bool) -> Result<Negotiated, SshError> {
    let key_exchange = choose(AlgorithmKind::KeyExchange, &ours.key_exchanges, &theirs.key_exchanges)?;
    let host_key = choose(AlgorithmKind::HostKey, &ours.host_keys, &theirs.host_keys)?;
    let each = |direction: usize| {
        let of = |lists: &[Vec<String>; 2]| lists.get(direction).cloned().unwrap_or_default();
        let cipher = choose(AlgorithmKind::Cipher, &of(&ours.ciphers), &of(&theirs.ciphers))?;
        let needs_mac = Cipher::of(&cipher).is_some_and(Cipher::needs_mac);
        let mac = needs_mac.then(|| choose(AlgorithmKind::Mac, &of(&ours.macs), &of(&theirs.macs)));
        choose(AlgorithmKind::Compression, &of(&ours.compressions), &of(&theirs.compressions))?;
        Ok::<_, SshError>((cipher, mac.transpose()?))
    };
    let ((up, up_mac), (down, down_mac)) = (each(0)?, each(1)?);
    Ok(Negotiated { key_exchange, host_key, ciphers: [up, down], macs: [up_mac, down_mac], is_strict })
}

/// Leaves out names that this crate does not know.
pub(crate) fn retain_known(algorithms: &mut Algorithms) {
    algorithms.key_exchanges.retain(|name| kex::Method::of(name).is_some());
    algorithms.ciphers.retain(|name| Cipher::of(name).is_some());
    algorithms.macs.retain(|name| mac::Method::of(name).is_some());
    algorithms.host_keys.retain(|name| HOST_KEYS.contains(&crate::hostkey::plain(name)));
}

/// Leaves only the ciphers that need no MAC, and no MAC: a third of KEXINIT. Changes nothing if
/// there is no such cipher.
pub(crate) fn make_lean(algorithms: &mut Algorithms) {
    let is_lean = |name: &String| Cipher::of(name).is_some_and(|cipher| !cipher.needs_mac());
    if algorithms.ciphers.iter().any(is_lean) {
        algorithms.ciphers.retain(is_lean);
        algorithms.macs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_that_is_offered_is_known() {
        let mut algorithms = Algorithms::default();
        retain_known(&mut algorithms);
        assert_eq!(algorithms.key_exchanges, KEY_EXCHANGES);
        assert_eq!(algorithms.host_keys, HOST_KEYS);
        assert_eq!(algorithms.ciphers, CIPHERS);
        assert_eq!(algorithms.macs, MACS);
        algorithms.macs.push("hmac-md5".into());
        algorithms.host_keys.push("ssh-rsa".into());
        retain_known(&mut algorithms);
        assert_eq!((algorithms.macs.len(), algorithms.host_keys.len()), (MACS.len(), HOST_KEYS.len()));
    }

    #[test]
    fn an_extension_is_never_chosen_and_never_named() {
        let ours = Offer::of(&Algorithms::default(), true);
        let mut theirs = ours.clone();
        theirs.key_exchanges = [EXT_INFO_CLIENT, STRICT_CLIENT, "x"].map(str::to_owned).to_vec();
        let Err(SshError::NoCommon { kind, ours, theirs }) = negotiate(&ours, &theirs, false) else {
            panic!()
        };
        assert_eq!(kind, AlgorithmKind::KeyExchange);
        assert_eq!((ours, theirs), (Algorithms::default().key_exchanges, vec!["x".to_owned()]));
    }

    #[test]
    fn an_offer_survives_its_encoding() {
        let offer = Offer::of(&Algorithms::default(), true);
        let bytes = offer.encode([7; COOKIE_BYTES]);
        let read = Offer::parse(&bytes).unwrap();
        assert_eq!(read.encode([7; COOKIE_BYTES]), bytes);
        for end in 0..bytes.len() - 4 {
            assert!(Offer::parse(&bytes[..end]).is_err(), "{end}");
        }
    }
}
