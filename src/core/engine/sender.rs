//! The sender: offers a tree and answers wants.
//!
//! ```text
//! Find ─► Subject    Scan ─► Ignores Entries… Offered    Wants ─► Read ─► Files
//!      └► Baseline        └► Changes… Changed                  └► Source… ─► Files / Pieces /
//! FileSignatures ─► Diff ─► Files                              / Same    SignRequest / CutRequest
//! [StoreBaseline ─►] Finished ─► done
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_bytes::ByteBuf;

use crate::content::chunk::Chunk;
use crate::content::delta::signature_bytes;
use crate::engine::work::{
    Changed, Found, Outcome, PushedFile, ReadContent, ReadFile, ReadOrder, Scanned, SignedFile, SourceNext,
    SourceStep, Work, WorkError,
};
use crate::engine::{Config, Engine, Input, Outbox, Output};
use crate::monitor::Event;
use crate::tree::entry::Kind;
use crate::tree::filter::IgnoreFile;
use crate::tree::manifest::Manifest;
use crate::tree::path_ref::PathRef;
use crate::tree::subtrees::Subtree;
use crate::wire::message::{
    AbortKind, BasisReport, Body, CONTENT_BYTES_MAX, DELTA_BYTES_MIN, Holes, LIST_MAX, Message, Op,
    SMALL_BASIS_BYTES_MAX, SMALL_BYTES_MAX, STREAMS_MAX, Subject, Tally, WANTS_BYTES_MAX, WANTS_MAX, Want,
};

/// Longest file that is sent whole although the receiver has a basis: a signature costs a round
/// trip and saves little.
const WHOLE_BYTES_MAX: u64 = 16 << 10;

/// Bytes of waiting files above which signatures cost less than the files. Compressed, they take
/// about 50 ms at 20 Mbit/s.
const WHOLE_QUEUE_BYTES_MAX: u64 = 512 << 10;

/// Most small files in one `Read`.
const READ_FILES_MAX: usize = 512;

/// Most works on content at a time: enough to keep disk, hashing and channel busy at once.
const WORKS_MAX: usize = 4;

/// Most wants for one file: the first, and one more after its content arrived damaged.
const ASKS_MAX: u8 = 2;

/// The side that has the files.
#[derive(Debug)]
pub struct Sender {
    outbox: Outbox,
    manifest: Option<Arc<Manifest>>,
    /// Ignore files of the offer.
    ignores: Vec<IgnoreFile>,
    complete: bool,
    offered_all: bool,
    /// True while the receiver has been named a baseline and has not reported it as missing.
    has_baseline: bool,
    /// True on the agent.
    relay: bool,
    keeping: Keeping,
    /// The listed source, until it may be offered.
    listed: Option<Scanned>,
    /// The subject of a partial offer.
    subject: Option<Subject>,
    /// Contents that go with the offer.
    pushed: Vec<PushedFile>,
    /// The receiver's counts, once it has finished.
    finished: Option<Tally>,
    /// Wants that wait for their turn.
    small: VecDeque<Want>,
    /// Bytes of those files that have a basis.
    small_basis_bytes: u64,
    /// Small files whose basis the receiver must sign, with its length.
    differing: HashMap<u32, u64>,
    /// Small files whose basis the receiver has signed.
    signed: VecDeque<SignedFile>,
    large: VecDeque<Want>,
    /// Larger files in flight.
    streams: HashMap<u32, Stream>,
    /// Number of wants per file.
    asks: HashMap<u32, u8>,
    /// Files with an unanswered want, with the want's weight.
    unanswered: HashMap<u32, usize>,
    unanswered_bytes: usize,
    reads: usize,
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

/// State of a larger file.
#[derive(Debug, PartialEq, Eq)]
enum Stream {
    /// A work is under way.
    Working,
    /// The receiver must sign this many windows.
    Signing(usize),
    /// Both sides cut; the receiver's chunks may arrive first.
    Cutting(Option<Vec<Chunk>>),
    /// The receiver must send its chunks; the sender's are cut.
    Cut,
}

impl Sender {
    /// Makes a sender that begins by identifying and listing its source.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let mut outbox = Outbox::new(config.relay);
        outbox.start(Work::Find);
        Self {
            outbox,
            manifest: None,
            ignores: Vec::new(),
            complete: false,
            offered_all: false,
            has_baseline: false,
            relay: config.relay,
            keeping: Keeping::Settled,
            listed: None,
            subject: None,
            pushed: Vec::new(),
            finished: None,
            small: VecDeque::new(),
            small_basis_bytes: 0,
            differing: HashMap::new(),
            signed: VecDeque::new(),
            large: VecDeque::new(),
            streams: HashMap::new(),
            asks: HashMap::new(),
            unanswered: HashMap::new(),
            unanswered_bytes: 0,
            reads: 0,
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Wants(wants) => {
                wants.into_iter().for_each(|want| self.want(want));
                self.store_baseline();
            }
            Message::Signatures { id, signatures } => match self.streams.get(&id) {
                // An empty list means that the basis can no longer be read.
                Some(Stream::Signing(count)) if signatures.is_empty() || signatures.len() == *count => {
                    self.streams.insert(id, Stream::Working);
                    let signatures = signatures.into_iter().map(ByteBuf::into_vec).collect();
                    self.outbox.start(Work::Source { id, step: SourceStep::Signatures(signatures) });
                }
                _ => self.outbox.protocol_error("signatures that nobody asked for"),
            },
            Message::FileSignatures(files) => {
                files.into_iter().for_each(|(id, signature)| self.file_signature(id, signature.into_vec()));
            }
            Message::Chunks { id, chunks } => match self.streams.get_mut(&id) {
                Some(Stream::Cutting(theirs @ None)) => *theirs = Some(chunks),
                Some(Stream::Cut) => self.compare_chunks(id, chunks),
                _ => self.outbox.protocol_error("chunks that nobody asked for"),
            },
            Message::Finished(_) if !self.unanswered.is_empty() || self.manifest.is_none() => {
                self.outbox.protocol_error("finished before everything was answered");
            }
            Message::Finished(tally) => {
                self.finished = Some(tally);
                self.store_baseline();
                self.finish_when_ready();
            }
            Message::BaselineMissing => self.forgotten(),
            Message::Rescan => self.outbox.protocol_error("a further round is asked for where there is none"),
            Message::Note(event) => self.outbox.note(event),
            Message::Abort { kind, text } => self.outbox.peer_failed(kind, text),
            Message::Subject(_)
            | Message::Ignores(_)
            | Message::Entries(_)
            | Message::Offered { .. }
            | Message::Baseline { .. }
            | Message::Changes(_)
            | Message::Changed { .. }
            | Message::Files(_)
            | Message::Same { .. }
            | Message::SignRequest { .. }
            | Message::CutRequest { .. }
            | Message::Pieces { .. }
            | Message::Scope(_)
            | Message::Pushed(_)
            | Message::Heartbeat { .. }
            | Message::Sampled(_)
            | Message::Holes(_) => self.outbox.protocol_error("a message that only a sender sends"),
        }
    }

    fn want(&mut self, mut want: Want) {
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
        let asked = self.asks.entry(want.id).or_default();
        *asked += 1;
        let weight = want.weight();
        if *asked > ASKS_MAX || self.unanswered.insert(want.id, weight).is_some() {
            return self.outbox.protocol_error("a file was asked for too often");
        }
        self.unanswered_bytes += weight;
        if self.unanswered.len() > WANTS_MAX || self.unanswered_bytes > WANTS_BYTES_MAX {
            return self.outbox.protocol_error("too many wants without an answer");
        }
        self.outbox.progress(Event::Planned { files: 1, bytes: size });
        if let Some(BasisReport::Signed { length, signature }) =
            want.basis.take_if(|basis| matches!(basis, BasisReport::Signed { .. }))
        {
            let signature = signature.into_vec();
            return self.signed.push_back(SignedFile { id: want.id, basis_length: length, signature });
        }
        let is_small = size <= SMALL_BYTES_MAX
            && match (&want.staged, want.basis_blocks()) {
                (None, None) => true,
                (None, Some(basis)) => basis.length <= SMALL_BASIS_BYTES_MAX || size <= WHOLE_BYTES_MAX,
                (Some(_), _) => size <= WHOLE_BYTES_MAX,
            };
        if is_small {
            self.small_basis_bytes += want.basis.as_ref().map_or(0, |_| size);
            self.small.push_back(want);
        } else {
            self.large.push_back(want);
        }
    }

    fn file_signature(&mut self, id: u32, signature: Vec<u8>) {
        let Some(basis_length) = self.differing.remove(&id) else {
            return self.outbox.protocol_error("a signature that nobody asked for");
        };
        if !signature.is_empty() && signature.len() != signature_bytes(basis_length as usize) {
            return self.outbox.protocol_error("a signature of another length than due");
        }
        self.signed.push_back(SignedFile { id, basis_length, signature });
    }

    fn outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Find(Ok(found)) => self.found(found),
            Outcome::Scan(Ok(scanned)) => self.scanned(scanned),
            Outcome::Find(Err(error)) | Outcome::Scan(Err(error)) => {
                self.outbox.fatal(AbortKind::Selection, error)
            }
            Outcome::StoreBaseline => {
                self.keeping = Keeping::Settled;
                if let Some(scanned) = self.listed.take() {
                    self.offer(scanned);
                }
                self.finish_when_ready();
            }
            Outcome::Read(files) => self.read(files),
            Outcome::Source(id, Ok((ops, next))) => self.source(id, ops, next),
            Outcome::Source(id, Err(error)) => {
                self.streams.remove(&id);
                if self.outbox.report_error(self.path(id), error) {
                    self.answered(id);
                    self.outbox.send(Message::Files(vec![(id, Body::Skipped)]));
                }
            }
            other => self.outbox.stray_outcome(&other),
        }
    }

    fn found(&mut self, found: Found) {
        if found.is_partial {
            self.subject = Some(found.subject);
            return self.outbox.start(Work::Scan);
        }
        self.outbox.send(Message::Subject(found.subject));
        // Name the baseline long before the differences are known, so that a receiver without it
        // can say so meanwhile.
        if let Some(digest) = found.baseline {
            self.has_baseline = true;
            self.outbox.send(Message::Baseline { digest });
        }
        self.outbox.start(Work::Scan);
    }

    fn scanned(&mut self, mut scanned: Scanned) {
        let Scanned { manifest, problems, excluded, is_new, .. } = &mut scanned;
        let bytes = manifest.content_bytes();
        self.outbox.report(Event::Scanned { entries: manifest.len() as u64, bytes });
        if *excluded > 0 {
            self.outbox.report(Event::Excluded { entries: *excluded });
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
        self.outbox.start(Work::StoreBaseline { manifest, ignores });
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
        let Scanned { manifest, ignores, complete, changed, scope, pushed, sampled, holes, .. } = scanned;
        (self.manifest, self.ignores) = (Some(manifest), ignores);
        self.complete = complete;
        if let (Some(scope), Some(subject)) = (scope, self.subject.take()) {
            let subtrees: Vec<Subtree> = scope.encode().collect();
            let mut subtrees = subtrees.chunks(LIST_MAX);
            // Send at least one scope: an offer without any is a full one.
            let first = subtrees.next().unwrap_or_default();
            std::iter::once(first)
                .chain(subtrees)
                .for_each(|subtrees| self.outbox.send(Message::Scope(subtrees.to_vec())));
            self.outbox.send(Message::Subject(subject));
        }
        self.pushed = pushed;
        // Send samples once, whether the offer goes as changes or in full.
        if !sampled.is_empty() {
            self.outbox.send(Message::Sampled(sampled));
        }
        if holes != Holes::default() {
            self.outbox.send(Message::Holes(holes));
        }
        match changed {
            Some(Changed { changes, ignores, digest }) if self.has_baseline => {
                if ignores {
                    self.offer_ignores();
                }
                changes.into_iter().for_each(|change| self.outbox.send(Message::Changes(change)));
                self.outbox.send(Message::Changed { complete, digest });
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
            self.outbox.send(Message::Entries(ByteBuf::from(block)));
        }
        self.push();
        self.outbox.send(Message::Offered { complete: self.complete });
    }

    /// Sends the pushed contents.
    fn push(&mut self) {
        let pushed = std::mem::take(&mut self.pushed);
        if !pushed.is_empty() {
            let files = pushed.into_iter().map(|file| (file.id, file.hash, ByteBuf::from(file.data)));
            self.outbox.send(Message::Pushed(files.collect()));
        }
    }

    /// Sends at least one message, so that the receiver learns of an empty list too.
    fn offer_ignores(&mut self) {
        let mut files = self.ignores.chunks(16);
        let first = files.next().unwrap_or_default();
        for files in std::iter::once(first).chain(files) {
            self.outbox.send(Message::Ignores(files.to_vec()));
        }
    }

    /// Handles a receiver that does not have the baseline.
    fn forgotten(&mut self) {
        if !std::mem::take(&mut self.has_baseline) || !self.asks.is_empty() {
            return self.outbox.protocol_error("it forgot what it was not told, or knew before");
        }
        // A tree that is still being listed will be offered in full.
        if self.manifest.is_some() && !self.offered_all {
            self.offer_all();
        }
    }

    fn read(&mut self, files: Vec<(u32, Result<ReadFile, WorkError>)>) {
        self.reads -= 1;
        let (mut answers, mut same) = (Vec::with_capacity(files.len()), Vec::new());
        for (id, result) in files {
            let body = match result {
                Ok(ReadFile { content: ReadContent::Whole(data), hash }) => {
                    self.outbox.progress(Event::Moved { bytes: data.len() as u64 });
                    Body::Whole { hash, data: ByteBuf::from(data) }
                }
                Ok(ReadFile { content: ReadContent::Delta(delta), hash }) => {
                    let sent = delta.len() as u64;
                    self.outbox.progress(Event::Moved { bytes: sent });
                    self.outbox.progress(Event::Matched { bytes: self.size(id).saturating_sub(sent) });
                    Body::Delta { hash, delta: ByteBuf::from(delta) }
                }
                Ok(ReadFile { content: ReadContent::Same, hash }) => {
                    self.outbox.progress(Event::Matched { bytes: self.size(id) });
                    self.answered(id);
                    same.push((id, hash));
                    continue;
                }
                Ok(ReadFile { content: ReadContent::Differs { basis_length }, .. }) => {
                    self.differing.insert(id, basis_length);
                    answers.push((id, Body::Differs));
                    continue;
                }
                Err(error) => {
                    if !self.outbox.report_error(self.path(id), error) {
                        return;
                    }
                    Body::Skipped
                }
            };
            self.answered(id);
            answers.push((id, body));
        }
        if !same.is_empty() {
            self.outbox.send(Message::same(&same));
        }
        if !answers.is_empty() {
            self.outbox.send(Message::Files(answers));
        }
    }

    fn source(&mut self, id: u32, ops: Vec<Op>, next: SourceNext) {
        let sent: u64 = ops.iter().map(Op::sent_bytes).sum();
        let made: u64 = ops.iter().map(Op::made_bytes).sum();
        self.outbox.progress(Event::Moved { bytes: sent });
        self.outbox.progress(Event::Matched { bytes: made.saturating_sub(sent) });
        let end = match next {
            SourceNext::More => {
                self.outbox.send(Message::Pieces { id, ops, end: None });
                return self.outbox.start(Work::Source { id, step: SourceStep::More });
            }
            SourceNext::Sign(windows) => {
                if !ops.is_empty() {
                    self.outbox.send(Message::Pieces { id, ops, end: None });
                }
                self.streams.insert(id, Stream::Signing(windows.len()));
                return self.outbox.send(Message::SignRequest { id, windows });
            }
            SourceNext::Cut(stretch) => {
                self.streams.insert(id, Stream::Cutting(None));
                self.outbox.send(Message::CutRequest { id, stretch });
                return self.outbox.start(Work::Source { id, step: SourceStep::Cut });
            }
            SourceNext::Chunks => {
                if let Some(Stream::Cutting(Some(theirs))) = self.streams.insert(id, Stream::Cut) {
                    self.compare_chunks(id, theirs);
                }
                return;
            }
            SourceNext::End(hash) => Message::Pieces { id, ops, end: Some(hash) },
            SourceNext::Same(hash) => {
                self.outbox.progress(Event::Matched { bytes: self.size(id) });
                Message::same(&[(id, hash)])
            }
        };
        self.streams.remove(&id);
        self.answered(id);
        self.outbox.send(end);
    }

    fn compare_chunks(&mut self, id: u32, theirs: Vec<Chunk>) {
        self.streams.insert(id, Stream::Working);
        self.outbox.start(Work::Source { id, step: SourceStep::Chunks(theirs) });
    }

    fn answered(&mut self, id: u32) {
        self.unanswered_bytes -= self.unanswered.remove(&id).unwrap_or(0);
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
        while self.works() < WORKS_MAX {
            if let Some(batch) = self.next_signed() {
                self.reads += 1;
                self.outbox.start(Work::Diff(batch));
            } else if let Some(batch) = self.next_batch() {
                self.reads += 1;
                self.outbox.start(Work::Read(batch));
            } else if self.streams.len() < STREAMS_MAX
                && let Some(want) = self.large.pop_front()
            {
                self.begin(want);
            } else {
                return;
            }
        }
    }

    fn works(&self) -> usize {
        let is_working = |stream: &&Stream| matches!(stream, Stream::Working | Stream::Cutting(_));
        self.reads + self.streams.values().filter(is_working).count()
    }

    fn begin(&mut self, want: Want) {
        let id = want.id;
        self.streams.insert(id, Stream::Working);
        let path = self.path(id);
        self.outbox.progress(Event::Began { path });
        self.outbox.start(Work::Source { id, step: SourceStep::Begin(want) });
    }

    /// Takes small files that together make about one message.
    fn next_batch(&mut self) -> Option<Vec<ReadOrder>> {
        let in_bulk = self.small_basis_bytes > WHOLE_QUEUE_BYTES_MAX;
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(want) = self.small.front() {
            let size = self.size(want.id);
            bytes += size as usize + 64;
            if batch.len() == READ_FILES_MAX || (bytes > CONTENT_BYTES_MAX && !batch.is_empty()) {
                break;
            }
            let Some(want) = self.small.pop_front() else { break };
            let may_ask = match want.basis_blocks() {
                Some(basis) => {
                    self.small_basis_bytes -= size;
                    let worth = if in_bulk { DELTA_BYTES_MIN } else { WHOLE_BYTES_MAX + 1 };
                    size >= worth
                        && (1..=SMALL_BASIS_BYTES_MAX).contains(&basis.length)
                        && want.staged.is_none()
                }
                None => false,
            };
            batch.push(ReadOrder { want, may_ask });
        }
        (!batch.is_empty()).then_some(batch)
    }

    /// Takes small files whose bases are signed.
    fn next_signed(&mut self) -> Option<Vec<SignedFile>> {
        let mut bytes = 0;
        let sizes = self.signed.iter().map(|signed| self.size(signed.id) as usize);
        let count = sizes.take_while(|size| {
            bytes += size;
            bytes <= CONTENT_BYTES_MAX
        });
        let count = count.count().clamp(1, READ_FILES_MAX).min(self.signed.len());
        (count > 0).then(|| self.signed.drain(..count).collect())
    }
}

impl Engine for Sender {
    fn input(&mut self, input: Input) {
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

    fn poll(&mut self) -> Output {
        if self.outbox.ended.is_none() && self.outbox.queue.is_empty() {
            self.pump();
        }
        // `Wait` here would make the caller report the ended stream again and again.
        let idle = if self.finished.is_some() { Output::WaitForWork } else { Output::Wait };
        self.outbox.next().unwrap_or(idle)
    }
}
