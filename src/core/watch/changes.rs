//! `Changes`: what was touched in a tree since it was scanned, for a process that rests in between.
//!
//! With inotify, no thread reads the events. They wait in the kernel's queue until somebody asks.
//! So a tree at rest costs nothing, and a busy one no more than the queue: 16,384 events, of which
//! equal ones in a row count once. The kernel queues an event before the system call that caused it
//! returns. So an answer tells of every change that ended before the question.
//!
//! A tree of more directories than inotify may watch is watched with fanotify, by a superuser. Its
//! one mark tells of the whole filesystem, which a thread must read.
//!
//! Neither tells anything of some changes. Those through a mapping show when the last mapping of an
//! opened file ends. A file that got a name outside of the tree can be changed there without an
//! event in here. The owner of a scan must bound its age.

use std::fmt;
#[cfg(target_os = "linux")]
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::tree::path::TreePath;
#[cfg(target_os = "linux")]
use crate::watch::fanotify::FilesystemSource;
#[cfg(target_os = "linux")]
use crate::watch::inotify::EventSource;
use crate::watch::settle::Touched;
#[cfg(target_os = "linux")]
use crate::watch::shared::Policy;
use crate::watch::shared::Shared;

/// The changes of a tree.
pub struct Changes {
    shared: Arc<Shared>,
    #[cfg(target_os = "linux")]
    source: Option<Source>,
}

#[cfg(target_os = "linux")]
enum Source {
    Directories(EventSource),
    Filesystem(FilesystemSource),
}

impl Changes {
    /// Collects the changes in the directories that are [entered](Self::enter), at most
    /// `directories_max`. State directories count only if the tree `is_source`.
    #[must_use]
    #[cfg(target_os = "linux")]
    pub fn begin(is_source: bool, directories_max: usize) -> Self {
        Self::new(|shared| {
            let policy = Policy::Scan { is_source, directories_max };
            EventSource::unattended(shared, policy).map(Source::Directories)
        })
    }

    /// Collects the changes in any number of directories on the filesystem of a root.
    #[must_use]
    #[cfg(target_os = "linux")]
    pub fn begin_on_filesystem(root: BorrowedFd<'_>, is_source: bool) -> Self {
        Self::new(|shared| {
            let policy = Policy::Scan { is_source, directories_max: usize::MAX };
            FilesystemSource::begin(root, shared, policy).map(Source::Filesystem)
        })
    }

    #[cfg(target_os = "linux")]
    fn new(begin: impl FnOnce(Arc<Shared>) -> io::Result<Source>) -> Self {
        let shared = Shared::new(Duration::ZERO);
        let source = begin(Arc::clone(&shared));
        let source = source.inspect_err(|error| shared.blind(error.to_string())).ok();
        Self { shared, source }
    }

    /// Tells nothing on this system.
    #[must_use]
    #[cfg(not(target_os = "linux"))]
    pub fn begin(_is_source: bool, _directories_max: usize) -> Self {
        let shared = Shared::new(Duration::ZERO);
        shared.blind("there is no inotify".to_owned());
        Self { shared }
    }

    /// Tells nothing on this system.
    #[must_use]
    #[cfg(not(target_os = "linux"))]
    pub fn begin_on_filesystem(_root: BorrowedFd<'_>, is_source: bool) -> Self {
        Self::begin(is_source, 0)
    }

    /// A directory will be read next; `None` is the root. From now on its changes are collected.
    pub fn enter(&self, directory: BorrowedFd<'_>, path: Option<&TreePath>) {
        #[cfg(target_os = "linux")]
        match &self.source {
            Some(Source::Directories(source)) => source.enter(directory, path),
            Some(Source::Filesystem(source)) => source.enter(directory, path),
            None => {}
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (directory, path);
    }

    /// Takes all changes until now.
    #[must_use]
    pub fn take(&self) -> Option<Touched> {
        #[cfg(target_os = "linux")]
        match &self.source {
            Some(Source::Directories(source)) => source.catch_up(),
            Some(Source::Filesystem(source)) => source.catch_up(),
            None => {}
        }
        let mut state = self.shared.state();
        if let Some(rest) = state.settle.rest() {
            state.is_due(rest);
        }
        state.due.take()
    }

    /// The reason why changes are missed, if they are.
    #[must_use]
    pub fn blindness(&self) -> Option<String> {
        self.shared.state().blind.clone()
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}
