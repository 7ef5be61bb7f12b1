//! The destination's tree, as the works see it before and after the plan.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::disk::identities::Identities;
use crate::disk::space::Reserve;
use crate::disk::stage::{Durability, Metadata};
use crate::disk::stat::{FileKind, Identity};
use crate::disk::writable::WritableRoot;
use crate::engine::WorkError;
use crate::engine::transfer::basis::basis_changed;
use crate::engine::transfer::receive::Strategy;
use crate::exchange::common::unwritable;
use crate::exchange::prefetch::Prehashes;
use crate::exchange::receiving::backups::Backups;
use crate::exchange::receiving::basis_trees::OpenBases;
use crate::exchange::receiving::directories::MadeDirectories;
use crate::exchange::receiving::undo::{Kept, Undone};
use crate::log::debug;
use crate::tree::basis_trees::FIRST;
use crate::tree::entry::{EntryRef, Kind, Time};
use crate::tree::manifest::Manifest;
use crate::tree::path::{TreePath, escape};
use crate::tree::spelling::Spelling;
use crate::wire::message::{AbortKind, BasisReport, Want};

/// A destination that is opened and listed.
pub struct OpenTree {
    /// `None` in a dry run whose destination does not exist.
    pub(super) root: Option<Arc<WritableRoot>>,
    /// Name of a single file in `root`.
    pub(super) single: Option<TreePath>,
    /// The absolute path, for display.
    pub(super) shown: PathBuf,
    /// Identities in the order in which the destination was listed.
    pub(super) identities: Arc<Identities>,
    /// True if ctimes may differ from the listed ones: the identities are those of an earlier scan
    /// that still holds, or some files have several names and this run removes one after the other.
    pub(super) ctimes_move: bool,
    /// Files that a power cut may have damaged.
    pub(super) doubted: HashSet<u32>,
    /// True if everything was listed.
    pub(super) is_whole: bool,
    pub(super) reserve: Option<Reserve>,
    pub(super) bases: OpenBases,
    /// The modification time of the root before the run.
    pub(super) root_time: Option<Time>,
    /// The run to undo, if one is.
    pub(super) undone: Option<Undone>,
}

impl OpenTree {
    /// A destination that is not listed yet.
    pub(super) fn new(root: Option<Arc<WritableRoot>>, single: Option<TreePath>, shown: PathBuf) -> Self {
        let (identities, doubted, bases) = (Arc::default(), HashSet::new(), OpenBases::default());
        Self {
            root,
            single,
            shown,
            identities,
            ctimes_move: false,
            doubted,
            is_whole: false,
            reserve: None,
            bases,
            root_time: None,
            undone: None,
        }
    }
}

impl fmt::Debug for OpenTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OpenTree").field(&self.shown).finish()
    }
}

/// A destination whose plan is made.
pub struct PlannedTree {
    pub(super) open: Arc<OpenTree>,
    pub(super) root: Arc<WritableRoot>,
    pub(super) is_durable: bool,
    /// True if files are written into, and not replaced.
    pub(super) is_in_place: bool,
    pub(super) wanted: Arc<Manifest>,
    pub(super) present: Arc<Manifest>,
    pub(super) spelling: Arc<Spelling>,
    /// Identities in the order of `present`, where that is not the order of listing.
    pub(super) reordered: Option<Identities>,
    /// Files that a power cut may have damaged and that this run has not checked yet.
    pub(super) doubted: Mutex<HashSet<u32>>,
    pub(super) directories: MadeDirectories,
    pub(super) prehashes: Arc<Prehashes>,
    pub(super) replaced: LastReplaced,
    /// True once the disk is full.
    pub(super) is_full: AtomicBool,
    /// `None` if nothing is backed up.
    pub(super) backups: Option<Backups>,
    /// `None` if nothing is kept for an undo.
    pub(super) undo: Option<Kept>,
}

impl fmt::Debug for PlannedTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PlannedTree").field(&self.open.shown).finish()
    }
}

/// The large basis that was replaced last, kept open until more is written or the run has ended. A
/// thread closes it, since that frees its pages: 0.1 s a gigabyte. The thread must not run while
/// the state directory is removed. The file had its last name there, and the kernel spins until it
/// is gone: an edit of 1 GiB took 0.9 s that way, and 0.66 s without.
#[derive(Default)]
pub(super) struct LastReplaced(Mutex<Option<File>>);

impl LastReplaced {
    pub(super) fn keep(&self, file: Option<File>) {
        self.release();
        *self.file() = file;
    }

    /// Frees its space, which the next file may need. If no thread can start, this one closes it.
    pub(super) fn release(&self) {
        let file = self.file().take();
        if file.is_some() {
            let _ = thread::Builder::new().spawn(move || drop(file));
        }
    }

    fn file(&self) -> MutexGuard<'_, Option<File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LastReplaced {
    fn drop(&mut self) {
        self.release();
    }
}

impl PlannedTree {
    pub(super) fn entry(&self, id: u32) -> Result<EntryRef<'_>, WorkError> {
        self.wanted.get(id).ok_or_else(unknown)
    }

    pub(super) fn metadata(&self, id: u32) -> Result<Metadata, WorkError> {
        let entry = self.entry(id)?;
        Ok(Metadata { mode: entry.mode, mtime: entry.mtime, attributes: entry.attributes.cloned() })
    }

    /// The fingerprint of the identity that a wanted file or link has now; `None` if it is not
    /// there as wanted.
    pub(super) fn fingerprint(&self, id: u32) -> Option<u64> {
        let (entry, path) = (self.entry(id).ok()?, self.path(id).ok()?);
        let stat = self.root.stat(&path).ok()??;
        let is_there = match entry.kind {
            Kind::File { size, .. } => stat.kind() == FileKind::File && stat.size() == size,
            Kind::Symlink { target } => self.root.read_link(&path).is_ok_and(|there| *there == *target),
            Kind::Directory => false,
        };
        is_there.then(|| stat.identity.fingerprint())
    }

    /// Path of an entry in the root.
    pub(super) fn path(&self, id: u32) -> Result<TreePath, WorkError> {
        let entry = self.entry(id)?;
        Ok(self.open.single.clone().unwrap_or_else(|| entry.path.to_path()))
    }

    /// Path of a present entry in the root, and its identity when it was listed.
    pub(super) fn basis(&self, at: u32) -> Result<(TreePath, Identity), WorkError> {
        let path = self.present_path(at).ok_or_else(unknown)?;
        let seen = self.identity(at).ok_or_else(unknown)?;
        Ok((path, seen))
    }

    /// Path of a present entry in the root.
    pub(super) fn present_path(&self, at: u32) -> Option<TreePath> {
        let path = self.present.path(at)?;
        Some(self.open.single.clone().unwrap_or_else(|| path.to_path()))
    }

    /// Identity of a present entry when it was listed. A name that comes or goes changes the ctime
    /// of the other names: `cp -al` gives one to each file, and this run may remove one.
    pub(super) fn identity(&self, at: u32) -> Option<Identity> {
        if at >= FIRST {
            return self.open.bases.identity(at);
        }
        let listed = self.identities().get(&self.present, at)?;
        if !self.open.ctimes_move {
            return Some(listed);
        }
        let path = self.present_path(at)?;
        let now = self.root.stat(&path).ok().flatten().map(|stat| stat.identity);
        let is_same = |now: &Identity| Identity { ctime: listed.ctime, ..*now } == listed;
        Some(now.filter(is_same).unwrap_or(listed))
    }

    fn identities(&self) -> &Identities {
        self.reordered.as_ref().unwrap_or(&self.open.identities)
    }

    /// Position of the present entry in an entry's place.
    pub(super) fn position(&self, id: u32) -> Result<Option<u32>, WorkError> {
        Ok(self.present.position(self.entry(id)?.path))
    }

    /// Identity of the listed file or link that a rename is going to replace, if there is one. (A
    /// directory in its place has been removed.)
    pub(super) fn seen(&self, id: u32) -> Result<Option<Identity>, WorkError> {
        let is_replaced = |at: &u32| self.present.get(*at).is_some_and(|entry| !entry.is_directory());
        Ok(self.position(id)?.filter(is_replaced).and_then(|at| self.identity(at)))
    }

    /// The same after that entry's backup, if backups are kept.
    pub(super) fn seen_and_backed_up(&self, id: u32) -> Result<Option<Identity>, WorkError> {
        let seen = self.seen(id)?;
        match (self.position(id)?, seen) {
            (Some(at), Some(seen)) => self.back_up(at, seen, !self.is_in_place).map(Some),
            _ => Ok(seen),
        }
    }

    /// Keeps the listed entry at a position for an undo, and backs it up, if that is wanted. Unless
    /// it `may_link`, both are copies. Returns the identity of the original afterwards.
    pub(super) fn back_up(&self, at: u32, seen: Identity, may_link: bool) -> Result<Identity, WorkError> {
        let path = self.present_path(at).ok_or_else(unknown)?;
        if let Some(backups) = &self.backups {
            backups.check(&self.root, &path, &self.wanted).map_err(unwritable)?;
        }
        let seen = self.keep(at, seen, may_link)?;
        let Some(backups) = &self.backups else { return Ok(seen) };
        let backed_up = backups.back_up(&self.root, &self.present, &path, &seen, may_link);
        debug!("backup role=receiver ok={} path={}", backed_up.is_ok(), escape(path.as_bytes()));
        backed_up.map_err(unwritable)
    }

    /// Keeps the listed entry at a position for an undo, if that is wanted, as a copy unless it
    /// `may_link`. Returns its identity afterwards.
    pub(super) fn keep(&self, at: u32, seen: Identity, may_link: bool) -> Result<Identity, WorkError> {
        let Some(undo) = &self.undo else { return Ok(seen) };
        let path = self.present_path(at).ok_or_else(unknown)?;
        undo.keep(&self.root, &path, &seen, may_link).map_err(unwritable)
    }

    pub(super) fn durability(&self) -> Durability {
        if self.is_durable { Durability::Immediately } else { Durability::Eventually }
    }

    /// Records that the file in an entry's place is checked.
    pub(super) fn settle_doubt(&self, id: u32) {
        if let Ok(Some(at)) = self.position(id) {
            self.doubted().remove(&at);
        }
    }

    pub(super) fn doubted(&self) -> MutexGuard<'_, HashSet<u32>> {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a listed file, if it is still the same.
    pub(super) fn open_listed(&self, at: u32) -> Result<(File, Identity), WorkError> {
        if let Some(opened) = self.open.bases.open(at) {
            return opened;
        }
        let (path, seen) = self.basis(at)?;
        let (file, stat) = self.root.open_file(&path).map_err(unwritable)?;
        if stat.identity == seen { Ok((file, seen)) } else { Err(basis_changed()) }
    }

    /// Drops prehashed files that nobody will ask about: those that are up to date, and those that
    /// have changed since.
    pub(super) fn cancel_prehashes(&self) {
        let Self { wanted, present, .. } = self;
        self.prehashes.only(|begun| {
            let listed = self.identities().position(present, begun).and_then(|at| present.get(at));
            let new = listed.and_then(|listed| wanted.get(wanted.position(listed.path)?));
            listed.is_some_and(|listed| {
                new.is_none_or(|new| (new.size(), new.mtime) != (listed.size(), listed.mtime))
            })
        });
    }

    /// Logs a basis report.
    pub(super) fn log_report(&self, id: u32, reported: &Result<(Want, Strategy), WorkError>) {
        let (Ok(entry), Ok((want, strategy))) = (self.entry(id), reported) else {
            debug!("basis role=receiver how=none why=unreadable id={id}");
            return;
        };
        let how = match (&want.basis, strategy) {
            (None, _) => "none why=new-file".to_owned(),
            (Some(BasisReport::Signed { .. }), _) => "signature why=small-file".to_owned(),
            (_, Strategy::PreCopy { shift_map, is_beside }) => {
                format!("pre-copy why=large-file-in-place shift={} beside={is_beside}", shift_map.kind())
            }
            _ => "blocks why=basis".to_owned(),
        };
        let (path, part) = (entry.path.to_path(), want.staged.as_ref().map_or(0, |staged| staged.length));
        debug!(
            "basis role=receiver how={how} size={} basis_bytes={} part_bytes={part} path={}",
            entry.size(),
            want.basis_length(),
            escape(path.as_bytes())
        );
    }
}

/// An entry or handle that the engine cannot name.
pub(super) fn unknown() -> WorkError {
    WorkError::Fatal(AbortKind::Protocol, "an entry that neither tree has".to_owned())
}
