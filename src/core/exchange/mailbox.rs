//! Mailbox of the engine: messages of the peer, up to a bound, and outcomes of works.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::engine::{Engine, Input};
use crate::monitor::{Event, Written};
use crate::wire::message::{AbortKind, Common, Message};

/// Most bytes of messages that wait. This is more than all unanswered wants together, so a sender
/// never keeps a receiver from sending them. It is also enough content to keep a receiver's disk
/// busy.
const BYTES_MAX: usize = 12 << 20;

pub(super) struct Mailbox<E: Engine> {
    state: Mutex<State<E>>,
    changed: Condvar,
}

struct State<E: Engine> {
    outcomes: VecDeque<E::Outcome>,
    messages: VecDeque<(E::Incoming, usize)>,
    message_bytes: usize,
    /// Bytes of all messages that were put in or written.
    raw_bytes: u64,
    closed: Option<(AbortKind, String)>,
    abandoned: bool,
    /// True once the writer has ended.
    written: bool,
    /// A failure of this side; it overrides everything else.
    failed: Option<String>,
    /// True if this side has something to do between two rounds.
    woken: bool,
    /// True if the peer wants a full round.
    rescan: bool,
}

/// The reason why a wait between two rounds ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Idle {
    /// Something on this side woke the wait.
    Woken,
    /// The peer wants a full round.
    Rescan,
    /// The timeout passed.
    Late,
    /// Nothing more will arrive, for this cause.
    Closed(AbortKind, String),
}

impl<E: Engine> Default for Mailbox<E> {
    fn default() -> Self {
        let state = State {
            outcomes: VecDeque::new(),
            messages: VecDeque::new(),
            message_bytes: 0,
            raw_bytes: 0,
            closed: None,
            abandoned: false,
            written: false,
            failed: None,
            woken: false,
            rescan: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl<E: Engine> Mailbox<E> {
    /// Puts in a message of `bytes` bytes when there is room; `false` if nobody will take it.
    pub(super) fn put_message(&self, message: E::Incoming, bytes: usize) -> bool {
        let mut state = self.lock();
        while state.message_bytes > BYTES_MAX && !state.abandoned {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.message_bytes += bytes;
        state.raw_bytes += bytes as u64;
        state.messages.push_back((message, bytes));
        self.changed.notify_all();
        !state.abandoned
    }

    /// Ends a wait between two rounds, or the next one.
    pub(super) fn wake(&self) {
        self.lock().woken = true;
        self.changed.notify_all();
    }

    /// Records that the peer wants a full round.
    pub(super) fn ask_for_rescan(&self) {
        self.lock().rescan = true;
        self.changed.notify_all();
    }

    /// Waits between two rounds, on the side that begins the next one.
    pub(super) fn idle(&self, timeout: Duration) -> Idle {
        let waiting = |state: &mut State<E>| {
            !state.woken && !state.rescan && state.closed.is_none() && state.failed.is_none()
        };
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, waiting);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if let Some(cause) = &state.failed {
            Idle::Closed(AbortKind::Protocol, cause.clone())
        } else if let Some((kind, cause)) = &state.closed {
            Idle::Closed(*kind, cause.clone())
        } else if std::mem::take(&mut state.rescan) {
            Idle::Rescan
        } else if std::mem::take(&mut state.woken) {
            Idle::Woken
        } else {
            Idle::Late
        }
    }

    /// Drops outcomes that arrived after their engine had ended.
    pub(super) fn clear_outcomes(&self) {
        self.lock().outcomes.clear();
    }

    pub(super) fn put_outcome(&self, outcome: E::Outcome) {
        self.lock().outcomes.push_back(outcome);
        self.changed.notify_all();
    }

    /// Records that no message follows, and why: the connection ended, or its bytes are malformed.
    pub(super) fn close(&self, kind: AbortKind, cause: String) {
        self.lock().closed.get_or_insert((kind, cause));
        self.changed.notify_all();
    }

    /// Records that this side cannot go on, whatever it waits for.
    pub(super) fn fail(&self, cause: String) {
        self.lock().failed.get_or_insert(cause);
        self.changed.notify_all();
    }

    /// Takes the latest progress of the content, ahead of the messages before it.
    pub(super) fn take_progress(&self) -> Option<Written> {
        let mut state = self.lock();
        let progress = |message: &E::Incoming| match message.as_common() {
            Some(Common::Note(Event::Written(written))) => Some(*written),
            _ => None,
        };
        let latest = state.messages.iter().rev().find_map(|(message, _)| progress(message));
        if latest.is_some() {
            let State { messages, message_bytes, .. } = &mut *state;
            messages.retain(|(message, bytes)| {
                let is_kept = progress(message).is_none();
                *message_bytes -= if is_kept { 0 } else { *bytes };
                is_kept
            });
            self.changed.notify_all();
        }
        latest
    }

    /// Counts a written message.
    pub(super) fn count_written(&self, bytes: usize) {
        self.lock().raw_bytes += bytes as u64;
    }

    /// Bytes of all messages, both ways.
    pub(super) fn raw_bytes(&self) -> u64 {
        self.lock().raw_bytes
    }

    /// True if nothing waits to be taken.
    pub(super) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.outcomes.is_empty() && state.messages.is_empty()
    }

    /// Records that the writer has ended.
    pub(super) fn end_writing(&self) {
        self.lock().written = true;
        self.changed.notify_all();
    }

    /// The text of a timeout, if the peer was silent for too long.
    pub(super) fn silence(&self) -> Option<String> {
        silence(&self.lock()).cloned()
    }

    /// Waits for the end of the writer, up to this timeout, and not if its peer is gone.
    pub(super) fn wait_for_writer(&self, timeout: Duration) {
        let waiting = |state: &mut State<E>| !state.written && silence(state).is_none();
        drop(self.changed.wait_timeout_while(self.lock(), timeout, waiting));
    }

    /// Records that nothing will be taken any more.
    pub(super) fn abandon(&self) {
        self.lock().abandoned = true;
        self.changed.notify_all();
    }

    /// Waits for the next input. Outcomes go before messages; with `only_outcomes` messages wait.
    pub(super) fn take(&self, only_outcomes: bool) -> Input<E::Incoming, E::Outcome> {
        let mut state = self.lock();
        loop {
            if let Some(cause) = &state.failed {
                return Input::Broken(AbortKind::Protocol, cause.clone());
            }
            if let Some(outcome) = state.outcomes.pop_front() {
                return Input::Outcome(outcome);
            }
            if !only_outcomes {
                if let Some((message, bytes)) = state.messages.pop_front() {
                    state.message_bytes -= bytes;
                    self.changed.notify_all();
                    return Input::Message(message);
                }
                match &state.closed {
                    Some((AbortKind::Connection | AbortKind::Timeout, cause)) => {
                        return Input::Closed(cause.clone());
                    }
                    Some((kind, cause)) => return Input::Broken(*kind, cause.clone()),
                    None => {}
                }
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<E>> {
        // No code that holds the lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn silence<E: Engine>(state: &State<E>) -> Option<&String> {
    state.closed.as_ref().and_then(|(kind, cause)| (*kind == AbortKind::Timeout).then_some(cause))
}
