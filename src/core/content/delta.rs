//! The fine delta: rsync's algorithm (Tridgell and Mackerras, 1996) through `fast_rsync`, guarded
//! against hostile input.
//!
//! `fast_rsync` trusts its input: a block size of 0 panics, a crafted signature costs seconds of
//! CPU, and MD4 proves nothing. So here the block size follows from the length alone, and a peer
//! cannot choose it. A signature must have exactly the entries that the length demands. The windows
//! are short enough that the worst signature costs about a second. The caller verifies every result
//! by BLAKE3.

use fast_rsync::{Signature as RsyncSignature, SignatureOptions};

/// Longest new content of one delta, in bytes. With a crafted signature every byte of it can cost
/// one MD4 of a block (2 µs).
pub const NEW_BYTES_MAX: usize = 512 << 10;

/// Longest old content of one signature, in bytes: two of the longest chunks and some slack.
pub const BASIS_BYTES_MAX: usize = 2 << 20;

/// Bytes of MD4 in a signature entry, as many as rsync takes at first. With the weak hash that is
/// 48 bits, for at most 2^10 blocks and 2^19 places. One of the longest deltas in half a million
/// has a false match, which costs a retry.
const STRONG_BYTES: u32 = 2;

/// Shortest and longest block that a signature has an entry for, in bytes.
const BLOCK_BYTES_MIN: usize = 192;
const BLOCK_BYTES_MAX: usize = 2048;

/// Bytes of one signature entry: the weak hash and the strong one.
const ENTRY_BYTES: usize = 4 + STRONG_BYTES as usize;

/// `fast_rsync`'s header before the entries: magic, block length, strong length.
const HEADER_BYTES: usize = 12;

/// The magic of an MD4 signature, from librsync's `librsync.h` (`RS_MD4_SIG_MAGIC`).
const MD4_MAGIC: u32 = 0x7273_0136;

/// Failure to use a signature or delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// A signature does not have the entries that its content's length demands.
    #[error("a signature has {actual} bytes where {wanted} are due")]
    Signature {
        /// Bytes due.
        wanted: usize,
        /// Bytes there.
        actual: usize,
    },
    /// A content is longer than one delta may cover.
    #[error("a delta covers more than it may")]
    TooLong,
    /// A delta does not fit its basis, or does not give the announced length.
    #[error("a delta does not fit")]
    Delta,
}

/// Length of the blocks of a signature over `length` bytes: √(3·6·length/2). This is near the
/// optimum for two edits, where the signature costs as much as the blocks that are sent again.
/// Those are text that compresses to about a third; signatures do not compress. Around the optimum
/// the sum is flat. Of a dozen upgrades of source trees none gets 1 % smaller when tuned for one
/// edit, and that of a kernel gets 4 % larger.
fn block_bytes(length: usize) -> u32 {
    let optimum = (3 * ENTRY_BYTES * length / 2).isqrt().clamp(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX);
    // Fits in 32 bits.
    #[allow(clippy::cast_possible_truncation)]
    let optimum = optimum as u32;
    optimum
}

/// Length in bytes of the signature of `length` bytes.
#[must_use]
pub fn signature_bytes(length: usize) -> usize {
    length.div_ceil(block_bytes(length) as usize) * ENTRY_BYTES
}

/// Signs `basis`, of at most [`BASIS_BYTES_MAX`] bytes, with 6 bytes per block.
///
/// # Errors
/// [`DeltaError::TooLong`].
pub fn sign(basis: &[u8]) -> Result<Vec<u8>, DeltaError> {
    if basis.len() > BASIS_BYTES_MAX {
        return Err(DeltaError::TooLong);
    }
    let options = SignatureOptions { block_size: block_bytes(basis.len()), crypto_hash_size: STRONG_BYTES };
    let mut signature = RsyncSignature::calculate(basis, options).into_serialized();
    signature.drain(..HEADER_BYTES.min(signature.len()));
    Ok(signature)
}

/// A signature whose length was checked against the length of the signed content.
pub struct Signature(RsyncSignature);

impl Signature {
    /// Checks a peer's signature over `basis_length` bytes.
    ///
    /// # Errors
    /// [`DeltaError`] if it has more or fewer entries than due.
    pub fn check(entries: &[u8], basis_length: usize) -> Result<Self, DeltaError> {
        if basis_length > BASIS_BYTES_MAX {
            return Err(DeltaError::TooLong);
        }
        let wanted = signature_bytes(basis_length);
        if entries.len() != wanted {
            return Err(DeltaError::Signature { wanted, actual: entries.len() });
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES + entries.len());
        for word in [MD4_MAGIC, block_bytes(basis_length), STRONG_BYTES] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        bytes.extend_from_slice(entries);
        RsyncSignature::deserialize(bytes).map(Self).map_err(|_| DeltaError::Delta)
    }

    /// Makes the delta from the signed content to `new`, of at most [`NEW_BYTES_MAX`] bytes. `None`
    /// if it would not be shorter than nine tenths of `new` itself.
    ///
    /// # Errors
    /// [`DeltaError::TooLong`].
    pub fn diff(&self, new: &[u8]) -> Result<Option<Vec<u8>>, DeltaError> {
        if new.len() > NEW_BYTES_MAX {
            return Err(DeltaError::TooLong);
        }
        let mut delta = Vec::new();
        fast_rsync::diff(&self.0.index(), new, &mut delta).map_err(|_| DeltaError::Delta)?;
        Ok((delta.len() < new.len() / 10 * 9).then_some(delta))
    }
}

/// Applies a delta to its basis. The result must have exactly `length` bytes, at most
/// [`NEW_BYTES_MAX`].
///
/// # Errors
/// [`DeltaError`] if the delta does not fit.
pub fn apply(basis: &[u8], delta: &[u8], length: usize) -> Result<Vec<u8>, DeltaError> {
    if length > NEW_BYTES_MAX || basis.len() > BASIS_BYTES_MAX {
        return Err(DeltaError::TooLong);
    }
    let mut new = Vec::with_capacity(length);
    fast_rsync::apply_limited(basis, delta, &mut new, length).map_err(|_| DeltaError::Delta)?;
    if new.len() == length { Ok(new) } else { Err(DeltaError::Delta) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::testing::noise;
    use std::time::Instant;

    #[test]
    fn small_edit_makes_a_small_delta() {
        for length in [1000, 10_000, 100_000, 500_000] {
            let basis = noise(length);
            let mut new = basis.clone();
            new[length / 2] ^= 1;
            new.splice(length / 3..length / 3, *b"inserted");
            let signature = Signature::check(&sign(&basis).unwrap(), basis.len()).unwrap();
            let delta = signature.diff(&new).unwrap().unwrap();
            assert!(delta.len() < 3 * BLOCK_BYTES_MAX, "{length}: {}", delta.len());
            assert_eq!(apply(&basis, &delta, new.len()).unwrap(), new);
        }
    }

    #[test]
    fn contents_with_nothing_in_common_give_no_delta() {
        let both = noise(200_000);
        let (basis, new) = both.split_at(100_000);
        let signature = Signature::check(&sign(basis).unwrap(), basis.len()).unwrap();
        assert_eq!(signature.diff(new), Ok(None));
    }

    #[test]
    fn signature_of_another_length_is_refused() {
        let signature = sign(&noise(10_000)).unwrap();
        assert!(Signature::check(&signature, 10_000).is_ok());
        for length in [0, 9_000, 20_000, BASIS_BYTES_MAX + 1, usize::MAX] {
            assert!(Signature::check(&signature, length).is_err(), "{length}");
        }
    }

    #[test]
    fn delta_beyond_its_basis_or_length_is_refused() {
        let basis = noise(10_000);
        let signature = Signature::check(&sign(&basis).unwrap(), basis.len()).unwrap();
        let delta = signature.diff(&basis).unwrap().unwrap();
        assert_eq!(apply(&basis, &delta, 9_999), Err(DeltaError::Delta));
        assert_eq!(apply(&basis, &delta, 10_001), Err(DeltaError::Delta));
        assert_eq!(apply(&basis[..5000], &delta, 10_000), Err(DeltaError::Delta));
        assert_eq!(apply(&basis, &delta, NEW_BYTES_MAX + 1), Err(DeltaError::TooLong));
        // librsync's command 0x54, copy with two 8-byte numbers: offset and length of 2^64-1.
        let mut overflow = delta[..4].to_vec();
        overflow.push(0x54);
        overflow.extend([0xff; 16]);
        overflow.push(0);
        assert_eq!(apply(&basis, &overflow, 10_000), Err(DeltaError::Delta));
    }

    #[test]
    fn worst_signature_costs_a_bounded_time() {
        // The content's windows repeat. The signature has each window's weak hash with a wrong
        // strong hash, so every position of the content costs one MD4.
        let period = noise(512);
        let new: Vec<u8> = period.iter().copied().cycle().take(NEW_BYTES_MAX).collect();
        let mut signature = Vec::new();
        for shift in 0..BASIS_BYTES_MAX / BLOCK_BYTES_MAX {
            let window: Vec<u8> = new.iter().copied().skip(shift % 512).take(BLOCK_BYTES_MAX).collect();
            let mut entry = sign(&[window.as_slice(), &noise(BASIS_BYTES_MAX / 2)].concat()).unwrap();
            entry.truncate(ENTRY_BYTES);
            entry[4..].fill(shift as u8);
            signature.extend(entry);
            if shift == 511 {
                break;
            }
        }
        let repeated: Vec<u8> =
            signature.iter().copied().cycle().take(BASIS_BYTES_MAX / BLOCK_BYTES_MAX * ENTRY_BYTES).collect();
        let signature = Signature::check(&repeated, BASIS_BYTES_MAX).unwrap();
        // The machine may be busy: the fastest of some runs counts.
        let time = || {
            let start = Instant::now();
            assert_eq!(signature.diff(&new), Ok(None));
            start.elapsed()
        };
        assert!((0..5).any(|_| time().as_secs() < 15));
    }
}
