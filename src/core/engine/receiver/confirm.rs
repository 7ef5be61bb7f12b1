//! The receiver's half that tells a sender which files and links it may remove from its source.
//!
//! An entry is in place if it was found identical, or made without any problem. When the
//! destination is complete, each is looked at once more. Only then the sender learns of it, so an
//! earlier end of the run removes nothing.

use std::collections::BTreeSet;

use super::Receiver;
use crate::engine::transfer::Target;
use crate::engine::work::ReceiverWork;
use crate::monitor::{Event, Problem, ProblemKind};
use crate::tree::compare::{Change, Rules};
use crate::tree::entry::{EntryRef, Kind};
use crate::wire::message::{FromReceiver, LIST_MAX};

impl<T: Target> Receiver<T> {
    /// Finds the entries that are in place already, once the plan is made.
    pub(super) fn begin_removable(&mut self, rules: Rules) {
        self.removable.is_wanted = self.config.options.remove_source;
        let Some(opened) = self.opened.as_ref().filter(|_| self.removable.is_wanted) else { return };
        let changed: BTreeSet<u32> = self
            .plan
            .changes
            .iter()
            .filter_map(|change| change.wanted())
            .chain(self.plan.skipped())
            .collect();
        let is_there = |id: u32, entry: EntryRef<'_>| {
            let old = opened.manifest.position(entry.path).and_then(|at| opened.manifest.get(at));
            !changed.contains(&id)
                && !self.spelling.leaves_out(id)
                && !rules.transfer.passes_over(entry, old, rules.time_rule)
                && old.is_some_and(|old| is_same(entry, old))
        };
        let entries = self.wanted.iter().filter(|(id, entry)| is_there(*id, *entry));
        self.removable.ids = entries.map(|(id, _)| id).collect();
    }

    /// In a dry run, lists what a run would remove from the source, if all goes well.
    pub(super) fn foresee_removals(&mut self) {
        let mut ids = std::mem::take(&mut self.removable.ids);
        if !self.removable.is_wanted || !self.config.options.list_changes {
            return;
        }
        let made = self.plan.changes.iter().filter(|change| !matches!(change, Change::Obstacle { .. }));
        ids.extend(made.filter_map(|change| change.wanted()));
        ids.retain(|id| self.is_removable(*id));
        for id in ids {
            let path = self.path(id);
            self.outbox.report(Event::SourceRemoved { path });
        }
    }

    fn is_removable(&self, id: u32) -> bool {
        let kind = self.wanted.get(id).map(|entry| entry.kind);
        kind.is_some_and(|kind| !matches!(kind, Kind::Directory) && !kind.is_special())
    }

    /// Looks at the entries once more, some at a time, before the run is finished.
    pub(super) fn confirm(&mut self) {
        if !self.removable.is_awaited {
            let ids = std::mem::take(&mut self.removable.ids);
            self.removable.ids = ids.into_iter().filter(|id| self.is_removable(*id)).collect();
        }
        let now: Vec<u32> = self.removable.ids.iter().take(LIST_MAX).copied().collect();
        if now.is_empty() {
            return self.finish_when_ready();
        }
        self.removable.is_awaited = true;
        self.on_target(|target| ReceiverWork::Confirm(target, now));
    }

    pub(super) fn confirmed(&mut self, entries: Vec<(u32, u64)>, missing: &[u32]) {
        for id in missing {
            let (path, cause) = (self.path(*id), "DEST does not have it as it was sent".to_owned());
            self.outbox.problem(Problem { kind: ProblemKind::NotRemoved, path, cause });
        }
        for id in entries.iter().map(|(id, _)| id).chain(missing) {
            self.removable.ids.remove(id);
        }
        let is_last = self.removable.ids.is_empty();
        self.outbox.send(FromReceiver::Removable { entries, is_last });
        if !is_last {
            self.confirm();
        }
    }

    /// The sender has removed all that was in place.
    pub(super) fn removed(&mut self) {
        if !self.removable.is_awaited || !self.removable.ids.is_empty() {
            return self.outbox.protocol_error("removals that nobody asked for");
        }
        self.removable.is_awaited = false;
        self.finish_when_ready();
    }
}

/// True if what the destination has is a copy, as far as its kind, length and target tell.
fn is_same(entry: EntryRef<'_>, old: EntryRef<'_>) -> bool {
    match (entry.kind, old.kind) {
        (Kind::File { size, .. }, Kind::File { size: old_size, .. }) => size == old_size,
        (Kind::Symlink { target }, Kind::Symlink { target: old_target }) => target == old_target,
        _ => false,
    }
}
