//! The store of the present run, and the earlier run that is undone.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::disk::error::DiskError;
use crate::disk::root::Root;
use crate::disk::stat::{FileKind, Identity};
use crate::disk::undo::UndoRun;
use crate::disk::writable::WritableRoot;
use crate::tree::manifest::Manifest;
use crate::tree::path::TreePath;

/// The store of the present run.
pub(super) struct Kept(UndoRun);

impl Kept {
    /// The store that was made for a run.
    pub(super) fn new(run: UndoRun) -> Self {
        Self(run)
    }

    /// Gives a file that is about to be replaced or deleted a further name in the store. Returns
    /// its identity afterwards. Of other entries the records hold everything.
    pub(super) fn keep(
        &self,
        destination: &WritableRoot,
        path: &TreePath,
        seen: &Identity,
        may_link: bool,
    ) -> Result<Identity, DiskError> {
        if seen.kind != FileKind::File {
            return Ok(*seen);
        }
        destination.back_up(path, seen, self.0.root(), &UndoRun::name_of(path)?, may_link)
    }

    /// Hashes what was kept.
    pub(super) fn close(&self, before: &Manifest) -> Result<(), DiskError> {
        self.0.seal(before)
    }
}

/// The run to undo.
pub(super) struct Undone {
    run: UndoRun,
    /// False once something of it stays: then the store stays, too.
    is_complete: AtomicBool,
}

impl Undone {
    /// A run of which everything will be undone, if it `is_complete`.
    pub(super) fn new(run: UndoRun, is_complete: bool) -> Self {
        Self { run, is_complete: AtomicBool::new(is_complete) }
    }

    /// Its store.
    pub(super) fn run(&self) -> &UndoRun {
        &self.run
    }

    /// True if all of the run was undone.
    pub(super) fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::Relaxed)
    }

    /// Notes that something of the run stays.
    pub(super) fn has_failed(&self) {
        self.is_complete.store(false, Ordering::Relaxed);
    }

    /// Removes the run from the store.
    pub(super) fn forget(&self, destination: &Root) -> Result<(), DiskError> {
        self.run.forget(destination)
    }
}
