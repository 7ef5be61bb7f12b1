//! The directories whose entries a plan changes: their times move, and their modes may forbid the
//! change.

use std::collections::BTreeSet;

use crate::tree::compare::Change;
use crate::tree::entry::EntryRef;
use crate::tree::manifest::Manifest;

/// Collects the directories whose own times a plan moves.
pub(super) struct Touched<'a> {
    wanted: &'a Manifest,
    pub(super) directories: BTreeSet<u32>,
    /// Directories that are not wanted, as positions in the present manifest.
    pub(super) kept: BTreeSet<u32>,
    /// The parent of the last look-up: neighbours share it.
    last_parent: Option<Vec<u8>>,
}

impl<'a> Touched<'a> {
    pub(super) fn new(wanted: &'a Manifest) -> Self {
        Self { wanted, directories: BTreeSet::new(), kept: BTreeSet::new(), last_parent: None }
    }

    pub(super) fn add(&mut self, change: Change, present: &Manifest) {
        let entry = match change {
            Change::Create { id }
            | Change::Update { id, .. }
            | Change::Verify { id, .. }
            | Change::Replace { id, .. } => self.wanted.get(id),
            Change::Adjust { id, .. } => {
                if self.wanted.get(id).is_some_and(|entry| entry.is_directory()) {
                    self.directories.insert(id);
                }
                return;
            }
            Change::Remove { at } => present.get(at),
            Change::Obstacle { .. } => None,
        };
        let Some(entry) = entry else { return };
        if entry.is_directory() {
            self.directories.extend(self.wanted.position(entry.path));
        }
        let parent = entry.path.directory();
        if parent != self.last_parent.as_deref() {
            self.last_parent = parent.map(<[u8]>::to_vec);
            let Some(parent) = entry.path.parent() else { return };
            match self.wanted.position(parent) {
                Some(id) => drop(self.directories.insert(id)),
                None => self.kept.extend(present.position(parent)),
            }
        }
    }
}

/// Permission bits that an owner needs to change a directory's entries.
const CHANGE_BITS: u16 = 0o300;

/// Collects the directories in which a plan changes something although their modes forbid it.
pub(super) struct Locked<'a> {
    present: &'a Manifest,
    pub(super) directories: BTreeSet<u32>,
    /// The parent of the last look-up: neighbours share it.
    last_parent: Option<Vec<u8>>,
}

impl<'a> Locked<'a> {
    pub(super) fn new(present: &'a Manifest) -> Self {
        Self { present, directories: BTreeSet::new(), last_parent: None }
    }

    pub(super) fn add(&mut self, change: Change, wanted: &Manifest) {
        let entry = match change {
            Change::Create { id } | Change::Update { id, .. } | Change::Verify { id, .. } => wanted.get(id),
            Change::Replace { at, .. } => {
                self.add_all_below(at);
                self.present.get(at)
            }
            Change::Remove { at } => self.present.get(at),
            Change::Adjust { .. } | Change::Obstacle { .. } => None,
        };
        let Some(parent) = entry.map(|entry| entry.path.directory()) else { return };
        if parent != self.last_parent.as_deref() {
            self.last_parent = parent.map(<[u8]>::to_vec);
            let at = entry.and_then(|entry| self.present.position(entry.path.parent()?));
            at.into_iter().for_each(|at| self.add_directory(at));
        }
    }

    fn add_all_below(&mut self, top: u32) {
        let path = self.present.path(top);
        let rest = top..u32::try_from(self.present.len()).unwrap_or(u32::MAX);
        for at in rest {
            let below = self.present.get(at).zip(path);
            if !below.is_some_and(|(entry, path)| at == top || entry.path.is_below(path)) {
                return;
            }
            self.add_directory(at);
        }
    }

    fn add_directory(&mut self, at: u32) {
        let is_locked = |entry: EntryRef<'_>| entry.is_directory() && entry.mode & CHANGE_BITS != CHANGE_BITS;
        if self.present.get(at).is_some_and(is_locked) {
            self.directories.insert(at);
        }
    }
}
