//! Watching: reports the paths of a tree that changed, a moment later.
//!
//! Events are hints: they say where to look, never what is there. The reader of a tree reports each
//! directory that it enters ([`Watch::enter`]), before it reads the names in it. So each directory
//! is watched first and then read, and no change is missed in between. Excluded directories are
//! never entered, and so never watched.
//!
//! If the system cannot watch a directory, or not that many, the watch is blind. The caller must
//! then scan the whole tree at intervals.

pub mod changes;
#[cfg(target_os = "linux")]
mod fanotify;
#[cfg(target_os = "linux")]
mod inotify;
#[cfg(any(not(target_os = "linux"), test))]
mod portable;
pub mod settle;
mod shared;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

#[cfg(target_os = "linux")]
use inotify::EventSource;
#[cfg(not(target_os = "linux"))]
use portable::EventSource;

use crate::tree::path::TreePath;
use settle::{How, Touched};
use shared::Shared;

/// The settings of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Debounce: the tree must be quiet this long before a round starts.
    pub quiet: Duration,
    /// Do not watch; the caller scans the whole tree at intervals.
    pub poll: bool,
}

/// A watched tree. The watch ends when this is dropped.
pub struct Watch {
    shared: Arc<Shared>,
    /// `None` if the tree cannot be watched, or if polling was requested.
    source: Option<EventSource>,
}

impl Watch {
    /// Starts to watch the tree below `root`. On Linux, each directory is watched only after
    /// `enter`.
    #[must_use]
    pub fn new(root: &std::path::Path, options: Options) -> Self {
        let shared = Shared::new(options.quiet);
        let source = if options.poll {
            shared.blind("--poll was given".to_owned());
            None
        } else {
            let begun = EventSource::begin(root, Arc::clone(&shared));
            begun.inspect_err(|error| shared.blind(error.to_string())).ok()
        };
        Self { shared, source }
    }

    /// A directory will be read next; `None` is the root. From now on it is watched.
    pub fn enter(&self, directory: BorrowedFd<'_>, path: Option<&TreePath>) {
        if let Some(source) = &self.source {
            source.enter(directory, path);
        }
    }

    /// Takes the due changes. If a full round was requested, earlier changes come first and
    /// separately. So the caller can tell changes that the watch saw from those that only a full
    /// round finds.
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
            Some(subtrees @ Touched::Subtrees(_)) => {
                if let Some(waker) = &state.waker {
                    waker();
                }
                Some(subtrees)
            }
            Some(Touched::Everything) | None => {
                state.is_asked = false;
                Some(Touched::Everything)
            }
        }
    }

    /// Requests another look at a path that was changing while it was read.
    pub fn touch(&self, path: TreePath) {
        self.shared.touch(path, How::Writing);
        // The thread may sleep until the next event.
        if let Some(source) = &self.source {
            source.rouse();
        }
    }

    /// Requests a full round, now.
    pub fn everything(&self) {
        let mut state = self.shared.state();
        state.is_asked = true;
        if let Some(waker) = &state.waker {
            waker();
        }
    }

    /// Calls `waker` whenever changes are due, and at once if some are due already.
    pub fn wake(&self, waker: impl Fn() + Send + 'static) {
        let mut state = self.shared.state();
        if state.due.is_some() || state.is_asked {
            waker();
        }
        state.waker = Some(Box::new(waker));
    }

    /// The reason why the watch misses changes, if it does.
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

#[cfg(test)]
mod tests;
