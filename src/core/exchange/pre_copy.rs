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

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::content::blocks::{BlockSize, Content, Finding, Nodes, Outline, block_id};
use crate::content::hash::Hash;
use crate::content::shift_map::ShiftMap;
use crate::disk::error::During;
use crate::disk::holes::{HOLE_BYTES_MIN, SparseFile};
use crate::disk::stage::Staging;
use crate::exchange::basis::BasisFile;
use crate::exchange::sink::{SinkError, apply_delta, basis_changed, wrong_hash};
use crate::wire::message::{BasisReport, Blocks, Op};

/// Bytes copied at a time where a patch comes from elsewhere in the basis.
const COPY_BYTES: u64 = 1 << 20;

/// The ingredients of a pre-copy.
pub(super) struct PreCopyParts {
    /// The basis.
    pub(super) basis: File,
    /// The shift map under which it is copied.
    pub(super) shift_map: ShiftMap,
    /// The staged file that becomes the pre-copy.
    pub(super) staging: Staging,
}

/// A pre-copy, and the part of it that has been patched or confirmed.
pub(super) struct PreCopy {
    staging: Staging,
    shift_map: ShiftMap,
    /// The shift map under which the basis was advertised.
    advertised_shift_map: ShiftMap,
    block: BlockSize,
    nodes: Nodes,
    made_bytes: u64,
    /// Patched ranges, in order.
    patched: Vec<Range<u64>>,
}

/// The basis under its shift map. Bytes that are read from it are copied; its holes exist already.
struct Copying<'a> {
    basis: SparseFile<&'a File>,
    shift_map: ShiftMap,
    staging: &'a Staging,
    /// The kernel lets one thread at a time write to a file, and a second one spins. That costs a
    /// tenth of all processor time, which the other side could use.
    turn: Mutex<()>,
    is_over: &'a AtomicBool,
}

impl Content for Copying<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.is_over.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.shift_map.read_at(buffer, offset, &self.basis)?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.staging.fill(buffer, offset)
    }

    fn zeros_at(&self, offset: u64) -> u64 {
        self.shift_map.zeros_at(offset, &self.basis)
    }
}

impl PreCopy {
    /// Copies the basis. `None` if that fails, or if `is_over` is set before it is done; nothing is
    /// lost.
    pub(super) fn of(parts: PreCopyParts, is_over: &AtomicBool) -> Option<Self> {
        let PreCopyParts { basis, shift_map, mut staging } = parts;
        let size = shift_map.size();
        let block = BlockSize::for_size(size);
        // The appended range has not arrived yet.
        let finding = Finding::of_first(shift_map.appended_to().unwrap_or(size), size, block);
        let copied = staging.begin_with_zeros(size).is_ok() && {
            let basis = SparseFile::of(&basis, size);
            let copying = Copying { basis, shift_map, staging: &staging, turn: Mutex::new(()), is_over };
            finding.help(&copying).is_ok()
        };
        match finding.finish().filter(|_| copied) {
            Some(nodes) => {
                // The removed range may be needed, so the whole basis is advertised.
                let advertised_shift_map = if shift_map.without().is_some() {
                    ShiftMap::same(shift_map.basis_length())
                } else {
                    shift_map
                };
                Some(Self {
                    staging,
                    shift_map,
                    advertised_shift_map,
                    block,
                    nodes,
                    made_bytes: 0,
                    patched: Vec::new(),
                })
            }
            None => {
                // The disk may be full: the content may still find room in another way.
                let _ = staging.discard();
                None
            }
        }
    }

    /// Marks the basis as advertised unchanged.
    pub(super) fn advertised_unchanged(self) -> Self {
        Self { advertised_shift_map: ShiftMap::same(self.shift_map.basis_length()), ..self }
    }

    /// The shift map under which the basis was advertised.
    pub(super) fn advertised_shift_map(&self) -> ShiftMap {
        self.advertised_shift_map
    }

    fn outline(&self) -> Option<Outline> {
        self.nodes.outline(self.block)
    }

    /// The basis report. Usually it names the blocks of the pre-copy, with their hash. Where a
    /// range will be appended, it names the unchanged basis without a hash, because nothing can
    /// equal the new content. Where a range is removed, it names the blocks without it.
    pub(super) fn report(&self) -> Option<(BasisReport, Option<Hash>)> {
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
            *ids.last_mut()? = block_id(length - rest, rest, &self.staging.content()).ok()?;
        }
        Some((BasisReport::Blocks(Blocks { length, ids }), None))
    }

    /// Performs one step. `basis` is the basis under its advertised shift map.
    pub(super) fn apply(&mut self, op: Op, basis: Option<&BasisFile>) -> Result<(), SinkError> {
        match op {
            Op::Keep { .. } => Err(SinkError::Peer("keeping what was not staged")),
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
                    let basis = basis.ok_or_else(basis_changed)?;
                    let zeros = basis.zeros_at(from).min(now);
                    if zeros >= HOLE_BYTES_MIN as u64 {
                        self.patch_with_zeros(zeros)?;
                        done += zeros;
                        continue;
                    }
                    // At most `COPY_BYTES`, and at least one byte, so that a read beyond the end
                    // fails.
                    buffer.resize(now.clamp(1, COPY_BYTES) as usize, 0);
                    basis.read_at(&mut buffer, from).map_err(basis_error)?;
                    self.patch(&buffer)?;
                    done += buffer.len() as u64;
                }
                Ok(())
            }
            Op::Delta { window, length, delta } => self.patch(&apply_delta(basis, window, length, &delta)?),
            Op::Zeros { length } => self.patch_with_zeros(length),
        }
    }

    /// Returns the finished file, if it has this hash.
    pub(super) fn finish(mut self, hash: Hash) -> Result<Staging, SinkError> {
        for patched in &self.patched {
            let renewed = self.nodes.renew(patched, &self.staging.content());
            renewed.during("read back", &self.staging.staged_path())?;
        }
        let is_whole = self.made_bytes == self.staging.len();
        if is_whole && self.outline().is_some_and(|outline| outline.hash == hash) {
            return Ok(self.staging);
        }
        self.staging.discard()?;
        Err(wrong_hash())
    }

    /// Discards a pre-copy that nobody needs.
    pub(super) fn discard(self) {
        // The end of the run removes a file that stays.
        let _ = self.staging.discard();
    }

    fn patch(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        let place = self.go_on(bytes.len() as u64)?;
        self.staging.overwrite(bytes, place.start)?;
        self.was_patched(place);
        Ok(())
    }

    fn patch_with_zeros(&mut self, count: u64) -> Result<(), SinkError> {
        let place = self.go_on(count)?;
        self.staging.overwrite_with_zeros(place.clone())?;
        self.was_patched(place);
        Ok(())
    }

    fn was_patched(&mut self, place: Range<u64>) {
        match self.patched.last_mut() {
            Some(last) if last.end == place.start => last.end = place.end,
            _ => self.patched.push(place),
        }
    }

    /// True if the next bytes of the pre-copy are those of the advertised basis from `offset` on.
    /// Also returns the number of bytes for which the answer holds.
    fn in_place(&self, offset: u64) -> (bool, u64) {
        let (from, reach) = if self.advertised_shift_map == self.shift_map {
            (Some(self.made_bytes), u64::MAX)
        } else {
            self.shift_map.piece(self.made_bytes)
        };
        (from == Some(offset), reach)
    }

    /// Confirms the next `length` bytes and returns their range.
    fn go_on(&mut self, length: u64) -> Result<Range<u64>, SinkError> {
        let start = self.made_bytes;
        let end = start.checked_add(length).filter(|&end| end <= self.staging.len());
        self.made_bytes = end.ok_or(SinkError::Peer("more than the file is long"))?;
        Ok(start..self.made_bytes)
    }
}

fn basis_error(error: io::Error) -> SinkError {
    SinkError::Basis(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use serde_bytes::ByteBuf;

    use super::*;
    use crate::content::chunk::Average;
    use crate::disk::root::Root;
    use crate::exchange::basis::chunks_of;
    use crate::tree::path::TreePath;
    use crate::wire::message::Window;

    const SIZE: usize = 3_000_001;

    /// The pre-copy of a content, and its basis.
    fn pre_copy(folder: &Path, content: &[u8]) -> (PreCopy, BasisFile) {
        pre_copy_as(folder, content, ShiftMap::same(content.len() as u64))
    }

    fn pre_copy_as(folder: &Path, content: &[u8], shift_map: ShiftMap) -> (PreCopy, BasisFile) {
        fs::write(folder.join("old"), content).unwrap();
        let basis = File::open(folder.join("old")).unwrap();
        let (root, path) = (Root::open(folder).unwrap(), TreePath::new(&b"new"[..]).unwrap());
        let (staging, _) = Staging::open(&root, &path).unwrap();
        let parts = PreCopyParts { basis: basis.try_clone().unwrap(), shift_map, staging };
        let pre_copy = PreCopy::of(parts, &AtomicBool::new(false)).unwrap();
        let advertised_shift_map = pre_copy.advertised_shift_map();
        (pre_copy, BasisFile::new(basis, advertised_shift_map))
    }

    fn blocks(report: &BasisReport) -> &Blocks {
        match report {
            BasisReport::Blocks(blocks) | BasisReport::RangeRemoved { blocks, .. } => blocks,
            BasisReport::Signed { .. } => panic!("a pre-copy is not signed"),
        }
    }

    fn staged_bytes(folder: &Path) -> Option<u64> {
        fs::read_dir(folder.join(".ksync"))
            .unwrap()
            .next()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
    }

    fn made(staging: &Staging) -> Vec<u8> {
        let mut made = vec![0; staging.len() as usize];
        staging.read_at(&mut made, 0).unwrap();
        made
    }

    fn content() -> Vec<u8> {
        (0..SIZE as u32).flat_map(|n| (n / 1000).wrapping_mul(0x9e37_79b9).to_le_bytes()).take(SIZE).collect()
    }

    /// A content, a range inserted into it at 950,000, and the result.
    fn insertion() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let (basis, inserted) = (content(), vec![7; 70_000]);
        let new = [&basis[..950_000], &inserted, &basis[950_000..]].concat();
        (basis, inserted, new)
    }

    #[test]
    fn patched_ranges_are_hashed_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let basis_content = content();
        let (mut pre_copy, basis) = pre_copy(folder.path(), &basis_content);
        let outline = pre_copy.outline().unwrap();
        assert_eq!(outline.hash, Hash::of(&basis_content));
        let data = |length| Op::Data(ByteBuf::from(vec![7; length]));
        let copy = |offset, length| Op::Copy { offset, length };
        // In place; overwritten, twice in a row; copied from elsewhere; in place to the end.
        let steps = [copy(0, 100_000), data(5), data(10), copy(1_000_000, 99_985), copy(200_000, 2_800_001)];
        for step in steps {
            pre_copy.apply(step, Some(&basis)).unwrap();
        }
        let mut new = basis_content.clone();
        new[100_000..100_015].fill(7);
        new[100_015..200_000].copy_from_slice(&basis_content[1_000_000..1_099_985]);
        let staging = pre_copy.finish(Hash::of(&new)).unwrap();
        assert!(made(&staging) == new);
    }

    #[test]
    fn pre_copy_with_a_gap_is_patched_in_the_new_place() {
        let folder = tempfile::tempdir().unwrap();
        let (basis_content, inserted, new) = insertion();
        let (size, split) = (new.len() as u64, 1_100_000);
        let shift_map = ShiftMap::new(SIZE as u64, size, split).unwrap();
        let (mut pre_copy, basis) = pre_copy_as(folder.path(), &basis_content, shift_map);
        let widened =
            [&basis_content[..split as usize], &basis_content[split as usize - inserted.len()..]].concat();
        let (report, hash) = pre_copy.report().unwrap();
        assert_eq!((blocks(&report).length, hash), (size, Some(Hash::of(&widened))));
        // Windows and chunks of the basis show exactly this shape.
        let window = Window { offset: split - 50_000, length: 100_000 };
        let stretch = window.offset as usize..window.offset as usize + window.length as usize;
        assert!(basis.window(window).unwrap() == widened[stretch.clone()]);
        let average = Average::for_size(u64::from(window.length)).unwrap();
        let due = chunks_of(&mut &widened[stretch.clone()], average).unwrap();
        assert_eq!(basis.chunks(stretch.start as u64..stretch.end as u64, average).unwrap(), due);
        assert!(basis.window(Window { offset: size - 5, length: 6 }).is_err());
        assert!(basis.chunks(size - 5..size + 1, average).unwrap().iter().all(|chunk| chunk.length == 5));

        let copy = |offset, length| Op::Copy { offset, length };
        let data = Op::Data(ByteBuf::from(inserted));
        let steps = [copy(0, 950_000), data, copy(950_000, 80_000), copy(split, size - split)];
        for step in steps {
            pre_copy.apply(step, Some(&basis)).unwrap();
        }
        let staging = pre_copy.finish(Hash::of(&new)).unwrap();
        assert!(made(&staging) == new);
    }

    #[test]
    fn pre_copy_with_a_gap_accepts_steps_of_the_unchanged_basis() {
        let folder = tempfile::tempdir().unwrap();
        let (basis_content, inserted, new) = insertion();
        let (size, split) = (new.len() as u64, 1_100_000);
        let shift_map = ShiftMap::new(SIZE as u64, size, split).unwrap();
        let (pre_copy, _) = pre_copy_as(folder.path(), &basis_content, shift_map);
        let mut pre_copy = pre_copy.advertised_unchanged();
        let basis =
            BasisFile::new(File::open(folder.path().join("old")).unwrap(), pre_copy.advertised_shift_map());
        let copy = |offset, length| Op::Copy { offset, length };
        // The inserted range is missing, and the bytes after it are in place only from the split
        // on.
        for step in
            [copy(0, 950_000), Op::Data(ByteBuf::from(inserted)), copy(950_000, SIZE as u64 - 950_000)]
        {
            pre_copy.apply(step, Some(&basis)).unwrap();
        }
        assert!(pre_copy.patched.iter().eq([&(950_000..split)]));
        let staging = pre_copy.finish(Hash::of(&new)).unwrap();
        assert!(made(&staging) == new);
    }

    #[test]
    fn appended_range_is_no_part_of_the_advertised_basis() {
        let folder = tempfile::tempdir().unwrap();
        let (basis_content, appended) = (content(), vec![7; 500_000]);
        let new = [&basis_content[..], &appended].concat();
        let shift_map = ShiftMap::new(SIZE as u64, new.len() as u64, new.len() as u64).unwrap();
        let (mut pre_copy, basis) = pre_copy_as(folder.path(), &basis_content, shift_map);
        let block = BlockSize::for_size(new.len() as u64);
        let ids = crate::content::blocks::outline_of(&basis_content, block).ids;
        assert_eq!(
            pre_copy.report().unwrap(),
            (BasisReport::Blocks(Blocks { length: SIZE as u64, ids }), None)
        );
        pre_copy.apply(Op::Copy { offset: 0, length: SIZE as u64 }, Some(&basis)).unwrap();
        pre_copy.apply(Op::Data(ByteBuf::from(appended)), Some(&basis)).unwrap();
        let staging = pre_copy.finish(Hash::of(&new)).unwrap();
        assert!(made(&staging) == new);
    }

    #[test]
    fn removed_range_is_available_where_it_was_needed_after_all() {
        let folder = tempfile::tempdir().unwrap();
        let (basis_content, taken) = (content(), 70_000);
        let (place, split) = (950_000, 917_504);
        let new = [&basis_content[..place], &basis_content[place + taken..]].concat();
        let size = new.len() as u64;
        let shift_map = ShiftMap::new(SIZE as u64, size, split as u64).unwrap();
        let (mut pre_copy, basis) = pre_copy_as(folder.path(), &basis_content, shift_map);
        let range_removed = [&basis_content[..split], &basis_content[split + taken..]].concat();
        let block = BlockSize::for_size(size);
        let ids = crate::content::blocks::outline_of(&range_removed, block).ids;
        let blocks = Blocks { length: SIZE as u64, ids };
        assert_eq!(
            pre_copy.report().unwrap(),
            (BasisReport::RangeRemoved { blocks, split: split as u64 }, None)
        );
        // Windows refer to the unchanged basis.
        let window = Window { offset: split as u64 + 5, length: 1000 };
        assert!(basis.window(window).unwrap() == basis_content[split + 5..split + 1005]);

        let copy = |offset, length: usize| Op::Copy { offset: offset as u64, length: length as u64 };
        // Across the removed range: in place, then elsewhere; after it in place again, in two
        // steps.
        let behind = place + taken;
        for step in [copy(0, place), copy(behind, 100_000), copy(behind + 100_000, SIZE - behind - 100_000)] {
            pre_copy.apply(step, Some(&basis)).unwrap();
        }
        assert!(pre_copy.patched.iter().eq([&(split as u64..place as u64)]));
        let staging = pre_copy.finish(Hash::of(&new)).unwrap();
        assert!(made(&staging) == new);
    }

    #[test]
    fn wrong_hash_or_too_few_bytes_make_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let hash = Hash::of(&content());
        for (length, hash) in [(SIZE as u64, Hash::of(b"")), (SIZE as u64 - 1, hash)] {
            let (mut pre_copy, _) = pre_copy(folder.path(), &content());
            pre_copy.apply(Op::Copy { offset: 0, length }, None).unwrap();
            assert!(matches!(pre_copy.finish(hash), Err(SinkError::Basis(_))));
            assert_eq!(staged_bytes(folder.path()), None);
        }
    }

    #[test]
    fn no_step_leads_beyond_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let (mut pre_copy, basis) = pre_copy(folder.path(), &content());
        let too_long = SIZE as u64 + 1;
        for step in [
            Op::Copy { offset: 0, length: too_long },
            Op::Copy { offset: 0, length: u64::MAX },
            Op::Keep { length: 5 },
        ] {
            assert!(matches!(pre_copy.apply(step, Some(&basis)), Err(SinkError::Peer(_))));
        }
        pre_copy.apply(Op::Copy { offset: 0, length: SIZE as u64 - 1 }, None).unwrap();
        assert!(pre_copy.apply(Op::Data(ByteBuf::from(vec![7; 2])), None).is_err());
        assert!(pre_copy.apply(Op::Copy { offset: u64::MAX - 1, length: 1 }, Some(&basis)).is_err());
        assert_eq!(staged_bytes(folder.path()), Some(SIZE as u64));
    }

    #[test]
    fn zeros_of_a_pre_copy_take_no_space() {
        let folder = tempfile::tempdir().unwrap();
        let (pre_copy, _) = pre_copy(folder.path(), &vec![0; 8 << 20]);
        let staged = fs::read_dir(folder.path().join(".ksync")).unwrap().next().unwrap().unwrap();
        assert_eq!((staged.metadata().unwrap().len(), staged.metadata().unwrap().blocks()), (8 << 20, 0));
        pre_copy.discard();
        assert_eq!(staged_bytes(folder.path()), None);
    }

    #[test]
    fn basis_of_another_length_makes_no_pre_copy() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("old"), content()).unwrap();
        let basis = File::open(folder.path().join("old")).unwrap();
        let (root, path) = (Root::open(folder.path()).unwrap(), TreePath::new(&b"new"[..]).unwrap());
        let (staging, _) = Staging::open(&root, &path).unwrap();
        let parts = PreCopyParts { basis, shift_map: ShiftMap::same(SIZE as u64 + 1), staging };
        assert!(PreCopy::of(parts, &AtomicBool::new(false)).is_none());
        assert_eq!(staged_bytes(folder.path()), None);
    }
}
