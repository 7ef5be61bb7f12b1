//! Content-defined chunks: FastCDC (Xia et al., 2020) finds their ends, BLAKE3 names them.
//!
//! Chunks find the bytes that two versions share, however far they moved, for 20 bytes per 256 KiB.
//! The finer delta then works only on the ranges between. Chunks serve ranges that
//! [`blocks`](crate::content::blocks) did not find in their old places, since cutting costs four
//! times as much as hashing.

use std::io;
use std::ops::Range;

use fastcdc::v2020::FastCDC;
use serde::{Deserialize, Serialize};

use crate::content::blocks::Content;
use crate::content::hash::Hash;

/// Average chunk length in bytes for all but huge files.
const AVERAGE_BYTES: u32 = 256 << 10;

/// Largest average chunk length in bytes that FastCDC accepts.
const AVERAGE_BYTES_MAX: u32 = 4 << 20;

/// Most chunks of one file: 1.3 MB of names.
pub const CHUNKS_MAX: usize = 1 << 16;

/// The first 16 bytes of a chunk's BLAKE3. They suffice to find equal chunks, since the hash of the
/// whole file still verifies the result. Short names halve the cost of sending a list.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkId([u8; 16]);

impl ChunkId {
    /// The name of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut id = [0; 16];
        id.copy_from_slice(Hash::of(bytes).as_bytes().split_at(16).0);
        Self(id)
    }
}

impl std::fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One chunk of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Length in bytes.
    pub length: u32,
    /// The chunk's name.
    pub id: ChunkId,
}

/// Length of chunks: the average, half of it as minimum, four times as maximum. FastCDC skips the
/// minimum without looking: a quarter as minimum cut 3.3 GB/s, a half cuts 4.2 GB/s and finds about
/// as much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Average(u32);

impl Average {
    /// The average for a content of `size` bytes, which keeps the list well below [`CHUNKS_MAX`].
    /// `None` if the content is too long to be cut (about 128 GiB).
    #[must_use]
    pub fn for_size(size: u64) -> Option<Self> {
        let wanted = (size / (CHUNKS_MAX as u64 / 2)).next_power_of_two();
        u32::try_from(wanted)
            .ok()
            .map(|wanted| wanted.max(AVERAGE_BYTES))
            .filter(|&w| w <= AVERAGE_BYTES_MAX)
            .map(Self)
    }

    /// True if a content cut with this average can have such a chunk.
    #[must_use]
    pub fn allows(self, chunk: &Chunk) -> bool {
        chunk.length as usize <= self.maximum()
    }

    fn minimum(self) -> usize {
        self.0 as usize / 2
    }

    fn maximum(self) -> usize {
        self.0 as usize * 4
    }
}

/// Cuts a range of a content into chunks.
///
/// # Errors
/// The content cannot be read, or ends before the range.
pub fn cut_range(content: &dyn Content, range: Range<u64>, average: Average) -> io::Result<Vec<Chunk>> {
    let maximum = average.maximum();
    // Two maxima: most cuts then need no moving of the rest.
    let mut buffer = vec![0; 2 * maximum];
    let (mut chunks, mut unread) = (Vec::new(), range);
    let (mut start, mut end) = (0, 0);
    loop {
        if end - start < maximum && !unread.is_empty() {
            buffer.copy_within(start..end, 0);
            (start, end) = (0, end - start);
            // At most the length of the buffer.
            let count = (unread.end - unread.start).min((buffer.len() - end) as u64) as usize;
            content.read_at(buffer.get_mut(end..end + count).unwrap_or_default(), unread.start)?;
            unread.start += count as u64;
            end += count;
        }
        let Some(window) = buffer.get(start..end).filter(|window| !window.is_empty()) else {
            return Ok(chunks);
        };
        let length = next_cut(window, average);
        // A chunk is at most 16 MiB long.
        chunks.push(Chunk { length: length as u32, id: ChunkId::of(window.split_at(length).0) });
        start += length;
    }
}

/// The length of the first chunk of `window`, which holds a maximum or the whole rest.
fn next_cut(window: &[u8], average: Average) -> usize {
    if window.len() <= average.minimum() {
        return window.len();
    }
    let cutter = FastCDC::new(window, average.minimum(), average.0 as usize, average.maximum());
    let (_, end) = cutter.cut(0, window.len());
    end.clamp(1, window.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::testing::{noise, reader};

    fn chunks(content: &[u8]) -> Vec<Chunk> {
        let length = content.len() as u64;
        cut_range(&reader(content), 0..length, Average::for_size(length).unwrap()).unwrap()
    }

    #[test]
    fn chunks_cover_the_content_within_their_bounds() {
        for length in [0, 1, 100_000, 3_000_000, 20_000_000] {
            let chunks = chunks(&noise(length));
            assert_eq!(chunks.iter().map(|chunk| chunk.length as usize).sum::<usize>(), length);
            assert!(chunks.iter().all(|chunk| chunk.length <= 1 << 20));
            assert!(chunks.iter().rev().skip(1).all(|chunk| chunk.length >= 1 << 17));
        }
    }

    #[test]
    fn insertion_changes_only_the_chunks_around_it() {
        let old = noise(20_000_000);
        let mut new = old.clone();
        new.splice(5_000_000..5_000_000, [7; 100]);
        let (old, new) = (chunks(&old), chunks(&new));
        let fresh = new.iter().filter(|chunk| !old.contains(chunk)).count();
        assert!((1..=3).contains(&fresh), "{fresh} of {} chunks are new", new.len());
    }

    #[test]
    fn range_is_cut_as_if_it_were_the_whole_content() {
        let content = noise(5_000_000);
        let (begin, end) = (1_234_567, 4_321_000);
        let average = Average(AVERAGE_BYTES);
        let found = cut_range(&reader(&content), begin..end, average).unwrap();
        assert_eq!(found, chunks(&content[begin as usize..end as usize]));
        assert!(cut_range(&reader(&content), begin..5_000_001, average).is_err());
        // Each window holds a whole maximum, so the cuts are those of all the rest.
        let mut rest = &content[begin as usize..end as usize];
        for chunk in found {
            let cutter = FastCDC::new(rest, average.minimum(), AVERAGE_BYTES as usize, average.maximum());
            assert_eq!(chunk.length as usize, cutter.cut(0, rest.len()).1);
            rest = &rest[chunk.length as usize..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn average_grows_so_that_lists_stay_short() {
        assert_eq!(Average::for_size(0), Some(Average(256 << 10)));
        assert_eq!(Average::for_size(10 << 30), Some(Average(512 << 10)));
        assert_eq!(Average::for_size(100 << 30), Some(Average(4 << 20)));
        assert_eq!(Average::for_size(u64::MAX / 2), None);
    }
}
