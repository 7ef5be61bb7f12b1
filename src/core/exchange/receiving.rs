//! `Receiving`: performs the works of a receiver. This file finds the code of each work; the
//! modules below hold it.

mod backups;
mod basis_trees;
mod contents;
mod destination;
mod directories;
mod draft;
mod names;
mod plan;
mod room;
mod spelling;
mod target;
mod tree;
mod undo;
mod undoing;

pub use tree::{OpenTree, PlannedTree};

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::SystemTime;

use crate::content::blocks::BlockSize;
use crate::disk::baseline::Baseline;
use crate::engine::transfer::receive::{look, step_all};
use crate::engine::{Query, Receiver, ReceiverOutcome, ReceiverWork, ReportOrder};
use crate::exchange::common::store_baseline;
use crate::exchange::kept_trees::KeptTrees;
use crate::exchange::prefetch::{Prehashes, Priority, candidates};
use crate::exchange::receiver_session::ReceiverSession;
use crate::exchange::run::Perform;
use crate::log::{self, debug};
use crate::tree::change::Rebuild;
use crate::wire::hello::Options;

/// The receiver of files on this machine.
pub type FileReceiver = Receiver<Arc<PlannedTree>>;

/// Performs the works on a destination.
pub struct Receiving {
    path: PathBuf,
    options: Options,
    baseline: Option<Baseline>,
    session: Option<Arc<ReceiverSession>>,
    kept: Option<Arc<KeptTrees>>,
    prehashes: Arc<Prehashes>,
    ancestors: NewAncestors,
}

impl Receiving {
    /// Makes a receiver that writes to `path`.
    #[must_use]
    pub fn new(path: PathBuf, options: Options) -> Self {
        let (prehashes, ancestors) = (Arc::default(), NewAncestors::default());
        Self { path, options, baseline: None, session: None, kept: None, prehashes, ancestors }
    }

    /// Sets the store of the baseline, if there is one.
    #[must_use]
    pub fn with_baseline(self, baseline: Option<Baseline>) -> Self {
        Self { baseline, ..self }
    }

    /// Sets where scans are kept for the next run, if they are.
    #[must_use]
    pub fn keeping(self, kept: Option<Arc<KeptTrees>>) -> Self {
        Self { kept, ..self }
    }

    /// Makes this one of several rounds.
    pub(super) fn in_session(self, session: Arc<ReceiverSession>) -> Self {
        Self { session: Some(session), ..self }
    }

    /// Starts to prehash large files of the destination that the sender will probably ask about.
    /// This serves a receiver that waits for an offer, perhaps of a single file called `name`.
    /// Files that changed a moment before `now` are excluded.
    #[must_use]
    pub fn prehashing(self, name: Option<Vec<u8>>, now: SystemTime) -> Self {
        // With --checksum the scan hashes every file anyway.
        if self.options.dry_run || self.options.checksum {
            return self;
        }
        let (prehashes, path) = (Arc::clone(&self.prehashes), self.path.clone());
        let begin = move || {
            for (file, identity) in candidates(&path, name.as_deref(), now) {
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
}

impl Perform<Receiver<Arc<PlannedTree>>> for Receiving {
    fn perform(&self, work: ReceiverWork<Arc<PlannedTree>>) -> ReceiverOutcome<Arc<PlannedTree>> {
        match work {
            ReceiverWork::Open { subject, scope, inaccessible } => {
                ReceiverOutcome::Open(self.open(&subject, scope, &inaccessible))
            }
            ReceiverWork::Resolve(open, questions) => {
                ReceiverOutcome::Resolve(self.resolve(&open, &questions))
            }
            ReceiverWork::Plan(open, planned) => ReceiverOutcome::Plan(self.plan(open, planned)),
            ReceiverWork::LoadBaseline(_) => {
                let baseline = self.baseline.as_ref().and_then(Baseline::load);
                let baseline = baseline.map(|record| Rebuild::new(record).ahead());
                debug!("baseline role=receiver found={}", baseline.is_some());
                ReceiverOutcome::LoadBaseline(baseline)
            }
            ReceiverWork::StoreBaseline { manifest, ignores } => {
                store_baseline(self.baseline.as_ref(), &manifest, &ignores);
                ReceiverOutcome::StoreBaseline
            }
            ReceiverWork::Look { target, id, at, facts, samples } => {
                let looked = look(&target, at, &facts, samples.as_ref());
                debug!("look role=receiver size={} {looked:?}", facts.size);
                ReceiverOutcome::Look(id, looked)
            }
            ReceiverWork::Report(tree, orders) => {
                let report = |ReportOrder { mut transfer, strategy, may_be_staged }: ReportOrder<_>| {
                    let reported = transfer.report(&tree, strategy, may_be_staged);
                    if log::is_on() {
                        tree.log_report(transfer.id(), &reported);
                    }
                    (transfer, reported)
                };
                ReceiverOutcome::Report(orders.into_iter().map(report).collect())
            }
            ReceiverWork::Query(tree, queries) => {
                let reply = |(id, basis, query): (u32, _, Query)| (id, query.reply(&tree, basis));
                ReceiverOutcome::Query(queries.into_iter().map(reply).collect())
            }
            ReceiverWork::Step(tree, steps) => ReceiverOutcome::Step(step_all(&tree, steps)),
            ReceiverWork::Apply(tree, steps) => {
                ReceiverOutcome::Apply(steps.into_iter().map(|step| (step, tree.apply(step))).collect())
            }
            ReceiverWork::Close { target, metadata, pair } => {
                ReceiverOutcome::Close(self.close(&target, metadata, pair))
            }
            ReceiverWork::Confirm(tree, ids) => {
                let (mut removable, mut missing) = (Vec::new(), Vec::new());
                for id in ids {
                    match tree.fingerprint(id) {
                        Some(fingerprint) => removable.push((id, fingerprint)),
                        None => missing.push(id),
                    }
                }
                ReceiverOutcome::Confirm { removable, missing }
            }
        }
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
}

impl Drop for NewAncestors {
    fn drop(&mut self) {
        // A directory that is not empty belongs to somebody else by now.
        let paths = std::mem::take(self.0.get_mut().unwrap_or_else(PoisonError::into_inner));
        let _ = paths.iter().try_for_each(std::fs::remove_dir);
    }
}
