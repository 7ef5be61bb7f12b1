//! The receiver session: state that a receiver keeps from one round to the next.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::disk::error::DiskError;
use crate::disk::root::Pin;
use crate::disk::writable::WritableRoot;
use crate::tree::path::TreePath;
use crate::tree::tree_id::Pair;
use crate::wire::hello::{History, InSession};

/// Receiver session: state that a receiver keeps from one round to the next.
#[derive(Debug, Default)]
pub(super) struct ReceiverSession {
    /// The directory that the rounds write to.
    root: Mutex<Option<Pin>>,
    begun: Mutex<Option<Instant>>,
    is_full: AtomicBool,
    /// The pair of source and destination, once a round has found it out.
    pair: Mutex<Option<Pair>>,
    /// Deletions that the last full round planned and may not do.
    withheld: Mutex<Arc<Vec<TreePath>>>,
    /// Names that the filesystem shows differently, as found by the last full round.
    aliases: Mutex<Arc<Vec<TreePath>>>,
}

impl ReceiverSession {
    /// Takes the start of the last round.
    pub(super) fn take_begun(&self) -> Option<Instant> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// True if the last round was full.
    pub(super) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Begins a round into this root. `false` if an incremental round would go into another root
    /// than the rounds before.
    pub(super) fn begin(&self, root: Option<&WritableRoot>, is_full: bool) -> Result<bool, DiskError> {
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.is_full.store(is_full, Ordering::Relaxed);
        let mut last = self.root.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = match (&*last, root) {
            (Some(last), Some(root)) => last.is(root),
            (None, None) => true,
            _ => false,
        };
        if !is_same {
            *last = root.map(|root| root.pin()).transpose()?;
        }
        Ok(is_full || is_same)
    }

    /// The facts known before the first round, updated by later rounds; and the withheld deletions.
    pub(super) fn history(&self, first: History) -> (History, Arc<Vec<TreePath>>) {
        let pair = *self.pair.lock().unwrap_or_else(PoisonError::into_inner);
        let history = match (pair, first.session) {
            (None, _) => first,
            // The rounds found the pair out about this very VM.
            (Some(_), session) => {
                History { pair, session: session.map(|session| InSession { is_other: false, ..session }) }
            }
        };
        (history, Arc::clone(&self.withheld.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Stores the pair for later rounds.
    pub(super) fn store_pair(&self, pair: Pair) {
        *self.pair.lock().unwrap_or_else(PoisonError::into_inner) = Some(pair);
    }

    /// Stores the names that a full round found shown differently. An incremental round does not
    /// look for such names.
    pub(super) fn know_aliases(&self, mut paths: Vec<TreePath>) {
        paths.sort_unstable();
        if self.is_full.load(Ordering::Relaxed) {
            *self.aliases.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(paths);
        }
    }

    /// Names that the filesystem shows differently, in order.
    pub(super) fn aliases(&self) -> Arc<Vec<TreePath>> {
        Arc::clone(&self.aliases.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stores the deletions that a full round may not do. An incremental round says nothing about
    /// them.
    pub(super) fn withhold(&self, paths: Vec<TreePath>) {
        if self.is_full.load(Ordering::Relaxed) {
            *self.withheld.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(paths);
        }
    }
}
