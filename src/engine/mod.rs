//! The engine: decides what is said and done, and touches nothing itself. It names no file, socket, clock,
//! thread or dice.
//!
//! # The contract
//! 1. Give it one [`Input`]: a message of the peer, or the [`Outcome`] of a [`Work`] that it asked for.
//! 2. Call [`Engine::poll`] until it answers [`Output::Wait`], [`Output::WaitForWork`] or [`Output::Done`],
//!    and do what the other answers say.
//! 3. Only then give it the next input. After `WaitForWork` that must be an outcome: the engine has as much
//!    of the peer's content in its hands as it may.
//!
//! A `Work` is a value. Who performs it, on how many threads, and in which order works end is not the
//! engine's business, but for one promise: it never has two works on the same file under way, and works of
//! [`Step`]s go one after the other. A dead connection arrives as [`Input::Closed`].

mod brake;
mod links;
mod need;
mod plan;
pub mod receiver;
mod relations;
pub mod sender;
pub mod work;

#[cfg(test)]
mod pair;
mod window;

pub use receiver::Receiver;
pub use sender::Sender;
pub use work::{
    Changed, CopiedFile, Destination, Fault, Found, Opened, Outcome, PushedFile, ReadContent, ReadFile,
    ReadOrder, Room, Scanned, SignOrder, SignedFile, SmallContent, SmallFile, SourceNext, SourceStep, Step,
    Told, Work,
};

use crate::monitor::{Braked, Event, Problem, Trouble};
use crate::tree::path::escape;
use crate::wire::hello::Options;
use crate::wire::message::{AbortKind, Message, Tally};

/// What an engine takes in.
#[derive(Debug)]
pub enum Input {
    /// The peer said this.
    Message(Message),
    /// A work has ended so.
    Outcome(Outcome),
    /// Nothing more will come from the peer; the cause in words.
    Closed(String),
    /// What comes from the peer makes no sense; which kind of fault that is, and the cause in words.
    Broken(AbortKind, String),
}

/// What an engine answers.
#[derive(Debug)]
pub enum Output {
    /// Say this to the peer.
    Send(Message),
    /// Perform this, and bring back its outcome.
    Start(Work),
    /// Tell whoever looks on.
    Report(Event),
    /// Nothing to do before the next input.
    Wait,
    /// Nothing to do before the next outcome; messages have to wait.
    WaitForWork,
    /// The run is over.
    Done(Result<Summary, Failure>),
}

/// One side of an exchange.
pub trait Engine: Send {
    /// Takes in what happened.
    fn input(&mut self, input: Input);

    /// Says what to do next.
    fn poll(&mut self) -> Output;
}

/// What a side goes by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// What both sides agreed on.
    pub options: Options,
    /// Whether events go to the peer instead of to whoever looks on here: so on the agent.
    pub relay: bool,
}

/// How a run ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// What the receiver did.
    pub tally: Tally,
    /// What went wrong without ending the run: the first [`PROBLEMS_MAX`].
    pub problems: Vec<Problem>,
    /// How many problems there were in all.
    pub problem_count: u64,
    /// What was not deleted, and why it needs consent.
    pub braked: Option<Braked>,
    /// What was counted on the way; an engine by itself leaves it empty.
    pub traffic: Traffic,
}

/// What whoever runs an engine counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of all messages, both ways, before they were packed.
    pub raw_bytes: u64,
    /// How often this side had said something and had nothing to do until the other one answered.
    pub waits: u64,
}

/// Most problems that are kept; beyond that they are only counted.
pub const PROBLEMS_MAX: usize = 1000;

/// Why a run ended early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// Which kind of reason.
    pub kind: AbortKind,
    /// Whether the other side gave it.
    pub by_peer: bool,
    /// The reason in words.
    pub text: String,
}

/// What both engines do alike: queue outputs, keep problems, report or relay, stop.
#[derive(Debug)]
struct Desk {
    queue: std::collections::VecDeque<Output>,
    relay: bool,
    problems: Vec<Problem>,
    problem_count: u64,
    braked: Option<Braked>,
    ended: Option<Result<Summary, Failure>>,
}

impl Desk {
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

    /// Tells an event to whoever looks on: here, or at the peer's.
    fn report(&mut self, event: Event) {
        let event = self.explain(event);
        self.keep(&event);
        let output = if self.relay { Output::Send(Message::Note(event)) } else { Output::Report(event) };
        self.queue.push_back(output);
    }

    /// Tells how far the content has come. Each side counts that for itself, so nothing is relayed.
    fn progress(&mut self, event: Event) {
        if !self.relay {
            self.queue.push_back(Output::Report(event));
        }
    }

    /// Names what could not be read, in a problem that comes of it: the side that says it may not
    /// know.
    fn explain(&self, event: Event) -> Event {
        match event {
            Event::Problem(Problem { trouble: Trouble::NotDeleted, path, cause }) if path.is_empty() => {
                let unread = |problem: &&Problem| problem.trouble == Trouble::Unreadable;
                let cause = self.problems.iter().find(unread).map_or(cause, |problem| {
                    let path = if problem.path.is_empty() { b"." } else { &*problem.path };
                    format!(
                        "nothing was deleted: {} could not be read, so what is missing from it is unknown",
                        escape(path)
                    )
                });
                Event::Problem(Problem { trouble: Trouble::NotDeleted, path, cause })
            }
            event => event,
        }
    }

    /// Passes on what the peer observed.
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

    /// Ends the run for a reason that lies here, and tells the peer.
    fn fail(&mut self, kind: AbortKind, text: impl Into<String>) {
        if self.ended.is_none() {
            let text = text.into();
            self.queue.clear();
            self.send(Message::Abort { kind, text: text.clone() });
            self.ended = Some(Err(Failure { kind, by_peer: false, text }));
        }
    }

    /// Reports what is wrong with one entry; `false` if that ends the run.
    fn complain(&mut self, path: Vec<u8>, fault: Fault) -> bool {
        match fault {
            Fault::Entry(trouble, cause) => {
                self.problem(Problem { trouble, path, cause });
                true
            }
            Fault::Fatal(kind, text) => {
                self.fail(kind, text);
                false
            }
        }
    }

    /// Ends the run: what failed is not one entry, but what everything hangs on.
    fn fatal(&mut self, of_what: AbortKind, fault: Fault) {
        match fault {
            Fault::Fatal(kind, text) => self.fail(kind, text),
            Fault::Entry(_, text) => self.fail(of_what, text),
        }
    }

    fn protocol_error(&mut self, text: &str) {
        self.fail(AbortKind::Protocol, format!("the other side broke the protocol: {text}"));
    }

    /// Ends the run: whoever performs our works is out of order. Only which kind of outcome it is is told: what
    /// can print all of it takes 10 kB in an agent that is never going to.
    fn stray_outcome(&mut self, outcome: &Outcome) {
        let kind = std::mem::discriminant(outcome);
        self.fail(AbortKind::Protocol, format!("an outcome that nobody asked for: {kind:?}"));
    }

    /// Ends the run for a reason that lies at the peer's.
    fn peer_failed(&mut self, kind: AbortKind, text: String) {
        if self.ended.is_none() {
            self.queue.clear();
            self.ended = Some(Err(Failure { kind, by_peer: true, text }));
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

    /// What is queued, then the end.
    fn next(&mut self) -> Option<Output> {
        self.queue.pop_front().or_else(|| self.ended.clone().map(Output::Done))
    }
}
