//! Room on the destination's disk: the figures before anything is written, and the handling of a
//! disk that gets full all the same.

use std::sync::atomic::Ordering;

use crate::content::hash::is_zero;
use crate::disk::Staged;
use crate::disk::error::DiskError;
use crate::disk::root::Root;
use crate::disk::space::Reserve;
use crate::disk::stage::Staging;
use crate::engine::{Room, WorkError};
use crate::exchange::receiving::{Receiving, sink_error};
use crate::exchange::sink::SinkError;
use crate::exchange::work_error;
use crate::monitor::ProblemKind;
use crate::tree::manifest::Manifest;
use crate::tree::path::TreePath;
use crate::wire::message::Op;

impl Receiving {
    /// Free room, if the filesystem reports it exactly enough.
    pub(super) fn room(&self, root: &Root, staged: Staged, present: &Manifest) -> Option<Room> {
        let space = root.space().ok().filter(|space| space.is_exact)?;
        if let Some(reserve) = Reserve::of(&space) {
            // A run has one destination.
            let _ = self.reserve.set(reserve);
        }
        let mut mounts: Vec<TreePath> = Vec::new();
        let identities = self.identities()?;
        let directories = present.iter().filter(|(_, entry)| entry.is_directory());
        for (at, entry) in directories.filter(|_| !identities.all_lie_on(root.dev())) {
            let is_known = mounts.last().is_some_and(|mount| entry.path.is_below(mount));
            if !is_known && identities.get(present, at)?.dev != root.dev() {
                mounts.push(entry.path.to_path());
            }
        }
        Some(Room {
            bytes: space.bytes,
            reserve_bytes: space.reserve_bytes(),
            inodes: space.inodes,
            block_bytes: space.block_bytes,
            shares_extents: space.shares_extents,
            staged_bytes: staged.bytes,
            staged_files: staged.files,
            mounts,
        })
    }

    /// Checks the reserve before a small file is written.
    pub(super) fn before_writing(&self, data: &[u8]) -> Result<(), DiskError> {
        let bytes = data.len() as u64;
        match (self.reserve.get(), self.root()) {
            (Some(reserve), Ok(root)) => {
                reserve.before_writing(root, if is_zero(data) { 0 } else { bytes }, bytes)
            }
            _ => Ok(()),
        }
    }

    /// Checks the reserve before a step of a larger file. The part of it that becomes holes is
    /// unknown.
    pub(super) fn before_step(&self, op: &Op) -> Result<(), SinkError> {
        match (self.reserve.get(), self.root()) {
            (Some(reserve), Ok(root)) => Ok(reserve.before_writing(root, 0, op.made_bytes())?),
            _ => Ok(()),
        }
    }

    /// Classifies a failure to make a larger file.
    pub(super) fn sink_failed(&self, id: u32, error: SinkError) -> WorkError {
        match error {
            SinkError::Disk(error) => self.failed(id, &error),
            error => sink_error(error),
        }
    }

    /// Classifies a failure to write a file. If the disk is full, the run frees all that it has
    /// begun and begins nothing more. A file that is too long is freed too.
    pub(super) fn failed(&self, id: u32, error: &DiskError) -> WorkError {
        if error.is_no_space() {
            self.is_full.store(true, Ordering::Relaxed);
            self.give_up_if_full();
        }
        if error.is_no_space() || error.is_too_long() {
            self.give_up(id);
        }
        work_error(error, ProblemKind::Unwritable)
    }

    /// Frees all incomplete files once the disk is full.
    pub(super) fn give_up_if_full(&self) {
        if self.is_full.load(Ordering::Relaxed) {
            let begun: Vec<u32> = self.sinks().drain().map(|(id, _)| id).collect();
            begun.into_iter().for_each(|id| self.give_up(id));
            self.pre_copies.discard_all();
        }
    }

    /// Frees the staged part of a file that nobody writes to.
    fn give_up(&self, id: u32) {
        if let (Ok(root), Ok(path)) = (self.root(), self.path(id))
            && let Ok(Some(part)) = Staging::find(root, &path)
        {
            // The end of the next run removes a part that stays.
            let _ = part.discard();
        }
    }
}
