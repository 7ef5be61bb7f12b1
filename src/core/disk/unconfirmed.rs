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
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, Mode, OFlags, XattrFlags, fgetxattr, fremovexattr, fsetxattr, fstat, fsync, openat, renameat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::disk::error::{DiskError, During};
use crate::disk::marker::{Marker, Mount, Stamp};
use crate::disk::mount::{Nature, mount_of, nature, sync};
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

pub(crate) const VERB: &str = "write to the disk";

/// The markers that a scan found.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Directories with a marker, and their device numbers; `None` is the root.
    pub(crate) places: Vec<(Option<TreePath>, u64)>,
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

/// The markers of a root and above it, if no file is doubted because of them.
pub(crate) fn undoubted(root: &Root) -> Option<Seen> {
    let mut seen = Seen::default();
    let directory = root.open_directory(None).ok()?;
    let covers = Arc::new(Covers::above(root)).enter(&directory, None, root.dev(), &mut seen);
    covers.markers.iter().all(Marker::is_settled).then_some(seen)
}

impl Seen {
    /// True if only the root itself has a marker.
    pub(crate) fn is_at_root_only(&self) -> bool {
        self.places.iter().all(|(path, _)| path.is_none())
    }
}

/// The markers of a run, by filesystem.
#[derive(Debug, Default)]
pub(crate) struct Unconfirmed(Mutex<State>);

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) keepers: HashMap<u64, Keeper>,
    /// True if the run covers more than single files of the root.
    pub(crate) recursive: bool,
    /// True if the run flushes to the disk what earlier runs wrote.
    pub(crate) confirms: bool,
    pub(crate) seen: Seen,
    pub(crate) syncs: HashMap<u64, Receiver<rustix::io::Result<()>>>,
}

/// One filesystem's marker.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// The directory that holds the marker; `None` is the root.
    pub(crate) path: Option<TreePath>,
    pub(crate) nature: Nature,
    pub(crate) mount: Option<Mount>,
    /// The marker as it is on the disk; `is_durable` tells if it is durable there.
    pub(crate) marker: Marker,
    pub(crate) is_durable: bool,
    /// True if this filesystem can hold no marker.
    pub(crate) is_off: bool,
    /// The earliest ctime of a file that this run put in place.
    pub(crate) first: Option<Stamp>,
}

impl Unconfirmed {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Starts a thread that flushes the filesystem of a directory.
    pub(crate) fn confirm(&mut self, root: &Root, path: Option<&TreePath>, dev: u64) {
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
    pub(crate) fn mark(
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
pub(crate) fn now() -> Stamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    Stamp(i64::try_from(now).unwrap_or(0), 0)
}

pub(crate) fn shown(root: &Root, keeper: &Keeper) -> Vec<u8> {
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
pub(crate) fn write(directory: &OwnedFd, marker: &Marker) -> rustix::io::Result<()> {
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

pub(crate) fn fsync_if_able(file: impl AsFd) -> rustix::io::Result<()> {
    match fsync(file) {
        Err(error) if is_unable(error) => Ok(()),
        result => result,
    }
}

pub(crate) fn remove(directory: &OwnedFd) {
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
