//! The sender: offers a tree and answers wants.
//!
//! ```text
//! Find ─► Subject    Scan ─► Ignores Entries… Offered    Wants ─► Step ─► Answers / Same
//!      └► Baseline        └► Changes… Changed            Replies ─► Step ─► Answers
//! Removable ─► Remove ─► Removed    [StoreBaseline ─►] Finished ─► done
//! ```

mod removal;
mod remove;

use std::collections::VecDeque;
use std::sync::Arc;

use serde_bytes::ByteBuf;

use crate::content::chunk::Chunk;
use crate::engine::contract::{Config, Engine, Input, Output};
use crate::engine::ids::IdMap;
use crate::engine::limits::Limits;
use crate::engine::outbox::Outbox;
use crate::engine::transfer::Source;
use crate::engine::transfer::send::{SendInput, SendNext, SendTransfer};
use crate::engine::work::{Changed, Found, PushedFile, Scanned, SenderOutcome, SenderWork, Sent};
use crate::monitor::Event;
use crate::tree::entry::Kind;
use crate::tree::filter::IgnoreFile;
use crate::tree::manifest::Manifest;
use crate::tree::path_ref::PathRef;
use crate::tree::subtrees::Subtree;
use crate::wire::message::{
    AbortKind, Answer, CONTENT_BYTES_MAX, DELTA_BYTES_MIN, FromReceiver, FromSender, Holes, LIST_MAX, Op,
    Reply, SMALL_BASIS_BYTES_MAX, STREAMS_MAX, Subject, Tally, WANTS_BYTES_MAX, WANTS_MAX, WHOLE_BYTES_MAX,
    Want,
};
use removal::Removal;

/// Bytes of waiting files above which signatures cost less than the files. Compressed, they take
/// about 50 ms at 20 Mbit/s.
const WHOLE_QUEUE_BYTES_MAX: u64 = 512 << 10;

/// Most small files in one work.
const BATCH_FILES_MAX: usize = 512;

/// Most works on content at a time: enough to keep disk, hashing and channel busy at once.
const WORKS_MAX: usize = 4;

/// Most wants for one file: the first, and one more after its content arrived damaged.
const ASKS_MAX: u8 = 2;

/// The side that has the files.
#[derive(Debug)]
pub struct Sender<S: Source> {
    outbox: Outbox<FromSender, SenderWork<S>>,
    /// The listed source.
    source: Option<S>,
    manifest: Option<Arc<Manifest>>,
    /// Ignore files of the offer.
    ignores: Vec<IgnoreFile>,
    complete: bool,
    offered_all: bool,
    /// True while the receiver has been named a baseline and has not reported it as missing.
    has_baseline: bool,
    /// True on the agent.
    relay: bool,
    limits: Limits,
    keeping: Keeping,
    /// The listed source, until it may be offered.
    listed: Option<Scanned>,
    /// The subject of a partial offer.
    subject: Option<Subject>,
    /// Contents that go with the offer.
    pushed: Vec<PushedFile>,
    /// The receiver's counts, once it has finished.
    finished: Option<Tally>,
    /// All files that were asked for.
    asked: IdMap<AskedFile<S::File>>,
    /// Wants that wait for their turn.
    small: VecDeque<Want>,
    large: VecDeque<Want>,
    /// Bytes of the small ones that have a basis.
    small_basis_bytes: u64,
    /// Small files whose basis the receiver has signed.
    signed: VecDeque<(Box<SendTransfer<S::File>>, SendInput)>,
    /// Number and weight of the wants without an answer.
    unanswered: usize,
    unanswered_bytes: usize,
    /// Larger files in flight.
    streams: usize,
    /// Works on content under way.
    works: usize,
    removal: Removal,
}

/// A file that was asked for.
#[derive(Debug)]
struct AskedFile<F> {
    /// Number of wants.
    asks: u8,
    /// Weight of the last want in bytes.
    weight: usize,
    state: State<F>,
}

/// State of a file that was asked for.
#[derive(Debug)]
enum State<F> {
    /// It waits for its turn, or a work is under way.
    Busy,
    /// The receiver must sign this many windows.
    Signing(Box<SendTransfer<F>>, usize),
    /// Both sides cut; the receiver's chunks may arrive first.
    Cutting(Option<Vec<Chunk>>),
    /// The receiver must send its chunks; the sender's are cut.
    Cut(Box<SendTransfer<F>>),
    /// The answer is complete.
    Answered,
}

/// State of storing the offer as the baseline.
///
/// The client stores it once the receiver has shown that it took the offer in. Otherwise each run
/// that ends earlier would leave the two sides with different baselines. An agent cannot wait,
/// because the client may cut it off after it has finished. So the agent stores the offer before it
/// sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeping {
    /// Stored, or nothing to store.
    Settled,
    /// To be stored.
    Due,
    /// The work is under way.
    UnderWay,
}

impl<S: Source> Sender<S> {
    /// Makes a sender that begins by identifying and listing its source.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let mut outbox = Outbox::new(config.relay);
        outbox.start(SenderWork::Find);
        Self {
            outbox,
            source: None,
            manifest: None,
            ignores: Vec::new(),
            complete: false,
            offered_all: false,
            has_baseline: false,
            relay: config.relay,
            limits: config.limits,
            keeping: Keeping::Settled,
            listed: None,
            subject: None,
            pushed: Vec::new(),
            finished: None,
            asked: IdMap::default(),
            small: VecDeque::new(),
            large: VecDeque::new(),
            small_basis_bytes: 0,
            signed: VecDeque::new(),
            unanswered: 0,
            unanswered_bytes: 0,
            streams: 0,
            works: 0,
            removal: Removal::new(&config.options),
        }
    }

    fn message(&mut self, message: FromReceiver) {
        match message {
            FromReceiver::Common(common) => self.outbox.common(common),
            FromReceiver::Wants(wants) => {
                wants.into_iter().for_each(|want| self.want(want));
                self.store_baseline();
            }
            FromReceiver::Replies(replies) => {
                replies.into_iter().for_each(|(id, reply)| self.reply(id, reply));
            }
            FromReceiver::Removable { entries, is_last } => self.remove(entries, is_last),
            FromReceiver::Finished(_)
                if self.unanswered > 0 || self.manifest.is_none() || self.removal.is_under_way() =>
            {
                self.outbox.protocol_error("finished before everything was answered");
            }
            FromReceiver::Finished(tally) => {
                self.finished = Some(tally);
                self.store_baseline();
                self.finish_when_ready();
            }
            FromReceiver::BaselineMissing => self.forgotten(),
            FromReceiver::Rescan => {
                self.outbox.protocol_error("a further round is asked for where there is none");
            }
        }
    }

    fn want(&mut self, want: Want) {
        let entry = self.manifest.as_ref().and_then(|manifest| manifest.get(want.id));
        let Some(size) = entry.and_then(|entry| match entry.kind {
            Kind::File { size, .. } => Some(size),
            Kind::Directory | Kind::Symlink { .. } => None,
        }) else {
            return self.outbox.protocol_error("a want for what was not offered as a file");
        };
        if !want.fits(size) {
            return self.outbox.protocol_error("a want names other blocks than the file can have");
        }
        let first = || AskedFile { asks: 0, weight: 0, state: State::Answered };
        let file = self.asked.entry(want.id).or_insert_with(first);
        if file.asks == ASKS_MAX || !matches!(file.state, State::Answered) {
            return self.outbox.protocol_error("a file was asked for too often");
        }
        let weight = want.weight();
        *file = AskedFile { asks: file.asks + 1, weight, state: State::Busy };
        self.unanswered += 1;
        self.unanswered_bytes += weight;
        if self.unanswered > WANTS_MAX || self.unanswered_bytes > WANTS_BYTES_MAX {
            return self.outbox.protocol_error("too many wants without an answer");
        }
        self.outbox.progress(Event::Planned { files: 1, bytes: size });
        if want.is_small(size) {
            self.small_basis_bytes += want.basis_blocks().map_or(0, |_| size);
            self.small.push_back(want);
        } else {
            self.large.push_back(want);
        }
    }

    fn reply(&mut self, id: u32, reply: Reply) {
        let Some(file) = self.asked.get_mut(&id) else {
            return self.outbox.protocol_error("a reply that nobody asked for");
        };
        match (std::mem::replace(&mut file.state, State::Busy), reply) {
            // An empty list means that the basis can no longer be read.
            (State::Signing(transfer, count), Reply::Signatures(signatures))
                if signatures.is_empty() || signatures.len() == count =>
            {
                let signatures = signatures.into_iter().map(ByteBuf::into_vec).collect();
                let input = SendInput::Signatures(signatures);
                if transfer.is_small() {
                    self.signed.push_back((transfer, input));
                } else {
                    self.step(transfer, input);
                }
            }
            (State::Cutting(None), Reply::Chunks(theirs)) => file.state = State::Cutting(Some(theirs)),
            (State::Cut(transfer), Reply::Chunks(theirs)) => self.step(transfer, SendInput::Chunks(theirs)),
            _ => self.outbox.protocol_error("a reply that nobody asked for"),
        }
    }

    fn outcome(&mut self, outcome: SenderOutcome<S>) {
        match outcome {
            SenderOutcome::Find(Ok((found, source))) => self.found(found, source),
            SenderOutcome::Scan(Ok((scanned, source))) => {
                self.source = Some(source);
                self.scanned(scanned);
            }
            SenderOutcome::Find(Err(error)) | SenderOutcome::Scan(Err(error)) => {
                self.outbox.fatal(AbortKind::Selection, error);
            }
            SenderOutcome::StoreBaseline => {
                self.keeping = Keeping::Settled;
                if let Some(scanned) = self.listed.take() {
                    self.offer(scanned);
                }
                self.finish_when_ready();
            }
            SenderOutcome::Step(stepped) => self.stepped(stepped),
            SenderOutcome::Remove(results) => self.removed(results),
        }
    }

    fn found(&mut self, found: Found, source: S::Found) {
        self.outbox.start(SenderWork::Scan(source));
        if found.is_partial {
            self.subject = Some(found.subject);
            return;
        }
        self.outbox.send(FromSender::Subject(found.subject));
        // Name the baseline long before the differences are known, so that a receiver without it
        // can say so meanwhile.
        if let Some(digest) = found.baseline {
            self.has_baseline = true;
            self.outbox.send(FromSender::Baseline { digest });
        }
    }

    fn scanned(&mut self, mut scanned: Scanned) {
        let Scanned { manifest, problems, excluded, state_directories, is_new, .. } = &mut scanned;
        let bytes = manifest.content_bytes();
        self.outbox.report(Event::Scanned { entries: manifest.len() as u64, bytes });
        if *excluded > 0 {
            self.outbox.report(Event::Excluded { entries: *excluded });
        }
        if *state_directories > 0 {
            self.outbox.report(Event::StateExcluded { directories: *state_directories });
        }
        std::mem::take(problems).into_iter().for_each(|problem| self.outbox.problem(problem));
        if *is_new {
            self.keeping = Keeping::Due;
        }
        if self.relay && *is_new {
            self.keep(Arc::clone(&scanned.manifest), scanned.ignores.clone());
            self.listed = Some(scanned);
        } else {
            self.offer(scanned);
        }
    }

    fn keep(&mut self, manifest: Arc<Manifest>, ignores: Vec<IgnoreFile>) {
        self.keeping = Keeping::UnderWay;
        self.outbox.start(SenderWork::StoreBaseline { manifest, ignores });
    }

    /// Stores the offer as the baseline, now that the receiver has taken it in.
    fn store_baseline(&mut self) {
        if let (Keeping::Due, Some(manifest)) = (self.keeping, self.manifest.clone()) {
            self.keep(manifest, self.ignores.clone());
        }
    }

    fn finish_when_ready(&mut self) {
        if let (Keeping::Settled, Some(tally)) = (self.keeping, self.finished) {
            self.outbox.finish(tally);
        }
    }

    fn offer(&mut self, scanned: Scanned) {
        let Scanned {
            manifest, ignores, complete, changed, scope, pushed, sampled, holes, owners, root, ..
        } = scanned;
        (self.manifest, self.ignores) = (Some(manifest), ignores);
        self.complete = complete;
        if let (Some(scope), Some(subject)) = (scope, self.subject.take()) {
            // An offer without any scope is a full one.
            let subtrees: Vec<Subtree> = scope.encode().collect();
            messages(&subtrees, LIST_MAX)
                .for_each(|subtrees| self.outbox.send(FromSender::Scope(subtrees.to_vec())));
            self.outbox.send(FromSender::Subject(subject));
        }
        self.pushed = pushed;
        // Send samples once, whether the offer goes as changes or in full.
        if !sampled.is_empty() {
            self.outbox.send(FromSender::Sampled(sampled));
        }
        if holes != Holes::default() {
            self.outbox.send(FromSender::Holes(holes));
        }
        owners.into_iter().for_each(|owners| self.outbox.send(FromSender::Owners(*owners)));
        root.into_iter().for_each(|root| self.outbox.send(FromSender::Root((*root).clone())));
        match changed {
            Some(Changed { changes, ignores, digest }) if self.has_baseline => {
                if ignores {
                    self.offer_ignores();
                }
                changes.into_iter().for_each(|change| self.outbox.send(FromSender::Changes(change)));
                self.outbox.send(FromSender::Changed { complete, digest });
            }
            _ => self.offer_all(),
        }
    }

    fn offer_all(&mut self) {
        let Some(manifest) = self.manifest.clone() else { return };
        self.offered_all = true;
        if !self.ignores.is_empty() {
            self.offer_ignores();
        }
        for block in manifest.blocks() {
            self.outbox.send(FromSender::Entries(ByteBuf::from(block)));
        }
        self.push();
        self.outbox.send(FromSender::Offered { complete: self.complete });
    }

    /// Sends the pushed contents.
    fn push(&mut self) {
        let pushed = std::mem::take(&mut self.pushed);
        if !pushed.is_empty() {
            let files = pushed.into_iter().map(|file| (file.id, file.hash, ByteBuf::from(file.data)));
            self.outbox.send(FromSender::Pushed(files.collect()));
        }
    }

    fn offer_ignores(&mut self) {
        messages(&self.ignores, 16).for_each(|files| self.outbox.send(FromSender::Ignores(files.to_vec())));
    }

    /// Handles a receiver that does not have the baseline.
    fn forgotten(&mut self) {
        if !std::mem::take(&mut self.has_baseline) || !self.asked.is_empty() {
            return self.outbox.protocol_error("it forgot what it was not told, or knew before");
        }
        // A tree that is still being listed will be offered in full.
        if self.manifest.is_some() && !self.offered_all {
            self.offer_all();
        }
    }

    fn stepped(&mut self, stepped: Vec<Sent<S::File>>) {
        self.works -= 1;
        let (mut answers, mut same) = (Vec::with_capacity(stepped.len()), Vec::new());
        let (mut moved, mut matched) = (0, 0);
        for (transfer, result) in stepped {
            let (id, is_small) = (transfer.id(), transfer.is_small());
            let (ops, next) = match result {
                Ok(stepped) => stepped,
                Err(error) => {
                    if !self.outbox.report_error(self.path(id), error) {
                        return;
                    }
                    self.answered(id, is_small);
                    answers.push((id, Answer::Skipped));
                    continue;
                }
            };
            let sent: u64 = ops.iter().map(Op::sent_bytes).sum();
            let made: u64 = ops.iter().map(Op::made_bytes).sum();
            moved += sent;
            matched += made.saturating_sub(sent);
            if transfer.has_grown() {
                self.outbox.report(Event::Grew { path: self.path(id) });
            }
            match next {
                SendNext::End(hash) => {
                    self.answered(id, is_small);
                    answers.push((id, Answer::Steps { ops, end: Some(hash) }));
                }
                SendNext::Same(hash) => {
                    matched += self.size(id);
                    self.answered(id, is_small);
                    same.push((id, hash));
                }
                next => {
                    if !ops.is_empty() {
                        answers.push((id, Answer::Steps { ops, end: None }));
                    }
                    answers.extend(self.needs(transfer, next).map(|answer| (id, answer)));
                }
            }
        }
        self.outbox.took(moved, matched);
        if !same.is_empty() {
            self.outbox.send(FromSender::same(&same));
        }
        if !answers.is_empty() {
            self.outbox.send(FromSender::Answers(answers));
        }
    }

    /// Goes on with a file that is not answered yet. Returns a question for the receiver, if that
    /// is its need.
    fn needs(&mut self, transfer: Box<SendTransfer<S::File>>, next: SendNext) -> Option<Answer> {
        let id = transfer.id();
        let (state, question) = match next {
            SendNext::Sign(windows) => (State::Signing(transfer, windows.len()), Some(Answer::Sign(windows))),
            SendNext::Cut(stretch) => {
                self.step(transfer, SendInput::Cut);
                (State::Cutting(None), Some(Answer::Cut(stretch)))
            }
            SendNext::Chunks => match self.asked.get_mut(&id).map(|file| &mut file.state) {
                Some(State::Cutting(theirs @ Some(_))) => {
                    let theirs = theirs.take().unwrap_or_default();
                    self.step(transfer, SendInput::Chunks(theirs));
                    (State::Busy, None)
                }
                _ => (State::Cut(transfer), None),
            },
            SendNext::More | SendNext::End(_) | SendNext::Same(_) => {
                self.step(transfer, SendInput::More);
                (State::Busy, None)
            }
        };
        self.asked.entry(id).and_modify(|file| file.state = state);
        question
    }

    fn step(&mut self, transfer: Box<SendTransfer<S::File>>, input: SendInput) {
        self.step_all(vec![(transfer, input)]);
    }

    fn step_all(&mut self, steps: Vec<(Box<SendTransfer<S::File>>, SendInput)>) {
        if let Some(source) = self.source.clone() {
            self.works += 1;
            self.outbox.start(SenderWork::Step { source, steps });
        }
    }

    fn answered(&mut self, id: u32, is_small: bool) {
        if let Some(file) = self.asked.get_mut(&id) {
            file.state = State::Answered;
            self.unanswered -= 1;
            self.unanswered_bytes -= file.weight;
            self.streams -= usize::from(!is_small);
        }
    }

    fn size(&self, id: u32) -> u64 {
        self.manifest.as_ref().and_then(|manifest| manifest.get(id)).map_or(0, |entry| entry.size())
    }

    fn path(&self, id: u32) -> Vec<u8> {
        let path = self.manifest.as_ref().and_then(|manifest| manifest.path(id));
        path.map(PathRef::to_vec).unwrap_or_default()
    }

    /// Starts works up to the limit. Files that wait for the receiver keep neither disk nor channel
    /// busy.
    fn pump(&mut self) {
        while self.works < WORKS_MAX {
            let batch = self.next_signed().or_else(|| self.next_small()).or_else(|| self.next_large());
            let Some(batch) = batch else { return };
            self.step_all(batch);
        }
    }

    fn next_large(&mut self) -> Option<Batch<S>> {
        let want = (self.streams < STREAMS_MAX).then(|| self.large.pop_front())??;
        self.streams += 1;
        let path = self.path(want.id);
        self.outbox.progress(Event::Began { path });
        let size = self.size(want.id);
        Some(vec![(Box::new(SendTransfer::new(want, size, true, self.limits)), SendInput::Begin)])
    }

    /// Takes small files that together make about one message.
    fn next_small(&mut self) -> Option<Batch<S>> {
        let in_bulk = self.small_basis_bytes > WHOLE_QUEUE_BYTES_MAX;
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(want) = self.small.front() {
            let size = self.size(want.id);
            bytes += size as usize + 64;
            if batch.len() == BATCH_FILES_MAX || (bytes > CONTENT_BYTES_MAX && !batch.is_empty()) {
                break;
            }
            let Some(want) = self.small.pop_front() else { break };
            self.small_basis_bytes -= want.basis_blocks().map_or(0, |_| size);
            let worth = if in_bulk { DELTA_BYTES_MIN } else { WHOLE_BYTES_MAX + 1 };
            let may_ask = size >= worth
                && (1..=SMALL_BASIS_BYTES_MAX).contains(&want.basis_length())
                && want.staged.is_none();
            batch.push((Box::new(SendTransfer::new(want, size, may_ask, self.limits)), SendInput::Begin));
        }
        (!batch.is_empty()).then_some(batch)
    }

    /// Takes small files whose bases are signed.
    fn next_signed(&mut self) -> Option<Batch<S>> {
        let mut bytes = 0;
        let sizes = self.signed.iter().map(|(transfer, _)| self.size(transfer.id()) as usize);
        let count = sizes.take_while(|size| {
            bytes += size;
            bytes <= CONTENT_BYTES_MAX
        });
        let count = count.count().clamp(1, BATCH_FILES_MAX).min(self.signed.len());
        (count > 0).then(|| self.signed.drain(..count).collect())
    }
}

/// Splits a list into messages: one at least, so that the receiver learns of an empty list too.
fn messages<T>(list: &[T], most: usize) -> impl Iterator<Item = &[T]> {
    list.chunks(most).chain(list.is_empty().then_some(list))
}

/// Files of one work.
type Batch<S> = Vec<(Box<SendTransfer<<S as Source>::File>>, SendInput)>;

impl<S: Source> Engine for Sender<S> {
    type Incoming = FromReceiver;
    type Outgoing = FromSender;
    type Work = SenderWork<S>;
    type Outcome = SenderOutcome<S>;

    fn input(&mut self, input: Input<FromReceiver, SenderOutcome<S>>) {
        if self.outbox.ended.is_some() {
            return;
        }
        match input {
            // After the receiver has finished, its messages and its end do not matter.
            Input::Message(_) | Input::Closed(_) | Input::Broken(..) if self.finished.is_some() => {}
            Input::Message(message) => self.message(message),
            Input::Outcome(outcome) => self.outcome(outcome),
            Input::Closed(cause) => {
                self.outbox.peer_failed(AbortKind::Connection, cause);
            }
            Input::Broken(kind, cause) => self.outbox.fail(kind, cause),
        }
    }

    fn poll(&mut self) -> Output<FromSender, SenderWork<S>> {
        if self.outbox.ended.is_none() && self.outbox.queue.is_empty() {
            self.pump();
        }
        // `Wait` here would make the caller report the ended stream again and again.
        let idle = if self.finished.is_some() { Output::WaitForWork } else { Output::Wait };
        self.outbox.next().unwrap_or(idle)
    }
}
