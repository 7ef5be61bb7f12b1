//! `Identities`: the identities of a tree's entries, stored compactly beside their manifest.
//!
//! Length and modification time are in the manifest. The other fields take 20 bytes per entry
//! instead of 64.

use crate::disk::stat::{FileKind, Identity};
use crate::tree::entry::{EntryRef, SECONDS_MAX, Time};
use crate::tree::manifest::Manifest;

/// Maximum number of filesystems in one tree.
const DEVICES_MAX: usize = 1 << 21;

/// All kinds, in a fixed order.
const KINDS: [FileKind; 6] = [
    FileKind::Directory,
    FileKind::File,
    FileKind::Symlink,
    FileKind::Fifo,
    FileKind::Socket,
    FileKind::Device,
];

/// The identities of a manifest's entries, in its order.
#[derive(Debug, Default)]
pub struct Identities {
    rows: Vec<Row>,
    devices: Vec<u64>,
}

/// All fields are of 32 bits, so that there is no padding.
#[derive(Debug, Clone)]
struct Row {
    ino: [u32; 2],
    /// From the top: 21 bits of the filesystem's index, 3 of the kind, 42 of seconds, 30 of
    /// nanoseconds.
    rest: [u32; 3],
}

impl Identities {
    /// Appends the identity of the next entry; `false` if the tree is on too many filesystems.
    pub fn push(&mut self, identity: &Identity) -> bool {
        // Neighbours are mostly on the same filesystem.
        let known = self.devices.iter().rposition(|&device| device == identity.dev);
        let device = known.unwrap_or(self.devices.len());
        if device == DEVICES_MAX {
            return false;
        }
        if known.is_none() {
            self.devices.push(identity.dev);
        }
        // Not negative: no time is further from 1970 than that.
        let seconds = (identity.ctime.seconds() + SECONDS_MAX).unsigned_abs();
        let rest = (device as u128) << 75
            | (identity.kind as u128) << 72
            | u128::from(seconds) << 30
            | u128::from(identity.ctime.nanos());
        // The pieces fit.
        #[allow(clippy::cast_possible_truncation)]
        self.rows.push(Row {
            ino: [identity.ino as u32, (identity.ino >> 32) as u32],
            rest: [rest as u32, (rest >> 32) as u32, (rest >> 64) as u32],
        });
        true
    }

    /// The number of identities.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True if there are no identities.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// True if all entries are on this filesystem.
    #[must_use]
    pub fn all_lie_on(&self, device: u64) -> bool {
        self.devices.iter().all(|&known| known == device)
    }

    /// The identity of the entry at `at` in `manifest`.
    #[must_use]
    pub fn get(&self, manifest: &Manifest, at: u32) -> Option<Identity> {
        self.identity(at, manifest.get(at)?)
    }

    /// The position in `manifest` of the entry with this identity.
    #[must_use]
    pub fn position(&self, manifest: &Manifest, wanted: &Identity) -> Option<u32> {
        let may_be = |row: &Row| row.ino() == wanted.ino;
        let same = self.rows.iter().enumerate().filter(|(_, row)| may_be(row));
        let mut same = same.filter_map(|(at, _)| u32::try_from(at).ok());
        same.find(|&at| self.get(manifest, at).is_some_and(|identity| identity == *wanted))
    }

    /// The inode number of each entry, in order.
    pub fn inode_numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.rows.iter().map(Row::ino)
    }

    /// The identities in another order of entries: `order` lists each entry's previous position.
    #[must_use]
    pub fn reordered(&self, order: &[u32]) -> Self {
        let rows = order.iter().filter_map(|&before| self.rows.get(before as usize)).cloned();
        Self { rows: rows.collect(), devices: self.devices.clone() }
    }

    /// Frees the memory that was reserved for more entries.
    pub fn shrink(&mut self) {
        self.rows.shrink_to_fit();
    }

    fn identity(&self, at: u32, entry: EntryRef<'_>) -> Option<Identity> {
        let row = self.rows.get(at as usize)?;
        let (device, kind, ctime) = row.rest()?;
        Some(Identity {
            dev: *self.devices.get(device)?,
            ino: row.ino(),
            kind,
            size: entry.size(),
            mtime: entry.mtime,
            ctime,
        })
    }
}

impl Row {
    fn ino(&self) -> u64 {
        let [low, high] = self.ino;
        u64::from(high) << 32 | u64::from(low)
    }

    fn rest(&self) -> Option<(usize, FileKind, Time)> {
        let [low, middle, high] = self.rest;
        let rest = u128::from(high) << 64 | u128::from(middle) << 32 | u128::from(low);
        let seconds = i64::try_from((rest >> 30) & ((1 << 42) - 1)).ok()?;
        // 30 bits.
        #[allow(clippy::cast_possible_truncation)]
        let nanos = (rest & ((1 << 30) - 1)) as u32;
        let kind = KINDS.into_iter().find(|&kind| kind as u128 == (rest >> 72) & 7)?;
        Some((usize::try_from(rest >> 75).ok()?, kind, Time::new(seconds - SECONDS_MAX, nanos)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::entry::{Entry, Kind};
    use crate::tree::path::TreePath;

    #[test]
    fn an_identity_comes_back_with_every_field_at_its_extremes() {
        assert_eq!(size_of::<Row>(), 20);
        let time = |seconds, nanos| Time::new(seconds, nanos).unwrap();
        let (mut entries, mut expected, mut identities) = (Vec::new(), Vec::new(), Identities::default());
        for (number, (dev, ino, ctime)) in [
            (0, 0, time(-SECONDS_MAX, 0)),
            (u64::MAX, u64::MAX, time(SECONDS_MAX, 999_999_999)),
            (7, 1 << 32, time(-1, 1)),
            (0, 1, time(0, 999_999_999)),
        ]
        .into_iter()
        .enumerate()
        {
            let path = TreePath::new(format!("{number}").into_bytes()).unwrap();
            let (kind, file_kind, size) = match number {
                0 => (Kind::Directory, FileKind::Directory, 0),
                1 => (Kind::Symlink { target: b"t"[..].into() }, FileKind::Symlink, 0),
                2 => (Kind::special(), FileKind::Device, 0),
                _ => (Kind::File { size: 5, hash: None }, FileKind::File, 5),
            };
            let mtime = time(3, 4);
            entries.push(Entry { path, kind, mode: 0o644, mtime, attributes: None });
            let identity = Identity { dev, ino, kind: file_kind, size, mtime, ctime };
            assert!(identities.push(&identity));
            expected.push(identity);
        }
        let manifest = Manifest::new(entries).unwrap();
        for (at, identity) in expected.iter().enumerate() {
            assert_eq!(identities.get(&manifest, at as u32), Some(*identity));
            assert_eq!(identities.position(&manifest, identity), Some(at as u32));
        }
        assert_eq!(identities.position(&manifest, &Identity { size: 6, ..expected[2] }), None);
        assert_eq!(identities.get(&manifest, 4), None);
    }
}
