//! Watching with fanotify: one mark for the whole filesystem, whatever the number of directories.
//!
//! Only a superuser may set such a mark. It tells of all other files of the filesystem too, so a
//! thread drops their events before they fill the kernel's queue.
//!
//! An event names its directory by a file handle. inotify shows the handles of watched directories
//! in `/proc/self/fdinfo`, so each directory is watched with inotify too until its handle is read.
//! `name_to_handle_at` would tell the same, but no safe function calls it.
//!
//! Formats: `fanotify(7)`, and `/proc/pid/fdinfo/` in `proc_pid_fdinfo(5)`.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::fstat;
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use rustix::io::Errno;

use super::settle::How;
use super::shared::{Policy, Shared, TouchedEntry};
use crate::tree::path::TreePath;

/// `FAN_REPORT_DIR_FID | FAN_REPORT_NAME` (Linux 5.9): events tell the directory and the name.
const REPORT_DIRECTORY_AND_NAME: InitFlags = InitFlags::from_bits_retain(0x400 | 0x800);

/// The events that matter. Opening and reading do not.
const MASK: MaskFlags = MaskFlags::FAN_CREATE
    .union(MaskFlags::FAN_DELETE)
    .union(MaskFlags::FAN_MODIFY)
    .union(MaskFlags::FAN_CLOSE_WRITE)
    .union(MaskFlags::FAN_ATTRIB)
    .union(MaskFlags::FAN_MOVED_FROM)
    .union(MaskFlags::FAN_MOVED_TO)
    .union(MaskFlags::FAN_ONDIR);

/// Directories whose handles are read together. Closing an inotify instance takes about 5 ms,
/// however few directories it watches, and 8,192 is the least number that a user may watch.
const BATCH: usize = 2048;

/// Most directories of a tree: about 40 MB of handles and paths.
const DIRECTORIES_MAX: usize = 1 << 18;

/// The delay between two reads of events: the kernel's queue has 16,384, and the thread shall not
/// wake for each write of another program.
const READ_INTERVAL: Duration = Duration::from_millis(250);

const BUFFER_BYTES: usize = 64 << 10;

/// The type of a file handle and its bytes.
type Handle = Box<[u8]>;

/// A fanotify group with one mark, and the thread that reads it.
pub(super) struct FilesystemSource {
    inner: Arc<Inner>,
}

struct Inner {
    group: Fanotify,
    /// Written to when the thread must end.
    bell: OwnedFd,
    device: u64,
    /// Held while events are read, so its holder knows of all earlier events.
    state: Mutex<State>,
    shared: Arc<Shared>,
    policy: Policy,
}

#[derive(Default)]
struct State {
    /// The directories by their handles; `None` is the root.
    directories: HashMap<Handle, Option<TreePath>>,
    /// Directories whose handles were not read yet.
    batch: Option<Batch>,
    ended: bool,
}

/// Directories that inotify watches, by their watch descriptors.
struct Batch {
    inotify: OwnedFd,
    directories: HashMap<i32, Option<TreePath>>,
}

impl FilesystemSource {
    /// Marks the filesystem of `root`, and starts the thread that reads the events.
    pub(super) fn begin(root: BorrowedFd<'_>, shared: Arc<Shared>, policy: Policy) -> io::Result<Self> {
        let flags = InitFlags::FAN_CLASS_NOTIF
            | InitFlags::FAN_CLOEXEC
            | InitFlags::FAN_NONBLOCK
            | REPORT_DIRECTORY_AND_NAME;
        let group = Fanotify::init(flags, EventFFlags::empty())?;
        group.mark(MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM, MASK, root, Some("."))?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let device = fstat(root)?.st_dev;
        let inner = Arc::new(Inner { group, bell, device, state: Mutex::default(), shared, policy });
        let reading = Arc::clone(&inner);
        thread::Builder::new().name("fanotify".to_owned()).spawn(move || reading.run())?;
        Ok(Self { inner })
    }

    /// Collects the events of an open directory from now on.
    pub(super) fn enter(&self, directory: BorrowedFd<'_>, path: Option<&TreePath>) {
        // Locked first: an event of this directory must not be read before its handle.
        let mut state = self.inner.state();
        if let Err(error) = self.inner.enter(&mut state, directory, path) {
            let shown = path.map_or_else(|| ".".into(), TreePath::display);
            self.inner.shared.blind(format!("cannot watch {shown}: {error}"));
        }
    }

    /// Reads all pending events.
    pub(super) fn catch_up(&self) {
        self.inner.catch_up();
    }
}

impl Drop for FilesystemSource {
    fn drop(&mut self) {
        self.inner.state().ended = true;
        // If the counter is full, the thread is being woken already.
        let _ = rustix::io::write(&self.inner.bell, &1_u64.to_ne_bytes());
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while !self.state().ended {
            let mut ready = [self.group.as_fd(), self.bell.as_fd()]
                .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN));
            let _ = poll(&mut ready, None);
            let pause = Timespec::try_from(READ_INTERVAL).ok();
            let mut bell = [PollFd::from_borrowed_fd(self.bell.as_fd(), PollFlags::IN)];
            let _ = poll(&mut bell, pause.as_ref());
            self.catch_up();
            if self.shared.state().blind.is_some() {
                // Nobody relies on this any more.
                return;
            }
        }
    }

    fn catch_up(&self) {
        let mut state = self.state();
        if let Err(error) = state.read_handles().and_then(|()| self.read(&mut state)) {
            self.shared.blind(format!("reading what was touched: {error}"));
            self.shared.everything();
        }
    }

    fn enter(&self, state: &mut State, directory: BorrowedFd<'_>, path: Option<&TreePath>) -> io::Result<()> {
        if fstat(directory)?.st_dev != self.device {
            return Err(io::Error::other("it is on another filesystem"));
        }
        if state.directories.len() >= DIRECTORIES_MAX {
            return Err(io::Error::other("too many directories"));
        }
        let batch = match &mut state.batch {
            Some(batch) => batch,
            none => none.insert(Batch { inotify: init(CreateFlags::CLOEXEC)?, directories: HashMap::new() }),
        };
        let opened = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let number = add_watch(&batch.inotify, opened, WatchFlags::DELETE_SELF | WatchFlags::ONLYDIR)?;
        batch.directories.insert(number, path.cloned());
        if batch.directories.len() >= BATCH { state.read_handles() } else { Ok(()) }
    }

    /// Reads all pending events.
    fn read(&self, state: &mut State) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match rustix::io::read(&self.group, &mut buffer) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(count) => {
                    for event in Events(buffer.get(..count).unwrap_or_default()) {
                        self.event(state, &event);
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn event(&self, state: &mut State, event: &Event<'_>) {
        if event.mask.contains(MaskFlags::FAN_Q_OVERFLOW) {
            return self.shared.everything();
        }
        let Some((handle, name)) = event.place else { return self.shared.everything() };
        let Some(directory) = state.directories.get(handle) else { return };
        let path = match self.policy.touched(directory.as_ref(), name) {
            TouchedEntry::Path(path) => path,
            TouchedEntry::Everything => return self.shared.everything(),
            TouchedEntry::Nothing => return,
        };
        let is_directory = event.mask.contains(MaskFlags::FAN_ONDIR);
        if is_directory && event.mask.contains(MaskFlags::FAN_MOVED_FROM) {
            let stays = |at: &TreePath| *at != path && !at.is_below(&path);
            state.directories.retain(|_, at| at.as_ref().is_none_or(stays));
        }
        let arrived = event.mask.intersects(MaskFlags::FAN_CREATE | MaskFlags::FAN_MOVED_TO);
        self.shared.touch(path, if is_directory && arrived { How::Deep } else { How::Whole });
    }
}

impl State {
    /// Reads the handles of the directories that were entered.
    fn read_handles(&mut self) -> io::Result<()> {
        let Some(mut batch) = self.batch.take() else { return Ok(()) };
        let info = Path::new("/proc/self/fdinfo").join(batch.inotify.as_raw_fd().to_string());
        for (number, handle) in fs::read_to_string(info)?.lines().filter_map(watched) {
            if let Some(path) = batch.directories.remove(&number) {
                self.directories.insert(handle, path);
            }
        }
        // A directory without a handle may have been removed since. Its parent tells of that.
        Ok(())
    }
}

/// The watch descriptor and the handle in a line of an inotify instance's `fdinfo`.
fn watched(line: &str) -> Option<(i32, Handle)> {
    let field = |name: &str| line.split(' ').find_map(|field| field.strip_prefix(name));
    let number = i32::from_str_radix(field("wd:")?, 16).ok()?;
    let kind = u32::from_str_radix(field("fhandle-type:")?, 16).ok()?;
    let digits = field("f_handle:")?.as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
    Some((number, [kind.to_ne_bytes().as_slice(), &bytes?].concat().into()))
}

/// An event, and the handle of its directory with the name in there; `None` for the directory
/// itself.
struct Event<'a> {
    mask: MaskFlags,
    place: Option<(&'a [u8], Option<&'a [u8]>)>,
}

/// The events in bytes that were read from a fanotify group.
struct Events<'a>(&'a [u8]);

impl<'a> Iterator for Events<'a> {
    type Item = Event<'a>;

    fn next(&mut self) -> Option<Event<'a>> {
        let mut header = Bytes(self.0);
        let length = header.number()? as usize;
        let [_version, _reserved, low, high] = header.array()?;
        let metadata_length = usize::from(u16::from_ne_bytes([low, high]));
        let mask = MaskFlags::from_bits_retain(u64::from_ne_bytes(header.array()?));
        let place = self.0.get(metadata_length..length).and_then(place);
        // An event of no length would be found again and again.
        self.0 = self.0.get(length.max(1)..)?;
        Some(Event { mask, place })
    }
}

/// The handle of the directory and the name in the information records of an event.
fn place(mut records: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    /// `FAN_EVENT_INFO_TYPE_DFID_NAME` and `FAN_EVENT_INFO_TYPE_DFID`.
    const DIRECTORY: [u8; 2] = [2, 3];
    const FILESYSTEM_ID_BYTES: usize = 8;

    loop {
        let mut record = Bytes(records);
        let [kind, _pad, low, high] = record.array()?;
        let length = usize::from(u16::from_ne_bytes([low, high]));
        if DIRECTORY.contains(&kind) {
            record.take(FILESYSTEM_ID_BYTES)?;
            let handle_bytes = record.number()? as usize;
            let handle = record.0.get(..size_of::<u32>().checked_add(handle_bytes)?)?;
            record.take(handle.len())?;
            let end = record.0.iter().position(|&byte| byte == 0);
            let name = end.and_then(|end| record.0.get(..end));
            return Some((handle, name.filter(|name| !matches!(*name, b"" | b"."))));
        }
        records = records.get(length.max(1)..)?;
    }
}

/// Bytes in the order of this machine.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn number(&mut self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An event as the kernel writes it.
    fn event(mask: u64, record: &[u8]) -> Vec<u8> {
        let length = (24 + record.len()) as u32;
        let mut bytes = [length.to_ne_bytes().as_slice(), &[3, 0], &24_u16.to_ne_bytes()].concat();
        bytes.extend([mask.to_ne_bytes().as_slice(), &(-1_i32).to_ne_bytes(), &7_i32.to_ne_bytes()].concat());
        bytes.extend(record);
        bytes
    }

    fn record(kind: u8, handle: &[u8], name: &[u8]) -> Vec<u8> {
        let length = (20 + handle.len() + name.len()) as u16;
        let mut bytes = [&[kind, 0], length.to_ne_bytes().as_slice(), &[9; 8]].concat();
        bytes.extend((handle.len() as u32).to_ne_bytes());
        bytes.extend([&1_u32.to_ne_bytes(), handle, name].concat());
        bytes
    }

    #[test]
    fn events_tell_directory_and_name() {
        let other = record(1, &[8; 8], b"");
        let bytes = [
            event(0x100, &record(2, &[7; 8], b"new\0\0\0")),
            event(0x4000_0004, &record(2, &[7; 8], b".\0")),
            event(0x4000_0004, &[other, record(3, &[6; 12], b"")].concat()),
            event(0x4000, b""),
        ];
        let bytes = bytes.concat();
        let key = |handle: &[u8]| [&1_u32.to_ne_bytes(), handle].concat();
        let (seven, six) = (key(&[7; 8]), key(&[6; 12]));
        let told: Vec<_> = Events(&bytes).map(|event| (event.mask.bits(), event.place)).collect();
        let expected = [
            (0x100, Some((seven.as_slice(), Some(b"new".as_slice())))),
            (0x4000_0004, Some((&seven, None))),
            (0x4000_0004, Some((&six, None))),
            (0x4000, None),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn handles_are_read_from_fdinfo() {
        let line = "inotify wd:1f ino:98e007 sdev:fe00000 mask:100 ignored_mask:0 fhandle-bytes:8 \
                    fhandle-type:1 f_handle:07e09800da26422f";
        let bytes = [7, 0xe0, 0x98, 0, 0xda, 0x26, 0x42, 0x2f];
        let handle = [1_u32.to_ne_bytes().as_slice(), &bytes].concat();
        assert_eq!(watched(line), Some((31, handle.into())));
        assert_eq!(watched("pos:\t0"), None);
        assert_eq!(watched("inotify wd:1 ino:1 sdev:1 mask:100 ignored_mask:0 "), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(bytes: Vec<u8>) {
            prop_assert!(Events(&bytes).count() <= bytes.len());
            place(&bytes);
        }
    }
}
