//! The receiver session: state that a receiver keeps from one round to the next.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::disk::error::DiskError;
use crate::disk::root::Pin;
use crate::disk::writable::WritableRoot;
use crate::tree::path::TreePath;
use crate::tree::time_rule::TimeRule;
use crate::tree::tree_id::Pair;
use crate::wire::hello::{History, InSession};

/// Receiver session: state that a receiver keeps from one round to the next.
#[derive(Debug, Default)]
pub(super) struct ReceiverSession(Mutex<State>);

#[derive(Debug, Default)]
pub(super) struct State {
    /// The directory that the rounds write to.
    root: Option<Pin>,
    /// Start of the last round.
    pub(super) begun: Option<Instant>,
    /// True if the last round was full.
    pub(super) is_full: bool,
    /// The pair of source and destination, once a round has found it out.
    pub(super) pair: Option<Pair>,
    /// Deletions that the last full round planned and may not do.
    withheld: Arc<Vec<TreePath>>,
    /// The rule for times on the root's filesystem, once it was needed.
    pub(super) time_rule: Option<TimeRule>,
    /// Names that the filesystem shows differently, in order, as found by the last full round.
    pub(super) aliases: Arc<Vec<TreePath>>,
}

impl ReceiverSession {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Begins a round into this root. `false` if an incremental round would go into another root
    /// than the rounds before.
    pub(super) fn begin(&mut self, root: Option<&WritableRoot>, is_full: bool) -> Result<bool, DiskError> {
        (self.begun, self.is_full) = (Some(Instant::now()), is_full);
        let is_same = match (&self.root, root) {
            (Some(last), Some(root)) => last.is(root),
            (None, None) => true,
            _ => false,
        };
        if !is_same {
            self.root = root.map(|root| root.pin()).transpose()?;
            self.time_rule = None;
        }
        Ok(is_full || is_same)
    }

    /// The facts known before the first round, updated by later rounds; and the withheld deletions.
    pub(super) fn history(&self, first: History) -> (History, Arc<Vec<TreePath>>) {
        let history = match (self.pair, first.session) {
            (None, _) => first,
            // The rounds found the pair out about this very VM.
            (pair, session) => {
                History { pair, session: session.map(|session| InSession { is_other: false, ..session }) }
            }
        };
        (history, Arc::clone(&self.withheld))
    }

    /// Stores the deletions that a full round may not do, and the names that it found shown
    /// differently. An incremental round says nothing about the former and does not look for the
    /// latter.
    pub(super) fn planned(&mut self, withheld: Vec<TreePath>, mut aliases: Vec<TreePath>) {
        if self.is_full {
            aliases.sort_unstable();
            (self.withheld, self.aliases) = (Arc::new(withheld), Arc::new(aliases));
        }
    }
}
