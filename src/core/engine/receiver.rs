//! The receiver decides which entries must change, asks for missing contents and puts them in
//! place. This file holds the phases that run once, in order. `content` asks for contents and takes
//! them in; `take_offer` takes in the manifest.
//!
//! ```text
//! Subject ─► Open   Entries… Offered ─► compare ─► Plan ─► Apply (clear, directories)
//! Baseline ─► LoadBaseline ─► [BaselineMissing]   └► [Resolve ─► compare]
//!                          Changes… Changed ─► compare    └► [[Look ─►] Report ─►] Wants
//! Answers (steps) ─► Step    Answers (questions) ─► Query ─► Replies
//! all answered ─► Apply (links, times) ─► Apply (moves) ─► Apply (removals)
//!              ─► Apply (directory times) ─► Close ─► [Confirm ─► Removable… Removed ─►] Finished
//! ```
//! The receiver stores the offer as the baseline (`StoreBaseline`) meanwhile, as soon as the plan
//! is made.

mod confirm;
mod content;
mod content_progress;
mod decide;
mod missing_file;
mod offer;
mod plan_tie;
mod removable;
mod take_offer;
mod undo;

use std::collections::HashSet;
use std::sync::Arc;

use crate::engine::contract::{Config, Engine, Input, Output, RunError};
use crate::engine::error::WorkError;
use crate::engine::ids::IdMap;
use crate::engine::need::Need;
use crate::engine::outbox::Outbox;
use crate::engine::plan::{Item, Listing, Plan};
use crate::engine::transfer::Target;
use crate::engine::window::Window;
use crate::engine::work::{Opened, ReceiverOutcome, ReceiverWork, RootMetadata, Step};
use crate::monitor::{Action, Differs, Event};
use crate::tree::attributes::Attributes;
use crate::tree::compare::below;
use crate::tree::entry::EntryRef;
use crate::tree::filter::Filter;
use crate::tree::manifest::Manifest;
use crate::tree::path::{TreePath, escape};
use crate::tree::path_ref::PathRef;
use crate::tree::spelling::Spelling;
use crate::tree::tree_id::Pair;
use crate::wire::message::{AbortKind, FromReceiver, FromSender, Subject, Tally, Want};
use content_progress::ContentProgress;
use missing_file::{HELD_BYTES_MAX, MissingFile};
use offer::Offer;
use removable::Removable;

/// Most steps of one `Apply`: few enough to notice a cut connection in time.
const STEPS_MAX: usize = 1024;

/// The side that wants the files.
#[derive(Debug)]
pub struct Receiver<T: Target> {
    config: Config,
    outbox: Outbox<FromReceiver, ReceiverWork<T>>,
    phase: Phase,
    offer: Offer,
    filter: Filter,
    opened: Option<Opened>,
    /// The opened destination, until the plan is made.
    at_open: Option<T::Opened>,
    /// Directories that were closed to their owner when the destination was listed.
    opened_up: HashSet<TreePath>,
    /// The destination, once the plan is made.
    target: Option<T>,
    /// The offer as it came.
    offered: Arc<Manifest>,
    /// The same with the metadata that this side may set: names, order and contents are those of
    /// the offer.
    wanted: Arc<Manifest>,
    /// The names that the destination's filesystem folds into one.
    spelling: Arc<Spelling>,
    /// Progress of asking about them.
    resolved: Resolved,
    plan: Plan,
    /// The lines of changes that have not happened, if changes are listed.
    listing: Listing,
    /// Lines of changes that have happened since the last report, with their places in the list.
    happened: Vec<(usize, Event)>,
    tally: Tally,
    progress: ContentProgress,
    /// The pair of source and destination after this run.
    pair: Option<Pair>,
    /// The root's own metadata, as far as it must be set.
    metadata: Option<RootMetadata>,
    /// The root's own attributes, as this side may set them.
    root_attributes: Option<Arc<Attributes>>,
    /// True if the run undoes an earlier one: the tree to make is not the offered one.
    is_undo: bool,
    /// True if the destination will hold only wanted and protected entries.
    will_be_copy: bool,
    /// The entries that the sender may remove from its source.
    removable: Removable,
    /// True once the destination is complete.
    closed: bool,
    /// Wants that are not sent yet.
    batch: Vec<Want>,
    batch_bytes: usize,
    /// Files whose content is missing: asked for, or about to be.
    missing: IdMap<Box<MissingFile<T>>>,
    window: Window,
    /// Works that prepare wants, and the files in them.
    reports: usize,
    preparing: usize,
    /// Files that a work writes.
    writing: usize,
    /// Bytes of content that are not on the disk yet.
    held_bytes: usize,
    /// The cause, once the connection is gone. The receiver still stages the content that has
    /// arrived, for the next run.
    closing: Option<String>,
}

/// Progress of asking the filesystem which names it folds into one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resolved {
    No,
    /// Asked about the present entries. The renames that follow may raise further questions, but
    /// none about new names.
    Partly,
    Yes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The offer is arriving.
    Offer,
    /// The performer gets both manifests; no other work may start before.
    Plan,
    /// Directories are made; wants go out already.
    Directories,
    /// Contents arrive.
    Content,
    /// Links, modes and times.
    Adjust,
    /// Files whose name alone changes.
    Move,
    /// Further names are made.
    Link,
    /// Unwanted entries are removed.
    Remove,
    /// Modes and times of directories, deepest first.
    DirectoryTimes,
    /// The root is finished.
    Close,
}

impl<T: Target> Receiver<T> {
    /// Makes a receiver that waits for an offer.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            outbox: Outbox::new(config.relay),
            filter: config.options.protecting(),
            config: config.clone(),
            phase: Phase::Offer,
            offer: Offer::default(),
            opened: None,
            at_open: None,
            opened_up: HashSet::new(),
            target: None,
            offered: Arc::default(),
            wanted: Arc::default(),
            spelling: Arc::default(),
            resolved: Resolved::No,
            plan: Plan::default(),
            listing: Listing::default(),
            happened: Vec::new(),
            tally: Tally::default(),
            progress: ContentProgress::default(),
            pair: None,
            metadata: None,
            root_attributes: None,
            is_undo: false,
            will_be_copy: false,
            removable: Removable::default(),
            closed: false,
            batch: Vec::new(),
            batch_bytes: 0,
            missing: IdMap::default(),
            window: Window::default(),
            reports: 0,
            preparing: 0,
            writing: 0,
            held_bytes: 0,
            closing: None,
        }
    }

    fn message(&mut self, message: FromSender) {
        let has_subject = self.offer.subject.is_some();
        match message {
            FromSender::Common(common) => self.outbox.common(common),
            FromSender::Answers(answers) => self.answers(answers),
            FromSender::Same { ids, digest } => self.same(&ids, digest),
            FromSender::Removed => self.removed(),
            _ if self.offer.complete.is_some() => self.outbox.protocol_error("an offer out of turn"),
            FromSender::Ignores(files) => self.ignores(files),
            FromSender::Entries(block) => self.entries(&block),
            FromSender::Changes(change) => self.changes(&change),
            FromSender::Changed { complete, digest } => self.changed(complete, digest),
            FromSender::Scope(subtrees) if !has_subject => self.subtrees(subtrees),
            FromSender::Subject(subject) if !has_subject => self.subject(subject),
            FromSender::Scope(_) | FromSender::Subject(_) => {
                self.outbox.protocol_error("an offer out of turn");
            }
            _ if !has_subject => self.outbox.protocol_error("an offer out of turn"),
            FromSender::Pushed(files) => self.pushed(files),
            FromSender::Sampled(files) => self.sampled(files),
            FromSender::Holes(holes) => self.offer.holes = holes,
            FromSender::Owners(owners) => self.offer.owners = owners,
            FromSender::Root(root) => self.offer.root = Some(Arc::new(root)),
            FromSender::Offered { complete } => self.offered_all(complete),
            FromSender::Baseline { digest } => self.baseline(digest),
        }
    }

    fn outcome(&mut self, outcome: ReceiverOutcome<T>) {
        match outcome {
            ReceiverOutcome::Open(Ok((opened, at_open))) => {
                self.at_open = Some(at_open);
                self.opened(opened);
            }
            ReceiverOutcome::LoadBaseline(rebuild) => self.loaded(rebuild),
            ReceiverOutcome::Resolve(answers) => self.resolved(&answers),
            ReceiverOutcome::Plan(Ok(target)) => {
                self.target = Some(target);
                self.planned();
            }
            ReceiverOutcome::Look(id, looked) => self.looked(id, &looked),
            ReceiverOutcome::Report(reported) => self.reported(reported),
            ReceiverOutcome::Query(replies) => self.replied(replies),
            ReceiverOutcome::Step(stepped) => self.stepped(stepped),
            ReceiverOutcome::Apply(results) => self.applied(results),
            ReceiverOutcome::Close(Err(error @ WorkError::Entry(..))) => {
                self.outbox.report_error(Vec::new(), error);
                self.closed = true;
                self.confirm();
            }
            ReceiverOutcome::Close(Ok(())) => {
                self.closed = true;
                self.tally.adjusted += u64::from(self.plan.root.is_some());
                self.happens(Item::Root, None);
                self.tell_happened(true);
                if let Some(pair) = self.pair.filter(|pair| self.will_be_copy && self.is_news(pair)) {
                    self.outbox.report(Event::Paired(pair));
                }
                self.confirm();
            }
            ReceiverOutcome::Confirm { removable, missing } => self.confirmed(removable, &missing),
            ReceiverOutcome::StoreBaseline => {
                self.offer.is_being_stored = false;
                self.finish_when_ready();
            }
            ReceiverOutcome::Open(Err(error))
            | ReceiverOutcome::Plan(Err(error))
            | ReceiverOutcome::Close(Err(error)) => self.outbox.fatal(AbortKind::Destination, error),
        }
    }

    fn opened(&mut self, opened: Opened) {
        if self.opened_up.is_empty() {
            self.outbox.report(Event::Resolved { path: opened.path.clone() });
        }
        self.opened = Some(opened);
        self.compare_when_ready();
    }

    /// Describes the room that the plan needs and the filesystem does not have.
    fn missing_room(&self) -> Option<String> {
        let opened = self.opened.as_ref()?;
        let room = opened.room.as_ref()?;
        let need = Need::of(&self.plan, &self.wanted, &opened.manifest, &self.offer.holes, room);
        need.missing(room, &escape(&opened.path))
    }

    /// Reports entries of the destination that could not be listed, where they matter. Excluded
    /// entries do not matter. Unwanted ones do not matter unless the run deletes.
    fn tell_unlisted(&mut self) {
        let problems = self.opened.as_mut().map(|opened| std::mem::take(&mut opened.problems));
        for problem in problems.unwrap_or_default() {
            let path = TreePath::new(&*problem.path).ok();
            let matters = path.is_none_or(|path| {
                !self.excludes(&path, true)
                    && (self.config.options.delete || self.wanted.position(&path).is_some())
            });
            if matters {
                self.outbox.problem(problem);
            }
        }
    }

    /// True if the offer matches its subject: a single file or link comes alone and under its own
    /// name.
    fn is_what_was_announced(&self) -> bool {
        let Some(Subject::File { name }) = &self.offer.subject else { return true };
        let is_announced = |entry: EntryRef<'_>| entry.path.to_vec() == *name && !entry.is_directory();
        self.wanted.len() <= 1 && self.wanted.entries().all(is_announced)
    }

    fn announce_plan(&mut self, present: &Manifest) {
        for problem in self.plan.problems(&self.wanted) {
            self.outbox.problem(problem);
        }
        if let Some(event) = self.plan.links_excluded(&self.wanted) {
            self.outbox.report(event);
        }
        let bases = self.opened.as_ref().and_then(|opened| opened.bases.clone());
        for path in bases.iter().flat_map(|bases| &bases.missing) {
            self.outbox.report(Event::BasisMissing { path: path.clone() });
        }
        if let Some(event) = self.plan.non_regular_skipped(&self.wanted) {
            self.outbox.report(event);
        }
        if let Some(event) = self.plan.devices_passed_over(&self.wanted) {
            self.outbox.report(event);
        }
        if self.config.options.list_changes {
            let listing = self.plan.listing(&self.wanted, present, self.root_change());
            if self.config.options.dry_run {
                listing.planned().for_each(|event| self.outbox.report(event));
            } else {
                self.listing = listing;
            }
        }
        if self.is_increment() && !self.config.options.delete {
            let protects = |entry: EntryRef<'_>| self.excludes(&entry.path.to_path(), entry.is_directory());
            for event in self.plan.left(&self.wanted, present, protects) {
                self.outbox.report(event);
            }
        }
        let (files, bytes) = self.plan.content(&self.wanted, |_| true);
        self.outbox.progress(Event::Planned { files, bytes });
        self.progress.begin(files, bytes);
    }

    /// The change of the root itself, if it is made or adjusted.
    fn root_change(&self) -> Option<(Action, Differs)> {
        let is_new =
            self.is_directory() && self.opened.as_ref().is_some_and(|opened| opened.destination.is_new);
        let made = is_new.then_some((Action::Create, Differs::default()));
        made.or_else(|| Some((Action::Adjust, self.plan.root?)))
    }

    /// Records that a listed change has happened. `action` replaces the planned one.
    fn happens(&mut self, item: Item, action: Option<Action>) {
        self.happened.extend(self.listing.take(item, action));
    }

    /// Records that the entries below a directory are deleted.
    fn clears(&mut self, at: u32) {
        let below = self.opened.as_ref().map(|opened| opened.manifest.subtree(at));
        below.into_iter().flatten().for_each(|at| self.happens(Item::Present(at), None));
    }

    /// Reports the changes that have happened. A short run reports them all when it `is_over`, so
    /// that they come in the order of the list.
    fn tell_happened(&mut self, is_over: bool) {
        if is_over || !self.progress.is_short() {
            self.happened.sort_unstable_by_key(|&(place, _)| place);
            let happened = std::mem::take(&mut self.happened);
            happened.into_iter().for_each(|(_, event)| self.outbox.report(event));
        }
    }

    /// Reports the changes that have happened before a run failed. A peer that is gone gets none.
    fn tell_before_failure(&mut self) {
        let has_failed = |error: &RunError| !(error.by_peer && self.config.relay);
        if matches!(&self.outbox.ended, Some(Err(error)) if has_failed(error)) {
            let queue = std::mem::take(&mut self.outbox.queue);
            self.tell_happened(true);
            self.outbox.queue.extend(queue);
        }
    }

    /// Sends `Finished` only when all works are done: the sender may cut the agent off afterwards.
    fn finish_when_ready(&mut self) {
        if self.closed && !self.offer.is_being_stored && self.removable.is_settled() {
            self.outbox.send(FromReceiver::Finished(self.tally));
            self.outbox.finish(self.tally);
        }
    }

    fn planned(&mut self) {
        self.phase = Phase::Directories;
        if self.opened.as_ref().is_some_and(|opened| opened.destination.is_new) {
            self.happens(Item::Root, None);
            self.tell_happened(false);
        }
        self.store_baseline();
        if !(self.is_unobserved() && self.is_round()) {
            self.tell_progress(false);
        }
        // Steps that must precede any content.
        if !self.start_steps() {
            self.directories_are_there();
        }
    }

    /// True if the content is so little that the peer is not told how it goes.
    fn is_unobserved(&self) -> bool {
        self.config.relay && self.progress.is_short()
    }

    fn is_round(&self) -> bool {
        self.opened.as_ref().is_some_and(|opened| opened.destination.is_round)
    }

    /// Reports the progress of the content, if it is due or the content `is_complete`.
    fn tell_progress(&mut self, is_complete: bool) {
        let due = if is_complete { self.progress.rest() } else { self.progress.due(self.config.relay) };
        due.into_iter().for_each(|written| self.outbox.report(Event::Written(written)));
    }

    /// Starts the next steps of this phase; `false` if there are none.
    fn start_steps(&mut self) -> bool {
        let steps = match self.phase {
            Phase::Directories => &mut self.plan.first,
            Phase::Adjust => &mut self.plan.adjust,
            Phase::Move => &mut self.plan.moves,
            Phase::Link => &mut self.plan.links,
            Phase::Remove => &mut self.plan.remove,
            Phase::DirectoryTimes => &mut self.plan.directory_times,
            Phase::Offer | Phase::Plan | Phase::Content | Phase::Close => return false,
        };
        if steps.is_empty() {
            return false;
        }
        let later = steps.split_off(steps.len().min(STEPS_MAX));
        let now = std::mem::replace(steps, later);
        self.on_target(|target| ReceiverWork::Apply(target, now));
        true
    }

    fn applied(&mut self, results: Vec<(Step, Result<(), WorkError>)>) {
        for (step, result) in results {
            if matches!(step, Step::Unlock { .. }) && !matches!(result, Err(WorkError::Fatal(..))) {
                continue;
            }
            let counter = match step {
                Step::MakeDirectory { .. } => &mut self.tally.created,
                Step::MakeLink { id } | Step::HardLink { id, .. } | Step::LinkBasis { id, .. }
                    if self.plan.updates.contains(&id) =>
                {
                    &mut self.tally.updated
                }
                Step::Move { .. } => {
                    if result.is_ok() {
                        self.tally.files += 1;
                        self.tally.moved += 1;
                        self.tally.created += 1;
                    }
                    &mut self.tally.deleted
                }
                Step::Recall { id } => {
                    self.tally.files += u64::from(result.is_ok());
                    if self.plan.updates.contains(&id) {
                        &mut self.tally.updated
                    } else {
                        &mut self.tally.created
                    }
                }
                Step::MakeLink { .. }
                | Step::HardLink { .. }
                | Step::LinkBasis { .. }
                | Step::CopyBasis { .. } => &mut self.tally.created,
                Step::Adjust { id } if self.plan.adjusts.contains(&id) => &mut self.tally.adjusted,
                Step::Respell { id } if self.plan.respelled.contains(&id) => &mut self.tally.adjusted,
                Step::Remove { .. } => &mut self.tally.deleted,
                Step::Clear { .. }
                | Step::Adjust { .. }
                | Step::Respell { .. }
                | Step::Unlock { .. }
                | Step::Restore { .. } => &mut 0,
            };
            if let Step::MakeLink { id }
            | Step::HardLink { id, .. }
            | Step::Adjust { id }
            | Step::Respell { id }
            | Step::Move { id, .. } = step
            {
                self.removable.set(id, result.is_ok());
            }
            match result {
                Ok(()) => {
                    *counter += 1;
                    match step {
                        Step::Clear { at } => {
                            self.tally.deleted += self.count_below(at);
                            self.clears(at);
                        }
                        Step::Adjust { id } if self.plan.adjusts.contains(&id) => {
                            self.happens(Item::Wanted(id), Some(Action::Adjust));
                        }
                        Step::Respell { id } if self.plan.respelled.contains(&id) => {
                            self.happens(Item::Wanted(id), None);
                        }
                        Step::Recall { id } => {
                            self.cleared_way(id);
                            self.happens(Item::Wanted(id), None);
                        }
                        Step::MakeDirectory { id }
                        | Step::MakeLink { id }
                        | Step::HardLink { id, .. }
                        | Step::LinkBasis { id, .. }
                        | Step::CopyBasis { id, .. } => {
                            self.happens(Item::Wanted(id), None);
                        }
                        Step::Move { id, at, .. } => {
                            self.tell_renamed(id, at);
                            self.happens(Item::Present(at), None);
                            self.happens(Item::Wanted(id), None);
                        }
                        Step::Remove { at } => self.happens(Item::Present(at), None),
                        Step::Adjust { .. }
                        | Step::Respell { .. }
                        | Step::Unlock { .. }
                        | Step::Restore { .. } => {}
                    }
                }
                Err(error) => {
                    self.will_be_copy &= matches!(
                        step,
                        Step::MakeDirectory { .. } | Step::Adjust { .. } | Step::Respell { .. }
                    );
                    let path = self.step_path(step);
                    if !self.outbox.report_error(path, error) {
                        return;
                    }
                }
            }
        }
        let goes_on = self.start_steps();
        // Removals run in another order than they are listed in.
        if !(goes_on && self.phase == Phase::Remove) {
            self.tell_happened(false);
        }
        if goes_on {
            return;
        }
        match self.phase {
            Phase::Directories => self.directories_are_there(),
            _ => self.next_phase(),
        }
    }

    /// Reports that a file got another name, if changes are listed.
    fn tell_renamed(&mut self, id: u32, at: u32) {
        if self.config.options.list_changes {
            let (from, path) = (self.step_path(Step::Remove { at }), self.path(id));
            self.outbox.report(Event::Renamed { from, path });
        }
    }

    fn directories_are_there(&mut self) {
        self.phase = Phase::Content;
        let ids: Vec<u32> = self.missing.keys().copied().collect();
        self.feed(ids);
    }

    fn next_phase(&mut self) {
        loop {
            self.phase = match self.phase {
                Phase::Content => Phase::Adjust,
                Phase::Adjust => Phase::Move,
                Phase::Move => {
                    self.plan.spare_moved();
                    Phase::Link
                }
                Phase::Link => Phase::Remove,
                Phase::Remove => Phase::DirectoryTimes,
                Phase::DirectoryTimes => Phase::Close,
                Phase::Offer | Phase::Plan | Phase::Directories | Phase::Close => return,
            };
            if self.phase == Phase::Close {
                let pair = self.pair.filter(|_| self.will_be_copy);
                let metadata = self.metadata.clone();
                self.on_target(|target| ReceiverWork::Close { target, metadata, pair });
                return;
            }
            if self.start_steps() {
                return;
            }
        }
    }

    /// Starts a work on the planned destination.
    fn on_target(&mut self, work: impl FnOnce(T) -> ReceiverWork<T>) {
        if let Some(target) = self.target.clone() {
            self.outbox.start(work(target));
        }
    }

    // Looking up.

    fn is_directory(&self) -> bool {
        matches!(self.offer.subject, Some(Subject::Directory { .. } | Subject::Several))
    }

    /// Position of the present entry with this entry's path.
    fn present_at(&self, id: u32) -> Option<u32> {
        self.opened.as_ref()?.manifest.position(self.wanted.path(id)?)
    }

    /// True in an incremental round of a watch, which follows rounds about the same tree.
    fn is_increment(&self) -> bool {
        self.offer.is_partial && !matches!(self.offer.subject, Some(Subject::Several))
    }

    fn size(&self, id: u32) -> u64 {
        self.wanted.get(id).map_or(0, |entry| entry.size())
    }

    /// Counts the present entries below one.
    fn count_below(&self, at: u32) -> u64 {
        self.opened.as_ref().map_or(0, |opened| below(&opened.manifest, at).count() as u64)
    }

    fn path(&self, id: u32) -> Vec<u8> {
        self.wanted.path(id).map(PathRef::to_vec).unwrap_or_default()
    }

    fn step_path(&self, step: Step) -> Vec<u8> {
        match step {
            Step::MakeDirectory { id }
            | Step::MakeLink { id }
            | Step::HardLink { id, .. }
            | Step::LinkBasis { id, .. }
            | Step::CopyBasis { id, .. }
            | Step::Recall { id }
            | Step::Adjust { id }
            | Step::Respell { id }
            | Step::Move { id, .. } => self.path(id),
            Step::Clear { at } | Step::Remove { at } | Step::Unlock { at } | Step::Restore { at } => {
                let path = self.opened.as_ref().and_then(|opened| opened.manifest.path(at));
                path.map(PathRef::to_vec).unwrap_or_default()
            }
        }
    }
}

impl<T: Target> Engine for Receiver<T> {
    type Incoming = FromSender;
    type Outgoing = FromReceiver;
    type Work = ReceiverWork<T>;
    type Outcome = ReceiverOutcome<T>;

    fn input(&mut self, input: Input<FromSender, ReceiverOutcome<T>>) {
        if self.outbox.ended.is_some() {
            return;
        }
        match input {
            Input::Message(message) => self.message(message),
            Input::Outcome(outcome) => self.outcome(outcome),
            Input::Closed(cause) => self.closing = Some(cause),
            Input::Broken(kind, cause) => self.outbox.fail(kind, cause),
        }
        self.tell_before_failure();
    }

    fn poll(&mut self) -> Output<FromReceiver, ReceiverWork<T>> {
        if self.outbox.ended.is_none() && self.outbox.queue.is_empty() {
            if let Some(cause) = self.closing.clone().filter(|_| !self.puts_content_aside()) {
                self.outbox.peer_failed(AbortKind::Connection, cause);
                self.tell_before_failure();
            } else if self.closing.is_none() {
                self.go_on();
            }
        }
        let waits_for_work =
            self.held_bytes > HELD_BYTES_MAX || self.closing.is_some() || self.offer.is_loading();
        let idle = if waits_for_work { Output::WaitForWork } else { Output::Wait };
        self.outbox.next().unwrap_or(idle)
    }
}
