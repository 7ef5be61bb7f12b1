//! The receiver's half that decides which entries must change, and whether the deletions need
//! consent.

use std::sync::Arc;

use super::{Phase, Receiver, Resolved};
use crate::engine::brake::{self, Facts, KnownPair, MANY};
use crate::engine::plan::{Bases, Findings, Plan};
use crate::engine::transfer::Target;
use crate::engine::work::{Destination, Planned, ReceiverWork, RootMetadata};
use crate::monitor::{Braked, Event, Problem, ProblemKind};
use crate::tree::attributes::{Attributes, AttributesDiffer};
use crate::tree::compare::{Rules, below, has_more};
use crate::tree::effective::Mapping;
use crate::tree::entry::{EntryRef, Time};
use crate::tree::manifest::{Manifest, ManifestError};
use crate::tree::metadata::MetadataOptions;
use crate::tree::path::{TreePath, escape};
use crate::tree::spelling::{Answers, Questions};
use crate::tree::tree_id::{Pair, TreeId};
use crate::wire::hello::BackupOptions;
use crate::wire::message::{AbortKind, FromReceiver, Subject};

impl<T: Target> Receiver<T> {
    pub(super) fn compare_when_ready(&mut self) {
        if self.opened.is_some() && self.offer.complete.is_some() && !self.open_inaccessible() {
            if let Some(filter) = self.opened.as_mut().and_then(|opened| opened.filter.take()) {
                self.filter.take_rules(&filter);
            }
            self.leave_unclear();
            self.compare();
        }
    }

    /// Lists the destination again, with its closed directories opened to their owner, as far as
    /// the source has directories there. `false` if there are none, or none that was not tried.
    fn open_inaccessible(&mut self) -> bool {
        let found = self.opened.as_mut().map(|opened| std::mem::take(&mut opened.inaccessible));
        if self.config.options.dry_run {
            return false;
        }
        let is_wanted = |path: &TreePath| {
            let entry = self.wanted.position(path).and_then(|id| self.wanted.get(id));
            entry.is_some_and(|entry| entry.is_directory())
        };
        let inaccessible: Vec<TreePath> = found
            .into_iter()
            .flatten()
            .filter(|path| is_wanted(path) && !self.opened_up.contains(path))
            .collect();
        let Some(subject) = self.offer.subject.clone().filter(|_| !inaccessible.is_empty()) else {
            return false;
        };
        self.opened_up.extend(inaccessible.iter().cloned());
        // The listing locks the destination again.
        (self.opened, self.at_open) = (None, None);
        let scope = self.offer.scope.clone();
        self.outbox.start(ReceiverWork::Open { subject, scope, inaccessible });
        true
    }

    /// Gives the offered entries the metadata that this side can and may set.
    fn make_effective(&mut self) -> Result<(), ManifestError> {
        let (Some(opened), Some(options)) = (&mut self.opened, &self.config.options.metadata) else {
            return Ok(());
        };
        let Some(accounts) = opened.accounts.clone() else { return Ok(()) };
        let mut mapping = Mapping::new(options, &accounts, &self.offer.owners);
        self.wanted = Arc::new(mapping.tree(&self.offered, &opened.manifest)?);
        self.root_attributes = self.offer.root.as_ref().and_then(|root| mapping.attributes(root));
        Ok(())
    }

    /// Asks for a full round if this one may see only some names of a file.
    fn complete_hard_links(&mut self) {
        let is_linked = |attributes: &Arc<Attributes>| attributes.link.is_some();
        let options = &self.config.options;
        let has_links = options.metadata.as_ref().is_some_and(|metadata| metadata.hard_links)
            && (self.wanted.attributes().any(is_linked)
                || self.opened.iter().any(|opened| opened.manifest.attributes().any(is_linked)));
        if has_links && self.is_increment() && !options.dry_run {
            self.outbox.send(FromReceiver::Rescan);
        }
    }

    fn compare(&mut self) {
        // The answers about spelling rename present entries.
        if self.resolved == Resolved::No && !self.holds_plan() {
            return;
        }
        if self.undoes() {
            return;
        }
        if let Err(error) = self.make_effective() {
            return self.outbox.fail(AbortKind::Protocol, error.to_string());
        }
        let (Some(opened), Some(complete)) = (&self.opened, self.offer.complete) else { return };
        let options = &self.config.options;
        let metadata = options.metadata.as_deref();
        let is_superuser = opened.accounts.as_ref().is_some_and(|accounts| accounts.is_superuser);
        let of_user =
            if is_superuser && metadata.is_some_and(|metadata| metadata.owner) { 0o4000 } else { 0 };
        let of_group =
            if is_superuser && metadata.is_some_and(|metadata| metadata.group) { 0o2000 } else { 0 };
        let may_delete = complete && opened.complete;
        let rules = Rules {
            delete: (options.delete || self.is_undo) && may_delete && self.is_directory(),
            checksum: options.checksum,
            // Without this option set-id bits are never set, so they must not count either.
            mode_mask: if options.set_id_owner.is_some() { 0o7777 } else { 0o1777 | of_user | of_group },
            attributes: metadata.map(MetadataOptions::compared).unwrap_or_default(),
            time_rule: options.time_rule.unwrap_or(opened.time_rule),
            transfer: options.transfer,
            backs_up_beside: options.backup.as_ref().is_some_and(|backup| backup.directory.is_none()),
        };
        let withheld = options.delete && !may_delete;
        if !self.is_what_was_announced() {
            return self.outbox.protocol_error("other entries than the one that was announced");
        }
        let (wanted, present) = (Arc::clone(&self.wanted), Arc::clone(&opened.manifest));
        let destination = opened.destination.clone();
        let known = self.known(&destination);
        self.plan = self.plan_for(rules, &destination, &present);
        if let Some(questions) = self.questions(&present) {
            return self.on_open(|open| ReceiverWork::Resolve(open, questions));
        }
        let braked = self.brake(&destination, known, &present);
        let mut waiting = Vec::new();
        if braked.is_some() && !options.dry_run {
            if destination.is_round {
                waiting = self.plan.withheld(&present);
            }
            let mut plan = self.plan_for(Rules { delete: false, ..rules }, &destination, &present);
            plan.pass_over_obstacles(&self.plan);
            self.plan = plan;
        }
        if self.is_undo {
            self.plan.recall();
        } else {
            self.look_at_root(&destination, known);
        }
        self.tally.entries = self.wanted.len() as u64;
        self.tally.total_bytes = self.wanted.content_bytes();
        self.tell_unlisted();
        self.complete_hard_links();
        self.tell_unknown_names();
        if withheld {
            let cause = "nothing was deleted, since not everything could be listed".to_owned();
            self.outbox.problem(Problem { kind: ProblemKind::NotDeleted, path: Vec::new(), cause });
        }
        self.announce_plan(&present);
        let is_braked = braked.is_some();
        if let Some(braked) = braked {
            self.outbox.report(Event::Braked(braked));
        }
        if self.config.options.dry_run {
            self.begin_removable(rules);
            self.foresee_removals();
            self.tell_progress(false);
            self.plan.count(&self.wanted, &mut self.tally);
            self.outbox.send(FromReceiver::Finished(self.tally));
            return self.outbox.finish(self.tally);
        }
        self.begin_removable(rules);
        // Check the room before anything is written.
        if let Some(text) = self.missing_room() {
            return self.outbox.fail(AbortKind::Storage, text);
        }
        let after = match self.tree_after(&present) {
            Ok(after) => after,
            Err(error) => return self.outbox.fail(AbortKind::Destination, error.to_string()),
        };
        let pair = self.pair_up(&destination, known, &present, rules.delete, may_delete, is_braked);
        self.phase = Phase::Plan;
        let (writes, changes) = (!self.plan.fetch.is_empty(), self.plan.changes_anything());
        let spelling = Arc::clone(&self.spelling);
        let planned = Planned { wanted, present, spelling, changes, writes, withheld: waiting, pair, after };
        self.on_open(|open| ReceiverWork::Plan(open, planned));
    }

    /// Reports names of `--usermap` and `--groupmap` that nobody has here.
    fn tell_unknown_names(&mut self) {
        let (Some(opened), Some(options)) = (&self.opened, &self.config.options.metadata) else { return };
        let unknown = opened.accounts.as_ref().map(|accounts| accounts.unknown(options)).unwrap_or_default();
        for (what, name) in unknown {
            let cause = format!("there is no {what} {} here, so the rule has no effect", escape(&name));
            self.outbox.problem(Problem { kind: ProblemKind::Refused, path: Vec::new(), cause });
        }
    }

    /// Starts a work on the opened destination.
    fn on_open(&mut self, work: impl FnOnce(T::Opened) -> ReceiverWork<T>) {
        if let Some(open) = self.at_open.clone() {
            self.outbox.start(work(open));
        }
    }

    /// Excludes names that lead to entries outside a round's scope. Only a full round shows whether
    /// the source has these entries too, so the receiver asks for one.
    fn leave_unclear(&mut self) {
        let unclear = self.opened.as_mut().map(|opened| std::mem::take(&mut opened.unclear));
        let unclear = unclear.unwrap_or_default();
        if !unclear.is_empty() && !self.config.options.dry_run {
            self.outbox.send(FromReceiver::Rescan);
        }
        // `ReceiverWork::Plan` shares this value, but starts later.
        if let Some(spelling) = Arc::get_mut(&mut self.spelling) {
            unclear.iter().for_each(|path| spelling.leave_unclear(path, &self.wanted));
        }
    }

    /// Questions about names that the destination's filesystem must still answer.
    fn questions(&self, present: &Manifest) -> Option<Questions> {
        if self.resolved == Resolved::Yes || !self.is_directory() {
            return None;
        }
        let mut questions = Questions::of(&self.wanted, present, self.plan.created());
        if self.resolved == Resolved::Partly {
            questions.groups.clear();
        }
        Some(questions).filter(|questions| !questions.is_empty())
    }

    /// Takes in which names the filesystem folds, and compares again.
    pub(super) fn resolved(&mut self, answers: &Answers) {
        let present = self.opened.as_ref().map(|opened| Arc::clone(&opened.manifest)).unwrap_or_default();
        // `ReceiverWork::Plan` shares this value, but starts later.
        let mut spelling = std::mem::take(&mut self.spelling);
        let protects = |path: &TreePath, entry: EntryRef<'_>| self.protects(path, entry.is_directory());
        // Rules that protect an entry under its present name must protect it under the new one.
        let is_kept = |at: u32, new: &TreePath| {
            let Some(old) = present.get(at) else { return true };
            let top = old.path.to_path();
            let is_exposed = |entry: EntryRef<'_>| {
                let path = entry.path.to_path();
                let rest = path.as_bytes().get(top.as_bytes().len() + 1..);
                let renamed = rest.and_then(|rest| new.join(rest).ok());
                protects(&path, entry) && !renamed.is_some_and(|renamed| protects(&renamed, entry))
            };
            protects(&top, old) || below(&present, at).any(is_exposed)
        };
        let respelled = Arc::get_mut(&mut spelling)
            .and_then(|spelling| spelling.conclude(answers, &self.wanted, &present, is_kept));
        self.spelling = spelling;
        self.resolved = if respelled.is_some() { Resolved::Partly } else { Resolved::Yes };
        if let (Some(opened), Some((manifest, order))) = (&mut self.opened, respelled) {
            opened.manifest = Arc::new(manifest);
            opened.doubts = opened.doubts.reordered(&order);
        }
        self.compare();
    }

    fn plan_for(&self, rules: Rules, destination: &Destination, present: &Manifest) -> Plan {
        let options = &self.config.options;
        let has_staged = self.opened.as_ref().is_some_and(|opened| opened.has_staged);
        // An incremental round must not do what a full round was not allowed to.
        let waits: &[TreePath] = if self.is_increment() { &destination.withheld } else { &[] };
        let protects = |entry: EntryRef<'_>| {
            let path = entry.path.to_path();
            is_at_or_below(waits, &path)
                || self.spelling.protects(&path)
                || self.protects(&path, entry.is_directory())
        };
        let doubts = self.opened.as_ref().map(|opened| opened.doubts.clone()).unwrap_or_default();
        let metadata = options.metadata.as_deref();
        let accounts = self.opened.as_ref().and_then(|opened| opened.accounts.as_deref());
        let trees = self.opened.as_ref().and_then(|opened| opened.bases.as_deref());
        let bases = trees
            .zip(options.bases.as_ref())
            .map(|(trees, options)| Bases { trees, purpose: options.purpose });
        let findings = Findings {
            doubts: &doubts,
            spelling: &self.spelling,
            has_staged,
            hard_links: metadata.is_some_and(|metadata| metadata.hard_links),
            copies_devices: metadata.is_some_and(|metadata| metadata.devices),
            copies_specials: metadata.is_some_and(|metadata| metadata.specials),
            skips_devices: accounts.is_some_and(|accounts| !accounts.is_superuser),
            bases,
        };
        let mut plan = Plan::new(&self.wanted, present, findings, rules, protects, options.links);
        if !waits.is_empty() {
            // An earlier round already reported that they wait.
            plan.drop_obstacles();
        }
        plan
    }

    /// True if rules keep the entry, or forbid removals there, or it may be a backup.
    fn protects(&self, path: &TreePath, is_directory: bool) -> bool {
        let options = &self.config.options;
        // As with rsync, `--delete-excluded` takes such backups too.
        let is_backup =
            |backup: &BackupOptions| !options.delete_excluded && backup.is_name_of_backup(path.name());
        self.opened.as_ref().is_some_and(|opened| opened.kept.holds(path))
            || self.excludes(path, is_directory)
            || options.backup.as_ref().is_some_and(is_backup)
    }

    /// True if rules keep the entry.
    pub(super) fn excludes(&self, path: &TreePath, is_directory: bool) -> bool {
        if self.filter.is_sided() {
            self.excludes_here(path, is_directory) || self.filter.excludes_tree()
        } else {
            self.filter.excludes_within(path, is_directory)
        }
    }

    /// The same where the receiver may protect what the sender offers, as rsync decides it. An
    /// offered directory protects nothing in it, and one that goes may itself be in one that goes.
    fn excludes_here(&self, path: &TreePath, is_directory: bool) -> bool {
        let offered = |path: &TreePath| {
            let entry = self.wanted.position(path).and_then(|id| self.wanted.get(id))?;
            Some(entry.is_directory())
        };
        // A directory in the place of a wanted file: only what is in it counts.
        let mut is_replaced = offered(path) == Some(false) && is_directory;
        let (mut at, mut is_directory) = (path.clone(), is_directory);
        loop {
            let parent = at.parent();
            let above = parent.as_ref().map_or(Some(true), offered);
            let is_protected = if above == Some(true) {
                self.filter.excludes(&at, is_directory)
            } else {
                self.filter.protects_in_deleted(&at, is_directory)
            };
            if is_protected && !is_replaced {
                return true;
            }
            match parent {
                Some(parent) if above.is_none() => (at, is_directory, is_replaced) = (parent, true, false),
                _ => return false,
            }
        }
    }

    /// The source's identity, and its own mode and time.
    fn source(&self) -> Option<(TreeId, (u16, Time))> {
        match self.offer.subject {
            Some(Subject::Directory { mode, seconds, nanos, tree_id }) => {
                Some((tree_id, (mode, Time::new(seconds, nanos)?)))
            }
            _ => None,
        }
    }

    fn known(&self, destination: &Destination) -> KnownPair {
        self.source().map_or(KnownPair::default(), |(source, _)| KnownPair::of(&source, destination))
    }

    /// Returns the deletions that need consent, if any do.
    fn brake(&self, destination: &Destination, known: KnownPair, present: &Manifest) -> Option<Braked> {
        let (consent, going) = (&self.config.options.consent, self.plan.going());
        // An undo removes what the run made, and nothing else.
        if going == 0 || self.is_undo {
            return None;
        }
        let source = self.source().map(|(source, _)| source).unwrap_or_default();
        let is_protected = |entry: &EntryRef<'_>| self.protects(&entry.path.to_path(), entry.is_directory());
        let is_counted = going >= MANY && !consent.yes && !self.is_increment();
        // Where their number decides nothing, skip evaluating the rules for each entry.
        let protected = if is_counted { present.entries().filter(is_protected).count() as u64 } else { 0 };
        let facts = Facts {
            going,
            lost: self.plan.lost(present),
            held: (present.len() as u64).saturating_sub(protected),
            is_empty: self.wanted.is_empty(),
            is_seen: self.is_increment(),
            known,
            source,
            yes: consent.yes,
            agreed: consent.agreed,
            max_delete: consent.max_delete,
            is_protected: destination.is_protected,
            is_forced: destination.is_forced,
        };
        let reason = brake::decide(&facts)?;
        Some(Braked { reason, going, held: facts.held, head: self.plan.head(present) })
    }

    /// Decides the root's own mode and time. Where ksync made the root, both become the source's;
    /// otherwise the root keeps its mode.
    fn look_at_root(&mut self, destination: &Destination, known: KnownPair) {
        let Some((_, (mode, time))) = self.source() else { return };
        let is_own = destination.is_new || known.pair.is_some_and(|pair| pair.is_own);
        let mode = match destination.metadata {
            _ if is_own => Some(mode),
            Some(_) if destination.is_ours => None,
            _ => return,
        };
        let attributes = self.root_attributes.clone().filter(|_| is_own);
        // Metadata of a root that this run makes is no change of its own.
        if let Some(present) = destination.metadata.filter(|_| !destination.is_new) {
            let compared = self.config.options.metadata.as_ref().map(|metadata| metadata.compared());
            let compared = compared.filter(|_| is_own).unwrap_or_default();
            let (wanted, old) = (attributes.as_deref(), destination.attributes.as_deref());
            let differ = AttributesDiffer::of(wanted, old, compared);
            self.plan.set_root((mode.unwrap_or(present.0), time), present, differ);
        }
        self.metadata = Some(RootMetadata { mode, mtime: time, attributes });
    }

    /// Decides the new pair of both sides. Where the destination held nothing, all entries in
    /// it will be the source's, even if this run does not finish.
    fn pair_up(
        &mut self,
        destination: &Destination,
        known: KnownPair,
        present: &Manifest,
        deletes: bool,
        is_complete: bool,
        is_braked: bool,
    ) -> Option<Pair> {
        let (source, _) = self.source().filter(|_| !self.offer.is_partial && !self.is_undo)?;
        let pair = Pair {
            source,
            destination: destination.tree_id,
            was_empty: self.wanted.is_empty(),
            is_own: destination.is_new || known.pair.is_some_and(|pair| pair.is_own),
        };
        self.pair = Some(pair);
        let protects = |entry: EntryRef<'_>| self.protects(&entry.path.to_path(), entry.is_directory());
        self.will_be_copy = is_complete
            && !is_braked
            && !self.plan.has_obstacles()
            && !self.spelling.is_partial()
            && (deletes || !has_more(&self.wanted, present, protects));
        let was_empty = destination.is_new || present.is_empty() && self.is_listed() && known.pair.is_none();
        if was_empty && self.is_news(&pair) {
            self.outbox.report(Event::Paired(pair));
        }
        was_empty.then_some(pair)
    }

    /// True if the client does not have this pair yet.
    pub(super) fn is_news(&self, pair: &Pair) -> bool {
        let history = self.opened.as_ref().map(|opened| opened.destination.history);
        history.is_none_or(|history| {
            history.pair != Some(*pair) || history.session.is_some_and(|session| session.is_other)
        })
    }

    fn is_listed(&self) -> bool {
        self.opened.as_ref().is_some_and(|opened| opened.complete)
    }
}

/// True if a path is one of these or below one. The paths are in order, and none is below another.
fn is_at_or_below(paths: &[TreePath], path: &TreePath) -> bool {
    let next = paths.partition_point(|other| other <= path);
    let before = next.checked_sub(1).and_then(|last| paths.get(last));
    before.is_some_and(|before| before == path || path.is_below(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_deletion_covers_its_path_and_everything_below() {
        let path = |text: &str| TreePath::new(text.as_bytes()).unwrap();
        let paths = [path("a/b"), path("c")];
        for (text, expected) in
            [("a", false), ("a/b", true), ("a/b/c", true), ("a/bc", false), ("c", true), ("d", false)]
        {
            assert_eq!(is_at_or_below(&paths, &path(text)), expected, "{text}");
        }
    }
}
