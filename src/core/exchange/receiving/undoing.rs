//! Finds and undoes an earlier run, and makes the store of the present one.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::disk::error::DiskError;
use crate::disk::undo::UndoRun;
use crate::disk::writable::WritableRoot;
use crate::engine::{Opened, Undoing, WorkError};
use crate::exchange::common::{chain, metadata_error, unwritable};
use crate::exchange::receiving::Receiving;
use crate::exchange::receiving::tree::{OpenTree, PlannedTree, unknown};
use crate::exchange::receiving::undo::{Kept, Undone};
use crate::log::debug;
use crate::monitor::ProblemKind;
use crate::tree::entry::Kind;
use crate::tree::manifest::Manifest;
use crate::tree::path::escape;
use crate::tree::undo::undone;
use crate::wire::hello::Undo;
use crate::wire::message::AbortKind;

impl Receiving {
    /// Finds the run to undo and merges its trees with the listed one; or lists all runs.
    pub(super) fn find_undo(
        &self,
        root: &WritableRoot,
        tree: &mut OpenTree,
        opened: &mut Opened,
    ) -> Result<(), WorkError> {
        let failed = |error: &DiskError| WorkError::Fatal(AbortKind::Destination, chain(error));
        let Undo::Restore(id) = self.options.undo else {
            let runs = UndoRun::list(root).map_err(|error| failed(&error))?;
            let runs = runs.iter().map(|run| (run.id, run.files, run.bytes)).collect();
            opened.undoing = Some(Undoing { runs, ..Undoing::default() });
            return Ok(());
        };
        let shown = escape(&opened.path).into_owned();
        let run = UndoRun::find(root, id).map_err(|error| failed(&error))?;
        let Some(run) = run else {
            let what = id.map_or_else(|| "no run that can be undone".to_owned(), |id| format!("no run {id}"));
            return Err(WorkError::Fatal(AbortKind::Selection, format!("{shown} keeps {what}")));
        };
        let trees = run.trees().map_err(|error| failed(&error))?;
        // Without records the run was killed before its first change.
        let (wanted, conflicts) = match trees {
            Some((before, after)) => {
                let merged = undone(&before, &after, &opened.manifest, opened.time_rule)
                    .map_err(|error| WorkError::Fatal(AbortKind::Destination, error.to_string()))?;
                (Arc::new(merged.manifest), merged.conflicts)
            }
            None => (Arc::clone(&opened.manifest), Vec::new()),
        };
        debug!("undo role=receiver run={} conflicts={}", run.id, conflicts.len());
        let root_time = run.root_time().filter(|_| conflicts.is_empty());
        let is_complete = conflicts.is_empty();
        opened.undoing = Some(Undoing { wanted: Some(wanted), conflicts, root_time, runs: Vec::new() });
        tree.undone = Some(Undone::new(run, is_complete));
        Ok(())
    }

    /// Makes the store of a run, before its first change.
    pub(super) fn keep_for_undo(
        &self,
        open: &OpenTree,
        root: &WritableRoot,
        before: &Manifest,
        after: &Manifest,
    ) -> Result<Kept, WorkError> {
        let Undo::Keep(keep) = self.options.undo else {
            return Err(WorkError::Fatal(AbortKind::Protocol, "nothing is to be kept".to_owned()));
        };
        if open.single.is_some() {
            let text = "an undo is kept of directories, and the source is a single file".to_owned();
            return Err(WorkError::Fatal(AbortKind::Destination, text));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        let before = (before, open.root_time);
        UndoRun::create(root, now, keep, before, after).map(Kept::new).map_err(unwritable).map_err(|error| {
            match error {
                // Nothing may change that cannot be kept.
                WorkError::Entry(_, text) => WorkError::Fatal(AbortKind::Destination, text),
                error => error,
            }
        })
    }
}

impl PlannedTree {
    /// Puts a file back from the store. A file that is not stored lost only its mode and time.
    pub(super) fn recall(&self, id: u32) -> Result<(), WorkError> {
        let (entry, seen) = (self.entry(id)?.to_entry(), self.seen(id)?);
        let Some(undone) = &self.open.undone else { return Err(unknown()) };
        if let Some(at) = self.position(id)?
            && self.present.get(at).is_some_and(|entry| entry.is_directory())
        {
            self.clear(at)?;
        }
        let is_back = undone.run().recall(&self.root, &entry, seen.as_ref()).map_err(unwritable)?;
        self.settle_doubt(id);
        match (is_back, seen) {
            (true, _) => Ok(()),
            (false, Some(seen)) if matches!(entry.kind, Kind::File { size, .. } if size == seen.size) => {
                self.root.set_file(&entry.path, &self.metadata(id)?, &seen).map(drop).map_err(metadata_error)
            }
            (false, _) => {
                let text = "what it was is not in the store".to_owned();
                Err(WorkError::Entry(ProblemKind::Conflict, text))
            }
        }
    }
}
