//! Watching with the system's own interface, on other systems than Linux: the whole tree below a
//! root at once.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use super::settle::How;
use super::shared::Shared;
use crate::tree::path::TreePath;

/// Interval of checking whether changes have settled.
const LOOK: Duration = Duration::from_millis(5);

/// A watcher of a whole tree.
pub(super) struct EventSource {
    _watcher: RecommendedWatcher,
    clock: thread::Thread,
}

impl EventSource {
    /// Watches everything below `root`.
    pub(super) fn begin(root: &Path, shared: Arc<Shared>) -> io::Result<Self> {
        // Events name entries by their real paths.
        let root = std::fs::canonicalize(root)?;
        let clock = {
            let shared = Arc::downgrade(&shared);
            thread::Builder::new().name("watch".to_owned()).spawn(move || tick(&shared))?.thread().clone()
        };
        let (below, roused) = (root.clone(), clock.clone());
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            match event {
                Ok(event) => take(&shared, &below, &event),
                Err(_) => shared.everything(),
            }
            roused.unpark();
        });
        let begun = watcher.and_then(|mut watcher| {
            watcher.watch(&root, RecursiveMode::Recursive)?;
            Ok(Self { _watcher: watcher, clock })
        });
        begun.map_err(io::Error::other)
    }

    /// The whole tree is watched already.
    pub(super) fn enter(&self, _directory: BorrowedFd<'_>, _path: Option<&TreePath>) {}

    /// This system cannot be asked for its pending events.
    #[cfg_attr(target_os = "linux", allow(dead_code))]
    pub(super) fn catch_up(&self) {}

    /// Wakes the thread to check the time.
    pub(super) fn rouse(&self) {
        self.clock.unpark();
    }
}

/// Checks the time, as long as the watch exists.
fn tick(shared: &Weak<Shared>) {
    while let Some(shared) = shared.upgrade() {
        let wait = shared.settle();
        drop(shared);
        match wait {
            Some(wait) => thread::park_timeout(wait.min(LOOK)),
            // Wakes up every second to check if the watch still exists.
            None => thread::park_timeout(Duration::from_secs(1)),
        }
    }
}

fn take(shared: &Shared, root: &Path, event: &Event) {
    if event.need_rescan() {
        return shared.everything();
    }
    let how = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => How::Whole,
        EventKind::Access(_) => return,
        EventKind::Create(CreateKind::File) | EventKind::Modify(ModifyKind::Metadata(_)) => How::Whole,
        EventKind::Modify(ModifyKind::Data(_)) => How::Writing,
        // A directory may have come with everything in it.
        _ => How::Deep,
    };
    for path in &event.paths {
        match below(root, path) {
            Some(path) => shared.touch(path, how),
            None if path == root => shared.everything(),
            None => {}
        }
    }
}

/// The path in the tree; `None` if it is outside.
fn below(root: &Path, path: &Path) -> Option<TreePath> {
    TreePath::new(path.strip_prefix(root).ok()?.as_os_str().as_bytes()).ok()
}
