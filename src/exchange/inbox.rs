//! What waits for the engine: messages of the peer, up to a bound, and outcomes of works.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::engine::{Input, Outcome};
use crate::wire::message::{AbortKind, Message};

/// Most bytes of messages that wait. More than all the wants that may be without an answer, so that a sender
/// never keeps a receiver from sending them; and enough content to keep a receiver's disk busy.
const BYTES_MAX: usize = 12 << 20;

#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    outcomes: VecDeque<Outcome>,
    messages: VecDeque<(Message, usize)>,
    message_bytes: usize,
    /// Of all that were put in, and of all that were written.
    raw_bytes: u64,
    closed: Option<(AbortKind, String)>,
    abandoned: bool,
    /// The writer has ended.
    written: bool,
    /// What this side failed of: then nothing else counts.
    failed: Option<String>,
    /// Somebody has something to do between two rounds.
    woken: bool,
    /// The peer wants a round about everything.
    rescan: bool,
}

/// Why a wait between two rounds is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Idle {
    /// Somebody woke it.
    Woken,
    /// The peer wants a round about everything.
    Rescan,
    /// The time is over.
    Late,
    /// Nothing more will come, for this cause.
    Closed(AbortKind, String),
}

impl Inbox {
    /// Puts in a message of so many bytes, when there is room; `false` where nobody will take it.
    pub(super) fn put_message(&self, message: Message, bytes: usize) -> bool {
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

    /// The peer wants a round about everything.
    pub(super) fn ask_for_rescan(&self) {
        self.lock().rescan = true;
        self.changed.notify_all();
    }

    /// Waits between two rounds, where this side begins the next one.
    pub(super) fn idle(&self, patience: Duration) -> Idle {
        let waiting = |state: &mut State| {
            !state.woken && !state.rescan && state.closed.is_none() && state.failed.is_none()
        };
        let waited = self.changed.wait_timeout_while(self.lock(), patience, waiting);
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

    /// Forgets outcomes that came after their engine had ended.
    pub(super) fn clear_outcomes(&self) {
        self.lock().outcomes.clear();
    }

    pub(super) fn put_outcome(&self, outcome: Outcome) {
        self.lock().outcomes.push_back(outcome);
        self.changed.notify_all();
    }

    /// Says that no message follows, and why: the connection ended, or what comes on it makes no sense.
    pub(super) fn close(&self, kind: AbortKind, cause: String) {
        self.lock().closed.get_or_insert((kind, cause));
        self.changed.notify_all();
    }

    /// Says that this side cannot go on, whatever it waits for.
    pub(super) fn fail(&self, cause: String) {
        self.lock().failed.get_or_insert(cause);
        self.changed.notify_all();
    }

    /// Counts a message that was written.
    pub(super) fn count_written(&self, bytes: usize) {
        self.lock().raw_bytes += bytes as u64;
    }

    /// Bytes of all messages, both ways.
    pub(super) fn raw_bytes(&self) -> u64 {
        self.lock().raw_bytes
    }

    /// Whether nothing waits to be taken.
    pub(super) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.outcomes.is_empty() && state.messages.is_empty()
    }

    /// Says that the writer has ended.
    pub(super) fn end_writing(&self) {
        self.lock().written = true;
        self.changed.notify_all();
    }

    /// That the peer was silent for too long, in words.
    pub(super) fn silence(&self) -> Option<String> {
        silence(&self.lock()).cloned()
    }

    /// Waits for the end of the writer, but no longer than this, and not if its peer is gone.
    pub(super) fn wait_for_writer(&self, patience: Duration) {
        let waiting = |state: &mut State| !state.written && silence(state).is_none();
        drop(self.changed.wait_timeout_while(self.lock(), patience, waiting));
    }

    /// Says that nothing will be taken any more.
    pub(super) fn abandon(&self) {
        self.lock().abandoned = true;
        self.changed.notify_all();
    }

    /// Waits for the next input: outcomes go before messages, and with `only_outcomes` messages wait.
    pub(super) fn take(&self, only_outcomes: bool) -> Input {
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

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // No code that holds the lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn silence(state: &State) -> Option<&String> {
    state.closed.as_ref().and_then(|(kind, cause)| (*kind == AbortKind::Timeout).then_some(cause))
}
