//! `Manifest`: a whole tree as a list, and its wire form.
//!
//! A manifest is *sorted* (in the order of [`TreePath`](crate::tree::path::TreePath), no path
//! twice) and *closed* (the parent of every entry is a directory of the same manifest). So a
//! receiver can walk it in lock step with its own, and never meets an entry whose parent it has not
//! seen. The decoder checks both: a symlink `d` followed by `d/f` is not a manifest.
//!
//! On the wire a manifest is cut into [`block`](crate::tree::block)s.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::tree::attributes::Attributes;
use crate::tree::block::{BlockReader, BlockWriter};
use crate::tree::entry::{Entry, EntryRef, Kind};
use crate::tree::path_ref::PathRef;
use crate::tree::table::Table;

pub use crate::tree::limits::{CONTENT_BYTES_MAX, ENTRIES_MAX, ManifestError, TEXT_BYTES_MAX};

/// A sorted, closed list of entries. An entry's index is its id in an exchange.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    table: Table,
}

impl Manifest {
    /// Makes a manifest of entries that are in order.
    ///
    /// # Errors
    /// [`ManifestError`] if they are not sorted, closed and within limits.
    pub fn new(entries: Vec<Entry>) -> Result<Self, ManifestError> {
        let mut builder = Builder::default();
        entries.iter().try_for_each(|entry| builder.add(entry.view()))?;
        Ok(builder.finish())
    }

    /// The entries in order.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = EntryRef<'_>> {
        self.iter().map(|(_, entry)| entry)
    }

    /// The entries from this id on, in order.
    pub fn entries_from(&self, id: u32) -> impl DoubleEndedIterator<Item = EntryRef<'_>> {
        (id..self.end()).filter_map(|id| self.get(id))
    }

    /// The ids of an entry and of all entries below it.
    #[must_use]
    pub fn subtree(&self, top: u32) -> Range<u32> {
        let is_below = |path: PathRef<'_>| {
            self.entries_from(top + 1).take_while(|entry| entry.path.is_below(path)).count()
        };
        top..top + 1 + self.path(top).map_or(0, is_below) as u32
    }

    /// The entry with this id.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<EntryRef<'_>> {
        self.table.get(id)
    }

    /// The path of the entry with this id.
    #[must_use]
    pub fn path(&self, id: u32) -> Option<PathRef<'_>> {
        self.table.path(id)
    }

    /// Every entry with its id, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u32, EntryRef<'_>)> {
        (0..self.end()).filter_map(|id| Some((id, self.get(id)?)))
    }

    /// Number of entries from `id` on that equal those of `other` from `at` on.
    pub(super) fn equal_run(&self, id: u32, other: &Self, at: u32) -> u32 {
        u32::try_from(self.table.equal_run(id, &other.table, at)).unwrap_or(u32::MAX)
    }

    /// The different attributes of the entries.
    pub fn attributes(&self) -> impl Iterator<Item = &Arc<Attributes>> {
        self.table.sets()
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// True if there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length of all files together, in bytes.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        self.entries().map(|entry| entry.size()).sum()
    }

    /// The id of the entry at `path`, by binary search.
    #[must_use]
    pub fn position<'p>(&self, path: impl Into<PathRef<'p>>) -> Option<u32> {
        self.search(path.into()).ok()
    }

    /// The id of the entry at `path`, or the id that it would have.
    pub(crate) fn search(&self, path: PathRef<'_>) -> Result<u32, u32> {
        let (mut begin, mut end) = (0, self.end());
        while begin < end {
            let middle = begin + (end - begin) / 2;
            // Every id below the end has a path.
            match self.path(middle).map(|other| other.cmp(&path)) {
                Some(Ordering::Equal) => return Ok(middle),
                Some(Ordering::Greater) | None => end = middle,
                Some(Ordering::Less) => begin = middle + 1,
            }
        }
        Err(begin)
    }

    /// The wire form, block by block. Equal manifests have equal blocks.
    pub fn blocks(&self) -> impl Iterator<Item = Vec<u8>> {
        let mut entries = self.entries();
        let mut block = BlockWriter::default();
        std::iter::from_fn(move || {
            while !block.is_full()
                && let Some(entry) = entries.next()
            {
                block.push(entry);
            }
            Some(block.take()).filter(|block| !block.is_empty())
        })
    }

    /// One more than the last id.
    pub(crate) fn end(&self) -> u32 {
        // `ENTRIES_MAX` fits in 32 bits.
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }
}

/// Builds a manifest, and checks that it is one.
#[derive(Debug, Default)]
pub struct Builder {
    manifest: Manifest,
    /// The directories above the last entry, and the entry itself if it is one.
    ancestors: Vec<u32>,
    text_bytes: usize,
    content_bytes: u64,
    /// The different attributes, with their numbers.
    sets: HashMap<Arc<Attributes>, u32>,
    /// The last of them, which is found without hashing it.
    last_set: Option<(Arc<Attributes>, u32)>,
}

impl Builder {
    /// Takes in the next block.
    ///
    /// # Errors
    /// [`ManifestError`] for anything that is not the next block of a manifest. The builder must
    /// not be used afterwards.
    pub fn push(&mut self, block: &[u8]) -> Result<(), ManifestError> {
        BlockReader::new(block).try_for_each(|entry| self.add(entry?.view()))
    }

    /// Takes in the next entry.
    ///
    /// # Errors
    /// As [`Builder::push`].
    pub fn add(&mut self, entry: EntryRef<'_>) -> Result<(), ManifestError> {
        let (path, id) = (entry.path, self.manifest.end());
        let last = id.checked_sub(1).and_then(|last| self.manifest.path(last));
        if last.is_some_and(|last| last >= path) {
            return Err(ManifestError::Order(path.to_path()));
        }
        let parent = loop {
            let top = self.ancestors.last().copied();
            match (top.and_then(|top| self.manifest.path(top)), path.directory()) {
                (None, None) => break None,
                (None, Some(_)) => return Err(ManifestError::Orphan(path.to_path())),
                (Some(top), Some(directory)) if top.is(directory) => break self.ancestors.last().copied(),
                (Some(_), _) => self.ancestors.pop(),
            };
        };
        let target_bytes = if let Kind::Symlink { target } = entry.kind { target.len() } else { 0 };
        self.text_bytes += path.len() + target_bytes;
        let set = entry.attributes.map(|attributes| self.set(attributes));
        if self.text_bytes > TEXT_BYTES_MAX {
            return Err(ManifestError::TooLong);
        }
        self.content_bytes = self.content_bytes.saturating_add(entry.size());
        if self.content_bytes > CONTENT_BYTES_MAX {
            return Err(ManifestError::TooLarge);
        }
        if self.len() == ENTRIES_MAX {
            return Err(ManifestError::TooMany);
        }
        self.manifest.table.push(parent, entry, set);
        if entry.is_directory() {
            self.ancestors.push(id);
        }
        Ok(())
    }

    /// The number of these attributes.
    fn set(&mut self, attributes: &Arc<Attributes>) -> u32 {
        if let Some((last, set)) = &self.last_set
            && Arc::ptr_eq(last, attributes)
        {
            return *set;
        }
        let set = match self.sets.get(attributes) {
            Some(set) => *set,
            None => {
                self.text_bytes += attributes.counted_bytes();
                let set = self.manifest.table.add_set(attributes);
                self.sets.insert(Arc::clone(attributes), set);
                set
            }
        };
        self.last_set = Some((Arc::clone(attributes), set));
        set
    }

    /// Number of entries so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.manifest.len()
    }

    /// True if there are no entries yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.manifest.is_empty()
    }

    /// The manifest of all entries so far.
    #[must_use]
    pub fn finish(mut self) -> Manifest {
        self.manifest.table.shrink();
        self.manifest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::hash::Hash;
    use crate::tree::block::encode_block;
    use crate::tree::entry::Time;
    use crate::tree::path::TreePath;

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry {
            path: TreePath::new(path.as_bytes()).unwrap(),
            kind,
            mode: 0o644,
            mtime: Time::new(-5, 999_999_999).unwrap(),
            attributes: None,
        }
    }

    fn file(path: &str) -> Entry {
        entry(path, Kind::File { size: 7, hash: Some(Hash::of(b"7")) })
    }

    fn decode(blocks: impl Iterator<Item = Vec<u8>>) -> Result<Manifest, ManifestError> {
        let mut builder = Builder::default();
        for block in blocks {
            builder.push(&block)?;
        }
        Ok(builder.finish())
    }

    #[test]
    fn manifest_survives_the_wire() {
        let mut entries = vec![entry("d", Kind::Directory)];
        entries.extend((0..5000).map(|n| file(&format!("d/{n:05}"))));
        entries.push(entry("l", Kind::Symlink { target: b"../\xff"[..].into() }));
        let manifest = Manifest::new(entries).unwrap();
        assert!(manifest.blocks().count() > 2);
        assert_eq!(decode(manifest.blocks()).unwrap(), manifest);
    }

    #[test]
    fn unsorted_doubled_or_orphaned_entries_are_refused() {
        let link = |path: &str| entry(path, Kind::Symlink { target: b"/etc"[..].into() });
        for entries in [
            vec![file("b"), file("a")],
            vec![file("a"), file("a")],
            vec![link("a"), entry("a", Kind::Directory)],
            vec![file("a/b")],
            vec![link("d"), file("d/f")],
            vec![file("d"), file("d/f")],
            vec![entry("d", Kind::Directory), file("e"), file("d/f")],
        ] {
            assert!(decode(std::iter::once(encode_block(&entries))).is_err(), "{entries:?}");
            assert!(Manifest::new(entries).is_err());
        }
    }

    #[test]
    fn paths_are_bounded_by_their_bytes_and_not_by_their_number() {
        // One deep directory, and in it files that take a few bytes on the wire and 8,000 in
        // memory.
        let deep: Vec<String> = (1..=32).map(|depth| vec!["d".repeat(249); depth].join("/")).collect();
        let mut builder = Builder::default();
        let directories: Vec<Entry> = deep.iter().map(|path| entry(path, Kind::Directory)).collect();
        builder.push(&encode_block(&directories)).unwrap();
        // The text is counted before it is stored, so the test can begin near the limit.
        builder.text_bytes = TEXT_BYTES_MAX - 1_000_000;
        let files: Vec<Entry> = (0..1000).map(|n| file(&format!("{}/{n:03}", deep[31]))).collect();
        let block = encode_block(&files);
        assert!(block.len() < 60_000, "{}", block.len());
        assert_eq!(builder.push(&block), Err(ManifestError::TooLong));
        assert!(builder.len() < 32 + 130);
    }

    #[test]
    fn files_longer_than_any_disk_are_refused_together() {
        let half = |path: &str| entry(path, Kind::File { size: CONTENT_BYTES_MAX / 2 + 1, hash: None });
        assert!(decode(std::iter::once(encode_block(&[half("a")]))).is_ok());
        let error = decode([half("a"), half("b")].map(|entry| encode_block(&[entry])).into_iter());
        assert_eq!(error, Err(ManifestError::TooLarge));
    }

    #[test]
    fn impossible_fields_are_refused() {
        let size = entry("a", Kind::File { size: 1 << 63, hash: None });
        let empty_link = entry("a", Kind::Symlink { target: b""[..].into() });
        let nul_link = entry("a", Kind::Symlink { target: b"a\0"[..].into() });
        let mode = Entry { mode: 0o100_644, ..file("a") };
        for entry in [size, empty_link, nul_link, mode] {
            let error = decode(std::iter::once(encode_block(&[entry]))).unwrap_err();
            assert!(matches!(error, ManifestError::Field(..)), "{error}");
        }
        assert!(Time::new(0, 1_000_000_000).is_none());
        assert!(Time::new(i64::MAX, 0).is_none());
        assert!(Time::new(i64::MIN, 0).is_none());
    }

    #[test]
    fn any_bytes_decode_or_fail_without_panic() {
        let valid = encode_block(&[entry("d", Kind::Directory), file("d/a"), file("d/b")]);
        for position in 0..valid.len() {
            for flip in 0..=255_u8 {
                let mut block = valid.clone();
                block[position] ^= flip;
                let _ = Builder::default().push(&block);
            }
            let _ = Builder::default().push(&valid[..position]);
        }
    }
}
