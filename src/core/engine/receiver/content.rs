//! The receiver's half that asks for contents and takes them in.
//!
//! Wants leave in batches, as the window allows. Arriving content goes to the disk at once, or
//! waits: for its directory, or for the steps before it. `held_bytes` counts it until it is there.

use serde_bytes::ByteBuf;

use super::missing_file::{MissingFile, Progress, held_bytes};
use super::{Phase, Receiver};
use crate::content::hash::Hash;
use crate::engine::error::WorkError;
use crate::engine::plan::Item;
use crate::engine::transfer::Target;
use crate::engine::transfer::pre_copy::CancelOnDrop;
use crate::engine::transfer::receive::{Looked, Query, ReceiveInput, Returned, Strategy};
use crate::engine::work::{ReceiverWork, ReportOrder};
use crate::monitor::{Action, Event, Problem, ProblemKind};
use crate::wire::message::{
    AbortKind, Answer, FromReceiver, Op, Reply, SMALL_BYTES_MAX, STREAMS_MAX, Want, digest_of,
};

/// Most works at a time that prepare wants.
const REPORTS_MAX: usize = 4;

/// Most files in one of these works, and the bytes from which it takes no more.
const REPORT_FILES_MAX: usize = 64;
const REPORT_BYTES: u64 = 1 << 20;

/// Most small files in one work, and the bytes from which it takes no more.
const STEP_FILES_MAX: usize = 512;
const STEP_BYTES: usize = 1 << 20;

/// Most pre-copies at a time, and most that are made in vain.
const PRE_COPIES_MAX: usize = 2;

/// Weight of a batch of wants, in bytes, at which it is sent.
const BATCH_BYTES: usize = 64 << 10;

impl<T: Target> Receiver<T> {
    // Asking.

    /// Sends wants while the window is open.
    pub(super) fn ask(&mut self) {
        let (mut orders, mut bytes, mut pushed) = (Vec::new(), 0, Vec::new());
        let may_be_staged = self.plan.has_staged;
        while self.reports < REPORTS_MAX && self.window.has_room(self.preparing) {
            let Some(fetch) = self.plan.fetch.pop_front() else { break };
            let (id, size) = (fetch.id, self.size(fetch.id));
            let basis = fetch.at.and_then(|at| self.opened.as_ref()?.entry(at));
            let basis_bytes = basis.map(|entry| entry.size());
            let mut file = Box::new(MissingFile::new(fetch, size, basis_bytes));
            if let Some((hash, data)) = self.offer.pushed.files.remove(&id) {
                self.took(data.len() as u64, data.len() as u64);
                (file.sent_bytes, file.made_bytes) = (data.len() as u64, data.len() as u64);
                self.held_bytes += file.complete(vec![Op::Data(ByteBuf::from(data))], hash);
                self.missing.insert(id, file);
                pushed.push(id);
                continue;
            }
            if basis_bytes.is_none() && !may_be_staged {
                self.missing.insert(id, file);
                self.want(Want::whole(id));
                continue;
            }
            self.preparing += 1;
            if let (true, Some(at)) = (file.facts.need_look(self.config.limits.pre_copy_bytes_min), fetch.at)
            {
                let (facts, samples) = (file.facts, self.offer.samples.remove(&id));
                self.missing.insert(id, file);
                self.reports += 1;
                self.on_target(|target| ReceiverWork::Look { target, id, at, facts, samples });
                continue;
            }
            bytes += basis_bytes.unwrap_or(0) + if may_be_staged { size } else { 0 };
            let strategy = file.facts.strategy(None, false);
            orders.extend(file.held.take().map(|transfer| ReportOrder { transfer, strategy, may_be_staged }));
            self.missing.insert(id, file);
            if orders.len() >= REPORT_FILES_MAX || bytes >= REPORT_BYTES {
                self.report(std::mem::take(&mut orders));
                bytes = 0;
            }
        }
        if !orders.is_empty() {
            self.report(orders);
        }
        self.feed(pushed);
        // Send a batch when it is full, or when no work under way will add to it.
        if self.batch_bytes > 0 && self.reports == 0 {
            self.send_batch();
        }
    }

    fn report(&mut self, orders: Vec<ReportOrder<T>>) {
        self.reports += 1;
        self.on_target(|target| ReceiverWork::Report(target, orders));
    }

    pub(super) fn looked(&mut self, id: u32, looked: &Looked) {
        self.reports -= 1;
        let pre_copies = self.missing.values().filter(|file| file.pre_copy.is_some()).count();
        let Some(file) = self.missing.get_mut(&id) else { return };
        let strategy = file.facts.strategy(Some(looked), pre_copies < PRE_COPIES_MAX);
        file.pre_copy = matches!(strategy, Strategy::PreCopy { .. }).then(CancelOnDrop::default);
        let Some(transfer) = file.held.take() else { return };
        let may_be_staged = self.plan.has_staged;
        self.report(vec![ReportOrder { transfer, strategy, may_be_staged }]);
    }

    pub(super) fn reported(&mut self, reported: Vec<Returned<T, (Want, Strategy)>>) {
        self.reports -= 1;
        self.preparing -= reported.len();
        for (held, result) in reported {
            let id = held.id();
            let Some(file) = self.missing.get_mut(&id) else { continue };
            let (want, strategy) = match result {
                Ok(reported) => reported,
                // An unreadable file cannot serve as basis; the content comes whole.
                Err(WorkError::Entry(..)) => (Want::whole(id), Strategy::Whole),
                Err(error) => return self.outbox.fatal(AbortKind::Destination, error),
            };
            file.basis = held.basis().filter(|_| want.basis.is_some());
            file.pre_copy = match strategy {
                Strategy::PreCopy { is_beside, .. } if is_beside || held.has_pre_copy() => {
                    file.pre_copy.take()
                }
                _ => None,
            };
            file.held = Some(held);
            if let (Strategy::PreCopy { shift_map, is_beside: true }, Some(pre_copy)) =
                (strategy, &file.pre_copy)
            {
                let input = ReceiveInput::PreCopy(shift_map, pre_copy.flag());
                let steps = file.held.take().map(|held| (held, input)).into_iter().collect();
                self.on_target(|target| ReceiverWork::Step(target, steps));
            }
            self.want(want);
        }
    }

    fn want(&mut self, want: Want) {
        let weight = want.weight();
        if let Some(file) = self.missing.get_mut(&want.id) {
            file.progress = Progress::Asked;
            file.weight = Some(weight);
            self.window.open(weight);
        }
        if self.batch_bytes + weight > BATCH_BYTES {
            self.send_batch();
        }
        self.batch.push(want);
        self.batch_bytes += weight;
    }

    fn send_batch(&mut self) {
        if !self.batch.is_empty() {
            self.outbox.send(FromReceiver::Wants(std::mem::take(&mut self.batch)));
            self.batch_bytes = 0;
        }
    }

    // Answers.

    pub(super) fn answers(&mut self, answers: Vec<(u32, Answer)>) {
        let (mut queries, mut fed) = (Vec::new(), Vec::new());
        let (mut sent, mut made) = (0, 0);
        for (id, answer) in answers {
            let Some(file) = self.missing.get_mut(&id).filter(|file| file.is_awaited()) else {
                return self.outbox.protocol_error("an answer that nobody asked for");
            };
            let query = match answer {
                Answer::Skipped => {
                    file.progress = Progress::Over;
                    fed.push(id);
                    continue;
                }
                Answer::Steps { ops, end } => {
                    let Some(bytes) = self.steps(id, ops, end) else { return };
                    (sent, made) = (sent + bytes.0, made + bytes.1);
                    fed.push(id);
                    continue;
                }
                Answer::Sign(windows) => Query::Sign(windows),
                Answer::Cut(_) if std::mem::replace(&mut file.was_cut, true) => {
                    return self.outbox.protocol_error("a basis is to be cut twice");
                }
                Answer::Cut(stretch) => Query::Cut(stretch),
            };
            let Some(basis) = file.basis else {
                return self.outbox.protocol_error("a question about a basis where there is none");
            };
            if std::mem::replace(&mut file.is_queried, true) {
                return self.outbox.protocol_error("a question before the answer to another");
            }
            queries.push((id, basis, query));
        }
        self.took(sent, made);
        if !queries.is_empty() {
            self.on_target(|target| ReceiverWork::Query(target, queries));
        }
        self.feed(fed);
    }

    pub(super) fn replied(&mut self, replies: Vec<(u32, Result<Reply, WorkError>)>) {
        let mut sent = Vec::with_capacity(replies.len());
        for (id, reply) in replies {
            match reply {
                Ok(reply) => sent.push((id, reply)),
                Err(error) => return self.outbox.fatal(AbortKind::Destination, error),
            }
            if let Some(file) = self.missing.get_mut(&id) {
                file.is_queried = false;
            }
        }
        self.outbox.send(FromReceiver::Replies(sent));
    }

    /// Takes in steps of a file. Returns the bytes of content that travelled and that they make;
    /// `None` if the steps end the run.
    fn steps(&mut self, id: u32, ops: Vec<Op>, end: Option<Hash>) -> Option<(u64, u64)> {
        let made = ops.iter().map(Op::made_bytes).fold(0, u64::saturating_add);
        let sent: u64 = ops.iter().map(Op::sent_bytes).sum();
        let file = self.missing.get_mut(&id)?;
        let size = file.facts.size;
        let begins = file.progress == Progress::Asked && (end.is_none() || size > SMALL_BYTES_MAX);
        file.made_bytes = file.made_bytes.saturating_add(made);
        file.sent_bytes += sent;
        if file.made_bytes > size || end.is_some() && file.made_bytes < size {
            self.outbox.protocol_error("a file of another size than offered");
            return None;
        }
        self.progress.expects(0, made.saturating_sub(sent));
        self.held_bytes += held_bytes(&ops);
        file.progress = if end.is_some() { Progress::Arrived } else { Progress::Receiving };
        // Most files have no further ones.
        file.waiting.reserve_exact(1);
        file.waiting.push_back((ops, end));
        if begins {
            let receiving = self.missing.values().filter(|other| other.progress == Progress::Receiving);
            if receiving.count() > STREAMS_MAX {
                self.outbox.protocol_error("too many files at once");
                return None;
            }
            let path = self.path(id);
            self.outbox.progress(Event::Began { path });
        }
        Some((sent, made))
    }

    /// Counts content that arrived.
    fn took(&mut self, sent: u64, made: u64) {
        let matched = made.saturating_sub(sent);
        self.tally.sent_bytes += sent;
        self.tally.matched_bytes += matched;
        self.outbox.took(sent, matched);
    }

    pub(super) fn same(&mut self, ids: &[u32], digest: Hash) {
        let mut bases = Vec::with_capacity(ids.len());
        for &id in ids {
            let file = self.missing.get_mut(&id);
            let Some(file) = file.filter(|file| file.progress == Progress::Asked) else {
                return self.outbox.protocol_error("a file that nobody asked for, or that is on its way");
            };
            file.progress = Progress::Over;
            bases.push(file.basis);
        }
        let hashes: Option<Vec<Hash>> =
            bases.iter().map(|basis| basis.and_then(|basis| basis.hash)).collect();
        let Some(hashes) = hashes.filter(|hashes| digest_of(hashes.iter()) == digest) else {
            return ids.iter().for_each(|&id| self.retry(id, "what was said to be the same is not"));
        };
        let (mut matched, mut fed) = (0, Vec::new());
        for ((&id, basis), hash) in ids.iter().zip(bases.into_iter().flatten()).zip(hashes) {
            let size = self.size(id);
            matched += size;
            let is_moved = basis.is_elsewhere
                && self.present_at(id).is_none()
                && self.plan.move_here(id, basis.at, hash);
            let Some(file) = self.missing.get_mut(&id) else { continue };
            if !is_moved && (basis.is_elsewhere || basis.has_gap()) {
                // The content is there, but not in the new file's place, or not in this shape.
                file.is_copy = basis.is_elsewhere;
                self.held_bytes += file.complete(vec![Op::Copy { offset: 0, length: size }], hash);
                fed.push(id);
                continue;
            }
            // One that is still being made ends now.
            let has_pre_copy = file.pre_copy.take().is_some();
            if !is_moved {
                self.tally.files += 1;
                self.plan.only_adjust(id);
            }
            if has_pre_copy { fed.push(id) } else { self.forget(id) }
        }
        self.took(0, matched);
        self.feed(fed);
    }

    // Making.

    /// Starts the next works on these files, unless one is under way. Complete small files are made
    /// together.
    pub(super) fn feed(&mut self, ids: Vec<u32>) {
        if self.phase != Phase::Content {
            return;
        }
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for id in ids {
            let Some(file) = self.missing.get_mut(&id).filter(|file| file.held.is_some()) else {
                continue;
            };
            if file.failed.is_some() || file.progress == Progress::Over {
                let dropped = file.waiting.drain(..).map(|(ops, _)| held_bytes(&ops));
                self.held_bytes -= dropped.sum::<usize>();
            }
            let has_pre_copy = file.held.as_ref().is_some_and(|held| held.has_pre_copy());
            let input = match (file.waiting.pop_front(), file.progress) {
                (None, Progress::Arrived) => {
                    let result = file.failed.take().map_or(Ok(()), Err);
                    self.settle(id, result);
                    continue;
                }
                (None, Progress::Over) if has_pre_copy => ReceiveInput::Discard,
                (None, Progress::Over) => {
                    self.forget(id);
                    continue;
                }
                (None, Progress::Preparing | Progress::Asked | Progress::Receiving) => continue,
                (Some((ops, end)), _) => {
                    // Steps of a larger file wait for those before them, small files for a work.
                    if file.facts.size > SMALL_BYTES_MAX {
                        self.held_bytes -= held_bytes(&ops);
                    } else {
                        file.written_bytes = held_bytes(&ops);
                    }
                    file.is_written = true;
                    file.fed_bytes = ops.iter().map(Op::sent_bytes).sum();
                    // Its slot is free for another.
                    file.pre_copy = None;
                    self.writing += 1;
                    ReceiveInput::Steps(ops, end)
                }
            };
            let step = file.held.take().map(|held| (held, input));
            if file.facts.size > SMALL_BYTES_MAX {
                let steps = step.into_iter().collect();
                self.on_target(|target| ReceiverWork::Step(target, steps));
                continue;
            }
            bytes += file.written_bytes;
            batch.extend(step);
            if bytes >= STEP_BYTES || batch.len() >= STEP_FILES_MAX {
                let steps = std::mem::take(&mut batch);
                self.on_target(|target| ReceiverWork::Step(target, steps));
                bytes = 0;
            }
        }
        if !batch.is_empty() {
            self.on_target(|target| ReceiverWork::Step(target, batch));
        }
    }

    pub(super) fn stepped(&mut self, stepped: Vec<Returned<T, ()>>) {
        let mut fed = Vec::with_capacity(stepped.len());
        for (held, result) in stepped {
            let id = held.id();
            let Some(file) = self.missing.get_mut(&id) else { continue };
            self.writing -= usize::from(std::mem::take(&mut file.is_written));
            self.held_bytes -= std::mem::take(&mut file.written_bytes);
            let fed_bytes = std::mem::take(&mut file.fed_bytes);
            if !held.has_pre_copy() {
                // If it could not be made, its slot is free for another.
                file.pre_copy = None;
            }
            file.held = Some(held);
            match result {
                Err(WorkError::Fatal(kind, text)) => return self.outbox.fail(kind, text),
                Err(error) => file.failed = Some(error),
                Ok(()) => {
                    file.on_disk_bytes += fed_bytes;
                    self.progress.wrote(fed_bytes);
                }
            }
            fed.push(id);
        }
        self.feed(fed);
        self.tell_happened(false);
    }

    /// Records that the content of a file is in place, or failed.
    fn settle(&mut self, id: u32, result: Result<(), WorkError>) {
        if let Err(error @ WorkError::Entry(ProblemKind::Refused, _)) = result {
            // The content is in place.
            let path = self.path(id);
            self.outbox.report_error(path, error);
            self.settle(id, Ok(()));
            return self.removable.set(id, false);
        }
        self.removable.set(id, result.is_ok());
        match result {
            Ok(()) => {
                let is_copy = self.missing.get(&id).is_some_and(|file| file.is_copy);
                self.tally.copied += u64::from(is_copy);
                self.tally.files += 1;
                self.cleared_way(id);
                if self.plan.updates.contains(&id) {
                    self.tally.updated += 1;
                    self.happens(Item::Wanted(id), Some(Action::Update));
                } else {
                    self.tally.created += 1;
                    self.happens(Item::Wanted(id), None);
                }
                self.forget(id);
            }
            Err(WorkError::Entry(ProblemKind::Corrupt, cause)) => self.retry(id, &cause),
            Err(error) => {
                let path = self.path(id);
                if self.outbox.report_error(path, error) {
                    self.forget(id);
                }
            }
        }
    }

    /// Counts the entries of the directory that a file has replaced.
    pub(super) fn cleared_way(&mut self, id: u32) {
        let cleared = self.plan.cleared(id);
        self.tally.deleted += cleared;
        if let Some(at) = self.present_at(id).filter(|_| cleared > 0) {
            self.clears(at);
        }
    }

    /// Asks once more for a file whose content did not verify, this time for all of it.
    fn retry(&mut self, id: u32, cause: &str) {
        let Some(file) = self.missing.get_mut(&id) else { return };
        if std::mem::replace(&mut file.was_retried, true) {
            self.forget(id);
            let path = self.path(id);
            self.outbox.problem(Problem { kind: ProblemKind::Corrupt, path, cause: cause.to_owned() });
            return;
        }
        let awaited_bytes = file.awaited_bytes();
        (file.basis, file.made_bytes, file.is_copy) = (None, 0, false);
        file.sent_bytes = file.on_disk_bytes;
        self.progress.expects(file.awaited_bytes(), awaited_bytes);
        file.weight.take().into_iter().for_each(|weight| self.window.close(weight));
        self.want(Want::whole(id));
        self.send_batch();
    }

    /// Drops a file that is done, and counts its want as answered.
    fn forget(&mut self, id: u32) {
        let Some(file) = self.missing.remove(&id) else { return };
        self.progress.expects(0, file.awaited_bytes());
        self.progress.settled();
        file.weight.into_iter().for_each(|weight| self.window.close(weight));
    }

    pub(super) fn go_on(&mut self) {
        if matches!(self.phase, Phase::Directories | Phase::Content) {
            self.ask();
            if !self.is_unobserved() {
                self.tell_progress(self.contents_are_there());
            }
        }
        if self.contents_are_there() && self.outbox.queue.is_empty() {
            self.next_phase();
        }
    }

    /// True if content that has arrived is not on the disk yet.
    pub(super) fn puts_content_aside(&self) -> bool {
        match self.phase {
            Phase::Directories | Phase::Content => {
                self.writing > 0 || self.missing.values().any(|file| !file.waiting.is_empty())
            }
            _ => false,
        }
    }

    pub(super) fn contents_are_there(&self) -> bool {
        self.phase == Phase::Content
            && self.plan.fetch.is_empty()
            && self.batch.is_empty()
            && self.missing.is_empty()
    }
}
