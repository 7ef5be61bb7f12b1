//! Space that a plan needs on the destination's filesystem, compared with the free space.
//!
//! Every number here is the least that the run can take. A file that may turn out to be the same,
//! moved or shared counts nothing. So a run that would fit is never refused. A run that does not
//! fit may still begin, and ends when the disk is full.

use std::collections::HashSet;

use crate::engine::plan::Plan;
use crate::engine::work::{Room, Step};
use crate::tree::compare::Change;
use crate::tree::entry::EntryRef;
use crate::tree::manifest::Manifest;
use crate::wire::message::Holes;

/// Longest file, in bytes, that may lie in its inode.
const INLINE_BYTES_MAX: u64 = 2048;

/// The least that a run needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Need {
    /// Bytes at the worst moment.
    pub(super) bytes: u64,
    /// New files, directories and links.
    pub(super) inodes: u64,
}

impl Need {
    /// Computes the need of this plan.
    pub(super) fn of(plan: &Plan, wanted: &Manifest, present: &Manifest, holes: &Holes, room: &Room) -> Self {
        let elsewhere = |entry: &EntryRef<'_>| {
            room.mounts.iter().any(|mount| entry.path == *mount || entry.path.is_below(mount))
        };
        let removed: HashSet<u32> = plan
            .remove
            .iter()
            .filter_map(|step| match *step {
                Step::Remove { at } => Some(at),
                _ => None,
            })
            .collect();
        let on_disk = |size: u64| match size {
            0..=INLINE_BYTES_MAX => size,
            _ => size.checked_next_multiple_of(room.block_bytes).unwrap_or(size),
        };
        let old = |at: u32| present.get(at).map_or(0, |entry| on_disk(entry.size()));

        let mut inodes: u64 = 0;
        let mut balance = Balance::default();
        for change in &plan.changes {
            match *change {
                Change::Create { id } => {
                    let takes_one = wanted.get(id).is_some_and(|entry| !elsewhere(&entry));
                    inodes += u64::from(takes_one && !plan.is_linked(id));
                }
                // The present entry goes first, with everything in it.
                Change::Replace { at, .. } => balance.frees(present.subtree(at).map(old).sum()),
                _ => {}
            }
        }
        for fetch in &plan.fetch {
            let Some(entry) = wanted.get(fetch.id).filter(|entry| !elsewhere(entry)) else { continue };
            let content = on_disk(entry.size().saturating_sub(holes.of(fetch.id)));
            match fetch.at {
                // The file may be moved.
                Some(at) if fetch.elsewhere && removed.contains(&at) => inodes = inodes.saturating_sub(1),
                Some(_) if room.shares_extents && fetch.elsewhere => {}
                Some(at) if room.shares_extents => balance.frees(old(at)),
                // The file may be the same.
                Some(at)
                    if !fetch.elsewhere && present.get(at).is_some_and(|old| old.size() == entry.size()) => {}
                Some(at) if !fetch.elsewhere => balance.takes(content, old(at)),
                Some(_) | None => balance.takes(content, 0),
            }
        }
        Self {
            bytes: balance.peak().saturating_sub(holes.others_bytes).saturating_sub(room.staged_bytes),
            inodes: inodes.saturating_sub(room.staged_files),
        }
    }

    /// Describes in one sentence what is missing, if anything is.
    pub(super) fn missing(&self, room: &Room, path: &str) -> Option<String> {
        let has_bytes = self.bytes == 0 || self.bytes.saturating_add(room.reserve_bytes) <= room.bytes;
        let has_inodes = self.inodes <= room.inodes;
        let bytes = || {
            let kept = if self.bytes <= room.bytes {
                format!(", of which {} are kept in reserve", amount(room.reserve_bytes))
            } else {
                String::new()
            };
            format!("{} are needed and {} are free{kept}", amount(self.bytes), amount(room.bytes))
        };
        let inodes =
            || format!("{} files and directories are needed, {} inodes are free", self.inodes, room.inodes);
        let what = match (has_bytes, has_inodes) {
            (true, true) => return None,
            (false, true) => format!("not enough space in {path}: {}", bytes()),
            (true, false) => format!("not enough inodes in {path}: {}", inodes()),
            (false, false) => format!("not enough space and inodes in {path}: {}, {}", bytes(), inodes()),
        };
        Some(format!("{what}; nothing was changed"))
    }
}

/// Bytes freed and taken. A file's old content is freed when its new content is complete.
#[derive(Debug, Default)]
struct Balance {
    taken: u64,
    freed: u64,
    /// Bytes freed without a replacement, and bytes by which files shrink.
    shrinking: u64,
    /// The most that one file takes, plus the bytes by which it shrinks: they are still occupied
    /// while the new content arrives.
    largest: u64,
}

impl Balance {
    fn frees(&mut self, bytes: u64) {
        self.freed = self.freed.saturating_add(bytes);
        self.shrinking = self.shrinking.saturating_add(bytes);
    }

    fn takes(&mut self, new: u64, old: u64) {
        self.taken = self.taken.saturating_add(new);
        self.freed = self.freed.saturating_add(old);
        let shrinks = old.saturating_sub(new);
        self.shrinking = self.shrinking.saturating_add(shrinks);
        self.largest = self.largest.max(new.saturating_add(shrinks));
    }

    /// The least space taken at the worst moment, in the most favourable order.
    fn peak(&self) -> u64 {
        self.taken.saturating_sub(self.freed).max(self.largest.saturating_sub(self.shrinking))
    }
}

/// Formats a number of bytes for display.
fn amount(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "kB")];
    match UNITS.into_iter().find(|&(unit, _)| bytes >= unit) {
        Some((unit, name)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} B"),
    }
}
