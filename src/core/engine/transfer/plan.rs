//! The delta plan: a new content as a row of segments that the receiver has or needs, found
//! coarsely first.
//!
//! 1. *Blocks* that are unchanged, in their old places ([`aligned`]).
//! 2. If the two lengths differ, the same blocks moved by the difference ([`shifted`],
//!    [`reshift`]): a range was inserted or removed in one place.
//! 3. If a long range still remains, a range was inserted or removed elsewhere: both sides cut it
//!    into content-defined *chunks* ([`to_cut`], [`matched`], [`recut`]).
//! 4. A range that still remains is a *gap*: if the basis has something in the same place, the fine
//!    delta is tried on it ([`with_gaps`]).
//!
//! Nothing here touches a file.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use crate::content::blocks::{BlockId, BlockSize};
use crate::content::chunk::{Average, Chunk, ChunkId};
use crate::content::delta::{BASIS_BYTES_MAX, NEW_BYTES_MAX};
use crate::content::shift_map::ShiftMap;
use crate::wire::message::{Blocks, Stretch, Window};

/// Bytes that the delta searches on both sides of a gap's place in the basis. They apply where the
/// gap is too long to compare as a whole.
const SLACK_BYTES: u64 = 64 << 10;

/// Shortest gap, in bytes, that is compared: the signature of a shorter one would cost as much as
/// sending it.
const GAP_BYTES_MIN: u64 = 1 << 10;

/// A range of the new content and its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Segment {
    /// The basis has it.
    Basis { offset: u64, length: u64 },
    /// The range must be sent.
    New { offset: u64, length: u64 },
    /// The range may resemble one of the basis; at most [`NEW_BYTES_MAX`] long.
    Gap { offset: u64, length: u64, window: Window },
}

impl Segment {
    pub(super) fn length(&self) -> u64 {
        match *self {
            Self::Basis { length, .. } | Self::New { length, .. } | Self::Gap { length, .. } => length,
        }
    }

    /// Length in bytes of a range that the basis has.
    pub(super) fn basis_length(&self) -> Option<u64> {
        matches!(self, Self::Basis { .. }).then(|| self.length())
    }
}

/// Appends a segment, joined with the last one if it continues that.
fn push(segments: &mut Vec<Segment>, next: Segment) {
    if next.length() == 0 {
        return;
    }
    match (segments.last_mut(), next) {
        (Some(Segment::Basis { offset: last, length: so_far }), Segment::Basis { offset, length })
            if *last + *so_far == offset =>
        {
            *so_far += length;
        }
        (Some(Segment::New { length: so_far, .. }), Segment::New { length, .. }) => *so_far += length,
        _ => segments.push(next),
    }
}

/// The blocks of a content of `size` bytes that the basis, advertised in this `shift_map`, has in
/// the same places.
pub(super) fn aligned(
    size: u64,
    block: BlockSize,
    new: &[BlockId],
    basis: &Blocks,
    shift_map: ShiftMap,
) -> Vec<Segment> {
    let mut segments = Vec::new();
    for (index, id) in (0..).zip(new) {
        let offset = index * block.bytes();
        let length = block.bytes().min(size - offset);
        // A short last block is no beginning of a longer one: their names differ.
        let is_there = basis.ids.get(index as usize) == Some(id);
        push(
            &mut segments,
            match shift_map.piece(offset) {
                (Some(place), reach) if is_there && length <= reach => {
                    Segment::Basis { offset: place, length }
                }
                _ => Segment::New { offset, length },
            },
        );
    }
    segments
}

/// A tail of the new content that seems to be moved as a whole, by the difference of the two
/// lengths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shifted {
    /// The blocks of the basis that may be found again.
    pub(super) blocks: Range<u64>,
    /// Index of the segment that may contain them, the last one.
    segment: usize,
    /// Start of that segment in the new content.
    start: u64,
}

/// Decides whether to search the end of the new content as [`Shifted`]. The segments begin at
/// `start`.
pub(super) fn shifted(
    segments: &[Segment],
    start: u64,
    size: u64,
    block: BlockSize,
    basis: &Blocks,
    cut_bytes_min: u64,
) -> Option<Shifted> {
    let segment = segments.len().checked_sub(1)?;
    let last = segments.get(segment).filter(|last| matches!(last, Segment::New { .. }))?;
    let is_named = basis.ids.len() as u64 == block.count(basis.length);
    if size == basis.length || !is_named || last.length() <= cut_bytes_min {
        return None;
    }
    let start = (size - last.length()).max(start);
    // A block at `offset` in the basis would be at `offset + size - basis.length` in the new
    // content. It must lie within the segment there, and after the part of the basis that is found
    // already.
    let after =
        basis_range(segments, segment, basis.length).start.max((start + basis.length).saturating_sub(size));
    let blocks = after.div_ceil(block.bytes())..basis.ids.len() as u64;
    (blocks.end.saturating_sub(blocks.start) * block.bytes() > cut_bytes_min).then_some(Shifted {
        blocks,
        segment,
        start,
    })
}

/// Replaces the last segment by the blocks that were found.
pub(super) fn reshift(
    segments: &[Segment],
    shifted: &Shifted,
    size: u64,
    block: BlockSize,
    new: &[BlockId],
    basis: &Blocks,
) -> Vec<Segment> {
    let mut all = segments.get(..shifted.segment).unwrap_or_default().to_vec();
    let mut at = shifted.start;
    for (index, id) in (shifted.blocks.start..).zip(new) {
        let offset = index * block.bytes();
        // Not negative: `shifted` chose the blocks accordingly.
        let place = offset + size - basis.length;
        let length = block.bytes().min(basis.length - offset);
        push(&mut all, Segment::New { offset: at, length: place - at });
        let is_there = basis.ids.get(index as usize) == Some(id);
        push(
            &mut all,
            if is_there { Segment::Basis { offset, length } } else { Segment::New { offset: place, length } },
        );
        at = place + length;
    }
    push(&mut all, Segment::New { offset: at, length: size - at });
    all
}

/// Drops the first `kept` bytes.
pub(super) fn without_prefix(segments: Vec<Segment>, kept: u64) -> Vec<Segment> {
    let mut rest = Vec::new();
    let mut at = 0;
    for segment in segments {
        let cut = kept.saturating_sub(at).min(segment.length());
        at += segment.length();
        push(
            &mut rest,
            match segment {
                Segment::Basis { offset, length } => {
                    Segment::Basis { offset: offset + cut, length: length - cut }
                }
                Segment::New { offset, length } | Segment::Gap { offset, length, .. } => {
                    Segment::New { offset: offset + cut, length: length - cut }
                }
            },
        );
    }
    rest
}

/// The ranges to cut into chunks, in both versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ToCut {
    /// Indices of the segments that it covers.
    segments: Range<usize>,
    /// Their range in the new content.
    pub(super) new: Range<u64>,
    /// The range of the basis between their neighbours.
    pub(super) basis: Stretch,
}

/// Finds the ranges to cut, from the first to the last long segment that must be sent although the
/// basis has a long range in its place. Usually there is one, after an insertion. The segments
/// begin at `start` in the new content.
pub(super) fn to_cut(
    segments: &[Segment],
    start: u64,
    basis_length: u64,
    cut_bytes_min: u64,
) -> Option<ToCut> {
    let mut found: Option<ToCut> = None;
    let mut at = start;
    for (index, segment) in segments.iter().enumerate() {
        let end = at + segment.length();
        let basis = basis_range(segments, index, basis_length);
        let is_long = segment.length() > cut_bytes_min && basis.end - basis.start > cut_bytes_min;
        if is_long && !matches!(segment, Segment::Basis { .. }) {
            let (first, from, offset) = match &found {
                Some(found) => (found.segments.start, found.new.start, found.basis.offset),
                None => (index, at, basis.start),
            };
            let basis = Stretch { offset, length: basis.end.saturating_sub(offset) };
            found = Some(ToCut { segments: first..index + 1, new: from..end, basis });
        }
        at = end;
    }
    found.filter(|found| Average::for_size(found.basis.length).is_some())
}

/// The range of the basis between the neighbours of a segment.
fn basis_range(segments: &[Segment], index: usize, basis_length: u64) -> Range<u64> {
    let start = match index.checked_sub(1).and_then(|before| segments.get(before)) {
        Some(Segment::Basis { offset, length }) => offset + length,
        _ => 0,
    };
    let end = match segments.get(index + 1) {
        Some(Segment::Basis { offset, .. }) => *offset,
        _ => basis_length,
    };
    start..end.max(start)
}

/// Finds the chunks of the new content among those of the basis. `new_offset` and `old_offset` are
/// the starts of the two ranges.
pub(super) fn matched(new: &[Chunk], new_offset: u64, basis: &[Chunk], old_offset: u64) -> Vec<Segment> {
    let basis = BasisIndex::new(basis, old_offset);
    let mut segments = Vec::new();
    let (mut at, mut expected) = (new_offset, None);
    for chunk in new {
        let length = u64::from(chunk.length);
        let here = basis.find(chunk, expected);
        expected = here.map(|offset| offset + length);
        push(
            &mut segments,
            match here {
                Some(offset) => Segment::Basis { offset, length },
                None => Segment::New { offset: at, length },
            },
        );
        at += length;
    }
    segments
}

/// Replaces the segments that were cut by those that were found in chunks.
pub(super) fn recut(segments: &[Segment], cut: &ToCut, inside: Vec<Segment>) -> Vec<Segment> {
    let before = segments.get(..cut.segments.start).unwrap_or_default();
    let after = segments.get(cut.segments.end..).unwrap_or_default();
    let mut all = Vec::new();
    before.iter().copied().chain(inside).chain(after.iter().copied()).for_each(|next| push(&mut all, next));
    all
}

/// Positions of the basis's chunks.
struct BasisIndex {
    offsets: HashMap<(ChunkId, u32), u64>,
    at: HashMap<u64, (ChunkId, u32)>,
}

impl BasisIndex {
    fn new(chunks: &[Chunk], mut offset: u64) -> Self {
        let mut index = Self { offsets: HashMap::new(), at: HashMap::new() };
        for &Chunk { id, length } in chunks {
            index.offsets.entry((id, length)).or_insert(offset);
            index.at.insert(offset, (id, length));
            offset += u64::from(length);
        }
        index
    }

    /// An offset of this chunk: `expected`, which continues the chunk before, if the chunk is
    /// there.
    fn find(&self, chunk: &Chunk, expected: Option<u64>) -> Option<u64> {
        let name = (chunk.id, chunk.length);
        expected.filter(|at| self.at.get(at) == Some(&name)).or_else(|| self.offsets.get(&name).copied())
    }
}

/// Turns segments to send into gaps where the basis has something in the same place.
pub(super) fn with_gaps(segments: &[Segment], basis_length: u64) -> VecDeque<Segment> {
    let mut plan = VecDeque::new();
    for (index, segment) in segments.iter().enumerate() {
        match *segment {
            Segment::Basis { .. } => plan.push_back(*segment),
            Segment::New { offset, length } | Segment::Gap { offset, length, .. } => {
                let basis = basis_range(segments, index, basis_length);
                if length < GAP_BYTES_MIN || basis.is_empty() {
                    plan.push_back(Segment::New { offset, length });
                } else {
                    plan.extend(gaps(offset, length, basis));
                }
            }
        }
    }
    plan
}

/// Cuts a gap into pieces that one delta can cover.
fn gaps(offset: u64, length: u64, basis: Range<u64>) -> impl Iterator<Item = Segment> {
    let basis_length = basis.end - basis.start;
    (0..length).step_by(NEW_BYTES_MAX).map(move |from| {
        let piece = (length - from).min(NEW_BYTES_MAX as u64);
        let (start, end) = if basis_length <= BASIS_BYTES_MAX as u64 {
            (basis.start, basis.end)
        } else {
            let start = (basis.start + from).saturating_sub(SLACK_BYTES).clamp(basis.start, basis.end);
            (start, (basis.start + from + piece + SLACK_BYTES).min(basis.end))
        };
        if start >= end {
            return Segment::New { offset: offset + from, length: piece };
        }
        // At most `BASIS_BYTES_MAX`.
        let window = Window { offset: start, length: (end - start) as u32 };
        Segment::Gap { offset: offset + from, length: piece, window }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 16 << 10;
    const MIB: u64 = 1 << 20;
    const CUT_BYTES_MIN: u64 = 2 * MIB;

    fn basis(offset: u64, length: u64) -> Segment {
        Segment::Basis { offset, length }
    }

    fn new(offset: u64, length: u64) -> Segment {
        Segment::New { offset, length }
    }

    fn ids(contents: &str) -> Vec<BlockId> {
        contents.bytes().map(|byte| BlockId::of(0, &[byte])).collect()
    }

    fn chunks(contents: &str) -> Vec<Chunk> {
        contents.bytes().map(|byte| Chunk { length: 10, id: ChunkId::of(&[byte]) }).collect()
    }

    #[test]
    fn blocks_are_found_in_their_places_only() {
        let block = BlockSize::for_size(0);
        let there = Blocks { length: 5 * BLOCK, ids: ids("abcde") };
        let same = ShiftMap::same(there.length);
        let found = aligned(4 * BLOCK + 7, block, &ids("axcdz"), &there, same);
        assert_eq!(
            found,
            [basis(0, BLOCK), new(BLOCK, BLOCK), basis(2 * BLOCK, 2 * BLOCK), new(4 * BLOCK, 7)]
        );
        assert_eq!(aligned(2 * BLOCK, block, &ids("ba"), &there, same), [new(0, 2 * BLOCK)]);
    }

    #[test]
    fn blocks_after_a_removed_range_are_found_there() {
        let (block, size) = (BlockSize::for_size(0), 4 * BLOCK + 7);
        let there = Blocks { length: size + 1000, ids: ids("abcde") };
        let without = |split| ShiftMap::new(there.length, size, split).unwrap();
        let found = aligned(size, block, &ids("abcxe"), &there, without(2 * BLOCK));
        let behind = 2 * BLOCK + 1000;
        assert_eq!(
            found,
            [basis(0, 2 * BLOCK), basis(behind, BLOCK), new(3 * BLOCK, BLOCK), basis(behind + 2 * BLOCK, 7)]
        );
        // No block lies on both sides of the removed range, whatever a peer says.
        let found = aligned(size, block, &ids("abcde"), &there, without(BLOCK + 1));
        assert_eq!(found, [basis(0, BLOCK), new(BLOCK, BLOCK), basis(behind, 2 * BLOCK + 7)]);
    }

    #[test]
    fn kept_prefix_is_cut_off_anywhere() {
        let segments = vec![basis(0, 10), new(10, 10), basis(50, 10)];
        assert_eq!(without_prefix(segments.clone(), 0), segments);
        assert_eq!(without_prefix(segments.clone(), 5), [basis(5, 5), new(10, 10), basis(50, 10)]);
        assert_eq!(without_prefix(segments.clone(), 13), [new(13, 7), basis(50, 10)]);
        assert_eq!(without_prefix(segments.clone(), 20), [basis(50, 10)]);
        assert_eq!(without_prefix(segments, 30), []);
    }

    #[test]
    fn insertion_leaves_all_behind_it_to_be_cut() {
        let segments = [basis(0, 10 * MIB), new(10 * MIB, 91 * MIB)];
        let cut = to_cut(&segments, 0, 100 * MIB, CUT_BYTES_MIN).unwrap();
        assert_eq!(cut.new, 10 * MIB..101 * MIB);
        assert_eq!(cut.basis, Stretch { offset: 10 * MIB, length: 90 * MIB });
        let inside = vec![new(10 * MIB, MIB), basis(10 * MIB, 90 * MIB)];
        assert_eq!(
            recut(&segments, &cut, inside),
            [basis(0, 10 * MIB), new(10 * MIB, MIB), basis(10 * MIB, 90 * MIB)]
        );
    }

    #[test]
    fn blocks_after_an_insertion_or_removal_are_found_where_they_moved() {
        let block = BlockSize::for_size(0);
        let ids: Vec<_> = (0..640_u32).map(|n| BlockId::of(0, &n.to_le_bytes())).collect();
        let there = Blocks { length: 640 * BLOCK - 5, ids };
        for size in [there.length + 1000, there.length - 1000, there.length + 3 * BLOCK] {
            let segments = [basis(0, 10 * BLOCK), new(10 * BLOCK, size - 10 * BLOCK)];
            let shifted = shifted(&segments, 0, size, block, &there, CUT_BYTES_MIN).unwrap();
            let found = &there.ids[shifted.blocks.start as usize..];
            let all = reshift(&segments, &shifted, size, block, found, &there);
            assert_eq!(all.iter().map(Segment::length).sum::<u64>(), size, "{all:?}");
            let Some(&Segment::Basis { offset, length }) = all.last() else { panic!("{all:?}") };
            assert_eq!(offset + length, there.length);
            assert!(length > 620 * BLOCK, "{all:?}");
        }
        let segments = [basis(0, 10 * BLOCK), new(10 * BLOCK, there.length - 10 * BLOCK)];
        assert_eq!(shifted(&segments, 0, there.length, block, &there, CUT_BYTES_MIN), None);
    }

    #[test]
    fn appended_or_short_ranges_are_not_cut() {
        assert_eq!(to_cut(&[basis(0, 10 * MIB), new(10 * MIB, 50 * MIB)], 0, 10 * MIB, CUT_BYTES_MIN), None);
        assert_eq!(
            to_cut(
                &[basis(0, 10 * MIB), new(10 * MIB, MIB), basis(11 * MIB, MIB)],
                0,
                12 * MIB,
                CUT_BYTES_MIN
            ),
            None
        );
        assert_eq!(to_cut(&[new(0, MIB)], 0, 100 * MIB, CUT_BYTES_MIN), None);
    }

    #[test]
    fn range_between_two_long_ones_is_cut_with_them() {
        let segments = [new(5, 4 * MIB), basis(6 * MIB, MIB), new(9, 8 * MIB), basis(20 * MIB, 1)];
        let cut = to_cut(&segments, 5, 21 * MIB, CUT_BYTES_MIN).unwrap();
        assert_eq!((cut.segments.clone(), cut.new.clone()), (0..3, 5..13 * MIB + 5));
        assert_eq!(cut.basis, Stretch { offset: 0, length: 20 * MIB });
        assert_eq!(recut(&segments, &cut, vec![new(5, 13 * MIB)]), [new(5, 13 * MIB), basis(20 * MIB, 1)]);
    }

    #[test]
    fn chunks_are_found_anywhere_and_in_a_row_where_possible() {
        let found = matched(&chunks("xabcab"), 100, &chunks("ababc"), 1000);
        assert_eq!(found, [new(100, 10), basis(1000, 20), basis(1040, 10), basis(1000, 20)]);
    }

    #[test]
    fn gap_is_compared_with_the_basis_in_its_place() {
        let plan = with_gaps(&[basis(0, 10), new(10, 5000), basis(9000, 10), new(5020, 100)], 20_000);
        let window = Window { offset: 10, length: 8990 };
        let gap = Segment::Gap { offset: 10, length: 5000, window };
        assert_eq!(plan, [basis(0, 10), gap, basis(9000, 10), new(5020, 100)]);
    }

    #[test]
    fn long_gap_is_compared_piece_by_piece_with_some_slack() {
        let plan = with_gaps(&[new(0, 2 * MIB)], 8 * MIB);
        assert_eq!(plan.len(), 4);
        assert_eq!(plan.iter().map(Segment::length).sum::<u64>(), 2 * MIB);
        let Segment::Gap { window, .. } = plan[1] else { panic!("{plan:?}") };
        assert_eq!(window.offset, NEW_BYTES_MAX as u64 - SLACK_BYTES);
        assert_eq!(u64::from(window.length), NEW_BYTES_MAX as u64 + 2 * SLACK_BYTES);
    }
}
