//! `Draft`: a copy of an old version that is made before it is known what differs.
//!
//! Most large files that change and keep their length were edited in place (if one only has another time, its copy
//! was made in vain, as rsync makes it); where something was inserted, appended or taken out, the
//! [samples](crate::content::sample) that came with the offer tell where. To read, hash and write such a file once
//! and then to mend the copy takes two thirds of what it takes to hash the old version first and then to copy, hash
//! and write: on two processors 0.4 s for a gigabyte instead of 0.15 + 0.4; and what does not fit into memory comes
//! from the disk once. What is told of the old version then, and what is copied, signed or cut of it, is the copy
//! as it was made; or, where that lacks a piece, the old version as it is: the piece may be needed, since samples
//! name its place only roughly. An old version that was hashed before is told of as it is, too, while it is copied.
//!
//! The hash of the copy follows from its blocks' nodes, which were found over the very bytes that were written; those
//! that were mended are read back.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::content::blocks::{BlockSize, Content, Finding, Nodes, Outline, block_id};
use crate::content::fitted::Fitted;
use crate::content::hash::Hash;
use crate::disk::error::During;
use crate::disk::holes::{HOLE_BYTES_MIN, SparseFile};
use crate::disk::stage::Staging;
use crate::exchange::old::OldFile;
use crate::exchange::sink::{SinkError, apply_delta, no_old, wrong_hash};
use crate::wire::message::{Blocks, Old, Op};

/// How much is copied at a time where what is mended comes from elsewhere in the old version.
const COPY_BYTES: u64 = 1 << 20;

/// What a draft is made of.
pub(super) struct Blank {
    /// The old version.
    pub(super) old: File,
    /// How that is laid out.
    pub(super) shape: Fitted,
    /// Where.
    pub(super) staging: Staging,
}

/// A copy, and what of it has been made what it shall be.
pub(super) struct Draft {
    staging: Staging,
    shape: Fitted,
    /// In what shape the sender was told of the old version.
    told_shape: Fitted,
    block: BlockSize,
    nodes: Nodes,
    made_bytes: u64,
    /// What was written over, in order.
    mended: Vec<Range<u64>>,
}

/// The old version in its new shape. What is read of it is copied; its holes are there already.
struct Copying<'a> {
    old: SparseFile<&'a File>,
    shape: Fitted,
    staging: &'a Staging,
    /// The kernel lets one thread write to a file at a time, and a second one waits with its
    /// processor: a tenth of all that there is, where the other side has use for it.
    turn: Mutex<()>,
    is_over: &'a AtomicBool,
}

impl Content for Copying<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.is_over.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.shape.read_at(buffer, offset, &self.old)?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.staging.fill(buffer, offset)
    }

    fn zeros_at(&self, offset: u64) -> u64 {
        self.shape.zeros_at(offset, &self.old)
    }
}

impl Draft {
    /// Copies the old version. If that cannot be done, or `is_over` before it is, nothing is lost: `None`.
    pub(super) fn of(blank: Blank, is_over: &AtomicBool) -> Option<Self> {
        let Blank { old, shape, mut staging } = blank;
        let size = shape.size();
        let block = BlockSize::for_size(size);
        // What is appended is not there yet.
        let finding = Finding::of_first(shape.appended_to().unwrap_or(size), size, block);
        let copied = staging.begin_with_zeros(size).is_ok() && {
            let old = SparseFile::of(&old, size);
            let copying = Copying { old, shape, staging: &staging, turn: Mutex::new(()), is_over };
            finding.help(&copying).is_ok()
        };
        match finding.finish().filter(|_| copied) {
            Some(nodes) => {
                // The piece that it is made without may be needed: the sender is told of it too.
                let told_shape = if shape.without().is_some() { Fitted::same(shape.old()) } else { shape };
                Some(Self { staging, shape, told_shape, block, nodes, made_bytes: 0, mended: Vec::new() })
            }
            None => {
                // It may be the disk that is full: the content may still find room some other way.
                let _ = staging.discard();
                None
            }
        }
    }

    /// The same, of an old version that the sender is told of as it is.
    pub(super) fn told_as_it_is(self) -> Self {
        Self { told_shape: Fitted::same(self.shape.old()), ..self }
    }

    /// In what shape the sender was told of the old version.
    pub(super) fn told_shape(&self) -> Fitted {
        self.told_shape
    }

    fn outline(&self) -> Option<Outline> {
        self.nodes.outline(self.block)
    }

    /// What the sender is told of the old version: the draft as it is, and its hash; or, where something is appended
    /// to it, just the old version, since with what comes there is nothing to compare; or where it is made without a
    /// piece, that.
    pub(super) fn told(&self) -> Option<(Old, Option<Hash>)> {
        let Outline { mut ids, hash } = self.outline()?;
        if let Some(Range { start: split, .. }) = self.shape.without() {
            let blocks = Blocks { length: self.shape.old(), ids };
            return Some((Old::Narrowed { blocks, split }, None));
        }
        let Some(length) = self.shape.appended_to() else {
            return Some((Old::Blocks(Blocks { length: self.shape.size(), ids }), Some(hash)));
        };
        let rest = length % self.block.bytes();
        if rest > 0 {
            // The last block is a longer one by now.
            *ids.last_mut()? = block_id(length - rest, rest, &self.staging.content()).ok()?;
        }
        Some((Old::Blocks(Blocks { length, ids }), None))
    }

    /// Performs one step. `old` is what it is a copy of, as the sender was told of it.
    pub(super) fn apply(&mut self, op: Op, old: Option<&OldFile>) -> Result<(), SinkError> {
        match op {
            Op::Keep { .. } => Err(SinkError::Peer("keeping what was not staged")),
            Op::Data(bytes) => self.mend(&bytes),
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
                    let old = old.ok_or_else(no_old)?;
                    let zeros = old.zeros_at(from).min(now);
                    if zeros >= HOLE_BYTES_MIN as u64 {
                        self.mend_with_zeros(zeros)?;
                        done += zeros;
                        continue;
                    }
                    // At most `COPY_BYTES`; and something, so that what leads beyond the end is seen.
                    buffer.resize(now.clamp(1, COPY_BYTES) as usize, 0);
                    old.read_at(&mut buffer, from).map_err(basis)?;
                    self.mend(&buffer)?;
                    done += buffer.len() as u64;
                }
                Ok(())
            }
            Op::Delta { window, length, delta } => self.mend(&apply_delta(old, window, length, &delta)?),
            Op::Zeros { length } => self.mend_with_zeros(length),
        }
    }

    /// The finished file, if it has this hash.
    pub(super) fn finish(mut self, hash: Hash) -> Result<Staging, SinkError> {
        for mended in &self.mended {
            let renewed = self.nodes.renew(mended, &self.staging.content());
            renewed.during("read back", &self.staging.staged_path())?;
        }
        let is_whole = self.made_bytes == self.staging.len();
        if is_whole && self.outline().is_some_and(|outline| outline.hash == hash) {
            return Ok(self.staging);
        }
        self.staging.discard()?;
        Err(wrong_hash())
    }

    /// Nobody needs it.
    pub(super) fn discard(self) {
        // What stays goes at the end of the run.
        let _ = self.staging.discard();
    }

    fn mend(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        let place = self.go_on(bytes.len() as u64)?;
        self.staging.overwrite(bytes, place.start)?;
        self.was_mended(place);
        Ok(())
    }

    fn mend_with_zeros(&mut self, count: u64) -> Result<(), SinkError> {
        let place = self.go_on(count)?;
        self.staging.overwrite_with_zeros(place.clone())?;
        self.was_mended(place);
        Ok(())
    }

    fn was_mended(&mut self, place: Range<u64>) {
        match self.mended.last_mut() {
            Some(last) if last.end == place.start => last.end = place.end,
            _ => self.mended.push(place),
        }
    }

    /// Whether the next bytes are those of the old version from `offset` on, as the sender was told of it; and for how
    /// many of them that holds.
    fn in_place(&self, offset: u64) -> (bool, u64) {
        let (from, reach) = if self.told_shape == self.shape {
            (Some(self.made_bytes), u64::MAX)
        } else {
            self.shape.piece(self.made_bytes)
        };
        (from == Some(offset), reach)
    }

    /// The next `length` bytes are what they shall be.
    fn go_on(&mut self, length: u64) -> Result<Range<u64>, SinkError> {
        let start = self.made_bytes;
        let end = start.checked_add(length).filter(|&end| end <= self.staging.len());
        self.made_bytes = end.ok_or(SinkError::Peer("more than the file is long"))?;
        Ok(start..self.made_bytes)
    }
}

fn basis(error: io::Error) -> SinkError {
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
    use crate::exchange::old::chunks_of;
    use crate::tree::path::TreePath;
    use crate::wire::message::Window;

    const SIZE: usize = 3_000_001;

    /// A draft of a content, and its old version.
    fn draft(folder: &Path, content: &[u8]) -> (Draft, OldFile) {
        draft_as(folder, content, Fitted::same(content.len() as u64))
    }

    fn draft_as(folder: &Path, content: &[u8], shape: Fitted) -> (Draft, OldFile) {
        fs::write(folder.join("old"), content).unwrap();
        let old = File::open(folder.join("old")).unwrap();
        let (root, path) = (Root::open(folder).unwrap(), TreePath::new(&b"new"[..]).unwrap());
        let (staging, _) = Staging::open(&root, &path).unwrap();
        let blank = Blank { old: old.try_clone().unwrap(), shape, staging };
        let draft = Draft::of(blank, &AtomicBool::new(false)).unwrap();
        let told_shape = draft.told_shape();
        (draft, OldFile::new(old, told_shape))
    }

    fn blocks(told: &Old) -> &Blocks {
        match told {
            Old::Blocks(blocks) | Old::Narrowed { blocks, .. } => blocks,
            Old::Signed { .. } => panic!("a draft is not signed"),
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

    /// A content, what is inserted into it at 950,000, and what becomes of it.
    fn insertion() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let (old, inserted) = (content(), vec![7; 70_000]);
        let new = [&old[..950_000], &inserted, &old[950_000..]].concat();
        (old, inserted, new)
    }

    #[test]
    fn what_is_mended_is_hashed_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let old_content = content();
        let (mut draft, old) = draft(folder.path(), &old_content);
        let outline = draft.outline().unwrap();
        assert_eq!(outline.hash, Hash::of(&old_content));
        let data = |length| Op::Data(ByteBuf::from(vec![7; length]));
        let copy = |offset, length| Op::Copy { offset, length };
        // In place; written over, twice in a row; from elsewhere; in place to the end.
        let steps = [copy(0, 100_000), data(5), data(10), copy(1_000_000, 99_985), copy(200_000, 2_800_001)];
        for step in steps {
            draft.apply(step, Some(&old)).unwrap();
        }
        let mut new = old_content.clone();
        new[100_000..100_015].fill(7);
        new[100_015..200_000].copy_from_slice(&old_content[1_000_000..1_099_985]);
        let staging = draft.finish(Hash::of(&new)).unwrap();
        assert!(made(&staging) == new);
    }

    #[test]
    fn what_was_widened_is_mended_where_it_lies_now() {
        let folder = tempfile::tempdir().unwrap();
        let (old_content, inserted, new) = insertion();
        let (size, split) = (new.len() as u64, 1_100_000);
        let shape = Fitted::new(SIZE as u64, size, split).unwrap();
        let (mut draft, old) = draft_as(folder.path(), &old_content, shape);
        let widened =
            [&old_content[..split as usize], &old_content[split as usize - inserted.len()..]].concat();
        let (told, hash) = draft.told().unwrap();
        assert_eq!((blocks(&told).length, hash), (size, Some(Hash::of(&widened))));
        // What the sender may ask to see of it is just that.
        let window = Window { offset: split - 50_000, length: 100_000 };
        let stretch = window.offset as usize..window.offset as usize + window.length as usize;
        assert!(old.window(window).unwrap() == widened[stretch.clone()]);
        let average = Average::for_size(u64::from(window.length)).unwrap();
        let due = chunks_of(&mut &widened[stretch.clone()], average).unwrap();
        assert_eq!(old.chunks(stretch.start as u64..stretch.end as u64, average).unwrap(), due);
        assert!(old.window(Window { offset: size - 5, length: 6 }).is_err());
        assert!(old.chunks(size - 5..size + 1, average).unwrap().iter().all(|chunk| chunk.length == 5));

        let copy = |offset, length| Op::Copy { offset, length };
        let data = Op::Data(ByteBuf::from(inserted));
        let steps = [copy(0, 950_000), data, copy(950_000, 80_000), copy(split, size - split)];
        for step in steps {
            draft.apply(step, Some(&old)).unwrap();
        }
        let staging = draft.finish(Hash::of(&new)).unwrap();
        assert!(made(&staging) == new);
    }

    #[test]
    fn of_what_was_widened_the_sender_may_know_the_old_version_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (old_content, inserted, new) = insertion();
        let (size, split) = (new.len() as u64, 1_100_000);
        let shape = Fitted::new(SIZE as u64, size, split).unwrap();
        let (draft, _) = draft_as(folder.path(), &old_content, shape);
        let mut draft = draft.told_as_it_is();
        let old = OldFile::new(File::open(folder.path().join("old")).unwrap(), draft.told_shape());
        let copy = |offset, length| Op::Copy { offset, length };
        // What was inserted is not there, and what comes then lies in place only behind the split.
        for step in
            [copy(0, 950_000), Op::Data(ByteBuf::from(inserted)), copy(950_000, SIZE as u64 - 950_000)]
        {
            draft.apply(step, Some(&old)).unwrap();
        }
        assert!(draft.mended.iter().eq([&(950_000..split)]));
        let staging = draft.finish(Hash::of(&new)).unwrap();
        assert!(made(&staging) == new);
    }

    #[test]
    fn what_is_appended_is_no_part_of_the_old_version() {
        let folder = tempfile::tempdir().unwrap();
        let (old_content, appended) = (content(), vec![7; 500_000]);
        let new = [&old_content[..], &appended].concat();
        let shape = Fitted::new(SIZE as u64, new.len() as u64, new.len() as u64).unwrap();
        let (mut draft, old) = draft_as(folder.path(), &old_content, shape);
        let block = BlockSize::for_size(new.len() as u64);
        let ids = crate::content::blocks::outline_of(&old_content, block).ids;
        assert_eq!(draft.told().unwrap(), (Old::Blocks(Blocks { length: SIZE as u64, ids }), None));
        draft.apply(Op::Copy { offset: 0, length: SIZE as u64 }, Some(&old)).unwrap();
        draft.apply(Op::Data(ByteBuf::from(appended)), Some(&old)).unwrap();
        let staging = draft.finish(Hash::of(&new)).unwrap();
        assert!(made(&staging) == new);
    }

    #[test]
    fn what_was_left_out_is_there_where_it_was_needed_after_all() {
        let folder = tempfile::tempdir().unwrap();
        let (old_content, taken) = (content(), 70_000);
        let (place, split) = (950_000, 917_504);
        let new = [&old_content[..place], &old_content[place + taken..]].concat();
        let size = new.len() as u64;
        let shape = Fitted::new(SIZE as u64, size, split as u64).unwrap();
        let (mut draft, old) = draft_as(folder.path(), &old_content, shape);
        let narrowed = [&old_content[..split], &old_content[split + taken..]].concat();
        let block = BlockSize::for_size(size);
        let ids = crate::content::blocks::outline_of(&narrowed, block).ids;
        let blocks = Blocks { length: SIZE as u64, ids };
        assert_eq!(draft.told().unwrap(), (Old::Narrowed { blocks, split: split as u64 }, None));
        // Everything else is told of the old version as it is.
        let window = Window { offset: split as u64 + 5, length: 1000 };
        assert!(old.window(window).unwrap() == old_content[split + 5..split + 1005]);

        let copy = |offset, length: usize| Op::Copy { offset: offset as u64, length: length as u64 };
        // Across the piece: in place, and then out of it; and behind it in place again, in two steps.
        let behind = place + taken;
        for step in [copy(0, place), copy(behind, 100_000), copy(behind + 100_000, SIZE - behind - 100_000)] {
            draft.apply(step, Some(&old)).unwrap();
        }
        assert!(draft.mended.iter().eq([&(split as u64..place as u64)]));
        let staging = draft.finish(Hash::of(&new)).unwrap();
        assert!(made(&staging) == new);
    }

    #[test]
    fn another_hash_or_too_few_bytes_make_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let hash = Hash::of(&content());
        for (length, hash) in [(SIZE as u64, Hash::of(b"")), (SIZE as u64 - 1, hash)] {
            let (mut draft, _) = draft(folder.path(), &content());
            draft.apply(Op::Copy { offset: 0, length }, None).unwrap();
            assert!(matches!(draft.finish(hash), Err(SinkError::Basis(_))));
            assert_eq!(staged_bytes(folder.path()), None);
        }
    }

    #[test]
    fn no_step_leads_beyond_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let (mut draft, old) = draft(folder.path(), &content());
        let too_long = SIZE as u64 + 1;
        for step in [
            Op::Copy { offset: 0, length: too_long },
            Op::Copy { offset: 0, length: u64::MAX },
            Op::Keep { length: 5 },
        ] {
            assert!(matches!(draft.apply(step, Some(&old)), Err(SinkError::Peer(_))));
        }
        draft.apply(Op::Copy { offset: 0, length: SIZE as u64 - 1 }, None).unwrap();
        assert!(draft.apply(Op::Data(ByteBuf::from(vec![7; 2])), None).is_err());
        assert!(draft.apply(Op::Copy { offset: u64::MAX - 1, length: 1 }, Some(&old)).is_err());
        assert_eq!(staged_bytes(folder.path()), Some(SIZE as u64));
    }

    #[test]
    fn zeros_take_no_space() {
        let folder = tempfile::tempdir().unwrap();
        let (draft, _) = draft(folder.path(), &vec![0; 8 << 20]);
        let staged = fs::read_dir(folder.path().join(".ksync")).unwrap().next().unwrap().unwrap();
        assert_eq!((staged.metadata().unwrap().len(), staged.metadata().unwrap().blocks()), (8 << 20, 0));
        draft.discard();
        assert_eq!(staged_bytes(folder.path()), None);
    }

    #[test]
    fn an_old_version_that_is_not_as_long_makes_none() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("old"), content()).unwrap();
        let old = File::open(folder.path().join("old")).unwrap();
        let (root, path) = (Root::open(folder.path()).unwrap(), TreePath::new(&b"new"[..]).unwrap());
        let (staging, _) = Staging::open(&root, &path).unwrap();
        let blank = Blank { old, shape: Fitted::same(SIZE as u64 + 1), staging };
        assert!(Draft::of(blank, &AtomicBool::new(false)).is_none());
        assert_eq!(staged_bytes(folder.path()), None);
    }
}
