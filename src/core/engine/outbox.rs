//! The outbox of either engine.

use std::collections::VecDeque;

use crate::engine::contract::{Output, PROBLEMS_MAX, RunError, Summary, Traffic};
use crate::engine::error::WorkError;
use crate::monitor::{Braked, Event, Problem, ProblemKind};
use crate::tree::path::escape;
use crate::wire::message::{AbortKind, Common, Message, Tally};

/// Outbox and run state of either engine: queues outputs, keeps problems, reports or relays events,
/// ends the run.
#[derive(Debug)]
pub(super) struct Outbox<M, W> {
    pub(super) queue: VecDeque<Output<M, W>>,
    relay: bool,
    problems: Vec<Problem>,
    problem_count: u64,
    braked: Option<Braked>,
    pub(super) ended: Option<Result<Summary, RunError>>,
}

impl<M: Message, W> Outbox<M, W> {
    pub(super) fn new(relay: bool) -> Self {
        Self {
            queue: VecDeque::new(),
            relay,
            problems: Vec::new(),
            problem_count: 0,
            braked: None,
            ended: None,
        }
    }

    pub(super) fn send(&mut self, message: M) {
        self.queue.push_back(Output::Send(message));
    }

    pub(super) fn start(&mut self, work: W) {
        self.queue.push_back(Output::Start(work));
    }

    /// Reports an event to the observer, here or at the peer.
    pub(super) fn report(&mut self, event: Event) {
        let event = self.keep(event);
        let output =
            if self.relay { Output::Send(Common::Note(event).into()) } else { Output::Report(event) };
        self.queue.push_back(output);
    }

    /// Reports progress of the content. Each side counts its own, so nothing is relayed.
    pub(super) fn progress(&mut self, event: Event) {
        if !self.relay {
            self.queue.push_back(Output::Report(event));
        }
    }

    /// Reports progress of the content: bytes that travelled, and bytes that the receiver had.
    pub(super) fn took(&mut self, moved: u64, matched: u64) {
        if moved > 0 {
            self.progress(Event::Moved { bytes: moved });
        }
        if matched > 0 {
            self.progress(Event::Matched { bytes: matched });
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
                        "nothing was deleted: {} could not be read, so what is missing from it is unknown",
                        escape(path)
                    )
                });
                Event::Problem(Problem { kind: ProblemKind::NotDeleted, path, cause })
            }
            event => event,
        }
    }

    /// Takes in a message that either side may send.
    pub(super) fn common(&mut self, common: Common) {
        match common {
            Common::Note(_) if self.relay => {
                self.protocol_error("a note came to the side that writes them");
            }
            Common::Note(event) => {
                let event = self.keep(event);
                self.queue.push_back(Output::Report(event));
            }
            Common::Abort { kind, text } => self.peer_failed(kind, text),
            Common::Heartbeat { .. } => self.protocol_error("a heartbeat came to the engine"),
        }
    }

    pub(super) fn problem(&mut self, problem: Problem) {
        self.report(Event::Problem(problem));
    }

    /// Keeps what the summary will need of an event. Returns it as it is to be reported.
    fn keep(&mut self, event: Event) -> Event {
        let event = self.explain(event);
        match &event {
            Event::Problem(problem) => {
                self.problem_count += 1;
                if self.problems.len() < PROBLEMS_MAX {
                    self.problems.push(problem.clone());
                }
            }
            Event::Braked(braked) => self.braked = Some(braked.clone()),
            _ => {}
        }
        event
    }

    /// Ends the run for a local reason, and tells the peer.
    pub(super) fn fail(&mut self, kind: AbortKind, text: impl Into<String>) {
        if self.ended.is_none() {
            let text = text.into();
            self.queue.clear();
            self.send(Common::Abort { kind, text: text.clone() }.into());
            self.ended = Some(Err(RunError { kind, by_peer: false, text }));
        }
    }

    /// Reports a failure of one entry; `false` if it ends the run.
    pub(super) fn report_error(&mut self, path: Vec<u8>, error: WorkError) -> bool {
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
    pub(super) fn fatal(&mut self, of_what: AbortKind, error: WorkError) {
        match error {
            WorkError::Fatal(kind, text) => self.fail(kind, text),
            WorkError::Entry(_, text) => self.fail(of_what, text),
        }
    }

    pub(super) fn protocol_error(&mut self, text: &str) {
        self.fail(AbortKind::Protocol, format!("the other side broke the protocol: {text}"));
    }

    /// Ends the run for the peer's reason.
    pub(super) fn peer_failed(&mut self, kind: AbortKind, text: String) {
        if self.ended.is_none() {
            self.queue.clear();
            self.ended = Some(Err(RunError { kind, by_peer: true, text }));
        }
    }

    pub(super) fn finish(&mut self, tally: Tally) {
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
    pub(super) fn next(&mut self) -> Option<Output<M, W>> {
        self.queue.pop_front().or_else(|| self.ended.clone().map(Output::Done))
    }
}
