//! Entries that are closed to their own owner: files of mode 000, directories of mode 000 to 600.
//! Their owner cannot open them, but may change their mode.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, OFlags, Timestamps, chmod, chown, fchmod, fchown, futimens, utimensat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, geteuid};

use crate::disk::error::{DiskError, DiskErrorKind, During};
use crate::disk::root::stat_of;
use crate::disk::stat::{FileKind, mode_bits};
use crate::disk::writable::WritableRoot;
use crate::tree::path::TreePath;

/// The rights with which an owner lists and fills a directory.
const OWNER_BITS: u16 = 0o700;

/// The rights without which an owner cannot list a directory.
const LIST_BITS: u32 = 0o500;

/// Gives the owner of the directory `path`, if that is this user, all rights to it, unless the
/// owner can list it already. Links in the path are followed.
///
/// # Errors
/// Nothing is there, or the filesystem refuses the new mode.
pub fn give_owner_access(path: &Path) -> io::Result<()> {
    let found = fs::metadata(path)?;
    let may_list = geteuid().is_root() || found.mode() & LIST_BITS == LIST_BITS;
    if found.is_dir() && found.uid() == geteuid().as_raw() && !may_list {
        fs::set_permissions(path, Permissions::from_mode(found.mode() | u32::from(OWNER_BITS)))?;
    }
    Ok(())
}

impl WritableRoot {
    /// Gives the owner of the directory `path`, if that is this user, all rights to it.
    ///
    /// # Errors
    /// It is no directory, or belongs to another user.
    pub fn give_owner_access(&self, path: &TreePath) -> Result<(), DiskError> {
        const VERB: &str = "set the mode of";
        let handle = self.handle(path).during(VERB, path.as_bytes())?;
        let stat = stat_of(&handle, path)?;
        if stat.kind() != FileKind::Directory || stat.uid != geteuid().as_raw() {
            return Err(DiskError::new(VERB, path.as_bytes(), DiskErrorKind::AnotherOwner));
        }
        handle.set_mode(stat.mode | OWNER_BITS).during(VERB, path.as_bytes())
    }

    /// A handle on `path` itself, which may be closed to its owner.
    pub(crate) fn handle(&self, path: &TreePath) -> Result<Handle, Errno> {
        match self.descend(path, READ) {
            #[cfg(target_os = "linux")]
            Err(Errno::ACCESS) => {
                self.descend(path, OFlags::PATH).map(|descriptor| Handle { descriptor, is_open: false })
            }
            opened => opened.map(|descriptor| Handle { descriptor, is_open: true }),
        }
    }
}

/// Flags for reading any entry; a FIFO would wait for a writer.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// An entry whose metadata can be set, whatever its mode is. On macOS this user must be able to
/// read it.
pub(crate) struct Handle {
    descriptor: OwnedFd,
    /// False if the descriptor leads to the entry, but has not opened it (`O_PATH`).
    is_open: bool,
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Handle {
    pub(crate) fn set_mode(&self, mode: u16) -> Result<(), Errno> {
        match self.name() {
            None => fchmod(&self.descriptor, mode_bits(mode)),
            Some(name) => chmod(name, mode_bits(mode)),
        }
    }

    /// Sets owner and group, as far as they are given.
    pub(crate) fn set_owner(&self, user: Option<u32>, group: Option<u32>) -> Result<(), Errno> {
        let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
        match self.name() {
            None => fchown(&self.descriptor, user, group),
            Some(name) => chown(name, user, group),
        }
    }

    pub(crate) fn set_times(&self, times: &Timestamps) -> Result<(), Errno> {
        match self.name() {
            None => futimens(&self.descriptor, times),
            Some(name) => utimensat(CWD, name, times, AtFlags::empty()),
        }
    }

    /// The kernel's own name for what an `O_PATH` descriptor leads to: it refuses `fchmod` and
    /// `futimens` on the descriptor itself, see `proc_pid_fd(5)`.
    fn name(&self) -> Option<String> {
        (!self.is_open).then(|| format!("/proc/self/fd/{}", self.descriptor.as_raw_fd()))
    }
}
