//! Watching: what is touched in a tree, a moment after it was.
//!
//! Events are hints: they say where to look, never what is there. Whoever reads a tree tells of each directory that it
//! enters ([`Watch::enter`]), before it reads the names in it: so a directory is watched first and then read, and
//! nothing falls in between. What is left out by rules is never entered, and so is never watched.
//!
//! Where the system cannot watch a directory, or not so many of them, the watch is blind: then somebody has to look at
//! everything again and again.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(any(not(target_os = "linux"), test))]
mod portable;
pub mod settle;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use linux::Source;
#[cfg(not(target_os = "linux"))]
use portable::Source;

use crate::tree::path::TreePath;
use settle::{How, Settle, Touched};

/// How to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How long nothing may have been touched before what was is looked at.
    pub quiet: Duration,
    /// Do not watch: look at everything again and again.
    pub poll: bool,
}

/// A tree that is watched. It is until this is dropped.
pub struct Watch {
    shared: Arc<Shared>,
    /// `None` where nothing can be watched, or is to be.
    source: Option<Source>,
}

/// What the watching thread and whoever waits for it share.
struct Shared {
    begun: Instant,
    state: Mutex<State>,
}

struct State {
    settle: Settle,
    /// What is to be looked at.
    due: Option<Touched>,
    /// Somebody wants a look at everything, after what was touched before that.
    is_asked: bool,
    /// Why not everything is seen.
    blind: Option<String>,
    waker: Option<Box<dyn Fn() + Send>>,
}

impl Watch {
    /// Begins to watch the tree below `root`: nothing of it so far, where directories are entered one by one.
    #[must_use]
    pub fn new(root: &std::path::Path, options: Options) -> Self {
        let state = State {
            settle: Settle::new(options.quiet),
            due: None,
            is_asked: false,
            blind: None,
            waker: None,
        };
        let shared = Arc::new(Shared { begun: Instant::now(), state: Mutex::new(state) });
        let source = if options.poll {
            shared.blind("it was asked for".to_owned());
            None
        } else {
            let begun = Source::begin(root, Arc::clone(&shared));
            begun.inspect_err(|error| shared.blind(error.to_string())).ok()
        };
        Self { shared, source }
    }

    /// A directory is going to be read; `None` is the root. From now on it is watched.
    pub fn enter(&self, directory: BorrowedFd<'_>, path: Option<&TreePath>) {
        if let Some(source) = &self.source {
            source.enter(directory, path);
        }
    }

    /// What is to be looked at. Where everything is asked for, what was touched before comes first
    /// and by itself: what was seen as it happened is told from what only a look at everything
    /// finds.
    #[must_use]
    pub fn take(&self) -> Option<Touched> {
        let is_asked = self.shared.state().is_asked;
        if let Some(source) = self.source.as_ref().filter(|_| is_asked) {
            source.catch_up();
        }
        let mut state = self.shared.state();
        state.collect(self.shared.now());
        if !state.is_asked {
            return state.due.take();
        }
        if let Some(rest) = state.settle.rest() {
            state.is_due(rest);
        }
        match state.due.take() {
            Some(parts @ Touched::Parts(_)) => {
                if let Some(waker) = &state.waker {
                    waker();
                }
                Some(parts)
            }
            Some(Touched::Everything) | None => {
                state.is_asked = false;
                Some(Touched::Everything)
            }
        }
    }

    /// Something has to be looked at again: it was being changed when it was looked at.
    pub fn touch(&self, path: TreePath) {
        self.shared.touch(path, How::Writing);
        // The thread may be asleep until something happens.
        if let Some(source) = &self.source {
            source.rouse();
        }
    }

    /// Everything has to be looked at, now.
    pub fn everything(&self) {
        let mut state = self.shared.state();
        state.is_asked = true;
        if let Some(waker) = &state.waker {
            waker();
        }
    }

    /// Calls `waker` whenever there is something to look at, and at once if there is already.
    pub fn wake(&self, waker: impl Fn() + Send + 'static) {
        let mut state = self.shared.state();
        if state.due.is_some() || state.is_asked {
            waker();
        }
        state.waker = Some(Box::new(waker));
    }

    /// Why not everything is seen, if so.
    #[must_use]
    pub fn blindness(&self) -> Option<String> {
        self.shared.state().blind.clone()
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Shared {
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self, path: TreePath, how: How) {
        let now = self.now();
        self.state().settle.touch(path, how, now);
    }

    fn everything(&self) {
        let now = self.now();
        self.state().settle.everything(now);
    }

    fn blind(&self, why: String) {
        self.state().blind.get_or_insert(why);
    }

    /// Hands on what has settled; how long to wait before the next call.
    fn settle(&self) -> Option<Duration> {
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
    fn collect(&mut self, now: Duration) -> bool {
        let Some(touched) = self.settle.due(now) else { return false };
        self.is_due(touched);
        true
    }

    fn is_due(&mut self, touched: Touched) {
        self.due = Some(match self.due.take() {
            Some(earlier) => earlier.and(touched),
            None => touched,
        });
    }
}

#[cfg(test)]
mod tests;
