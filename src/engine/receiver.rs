//! The receiver: decides what has to change, asks for what is missing, puts it in place.
//!
//! ```text
//! Subject ─► Open   Entries… Offered ─► compare ─► Apply (clear, directories)
//!                                              └► [Sign ─►] Wants
//! Files ─► Store    Pieces ─► Sink    SignRequest ─► SignWindows ─► Signatures
//! all answered ─► Apply (links, times) ─► Apply (removals) ─► Apply (directory times) ─► Close ─► Finished
//! ```

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use serde_bytes::ByteBuf;

use crate::content::hash::Hash;
use crate::engine::plan::Plan;
use crate::engine::window::Window;
use crate::engine::work::{Fault, Opened, Outcome, SmallFile, Step, Work};
use crate::engine::{Config, Desk, Engine, Input, Output};
use crate::monitor::{Event, Problem, Trouble};
use crate::tree::compare::Rules;
use crate::tree::entry::Entry;
use crate::tree::filter::Filter;
use crate::tree::manifest::{Builder, Manifest};
use crate::wire::message::{
    AbortKind, Body, Message, Op, STREAMS_MAX, Subject, Tally, Want, Window as OldWindow,
};

/// Most bytes of content that wait for the disk before messages have to wait.
const HELD_BYTES_MAX: usize = 8 << 20;

/// Most works that look at old versions at a time.
const SIGNS_MAX: usize = 4;

/// A batch of wants is sent when it weighs this many bytes.
const BATCH_BYTES: usize = 64 << 10;

/// Steps of one `Apply`: short enough that a cut connection is noticed.
const STEPS_MAX: usize = 1024;

/// What steps take while they wait, in bytes: their content, and themselves, since a peer may send as many
/// as it likes that hold none.
fn held_bytes(ops: &[Op]) -> usize {
    const MESSAGE_BYTES: usize = 128;
    let content: u64 = ops.iter().map(Op::sent_bytes).sum();
    MESSAGE_BYTES + size_of_val(ops) + content as usize
}

/// The side that wants the files.
#[derive(Debug)]
pub struct Receiver {
    config: Config,
    desk: Desk,
    phase: Phase,
    subject: Option<Subject>,
    builder: Builder,
    filter: Filter,
    /// Whether the sender could list everything.
    offered: Option<bool>,
    opened: Option<Opened>,
    wanted: Arc<Manifest>,
    plan: Plan,
    tally: Tally,
    /// Wants that are not sent yet.
    batch: Vec<Want>,
    batch_bytes: usize,
    /// Sent and not answered.
    asked: HashMap<u32, Ask>,
    window: Window,
    signs: usize,
    /// Larger files on their way, with what waits for the work under way.
    sinks: HashMap<u32, Sink>,
    /// Small files that wait until directories are there.
    early: Vec<Vec<SmallFile>>,
    stores: usize,
    held_bytes: usize,
    /// Files whose content arrived damaged once.
    retried: BTreeSet<u32>,
    /// The connection is gone, for this cause; what has arrived is still put aside for the next run.
    closing: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The offer is on its way.
    Offer,
    /// The performer is told both manifests; nothing else may start before it knows them.
    Plan,
    /// Directories are being made; wants go out already.
    Directories,
    /// Contents arrive.
    Content,
    /// Links, modes and times.
    Adjust,
    /// What is not wanted goes.
    Remove,
    /// Modes and times of directories, deepest first.
    DirectoryTimes,
    /// The root.
    Close,
}

/// A want that was sent.
#[derive(Debug)]
struct Ask {
    weight: usize,
    /// The hash of the old version, to check the answer "the same".
    old_hash: Option<Hash>,
    /// Everything of it has arrived, and a work on it is under way: the sender has no more to say of it.
    given: bool,
}

/// A larger file on its way.
#[derive(Debug, Default)]
struct Sink {
    busy: bool,
    waiting: VecDeque<(Vec<Op>, Option<Hash>)>,
    made_bytes: u64,
    sent_bytes: u64,
    /// The last steps have arrived.
    ended: bool,
    /// It cannot be made; what still comes of it is dropped.
    failed: Option<Fault>,
    /// The sender gave it up, and has said why.
    skipped: bool,
}

impl Receiver {
    /// A receiver that waits for an offer.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            desk: Desk::new(config.relay),
            filter: Filter::new(&config.options.rules),
            config: config.clone(),
            phase: Phase::Offer,
            subject: None,
            builder: Builder::default(),
            offered: None,
            opened: None,
            wanted: Arc::default(),
            plan: Plan::default(),
            tally: Tally::default(),
            batch: Vec::new(),
            batch_bytes: 0,
            asked: HashMap::new(),
            window: Window::default(),
            signs: 0,
            sinks: HashMap::new(),
            early: Vec::new(),
            stores: 0,
            held_bytes: 0,
            retried: BTreeSet::new(),
            closing: None,
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Subject(subject) if self.subject.is_none() => {
                self.subject = Some(subject.clone());
                self.desk.start(Work::Open(subject));
            }
            Message::Ignores(files) if self.offered.is_none() => {
                if !files.into_iter().all(|file| self.filter.add(file)) {
                    self.desk.protocol_error("more ignore files than allowed");
                }
            }
            Message::Entries(block) if self.offered.is_none() => {
                if let Err(error) = self.builder.push(&block) {
                    self.desk.fail(AbortKind::Protocol, error.to_string());
                }
            }
            Message::Offered { complete } if self.subject.is_some() && self.offered.is_none() => {
                self.offered = Some(complete);
                self.compare_when_ready();
            }
            Message::Files(files) => self.files(files),
            Message::SignRequest { id, windows } => self.sign_request(id, windows),
            Message::Pieces { id, ops, end } => self.pieces(id, ops, end),
            Message::Note(event) => self.desk.note(event),
            Message::Abort { kind, text } => self.desk.peer_failed(kind, text),
            Message::Subject(_) | Message::Ignores(_) | Message::Entries(_) | Message::Offered { .. } => {
                self.desk.protocol_error("an offer out of turn");
            }
            Message::Wants(_) | Message::Signatures { .. } | Message::Finished(_) => {
                self.desk.protocol_error("a message that only a receiver sends");
            }
        }
    }

    fn outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Open(Ok(opened)) => self.opened(opened),
            Outcome::Open(Err(fault)) => self.fatal(fault),
            Outcome::Plan => self.planned(),
            Outcome::Sign(id, result) => self.signed(id, result),
            Outcome::SignWindows(id, result) => {
                self.signs -= 1;
                match result {
                    Err(Fault::Fatal(kind, text)) => self.desk.fail(kind, text),
                    // The old version changed or went away while it served as basis: no signatures.
                    result => {
                        let signatures = result.unwrap_or_default().into_iter().map(ByteBuf::from).collect();
                        self.desk.send(Message::Signatures { id, signatures });
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
            Outcome::Sink(id, result) => self.sunk(id, result),
            Outcome::Apply(results) => self.applied(results),
            Outcome::Close(Ok(())) => {
                self.desk.send(Message::Finished(self.tally));
                self.desk.finish(self.tally);
            }
            Outcome::Close(Err(fault)) => self.fatal(fault),
            other => self.desk.protocol_error(&format!("an outcome that no receiver asked for: {other:?}")),
        }
    }

    fn opened(&mut self, mut opened: Opened) {
        self.desk.report(Event::Resolved { path: opened.path.clone() });
        std::mem::take(&mut opened.problems).into_iter().for_each(|problem| self.desk.problem(problem));
        self.opened = Some(opened);
        self.compare_when_ready();
    }

    fn compare_when_ready(&mut self) {
        let (Some(opened), Some(complete)) = (&self.opened, self.offered) else { return };
        let options = &self.config.options;
        let may_delete = complete && opened.complete;
        let rules = Rules {
            delete: options.delete && may_delete && self.is_directory(),
            checksum: options.checksum,
            // Without them set-id bits are never set, so they must not count either.
            mode_mask: if options.special_bits { 0o7777 } else { 0o1777 },
        };
        let withheld = options.delete && !may_delete;
        self.wanted = Arc::new(std::mem::take(&mut self.builder).finish());
        if !self.is_what_was_announced() {
            return self.desk.protocol_error("other entries than the one that was announced");
        }
        let (links, staged) = (options.safe_links, opened.has_staged);
        self.plan = Plan::new(&self.wanted, &opened.manifest, rules, &self.filter, links, staged);
        self.tally.entries = self.wanted.len() as u64;
        self.tally.total_bytes = self.wanted.entries().iter().map(Entry::size).sum();
        let (wanted, present) = (Arc::clone(&self.wanted), Arc::clone(&opened.manifest));
        if withheld {
            let cause = "nothing was deleted, since not everything could be listed".to_owned();
            self.desk.problem(Problem { trouble: Trouble::NotDeleted, path: Vec::new(), cause });
        }
        self.announce_plan(&present);
        if self.config.options.dry_run {
            self.plan.count(&self.wanted, &mut self.tally);
            self.desk.send(Message::Finished(self.tally));
            return self.desk.finish(self.tally);
        }
        self.phase = Phase::Plan;
        self.desk.start(Work::Plan { wanted, present });
    }

    /// A single file or link comes alone and under its own name.
    fn is_what_was_announced(&self) -> bool {
        match (&self.subject, self.wanted.entries()) {
            (Some(Subject::File { name }), [entry]) => entry.path.as_bytes() == name && !entry.is_directory(),
            (Some(Subject::File { .. }), entries) => entries.is_empty(),
            _ => true,
        }
    }

    fn announce_plan(&mut self, present: &Manifest) {
        for problem in self.plan.problems(&self.wanted) {
            self.desk.problem(problem);
        }
        if self.config.options.list_changes {
            for event in self.plan.events(&self.wanted, present) {
                self.desk.report(event);
            }
        }
        let (files, bytes) = self.plan.content(&self.wanted);
        self.desk.progress(Event::Planned { files, bytes });
    }

    fn planned(&mut self) {
        self.phase = Phase::Directories;
        // What must be there before anything can be put in place.
        if !self.start_steps() {
            self.directories_are_there();
        }
    }

    /// Starts the next steps of this phase; `false` if there are none.
    fn start_steps(&mut self) -> bool {
        let steps = match self.phase {
            Phase::Directories => &mut self.plan.first,
            Phase::Adjust => &mut self.plan.adjust,
            Phase::Remove => &mut self.plan.remove,
            Phase::DirectoryTimes => &mut self.plan.directory_times,
            Phase::Offer | Phase::Plan | Phase::Content | Phase::Close => return false,
        };
        if steps.is_empty() {
            return false;
        }
        let later = steps.split_off(steps.len().min(STEPS_MAX));
        let now = std::mem::replace(steps, later);
        self.desk.start(Work::Apply(now));
        true
    }

    fn applied(&mut self, results: Vec<(Step, Result<(), Fault>)>) {
        for (step, result) in results {
            if matches!(step, Step::Unlock { .. }) && !matches!(result, Err(Fault::Fatal(..))) {
                continue;
            }
            let counter = match step {
                Step::MakeDirectory { .. } => &mut self.tally.created,
                Step::MakeLink { id } if self.plan.is_update(id) => &mut self.tally.updated,
                Step::MakeLink { .. } => &mut self.tally.created,
                Step::Adjust { id } if self.plan.is_adjust(id) => &mut self.tally.adjusted,
                Step::Clear { .. } | Step::Remove { .. } => &mut self.tally.deleted,
                Step::Adjust { .. } | Step::Unlock { .. } => &mut 0,
            };
            match result {
                Ok(()) => *counter += 1,
                Err(fault) => {
                    let path = self.step_path(step);
                    if !self.complain(path, fault) {
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
        for files in std::mem::take(&mut self.early) {
            self.store(files);
        }
        let ids: Vec<u32> = self.sinks.keys().copied().collect();
        ids.into_iter().for_each(|id| self.feed_sink(id));
    }

    fn next_phase(&mut self) {
        loop {
            self.phase = match self.phase {
                Phase::Content => Phase::Adjust,
                Phase::Adjust => Phase::Remove,
                Phase::Remove => Phase::DirectoryTimes,
                Phase::DirectoryTimes => Phase::Close,
                Phase::Offer | Phase::Plan | Phase::Directories | Phase::Close => return,
            };
            if self.phase == Phase::Close {
                if let Some(subject) = self.subject.clone() {
                    self.desk.start(Work::Close(subject));
                }
                return;
            }
            if self.start_steps() {
                return;
            }
        }
    }

    // Asking.

    /// Sends wants while the window is open.
    fn ask(&mut self) {
        while self.signs < SIGNS_MAX && self.window.has_room(self.signs) {
            let Some(fetch) = self.plan.fetch.pop_front() else { break };
            if fetch.at.is_some() || self.plan.has_staged {
                self.signs += 1;
                self.desk.start(Work::Sign { id: fetch.id, at: fetch.at });
            } else {
                self.want(Want::whole(fetch.id), None);
            }
        }
        // A batch leaves when it is full, or when nothing that is under way will add to it.
        if self.batch_bytes > 0 && self.signs == 0 {
            self.send_batch();
        }
    }

    fn signed(&mut self, id: u32, result: Result<(Want, Option<Hash>), Fault>) {
        self.signs -= 1;
        match result {
            Ok((want, old_hash)) => self.want(want, old_hash),
            // What cannot be read cannot serve as basis; the content comes whole.
            Err(Fault::Entry(..)) => self.want(Want::whole(id), None),
            Err(fault) => self.fatal(fault),
        }
    }

    fn want(&mut self, want: Want, old_hash: Option<Hash>) {
        let weight = want.weight();
        self.window.open(weight);
        self.asked.insert(want.id, Ask { weight, old_hash, given: false });
        if self.batch_bytes + weight > BATCH_BYTES {
            self.send_batch();
        }
        self.batch.push(want);
        self.batch_bytes += weight;
    }

    fn send_batch(&mut self) {
        if !self.batch.is_empty() {
            self.desk.send(Message::Wants(std::mem::take(&mut self.batch)));
            self.batch_bytes = 0;
        }
    }

    fn sign_request(&mut self, id: u32, windows: Vec<OldWindow>) {
        if !self.asked.get(&id).is_some_and(|ask| ask.old_hash.is_some() && !ask.given) {
            return self.desk.protocol_error("signatures are asked for where there is no old version");
        }
        self.signs += 1;
        if self.signs > SIGNS_MAX + STREAMS_MAX {
            return self.desk.protocol_error("too many signatures are asked for at once");
        }
        self.desk.start(Work::SignWindows { id, windows });
    }

    // Answers.

    fn files(&mut self, files: Vec<(u32, Body)>) {
        let mut store = Vec::new();
        for (id, body) in files {
            let Some(ask) = self.asked.get_mut(&id).filter(|ask| !ask.given) else {
                return self.desk.protocol_error("a file that nobody asked for");
            };
            let old_hash = ask.old_hash;
            ask.given = true;
            if self.sinks.contains_key(&id) && body != Body::Skipped {
                return self.desk.protocol_error("a file in two ways at once");
            }
            match body {
                Body::Whole { hash, data } => {
                    if data.len() as u64 != self.size(id) {
                        return self.desk.protocol_error("a file of another size than offered");
                    }
                    self.held_bytes += data.len();
                    self.tally.sent_bytes += data.len() as u64;
                    self.desk.progress(Event::Moved { bytes: data.len() as u64 });
                    store.push(SmallFile { id, hash, data: data.into_vec() });
                }
                Body::Same { hash } if old_hash == Some(hash) => {
                    self.tally.matched_bytes += self.size(id);
                    self.desk.progress(Event::Matched { bytes: self.size(id) });
                    self.tally.files += 1;
                    self.plan.only_adjust(id);
                    self.answered(id);
                }
                Body::Same { .. } => self.retry(id, "what was said to be the same is not"),
                Body::Skipped => match self.sinks.get_mut(&id) {
                    Some(sink) => {
                        (sink.ended, sink.skipped) = (true, true);
                        self.feed_sink(id);
                    }
                    None => self.answered(id),
                },
            }
        }
        if store.is_empty() {
            return;
        }
        if self.phase == Phase::Directories { self.early.push(store) } else { self.store(store) }
    }

    fn store(&mut self, files: Vec<SmallFile>) {
        self.stores += 1;
        self.desk.start(Work::Store(files));
    }

    fn pieces(&mut self, id: u32, ops: Vec<Op>, end: Option<Hash>) {
        let Some(ask) = self.asked.get_mut(&id).filter(|ask| !ask.given) else {
            return self.desk.protocol_error("content that nobody asked for");
        };
        ask.given = end.is_some();
        let size = self.size(id);
        // One of which all has come, and which the disk has still to take in, is none to the sender any more.
        let open_count = self.sinks.values().filter(|sink| !sink.ended).count();
        if !self.sinks.contains_key(&id) && open_count >= STREAMS_MAX {
            return self.desk.protocol_error("too many files at once");
        }
        let path = self.path(id);
        let sink = self.sinks.entry(id).or_insert_with(|| {
            self.desk.progress(Event::Began { path });
            Sink::default()
        });
        let made = ops.iter().map(Op::made_bytes).fold(0, u64::saturating_add);
        let sent: u64 = ops.iter().map(Op::sent_bytes).sum();
        sink.made_bytes = sink.made_bytes.saturating_add(made);
        sink.sent_bytes += sent;
        let length_fits = if end.is_some() { sink.made_bytes == size } else { sink.made_bytes <= size };
        if !length_fits {
            return self.desk.protocol_error("a file of another size than offered");
        }
        sink.ended = end.is_some();
        self.held_bytes += held_bytes(&ops);
        self.tally.sent_bytes += sent;
        self.tally.matched_bytes += made.saturating_sub(sent);
        sink.waiting.push_back((ops, end));
        self.desk.progress(Event::Moved { bytes: sent });
        self.desk.progress(Event::Matched { bytes: made.saturating_sub(sent) });
        self.feed_sink(id);
    }

    /// Starts the next work of a larger file, unless one is under way.
    fn feed_sink(&mut self, id: u32) {
        if self.phase != Phase::Content {
            return;
        }
        let Some(sink) = self.sinks.get_mut(&id).filter(|sink| !sink.busy) else { return };
        while let Some((ops, end)) = sink.waiting.pop_front() {
            self.held_bytes -= held_bytes(&ops);
            if sink.failed.is_none() && !sink.skipped {
                sink.busy = true;
                return self.desk.start(Work::Sink { id, ops, end });
            }
        }
        // Nothing waits: either more is on its way, or that was all.
        if sink.ended {
            let (failed, skipped) = (sink.failed.take(), sink.skipped);
            self.sinks.remove(&id);
            if skipped { self.answered(id) } else { self.settle(id, failed.map_or(Ok(()), Err)) }
        }
    }

    fn sunk(&mut self, id: u32, result: Result<(), Fault>) {
        let Some(sink) = self.sinks.get_mut(&id) else { return };
        sink.busy = false;
        match result {
            Err(Fault::Fatal(kind, text)) => return self.desk.fail(kind, text),
            Err(fault) => sink.failed = Some(fault),
            Ok(()) => {}
        }
        self.feed_sink(id);
    }

    /// The content of a file is in place, or is not.
    fn settle(&mut self, id: u32, result: Result<(), Fault>) {
        match result {
            Ok(()) => {
                self.tally.files += 1;
                if self.plan.is_update(id) {
                    self.tally.updated += 1
                } else {
                    self.tally.created += 1
                }
                self.answered(id);
            }
            Err(Fault::Entry(Trouble::Corrupt, cause)) => self.retry(id, &cause),
            Err(fault) => {
                let path = self.path(id);
                if self.complain(path, fault) {
                    self.answered(id);
                }
            }
        }
    }

    /// Asks once more for a file whose content did not verify, all of it this time.
    fn retry(&mut self, id: u32, cause: &str) {
        self.answered(id);
        if self.retried.insert(id) {
            self.want(Want::whole(id), None);
            self.send_batch();
        } else {
            let path = self.path(id);
            self.desk.problem(Problem { trouble: Trouble::Corrupt, path, cause: cause.to_owned() });
        }
    }

    fn answered(&mut self, id: u32) {
        if let Some(ask) = self.asked.remove(&id) {
            self.window.close(ask.weight);
        }
    }

    fn go_on(&mut self) {
        if matches!(self.phase, Phase::Directories | Phase::Content) {
            self.ask();
        }
        if self.contents_are_there() && self.desk.queue.is_empty() {
            self.next_phase();
        }
    }

    /// Whether content that has arrived is not on the disk yet.
    fn puts_content_aside(&self) -> bool {
        match self.phase {
            Phase::Directories => !self.early.is_empty() || !self.sinks.is_empty(),
            Phase::Content => self.stores > 0 || self.sinks.values().any(|sink| sink.busy),
            _ => false,
        }
    }

    fn contents_are_there(&self) -> bool {
        self.phase == Phase::Content
            && self.plan.fetch.is_empty()
            && self.batch.is_empty()
            && self.signs == 0
            && self.window.is_empty()
            && self.stores == 0
            && self.sinks.is_empty()
    }

    // Trouble.

    /// Reports what is wrong with one entry; `false` if that ends the run.
    fn complain(&mut self, path: Vec<u8>, fault: Fault) -> bool {
        match fault {
            Fault::Entry(trouble, cause) => {
                self.desk.problem(Problem { trouble, path, cause });
                true
            }
            Fault::Fatal(kind, text) => {
                self.desk.fail(kind, text);
                false
            }
        }
    }

    fn fatal(&mut self, fault: Fault) {
        match fault {
            Fault::Fatal(kind, text) => self.desk.fail(kind, text),
            Fault::Entry(_, text) => self.desk.fail(AbortKind::Destination, text),
        }
    }

    fn is_directory(&self) -> bool {
        matches!(self.subject, Some(Subject::Directory { .. }))
    }

    fn size(&self, id: u32) -> u64 {
        self.wanted.get(id).map_or(0, Entry::size)
    }

    fn path(&self, id: u32) -> Vec<u8> {
        self.wanted.get(id).map(|entry| entry.path.as_bytes().to_vec()).unwrap_or_default()
    }

    fn step_path(&self, step: Step) -> Vec<u8> {
        match step {
            Step::MakeDirectory { id } | Step::MakeLink { id } | Step::Adjust { id } => self.path(id),
            Step::Clear { at } | Step::Remove { at } | Step::Unlock { at } => {
                let entry = self.opened.as_ref().and_then(|opened| opened.manifest.get(at));
                entry.map(|entry| entry.path.as_bytes().to_vec()).unwrap_or_default()
            }
        }
    }
}

impl Engine for Receiver {
    fn input(&mut self, input: Input) {
        if self.desk.ended.is_some() {
            return;
        }
        match input {
            Input::Message(message) => self.message(message),
            Input::Outcome(outcome) => self.outcome(outcome),
            Input::Closed(cause) => self.closing = Some(cause),
            Input::Broken(kind, cause) => self.desk.fail(kind, cause),
        }
    }

    fn poll(&mut self) -> Output {
        if self.desk.ended.is_none() && self.desk.queue.is_empty() {
            if let Some(cause) = self.closing.clone().filter(|_| !self.puts_content_aside()) {
                self.desk.peer_failed(AbortKind::Connection, cause);
            } else if self.closing.is_none() {
                self.go_on();
            }
        }
        let waits_for_work = self.held_bytes > HELD_BYTES_MAX || self.closing.is_some();
        let idle = if waits_for_work { Output::WaitForWork } else { Output::Wait };
        self.desk.next().unwrap_or(idle)
    }
}
