//! The undo of an earlier run: the performer knows the tree to make, and the offer does not count.

use std::sync::Arc;

use super::Receiver;
use crate::engine::transfer::Target;
use crate::engine::work::RootMetadata;
use crate::monitor::{Event, Problem, ProblemKind};
use crate::tree::manifest::{Manifest, ManifestError};
use crate::wire::hello::Undo;
use crate::wire::message::FromReceiver;

impl<T: Target> Receiver<T> {
    /// Takes in what is to be undone, if the options ask for it. True if the run has ended, since
    /// runs were only to be listed.
    pub(super) fn undoes(&mut self) -> bool {
        let undoing = self.opened.as_mut().and_then(|opened| opened.undoing.take());
        let Some(undoing) = undoing else { return false };
        for (run, files, bytes) in undoing.runs {
            self.outbox.report(Event::Stored { run, files, bytes });
        }
        let Some(wanted) = undoing.wanted else {
            self.outbox.send(FromReceiver::Finished(self.tally));
            self.outbox.finish(self.tally);
            return true;
        };
        self.is_undo = true;
        (self.offered, self.wanted) = (Arc::clone(&wanted), wanted);
        self.metadata = undoing.root_time.map(|mtime| RootMetadata { mode: None, mtime, attributes: None });
        for path in undoing.conflicts {
            let cause = "it changed after the run that is undone".to_owned();
            self.outbox.problem(Problem {
                kind: ProblemKind::Conflict,
                path: path.as_bytes().to_vec(),
                cause,
            });
        }
        false
    }

    /// The whole destination after a run that changes something, if it is to be kept for an undo.
    pub(super) fn tree_after(&self, present: &Manifest) -> Result<Option<Manifest>, ManifestError> {
        let is_kept = matches!(self.config.options.undo, Undo::Keep(_));
        let changes = self.plan.changes_anything() || self.plan.root.is_some();
        if is_kept && changes { self.plan.after(&self.wanted, present).map(Some) } else { Ok(None) }
    }
}
