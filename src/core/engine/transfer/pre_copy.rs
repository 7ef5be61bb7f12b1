//! `PreCopy`: a copy of the basis, made before the differences are known.
//!
//! Most large files that change and keep their length were edited in place. (If only a file's time
//! changed, its pre-copy is made in vain, as rsync makes it.) Where a range was inserted, appended
//! or removed, the [samples](crate::content::sample) of the offer tell its place. A pre-copy reads,
//! hashes and writes such a file once and then patches it. That takes two thirds of the time of
//! hashing the basis first and then copying, hashing and writing. On two processors it is 0.4 s for
//! a gigabyte instead of 0.15 + 0.4 s. A file that does not fit into memory is read from the disk
//! only once. The receiver advertises, copies, signs and cuts the basis in the shape of the
//! pre-copy. If that lacks a range, it signs, cuts and copies from the unchanged basis: the range
//! may be needed, since samples tell its place only roughly. A basis that was prehashed is
//! advertised unchanged too, while it is copied.
//!
//! The hash of the pre-copy follows from the nodes of its blocks, which were hashed over the very
//! bytes that were written. Patched blocks are read back.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::basis::{apply_delta, corrupt, wrong_hash};
use super::{Draft, broken};
use crate::content::blocks::{BlockSize, Content, Finding, HOLE_BYTES_MIN, Nodes, Outline, block_id};
use crate::content::hash::Hash;
use crate::content::shift_map::{Mapped, ShiftMap};
use crate::engine::error::WorkError;
use crate::wire::message::{BasisReport, Blocks, Op};

/// Bytes copied at a time where a patch comes from elsewhere in the basis.
const COPY_BYTES: u64 = 1 << 20;

/// Cancels a pre-copy in the making when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct CancelOnDrop(Cancelled);

impl CancelOnDrop {
    pub(crate) fn flag(&self) -> Cancelled {
        self.0.clone()
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Tells a pre-copy in the making that nobody needs it.
#[derive(Debug, Clone, Default)]
pub struct Cancelled(Arc<AtomicBool>);

impl Cancelled {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A pre-copy, and the part of it that has been patched or confirmed.
#[derive(Debug)]
pub(crate) struct PreCopy<B, D> {
    draft: D,
    shift_map: ShiftMap,
    /// The basis under the shift map under which it was advertised.
    basis: Mapped<B>,
    block: BlockSize,
    nodes: Nodes,
    made_bytes: u64,
    /// Patched ranges, in order.
    patched: Vec<Range<u64>>,
}

/// The basis under its shift map. Bytes that are read from it are copied; its holes exist already.
struct Copying<'a, B, D> {
    basis: &'a B,
    shift_map: ShiftMap,
    draft: &'a D,
    /// The kernel lets one thread at a time write to a file, and a second one spins. That costs a
    /// tenth of all processor time, which the other side could use.
    turn: Mutex<()>,
    cancelled: &'a Cancelled,
}

impl<B: Content, D: Draft<B>> Content for Copying<'_, B, D> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.cancelled.is_set() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.shift_map.read_at(buffer, offset, self.basis)?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.draft.fill(buffer, offset)
    }

    fn zeros_at(&self, offset: u64) -> u64 {
        self.shift_map.zeros_at(offset, self.basis)
    }
}

impl<B: Content, D: Draft<B>> PreCopy<B, D> {
    /// Copies the basis under a shift map. `None` if that fails or is cancelled; nothing is lost.
    pub(crate) fn of(mut draft: D, basis: B, shift_map: ShiftMap, cancelled: &Cancelled) -> Option<Self> {
        let size = shift_map.size();
        let block = BlockSize::for_size(size);
        // The appended range has not arrived yet.
        let finding = Finding::of_first(shift_map.appended_to().unwrap_or(size), size, block);
        let copied = draft.begin_with_zeros(size).is_ok() && {
            let copying =
                Copying { basis: &basis, shift_map, draft: &draft, turn: Mutex::new(()), cancelled };
            finding.help(&copying).is_ok()
        };
        match finding.finish().filter(|_| copied) {
            Some(nodes) => {
                // The removed range may be needed, so the whole basis is advertised.
                let unchanged = ShiftMap::same(shift_map.basis_length());
                let advertised = if shift_map.without().is_some() { unchanged } else { shift_map };
                let basis = Mapped { basis, shift_map: advertised };
                Some(Self { draft, shift_map, basis, block, nodes, made_bytes: 0, patched: Vec::new() })
            }
            None => {
                // The disk may be full: the content may still find room in another way.
                draft.discard();
                None
            }
        }
    }

    /// Marks the basis as advertised unchanged.
    pub(crate) fn advertised_unchanged(mut self) -> Self {
        self.basis.shift_map = ShiftMap::same(self.shift_map.basis_length());
        self
    }

    /// The shift map under which the basis was advertised.
    pub(crate) fn advertised(&self) -> ShiftMap {
        self.basis.shift_map
    }

    pub(crate) fn outline(&self) -> Option<Outline> {
        self.nodes.outline(self.block)
    }

    /// The basis report. Usually it names the blocks of the pre-copy, with their hash. Where a
    /// range will be appended, it names the unchanged basis without a hash, because nothing can
    /// equal the new content. Where a range is removed, it names the blocks without it.
    pub(crate) fn report(&self) -> Option<(BasisReport, Option<Hash>)> {
        let Outline { mut ids, hash } = self.outline()?;
        if let Some(Range { start: split, .. }) = self.shift_map.without() {
            let blocks = Blocks { length: self.shift_map.basis_length(), ids };
            return Some((BasisReport::RangeRemoved { blocks, split }, None));
        }
        let Some(length) = self.shift_map.appended_to() else {
            return Some((BasisReport::Blocks(Blocks { length: self.shift_map.size(), ids }), Some(hash)));
        };
        let rest = length % self.block.bytes();
        if rest > 0 {
            // The last block is longer in the pre-copy than in the basis.
            *ids.last_mut()? = block_id(length - rest, rest, &self.draft).ok()?;
        }
        Some((BasisReport::Blocks(Blocks { length, ids }), None))
    }

    /// Performs one step.
    pub(crate) fn apply(&mut self, op: Op) -> Result<(), WorkError> {
        match op {
            Op::Keep { .. } => Err(broken("keeping what was not staged")),
            Op::Data(bytes) => self.patch(&bytes),
            Op::Copy { offset, length } => {
                let mut buffer = Vec::new();
                let mut done = 0;
                while done < length {
                    let from = offset.saturating_add(done);
                    let (is_in_place, reach) = self.in_place(from);
                    let now = reach.min(length - done);
                    if is_in_place {
                        self.go_on(now)?;
                        done += now;
                        continue;
                    }
                    let zeros = self.basis.zeros_at(from).min(now);
                    if zeros >= HOLE_BYTES_MIN {
                        self.patch_with_zeros(zeros)?;
                        done += zeros;
                        continue;
                    }
                    // At most `COPY_BYTES`, and at least one byte, so that a read beyond the end
                    // fails.
                    buffer.resize(now.clamp(1, COPY_BYTES) as usize, 0);
                    self.basis.read_at(&mut buffer, from).map_err(|error| corrupt(&error.to_string()))?;
                    self.patch(&buffer)?;
                    done += buffer.len() as u64;
                }
                Ok(())
            }
            Op::Delta { window, length, delta } => {
                self.patch(&apply_delta(&self.basis, window, length, &delta)?)
            }
            Op::Zeros { length } => self.patch_with_zeros(length),
        }
    }

    /// Returns the finished draft, if it has this hash, and the basis.
    pub(crate) fn finish(mut self, hash: Hash) -> Result<(D, B), WorkError> {
        for patched in &self.patched {
            self.nodes.renew(patched, &self.draft).map_err(|error| self.draft.failed(error))?;
        }
        let is_whole = self.made_bytes == self.draft.length();
        if is_whole && self.outline().is_some_and(|outline| outline.hash == hash) {
            return Ok((self.draft, self.basis.basis));
        }
        self.draft.discard();
        Err(wrong_hash())
    }

    /// Discards a pre-copy that nobody needs.
    pub(crate) fn discard(self) {
        self.draft.discard();
    }

    fn patch(&mut self, bytes: &[u8]) -> Result<(), WorkError> {
        let range = self.go_on(bytes.len() as u64)?;
        self.draft.overwrite(bytes, range.start)?;
        self.was_patched(range);
        Ok(())
    }

    fn patch_with_zeros(&mut self, count: u64) -> Result<(), WorkError> {
        let range = self.go_on(count)?;
        self.draft.overwrite_with_zeros(range.clone())?;
        self.was_patched(range);
        Ok(())
    }

    /// The ranges that were patched, in order.
    #[cfg(test)]
    pub(crate) fn patched(&self) -> &[Range<u64>] {
        &self.patched
    }

    fn was_patched(&mut self, range: Range<u64>) {
        match self.patched.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.patched.push(range),
        }
    }

    /// True if the next bytes of the pre-copy are those of the advertised basis from `offset` on.
    /// Also returns the number of bytes for which the answer holds.
    fn in_place(&self, offset: u64) -> (bool, u64) {
        let (from, reach) = if self.basis.shift_map == self.shift_map {
            (Some(self.made_bytes), u64::MAX)
        } else {
            self.shift_map.piece(self.made_bytes)
        };
        (from == Some(offset), reach)
    }

    /// Confirms the next `length` bytes and returns their range.
    fn go_on(&mut self, length: u64) -> Result<Range<u64>, WorkError> {
        let start = self.made_bytes;
        let end = start.checked_add(length).filter(|&end| end <= self.draft.length());
        self.made_bytes = end.ok_or_else(|| broken("more than the file is long"))?;
        Ok(start..self.made_bytes)
    }
}
