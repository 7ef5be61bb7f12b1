//! Compression of what travels: one zstd stream for all blocks of one direction, each of which ends with a flush.
//!
//! So a block can refer to those before it: files of a tree resemble each other, and so do their edits. (Another stream
//! begins where the effort changes, and with little effort after each window.) Where blocks do not shrink, most of the
//! next ones that look as random are not tried. Every block declares its length beforehand and unpacks to exactly that
//! or not at all.

use std::io;

use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

/// Blocks shorter than this are not worth a try.
const WORTH_BYTES_MIN: usize = 32;

/// How far back a block may refer: 8 MiB, which the unpacking side holds. A power of two. The deltas of an
/// upgrade, whose files resemble each other from afar, took a quarter less than with 2 MiB.
const WINDOW_LOG: u32 = 23;

/// Quick packing remembers so many places (a power of two): twice what level 1 does, for 2 to 4 % fewer bytes.
const QUICK_HASH_LOG: u32 = 15;

/// From this length on, in bytes, a block tells whether its like shrinks at all.
const TELLING_BYTES_MIN: usize = 64 << 10;

/// Most such blocks that are not tried after some that did not shrink.
const SKIPPED_MAX: u32 = 16;

/// To see whether a block looks random, so many stretches of so many bytes are looked at.
const STRETCHES: usize = 64;
const STRETCH_BYTES: usize = 64;

/// What zstd adds to a block at most, besides its 1/128: headers of its own blocks and of the stream.
const OVERHEAD_BYTES: usize = 1 << 10;

/// Why a block does not unpack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a compressed block is damaged or not as long as it declares")]
pub struct UnpackError;

/// How much time packing may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Level 1: 200 MB of a kernel's source become .231 of it.
    Quick,
    /// Level 3: half as fast.
    Usual,
    /// Level 6: a quarter as fast, and deltas of many files that resemble each other to three quarters. The agent's zstd
    /// has nothing beyond it.
    Thorough,
}

impl Effort {
    /// zstd's level.
    fn level(self) -> i32 {
        match self {
            Self::Quick => 1,
            Self::Usual => 3,
            Self::Thorough => 6,
        }
    }

    /// zstd's places to remember; 0 as it sees fit.
    fn hash_log(self) -> u32 {
        if self == Self::Quick { QUICK_HASH_LOG } else { 0 }
    }

    /// Has `encoder`, which is between two streams, pack so from now on.
    fn set(self, encoder: &mut Encoder<'_>) -> io::Result<()> {
        encoder.set_parameter(CParameter::CompressionLevel(self.level()))?;
        encoder.set_parameter(CParameter::HashLog(self.hash_log()))
    }
}

/// Packs blocks, in the order in which they will be unpacked.
pub struct Packer {
    encoder: Option<Encoder<'static>>,
    effort: Effort,
    /// Bytes of the stream so far, unpacked.
    streamed: usize,
    /// What ends the stream so far, and goes before the next block.
    epilogue: Vec<u8>,
    /// How many telling blocks are not to be tried, and how many will not be after the next that does not shrink.
    skipping: u32,
    skips: u32,
}

impl Packer {
    /// A packer; where zstd cannot be set up, or with `compress` off, blocks travel as they are.
    #[must_use]
    pub fn new(compress: bool) -> Self {
        let effort = Effort::Usual;
        let encoder = || {
            let mut encoder = Encoder::new(effort.level())?;
            encoder.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
            io::Result::Ok(encoder)
        };
        let encoder = if compress { encoder().ok() } else { None };
        Self { encoder, effort, streamed: 0, epilogue: Vec::new(), skipping: 0, skips: 1 }
    }

    /// How much time packing takes.
    #[must_use]
    pub fn effort(&self) -> Effort {
        self.effort
    }

    /// Packs what comes with another effort. A stream of its own begins: later blocks do not refer to earlier ones.
    pub fn set_effort(&mut self, effort: Effort) {
        if effort == self.effort {
            return;
        }
        self.end_stream();
        self.effort = effort;
        if self.encoder.as_mut().is_some_and(|encoder| effort.set(encoder).is_err()) {
            self.encoder = None;
        }
    }

    /// Ends the stream; the next block begins another one.
    fn end_stream(&mut self) {
        let Some(encoder) = &mut self.encoder else { return };
        // Everything was flushed: what is left is a last block that is empty.
        let mut end = [0; 64];
        let mut output = OutBuffer::around(&mut end[..]);
        let is_ended = matches!(encoder.finish(&mut output, true), Ok(0));
        self.epilogue.extend_from_slice(output.as_slice());
        self.streamed = 0;
        if !is_ended {
            self.encoder = None;
        }
    }

    /// The packed form of `block`, which is to be unpacked before any later one; `None` where it travels as it is.
    pub fn pack(&mut self, block: &[u8]) -> Option<Vec<u8>> {
        if block.len() < WORTH_BYTES_MIN {
            return None;
        }
        let is_telling = block.len() >= TELLING_BYTES_MIN;
        if is_telling && self.skipping > 0 && looks_random(block) {
            self.skipping -= 1;
            return None;
        }
        // zstd's buffer holds one window. Once it has wrapped around, what is referred to lies in two pieces, and all
        // takes a tenth longer. Level 1 has long forgotten by then what the stream began with.
        if self.effort == Effort::Quick && self.streamed + block.len() > 1 << WINDOW_LOG {
            self.end_stream();
        }
        self.streamed += block.len();
        let encoder = self.encoder.as_mut()?;
        // What is read, packed and unpacked into need not be filled with zeros first: that took 2 % of each side's time.
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
        // Zero bytes are left to be flushed when all has left the encoder.
        failed |= !matches!(encoder.flush(&mut output), Ok(0));
        if failed {
            // Out of memory, or a bug: what is left of the stream cannot be told from what was sent.
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

/// Whether bytes of `block` are equal hardly more often than chance has it: the index of coincidence (Friedman, 1922),
/// of a sample. In what was compressed or encrypted it is 1/256; in text and programs several times that, and in a mixture
/// somewhere between.
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

/// Unpacks blocks, in the order in which they were packed.
pub struct Unpacker {
    decoder: Option<Decoder<'static>>,
}

impl Default for Unpacker {
    fn default() -> Self {
        Self::new()
    }
}

impl Unpacker {
    /// An unpacker that has seen nothing. Its memory is bounded by the window.
    #[must_use]
    pub fn new() -> Self {
        let decoder = || {
            let mut decoder = Decoder::new()?;
            decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
            io::Result::Ok(decoder)
        };
        Self { decoder: decoder().ok() }
    }

    /// Unpacks a block that declares `length` bytes; the caller has checked that `length` is within limits.
    ///
    /// # Errors
    /// [`UnpackError`] where the block is damaged or does not have that length. Nothing can be unpacked any more
    /// then.
    pub fn unpack(&mut self, packed: &[u8], length: usize) -> Result<Vec<u8>, UnpackError> {
        let decoder = self.decoder.as_mut().ok_or(UnpackError)?;
        // One byte more, so that a block that is longer shows.
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
    fn a_block_that_resembles_one_before_it_costs_hardly_anything() {
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
    fn what_does_not_shrink_is_tried_less_and_less_often() {
        let mut packer = Packer::new(true);
        let noise = noise(20 << 20);
        let tried = noise.chunks(1 << 20).filter(|block| packer.pack(block).is_some()).count();
        assert!((3..=5).contains(&tried), "{tried}");
        assert!(packer.pack(b"short text is packed all the same, again and again and again").is_some());
        // What does not look like it is tried at once.
        let text = b"text ".repeat(1 << 18);
        assert!((0..40).all(|_| packer.pack(&text).is_some()));
    }

    #[test]
    fn what_was_compressed_looks_random_and_what_it_lies_among_does_not() {
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
        packer.set_effort(Effort::Quick);
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
    fn the_effort_can_change_between_any_two_blocks() {
        let (mut packer, mut unpacker) = (Packer::new(true), Unpacker::new());
        let content = [noise(100_000), b"some text, and some more ".repeat(8000)].concat();
        let mut tried = 0;
        let efforts = [Effort::Quick, Effort::Thorough, Effort::Thorough, Effort::Usual, Effort::Quick];
        for (round, effort) in efforts.into_iter().cycle().take(40).enumerate() {
            packer.set_effort(effort);
            assert_eq!(packer.effort(), effort);
            let block = &content[round * 1000..][..100_000 + round * 3000];
            // Twice without a block between, and a block that travels as it is.
            if round % 7 == 0 {
                packer.set_effort(Effort::Usual);
                assert_eq!(packer.pack(b"short"), None);
            }
            // What does not shrink is not always tried.
            let Some(packed) = packer.pack(block) else { continue };
            tried += 1;
            assert!(packed.len() <= block.len() + block.len() / 128 + OVERHEAD_BYTES);
            assert_eq!(unpacker.unpack(&packed, block.len()).unwrap(), block, "{round}");
        }
        assert!(tried > 20, "{tried}");
        let mut off = Packer::new(false);
        off.set_effort(Effort::Quick);
        assert_eq!(off.pack(&[0; 5000]), None);
    }

    #[test]
    fn with_compression_off_everything_travels_as_it_is() {
        assert_eq!(Packer::new(false).pack(&[0; 5000]), None);
    }

    #[test]
    fn a_bomb_is_cut_at_the_declared_length() {
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
    fn a_window_beyond_ours_is_refused() {
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
