//! Durability of a destination's files: keeps [`Marker`]s on the disk.
//!
//! A run marks the destination once, before its first file gets its name: an `fsync` of one
//! directory. The next run of this mount starts a `syncfs` beside its scan, if that takes only a
//! moment, and removes the marker afterwards. The next run of another mount or another boot doubts
//! the files that the marker covers, so their contents are compared. Each correct file gets a new
//! ctime, by which later runs recognise it. When all files are correct, the run removes the marker.
//!
//! A marker is an extended attribute of the directory, so a finished copy contains no file of
//! ksync. Where attributes do not work, the marker is a file in the state directory. A filesystem
//! that is mounted below the root has its own marker, in its topmost directory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, Mode, OFlags, XattrFlags, fgetxattr, fremovexattr, fsetxattr, fstat, fsync, openat, renameat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::disk::error::{DiskError, During};
use crate::disk::marker::{Marker, Mount, Stamp};
use crate::disk::mount::{Nature, is_quiet, mount_of, nature, sync};
use crate::disk::resolve::DIRECTORY;
use crate::disk::root::Root;
use crate::disk::stat::Identity;
use crate::disk::state::StateDir;
use crate::tree::doubt::Doubt;
use crate::tree::path::{STATE_DIR, TreePath};

/// Name of the extended attribute.
const ATTRIBUTE: &str = "user.ksync.unconfirmed";

/// Name of the marker file in the state directory, and its name while it is being written.
const NAME: &str = "unconfirmed";
const NEW_NAME: &str = "unconfirmed.new";

/// Maximum length of a marker, in bytes.
const MARKER_BYTES_MAX: usize = 256;

/// Timeout at the end of a run for a `syncfs` that should be over by then.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(50);

const VERB: &str = "write to the disk";

/// The markers that a scan found.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Directories with a marker, and their device numbers; `None` is the root.
    places: Vec<(Option<TreePath>, u64)>,
    /// The latest ctime of a doubted file.
    latest: Option<Stamp>,
}

/// The markers that apply to the files in one directory.
#[derive(Debug)]
pub(crate) struct Covers {
    dev: u64,
    markers: Vec<Marker>,
}

impl Covers {
    /// The markers in the directories above a root: an earlier run may have copied a larger tree.
    pub(crate) fn above(root: &Root) -> Self {
        let mut markers = Vec::new();
        let mut inode = fstat(root.descriptor()).map(|stat| stat.st_ino).ok();
        let mut directory = openat(root.descriptor(), c"..", DIRECTORY, Mode::empty());
        while let Ok(parent) = directory {
            let Ok(stat) = fstat(&parent) else { break };
            // The fields' types differ between systems.
            #[allow(clippy::unnecessary_cast)]
            let dev = stat.st_dev as u64;
            if dev != root.dev() || inode.replace(stat.st_ino) == Some(stat.st_ino) {
                break;
            }
            markers.extend(read_attribute(&parent).map(|marker| marker.under(mount_of(&parent))));
            directory = openat(&parent, c"..", DIRECTORY, Mode::empty());
        }
        markers.retain(|marker| marker.recursive);
        Self { dev: root.dev(), markers }
    }

    /// The markers that apply in a directory directly below.
    pub(crate) fn enter(
        self: &Arc<Self>,
        directory: impl AsFd,
        path: Option<&TreePath>,
        dev: u64,
        seen: &mut Seen,
    ) -> Arc<Self> {
        let is_root = path.is_none();
        let own = if is_root { read(&directory) } else { read_attribute(&directory) };
        // Marker files exist only at the top of a filesystem.
        let own = own.or_else(|| (dev != self.dev).then(|| read_file(&directory)).flatten());
        let is_same = dev == self.dev && self.markers.iter().all(|marker| marker.recursive);
        if own.is_none() && is_same {
            return Arc::clone(self);
        }
        let above = self.markers.iter().filter(|marker| dev == self.dev && marker.recursive);
        let mut markers: Vec<_> = above.copied().collect();
        if let Some(own) = own {
            markers.push(own.under(mount_of(&directory)));
            seen.places.push((path.cloned(), dev));
        }
        Arc::new(Self { dev, markers })
    }

    /// The reason to doubt a file in the directory, if any.
    pub(crate) fn doubt(&self, is: &Identity, seen: &mut Seen) -> Option<Doubt> {
        let ctime = Stamp::of(is);
        // One marker is enough to believe a file that was written under the present mount.
        if self.markers.iter().any(|marker| marker.believes(ctime)) {
            return None;
        }
        let doubt = self.markers.iter().filter_map(|marker| marker.doubt(ctime)).max();
        if doubt.is_some() {
            seen.latest = seen.latest.max(Some(ctime));
        }
        doubt
    }
}

/// The markers of a run, by filesystem.
#[derive(Debug, Default)]
pub(crate) struct Unconfirmed(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    keepers: HashMap<u64, Keeper>,
    /// True if the run covers more than single files of the root.
    recursive: bool,
    /// True if the run flushes to the disk what earlier runs wrote.
    confirms: bool,
    seen: Seen,
    syncs: HashMap<u64, Receiver<rustix::io::Result<()>>>,
}

/// One filesystem's marker.
#[derive(Debug)]
struct Keeper {
    /// The directory that holds the marker; `None` is the root.
    path: Option<TreePath>,
    nature: Nature,
    mount: Option<Mount>,
    /// The marker as it is on the disk; `is_durable` tells if it is durable there.
    marker: Marker,
    is_durable: bool,
    /// True if this filesystem can hold no marker.
    is_off: bool,
    /// The earliest ctime of a file that this run put in place.
    first: Option<Stamp>,
}

/// The origin of a file's present state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This run puts the file in place, or changes it.
    Now,
    /// The file existed, and this run verified it.
    Before,
}

impl Root {
    /// Starts a run that writes here: to the tree if `recursive`, otherwise to a single file. If
    /// the run reads the `whole` tree and finds a marker, a thread flushes the filesystem
    /// meanwhile, unless that would take long.
    pub fn begin_writing(&self, recursive: bool, whole: bool) {
        let mut state = self.unconfirmed().state();
        (state.recursive, state.confirms) = (recursive, recursive && whole);
        if state.confirms && read(self.descriptor()).is_some() && is_quiet() {
            state.confirm(self, None, self.dev());
        }
    }

    /// Takes the result of a scan, before anything is written.
    pub(crate) fn seen_markers(&self, seen: Seen) {
        let mut state = self.unconfirmed().state();
        state.seen = seen;
        for (path, dev) in state.seen.places.clone() {
            if state.confirms && dev != self.dev() && is_quiet() {
                state.confirm(self, path.as_ref(), dev);
            }
        }
    }

    /// True unless the filesystem loses everything with the power, as tmpfs does. Such a filesystem
    /// has no marker.
    #[must_use]
    pub fn outlives_power(&self) -> bool {
        nature(self.descriptor()) != Nature::Volatile
    }

    /// Marks the root before the first file is put in place.
    ///
    /// # Errors
    /// The marker cannot be written to the disk.
    pub fn expect_files(&self) -> Result<(), DiskError> {
        let mut state = self.unconfirmed().state();
        state.mark(self, None, self.dev(), now()).map(drop)
    }

    /// Marks a new file with the identity `is`, which is about to get its name. When this returns,
    /// the marker that covers the file is durable.
    ///
    /// # Errors
    /// The marker cannot be written to the disk.
    pub(crate) fn mark(&self, path: &TreePath, is: &Identity) -> Result<(), DiskError> {
        self.mark_from(path, is.dev, Stamp::of(is), Origin::Now)
    }

    /// As [`Root::mark`], for an open file in the filesystem of the root. Only a filesystem with a
    /// marker, and so not tmpfs, is asked for its ctime.
    ///
    /// # Errors
    /// As there.
    #[cfg(target_os = "linux")]
    pub(crate) fn mark_open(&self, path: &TreePath, file: &File) -> Result<(), DiskError> {
        let is_off = self.unconfirmed().state().keepers.get(&self.dev()).is_some_and(|keeper| keeper.is_off);
        if is_off { Ok(()) } else { self.mark(path, &crate::disk::root::stat_of(file, path)?.identity) }
    }

    /// Marks a file that is about to get new metadata, and with them a new ctime.
    ///
    /// # Errors
    /// As [`Root::mark`].
    pub(crate) fn mark_change(&self, path: &TreePath, dev: u64, made: Origin) -> Result<(), DiskError> {
        self.mark_from(path, dev, now(), made)
    }

    fn mark_from(&self, path: &TreePath, dev: u64, ctime: Stamp, made: Origin) -> Result<(), DiskError> {
        let mut state = self.unconfirmed().state();
        let keeper = state.mark(self, Some(path), dev, ctime)?;
        if made == Origin::Now && keeper.first.is_none_or(|first| first > ctime) {
            keeper.first = Some(ctime);
        }
        Ok(())
    }

    /// Records that the disk did not take something that this run wrote. The next run writes every
    /// file again that may not be durable, since the page cache may show bytes that the disk lacks.
    pub(crate) fn mark_lost(&self) {
        let state = &mut *self.unconfirmed().state();
        for keeper in state.keepers.values_mut().filter(|keeper| !keeper.is_off) {
            keeper.marker = keeper.marker.failing(keeper.mount);
            if let Ok(directory) = self.open_directory(keeper.path.as_ref()) {
                // The disk may not take this, either.
                let _ = write(&directory, &keeper.marker).and_then(|()| fsync_if_able(&directory));
            }
        }
    }

    /// Flushes all filesystems that this run wrote to.
    ///
    /// # Errors
    /// The disk did not take something; it is marked as lost (see `mark_lost`).
    pub fn sync_written(&self) -> Result<(), DiskError> {
        let places: Vec<_> = {
            let state = self.unconfirmed().state();
            let keepers = state.keepers.values().filter(|keeper| keeper.nature != Nature::Volatile);
            keepers.map(|keeper| keeper.path.clone()).collect()
        };
        for path in places {
            let directory = self.open_directory(path.as_ref())?;
            match sync(&directory) {
                Err(error) if !is_unable(error) => {
                    self.mark_lost();
                    return Err(error).during(VERB, self.path().as_os_str().as_bytes());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Ends the run. `verified` means that no file of the tree is doubted any more. `durable` means
    /// that the whole tree must be on the disk when this returns.
    ///
    /// # Errors
    /// The disk did not take something, of this run or an earlier one.
    pub fn settle(&self, verified: bool, durable: bool) -> Result<(), DiskError> {
        let mut state = self.unconfirmed().state();
        let state = &mut *state;
        let mut result = Ok(());
        let keepers = state.keepers.iter().map(|(dev, keeper)| (keeper.path.clone(), *dev));
        let mut places: Vec<_> = keepers.chain(state.seen.places.iter().cloned()).collect();
        if durable {
            // Also where only names changed: no marker covers a deletion or a new directory.
            for (path, dev) in self.filesystems() {
                if !places.iter().any(|(_, known)| *known == dev) {
                    places.push((path, dev));
                }
            }
        }
        places.sort();
        places.dedup();
        let mut synced: HashMap<u64, rustix::io::Result<bool>> = HashMap::new();
        for (path, dev) in places {
            let Ok(directory) = self.open_directory(path.as_ref()) else { continue };
            let outcome = *synced.entry(dev).or_insert_with(|| match state.syncs.remove(&dev) {
                _ if durable => sync(&directory).map(|()| true),
                Some(sync) => match sync.recv_timeout(CONFIRM_TIMEOUT) {
                    Ok(outcome) => outcome.map(|()| true),
                    Err(_) => Ok(false),
                },
                None => Ok(false),
            });
            let mount = mount_of(&directory);
            let keeper = state.keepers.get(&dev).filter(|keeper| keeper.path == path);
            let before = read(&directory);
            let mut marker = before.map(|marker| marker.under(mount)).unwrap_or_default();
            if verified {
                (marker.stale, marker.failed) = (None, None);
            }
            match outcome {
                // Another run may work below the root and keep its own marker.
                Ok(true) if path.is_some() && keeper.is_none() => {}
                Ok(true) => {
                    // Without `durable`, the sync began before this run put its files in place.
                    let first = keeper.and_then(|keeper| keeper.first).filter(|_| !durable);
                    let forgetful = keeper.is_some_and(|keeper| keeper.nature == Nature::Forgetful);
                    marker.own = marker.own.filter(|_| first.is_some()).map(|mut own| {
                        own.since =
                            first.filter(|_| !forgetful).map_or(own.since, |first| own.since.max(first));
                        own
                    });
                }
                // A run beside this one may have removed the marker while this one put a file in
                // place.
                Ok(false) if !state.recursive => {
                    let missing = keeper.filter(|keeper| {
                        let covers =
                            |marker: Marker| marker.own.is_some_and(|own| Some(own.since) <= keeper.first);
                        keeper.first.is_some() && !keeper.is_off && !before.is_some_and(covers)
                    });
                    if let Some(keeper) = missing {
                        let marked =
                            write(&directory, &keeper.marker).and_then(|()| fsync_if_able(&directory));
                        result = result.and(marked.during(VERB, &shown(self, keeper)));
                    }
                    continue;
                }
                Ok(false) => {}
                Err(error) if is_unable(error) => {}
                Err(error) => {
                    marker = marker.failing(mount);
                    let shown = path.as_ref().map_or(self.path().as_os_str().as_bytes(), TreePath::as_bytes);
                    result = result.and(Err(error).during(VERB, shown));
                }
            }
            if before == Some(marker) || (before.is_none() && marker.is_empty()) {
                continue;
            }
            // If a marker stays unchanged, the next run only doubts more than it needs to.
            if marker.is_empty() {
                remove(&directory);
            } else if write(&directory, &marker).is_ok() && result.is_err() {
                let _ = fsync(&directory);
            }
        }
        result
    }
}

impl Unconfirmed {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Starts a thread that flushes the filesystem of a directory.
    fn confirm(&mut self, root: &Root, path: Option<&TreePath>, dev: u64) {
        // A descriptor of its own, which shares no lock.
        let Ok(directory) = root.open_directory(path) else { return };
        if nature(&directory) == Nature::Volatile || self.syncs.contains_key(&dev) {
            return;
        }
        let (done, over) = channel();
        let work = move || {
            // The run may no longer wait for the result.
            let _ = done.send(sync(&directory));
        };
        if thread::Builder::new().spawn(work).is_ok() {
            self.syncs.insert(dev, over);
        }
    }

    /// Ensures that a durable marker covers a file with this ctime.
    fn mark(
        &mut self,
        root: &Root,
        path: Option<&TreePath>,
        dev: u64,
        ctime: Stamp,
    ) -> Result<&mut Keeper, DiskError> {
        let (recursive, latest) = (self.recursive, self.seen.latest);
        let keeper = match self.keepers.entry(dev) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(vacant) => vacant.insert(Keeper::of(root, path, dev)?),
        };
        let is_covered = |marker: &Marker| {
            let own = marker.own.is_some_and(|own| own.since <= ctime);
            own && (marker.recursive || !recursive)
        };
        if keeper.is_off || (keeper.is_durable && is_covered(&keeper.marker)) {
            return Ok(keeper);
        }
        let directory = root.open_directory(keeper.path.as_ref())?;
        if !is_covered(&keeper.marker) {
            let since = if keeper.nature == Nature::Forgetful { Stamp::EVER } else { ctime };
            let mut marker = keeper.marker.covering(keeper.mount, since, latest);
            marker.recursive |= recursive;
            keeper.marker = marker;
            if let Err(error) = write(&directory, &marker) {
                // This user may not set a marker, or there is no room for one, so the filesystem
                // goes without.
                keeper.is_off = !matches!(error, Errno::IO | Errno::NOSPC | Errno::DQUOT);
                return if keeper.is_off {
                    Ok(keeper)
                } else {
                    Err(error).during(VERB, &shown(root, keeper))
                };
            }
        }
        match fsync(&directory) {
            Err(error) if !is_unable(error) => return Err(error).during(VERB, &shown(root, keeper)),
            _ => keeper.is_durable = true,
        }
        Ok(keeper)
    }
}

impl Keeper {
    fn of(root: &Root, path: Option<&TreePath>, dev: u64) -> Result<Self, DiskError> {
        let path = path.filter(|_| dev != root.dev()).and_then(|path| topmost(root, path, dev));
        let directory = root.open_directory(path.as_ref())?;
        let (nature, mount) = (nature(&directory), mount_of(&directory));
        let marker = read(&directory).unwrap_or_default().under(mount);
        let is_off = nature == Nature::Volatile;
        // A marker of an earlier run was durable before that run put anything in place.
        let is_durable = !marker.is_empty();
        Ok(Self { path, nature, mount, marker, is_durable, is_off, first: None })
    }
}

/// The present time of this machine's clock, which most filesystems use. Rounded down to whole
/// seconds, since some filesystems keep no more.
fn now() -> Stamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    Stamp(i64::try_from(now).unwrap_or(0), 0)
}

fn shown(root: &Root, keeper: &Keeper) -> Vec<u8> {
    keeper.path.as_ref().map_or(root.path().as_os_str().as_bytes(), TreePath::as_bytes).to_vec()
}

/// The uppermost directory above `path` that is on this filesystem.
fn topmost(root: &Root, path: &TreePath, dev: u64) -> Option<TreePath> {
    let mut top = None;
    let mut above = path.parent();
    while let Some(directory) = above {
        if root.stat(&directory).ok().flatten().is_some_and(|stat| stat.identity.dev == dev) {
            top = Some(directory.clone());
        }
        above = directory.parent();
    }
    top
}

/// The marker of a directory, if it has one.
pub(crate) fn read(directory: impl AsFd) -> Option<Marker> {
    read_attribute(&directory).or_else(|| read_file(&directory))
}

/// The marker of a directory, if it is an extended attribute.
pub(crate) fn read_attribute(directory: impl AsFd) -> Option<Marker> {
    let mut bytes = [0; MARKER_BYTES_MAX];
    match fgetxattr(directory, ATTRIBUTE, &mut bytes) {
        Ok(length) => Some(Marker::decode(bytes.get(..length).unwrap_or_default())),
        Err(Errno::RANGE) => Some(Marker::DISTRUST),
        Err(_) => None,
    }
}

fn read_file(directory: impl AsFd) -> Option<Marker> {
    let state = StateDir::open(directory).ok().flatten()?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(&state, NAME, flags, Mode::empty()) {
        Err(Errno::NOENT) => return None,
        file => file.ok().filter(|file| fstat(file).is_ok_and(|stat| stat.st_uid == geteuid().as_raw())),
    };
    let mut bytes = Vec::new();
    let read = file.map(|file| File::from(file).take(MARKER_BYTES_MAX as u64).read_to_end(&mut bytes));
    Some(if matches!(read, Some(Ok(_))) { Marker::decode(&bytes) } else { Marker::DISTRUST })
}

/// Gives a directory this marker; the marker is durable when the directory is.
fn write(directory: &OwnedFd, marker: &Marker) -> rustix::io::Result<()> {
    let bytes = marker.encode();
    match fsetxattr(directory, ATTRIBUTE, &bytes, XattrFlags::empty()) {
        Err(Errno::IO) => Err(Errno::IO),
        // Not every user may set attributes, and they have less room than files.
        Err(_) => write_file(directory, &bytes),
        Ok(()) => Ok(()),
    }
}

fn write_file(directory: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<()> {
    let state = StateDir::create(directory).map_err(|error| error.errno().unwrap_or(Errno::ACCESS))?;
    state.remove(NEW_NAME.as_bytes()).map_err(|error| error.errno().unwrap_or(Errno::ACCESS))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(&state, NEW_NAME, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(bytes).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    fsync_if_able(&file)?;
    renameat(&state, NEW_NAME, &state, NAME)?;
    fsync_if_able(&state)
}

fn fsync_if_able(file: impl AsFd) -> rustix::io::Result<()> {
    match fsync(file) {
        Err(error) if is_unable(error) => Ok(()),
        result => result,
    }
}

fn remove(directory: &OwnedFd) {
    let _ = fremovexattr(directory, ATTRIBUTE);
    if let Ok(Some(state)) = StateDir::open(directory) {
        let _ = state.remove(NAME.as_bytes());
        let _ = unlinkat(directory, STATE_DIR, AtFlags::REMOVEDIR);
    }
}

/// True if the filesystem lacks the system call, which is no failure of the disk.
pub(crate) fn is_unable(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::NOSYS | Errno::NOTSUP | Errno::ROFS | Errno::BADF)
}

#[cfg(test)]
mod tests;
