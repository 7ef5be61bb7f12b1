//! Watching by inotify, a directory at a time.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init, remove_watch};
use rustix::io::Errno;

use super::Shared;
use super::settle::How;
use crate::tree::path::TreePath;

/// What is worth to be told of. That a file was opened or read is not.
const FLAGS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::EXCL_UNLINK);

/// Of the root also that it goes, or goes elsewhere.
const ROOT_FLAGS: WatchFlags = FLAGS.union(WatchFlags::DELETE_SELF).union(WatchFlags::MOVE_SELF);

/// Room for some hundred events at a time: the queue in the kernel has 16,384 of them and may not run over.
const BUFFER_BYTES: usize = 64 << 10;

/// Where the kernel says how many directories one user may watch.
const LIMIT: &str = "fs.inotify.max_user_watches";

/// An inotify instance and the thread that reads it.
pub(super) struct Source {
    inner: Arc<Inner>,
}

struct Inner {
    inotify: OwnedFd,
    /// Written to when the thread is to look at the time, or to end.
    bell: OwnedFd,
    state: Mutex<State>,
    /// Held while events are taken in, so that whoever has it knows of all that were before.
    reading: Mutex<()>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct State {
    /// The directories by the numbers of their watches; `None` is the root.
    directories: HashMap<i32, Option<TreePath>>,
    ended: bool,
}

impl Source {
    /// An instance without watches.
    pub(super) fn begin(_root: &Path, shared: Arc<Shared>) -> io::Result<Self> {
        let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|error| match error {
            Errno::MFILE => io::Error::other("fs.inotify.max_user_instances is too small"),
            error => error.into(),
        })?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let inner =
            Arc::new(Inner { inotify, bell, state: Mutex::default(), reading: Mutex::default(), shared });
        let watching = Arc::clone(&inner);
        thread::Builder::new().name("watch".to_owned()).spawn(move || watching.run())?;
        Ok(Self { inner })
    }

    /// Watches a directory that is open, so that it is this one and no other that has come to its path.
    pub(super) fn enter(&self, directory: BorrowedFd<'_>, path: Option<&TreePath>) {
        let flags = if path.is_some() { FLAGS } else { ROOT_FLAGS };
        let handle = format!("/proc/self/fd/{}", directory.as_raw_fd());
        // Taken first: an event of the new watch must find it.
        let mut state = self.inner.state();
        match add_watch(&self.inner.inotify, handle, flags) {
            Ok(number) => drop(state.directories.insert(number, path.cloned())),
            Err(Errno::NOSPC) => {
                let count = state.directories.len();
                self.inner.shared.blind(format!(
                    "only {count} directories can be watched: raise {LIMIT} (sudo sysctl {LIMIT}=1048576)"
                ));
            }
            Err(error) => {
                let shown = path.map_or_else(|| ".".into(), TreePath::display);
                self.inner.shared.blind(format!("cannot watch {shown}: {error}"));
            }
        }
    }

    /// Takes in all events that there are, and waits for those that the thread is taking in.
    pub(super) fn catch_up(&self) {
        // What cannot be read the thread finds out about, too.
        let _ = self.inner.read(&mut vec![MaybeUninit::uninit(); BUFFER_BYTES]);
    }

    /// Lets the thread look at the time.
    pub(super) fn rouse(&self) {
        // If it is full, it rings.
        let _ = rustix::io::write(&self.inner.bell, &1_u64.to_ne_bytes());
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.inner.state().ended = true;
        self.rouse();
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
        let mut wait = None;
        while !self.state().ended {
            if let Err(error) = self.wait(wait).and_then(|()| self.read(&mut buffer)) {
                self.shared.blind(format!("reading what was touched: {error}"));
                self.shared.everything();
                self.shared.settle();
                return;
            }
            wait = self.shared.settle();
        }
    }

    /// Waits for events, the bell, or the end of a time.
    fn wait(&self, wait: Option<Duration>) -> rustix::io::Result<()> {
        let mut ready = [self.inotify.as_fd(), self.bell.as_fd()]
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN));
        // A little late rather than a little early, and once more.
        let wait = wait.map(|wait| Timespec::try_from(wait + Duration::from_micros(100))).transpose();
        match poll(&mut ready, wait.unwrap_or_default().as_ref()) {
            Err(Errno::INTR) | Ok(_) => {}
            Err(error) => return Err(error),
        }
        match rustix::io::read(&self.bell, &mut [0_u8; 8]) {
            Err(Errno::AGAIN | Errno::INTR) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes in all events that there are.
    fn read(&self, buffer: &mut [MaybeUninit<u8>]) -> rustix::io::Result<()> {
        let _one_at_a_time = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let mut events = Reader::new(&self.inotify, buffer);
        loop {
            match events.next() {
                Ok(event) => {
                    self.event(event.wd(), event.events(), event.file_name().map(|name| name.to_bytes()))
                }
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn event(&self, watch: i32, flags: ReadFlags, name: Option<&[u8]>) {
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return self.shared.everything();
        }
        let mut state = self.state();
        if flags.contains(ReadFlags::IGNORED) {
            state.directories.remove(&watch);
            return;
        }
        let Some(directory) = state.directories.get(&watch) else { return };
        if flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT) {
            // Whoever looks sees whether the root is still there.
            return self.shared.everything();
        }
        let path = match (name, directory) {
            (Some(name), Some(directory)) => directory.join(name),
            (Some(name), None) => TreePath::new(name),
            // The directory's own metadata. Those of the root come with every round.
            (None, Some(directory)) => Ok(directory.clone()),
            (None, None) => return self.shared.everything(),
        };
        // What no tree can hold is nobody's concern, our own state directory before all.
        let Ok(path) = path else { return };
        let is_directory = flags.contains(ReadFlags::ISDIR);
        if is_directory && flags.contains(ReadFlags::MOVED_FROM) {
            self.forget(&mut state, &path);
        }
        let how = if is_directory && flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            How::Deep
        } else if !is_directory && flags.contains(ReadFlags::MODIFY) {
            How::Writing
        } else {
            How::Whole
        };
        drop(state);
        self.shared.touch(path, how);
    }

    /// Stops to watch a directory that went away with everything in it: whatever happens in it is not in the tree any
    /// more, or under another name.
    fn forget(&self, state: &mut State, gone: &TreePath) {
        state.directories.retain(|watch, path| {
            let stays = path.as_ref().is_none_or(|path| path != gone && !path.is_below(gone));
            if !stays {
                // One whose directory was removed meanwhile is gone already.
                let _ = remove_watch(&self.inotify, *watch);
            }
            stays
        });
    }
}
