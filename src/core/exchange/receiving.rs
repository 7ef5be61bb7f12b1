//! `Receiving`: performs the works of a receiver. This file holds the state that the works share;
//! the modules below perform them.

mod basis;
mod contents;
mod destination;
mod directories;
mod names;
mod room;
mod spelling;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use crate::content::blocks::{BlockSize, Nodes};
use crate::disk::baseline::Baseline;
use crate::disk::identities::Identities;
use crate::disk::root::Root;
use crate::disk::space::Reserve;
use crate::disk::stage::Metadata;
use crate::disk::stat::Identity;
use crate::engine::{Outcome, Work, WorkError};
use crate::exchange::pre_copies::PreCopies;
use crate::exchange::prefetch::large_files;
use crate::exchange::prehash::{Prehashes, Priority};
use crate::exchange::receiving::directories::MadeDirectories;
use crate::exchange::rounds::ReceiverSession;
use crate::exchange::run::Perform;
use crate::exchange::sink::{Sink, SinkError, open_basis};
use crate::exchange::work_error;
use crate::log::debug;
use crate::monitor::ProblemKind;
use crate::tree::entry::EntryRef;
use crate::tree::manifest::Manifest;
use crate::tree::path::TreePath;
use crate::tree::spelling::Spelling;
use crate::wire::hello::Options;
use crate::wire::message::AbortKind;

/// Performs the works on a destination.
pub struct Receiving {
    path: PathBuf,
    options: Options,
    baseline: Option<Baseline>,
    session: Option<Arc<ReceiverSession>>,
    opened: OnceLock<OpenedTree>,
    /// Identities in the order in which the destination was listed.
    listed: OnceLock<Identities>,
    /// Identities in the order of the present manifest, where that order differs.
    reordered: OnceLock<Identities>,
    spelling: OnceLock<Arc<Spelling>>,
    /// Files of the destination that a power cut may have damaged and that this run has not checked
    /// yet.
    doubted: Mutex<HashSet<u32>>,
    /// True if everything in the destination was listed.
    is_whole: OnceLock<bool>,
    directories: MadeDirectories,
    trees: OnceLock<Trees>,
    sinks: Mutex<HashMap<u32, Sink>>,
    /// Nodes of the bytes that an earlier run staged, by file.
    staged: Mutex<HashMap<u32, Nodes>>,
    prehashes: Arc<Prehashes>,
    pre_copies: PreCopies,
    ancestors: NewAncestors,
    reserve: OnceLock<Reserve>,
    is_full: AtomicBool,
    replaced: LastReplaced,
}

/// The large basis that was replaced last, kept open until more is written or the run has ended. A
/// thread closes it, since that frees its pages: 0.1 s a gigabyte. The thread must not run while
/// the state directory is removed. The file had its last name there, and the kernel spins until it
/// is gone: an edit of 1 GiB took 0.9 s that way, and 0.66 s without.
#[derive(Default)]
struct LastReplaced(Mutex<Option<File>>);

impl LastReplaced {
    fn keep(&self, file: Option<File>) {
        self.release();
        *self.file() = file;
    }

    /// Frees its space, which the next file may need. If no thread can start, this one closes it.
    fn release(&self) {
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

/// Location of the tree.
struct OpenedTree {
    /// `None` in a dry run whose destination does not exist.
    root: Option<Arc<Root>>,
    /// Name of a single file in `root`.
    single: Option<TreePath>,
    /// The absolute path, for display.
    shown: PathBuf,
}

struct Trees {
    wanted: Arc<Manifest>,
    present: Arc<Manifest>,
}

impl Receiving {
    /// Makes a receiver that writes to `path`.
    #[must_use]
    pub fn new(path: PathBuf, options: Options) -> Self {
        Self {
            path,
            options,
            baseline: None,
            session: None,
            opened: OnceLock::new(),
            listed: OnceLock::new(),
            reordered: OnceLock::new(),
            spelling: OnceLock::new(),
            doubted: Mutex::default(),
            is_whole: OnceLock::new(),
            directories: MadeDirectories::default(),
            trees: OnceLock::new(),
            sinks: Mutex::new(HashMap::new()),
            staged: Mutex::default(),
            prehashes: Arc::default(),
            pre_copies: PreCopies::default(),
            ancestors: NewAncestors::default(),
            reserve: OnceLock::new(),
            is_full: AtomicBool::new(false),
            replaced: LastReplaced::default(),
        }
    }

    /// Sets the store of the baseline, if there is one.
    #[must_use]
    pub fn with_baseline(self, baseline: Option<Baseline>) -> Self {
        Self { baseline, ..self }
    }

    /// Makes this one of several rounds.
    pub(super) fn in_session(self, session: Arc<ReceiverSession>) -> Self {
        Self { session: Some(session), ..self }
    }

    /// Starts to prehash large files of the destination that the sender will probably ask about.
    /// This serves a receiver that waits for an offer, perhaps of a single file called `name`.
    #[must_use]
    pub fn prehashing(self, name: Option<Vec<u8>>) -> Self {
        // With --checksum the scan hashes every file anyway.
        if self.options.dry_run || self.options.checksum {
            return self;
        }
        let (prehashes, path) = (Arc::clone(&self.prehashes), self.path.clone());
        let begin = move || {
            for (file, identity) in large_files(&path, name.as_deref()) {
                // The block size follows from the new content's length, which may be less than the
                // old one's.
                let block = BlockSize::for_size(identity.size).halved();
                debug!("prehash role=receiver size={} why=large", identity.size);
                prehashes.begin(identity, file, block, Priority::Low);
            }
        };
        // If no thread can start, the files are hashed when they are needed.
        let _ = thread::Builder::new().spawn(begin);
        self
    }

    fn opened_tree(&self) -> Result<&OpenedTree, WorkError> {
        self.opened.get().ok_or_else(out_of_turn)
    }

    fn root(&self) -> Result<&Root, WorkError> {
        self.opened_tree()?.root.as_deref().ok_or_else(out_of_turn)
    }

    fn trees(&self) -> Result<&Trees, WorkError> {
        self.trees.get().ok_or_else(out_of_turn)
    }

    fn entry(&self, id: u32) -> Result<EntryRef<'_>, WorkError> {
        self.trees()?.wanted.get(id).ok_or_else(out_of_turn)
    }

    fn metadata(&self, id: u32) -> Result<Metadata, WorkError> {
        let entry = self.entry(id)?;
        Ok(Metadata { mode: entry.mode, mtime: entry.mtime })
    }

    /// Path of an entry in the root.
    fn path(&self, id: u32) -> Result<TreePath, WorkError> {
        let entry = self.entry(id)?;
        Ok(self.opened_tree()?.single.clone().unwrap_or_else(|| entry.path.to_path()))
    }

    /// Path of a basis, and its identity when it was listed.
    fn basis(&self, at: u32) -> Result<(TreePath, Identity), WorkError> {
        let path = self.trees()?.present.path(at).ok_or_else(out_of_turn)?;
        let seen = self.identity(at).ok_or_else(out_of_turn)?;
        Ok((self.opened_tree()?.single.clone().unwrap_or_else(|| path.to_path()), seen))
    }

    /// Identity of a present entry when it was listed.
    fn identity(&self, at: u32) -> Option<Identity> {
        self.identities()?.get(&self.trees.get()?.present, at)
    }

    fn identities(&self) -> Option<&Identities> {
        self.reordered.get().or_else(|| self.listed.get())
    }

    /// Opens a basis, if it is still the listed file.
    fn open_basis(&self, at: u32) -> Result<(File, Identity), WorkError> {
        let (path, seen) = self.basis(at)?;
        Ok((open_basis(self.root()?, &path, &seen).map_err(sink_error)?, seen))
    }

    /// Identity of the listed file or link that a rename is going to replace, if there is one. (A
    /// directory in its place has been removed.)
    fn seen(&self, id: u32) -> Result<Option<Identity>, WorkError> {
        let present = &self.trees()?.present;
        let at = present.position(self.entry(id)?.path);
        let replaced = at.filter(|&at| present.get(at).is_some_and(|entry| !entry.is_directory()));
        Ok(replaced.and_then(|at| self.identity(at)))
    }

    /// Records that the file in an entry's place is checked.
    fn settle_doubt(&self, id: u32) {
        let at = self.trees().ok().zip(self.entry(id).ok());
        at.and_then(|(trees, entry)| trees.present.position(entry.path)).into_iter().for_each(|at| {
            self.doubted().remove(&at);
        });
    }

    fn doubted(&self) -> MutexGuard<'_, HashSet<u32>> {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sinks(&self) -> MutexGuard<'_, HashMap<u32, Sink>> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Perform for Receiving {
    fn perform(&self, work: Work) -> Outcome {
        match work {
            Work::Open { subject, scope } => Outcome::Open(self.open(&subject, scope)),
            Work::Resolve(questions) => Outcome::Resolve(self.resolve(&questions)),
            Work::Plan { wanted, present, spelling, changes, writes, withheld, pair } => {
                // A round of a watch has not taken the lock yet.
                if let Err(error) = self.lock(changes) {
                    return Outcome::Plan(Err(error));
                }
                self.keep(withheld, pair);
                debug!(
                    "plan role=receiver wanted={} present={} changes={changes} writes={writes}",
                    wanted.len(),
                    present.len()
                );
                let _ = self.trees.set(Trees { wanted, present });
                self.take_spelling(spelling);
                self.ancestors.keep();
                if writes {
                    self.expect_files();
                }
                self.cancel_prehashes();
                Outcome::Plan(Ok(()))
            }
            Work::Sign(orders) => {
                Outcome::Sign(orders.iter().map(|order| (order.id, self.sign(order))).collect())
            }
            Work::SignWindows { id, at, windows } => {
                Outcome::SignWindows(id, self.sign_windows(id, at, &windows))
            }
            Work::SignFiles(files) => {
                Outcome::SignFiles(files.into_iter().map(|(id, at)| (id, self.sign_file(at))).collect())
            }
            Work::Cut { id, at, stretch } => Outcome::Cut(id, self.cut(id, at, stretch)),
            Work::Store(files) => Outcome::Store(self.store_all(&files)),
            Work::Sink { id, at, ops, end } => Outcome::Sink(id, self.sink(id, at, ops, end)),
            Work::Copy(files) => {
                Outcome::Copy(files.into_iter().map(|file| (file.id, self.copy(file))).collect())
            }
            Work::Apply(steps) => {
                Outcome::Apply(steps.into_iter().map(|step| (step, self.apply(step))).collect())
            }
            Work::Close { metadata, pair } => Outcome::Close(self.close(metadata, pair)),
            Work::LoadBaseline(_) => {
                let baseline = self.baseline.as_ref().and_then(Baseline::load);
                debug!("baseline role=receiver found={}", baseline.is_some());
                Outcome::LoadBaseline(baseline)
            }
            Work::StoreBaseline { manifest, ignores } => {
                super::store_baseline(self.baseline.as_ref(), &manifest, &ignores)
            }
            other => Outcome::Close(Err(WorkError::Fatal(
                AbortKind::Protocol,
                format!("a work that is not a receiver's: {:?}", std::mem::discriminant(&other)),
            ))),
        }
    }
}

fn sink_error(error: SinkError) -> WorkError {
    match error {
        SinkError::Disk(error) => work_error(&error, ProblemKind::Unwritable),
        SinkError::Basis(text) => {
            debug!("file role=receiver how=ask-again why={text}");
            WorkError::Entry(ProblemKind::Corrupt, text)
        }
        SinkError::Peer(text) => WorkError::Fatal(AbortKind::Protocol, text.to_owned()),
    }
}

/// Directories that were made for a destination, and that are removed again if the run fails early.
#[derive(Debug, Default)]
struct NewAncestors(Mutex<Vec<PathBuf>>);

impl NewAncestors {
    /// Notes directories that will be made, the deepest first.
    fn note(&self, paths: Vec<PathBuf>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = paths;
    }

    /// Keeps the directories: the plan will fill them, or they are the wanted result.
    fn keep(&self) {
        self.note(Vec::new());
    }
}

impl Drop for NewAncestors {
    fn drop(&mut self) {
        // A directory that is not empty belongs to somebody else by now.
        let paths = std::mem::take(self.0.get_mut().unwrap_or_else(PoisonError::into_inner));
        let _ = paths.iter().try_for_each(std::fs::remove_dir);
    }
}

fn unwritable(error: &std::io::Error) -> WorkError {
    WorkError::Entry(ProblemKind::Unwritable, format!("cannot read it: {error}"))
}

fn out_of_turn() -> WorkError {
    WorkError::Fatal(AbortKind::Protocol, "a work out of turn".to_owned())
}
