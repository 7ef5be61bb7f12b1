//! Opens and lists one directory.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;

use crate::disk::directory_stack::{Name, names};
use crate::disk::resolve::DIRECTORY;
use crate::disk::spelling::inode_of;
use crate::disk::stat::{Inode, Stat};
use crate::tree::spelling::{self, Variant};

/// Opens a directory whose names can be listed and looked up.
pub(super) fn open_to_list(
    parent: impl AsFd,
    name: &CString,
    stat: &Stat,
    is_followed: bool,
) -> Result<OwnedFd, Errno> {
    let flags = if is_followed { DIRECTORY.difference(OFlags::NOFOLLOW) } else { DIRECTORY };
    let directory = openat(parent, &**name, flags, Mode::empty())?;
    // Somebody may have led the link elsewhere since it was looked at.
    if is_followed {
        let now = fstat(&directory).ok().and_then(|now| Stat::of(&now));
        if now.is_none_or(|now| Inode::from(&now) != Inode::from(stat)) {
            return Err(Errno::STALE);
        }
    }
    // Without the right to search, each name in it would be a problem of its own.
    if stat.mode & 0o111 != 0o111 {
        statat(&directory, c".", AtFlags::empty())?;
    }
    Ok(directory)
}

/// True if a name may lead to an entry that is listed under another name, since the filesystem
/// folds names. The directory must be listed then. On other filesystems this takes one system call.
pub(super) fn may_be_folded(directory: &OwnedFd, name: &CString) -> bool {
    match spelling::variant(name.as_bytes()) {
        Variant::None => false,
        Variant::Case(other) => {
            CString::new(other).is_ok_and(|other| inode_of(directory, other.as_bytes()).is_some())
        }
        Variant::Unknown => inode_of(directory, name.as_bytes()).is_some(),
    }
}

/// All names in a directory, sorted.
pub(super) fn sorted_names(directory: &OwnedFd) -> rustix::io::Result<Vec<Name>> {
    let mut names = names(directory)?;
    names.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    Ok(names)
}
