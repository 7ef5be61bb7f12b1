//! `Table`: the entries of a tree in little memory, each addressable by its number.
//!
//! An entry takes 28 bytes and its name; only directories store the whole path. As separate values,
//! each with a path on the heap, a million entries took three times as much.

use std::sync::Arc;

use crate::content::hash::Hash;
use crate::tree::attributes::Attributes;
use crate::tree::entry::{EntryRef, Kind, MODE_MASK, SECONDS_MAX, Time};
use crate::tree::path_ref::PathRef;

/// The parent of entries in the root.
const ROOT: u32 = u32::MAX;

/// Entries by number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    rows: Vec<Row>,
    /// Texts one after the other: a directory's path; any other entry's name and then its hash or
    /// target.
    text: Vec<u8>,
    /// The number of each entry's attributes plus one, or 0. Empty up to the first entry that has
    /// some, and without the entries after the last one.
    attributes: Vec<u32>,
    /// The different attributes.
    sets: Vec<Arc<Attributes>>,
}

/// An entry. All fields are of 32 bits, so that there is no padding.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    /// Start of the text.
    text: u32,
    /// The number of the directory that holds the entry.
    parent: u32,
    /// A file's length; the length of a directory's path or of a link's target.
    size: [u32; 2],
    nanos: u32,
    /// From the top: 42 bits of seconds, 12 of the mode, 2 of the tag, 8 of the name's length.
    packed: [u32; 2],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tag {
    Directory,
    File,
    HashedFile,
    Symlink,
}

impl Row {
    fn size(&self) -> u64 {
        join(self.size)
    }

    fn packed(&self) -> u64 {
        join(self.packed)
    }

    fn tag(&self) -> Tag {
        match (self.packed() >> 8) & 3 {
            0 => Tag::Directory,
            1 => Tag::File,
            2 => Tag::HashedFile,
            _ => Tag::Symlink,
        }
    }

    fn name_bytes(&self) -> usize {
        (self.packed() & 0xff) as usize
    }

    fn mode(&self) -> u16 {
        (self.packed() >> 10) as u16 & MODE_MASK
    }

    fn mtime(&self) -> Option<Time> {
        let seconds = i64::try_from(self.packed() >> 22).ok()?;
        Time::new(seconds - SECONDS_MAX, self.nanos)
    }
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Adds attributes that no entry has had so far, and returns their number.
    pub(super) fn add_set(&mut self, attributes: &Arc<Attributes>) -> u32 {
        self.sets.push(Arc::clone(attributes));
        // Less than `ENTRIES_MAX`.
        self.sets.len() as u32 - 1
    }

    /// Appends an entry of the directory with this number, with the attributes of this number. The
    /// caller checked the limits: all text together is shorter than 4 GiB.
    pub(super) fn push(&mut self, parent: Option<u32>, entry: EntryRef<'_>, set: Option<u32>) {
        let text = u32::try_from(self.text.len()).unwrap_or(u32::MAX);
        let name = entry.path.name();
        if let (Kind::Directory, Some(directory)) = (entry.kind, entry.path.directory()) {
            self.text.extend_from_slice(directory);
            self.text.push(b'/');
        }
        self.text.extend_from_slice(name);
        let (tag, size) = match entry.kind {
            Kind::Directory => (Tag::Directory, entry.path.len() as u64),
            Kind::File { size, hash: None } => (Tag::File, size),
            Kind::File { size, hash: Some(hash) } => {
                self.text.extend_from_slice(hash.as_bytes());
                (Tag::HashedFile, size)
            }
            Kind::Symlink { target } => {
                self.text.extend_from_slice(target);
                (Tag::Symlink, target.len() as u64)
            }
        };
        // Not negative: no time is further from 1970 than that.
        let seconds = (entry.mtime.seconds() + SECONDS_MAX).unsigned_abs();
        let packed = seconds << 22
            | u64::from(entry.mode & MODE_MASK) << 10
            | (tag as u64) << 8
            // A component has at most 255 bytes.
            | name.len() as u64 & 0xff;
        self.rows.push(Row {
            text,
            parent: parent.unwrap_or(ROOT),
            size: split(size),
            nanos: entry.mtime.nanos(),
            packed: split(packed),
        });
        if let Some(set) = set {
            self.attributes.resize(self.rows.len() - 1, 0);
            self.attributes.push(set + 1);
        }
    }

    /// The different attributes of all entries.
    pub(super) fn sets(&self) -> impl Iterator<Item = &Arc<Attributes>> {
        self.sets.iter()
    }

    fn attributes(&self, id: u32) -> Option<&Arc<Attributes>> {
        let number = self.attributes.get(id as usize)?.checked_sub(1)?;
        self.sets.get(number as usize)
    }

    pub(super) fn get(&self, id: u32) -> Option<EntryRef<'_>> {
        let row = self.rows.get(id as usize)?;
        let after_name = || self.text.get(row.text as usize + row.name_bytes()..);
        let kind = match row.tag() {
            Tag::Directory => Kind::Directory,
            Tag::File => Kind::File { size: row.size(), hash: None },
            Tag::HashedFile => {
                let hash = after_name()?.first_chunk::<32>()?;
                Kind::File { size: row.size(), hash: Some(Hash::from_bytes(*hash)) }
            }
            Tag::Symlink => Kind::Symlink { target: after_name()?.get(..row.size() as usize)? },
        };
        let attributes = self.attributes(id);
        Some(EntryRef { path: self.path_of(row)?, kind, mode: row.mode(), mtime: row.mtime()?, attributes })
    }

    /// The path of an entry, without decoding the rest.
    pub(super) fn path(&self, id: u32) -> Option<PathRef<'_>> {
        self.path_of(self.rows.get(id as usize)?)
    }

    fn path_of(&self, row: &Row) -> Option<PathRef<'_>> {
        if row.tag() == Tag::Directory {
            let path = self.directory_path(row)?;
            let above = path.len().checked_sub(row.name_bytes())?;
            let directory = above.checked_sub(1).and_then(|above| path.get(..above));
            return Some(PathRef::of_parts(directory, path.get(above..)?));
        }
        let begin = row.text as usize;
        let name = self.text.get(begin..begin + row.name_bytes())?;
        let directory = match row.parent {
            ROOT => None,
            parent => Some(self.directory_path(self.rows.get(parent as usize)?)?),
        };
        Some(PathRef::of_parts(directory, name))
    }

    fn directory_path(&self, row: &Row) -> Option<&[u8]> {
        let begin = row.text as usize;
        self.text.get(begin..begin + row.size() as usize)
    }

    /// Number of entries from `id` on that equal the entries of `other` from `at` on, in their
    /// paths and in all else. Decodes none of them. Entries with attributes count as different.
    pub(super) fn equal_run(&self, id: u32, other: &Self, at: u32) -> usize {
        // The directories of the last entries: neighbours mostly share theirs.
        let mut equal = (ROOT, ROOT);
        let is_equal = |&(one, another, number): &(&Row, &Row, u32)| {
            if self.attributes(id + number).is_some() || other.attributes(at + number).is_some() {
                return false;
            }
            if (one.size, one.nanos, one.packed) != (another.size, another.nanos, another.packed)
                || self.text_of(one) != other.text_of(another)
            {
                return false;
            }
            let parents = (one.parent, another.parent);
            // The text of a directory is its whole path.
            if one.tag() == Tag::Directory || parents == equal {
                return true;
            }
            equal = parents;
            self.parent_path(parents.0) == other.parent_path(parents.1)
        };
        let (ones, others) = (self.rows.get(id as usize..), other.rows.get(at as usize..));
        let pairs = ones.unwrap_or_default().iter().zip(others.unwrap_or_default()).zip(0..);
        pairs.map(|((one, another), number)| (one, another, number)).take_while(is_equal).count()
    }

    /// The path of a directory by its number; empty for the root.
    fn parent_path(&self, parent: u32) -> Option<&[u8]> {
        if parent == ROOT { Some(&[]) } else { self.directory_path(self.rows.get(parent as usize)?) }
    }

    /// All text of an entry.
    fn text_of(&self, row: &Row) -> Option<&[u8]> {
        let begin = row.text as usize;
        let length = match row.tag() {
            Tag::Directory => row.size() as usize,
            Tag::File => row.name_bytes(),
            Tag::HashedFile => row.name_bytes() + size_of::<Hash>(),
            Tag::Symlink => row.name_bytes() + row.size() as usize,
        };
        self.text.get(begin..begin + length)
    }

    /// Frees the memory that was reserved for more entries.
    pub(super) fn shrink(&mut self) {
        self.rows.shrink_to_fit();
        self.text.shrink_to_fit();
        self.attributes.shrink_to_fit();
        self.sets.shrink_to_fit();
    }
}

fn split(number: u64) -> [u32; 2] {
    // The halves fit.
    #[allow(clippy::cast_possible_truncation)]
    [number as u32, (number >> 32) as u32]
}

fn join([low, high]: [u32; 2]) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::entry::{Entry, LINK_BYTES_MAX, SIZE_MAX};
    use crate::tree::path::{COMPONENT_BYTES_MAX, TreePath};

    #[test]
    fn row_holds_the_extremes_of_every_field() {
        assert_eq!(size_of::<Row>(), 28);
        let times = [(-SECONDS_MAX, 0), (SECONDS_MAX, 999_999_999), (-1, 1), (0, 0)];
        let times = times.map(|(seconds, nanos)| Time::new(seconds, nanos).unwrap());
        let longest = "n".repeat(COMPONENT_BYTES_MAX);
        let hash = Some(Hash::of(b"x"));
        let kinds = [
            Kind::Directory,
            Kind::File { size: SIZE_MAX, hash: None },
            Kind::File { size: 0, hash },
            Kind::Symlink { target: vec![b't'; LINK_BYTES_MAX].into() },
        ];
        let mut table = Table::default();
        let mut entries: Vec<Entry> = Vec::new();
        for mtime in times {
            for kind in &kinds {
                for (directory, mode) in [("", 0), ("some/where/", MODE_MASK)] {
                    let path = TreePath::new(format!("{directory}{longest}").into_bytes()).unwrap();
                    let attributes = None;
                    entries.push(Entry { path, kind: kind.clone(), mode, mtime, attributes });
                }
            }
        }
        let directory = |path: &str| Entry {
            path: TreePath::new(path.as_bytes()).unwrap(),
            kind: Kind::Directory,
            mode: 0o700,
            mtime: times[0],
            attributes: None,
        };
        entries.splice(0..0, [directory("some"), directory("some/where")]);
        for entry in &entries {
            let parent = match entry.path.components().count() {
                1 => None,
                depth => Some(depth as u32 - 2),
            };
            table.push(parent, entry.view(), None);
        }
        for (id, entry) in entries.iter().enumerate() {
            assert_eq!(table.get(id as u32).unwrap().to_entry(), *entry);
            assert_eq!(table.path(id as u32).unwrap(), entry.path);
        }
        assert!(table.get(entries.len() as u32).is_none() && table.path(u32::MAX).is_none());
    }
}
