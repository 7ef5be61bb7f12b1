//! `AdaptiveWriter`: writes frames with an adaptive compression level that fits the speed of the
//! stream below.

use std::cell::Cell;
use std::io::{self, BufWriter, Write};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::content::pack::CompressionLevel;
use crate::wire::frame::FrameWriter;

/// Bytes after which the level rises, if the stream below took most of the time. A new level begins
/// a new compressed stream, which for a while cannot refer to earlier bytes, so the level must not
/// change too often.
const SLOW_BYTES: usize = 8 << 20;

/// Bytes after which the level falls, if compressing took most of the time. For less data the
/// change would save only a tenth of a second.
const FAST_BYTES: usize = 32 << 20;

/// Bytes of short frames that are gathered into one write. Each write becomes a packet of its own
/// below. A flush ends the gathering early.
const GATHERED_BYTES: usize = 16 << 10;

/// Writes frames, and measures where the time goes.
pub(super) struct AdaptiveWriter<W: Write> {
    frames: FrameWriter<BufWriter<Timed<W>>>,
    below: Rc<Cell<Duration>>,
    timings: Timings,
    had_deltas: bool,
    clock: Clock,
}

/// Tells the time.
type Clock = Rc<dyn Fn() -> Instant>;

impl<W: Write> AdaptiveWriter<W> {
    /// Writes to `writer`; with `compress`, packs the frames that shrink. `clock` tells the time.
    pub(super) fn new(writer: W, compress: bool, clock: impl Fn() -> Instant + 'static) -> Self {
        let below = Rc::new(Cell::new(Duration::ZERO));
        let clock: Clock = Rc::new(clock);
        let timed = Timed { writer, spent: Rc::clone(&below), clock: Rc::clone(&clock) };
        let gathered = BufWriter::with_capacity(GATHERED_BYTES, timed);
        Self {
            frames: FrameWriter::new(gathered, compress),
            below,
            timings: Timings::default(),
            had_deltas: false,
            clock,
        }
    }

    /// Writes as [`FrameWriter::write`] does. Deltas of small files are few bytes, of which
    /// thorough compression saves a tenth. So the first of them raises the level, however fast the
    /// stream below is.
    pub(super) fn write(&mut self, raw: &[u8], has_deltas: bool) -> io::Result<()> {
        if has_deltas && !std::mem::replace(&mut self.had_deltas, true) {
            self.frames.set_level(CompressionLevel::Thorough);
            self.timings = Timings::default();
        }
        let level = self.frames.level();
        if self.timings.is_due(level) {
            self.frames.set_level(self.timings.next(level));
            self.timings = Timings::default();
        }
        let (begun, below) = ((self.clock)(), self.below.get());
        let written = self.frames.write(raw);
        let writing = self.below.get() - below;
        self.timings.bytes += raw.len();
        self.timings.writing += writing;
        self.timings.packing += ((self.clock)() - begun).saturating_sub(writing);
        written
    }

    /// Flushes as [`FrameWriter::flush`] does.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.frames.flush()
    }
}

/// Bytes and times since the level was last checked.
#[derive(Default)]
struct Timings {
    bytes: usize,
    packing: Duration,
    writing: Duration,
}

impl Timings {
    /// True if the level should be checked.
    fn is_due(&self, level: CompressionLevel) -> bool {
        self.bytes >= FAST_BYTES
            || (self.bytes >= SLOW_BYTES
                && (self.is_slow() || level == CompressionLevel::Thorough)
                && self.next(level) != level)
    }

    /// The level that fits: where the stream below is slow, there is time to compress.
    fn next(&self, level: CompressionLevel) -> CompressionLevel {
        match level {
            CompressionLevel::Quick if self.is_slow() => CompressionLevel::Usual,
            CompressionLevel::Usual if self.is_slow() => CompressionLevel::Thorough,
            CompressionLevel::Thorough if self.writing < self.packing => CompressionLevel::Usual,
            CompressionLevel::Usual if self.writing < self.packing * 2 => CompressionLevel::Quick,
            _ => level,
        }
    }

    fn is_slow(&self) -> bool {
        self.writing > self.packing * 4
    }
}

/// A writer whose time is counted.
struct Timed<W> {
    writer: W,
    spent: Rc<Cell<Duration>>,
    clock: Clock,
}

impl<W: Write> Timed<W> {
    fn count<T>(&mut self, work: impl FnOnce(&mut W) -> io::Result<T>) -> io::Result<T> {
        let begun = (self.clock)();
        let result = work(&mut self.writer);
        self.spent.set(self.spent.get() + ((self.clock)() - begun));
        result
    }
}

impl<W: Write> Write for Timed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.count(|writer| writer.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.count(Write::flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::hash::Hash;
    use crate::wire::frame::FrameReader;

    fn timings(bytes: usize, packing: u64, writing: u64) -> Timings {
        Timings { bytes, packing: Duration::from_millis(packing), writing: Duration::from_millis(writing) }
    }

    #[test]
    fn level_follows_where_the_time_goes() {
        use CompressionLevel::{Quick, Thorough, Usual};
        for (packing, writing, steps) in [
            (10, 1000, [(Quick, Usual), (Usual, Thorough), (Thorough, Thorough)]),
            (10, 30, [(Quick, Quick), (Usual, Usual), (Thorough, Thorough)]),
            (10, 15, [(Quick, Quick), (Usual, Quick), (Thorough, Thorough)]),
            (10, 1, [(Quick, Quick), (Usual, Quick), (Thorough, Usual)]),
        ] {
            for (now, next) in steps {
                assert_eq!(timings(0, packing, writing).next(now), next, "{packing} {writing} {now:?}");
            }
        }
        assert!(
            timings(SLOW_BYTES, 1, 1000).is_due(Usual) && !timings(SLOW_BYTES - 1, 1, 1000).is_due(Usual)
        );
        assert!(!timings(SLOW_BYTES, 1000, 1).is_due(Usual) && timings(FAST_BYTES, 1000, 1).is_due(Usual));
        assert!(!timings(SLOW_BYTES, 1, 1000).is_due(Thorough), "there is nothing beyond");
        assert!(timings(SLOW_BYTES, 1000, 1).is_due(Thorough), "a fast stream has not time for that much");
    }

    /// The lengths of the writes.
    #[derive(Default)]
    struct Writes(Vec<usize>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(bytes.len());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn small_frames_share_a_write_until_they_are_flushed() {
        let mut writes = Writes::default();
        let mut adaptive = AdaptiveWriter::new(&mut writes, false, Instant::now);
        for length in [10, 20, 30, GATHERED_BYTES, 40, 50] {
            adaptive.write(&vec![7; length], false).unwrap();
        }
        for _ in 0..2 {
            adaptive.flush().unwrap();
        }
        adaptive.write(&[7; 5], false).unwrap();
        adaptive.flush().unwrap();
        drop(adaptive);
        assert_eq!(writes.0, [10 + 20 + 30 + 3 * 4, GATHERED_BYTES + 4, 40 + 50 + 2 * 4, 5 + 4]);
    }

    #[test]
    fn deltas_are_packed_thoroughly_from_the_first_on() {
        let mut adaptive = AdaptiveWriter::new(Vec::new(), true, Instant::now);
        adaptive.write(&[7; 1000], false).unwrap();
        assert_eq!(adaptive.frames.level(), CompressionLevel::Usual);
        adaptive.write(&[7; 1000], true).unwrap();
        assert_eq!(adaptive.frames.level(), CompressionLevel::Thorough);
        // Nothing is as fast as this stream.
        for _ in 0..40 {
            adaptive.write(&vec![7; 1 << 20], true).unwrap();
        }
        assert_ne!(adaptive.frames.level(), CompressionLevel::Thorough);
    }

    /// A stream that takes a while for each frame, and the time that has passed.
    struct Slow(Vec<u8>, Rc<Cell<Duration>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.set(self.1.get() + Duration::from_millis(100));
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn slow_stream_is_packed_thoroughly_and_everything_arrives() {
        let passed = Rc::new(Cell::new(Duration::ZERO));
        let mut out = Slow(Vec::new(), Rc::clone(&passed));
        let start = Instant::now();
        // Packed, the block is still long enough for a write of its own.
        let mut block = b"some text, and some more of it ".repeat(1 << 15);
        let noise = |index: u32| Hash::of(&index.to_le_bytes());
        block.extend((0..1024).flat_map(|index| *noise(index).as_bytes()));
        let mut adaptive = AdaptiveWriter::new(&mut out, true, move || start + passed.get());
        for _ in 0..20 {
            adaptive.write(&block, false).unwrap();
        }
        assert_eq!(adaptive.frames.level(), CompressionLevel::Thorough);
        adaptive.flush().unwrap();
        drop(adaptive);
        let mut frames = FrameReader::new(out.0.as_slice());
        assert!((0..20).all(|_| frames.read().unwrap() == block));
    }
}
