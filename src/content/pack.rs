//! Compression of what travels: zstd, one block at a time, each by itself.
//!
//! Level 1 gives up on data that does not shrink by itself (random data passes at 4.4 GB/s), so there is no
//! probing here. Every block declares its length beforehand and unpacks to exactly that or not at all.

/// Blocks shorter than this are not worth a try: a zstd frame costs 13 bytes and 10 µs.
const WORTH_BYTES_MIN: usize = 128;

/// zstd level: 434 MB/s at ratio .230 on source code; 3 takes 1.6 times as long for .207.
const LEVEL: i32 = 1;

/// Why a block does not unpack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a compressed block is damaged or longer than it declares")]
pub struct UnpackError;

/// Packs and unpacks blocks, keeping its tables from one to the next.
pub struct Packer {
    compressor: Option<zstd::bulk::Compressor<'static>>,
}

impl Packer {
    /// A packer; where zstd cannot be set up, or with `compress` off, blocks travel as they are.
    #[must_use]
    pub fn new(compress: bool) -> Self {
        Self { compressor: if compress { zstd::bulk::Compressor::new(LEVEL).ok() } else { None } }
    }

    /// The packed form of `block`, or `None` where it does not become shorter by at least 1/32.
    pub fn pack(&mut self, block: &[u8]) -> Option<Vec<u8>> {
        if block.len() < WORTH_BYTES_MIN {
            return None;
        }
        let packed = self.compressor.as_mut()?.compress(block).ok()?;
        (packed.len() < block.len() - block.len() / 32).then_some(packed)
    }
}

/// Unpacks a block that declares `length` bytes; the caller has checked that `length` is within limits.
///
/// # Errors
/// [`UnpackError`] where the block is damaged or does not have that length.
pub fn unpack(packed: &[u8], length: usize) -> Result<Vec<u8>, UnpackError> {
    // Unpacking into a buffer of the declared length bounds a bomb, and needs no window of its own.
    let block = zstd::bulk::decompress(packed, length).map_err(|_| UnpackError)?;
    if block.len() == length { Ok(block) } else { Err(UnpackError) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_shrinks_and_comes_back() {
        let text = b"the quick brown fox ".repeat(1000);
        let packed = Packer::new(true).pack(&text).unwrap();
        assert!(packed.len() < text.len() / 10);
        assert_eq!(unpack(&packed, text.len()).unwrap(), text);
    }

    #[test]
    fn what_does_not_shrink_travels_as_it_is() {
        let noise: Vec<u8> =
            (0..100_u32).flat_map(|n| *crate::content::hash::Hash::of(&n.to_le_bytes()).as_bytes()).collect();
        assert_eq!(Packer::new(true).pack(&noise), None);
        assert_eq!(Packer::new(true).pack(b"short"), None);
        assert_eq!(Packer::new(false).pack(&[0; 5000]), None);
    }

    #[test]
    fn a_bomb_is_cut_at_the_declared_length() {
        let packed = Packer::new(true).pack(&vec![0; 1 << 20]).unwrap();
        assert_eq!(unpack(&packed, 1000), Err(UnpackError));
        assert_eq!(unpack(&packed, 1 << 21), Err(UnpackError));
        assert_eq!(unpack(&packed[..packed.len() - 1], 1 << 20), Err(UnpackError));
    }
}
