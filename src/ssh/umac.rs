//! UMAC (RFC 4418), the MAC behind `umac-64@openssh.com` and `umac-128@openssh.com`.
//!
//! The names are those of the RFC. AES comes from the crypto library. Packets are far shorter than
//! the 16 MiB from which on the RFC's second polynomial hash would take part.

use aws_lc_rs::cipher::{AES_128, EncryptingKey, UnboundCipherKey};

use crate::error::SshError;

/// Bytes of one block of the first hash.
const L1_BYTES: usize = 1024;
const L1_WORDS: usize = L1_BYTES / 4;

/// Bytes that the first hash pads a message to.
const STEP_BYTES: usize = 32;
const STEP_WORDS: usize = STEP_BYTES / 4;

/// Words by which the key of the first hash moves on with each iteration.
const SHIFT_WORDS: usize = 4;

/// The largest primes below 2^36 and 2^64.
const PRIME_36: u64 = (1 << 36) - 5;
const PRIME_64: u128 = (1 << 64) - 59;

/// Words from here on do not fit below [`PRIME_64`], and are marked.
const WORD_MAX: u64 = u64::MAX - u32::MAX as u64;

const MASK_64: u64 = 0x01ff_ffff_01ff_ffff;

/// Longest message whose second hash is the polynomial over 64 bits alone.
#[cfg(test)]
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// A key with everything that is derived from it.
pub(crate) struct Umac {
    /// The key of the pads.
    pad: EncryptingKey,
    l1: Vec<u32>,
    iterations: Vec<Iteration>,
}

/// The keys of one iteration, which makes 4 bytes of the tag.
struct Iteration {
    l2: u64,
    l3: [u64; 8],
    l3_mask: u32,
}

/// Encrypts one block with AES.
fn encipher(key: &EncryptingKey, mut block: [u8; 16]) -> Result<[u8; 16], SshError> {
    key.encrypt(&mut block)?;
    Ok(block)
}

/// The key derivation function.
fn derive(key: &EncryptingKey, index: u8, count: usize) -> Result<Vec<u8>, SshError> {
    let mut bytes = Vec::with_capacity(count + 16);
    for number in 1_u128.. {
        if bytes.len() >= count {
            break;
        }
        bytes.extend(encipher(key, (u128::from(index) << 64 | number).to_be_bytes())?);
    }
    bytes.truncate(count);
    Ok(bytes)
}

fn u32_of(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, &byte| number << 8 | u32::from(byte))
}

fn u64_of(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

impl Umac {
    /// Derives everything from a key of 16 bytes, for tags of 4 bytes an iteration.
    pub(crate) fn new(key: &[u8], tag_bytes: usize) -> Result<Self, SshError> {
        let aes = |key: &[u8]| EncryptingKey::ecb(UnboundCipherKey::new(&AES_128, key)?);
        let key = aes(key)?;
        let count = tag_bytes / 4;
        let l1 = derive(&key, 1, L1_BYTES + (count - 1) * SHIFT_WORDS * 4)?;
        let (l2, l3) = (derive(&key, 2, count * 24)?, derive(&key, 3, count * 64)?);
        let masks = derive(&key, 4, count * 4)?;
        let parts = l2.chunks_exact(24).zip(l3.chunks_exact(64)).zip(masks.chunks_exact(4));
        let iterations = parts.map(|((l2, l3), mask)| Iteration {
            l2: u64_of(l2.get(..8).unwrap_or_default()) & MASK_64,
            l3: std::array::from_fn(|index| {
                u64_of(l3.get(8 * index..).unwrap_or_default().get(..8).unwrap_or_default()) % PRIME_36
            }),
            l3_mask: u32_of(mask),
        });
        Ok(Self {
            pad: aes(&derive(&key, 0, 16)?)?,
            l1: l1.chunks_exact(4).map(u32_of).collect(),
            iterations: iterations.collect(),
        })
    }

    /// The tag of a message in parts, with this packet's number as its nonce. 8 bytes of it count
    /// if there are two iterations.
    pub(crate) fn sign(&self, sequence: u32, message: &[u8]) -> Result<[u8; 16], SshError> {
        let mut tag = [0; 16];
        for ((index, iteration), bytes) in self.iterations.iter().enumerate().zip(tag.chunks_exact_mut(4)) {
            let key = self.l1.get(index * SHIFT_WORDS..).unwrap_or_default();
            bytes.copy_from_slice(&iteration.hash(key, message).to_be_bytes());
        }
        let pad = self.pad(sequence.into())?;
        tag.iter_mut().zip(pad).for_each(|(byte, pad)| *byte ^= pad);
        Ok(tag)
    }

    /// The pad derivation function. Two tags of 8 bytes share one block.
    fn pad(&self, nonce: u64) -> Result<[u8; 16], SshError> {
        let is_short = self.iterations.len() == 2;
        let nonce_block = if is_short { nonce & !1 } else { nonce };
        let mut block = [0; 16];
        block.iter_mut().zip(nonce_block.to_be_bytes()).for_each(|(to, from)| *to = from);
        let pad = encipher(&self.pad, block)?;
        Ok(if is_short && nonce & 1 == 1 {
            u128::from_be_bytes(pad).rotate_left(64).to_be_bytes()
        } else {
            pad
        })
    }
}

impl Iteration {
    fn hash(&self, l1: &[u32], message: &[u8]) -> u32 {
        let Some((first, rest)) = message.split_at_checked(L1_BYTES).filter(|(_, rest)| !rest.is_empty())
        else {
            return self.l3(l1_hash(l1, message).into());
        };
        let blocks = std::iter::once(first).chain(rest.chunks(L1_BYTES));
        self.l3(blocks.fold(1, |sum, block| self.poly(sum, l1_hash(l1, block))))
    }

    /// One step of the polynomial hash over 64 bits.
    fn poly(&self, sum: u128, word: u64) -> u128 {
        let next = |sum: u128, word: u128| (sum * u128::from(self.l2) + word) % PRIME_64;
        if word >= WORD_MAX {
            next(next(sum, PRIME_64 - 1), u128::from(word) - ((1 << 64) - PRIME_64))
        } else {
            next(sum, word.into())
        }
    }

    /// The last hash: 16 bytes to 4.
    fn l3(&self, value: u128) -> u32 {
        let words = value.to_be_bytes();
        let words = words.chunks_exact(2).map(u64_of);
        let sum: u64 = words.zip(self.l3).map(|(word, key)| word * key % PRIME_36).sum();
        // The low 32 bits count.
        (sum % PRIME_36) as u32 ^ self.l3_mask
    }
}

/// The hash NH of one block, padded with zeros, plus the block's length in bits.
fn l1_hash(key: &[u32], block: &[u8]) -> u64 {
    let bits = block.len() as u64 * 8;
    let (whole, rest) = block.split_at(block.len() - block.len() % STEP_BYTES);
    let sums =
        whole.chunks_exact(STEP_BYTES).zip(key.chunks_exact(STEP_WORDS)).map(|(step, key)| nh(step, key));
    let sum = sums.fold(bits, u64::wrapping_add);
    if rest.is_empty() && !block.is_empty() {
        return sum;
    }
    let mut padded = [0; STEP_BYTES];
    padded.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    let key = key.get(whole.len() / 4..L1_WORDS).unwrap_or_default();
    sum.wrapping_add(nh(&padded, key))
}

/// NH of 32 bytes.
fn nh(step: &[u8], key: &[u32]) -> u64 {
    let mut words = [0_u32; STEP_WORDS];
    for ((word, bytes), key) in words.iter_mut().zip(step.chunks_exact(4)).zip(key) {
        *word = u32::from_le_bytes(bytes.try_into().unwrap_or_default()).wrapping_add(*key);
    }
    let [a, b, c, d, e, f, g, h] = words.map(u64::from);
    (a * e).wrapping_add(b * f).wrapping_add(c * g).wrapping_add(d * h)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tag of a message with the RFC's key and nonce.
    fn tag(message: &[u8], bytes: usize) -> String {
        let umac = Umac::new(b"abcdefghijklmnop", bytes).unwrap();
        assert!(message.len() <= MESSAGE_BYTES_MAX);
        let mut tag = [0; 16];
        for ((index, iteration), four) in umac.iterations.iter().enumerate().zip(tag.chunks_exact_mut(4)) {
            four.copy_from_slice(&iteration.hash(&umac.l1[4 * index..], message).to_be_bytes());
        }
        let pad = umac.pad(u64::from_be_bytes(*b"bcdefghi")).unwrap();
        (0..bytes).map(|index| format!("{:02X}", tag[index] ^ pad[index])).collect()
    }

    #[test]
    fn tags_are_those_of_rfc_4418() {
        for (unit, count, short, long) in [
            ("a", 0, "6E155FAD26900BE1", "32FEDB100C79AD58F07FF764"),
            ("a", 3, "44B5CB542F220104", "185E4FE905CBA7BD85E4C2DC"),
            ("a", 1 << 10, "26BF2F5D60118BD9", "7A54ABE04AF82D60FB298C3C"),
            ("a", 1 << 15, "27F8EF643B0D118D", "7B136BD911E4B734286EF2BE"),
            ("a", 1 << 20, "A4477E87E9F55853", "F8ACFA3AC31CFEEA047F7B11"),
            ("abc", 1, "D4D7B9F6BD4FBFCF", "883C3D4B97A61976FFCF2323"),
            ("abc", 500, "D4CF26DDEFD5C01A", "8824A260C53C66A36C9260A6"),
        ] {
            let message = unit.repeat(count).into_bytes();
            assert_eq!(tag(&message, 8), short, "{count} times {unit}");
            // The RFC has no tags of 16 bytes. Their first 12 are the tag of 12.
            assert_eq!(tag(&message, 16)[..24], *long, "{count} times {unit}");
        }
    }
}
