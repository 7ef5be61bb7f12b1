//! The receiver's half that asks for contents and takes them in.
//!
//! Wants leave in batches, as the window allows. Arriving content goes to the disk at once, or
//! waits. Small files wait for their directories, the steps of a larger file for the steps before
//! them. `held_bytes` counts all waiting bytes.

use std::collections::VecDeque;

use serde_bytes::ByteBuf;

use super::{Phase, Receiver};
use crate::content::hash::Hash;
use crate::engine::work::{Advertised, CopiedFile, SignOrder, SmallContent, SmallFile, Work, WorkError};
use crate::monitor::{Action, Differs, Event, Problem, ProblemKind, What};
use crate::wire::message::{
    AbortKind, BasisReport, Body, Message, Op, SMALL_BYTES_MAX, STREAMS_MAX, Stretch, Want, Window, digest_of,
};

/// Most bytes of content that wait for the disk before messages have to wait.
pub(super) const HELD_BYTES_MAX: usize = 8 << 20;

/// Most works on bases at a time.
const SIGNS_MAX: usize = 4;

/// Most files in one of these works, and the bytes from which it takes no more.
const SIGN_FILES_MAX: usize = 64;
const SIGN_BYTES: u64 = 1 << 20;

/// Weight of a batch of wants, in bytes, at which it is sent.
const BATCH_BYTES: usize = 64 << 10;

/// Memory of waiting steps, in bytes: their content, and the steps themselves. A peer may send any
/// number of steps without content.
fn held_bytes(ops: &[Op]) -> usize {
    const MESSAGE_BYTES: usize = 128;
    let content: u64 = ops.iter().map(Op::sent_bytes).sum();
    MESSAGE_BYTES + size_of_val(ops) + content as usize
}

/// A want that was sent.
#[derive(Debug)]
pub(super) struct Ask {
    weight: usize,
    basis: Option<Basis>,
    /// True once the basis was cut, which the sender may ask for once.
    was_cut: bool,
    /// True once the basis was signed as a whole, which the sender may ask for once.
    was_signed: bool,
    /// True once the answer is complete and a work on it is under way: the sender may send nothing
    /// more about the file.
    given: bool,
}

/// The basis of a wanted file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Basis {
    /// A position in the present manifest.
    at: u32,
    /// The hash of its content, to check the answer "the same"; `None` if the basis is longer and
    /// cannot be the same.
    hash: Option<Hash>,
    /// True if the basis lies elsewhere than in the new file's place.
    elsewhere: bool,
    /// True if the basis was advertised with a gap inserted.
    has_gap: bool,
}

/// A larger file in flight.
#[derive(Debug, Default)]
pub(super) struct Sink {
    busy: bool,
    waiting: VecDeque<(Vec<Op>, Option<Hash>)>,
    made_bytes: u64,
    /// True once the last steps have arrived.
    ended: bool,
    /// Set if the file cannot be made; steps that still arrive are dropped.
    failed: Option<WorkError>,
    /// True if the sender gave the file up; it has reported why.
    skipped: bool,
}

impl Sink {
    /// A file whose steps are all known at once.
    fn of(ops: Vec<Op>, hash: Hash) -> Self {
        Self { waiting: VecDeque::from([(ops, Some(hash))]), ended: true, ..Self::default() }
    }
}

impl Receiver {
    // Asking.

    /// Sends wants while the window is open.
    pub(super) fn ask(&mut self) {
        let (mut orders, mut bytes, mut pushed) = (Vec::new(), 0, Vec::new());
        while self.signs < SIGNS_MAX && self.window.has_room(self.signing.len()) {
            let Some(fetch) = self.plan.fetch.pop_front() else { break };
            if let Some((hash, data)) = self.offer.pushed.take(fetch.id) {
                self.held_bytes += data.len();
                self.tally.sent_bytes += data.len() as u64;
                self.outbox.progress(Event::Moved { bytes: data.len() as u64 });
                pushed.push(SmallFile { id: fetch.id, hash, content: SmallContent::Whole(data) });
                continue;
            }
            let may_be_staged = self.plan.has_staged;
            if fetch.at.is_none() && !may_be_staged {
                self.want(Want::whole(fetch.id), None);
                continue;
            }
            let basis = fetch.at.and_then(|at| self.opened.as_ref()?.manifest.get(at));
            bytes +=
                basis.map_or(0, |entry| entry.size()) + if may_be_staged { self.size(fetch.id) } else { 0 };
            self.signing.insert(fetch.id, fetch);
            let samples = self.offer.samples.remove(&fetch.id);
            let is_doubted = fetch.is_doubted;
            orders.push(SignOrder { id: fetch.id, at: fetch.at, may_be_staged, is_doubted, samples });
            if orders.len() >= SIGN_FILES_MAX || bytes >= SIGN_BYTES {
                self.sign(&mut orders);
                bytes = 0;
            }
        }
        self.sign(&mut orders);
        if !pushed.is_empty() {
            self.put(Work::Store(pushed));
        }
        // Send a batch when it is full, or when no work under way will add to it.
        if self.batch_bytes > 0 && self.signs == 0 {
            self.send_batch();
        }
    }

    fn sign(&mut self, orders: &mut Vec<SignOrder>) {
        if !orders.is_empty() {
            self.signs += 1;
            self.outbox.start(Work::Sign(std::mem::take(orders)));
        }
    }

    pub(super) fn signed(&mut self, results: Vec<(u32, Result<Advertised, WorkError>)>) {
        self.signs -= 1;
        for (id, result) in results {
            let fetch = self.signing.remove(&id);
            match result {
                Ok(Advertised { want, hash, has_gap }) => {
                    let basis = fetch.and_then(|fetch| {
                        Some(Basis { at: fetch.at?, hash, elsewhere: fetch.elsewhere, has_gap })
                    });
                    self.want(want, basis);
                }
                // An unreadable file cannot serve as basis; the content comes whole.
                Err(WorkError::Entry(..)) => self.want(Want::whole(id), None),
                Err(error) => return self.outbox.fatal(AbortKind::Destination, error),
            }
        }
    }

    fn want(&mut self, want: Want, basis: Option<Basis>) {
        let weight = want.weight();
        self.window.open(weight);
        let was_signed = matches!(want.basis, Some(BasisReport::Signed { .. }));
        self.asked.insert(want.id, Ask { weight, basis, was_cut: false, was_signed, given: false });
        if self.batch_bytes + weight > BATCH_BYTES {
            self.send_batch();
        }
        self.batch.push(want);
        self.batch_bytes += weight;
    }

    fn send_batch(&mut self) {
        if !self.batch.is_empty() {
            self.outbox.send(Message::Wants(std::mem::take(&mut self.batch)));
            self.batch_bytes = 0;
        }
    }

    pub(super) fn sign_request(&mut self, id: u32, windows: Vec<Window>) {
        if let Some(at) = self.basis_to_look_at(id) {
            self.outbox.start(Work::SignWindows { id, at, windows });
        }
    }

    pub(super) fn cut_request(&mut self, id: u32, stretch: Stretch) {
        let Some(at) = self.basis_to_look_at(id) else { return };
        if self.asked.get_mut(&id).is_some_and(|ask| std::mem::replace(&mut ask.was_cut, true)) {
            return self.outbox.protocol_error("an old version is to be cut twice");
        }
        self.outbox.start(Work::Cut { id, at, stretch });
    }

    /// Returns the basis that the sender asks about, and counts the work on it.
    fn basis_to_look_at(&mut self, id: u32) -> Option<u32> {
        let basis = self.asked.get(&id).filter(|ask| !ask.given).and_then(|ask| ask.basis);
        let Some(Basis { at, .. }) = basis else {
            self.outbox.protocol_error("a look at an old version is asked for where there is none");
            return None;
        };
        self.signs += 1;
        if self.signs > SIGNS_MAX + STREAMS_MAX {
            self.outbox.protocol_error("too many looks at old versions are asked for at once");
            return None;
        }
        Some(at)
    }

    // Answers.

    pub(super) fn files(&mut self, files: Vec<(u32, Body)>) {
        let (mut store, mut to_sign) = (Vec::new(), Vec::new());
        for (id, body) in files {
            let Some(ask) = self.asked.get_mut(&id).filter(|ask| !ask.given) else {
                return self.outbox.protocol_error("a file that nobody asked for");
            };
            let basis = ask.basis;
            if body == Body::Differs {
                let Some(Basis { at, .. }) = basis.filter(|_| !ask.was_signed) else {
                    return self.outbox.protocol_error("a signature is asked for where it cannot be");
                };
                ask.was_signed = true;
                to_sign.push((id, at));
                continue;
            }
            let was_signed = ask.was_signed;
            ask.given = true;
            if self.sinks.contains_key(&id) && body != Body::Skipped {
                return self.outbox.protocol_error("a file in two ways at once");
            }
            match body {
                Body::Differs => {}
                Body::Delta { hash, delta } => {
                    let Some(Basis { at, .. }) = basis.filter(|_| was_signed) else {
                        return self.outbox.protocol_error("a delta that nobody can apply");
                    };
                    let (size, sent) = (self.size(id), delta.len() as u64);
                    if size > SMALL_BYTES_MAX {
                        return self.outbox.protocol_error("a delta of what is too long for one");
                    }
                    self.held_bytes += size as usize;
                    self.tally.sent_bytes += sent;
                    self.tally.matched_bytes += size.saturating_sub(sent);
                    self.outbox.progress(Event::Moved { bytes: sent });
                    self.outbox.progress(Event::Matched { bytes: size.saturating_sub(sent) });
                    let content = SmallContent::Delta { at, delta: delta.into_vec() };
                    store.push(SmallFile { id, hash, content });
                }
                Body::Whole { hash, data } => {
                    if data.len() as u64 != self.size(id) {
                        return self.outbox.protocol_error("a file of another size than offered");
                    }
                    self.held_bytes += data.len();
                    self.tally.sent_bytes += data.len() as u64;
                    self.outbox.progress(Event::Moved { bytes: data.len() as u64 });
                    let content = SmallContent::Whole(data.into_vec());
                    store.push(SmallFile { id, hash, content });
                }
                Body::Skipped => match self.sinks.get_mut(&id) {
                    Some(sink) => {
                        (sink.ended, sink.skipped) = (true, true);
                        self.feed_sink(id);
                    }
                    None => self.answered(id),
                },
            }
        }
        if !to_sign.is_empty() {
            self.file_signs += 1;
            self.outbox.start(Work::SignFiles(to_sign));
        }
        if !store.is_empty() {
            self.put(Work::Store(store));
        }
    }

    pub(super) fn same(&mut self, ids: &[u32], digest: Hash) {
        let mut bases = Vec::with_capacity(ids.len());
        for &id in ids {
            let Some(ask) = self.asked.get_mut(&id).filter(|ask| !ask.given) else {
                return self.outbox.protocol_error("a file that nobody asked for");
            };
            if self.sinks.contains_key(&id) {
                return self.outbox.protocol_error("a file in two ways at once");
            }
            ask.given = true;
            bases.push(ask.basis);
        }
        let hashes: Option<Vec<Hash>> =
            bases.iter().map(|basis| basis.and_then(|basis| basis.hash)).collect();
        let Some(hashes) = hashes.filter(|hashes| digest_of(hashes.iter()) == digest) else {
            return ids.iter().for_each(|&id| self.retry(id, "what was said to be the same is not"));
        };
        let mut copies = Vec::new();
        for ((&id, basis), hash) in ids.iter().zip(bases).zip(hashes) {
            self.tally.matched_bytes += self.size(id);
            self.outbox.progress(Event::Matched { bytes: self.size(id) });
            match basis {
                Some(Basis { at, elsewhere: true, .. }) => {
                    if self.is_new(id) && self.plan.move_here(id, at, hash) {
                        self.answered(id);
                    } else {
                        copies.push(CopiedFile { id, at, hash });
                    }
                }
                Some(Basis { has_gap: true, .. }) => {
                    // The basis on disk lacks the gap, so the equal content must still be made.
                    let ops = vec![Op::Copy { offset: 0, length: self.size(id) }];
                    self.held_bytes += held_bytes(&ops);
                    self.sinks.insert(id, Sink::of(ops, hash));
                    self.feed_sink(id);
                }
                _ => {
                    self.tally.files += 1;
                    self.plan.only_adjust(id);
                    self.answered(id);
                }
            }
        }
        if !copies.is_empty() {
            self.put(Work::Copy(copies));
        }
    }

    pub(super) fn signed_files(&mut self, results: Vec<(u32, Result<Vec<u8>, WorkError>)>) {
        self.file_signs -= 1;
        let mut signatures = Vec::with_capacity(results.len());
        for (id, result) in results {
            match result {
                Err(WorkError::Fatal(kind, text)) => return self.outbox.fail(kind, text),
                // The basis changed or went away: send no signature.
                result => signatures.push((id, ByteBuf::from(result.unwrap_or_default()))),
            }
        }
        self.outbox.send(Message::FileSignatures(signatures));
    }

    /// Starts a work that puts files in place, or keeps it until their directories exist.
    pub(super) fn put(&mut self, work: Work) {
        if self.phase == Phase::Directories {
            self.early.push(work);
        } else {
            self.stores += 1;
            self.outbox.start(work);
        }
    }

    pub(super) fn pieces(&mut self, id: u32, ops: Vec<Op>, end: Option<Hash>) {
        let Some(ask) = self.asked.get_mut(&id).filter(|ask| !ask.given) else {
            return self.outbox.protocol_error("content that nobody asked for");
        };
        ask.given = end.is_some();
        let size = self.size(id);
        // A file whose steps have all arrived, and which only the disk still works on, is finished
        // for the sender.
        let open_count = self.sinks.values().filter(|sink| !sink.ended).count();
        if !self.sinks.contains_key(&id) && open_count >= STREAMS_MAX {
            return self.outbox.protocol_error("too many files at once");
        }
        let path = self.path(id);
        let sink = self.sinks.entry(id).or_insert_with(|| {
            self.outbox.progress(Event::Began { path });
            Sink::default()
        });
        let made = ops.iter().map(Op::made_bytes).fold(0, u64::saturating_add);
        let sent: u64 = ops.iter().map(Op::sent_bytes).sum();
        sink.made_bytes = sink.made_bytes.saturating_add(made);
        let length_fits = if end.is_some() { sink.made_bytes == size } else { sink.made_bytes <= size };
        if !length_fits {
            return self.outbox.protocol_error("a file of another size than offered");
        }
        sink.ended = end.is_some();
        self.held_bytes += held_bytes(&ops);
        self.tally.sent_bytes += sent;
        self.tally.matched_bytes += made.saturating_sub(sent);
        sink.waiting.push_back((ops, end));
        self.outbox.progress(Event::Moved { bytes: sent });
        self.outbox.progress(Event::Matched { bytes: made.saturating_sub(sent) });
        self.feed_sink(id);
    }

    /// Starts the next work of a larger file, unless one is under way.
    pub(super) fn feed_sink(&mut self, id: u32) {
        if self.phase != Phase::Content {
            return;
        }
        let Some(sink) = self.sinks.get_mut(&id).filter(|sink| !sink.busy) else { return };
        while let Some((ops, end)) = sink.waiting.pop_front() {
            self.held_bytes -= held_bytes(&ops);
            if sink.failed.is_none() && !sink.skipped {
                sink.busy = true;
                let at = self.asked.get(&id).and_then(|ask| ask.basis).map(|basis| basis.at);
                return self.outbox.start(Work::Sink { id, at, ops, end });
            }
        }
        // Nothing waits: either more steps are in flight, or these were all.
        if sink.ended {
            let (failed, skipped) = (sink.failed.take(), sink.skipped);
            self.sinks.remove(&id);
            if skipped { self.answered(id) } else { self.settle(id, failed.map_or(Ok(()), Err)) }
        }
    }

    pub(super) fn sunk(&mut self, id: u32, result: Result<(), WorkError>) {
        let Some(sink) = self.sinks.get_mut(&id) else { return };
        sink.busy = false;
        match result {
            Err(WorkError::Fatal(kind, text)) => return self.outbox.fail(kind, text),
            Err(error) => sink.failed = Some(error),
            Ok(()) => {}
        }
        self.feed_sink(id);
    }

    /// Records that the content of a file is in place, or failed.
    pub(super) fn settle(&mut self, id: u32, result: Result<(), WorkError>) {
        match result {
            Ok(()) => {
                self.tally.files += 1;
                self.tally.deleted += self.plan.cleared(id);
                if self.plan.is_update(id) {
                    self.tally.updated += 1;
                    self.tell_repair(id);
                } else {
                    self.tally.created += 1
                }
                self.answered(id);
            }
            Err(WorkError::Entry(ProblemKind::Corrupt, cause)) => self.retry(id, &cause),
            Err(error) => {
                let path = self.path(id);
                if self.outbox.report_error(path, error) {
                    self.answered(id);
                }
            }
        }
    }

    /// Reports a file that was only to be verified, differed, and was replaced.
    fn tell_repair(&mut self, id: u32) {
        if self.plan.is_verify(id) && self.config.options.list_changes {
            let path = self.path(id);
            let (action, what, differs) = (Action::Update, What::File, Differs::default());
            self.outbox.report(Event::Change { action, what, differs, path });
        }
    }

    /// Asks once more for a file whose content did not verify, this time for all of it.
    fn retry(&mut self, id: u32, cause: &str) {
        self.answered(id);
        if self.retried.insert(id) {
            self.want(Want::whole(id), None);
            self.send_batch();
        } else {
            let path = self.path(id);
            self.outbox.problem(Problem { kind: ProblemKind::Corrupt, path, cause: cause.to_owned() });
        }
    }

    fn answered(&mut self, id: u32) {
        if let Some(ask) = self.asked.remove(&id) {
            self.window.close(ask.weight);
        }
    }

    pub(super) fn go_on(&mut self) {
        if matches!(self.phase, Phase::Directories | Phase::Content) {
            self.ask();
        }
        if self.contents_are_there() && self.outbox.queue.is_empty() {
            self.next_phase();
        }
    }

    /// True if content that has arrived is not on the disk yet.
    pub(super) fn puts_content_aside(&self) -> bool {
        match self.phase {
            Phase::Directories => !self.early.is_empty() || !self.sinks.is_empty(),
            Phase::Content => self.stores > 0 || self.sinks.values().any(|sink| sink.busy),
            _ => false,
        }
    }

    pub(super) fn contents_are_there(&self) -> bool {
        self.phase == Phase::Content
            && self.plan.fetch.is_empty()
            && self.batch.is_empty()
            && self.signs + self.file_signs == 0
            && self.window.is_empty()
            && self.stores == 0
            && self.sinks.is_empty()
    }
}
