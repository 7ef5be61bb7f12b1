//! Watching with inotify, one directory at a time.

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

use super::settle::How;
use super::shared::{Policy, Shared, TouchedEntry};
use crate::tree::path::TreePath;

/// The events that matter. Opening and reading do not.
const FLAGS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::EXCL_UNLINK);

/// The root's removal and move matter too.
const ROOT_FLAGS: WatchFlags = FLAGS.union(WatchFlags::DELETE_SELF).union(WatchFlags::MOVE_SELF);

/// Room for some hundred events at a time: the kernel's queue has 16,384 and must not overflow.
const BUFFER_BYTES: usize = 64 << 10;

/// The kernel setting for the number of directories that one user may watch.
const LIMIT: &str = "fs.inotify.max_user_watches";

/// An inotify instance and the thread that reads it.
pub(super) struct EventSource {
    inner: Arc<Inner>,
}

struct Inner {
    inotify: OwnedFd,
    /// Written to when the thread must check the time, or end.
    bell: OwnedFd,
    state: Mutex<State>,
    /// Held while events are read, so its holder knows of all earlier events.
    reading: Mutex<()>,
    shared: Arc<Shared>,
    policy: Policy,
}

#[derive(Default)]
struct State {
    /// The directories by their watch descriptors; `None` is the root.
    directories: HashMap<i32, Option<TreePath>>,
    ended: bool,
}

impl EventSource {
    /// Creates an instance without watches, and a thread that reads its events.
    pub(super) fn begin(_root: &Path, shared: Arc<Shared>) -> io::Result<Self> {
        let source = Self::unattended(shared, Policy::Rounds)?;
        let watching = Arc::clone(&source.inner);
        thread::Builder::new().name("watch".to_owned()).spawn(move || watching.run())?;
        Ok(source)
    }

    /// Creates an instance without watches, whose events wait until `catch_up`.
    pub(super) fn unattended(shared: Arc<Shared>, policy: Policy) -> io::Result<Self> {
        let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|error| match error {
            Errno::MFILE => io::Error::other("fs.inotify.max_user_instances is too small"),
            error => error.into(),
        })?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let inner = Arc::new(Inner {
            inotify,
            bell,
            state: Mutex::default(),
            reading: Mutex::default(),
            shared,
            policy,
        });
        Ok(Self { inner })
    }

    /// Watches an open directory. The handle ensures that it is this directory, not another one
    /// that took its path.
    pub(super) fn enter(&self, directory: BorrowedFd<'_>, path: Option<&TreePath>) {
        let flags = if path.is_some() { FLAGS } else { ROOT_FLAGS };
        let handle = format!("/proc/self/fd/{}", directory.as_raw_fd());
        // Locked first: an event of the new watch must find its directory.
        let mut state = self.inner.state();
        if state.directories.len() >= self.inner.policy.directories_max() {
            return self.inner.shared.blind("too many directories".to_owned());
        }
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

    /// Reads all pending events, and waits if the thread is reading some.
    pub(super) fn catch_up(&self) {
        if let Err(error) = self.inner.read(&mut vec![MaybeUninit::uninit(); BUFFER_BYTES]) {
            self.inner.shared.blind(format!("reading what was touched: {error}"));
            self.inner.shared.everything();
        }
    }

    /// Wakes the thread to check the time.
    pub(super) fn rouse(&self) {
        // If the counter is full, the thread is being woken already.
        let _ = rustix::io::write(&self.inner.bell, &1_u64.to_ne_bytes());
    }
}

impl Drop for EventSource {
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

    /// Waits for an event, for `rouse`, or for the end of `wait`.
    fn wait(&self, wait: Option<Duration>) -> rustix::io::Result<()> {
        let mut ready = [self.inotify.as_fd(), self.bell.as_fd()]
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN));
        // Waking a little early would cost another wait, so wake a little late.
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

    /// Reads all pending events.
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
            // The next round finds out if the root is still there.
            return self.shared.everything();
        }
        let path = match self.policy.touched(directory.as_ref(), name) {
            TouchedEntry::Path(path) => path,
            TouchedEntry::Everything => return self.shared.everything(),
            TouchedEntry::Nothing => return,
        };
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

    /// Stops watching a directory that left its path, with everything in it. Later changes in it
    /// are outside of the tree, or under another name.
    fn forget(&self, state: &mut State, gone: &TreePath) {
        state.directories.retain(|watch, path| {
            let stays = path.as_ref().is_none_or(|path| path != gone && !path.is_below(gone));
            if !stays {
                // A watch whose directory was removed meanwhile is gone already.
                let _ = remove_watch(&self.inotify, *watch);
            }
            stays
        });
    }
}
