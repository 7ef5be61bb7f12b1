//! Links that stand for what they lead to.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, readlinkat, statat};
use rustix::io::Errno;

use crate::disk::error::{DiskError, DiskErrorKind, During};
use crate::disk::root::Root;
use crate::disk::stat::{FileKind, Inode, Stat};
use crate::tree::links::{FollowedLinks, leads_out_from};
use crate::tree::path::TreePath;

/// The metadata of what a link leads to; `None` if these links do not include it. `depth` counts
/// the directories of the offered tree above the link.
///
/// # Errors
/// The link is one of these, and leads nowhere or to nothing that a tree can hold.
pub(super) fn target(
    directory: impl AsFd,
    name: &CStr,
    path: &TreePath,
    follows: FollowedLinks,
    depth: usize,
) -> Result<Option<Stat>, DiskError> {
    let may_lead_out = || {
        let target = readlinkat(&directory, name, Vec::new()).during("read the link", path.as_bytes())?;
        Ok(leads_out_from(depth, target.as_bytes()))
    };
    let is_for_any = follows.has(FollowedLinks::ALL) || follows.has(FollowedLinks::UNSAFE) && may_lead_out()?;
    if !is_for_any && !follows.has(FollowedLinks::DIRECTORIES) {
        return Ok(None);
    }
    let target = match statat(&directory, name, AtFlags::empty()) {
        Ok(target) => Stat::of(&target)
            .ok_or_else(|| DiskError::new("take in", path.as_bytes(), DiskErrorKind::OutOfRange))?,
        Err(_) if !is_for_any => return Ok(None),
        Err(Errno::NOENT) => return Err(failed(path, DiskErrorKind::NoReferent)),
        Err(Errno::LOOP) => return Err(failed(path, DiskErrorKind::Loop)),
        Err(error) => return Err(error).during("follow", path.as_bytes()),
    };
    Ok(Some(target).filter(|target| is_for_any || target.kind() == FileKind::Directory))
}

/// Fails for a directory that is above itself, by a followed link. Where a filesystem keeps no
/// inode numbers, the length of a path ends the loop.
pub(super) fn check_loop(above: &[Inode], path: &TreePath, stat: &Stat) -> Result<(), DiskError> {
    let is_loop = Inode::known(stat).is_some_and(|inode| above.contains(&inode));
    if is_loop { Err(failed(path, DiskErrorKind::Loop)) } else { Ok(()) }
}

fn failed(path: &TreePath, reason: DiskErrorKind) -> DiskError {
    DiskError::new("follow", path.as_bytes(), reason)
}

/// The kind that an entry takes part with; `None` if nothing is there. A link that leads nowhere is
/// a link.
///
/// # Errors
/// As [`Root::stat`].
pub(crate) fn kind_at(
    root: &Root,
    path: &TreePath,
    follows: FollowedLinks,
) -> Result<Option<FileKind>, DiskError> {
    let Some(stat) = root.stat(path)? else { return Ok(None) };
    if stat.kind() == FileKind::Symlink && follows.any() && root.open_directory(Some(path)).is_ok() {
        return Ok(Some(FileKind::Directory));
    }
    Ok(Some(stat.kind()))
}
