//! The directories whose entries a plan changes: their times move, and their modes may forbid the
//! change.

use std::collections::{BTreeSet, HashSet};

use crate::tree::compare::Change;
use crate::tree::entry::EntryRef;
use crate::tree::manifest::Manifest;
use crate::tree::path_ref::PathRef;

/// Permission bits that an owner needs to change a directory's entries.
const CHANGE_BITS: u16 = 0o300;

/// Collects the directories in which a plan changes something.
pub(super) struct Touched<'a> {
    wanted: &'a Manifest,
    present: &'a Manifest,
    /// Wanted directories that count as not offered.
    pruned: &'a HashSet<u32>,
    /// Wanted directories whose times move.
    pub(super) directories: BTreeSet<u32>,
    /// Directories whose times move and that are not wanted, as positions in the present manifest.
    pub(super) kept: BTreeSet<u32>,
    /// Directories whose modes forbid the change, as positions in the present manifest.
    pub(super) locked: BTreeSet<u32>,
    /// The parent of the last look-up: neighbours share it.
    last_parent: Option<Vec<u8>>,
}

impl<'a> Touched<'a> {
    pub(super) fn new(wanted: &'a Manifest, present: &'a Manifest, pruned: &'a HashSet<u32>) -> Self {
        let (directories, kept, locked) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        Self { wanted, present, pruned, directories, kept, locked, last_parent: None }
    }

    pub(super) fn add(&mut self, change: Change) {
        let entry = match change {
            Change::Create { id } | Change::Update { id, .. } | Change::Verify { id, .. } => {
                self.wanted.get(id)
            }
            Change::Replace { id, at } => {
                self.present.subtree(at).for_each(|at| self.change_in(at));
                self.wanted.get(id)
            }
            Change::Adjust { id, at } => {
                let has_attributes = |entry: EntryRef<'_>| entry.attributes.is_some();
                let entry = self.wanted.get(id);
                if entry.is_some_and(|entry| entry.is_directory()) {
                    self.directories.insert(id);
                    return;
                }
                // A name of a file that has others is made anew, and so is a special file.
                if !(entry.is_some_and(has_attributes) || self.present.get(at).is_some_and(has_attributes)) {
                    return;
                }
                entry
            }
            Change::Remove { at } => self.present.get(at),
            Change::Obstacle { .. } => None,
        };
        let Some(entry) = entry else { return };
        if entry.is_directory() {
            self.directories.extend(self.wanted_at(entry.path));
        }
        let parent = entry.path.directory();
        if parent != self.last_parent.as_deref() {
            self.last_parent = parent.map(<[u8]>::to_vec);
            let Some(parent) = entry.path.parent() else { return };
            let at = self.present.position(parent);
            match self.wanted_at(parent) {
                Some(id) => drop(self.directories.insert(id)),
                None => self.kept.extend(at),
            }
            at.into_iter().for_each(|at| self.change_in(at));
        }
    }

    fn wanted_at(&self, path: PathRef<'_>) -> Option<u32> {
        self.wanted.position(path).filter(|id| !self.pruned.contains(id))
    }

    /// Records a present directory whose entries change, if its mode forbids that.
    fn change_in(&mut self, at: u32) {
        let is_locked = |entry: EntryRef<'_>| entry.is_directory() && entry.mode & CHANGE_BITS != CHANGE_BITS;
        if self.present.get(at).is_some_and(is_locked) {
            self.locked.insert(at);
        }
    }
}
