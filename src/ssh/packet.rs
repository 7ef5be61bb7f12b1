//! Binary packets (RFC 4253, section 6), with their sequence numbers.

use bytes::{Bytes, BytesMut};

use crate::cipher::{LENGTH_BYTES, Opening, Sealing};
use crate::error::SshError;

/// Longest packet that is accepted: OpenSSH's `PACKET_MAX_SIZE`. RFC 4253 asks for 35,000 bytes.
pub(crate) const PACKET_BYTES_MAX: usize = 256 << 10;

/// Longest payload that is copied. A longer one keeps the memory that it was read into, which may
/// be many times as much.
const COPIED_BYTES_MAX: usize = 16 << 10;

/// Shortest packet: a length of padding, a message number, and the least padding.
const PACKET_BYTES_MIN: usize = 1 + 1 + 4;

/// Traffic of one direction under one key.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Traffic {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl Traffic {
    fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

/// The packets that are sent.
pub(crate) struct PacketWriter {
    sealing: Sealing,
    sequence: u32,
    pub(crate) traffic: Traffic,
    pub(crate) out: Vec<u8>,
}

impl PacketWriter {
    pub(crate) const fn new() -> Self {
        let traffic = Traffic { packets: 0, bytes: 0 };
        Self { sealing: Sealing::Clear, sequence: 0, traffic, out: Vec::new() }
    }

    pub(crate) fn write(&mut self, payload: &[u8]) -> Result<(), SshError> {
        self.write_parts([payload, &[]])
    }

    /// Writes a packet whose payload comes in two parts.
    pub(crate) fn write_parts(&mut self, payload: [&[u8]; 2]) -> Result<(), SshError> {
        self.sealing.seal(self.sequence, payload, &mut self.out)?;
        self.sequence = self.sequence.wrapping_add(1);
        self.traffic.add(payload.iter().map(|part| part.len()).sum());
        Ok(())
    }

    /// Seals from now on with a new key.
    pub(crate) fn change(&mut self, sealing: Sealing, is_strict: bool) {
        (self.sealing, self.traffic) = (sealing, Traffic::default());
        if is_strict {
            self.sequence = 0;
        }
    }
}

/// The packets that arrive.
pub(crate) struct PacketReader {
    opening: Opening,
    sequence: u32,
    pub(crate) traffic: Traffic,
    pub(crate) buffer: BytesMut,
    /// Length of the packet whose head has been read.
    length: Option<usize>,
}

impl PacketReader {
    pub(crate) fn new() -> Self {
        let (traffic, buffer) = Default::default();
        Self { opening: Opening::Clear, sequence: 0, traffic, buffer, length: None }
    }

    /// Sequence number of the packet that was read last.
    pub(crate) const fn last(&self) -> u32 {
        self.sequence.wrapping_sub(1)
    }

    /// Opens from the next packet on with a new key.
    pub(crate) fn change(&mut self, opening: Opening, is_strict: bool) {
        (self.opening, self.traffic) = (opening, Traffic::default());
        if is_strict {
            self.sequence = 0;
        }
    }

    /// The payload of the next packet, if all of it has arrived.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, SshError> {
        let length = match self.length {
            Some(length) => length,
            None => {
                let head_bytes = self.opening.head_bytes();
                let Some(head) = self.buffer.get_mut(..head_bytes) else { return Ok(None) };
                let length = self.opening.length(self.sequence, head)?;
                let (block, is_length_counted) = self.opening.block();
                let counted = length.saturating_add(if is_length_counted { LENGTH_BYTES } else { 0 });
                if length > PACKET_BYTES_MAX {
                    return Err(SshError::Length { wanted: length, allowed: PACKET_BYTES_MAX });
                }
                if length < PACKET_BYTES_MIN || !counted.is_multiple_of(block) {
                    return Err(SshError::Malformed("its length is no multiple of the cipher's block"));
                }
                self.length = Some(length);
                length
            }
        };
        let whole = LENGTH_BYTES + length + self.opening.tag_bytes();
        if self.buffer.len() < whole {
            return Ok(None);
        }
        let mut packet = self.buffer.split_to(whole);
        self.opening.open(self.sequence, &mut packet)?;
        (self.sequence, self.length) = (self.sequence.wrapping_add(1), None);
        self.traffic.add(length);
        let body = packet.get(LENGTH_BYTES..LENGTH_BYTES + length).unwrap_or_default();
        let padding = body.first().copied().map_or(0, usize::from);
        let payload = (length - 1).checked_sub(padding).filter(|&payload| payload > 0 && padding >= 4);
        let payload = payload.ok_or(SshError::Malformed("its padding is longer than the packet"))?;
        let start = LENGTH_BYTES + 1;
        if payload <= COPIED_BYTES_MAX {
            return Ok(packet.get(start..start + payload).map(Bytes::copy_from_slice));
        }
        Ok(Some(packet.freeze().slice(start..start + payload)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cipher::{Cipher, Material};
    use crate::mac;

    /// All ciphers, with all MACs where they need one.
    fn materials() -> Vec<Material> {
        let ciphers = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"];
        let ctrs = ["aes128-ctr", "aes192-ctr", "aes256-ctr"];
        let macs = ["hmac-sha1", "hmac-sha2-256", "hmac-sha2-512", "umac-64", "umac-128"];
        let macs = macs.map(|base| {
            let plain =
                if base.starts_with("umac") { format!("{base}@openssh.com") } else { base.to_owned() };
            [plain, format!("{base}-etm@openssh.com")]
        });
        let material = |cipher: &str, mac: Option<&String>| {
            let cipher = Cipher::of(cipher).unwrap();
            let mac = mac.map(|name| mac::Method::of(name).unwrap());
            let bytes = |count: usize, salt: u8| (0..count).map(|byte| byte as u8 ^ salt).collect();
            Material {
                cipher,
                mac,
                key: bytes(cipher.key_bytes(), 1),
                iv: bytes(cipher.iv_bytes(), 0xff),
                mac_key: bytes(mac.map_or(0, |mac| mac.key_bytes), 3),
            }
        };
        let mut all: Vec<_> = ciphers.iter().map(|cipher| material(cipher, None)).collect();
        for cipher in ctrs {
            all.extend(macs.iter().flatten().map(|mac| material(cipher, Some(mac))));
        }
        all
    }

    fn written(material: &Material, payloads: &[Vec<u8>]) -> Vec<u8> {
        let mut writer = PacketWriter::new();
        writer.change(material.sealing().unwrap(), true);
        for payload in payloads {
            writer.write(payload).unwrap();
        }
        writer.out
    }

    fn reader(material: &Material) -> PacketReader {
        let mut reader = PacketReader::new();
        reader.change(material.opening().unwrap(), true);
        reader
    }

    #[test]
    fn packets_survive_every_cipher_and_every_cut() {
        let payloads: Vec<Vec<u8>> = (1..40).map(|count| vec![count as u8; count]).collect();
        for material in materials() {
            let bytes = written(&material, &payloads);
            let mut reader = reader(&material);
            let mut read = Vec::new();
            for byte in bytes {
                reader.buffer.extend_from_slice(&[byte]);
                while let Some(payload) = reader.next().unwrap() {
                    read.push(payload.to_vec());
                }
            }
            assert_eq!(read, payloads);
        }
    }

    #[test]
    fn a_changed_bit_anywhere_is_noticed() {
        for material in materials() {
            let bytes = written(&material, &[vec![7; 20]]);
            for bit in (0..bytes.len() * 8).step_by(5) {
                let mut reader = reader(&material);
                let mut changed = bytes.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                // A longer length waits for bytes; the next ones do not verify.
                if bit < 128 {
                    changed.resize(2 * PACKET_BYTES_MAX, 0);
                }
                reader.buffer.extend_from_slice(&changed);
                assert!(reader.next().is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn hostile_lengths_are_refused_at_once() {
        for length in [0, 1, 4, 5, 6, 11, 13, PACKET_BYTES_MAX as u32 + 1, u32::MAX] {
            let mut reader = PacketReader::new();
            reader.buffer.extend_from_slice(&length.to_be_bytes());
            assert!(reader.next().is_err(), "{length}");
            assert!(reader.buffer.capacity() < 1000);
        }
        for padding in [0, 3, 12, 255] {
            let mut reader = PacketReader::new();
            reader.buffer.extend_from_slice(&[0, 0, 0, 12, padding, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            assert!(reader.next().is_err(), "{padding}");
        }
        let mut reader = PacketReader::new();
        reader.buffer.extend_from_slice(&[0, 0, 0, 12, 10, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(reader.next().unwrap().unwrap()[..], [2]);
    }
}
