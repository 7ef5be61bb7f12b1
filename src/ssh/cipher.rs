//! Encryption of packets (RFC 4253, section 6; RFC 5647; OpenSSH's PROTOCOL and
//! PROTOCOL.chacha20poly1305).

use aws_lc_rs::aead::chacha20_poly1305_openssh::{OpeningKey, SealingKey};
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, EncryptionContext, StreamingEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rand;

use crate::error::SshError;
use crate::mac::{Mac, Method as MacMethod, TAG_BYTES_MAX};

/// Bytes of the field that tells a packet's length.
pub(crate) const LENGTH_BYTES: usize = 4;

/// Bytes of the tag of a cipher that authenticates.
const TAG_BYTES: usize = 16;

/// Least padding of a packet.
const PADDING_BYTES_MIN: usize = 4;

/// A cipher, as it is negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cipher {
    Gcm128,
    Gcm256,
    ChaCha,
    Ctr128,
    Ctr192,
    Ctr256,
}

impl Cipher {
    pub(crate) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "aes128-gcm@openssh.com" => Self::Gcm128,
            "aes256-gcm@openssh.com" => Self::Gcm256,
            "chacha20-poly1305@openssh.com" => Self::ChaCha,
            "aes128-ctr" => Self::Ctr128,
            "aes192-ctr" => Self::Ctr192,
            "aes256-ctr" => Self::Ctr256,
            _ => return None,
        })
    }

    /// Reports if a MAC is negotiated beside this cipher.
    pub(crate) const fn needs_mac(self) -> bool {
        matches!(self, Self::Ctr128 | Self::Ctr192 | Self::Ctr256)
    }

    pub(crate) const fn key_bytes(self) -> usize {
        match self {
            Self::Gcm128 | Self::Ctr128 => 16,
            Self::Ctr192 => 24,
            Self::Gcm256 | Self::Ctr256 => 32,
            Self::ChaCha => 64,
        }
    }

    pub(crate) const fn iv_bytes(self) -> usize {
        match self {
            Self::Gcm128 | Self::Gcm256 => 12,
            Self::ChaCha => 0,
            Self::Ctr128 | Self::Ctr192 | Self::Ctr256 => 16,
        }
    }
}

/// Key material of one direction.
pub(crate) struct Material {
    pub(crate) cipher: Cipher,
    pub(crate) mac: Option<MacMethod>,
    pub(crate) key: Vec<u8>,
    pub(crate) iv: Vec<u8>,
    pub(crate) mac_key: Vec<u8>,
}

impl Material {
    fn gcm(&self) -> Result<Gcm, SshError> {
        let algorithm = if self.cipher == Cipher::Gcm128 { &AES_128_GCM } else { &AES_256_GCM };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, &self.key)?);
        Ok(Gcm { key, nonce: self.iv.as_slice().try_into().map_err(|_| SshError::Crypto)? })
    }

    fn chacha(&self) -> Result<[u8; 64], SshError> {
        self.key.as_slice().try_into().map_err(|_| SshError::Crypto)
    }

    fn ctr(&self) -> Result<Ctr, SshError> {
        let algorithm = match self.cipher {
            Cipher::Ctr128 => &AES_128,
            Cipher::Ctr192 => &AES_192,
            _ => &AES_256,
        };
        let key = UnboundCipherKey::new(algorithm, &self.key)?;
        let iv: [u8; 16] = self.iv.as_slice().try_into().map_err(|_| SshError::Crypto)?;
        let context = EncryptionContext::Iv128(FixedLength::from(iv));
        let stream = StreamingEncryptingKey::less_safe_ctr(key, context)?;
        let mac = Mac::new(self.mac.ok_or(SshError::Crypto)?, &self.mac_key)?;
        Ok(Ctr { stream, buffer: Vec::new(), mac })
    }

    pub(crate) fn sealing(&self) -> Result<Sealing, SshError> {
        Ok(match self.cipher {
            Cipher::Gcm128 | Cipher::Gcm256 => Sealing::Gcm(Box::new(self.gcm()?)),
            Cipher::ChaCha => Sealing::ChaCha(Box::new(SealingKey::new(&self.chacha()?))),
            _ => Sealing::Ctr(Box::new(self.ctr()?)),
        })
    }

    pub(crate) fn opening(&self) -> Result<Opening, SshError> {
        Ok(match self.cipher {
            Cipher::Gcm128 | Cipher::Gcm256 => Opening::Gcm(Box::new(self.gcm()?)),
            Cipher::ChaCha => Opening::ChaCha(Box::new(OpeningKey::new(&self.chacha()?))),
            _ => Opening::Ctr(Box::new(self.ctr()?)),
        })
    }
}

/// AES-GCM with its nonce, which counts packets by itself (RFC 5647, section 7.1).
pub(crate) struct Gcm {
    key: LessSafeKey,
    nonce: [u8; 12],
}

impl Gcm {
    fn next_nonce(&mut self) -> Nonce {
        let now = self.nonce;
        let counter = u128::from_be_bytes(std::array::from_fn(|index| {
            index.checked_sub(8).and_then(|index| now.get(4 + index)).copied().unwrap_or_default()
        }));
        let next = (counter as u64).wrapping_add(1).to_be_bytes();
        self.nonce.iter_mut().skip(4).zip(next).for_each(|(to, from)| *to = from);
        Nonce::assume_unique_for_key(now)
    }
}

/// AES-CTR with its MAC.
pub(crate) struct Ctr {
    stream: StreamingEncryptingKey,
    buffer: Vec<u8>,
    mac: Mac,
}

impl Ctr {
    /// Encrypts or decrypts: both are the same.
    fn apply(&mut self, bytes: &mut [u8]) -> Result<(), SshError> {
        // The library wants room for one more block, although this mode never needs it.
        self.buffer.resize(bytes.len() + 16, 0);
        let update = self.stream.update(bytes, &mut self.buffer)?;
        if update.written().len() != bytes.len() {
            return Err(SshError::Crypto);
        }
        bytes.copy_from_slice(update.written());
        Ok(())
    }
}

/// Encryption of the packets that are sent.
pub(crate) enum Sealing {
    Clear,
    Gcm(Box<Gcm>),
    ChaCha(Box<SealingKey>),
    Ctr(Box<Ctr>),
}

impl Sealing {
    /// Appends a packet with this payload to `out`. The payload comes in two parts, so that nobody
    /// has to copy data behind its head.
    pub(crate) fn seal(
        &mut self,
        sequence: u32,
        payload: [&[u8]; 2],
        out: &mut Vec<u8>,
    ) -> Result<(), SshError> {
        let (block, is_length_counted) = match self {
            Self::Clear => (8, true),
            Self::ChaCha(_) => (8, false),
            Self::Gcm(_) => (16, false),
            Self::Ctr(ctr) => (16, !ctr.mac.is_etm),
        };
        let payload_bytes = payload.iter().map(|part| part.len()).sum::<usize>();
        let counted = 1 + payload_bytes + if is_length_counted { LENGTH_BYTES } else { 0 };
        let padding = PADDING_BYTES_MIN + (block - (counted + PADDING_BYTES_MIN) % block) % block;
        let length = 1 + payload_bytes + padding;
        let start = out.len();
        out.reserve(LENGTH_BYTES + length + TAG_BYTES_MAX);
        out.extend_from_slice(&u32::try_from(length).map_err(|_| SshError::Crypto)?.to_be_bytes());
        out.push(padding as u8);
        payload.iter().for_each(|part| out.extend_from_slice(part));
        let mut random = [0; 32];
        let random = random.get_mut(..padding).ok_or(SshError::Crypto)?;
        rand::fill(random)?;
        out.extend_from_slice(random);
        let packet = out.get_mut(start..).unwrap_or_default();
        let (head, body) = packet.split_at_mut(LENGTH_BYTES);
        match self {
            Self::Clear => {}
            Self::Gcm(gcm) => {
                let nonce = gcm.next_nonce();
                let tag = gcm.key.seal_in_place_separate_tag(nonce, Aad::from(&*head), body)?;
                out.extend_from_slice(tag.as_ref());
            }
            Self::ChaCha(key) => {
                let mut tag = [0; TAG_BYTES];
                key.seal_in_place(sequence, packet, &mut tag);
                out.extend_from_slice(&tag);
            }
            Self::Ctr(ctr) if ctr.mac.is_etm => {
                ctr.apply(body)?;
                ctr.mac.sign(sequence, out, start)?;
            }
            Self::Ctr(ctr) => {
                let count = packet.len();
                ctr.mac.sign(sequence, out, start)?;
                let packet = out.get_mut(start..start + count).unwrap_or_default();
                ctr.apply(packet)?;
            }
        }
        Ok(())
    }
}

/// Decryption of the packets that arrive.
pub(crate) enum Opening {
    Clear,
    Gcm(Box<Gcm>),
    ChaCha(Box<OpeningKey>),
    Ctr(Box<Ctr>),
}

impl Opening {
    /// Bytes of a packet from which its length is read.
    pub(crate) fn head_bytes(&self) -> usize {
        match self {
            Self::Ctr(ctr) if !ctr.mac.is_etm => 16,
            _ => LENGTH_BYTES,
        }
    }

    /// Bytes of the tag behind a packet.
    pub(crate) fn tag_bytes(&self) -> usize {
        match self {
            Self::Clear => 0,
            Self::Gcm(_) | Self::ChaCha(_) => TAG_BYTES,
            Self::Ctr(ctr) => ctr.mac.tag_bytes,
        }
    }

    /// Bytes that a packet's length is a multiple of, and if the length field counts.
    pub(crate) fn block(&self) -> (usize, bool) {
        match self {
            Self::Clear => (8, true),
            Self::ChaCha(_) => (8, false),
            Self::Gcm(_) => (16, false),
            Self::Ctr(ctr) => (16, !ctr.mac.is_etm),
        }
    }

    /// Reads the length from a packet's head, once. Decrypts the head in place if the cipher needs
    /// that. The length is not authenticated yet.
    pub(crate) fn length(&mut self, sequence: u32, head: &mut [u8]) -> Result<usize, SshError> {
        if let Self::Ctr(ctr) = self
            && !ctr.mac.is_etm
        {
            ctr.apply(head)?;
        }
        let bytes: [u8; LENGTH_BYTES] = head
            .get(..LENGTH_BYTES)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(SshError::Malformed("it has no length"))?;
        let bytes = match self {
            Self::ChaCha(key) => key.decrypt_packet_length(sequence, bytes),
            _ => bytes,
        };
        Ok(u32::from_be_bytes(bytes) as usize)
    }

    /// Verifies and decrypts a packet in place, from its length to its tag. Its head has been
    /// given to [`Opening::length`].
    pub(crate) fn open(&mut self, sequence: u32, packet: &mut [u8]) -> Result<(), SshError> {
        let end = packet.len().checked_sub(self.tag_bytes()).ok_or(SshError::Malformed("it has no tag"))?;
        let head_bytes = self.head_bytes();
        let (packet, tag) = packet.split_at_mut(end);
        match self {
            Self::Clear => {}
            Self::Gcm(gcm) => {
                let nonce = gcm.next_nonce();
                let (head, body) = packet.split_at_mut(LENGTH_BYTES);
                let opened = gcm.key.open_in_place_separate_tag(nonce, Aad::from(&*head), tag, body);
                opened.map_err(|_| SshError::Tampered)?;
            }
            Self::ChaCha(key) => {
                let tag = (&*tag).try_into().map_err(|_| SshError::Crypto)?;
                key.open_in_place(sequence, packet, tag).map_err(|_| SshError::Tampered)?;
            }
            Self::Ctr(ctr) if ctr.mac.is_etm => {
                ctr.mac.verify(sequence, packet, tag)?;
                ctr.apply(packet.get_mut(LENGTH_BYTES..).unwrap_or_default())?;
            }
            Self::Ctr(ctr) => {
                ctr.apply(packet.get_mut(head_bytes..).unwrap_or_default())?;
                ctr.mac.verify(sequence, packet, tag)?;
            }
        }
        Ok(())
    }
}
