//! Compression of messages: one zstd stream for all blocks of one direction. Each block ends with a
//! flush.
//!
//! A block can refer to earlier ones: files of a tree resemble each other, and so do their edits.
//! (A new stream begins where the level changes, and at level 1 after each window.) If blocks do
//! not shrink, most later blocks that look as random are not tried. Every block declares its length
//! beforehand and unpacks to exactly that length, or not at all.

use std::io;

use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

/// Shortest block, in bytes, that is worth a try.
const WORTH_BYTES_MIN: usize = 32;

/// Distance that a block may refer back, as a power of two: 8 MiB, which the unpacking side holds.
/// The deltas of an upgrade, whose similar files lie far apart, took a quarter less than with 2
/// MiB.
const WINDOW_LOG: u32 = 23;

/// Size of level 1's hash table, as a power of two: twice zstd's own choice, for 2 to 4 % fewer
/// bytes.
const QUICK_HASH_LOG: u32 = 15;

/// Shortest block, in bytes, that shows whether blocks like it shrink at all.
const TELLING_BYTES_MIN: usize = 64 << 10;

/// Most such blocks that are not tried after some that did not shrink.
const SKIPPED_MAX: u32 = 16;

/// Number and length, in bytes, of the stretches that are sampled to see whether a block looks
/// random.
const STRETCHES: usize = 64;
const STRETCH_BYTES: usize = 64;

/// Most bytes that zstd adds to a block besides 1/128 of it: headers of its own blocks and of the
/// stream.
const OVERHEAD_BYTES: usize = 1 << 10;

/// Failure to unpack a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a compressed block is damaged or not as long as it declares")]
pub struct UnpackError;

/// Compression level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompressionLevel {
    /// Level 1: compresses 200 MB of a kernel's source to 0.231 of their size.
    Quick,
    /// Level 3: half as fast.
    Usual,
    /// Level 6: a quarter as fast. Deltas of many similar files shrink to three quarters. The
    /// agent's zstd has nothing beyond this level.
    Thorough,
}

impl CompressionLevel {
    /// The level in zstd's terms.
    fn zstd_level(self) -> i32 {
        match self {
            Self::Quick => 1,
            Self::Usual => 3,
            Self::Thorough => 6,
        }
    }

    /// The size of zstd's hash table as a power of two; 0 leaves it to zstd.
    fn hash_log(self) -> u32 {
        if self == Self::Quick { QUICK_HASH_LOG } else { 0 }
    }

    /// Sets the level of an encoder that is between two streams.
    fn set(self, encoder: &mut Encoder<'_>) -> io::Result<()> {
        encoder.set_parameter(CParameter::CompressionLevel(self.zstd_level()))?;
        encoder.set_parameter(CParameter::HashLog(self.hash_log()))
    }
}

/// Packs blocks in the order in which they will be unpacked.
pub struct Packer {
    encoder: Option<Encoder<'static>>,
    level: CompressionLevel,
    /// Bytes of the stream so far, unpacked.
    streamed: usize,
    /// The end of the last stream, which goes before the next block.
    epilogue: Vec<u8>,
    /// Number of telling blocks still to skip, and number to skip after the next one that does not
    /// shrink.
    skipping: u32,
    skips: u32,
}

impl Packer {
    /// Makes a packer. If zstd cannot be set up, or `compress` is off, blocks travel unpacked.
    #[must_use]
    pub fn new(compress: bool) -> Self {
        let level = CompressionLevel::Usual;
        let encoder = || {
            let mut encoder = Encoder::new(level.zstd_level())?;
            encoder.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
            io::Result::Ok(encoder)
        };
        let encoder = if compress { encoder().ok() } else { None };
        Self { encoder, level, streamed: 0, epilogue: Vec::new(), skipping: 0, skips: 1 }
    }

    /// The compression level of later blocks.
    #[must_use]
    pub fn level(&self) -> CompressionLevel {
        self.level
    }

    /// Sets the compression level of later blocks. A new stream begins: later blocks do not refer
    /// to earlier ones.
    pub fn set_level(&mut self, level: CompressionLevel) {
        if level == self.level {
            return;
        }
        self.end_stream();
        self.level = level;
        if self.encoder.as_mut().is_some_and(|encoder| level.set(encoder).is_err()) {
            self.encoder = None;
        }
    }

    /// Ends the stream; the next block begins another one.
    fn end_stream(&mut self) {
        let Some(encoder) = &mut self.encoder else { return };
        // Everything was flushed, so only an empty last block is left.
        let mut end = [0; 64];
        let mut output = OutBuffer::around(&mut end[..]);
        let is_ended = matches!(encoder.finish(&mut output, true), Ok(0));
        self.epilogue.extend_from_slice(output.as_slice());
        self.streamed = 0;
        if !is_ended {
            self.encoder = None;
        }
    }

    /// Packs `block`, which must be unpacked before any later one; `None` if it travels unpacked.
    pub fn pack(&mut self, block: &[u8]) -> Option<Vec<u8>> {
        if block.len() < WORTH_BYTES_MIN {
            return None;
        }
        let is_telling = block.len() >= TELLING_BYTES_MIN;
        if is_telling && self.skipping > 0 && looks_random(block) {
            self.skipping -= 1;
            return None;
        }
        // zstd's buffer holds one window. Once it has wrapped around, the history lies in two
        // pieces, and everything takes a tenth longer. By then level 1 has long forgotten the
        // beginning of the stream.
        if self.level == CompressionLevel::Quick && self.streamed + block.len() > 1 << WINDOW_LOG {
            self.end_stream();
        }
        self.streamed += block.len();
        let encoder = self.encoder.as_mut()?;
        // The buffers of reading, packing and unpacking are not filled with zeros first: that took
        // 2 % of each side's time.
        let mut packed = Vec::with_capacity(block.len() + block.len() / 128 + OVERHEAD_BYTES);
        packed.append(&mut self.epilogue);
        let begin = packed.len();
        let mut output = OutBuffer::around_pos(&mut packed, begin);
        let mut input = InBuffer::around(block);
        let mut failed = false;
        while input.pos() < block.len() && !failed {
            let before = (input.pos(), output.pos());
            failed = encoder.run(&mut input, &mut output).is_err() || before == (input.pos(), output.pos());
        }
        // `Ok(0)` means that everything has left the encoder.
        failed |= !matches!(encoder.flush(&mut output), Ok(0));
        if failed {
            // Out of memory, or a bug: this side cannot tell any more which part of the stream was
            // sent.
            self.encoder = None;
            return None;
        }
        if is_telling {
            let shrinks = packed.len() < block.len() - block.len() / 32;
            (self.skipping, self.skips) =
                if shrinks { (0, 1) } else { (self.skips, SKIPPED_MAX.min(2 * self.skips)) };
        }
        Some(packed)
    }
}

/// True if bytes of `block` are equal hardly more often than by chance, judged by the index of
/// coincidence (Friedman, 1922) of a sample. In compressed or encrypted data it is 1/256; in text
/// and programs several times that, and in a mixture somewhere between.
fn looks_random(block: &[u8]) -> bool {
    let mut counts = [0_u64; 256];
    let step = (block.len() / STRETCHES).max(STRETCH_BYTES);
    let sample = block.chunks(step).flat_map(|stretch| stretch.iter().take(STRETCH_BYTES));
    for &byte in sample {
        if let Some(count) = counts.get_mut(usize::from(byte)) {
            *count += 1;
        }
    }
    let sampled: u64 = counts.iter().sum();
    let equal_pairs: u64 = counts.iter().map(|count| count * count.saturating_sub(1)).sum();
    // By chance one pair in 256 is equal; a fifth more is not chance any more.
    equal_pairs * 256 * 5 <= sampled * sampled.saturating_sub(1) * 6
}

/// Unpacks blocks in the order in which they were packed.
pub struct Unpacker {
    decoder: Option<Decoder<'static>>,
}

impl Default for Unpacker {
    fn default() -> Self {
        Self::new()
    }
}

impl Unpacker {
    /// An unpacker that has seen nothing. The window bounds its memory.
    #[must_use]
    pub fn new() -> Self {
        let decoder = || {
            let mut decoder = Decoder::new()?;
            decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
            io::Result::Ok(decoder)
        };
        Self { decoder: decoder().ok() }
    }

    /// Unpacks a block that declares `length` bytes; the caller has checked that `length` is within
    /// limits.
    ///
    /// # Errors
    /// [`UnpackError`] if the block is damaged or does not have that length. Nothing can be
    /// unpacked any more then.
    pub fn unpack(&mut self, packed: &[u8], length: usize) -> Result<Vec<u8>, UnpackError> {
        let decoder = self.decoder.as_mut().ok_or(UnpackError)?;
        // One byte more, so that a longer block is noticed.
        let mut block = Vec::with_capacity(length + 1);
        let mut output = OutBuffer::around(&mut block);
        let mut input = InBuffer::around(packed);
        let mut is_whole = false;
        loop {
            let before = (input.pos(), output.pos());
            if decoder.run(&mut input, &mut output).is_err() {
                break;
            }
            let at_end = input.pos() == packed.len();
            if before == (input.pos(), output.pos()) || (at_end && output.pos() >= length) {
                is_whole = at_end && output.pos() == length;
                break;
            }
        }
        if !is_whole {
            self.decoder = None;
            return Err(UnpackError);
        }
        Ok(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::testing::noise;

    #[test]
    fn text_shrinks_and_comes_back() {
        let text = b"the quick brown fox ".repeat(1000);
        let packed = Packer::new(true).pack(&text).unwrap();
        assert!(packed.len() < text.len() / 10);
        assert_eq!(Unpacker::new().unpack(&packed, text.len()).unwrap(), text);
    }

    #[test]
    fn block_that_resembles_an_earlier_one_costs_hardly_anything() {
        let (mut packer, mut unpacker) = (Packer::new(true), Unpacker::new());
        let block = noise(60_000);
        let first = packer.pack(&block).unwrap();
        let second = packer.pack(&block).unwrap();
        assert!(first.len() < 60_100 && second.len() < 200, "{} {}", first.len(), second.len());
        assert_eq!(packer.pack(b"short"), None);
        for packed in [first, second] {
            assert_eq!(unpacker.unpack(&packed, block.len()).unwrap(), block);
        }
    }

    #[test]
    fn incompressible_blocks_are_tried_less_and_less_often() {
        let mut packer = Packer::new(true);
        let noise = noise(20 << 20);
        let tried = noise.chunks(1 << 20).filter(|block| packer.pack(block).is_some()).count();
        assert!((3..=5).contains(&tried), "{tried}");
        assert!(packer.pack(b"short text is packed all the same, again and again and again").is_some());
        // Compressible input ends the back-off immediately.
        let text = b"text ".repeat(1 << 18);
        assert!((0..40).all(|_| packer.pack(&text).is_some()));
    }

    #[test]
    fn compressed_data_looks_random_and_a_mixture_does_not() {
        let noise = noise(1 << 20);
        for length in [TELLING_BYTES_MIN, 100_001, noise.len()] {
            assert!(looks_random(&noise[..length]));
            let text = b"the quick brown fox jumps over the lazy dog; ".repeat(length / 40);
            assert!(!looks_random(&text[..length]));
            let mixed = [&noise[..length / 2], &text[..length / 2]].concat();
            assert!(!looks_random(&mixed));
        }
        assert!(!looks_random(&[0; TELLING_BYTES_MIN]));
        assert!(looks_random(&[]));
    }

    #[test]
    fn blocks_of_all_lengths_come_back() {
        let (mut packer, mut unpacker) = (Packer::new(true), Unpacker::new());
        let content = [noise(3 << 20), b"text ".repeat(1 << 20)].concat();
        for length in [32, 33, 1000, 128 << 10, (128 << 10) + 1, 1 << 20, 3 << 20, content.len()] {
            for block in [&content[..length], &content[content.len() - length..]] {
                let Some(packed) = packer.pack(block) else { continue };
                assert!(packed.len() <= block.len() + block.len() / 128 + OVERHEAD_BYTES);
                assert_eq!(unpacker.unpack(&packed, length).unwrap(), block, "{length}");
            }
        }
    }

    #[test]
    fn quick_packing_begins_a_stream_before_the_window_is_full() {
        let (mut packer, mut unpacker) = (Packer::new(true), Unpacker::new());
        packer.set_level(CompressionLevel::Quick);
        let block = [noise(100_000), b"some text, and some more ".repeat(36_000)].concat();
        let block = &block[..1_000_000];
        let mut began = Vec::new();
        for number in 0..20 {
            let packed = packer.pack(block).unwrap();
            if packed.windows(4).any(|bytes| bytes == [0x28, 0xb5, 0x2f, 0xfd]) {
                began.push(number);
            }
            assert_eq!(unpacker.unpack(&packed, block.len()).unwrap(), block, "{number}");
        }
        assert_eq!(began, [0, 8, 16]);
    }

    #[test]
    fn level_can_change_between_any_two_blocks() {
        let (mut packer, mut unpacker) = (Packer::new(true), Unpacker::new());
        let content = [noise(100_000), b"some text, and some more ".repeat(8000)].concat();
        let mut tried = 0;
        let levels = [
            CompressionLevel::Quick,
            CompressionLevel::Thorough,
            CompressionLevel::Thorough,
            CompressionLevel::Usual,
            CompressionLevel::Quick,
        ];
        for (round, level) in levels.into_iter().cycle().take(40).enumerate() {
            packer.set_level(level);
            assert_eq!(packer.level(), level);
            let block = &content[round * 1000..][..100_000 + round * 3000];
            // Twice without a block between, and with a block that travels unpacked.
            if round % 7 == 0 {
                packer.set_level(CompressionLevel::Usual);
                assert_eq!(packer.pack(b"short"), None);
            }
            // Incompressible blocks are not always tried.
            let Some(packed) = packer.pack(block) else { continue };
            tried += 1;
            assert!(packed.len() <= block.len() + block.len() / 128 + OVERHEAD_BYTES);
            assert_eq!(unpacker.unpack(&packed, block.len()).unwrap(), block, "{round}");
        }
        assert!(tried > 20, "{tried}");
        let mut off = Packer::new(false);
        off.set_level(CompressionLevel::Quick);
        assert_eq!(off.pack(&[0; 5000]), None);
    }

    #[test]
    fn disabled_compression_leaves_everything_unpacked() {
        assert_eq!(Packer::new(false).pack(&[0; 5000]), None);
    }

    #[test]
    fn bomb_is_cut_at_the_declared_length() {
        let packed = Packer::new(true).pack(&vec![0; 1 << 20]).unwrap();
        let unpack = |packed: &[u8], length| Unpacker::new().unpack(packed, length);
        assert!(unpack(&packed, 1 << 20).is_ok());
        for length in [0, 1000, (1 << 20) - 1, (1 << 20) + 1, 1 << 21] {
            assert_eq!(unpack(&packed, length), Err(UnpackError), "{length}");
        }
        assert_eq!(unpack(&packed[..packed.len() - 1], 1 << 20), Err(UnpackError));
        let mut unpacker = Unpacker::new();
        assert!(unpacker.unpack(&packed, 5).is_err());
        assert!(unpacker.unpack(&packed, 1 << 20).is_err(), "after an error nothing is unpacked");
    }

    #[test]
    fn window_beyond_the_limit_is_refused() {
        let mut encoder = Encoder::new(3).unwrap();
        encoder.set_parameter(CParameter::WindowLog(27)).unwrap();
        let content = noise(1 << 20);
        let mut packed = vec![0; 2 << 20];
        let mut output = OutBuffer::around(&mut packed);
        encoder.run(&mut InBuffer::around(&content), &mut output).unwrap();
        encoder.flush(&mut output).unwrap();
        let length = output.pos();
        assert_eq!(Unpacker::new().unpack(&packed[..length], content.len()), Err(UnpackError));
    }
}
