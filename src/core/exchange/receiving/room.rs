//! Room on the destination's disk: the figures before anything is written, and the handling of a
//! disk that gets full all the same.

use std::sync::atomic::Ordering;

use crate::disk::Staged;
use crate::disk::error::DiskError;
use crate::disk::identities::Identities;
use crate::disk::root::Root;
use crate::disk::space::Reserve;
use crate::disk::stage::Staging;
use crate::engine::{Room, WorkError};
use crate::exchange::common::work_error;
use crate::exchange::receiving::Receiving;
use crate::exchange::receiving::tree::PlannedTree;
use crate::exchange::unusable;
use crate::monitor::ProblemKind;
use crate::tree::manifest::Manifest;
use crate::tree::path::TreePath;
use crate::wire::message::AbortKind;

impl Receiving {
    /// Free room, if the filesystem reports it exactly enough.
    pub(super) fn room(
        root: &Root,
        staged: Staged,
        present: &Manifest,
        identities: &Identities,
    ) -> Option<(Room, Option<Reserve>)> {
        let space = root.space().ok().filter(|space| space.is_exact)?;
        let mut mounts: Vec<TreePath> = Vec::new();
        let others = if identities.all_lie_on(root.dev()) { None } else { Some(present.iter()) };
        for (at, entry) in others.into_iter().flatten().filter(|(_, entry)| entry.is_directory()) {
            let is_known = mounts.last().is_some_and(|mount| entry.path.is_below(mount));
            if !is_known && identities.get(present, at)?.dev != root.dev() {
                mounts.push(entry.path.to_path());
            }
        }
        let room = Room {
            bytes: space.bytes,
            reserve_bytes: space.reserve_bytes(),
            inodes: space.inodes,
            block_bytes: space.block_bytes,
            shares_extents: space.shares_extents,
            staged_bytes: staged.bytes,
            staged_files: staged.files,
            mounts,
        };
        Some((room, Reserve::of(&space)))
    }
}

impl PlannedTree {
    /// Checks the reserve before a write that takes between `at_least` and `at_most` bytes.
    pub(super) fn before_writing(&self, at_least: u64, at_most: u64) -> Result<(), DiskError> {
        let reserve = self.open.reserve.as_ref();
        reserve.map_or(Ok(()), |reserve| reserve.before_writing(&self.root, at_least, at_most))
    }

    /// Classifies a failure to write a file. If the disk is full, the run frees all drafts:
    /// see `StagedDraft`. A file that is too long is freed too.
    pub(super) fn failed(&self, id: u32, error: &DiskError) -> WorkError {
        if error.is_no_space() {
            self.is_full.store(true, Ordering::Relaxed);
        }
        if error.is_no_space() || error.is_too_long() {
            self.give_up(id);
        }
        self.unwritable(error)
    }

    /// Classifies a failure to make an entry. Where this user can make nothing in the root, every
    /// other entry would fail, too.
    pub(super) fn unwritable(&self, error: &DiskError) -> WorkError {
        let refusal = error.is_permission().then(|| unusable::not_writable(self.root.path())).flatten();
        match refusal {
            Some(text) => WorkError::Fatal(AbortKind::Destination, text),
            None => work_error(error, ProblemKind::Unwritable),
        }
    }

    /// Frees the staged part of a file that nobody writes to.
    pub(super) fn give_up(&self, id: u32) {
        if let Ok(path) = self.path(id)
            && let Ok(Some(part)) = Staging::find(&self.root, &path)
        {
            // The end of the next run removes a part that stays.
            let _ = part.discard();
        }
    }
}
