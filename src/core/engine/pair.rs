//! Two machines in a jar: both engines, two trees in memory, and a scheduler. From a seed, the
//! scheduler picks the order in which messages arrive and works end.

mod baseline;
mod basis;
mod brake;
mod byzantine;
mod content;
mod cuts;
mod disk;
mod doubts;
mod fuzz;
mod incremental;
mod properties;
mod room;
mod spelling;
mod tree;

use std::collections::VecDeque;

use self::disk::{ReceiverDisk, SenderDisk};
use self::tree::Rng;
use crate::engine::{Config, Engine, Input, Output, Receiver, RunError, Sender, SmallContent, Summary, Work};
use crate::monitor::Event;
use crate::wire::hello::Options;
use crate::wire::message::{Body, Message, Op};

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
struct Side {
    engine: Box<dyn Engine>,
    works: Vec<Work>,
    mailbox: VecDeque<Message>,
    only_outcomes: bool,
    closed: bool,
    done: Option<Result<Summary, RunError>>,
    events: Vec<Event>,
}

impl Side {
    fn new(engine: impl Engine + 'static) -> Self {
        Self {
            engine: Box::new(engine),
            works: Vec::new(),
            mailbox: VecDeque::new(),
            only_outcomes: false,
            closed: false,
            done: None,
            events: Vec::new(),
        }
    }

    /// Polls the engine until it waits or ends; returns the messages to send.
    fn drain(&mut self) -> Vec<Message> {
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
}

/// Asserts three things: no two works change the same file at a time, steps run one after the
/// other, and nothing starts before the plan.
fn assert_apart(under_way: &[Work], new: &Work) {
    let ids = |work: &Work| match work {
        Work::Sink { id, .. } | Work::Source { id, .. } => vec![*id],
        Work::Store(files) => files.iter().map(|file| file.id).collect(),
        Work::Read(orders) => orders.iter().map(|order| order.want.id).collect(),
        Work::Diff(files) => files.iter().map(|file| file.id).collect(),
        _ => Vec::new(),
    };
    let is_steps = |work: &Work| matches!(work, Work::Apply(_) | Work::Plan { .. } | Work::Close { .. });
    for work in under_way {
        assert!(!(is_steps(work) && is_steps(new)), "{new:?} beside {work:?}");
        assert!(!matches!(work, Work::Plan { .. }), "{new:?} before the plan is known");
        let taken = ids(work);
        assert!(ids(new).iter().all(|id| !taken.contains(id)), "{new:?} beside {work:?}");
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
    sides: [Side; 2],
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
        let client = Config { options: options.clone(), relay: false };
        let agent = Config { options: options.clone(), relay: true };
        let sides = [Side::new(Sender::new(&client)), Side::new(Receiver::new(&agent))];
        Self { sides, source, target, order, rng: Rng::new(seed), log: Log::default() }
    }

    /// Runs to the end. After `cut_after` delivered messages the connection is cut.
    fn run(mut self, cut_after: Option<usize>) -> Ended {
        self.answer(SENDER);
        self.answer(RECEIVER);
        let mut cut_after = cut_after;
        while self.sides.iter().any(|side| side.done.is_none()) {
            if cut_after == Some(self.log.delivered) {
                cut_after = None;
                self.cut();
                continue;
            }
            let actions = self.actions();
            assert!(!actions.is_empty(), "a side waits for what never comes");
            let picked = self.pick(&actions);
            self.act(actions[picked]);
        }
        // Works that are under way on the disk still end.
        for work in std::mem::take(&mut self.sides[RECEIVER].works) {
            let _ = self.target.perform(work);
        }
        let [sender, receiver] = self.sides;
        Ended {
            source: self.source,
            target: self.target,
            log: self.log,
            sender: sender.done.unwrap(),
            receiver: receiver.done.unwrap(),
            events: sender.events,
        }
    }

    /// Cuts the connection and drops the messages in flight.
    fn cut(&mut self) {
        for side in [SENDER, RECEIVER] {
            self.sides[side].mailbox.clear();
            self.sides[side].closed = true;
            if self.sides[side].done.is_none() {
                self.sides[side].engine.input(Input::Closed("cut".to_owned()));
                self.answer(side);
            }
        }
    }

    fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        for (index, side) in self.sides.iter().enumerate().filter(|(_, side)| side.done.is_none()) {
            actions.extend((0..side.works.len()).map(|work| Action::End(index, work)));
            if side.only_outcomes || side.closed {
                continue;
            }
            if !side.mailbox.is_empty() {
                actions.push(Action::Deliver(index));
            } else if self.sides[1 - index].done.is_some() {
                actions.push(Action::Close(index));
            }
        }
        actions
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
            Action::End(side, index) => {
                let work = self.sides[side].works.remove(index);
                self.log.held_bytes -= content_of_work(&work).min(self.log.held_bytes);
                let outcome = if side == SENDER {
                    self.source.perform(work)
                } else {
                    self.log.writes += usize::from(writes(&work));
                    self.target.perform(work)
                };
                self.sides[side].engine.input(Input::Outcome(outcome));
            }
            Action::Deliver(side) => {
                let Some(message) = self.sides[side].mailbox.pop_front() else { return };
                self.log.delivered += 1;
                if side == RECEIVER {
                    self.log.received_bytes += content_of(&message);
                    self.log.held_bytes += content_of(&message);
                    self.log.held_bytes_max = self.log.held_bytes_max.max(self.log.held_bytes);
                }
                self.sides[side].engine.input(Input::Message(message));
            }
            Action::Close(side) => {
                self.sides[side].closed = true;
                self.sides[side].engine.input(Input::Closed("the other side is gone".to_owned()));
            }
        }
        self.answer(action.side());
    }

    /// Sends a side's messages, each encoded and decoded as on the wire.
    fn answer(&mut self, side: usize) {
        for message in self.sides[side].drain() {
            self.count(&message);
            let bytes = message.encode();
            self.log.wire_bytes += bytes.len();
            let message = Message::decode(&bytes).expect("what an engine says is within limits");
            self.sides[1 - side].mailbox.push_back(message);
        }
    }

    fn count(&mut self, message: &Message) {
        let log = &mut self.log;
        match message {
            Message::Wants(wants) => {
                log.wants += wants.len();
                log.open_wants += wants.len();
                log.open_wants_max = log.open_wants_max.max(log.open_wants);
            }
            Message::Files(files) => {
                log.contents += 1;
                log.open_wants -= files.iter().filter(|(_, body)| *body != Body::Differs).count();
            }
            Message::Same { ids, .. } => {
                log.contents += 1;
                log.open_wants -= ids.len();
            }
            Message::Pieces { end, .. } => {
                log.contents += 1;
                log.open_wants -= usize::from(end.is_some());
            }
            Message::SignRequest { .. } => log.sign_requests += 1,
            Message::Entries(block) => log.entries_bytes += block.len(),
            Message::Ignores(_) => log.ignores += 1,
            Message::Changes(_) => log.changes += 1,
            Message::Changed { .. } => log.changed += 1,
            Message::BaselineMissing => log.forgotten += 1,
            _ => {}
        }
        log.sent_bytes += content_of(message) as u64;
    }
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

fn content_of(message: &Message) -> usize {
    use crate::wire::message::Body;
    match message {
        Message::Files(files) => files
            .iter()
            .map(|(_, body)| match body {
                Body::Whole { data: bytes, .. } | Body::Delta { delta: bytes, .. } => bytes.len(),
                Body::Differs | Body::Skipped => 0,
            })
            .sum(),
        Message::Pieces { ops, .. } => content_of_ops(ops),
        Message::Pushed(files) => files.iter().map(|(_, _, data)| data.len()).sum(),
        _ => 0,
    }
}

fn content_of_work(work: &Work) -> usize {
    match work {
        Work::Store(files) => files.iter().map(|file| content_of_small(&file.content)).sum(),
        Work::Sink { ops, .. } => content_of_ops(ops),
        _ => 0,
    }
}

fn content_of_small(content: &SmallContent) -> usize {
    match content {
        SmallContent::Whole(bytes) | SmallContent::Delta { delta: bytes, .. } => bytes.len(),
    }
}

fn content_of_ops(ops: &[Op]) -> usize {
    ops.iter().map(|op| op.sent_bytes() as usize).sum()
}

fn writes(work: &Work) -> bool {
    matches!(work, Work::Store(_) | Work::Sink { .. } | Work::Apply(_) | Work::Close { .. })
}
