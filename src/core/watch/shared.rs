//! State shared by the watching thread and its user.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::tree::path::TreePath;
use crate::watch::settle::{How, Settle, Touched};

/// State shared by the watching thread and its user.
pub(super) struct Shared {
    pub(super) begun: Instant,
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    pub(super) settle: Settle,
    /// The changes that are due.
    pub(super) due: Option<Touched>,
    /// True if a full round was requested, after the changes before the request.
    pub(super) is_asked: bool,
    /// The reason why the watch misses changes, if it does.
    pub(super) blind: Option<String>,
    pub(super) waker: Option<Box<dyn Fn() + Send>>,
}

impl Shared {
    pub(super) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn touch(&self, path: TreePath, how: How) {
        let now = self.now();
        self.state().settle.touch(path, how, now);
    }

    pub(super) fn everything(&self) {
        let now = self.now();
        self.state().settle.everything(now);
    }

    pub(super) fn blind(&self, why: String) {
        self.state().blind.get_or_insert(why);
    }

    /// Passes on the settled changes. Returns the delay before the next call.
    pub(super) fn settle(&self) -> Option<Duration> {
        let now = self.now();
        let mut state = self.state();
        if state.collect(now)
            && let Some(waker) = &state.waker
        {
            waker();
        }
        state.settle.next().map(|next| next.saturating_sub(now))
    }
}

impl State {
    pub(super) fn collect(&mut self, now: Duration) -> bool {
        let Some(touched) = self.settle.due(now) else { return false };
        self.is_due(touched);
        true
    }

    pub(super) fn is_due(&mut self, touched: Touched) {
        self.due = Some(match self.due.take() {
            Some(earlier) => earlier.and(touched),
            None => touched,
        });
    }
}
