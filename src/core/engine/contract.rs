//! The contract of an engine: its inputs, its outputs, its settings and its result.

use crate::engine::limits::Limits;
use crate::monitor::{Braked, Event, Problem};
use crate::tree::path::TreePath;
use crate::wire::hello::Options;
use crate::wire::message::{AbortKind, Message, Tally};

/// An input of an engine.
#[derive(Debug)]
pub enum Input<M, O> {
    /// A message from the peer.
    Message(M),
    /// The outcome of a work that ended.
    Outcome(O),
    /// The peer's stream ended; the cause in words.
    Closed(String),
    /// The peer's stream is malformed; the kind of error, and the cause in words.
    Broken(AbortKind, String),
}

/// An engine's answer to a poll.
#[derive(Debug)]
pub enum Output<M, W> {
    /// Send this to the peer.
    Send(M),
    /// Perform this, and bring back its outcome.
    Start(W),
    /// Report this to the observer.
    Report(Event),
    /// Nothing to do before the next input.
    Wait,
    /// Nothing to do before the next outcome; messages have to wait.
    WaitForWork,
    /// The run is over.
    Done(Result<Summary, RunError>),
}

/// One side of an exchange.
pub trait Engine: Send + 'static {
    /// Messages of the peer.
    type Incoming: Message;
    /// Messages of this side.
    type Outgoing: Message;
    /// Works that this side asks for.
    type Work: std::fmt::Debug + Send + 'static;
    /// Their outcomes.
    type Outcome: std::fmt::Debug + Send + 'static;

    /// Takes in one input.
    fn input(&mut self, input: Input<Self::Incoming, Self::Outcome>);

    /// Returns the next thing to do.
    fn poll(&mut self) -> Output<Self::Outgoing, Self::Work>;
}

/// Settings of one side.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Options that both sides follow.
    pub options: Options,
    /// True on the agent: events go to the peer instead of to a local observer.
    pub relay: bool,
    /// The names of the several entries that a receiver on this side asked for. The sender is not
    /// trusted: it may put no others into the destination, as scp servers could (CVE-2019-6111).
    pub asked: Vec<TreePath>,
    /// Lengths of contents from which something is done.
    pub limits: Limits,
}

/// Result of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// The receiver's counts.
    pub tally: Tally,
    /// The first [`PROBLEMS_MAX`] problems that did not end the run.
    pub problems: Vec<Problem>,
    /// Number of all problems.
    pub problem_count: u64,
    /// Deletions that were held back, and the reason why they need consent.
    pub braked: Option<Braked>,
    /// Traffic that the engine's caller counts; an engine leaves it empty.
    pub traffic: Traffic,
}

/// Traffic counts of the engine's caller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of all messages, both ways, before compression.
    pub raw_bytes: u64,
    /// Number of times that this side had sent something and had to wait for the peer.
    pub waits: u64,
}

/// Most problems that are kept; further ones are only counted.
pub const PROBLEMS_MAX: usize = 1000;

/// The reason why a run ended early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct RunError {
    /// Kind of the reason.
    pub kind: AbortKind,
    /// True if the other side gave the reason.
    pub by_peer: bool,
    /// The reason in words.
    pub text: String,
}
