//! State shared by the watching thread and its user.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::tree::path::{PathError, TreePath};
use crate::watch::settle::{How, Settle, Touched};

/// The handling of events that are about no entry of a tree, and the limit of directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    /// Rounds of a watch: each takes the root's metadata along.
    Rounds,
    /// Changes to a scan, which lists no root. Other names than a tree can hold are problems of a
    /// scan.
    Scan {
        /// State directories are reported in a source.
        is_source: bool,
        directories_max: usize,
    },
}

impl Policy {
    pub(super) fn directories_max(self) -> usize {
        match self {
            Self::Rounds => usize::MAX,
            Self::Scan { directories_max, .. } => directories_max,
        }
    }

    /// The part of a tree that an event touched: the entry `name` of a directory, or the directory
    /// itself. The root has no path.
    pub(super) fn touched(self, directory: Option<&TreePath>, name: Option<&[u8]>) -> TouchedEntry {
        let path = match (name, directory) {
            (Some(name), Some(directory)) => directory.join(name),
            (Some(name), None) => TreePath::new(name),
            // The directory's own metadata. Those of the root come with every round.
            (None, Some(directory)) => Ok(directory.clone()),
            (None, None) if self == Self::Rounds => return TouchedEntry::Everything,
            (None, None) => return TouchedEntry::Nothing,
        };
        match (path, self) {
            (Ok(path), _) => TouchedEntry::Path(path),
            // Paths that no tree can hold do not matter, above all those in our own state
            // directory.
            (Err(_), Self::Rounds) => TouchedEntry::Nothing,
            (Err(PathError::Reserved), Self::Scan { is_source: false, .. }) => TouchedEntry::Nothing,
            (Err(_), Self::Scan { .. }) => TouchedEntry::Everything,
        }
    }
}

/// The part of a tree that an event touched.
pub(super) enum TouchedEntry {
    Path(TreePath),
    Everything,
    Nothing,
}

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
    /// Nothing was touched yet. `quiet` is the debounce.
    pub(super) fn new(quiet: Duration) -> Arc<Self> {
        let settle = Settle::new(quiet);
        let state = State { settle, due: None, is_asked: false, blind: None, waker: None };
        Arc::new(Self { begun: Instant::now(), state: Mutex::new(state) })
    }

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
