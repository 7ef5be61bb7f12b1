//! The receiver decides which entries must change, asks for missing contents and puts them in
//! place. This file holds the phases that run once, in order. `content` asks for contents and takes
//! them in; `offer` takes in the manifest.
//!
//! ```text
//! Subject ─► Open   Entries… Offered ─► compare ─► Apply (clear, directories)
//! Base ─► Recall ─► [Forgotten]   Changes… Changed ─┘ └► [Resolve ─► compare]
//!                                              └► [Sign ─►] Wants
//! Files ─► Store    Pieces ─► Sink
//! Files (differing) ─► SignFiles ─► FileSignatures    SignRequest ─► SignWindows ─► Signatures
//!                                                     CutRequest ─► Cut ─► Chunks
//! all answered ─► Apply (links, times) ─► Apply (moves) ─► Apply (removals)
//!              ─► Apply (directory times) ─► Close ─► Finished
//! ```
//! The receiver stores the offer as the baseline (`StoreBaseline`) meanwhile, as soon as the plan
//! is made.

mod content;
mod decide;
mod offer;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde_bytes::ByteBuf;

use crate::engine::fetch::Fetch;
use crate::engine::need::Need;
use crate::engine::plan::Plan;
use crate::engine::window::Window;
use crate::engine::work::{Opened, Outcome, Step, Work, WorkError};
use crate::engine::{Config, Engine, Input, Outbox, Output};
use crate::monitor::Event;
use crate::tree::compare::below;
use crate::tree::entry::{EntryRef, Time};
use crate::tree::filter::Filter;
use crate::tree::manifest::Manifest;
use crate::tree::path::{TreePath, escape};
use crate::tree::path_ref::PathRef;
use crate::tree::spelling::Spelling;
use crate::tree::subtrees::Subtree;
use crate::tree::tree_id::Pair;
use crate::wire::message::{AbortKind, Holes, Message, Subject, Tally, Want};
use content::{Ask, HELD_BYTES_MAX, Sink};
use offer::Offer;

/// Most steps of one `Apply`: few enough to notice a cut connection in time.
const STEPS_MAX: usize = 1024;

/// The side that wants the files.
#[derive(Debug)]
pub struct Receiver {
    config: Config,
    outbox: Outbox,
    phase: Phase,
    subject: Option<Subject>,
    /// The offered parts, as they arrive.
    subtrees: Vec<Subtree>,
    offer: Offer,
    holes: Holes,
    filter: Filter,
    /// The sender's report that it could list everything.
    offered: Option<bool>,
    opened: Option<Opened>,
    wanted: Arc<Manifest>,
    /// The names that the destination's filesystem folds into one.
    spelling: Arc<Spelling>,
    /// Progress of asking about them.
    resolved: Resolved,
    plan: Plan,
    tally: Tally,
    /// The pair of source and destination after this run.
    pair: Option<Pair>,
    /// The root's own mode and time, as far as they must be set.
    metadata: Option<(Option<u16>, Time)>,
    /// True if the destination will hold only wanted and protected entries.
    will_be_copy: bool,
    /// True once the destination is complete.
    closed: bool,
    /// Wants that are not sent yet.
    batch: Vec<Want>,
    batch_bytes: usize,
    /// Wants that are sent and not answered.
    asked: HashMap<u32, Ask>,
    window: Window,
    signs: usize,
    file_signs: usize,
    /// Larger files in flight, with the steps that wait for the work under way.
    sinks: HashMap<u32, Sink>,
    /// Files whose basis is being signed.
    signing: HashMap<u32, Fetch>,
    /// Works on contents that wait until the directories exist.
    early: Vec<Work>,
    stores: usize,
    held_bytes: usize,
    /// Files whose content arrived damaged once.
    retried: BTreeSet<u32>,
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
    /// Unwanted entries are removed.
    Remove,
    /// Modes and times of directories, deepest first.
    DirectoryTimes,
    /// The root is finished.
    Close,
}

impl Receiver {
    /// Makes a receiver that waits for an offer.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            outbox: Outbox::new(config.relay),
            filter: Filter::anchored(&config.options.rules, &config.options.anchor),
            config: config.clone(),
            phase: Phase::Offer,
            subject: None,
            subtrees: Vec::new(),
            offer: Offer::default(),
            holes: Holes::default(),
            offered: None,
            opened: None,
            wanted: Arc::default(),
            spelling: Arc::default(),
            resolved: Resolved::No,
            plan: Plan::default(),
            tally: Tally::default(),
            pair: None,
            metadata: None,
            will_be_copy: false,
            closed: false,
            batch: Vec::new(),
            batch_bytes: 0,
            asked: HashMap::new(),
            window: Window::default(),
            signs: 0,
            file_signs: 0,
            sinks: HashMap::new(),
            signing: HashMap::new(),
            early: Vec::new(),
            stores: 0,
            held_bytes: 0,
            retried: BTreeSet::new(),
            closing: None,
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Scope(subtrees) if self.subject.is_none() => self.subtrees(subtrees),
            Message::Subject(subject) if self.subject.is_none() => self.subject(subject),
            Message::Pushed(files) if self.subject.is_some() && self.offered.is_none() => self.pushed(files),
            Message::Sampled(files) if self.subject.is_some() && self.offered.is_none() => {
                self.sampled(files);
            }
            Message::Holes(holes) if self.subject.is_some() && self.offered.is_none() => self.holes = holes,
            Message::Ignores(files) if self.offered.is_none() => self.ignores(files),
            Message::Entries(block) if self.offered.is_none() => self.entries(&block),
            Message::Offered { complete } if self.subject.is_some() && self.offered.is_none() => {
                self.offered_all(complete);
            }
            Message::Baseline { digest } if self.subject.is_some() && self.offered.is_none() => {
                self.baseline(digest)
            }
            Message::Changes(change) if self.offered.is_none() => self.changes(&change),
            Message::Changed { complete, digest } if self.offered.is_none() => self.changed(complete, digest),
            Message::Files(files) => self.files(files),
            Message::Same { ids, digest } => self.same(&ids, digest),
            Message::SignRequest { id, windows } => self.sign_request(id, windows),
            Message::CutRequest { id, stretch } => self.cut_request(id, stretch),
            Message::Pieces { id, ops, end } => self.pieces(id, ops, end),
            Message::Note(event) => self.outbox.note(event),
            Message::Abort { kind, text } => self.outbox.peer_failed(kind, text),
            Message::Scope(_)
            | Message::Subject(_)
            | Message::Pushed(_)
            | Message::Sampled(_)
            | Message::Holes(_)
            | Message::Ignores(_)
            | Message::Entries(_)
            | Message::Offered { .. }
            | Message::Baseline { .. }
            | Message::Changes(_)
            | Message::Changed { .. } => self.outbox.protocol_error("an offer out of turn"),
            Message::Wants(_)
            | Message::FileSignatures(_)
            | Message::Signatures { .. }
            | Message::Chunks { .. }
            | Message::Finished(_)
            | Message::Rescan
            | Message::Heartbeat { .. }
            | Message::BaselineMissing => {
                self.outbox.protocol_error("a message that only a receiver sends");
            }
        }
    }

    fn outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Open(Ok(opened)) => self.opened(opened),
            Outcome::Open(Err(error)) => self.outbox.fatal(AbortKind::Destination, error),
            Outcome::LoadBaseline(record) => self.loaded(record),
            Outcome::Resolve(answers) if self.phase == Phase::Offer => self.resolved(&answers),
            Outcome::Plan(Ok(())) => self.planned(),
            Outcome::Plan(Err(error)) => self.outbox.fatal(AbortKind::Destination, error),
            Outcome::Sign(results) => self.signed(results),
            Outcome::SignWindows(id, result) => {
                self.signs -= 1;
                match result {
                    Err(WorkError::Fatal(kind, text)) => self.outbox.fail(kind, text),
                    // The basis changed or went away meanwhile: send no signatures.
                    result => {
                        let signatures = result.unwrap_or_default().into_iter().map(ByteBuf::from).collect();
                        self.outbox.send(Message::Signatures { id, signatures });
                    }
                }
            }
            Outcome::SignFiles(results) => self.signed_files(results),
            Outcome::Cut(id, result) => {
                self.signs -= 1;
                match result {
                    Err(WorkError::Fatal(kind, text)) => self.outbox.fail(kind, text),
                    result => {
                        self.outbox.send(Message::Chunks { id, chunks: result.unwrap_or_default() });
                    }
                }
            }
            Outcome::Store(results) => {
                self.stores -= 1;
                for (id, result) in results {
                    self.held_bytes -= self.size(id) as usize;
                    self.settle(id, result);
                }
            }
            Outcome::Copy(results) => {
                self.stores -= 1;
                for (id, result) in results {
                    self.tally.copied += u64::from(result.is_ok());
                    self.settle(id, result);
                }
            }
            Outcome::Sink(id, result) => self.sunk(id, result),
            Outcome::Apply(results) => self.applied(results),
            Outcome::Close(Ok(())) => {
                self.closed = true;
                self.tally.adjusted += u64::from(self.plan.adjusts_root());
                if let Some(pair) = self.pair.filter(|pair| self.will_be_copy && self.is_news(pair)) {
                    self.outbox.report(Event::Paired(pair));
                }
                self.finish_when_ready();
            }
            Outcome::StoreBaseline => {
                self.offer.is_being_stored = false;
                self.finish_when_ready();
            }
            Outcome::Close(Err(error)) => self.outbox.fatal(AbortKind::Destination, error),
            other => self.outbox.stray_outcome(&other),
        }
    }

    fn opened(&mut self, opened: Opened) {
        self.outbox.report(Event::Resolved { path: opened.path.clone() });
        self.opened = Some(opened);
        self.compare_when_ready();
    }

    /// Describes the room that the plan needs and the filesystem does not have.
    fn missing_room(&self) -> Option<String> {
        let opened = self.opened.as_ref()?;
        let room = opened.room.as_ref()?;
        let need = Need::of(&self.plan, &self.wanted, &opened.manifest, &self.holes, room);
        need.missing(room, &escape(&opened.path))
    }

    /// Reports entries of the destination that could not be listed, where they matter. Excluded
    /// entries do not matter. Unwanted ones do not matter unless the run deletes.
    fn tell_unlisted(&mut self) {
        let Some(opened) = &mut self.opened else { return };
        for problem in std::mem::take(&mut opened.problems) {
            let path = TreePath::new(&*problem.path).ok();
            let matters = path.is_none_or(|path| {
                !self.filter.excludes_within(&path, true)
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
        let Some(Subject::File { name }) = &self.subject else { return true };
        let is_announced = |entry: EntryRef<'_>| entry.path.to_vec() == *name && !entry.is_directory();
        self.wanted.len() <= 1 && self.wanted.entries().all(is_announced)
    }

    fn announce_plan(&mut self, present: &Manifest) {
        for problem in self.plan.problems(&self.wanted) {
            self.outbox.problem(problem);
        }
        if self.config.options.list_changes {
            for event in self.plan.events(&self.wanted, present) {
                self.outbox.report(event);
            }
        }
        if self.offer.is_partial && !self.config.options.delete {
            for event in self.plan.left(&self.wanted, present, &self.filter) {
                self.outbox.report(event);
            }
        }
        let (files, bytes) = self.plan.content(&self.wanted, |_| true);
        self.outbox.progress(Event::Planned { files, bytes });
    }

    /// Sends `Finished` only when all works are done: the sender may cut the agent off afterwards.
    fn finish_when_ready(&mut self) {
        if self.closed && !self.offer.is_being_stored {
            self.outbox.send(Message::Finished(self.tally));
            self.outbox.finish(self.tally);
        }
    }

    fn planned(&mut self) {
        self.phase = Phase::Directories;
        self.store_baseline();
        // Steps that must precede any content.
        if !self.start_steps() {
            self.directories_are_there();
        }
    }

    /// Starts the next steps of this phase; `false` if there are none.
    fn start_steps(&mut self) -> bool {
        let steps = match self.phase {
            Phase::Directories => &mut self.plan.first,
            Phase::Adjust => &mut self.plan.adjust,
            Phase::Move => &mut self.plan.moves,
            Phase::Remove => &mut self.plan.remove,
            Phase::DirectoryTimes => &mut self.plan.directory_times,
            Phase::Offer | Phase::Plan | Phase::Content | Phase::Close => return false,
        };
        if steps.is_empty() {
            return false;
        }
        let later = steps.split_off(steps.len().min(STEPS_MAX));
        let now = std::mem::replace(steps, later);
        self.outbox.start(Work::Apply(now));
        true
    }

    fn applied(&mut self, results: Vec<(Step, Result<(), WorkError>)>) {
        for (step, result) in results {
            if matches!(step, Step::Unlock { .. }) && !matches!(result, Err(WorkError::Fatal(..))) {
                continue;
            }
            let counter = match step {
                Step::MakeDirectory { .. } => &mut self.tally.created,
                Step::MakeLink { id } if self.plan.is_update(id) => &mut self.tally.updated,
                Step::Move { .. } => {
                    if result.is_ok() {
                        self.tally.files += 1;
                        self.tally.moved += 1;
                        self.tally.created += 1;
                    }
                    &mut self.tally.deleted
                }
                Step::MakeLink { .. } => &mut self.tally.created,
                Step::Adjust { id } if self.plan.is_adjust(id) => &mut self.tally.adjusted,
                Step::Respell { id } if self.plan.is_respelled(id) => &mut self.tally.adjusted,
                Step::Remove { .. } => &mut self.tally.deleted,
                Step::Clear { .. }
                | Step::Adjust { .. }
                | Step::Respell { .. }
                | Step::Unlock { .. }
                | Step::Restore { .. } => &mut 0,
            };
            match result {
                Ok(()) => {
                    *counter += 1;
                    if let Step::Clear { at } = step {
                        self.tally.deleted += self.count_below(at);
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
        if self.start_steps() {
            return;
        }
        match self.phase {
            Phase::Directories => self.directories_are_there(),
            _ => self.next_phase(),
        }
    }

    fn directories_are_there(&mut self) {
        self.phase = Phase::Content;
        for work in std::mem::take(&mut self.early) {
            self.put(work);
        }
        let ids: Vec<u32> = self.sinks.keys().copied().collect();
        ids.into_iter().for_each(|id| self.feed_sink(id));
    }

    fn next_phase(&mut self) {
        loop {
            self.phase = match self.phase {
                Phase::Content => Phase::Adjust,
                Phase::Adjust => Phase::Move,
                Phase::Move => {
                    self.plan.spare_moved();
                    Phase::Remove
                }
                Phase::Remove => Phase::DirectoryTimes,
                Phase::DirectoryTimes => Phase::Close,
                Phase::Offer | Phase::Plan | Phase::Directories | Phase::Close => return,
            };
            if self.phase == Phase::Close {
                let pair = self.pair.filter(|_| self.will_be_copy);
                self.outbox.start(Work::Close { metadata: self.metadata, pair });
                return;
            }
            if self.start_steps() {
                return;
            }
        }
    }

    // Looking up.

    fn is_directory(&self) -> bool {
        matches!(self.subject, Some(Subject::Directory { .. }))
    }

    /// True if no present entry has this entry's path.
    fn is_new(&self, id: u32) -> bool {
        let present = self.opened.as_ref().map(|opened| &opened.manifest);
        let entry = self.wanted.get(id);
        entry.zip(present).is_some_and(|(entry, present)| present.position(entry.path).is_none())
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

impl Engine for Receiver {
    fn input(&mut self, input: Input) {
        if self.outbox.ended.is_some() {
            return;
        }
        match input {
            Input::Message(message) => self.message(message),
            Input::Outcome(outcome) => self.outcome(outcome),
            Input::Closed(cause) => self.closing = Some(cause),
            Input::Broken(kind, cause) => self.outbox.fail(kind, cause),
        }
    }

    fn poll(&mut self) -> Output {
        if self.outbox.ended.is_none() && self.outbox.queue.is_empty() {
            if let Some(cause) = self.closing.clone().filter(|_| !self.puts_content_aside()) {
                self.outbox.peer_failed(AbortKind::Connection, cause);
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
