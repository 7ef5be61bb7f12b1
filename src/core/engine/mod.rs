//! The engine decides which messages and works follow, and performs none itself. It uses no file,
//! socket, clock, thread or random number generator.
//!
//! # The contract
//! 1. Give the engine one [`Input`]: a message of the peer, or the [`Outcome`] of a [`Work`] that
//!    the engine asked for.
//! 2. Call [`Engine::poll`] until it answers [`Output::Wait`], [`Output::WaitForWork`] or
//!    [`Output::Done`], and act on the other answers.
//! 3. Only then give it the next input. After `WaitForWork` that must be an outcome: the engine
//!    already holds as much of the peer's content as its limit allows.
//!
//! A `Work` is a value. The engine does not depend on who performs works, on how many threads, and
//! in which order they end. It promises two things: it never has two works on the same file under
//! way, and works of [`Step`]s run one after the other. A dead connection arrives as
//! [`Input::Closed`].

mod brake;
mod fetch;
mod links;
mod need;
mod plan;
pub mod receiver;
mod renames;
pub mod sender;
pub mod work;

#[cfg(test)]
mod pair;
mod window;

pub use receiver::Receiver;
pub use sender::Sender;
pub use work::{
    Advertised, Changed, CopiedFile, Destination, Found, Opened, Outcome, PushedFile, ReadContent, ReadFile,
    ReadOrder, Room, Scanned, SignOrder, SignedFile, SmallContent, SmallFile, SourceNext, SourceStep, Step,
    Work, WorkError,
};

use crate::monitor::{Braked, Event, Problem, ProblemKind};
use crate::tree::path::escape;
use crate::wire::hello::Options;
use crate::wire::message::{AbortKind, Message, Tally};

/// An input of an engine.
#[derive(Debug)]
pub enum Input {
    /// A message from the peer.
    Message(Message),
    /// The outcome of a work that ended.
    Outcome(Outcome),
    /// The peer's stream ended; the cause in words.
    Closed(String),
    /// The peer's stream is malformed; the kind of error, and the cause in words.
    Broken(AbortKind, String),
}

/// An engine's answer to a poll.
#[derive(Debug)]
pub enum Output {
    /// Send this to the peer.
    Send(Message),
    /// Perform this, and bring back its outcome.
    Start(Work),
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
pub trait Engine: Send {
    /// Takes in one input.
    fn input(&mut self, input: Input);

    /// Returns the next thing to do.
    fn poll(&mut self) -> Output;
}

/// Settings of one side.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Options that both sides follow.
    pub options: Options,
    /// True on the agent: events go to the peer instead of to a local observer.
    pub relay: bool,
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

/// Outbox and run state of either engine: queues outputs, keeps problems, reports or relays events,
/// ends the run.
#[derive(Debug)]
struct Outbox {
    queue: std::collections::VecDeque<Output>,
    relay: bool,
    problems: Vec<Problem>,
    problem_count: u64,
    braked: Option<Braked>,
    ended: Option<Result<Summary, RunError>>,
}

impl Outbox {
    fn new(relay: bool) -> Self {
        Self {
            queue: std::collections::VecDeque::new(),
            relay,
            problems: Vec::new(),
            problem_count: 0,
            braked: None,
            ended: None,
        }
    }

    fn send(&mut self, message: Message) {
        self.queue.push_back(Output::Send(message));
    }

    fn start(&mut self, work: Work) {
        self.queue.push_back(Output::Start(work));
    }

    /// Reports an event to the observer, here or at the peer.
    fn report(&mut self, event: Event) {
        let event = self.explain(event);
        self.keep(&event);
        let output = if self.relay { Output::Send(Message::Note(event)) } else { Output::Report(event) };
        self.queue.push_back(output);
    }

    /// Reports progress of the content. Each side counts its own, so nothing is relayed.
    fn progress(&mut self, event: Event) {
        if !self.relay {
            self.queue.push_back(Output::Report(event));
        }
    }

    /// Adds the name of the unreadable directory to a problem that follows from it: the reporting
    /// side may not know that name.
    fn explain(&self, event: Event) -> Event {
        match event {
            Event::Problem(Problem { kind: ProblemKind::NotDeleted, path, cause }) if path.is_empty() => {
                let unread = |problem: &&Problem| problem.kind == ProblemKind::Unreadable;
                let cause = self.problems.iter().find(unread).map_or(cause, |problem| {
                    let path = if problem.path.is_empty() { b"." } else { &*problem.path };
                    format!(
                        "nothing was deleted: {} could not be read, so its missing entries are unknown",
                        escape(path)
                    )
                });
                Event::Problem(Problem { kind: ProblemKind::NotDeleted, path, cause })
            }
            event => event,
        }
    }

    /// Forwards an event from the peer.
    fn note(&mut self, event: Event) {
        if self.relay {
            self.protocol_error("a note came to the side that writes them");
        } else {
            let event = self.explain(event);
            self.keep(&event);
            self.queue.push_back(Output::Report(event));
        }
    }

    fn problem(&mut self, problem: Problem) {
        self.report(Event::Problem(problem));
    }

    fn keep(&mut self, event: &Event) {
        match event {
            Event::Problem(problem) => {
                self.problem_count += 1;
                if self.problems.len() < PROBLEMS_MAX {
                    self.problems.push(problem.clone());
                }
            }
            Event::Braked(braked) => self.braked = Some(braked.clone()),
            _ => {}
        }
    }

    /// Ends the run for a local reason, and tells the peer.
    fn fail(&mut self, kind: AbortKind, text: impl Into<String>) {
        if self.ended.is_none() {
            let text = text.into();
            self.queue.clear();
            self.send(Message::Abort { kind, text: text.clone() });
            self.ended = Some(Err(RunError { kind, by_peer: false, text }));
        }
    }

    /// Reports a failure of one entry; `false` if it ends the run.
    fn report_error(&mut self, path: Vec<u8>, error: WorkError) -> bool {
        match error {
            WorkError::Entry(kind, cause) => {
                self.problem(Problem { kind, path, cause });
                true
            }
            WorkError::Fatal(kind, text) => {
                self.fail(kind, text);
                false
            }
        }
    }

    /// Ends the run: the failed work is one that the whole run depends on.
    fn fatal(&mut self, of_what: AbortKind, error: WorkError) {
        match error {
            WorkError::Fatal(kind, text) => self.fail(kind, text),
            WorkError::Entry(_, text) => self.fail(of_what, text),
        }
    }

    fn protocol_error(&mut self, text: &str) {
        self.fail(AbortKind::Protocol, format!("the other side broke the protocol: {text}"));
    }

    /// Ends the run: the performer of works returned one that was not asked for. The text names
    /// only the outcome's kind. Code to print all of it would take 10 kB in an agent that never
    /// prints it.
    fn stray_outcome(&mut self, outcome: &Outcome) {
        let kind = std::mem::discriminant(outcome);
        self.fail(AbortKind::Protocol, format!("an outcome that nobody asked for: {kind:?}"));
    }

    /// Ends the run for the peer's reason.
    fn peer_failed(&mut self, kind: AbortKind, text: String) {
        if self.ended.is_none() {
            self.queue.clear();
            self.ended = Some(Err(RunError { kind, by_peer: true, text }));
        }
    }

    fn finish(&mut self, tally: Tally) {
        if self.ended.is_none() {
            let problems = std::mem::take(&mut self.problems);
            self.ended = Some(Ok(Summary {
                tally,
                problems,
                problem_count: self.problem_count,
                braked: self.braked.take(),
                traffic: Traffic::default(),
            }));
        }
    }

    /// Returns the next queued output; after the last one, the end of the run.
    fn next(&mut self) -> Option<Output> {
        self.queue.pop_front().or_else(|| self.ended.clone().map(Output::Done))
    }
}
