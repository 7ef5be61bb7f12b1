//! Two machines in a jar: both engines, two trees in memory, and a scheduler. From a seed, the
//! scheduler picks the order in which messages arrive and works end.

mod baseline;
mod basis;
mod brake;
mod byzantine;
mod cuts;
mod disk;
mod doubts;
mod fuzz;
mod incremental;
mod pre_copy;
mod properties;
mod room;
mod source;
mod spelling;
mod strategies;
mod tree;

use std::collections::VecDeque;

use self::disk::{JarTarget, ReceiverDisk};
use self::source::{JarSource, SenderDisk};
use self::tree::Rng;
use crate::engine::{
    Config, Engine, Input, Limits, Output, ReceiveInput, Receiver, ReceiverWork, RunError, Sender,
    SenderWork, Strategy, Summary,
};
use crate::monitor::Event;
use crate::wire::hello::Options;
use crate::wire::message::{Answer, FromReceiver, FromSender, Message, Op};

type JarSender = Sender<JarSource>;
type JarReceiver = Receiver<JarTarget>;

/// Limits under which short contents go through every strategy.
const LIMITS: Limits = Limits { piece_bytes: 24 << 10, cut_bytes_min: 100_000, pre_copy_bytes_min: 300_000 };

/// The order in which messages arrive and works end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Any order.
    Random,
    /// Works end in the order of their start, and before any message arrives.
    WorksFirst,
    /// Works end only when nothing else is possible, the last one first.
    WorksLast,
    /// The sender goes on only when the receiver cannot.
    SenderStarved,
    /// The receiver goes on only when the sender cannot.
    ReceiverStarved,
}

const ORDERS: [Order; 5] =
    [Order::Random, Order::WorksFirst, Order::WorksLast, Order::SenderStarved, Order::ReceiverStarved];

const SENDER: usize = 0;
const RECEIVER: usize = 1;

/// One machine.
struct Side<E: Engine> {
    engine: E,
    works: Vec<E::Work>,
    mailbox: VecDeque<E::Incoming>,
    only_outcomes: bool,
    closed: bool,
    done: Option<Result<Summary, RunError>>,
    events: Vec<Event>,
}

impl<E: Engine> Side<E>
where
    E::Work: JarWork,
{
    fn new(engine: E) -> Self {
        Self {
            engine,
            works: Vec::new(),
            mailbox: VecDeque::new(),
            only_outcomes: false,
            closed: false,
            done: None,
            events: Vec::new(),
        }
    }

    /// Polls the engine until it waits or ends; returns the messages to send.
    fn drain(&mut self) -> Vec<E::Outgoing> {
        let mut said = Vec::new();
        loop {
            match self.engine.poll() {
                Output::Send(message) => said.push(message),
                Output::Report(event) => self.events.push(event),
                Output::Start(work) => {
                    assert_apart(&self.works, &work);
                    self.works.push(work);
                }
                Output::Wait => {
                    self.only_outcomes = false;
                    return said;
                }
                Output::WaitForWork => {
                    assert!(!self.works.is_empty(), "it waits for a work, and none is under way");
                    self.only_outcomes = true;
                    return said;
                }
                Output::Done(result) => {
                    self.done = Some(result);
                    return said;
                }
            }
        }
    }

    /// Adds the side's possible actions. `is_last` tells that the other side is done.
    fn actions(&self, index: usize, is_last: bool, actions: &mut Vec<Action>) {
        if self.done.is_some() {
            return;
        }
        actions.extend((0..self.works.len()).map(|work| Action::End(index, work)));
        if self.only_outcomes || self.closed {
            return;
        }
        if !self.mailbox.is_empty() {
            actions.push(Action::Deliver(index));
        } else if is_last {
            actions.push(Action::Close(index));
        }
    }

    /// Ends the connection.
    fn cut(&mut self, cause: &str) {
        self.mailbox.clear();
        self.closed = true;
        if self.done.is_none() {
            self.engine.input(Input::Closed(cause.to_owned()));
        }
    }
}

/// A work, as the jar looks at it.
trait JarWork: std::fmt::Debug {
    /// Ids of the files that it works on.
    fn ids(&self) -> Vec<u32>;

    /// True if no other such work may be under way.
    fn is_steps(&self) -> bool {
        false
    }

    /// True if no other work may be under way.
    fn is_plan(&self) -> bool {
        false
    }

    /// True if it writes.
    fn writes(&self) -> bool {
        false
    }

    /// Bytes of content that it takes.
    fn content_bytes(&self) -> usize {
        0
    }
}

impl JarWork for SenderWork<JarSource> {
    fn ids(&self) -> Vec<u32> {
        match self {
            Self::Step { steps, .. } => steps.iter().map(|(transfer, _)| transfer.id()).collect(),
            _ => Vec::new(),
        }
    }
}

impl JarWork for ReceiverWork<JarTarget> {
    fn ids(&self) -> Vec<u32> {
        match self {
            Self::Step(_, steps) => steps.iter().map(|(transfer, _)| transfer.id()).collect(),
            Self::Report(_, orders) => orders.iter().map(|order| order.transfer.id()).collect(),
            Self::Look { id, .. } => vec![*id],
            _ => Vec::new(),
        }
    }

    fn is_steps(&self) -> bool {
        matches!(self, Self::Apply(..) | Self::Plan(..) | Self::Close { .. })
    }

    fn is_plan(&self) -> bool {
        matches!(self, Self::Plan(..))
    }

    fn writes(&self) -> bool {
        match self {
            Self::Step(_, steps) => steps.iter().any(|(_, input)| matches!(input, ReceiveInput::Steps(..))),
            Self::Apply(..) | Self::Close { .. } => true,
            _ => false,
        }
    }

    fn content_bytes(&self) -> usize {
        let Self::Step(_, steps) = self else { return 0 };
        let ops = steps.iter().filter_map(|(_, input)| match input {
            ReceiveInput::Steps(ops, _) => Some(content_of_ops(ops)),
            _ => None,
        });
        ops.sum()
    }
}

/// Asserts three things: no two works change the same file at a time, steps run one after the
/// other, and nothing starts before the plan.
fn assert_apart<W: JarWork>(under_way: &[W], new: &W) {
    for work in under_way {
        assert!(!(work.is_steps() && new.is_steps()), "{new:?} beside {work:?}");
        assert!(!work.is_plan(), "{new:?} before the plan is known");
        let taken = work.ids();
        assert!(new.ids().iter().all(|id| !taken.contains(id)), "{new:?} beside {work:?}");
    }
}

/// Counts of a run.
#[derive(Debug, Default)]
struct Log {
    /// Delivered messages.
    delivered: usize,
    /// Number of messages, by kind.
    wants: usize,
    contents: usize,
    sign_requests: usize,
    cut_requests: usize,
    /// Strategies that the receiver chose, in order.
    strategies: Vec<&'static str>,
    /// Bytes of content that left the sender.
    sent_bytes: u64,
    /// Most unanswered wants at a time.
    open_wants_max: usize,
    open_wants: usize,
    /// Bytes of content that reached the receiver and no work has taken.
    held_bytes: usize,
    held_bytes_max: usize,
    /// Bytes of content that reached the receiver in all.
    received_bytes: usize,
    /// Number of works that write.
    writes: usize,
    /// Bytes of all messages, both ways.
    wire_bytes: usize,
    /// Bytes of manifest blocks.
    entries_bytes: usize,
    /// Number of messages, by kind.
    ignores: usize,
    changes: usize,
    changed: usize,
    forgotten: usize,
}

struct Pair {
    sender: Side<JarSender>,
    receiver: Side<JarReceiver>,
    source: SenderDisk,
    target: ReceiverDisk,
    order: Order,
    rng: Rng,
    log: Log,
}

/// Result of a run, on both sides.
struct Ended {
    source: SenderDisk,
    target: ReceiverDisk,
    log: Log,
    sender: Result<Summary, RunError>,
    receiver: Result<Summary, RunError>,
    /// Events that the client got.
    events: Vec<Event>,
}

impl Pair {
    fn new(source: SenderDisk, target: ReceiverDisk, options: &Options, order: Order, seed: u64) -> Self {
        // In this jar the sender is the client, so the receiver relays.
        let client =
            Config { options: options.clone(), relay: false, limits: source.limits, ..Config::default() };
        let agent =
            Config { options: options.clone(), relay: true, limits: source.limits, ..Config::default() };
        Self {
            sender: Side::new(Sender::new(&client)),
            receiver: Side::new(Receiver::new(&agent)),
            source,
            target,
            order,
            rng: Rng::new(seed),
            log: Log::default(),
        }
    }

    /// Runs to the end. After `cut_after` delivered messages the connection is cut.
    fn run(mut self, cut_after: Option<usize>) -> Ended {
        self.answer(SENDER);
        self.answer(RECEIVER);
        let mut cut_after = cut_after;
        while self.sender.done.is_none() || self.receiver.done.is_none() {
            if cut_after == Some(self.log.delivered) {
                cut_after = None;
                self.sender.cut("cut");
                self.receiver.cut("cut");
                self.answer(SENDER);
                self.answer(RECEIVER);
                continue;
            }
            let mut actions = Vec::new();
            self.sender.actions(SENDER, self.receiver.done.is_some(), &mut actions);
            self.receiver.actions(RECEIVER, self.sender.done.is_some(), &mut actions);
            assert!(!actions.is_empty(), "a side waits for what never comes");
            let picked = self.pick(&actions);
            self.act(actions[picked]);
        }
        // Works that are under way on the disk still end.
        for work in std::mem::take(&mut self.receiver.works) {
            let _ = self.target.perform(work);
        }
        Ended {
            source: self.source,
            target: self.target,
            log: self.log,
            sender: self.sender.done.unwrap(),
            receiver: self.receiver.done.unwrap(),
            events: self.sender.events,
        }
    }

    fn pick(&mut self, actions: &[Action]) -> usize {
        let (is_work, side_of) = (|action: &Action| matches!(action, Action::End(..)), Action::side);
        let any = self.rng.below(actions.len());
        let prefer = |wanted: &dyn Fn(&Action) -> bool| actions.iter().position(wanted);
        match self.order {
            Order::Random => any,
            Order::WorksFirst => prefer(&is_work).unwrap_or(any),
            Order::WorksLast => prefer(&|action| !is_work(action)).unwrap_or(actions.len() - 1),
            Order::SenderStarved => prefer(&|action| side_of(action) == RECEIVER).unwrap_or(any),
            Order::ReceiverStarved => prefer(&|action| side_of(action) == SENDER).unwrap_or(any),
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::End(SENDER, index) => {
                let outcome = self.source.perform(self.sender.works.remove(index));
                self.sender.engine.input(Input::Outcome(outcome));
            }
            Action::End(_, index) => {
                let work = self.receiver.works.remove(index);
                if let ReceiverWork::Report(_, orders) = &work {
                    self.log.strategies.extend(orders.iter().map(|order| name_of(&order.strategy)));
                }
                self.log.held_bytes -= work.content_bytes().min(self.log.held_bytes);
                self.log.writes += usize::from(work.writes());
                let outcome = self.target.perform(work);
                self.receiver.engine.input(Input::Outcome(outcome));
            }
            Action::Deliver(SENDER) => {
                let Some(message) = self.sender.mailbox.pop_front() else { return };
                self.log.delivered += 1;
                self.sender.engine.input(Input::Message(message));
            }
            Action::Deliver(_) => {
                let Some(message) = self.receiver.mailbox.pop_front() else { return };
                self.log.delivered += 1;
                self.log.received_bytes += content_of(&message);
                self.log.held_bytes += content_of(&message);
                self.log.held_bytes_max = self.log.held_bytes_max.max(self.log.held_bytes);
                self.receiver.engine.input(Input::Message(message));
            }
            Action::Close(SENDER) => self.sender.cut("the other side is gone"),
            Action::Close(_) => self.receiver.cut("the other side is gone"),
        }
        self.answer(action.side());
    }

    /// Sends a side's messages, each encoded and decoded as on the wire.
    fn answer(&mut self, side: usize) {
        if side == SENDER {
            for message in self.sender.drain() {
                self.count_sent(&message);
                let message = travel(&message, &mut self.log.wire_bytes);
                self.receiver.mailbox.extend((!self.receiver.closed).then_some(message));
            }
        } else {
            for message in self.receiver.drain() {
                self.count_received(&message);
                let message = travel(&message, &mut self.log.wire_bytes);
                self.sender.mailbox.extend((!self.sender.closed).then_some(message));
            }
        }
    }

    fn count_sent(&mut self, message: &FromSender) {
        let log = &mut self.log;
        match message {
            FromSender::Answers(files) => {
                log.contents += 1;
                log.sign_requests +=
                    files.iter().filter(|(_, answer)| matches!(answer, Answer::Sign(_))).count();
                log.cut_requests +=
                    files.iter().filter(|(_, answer)| matches!(answer, Answer::Cut(_))).count();
                let is_last =
                    |answer: &Answer| matches!(answer, Answer::Skipped | Answer::Steps { end: Some(_), .. });
                log.open_wants -= files.iter().filter(|(_, answer)| is_last(answer)).count();
            }
            FromSender::Same { ids, .. } => {
                log.contents += 1;
                log.open_wants -= ids.len();
            }
            FromSender::Entries(block) => log.entries_bytes += block.len(),
            FromSender::Ignores(_) => log.ignores += 1,
            FromSender::Changes(_) => log.changes += 1,
            FromSender::Changed { .. } => log.changed += 1,
            _ => {}
        }
        log.sent_bytes += content_of(message) as u64;
    }

    fn count_received(&mut self, message: &FromReceiver) {
        let log = &mut self.log;
        match message {
            FromReceiver::Wants(wants) => {
                log.wants += wants.len();
                log.open_wants += wants.len();
                log.open_wants_max = log.open_wants_max.max(log.open_wants);
            }
            FromReceiver::BaselineMissing => log.forgotten += 1,
            _ => {}
        }
    }
}

fn name_of(strategy: &Strategy) -> &'static str {
    match strategy {
        Strategy::Whole => "whole",
        Strategy::Signed => "signed",
        Strategy::Blocks => "blocks",
        Strategy::PreCopy { is_beside: true, .. } => "pre-copy beside",
        Strategy::PreCopy { .. } => "pre-copy",
    }
}

/// A message after it was encoded and decoded.
fn travel<M: Message>(message: &M, wire_bytes: &mut usize) -> M {
    let bytes = message.encode();
    *wire_bytes += bytes.len();
    M::decode(&bytes).expect("what an engine says is within limits")
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Deliver(usize),
    End(usize, usize),
    Close(usize),
}

impl Action {
    fn side(&self) -> usize {
        let (Self::Deliver(side) | Self::End(side, _) | Self::Close(side)) = *self;
        side
    }
}

fn content_of(message: &FromSender) -> usize {
    match message {
        FromSender::Answers(files) => files
            .iter()
            .map(|(_, answer)| if let Answer::Steps { ops, .. } = answer { content_of_ops(ops) } else { 0 })
            .sum(),
        FromSender::Pushed(files) => files.iter().map(|(_, _, data)| data.len()).sum(),
        _ => 0,
    }
}

fn content_of_ops(ops: &[Op]) -> usize {
    ops.iter().map(|op| op.sent_bytes() as usize).sum()
}
