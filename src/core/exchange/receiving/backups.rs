//! Backups of the entries that a run replaces or removes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::clear_leftovers;
use crate::disk::error::{DiskError, DiskErrorKind};
use crate::disk::root::Root;
use crate::disk::stage::Metadata;
use crate::disk::stat::{Identity, Inode};
use crate::disk::writable::WritableRoot;
use crate::tree::entry::EntryRef;
use crate::tree::manifest::Manifest;
use crate::tree::path::TreePath;
use crate::wire::hello::BackupOptions;

/// Mode of a backup's directory whose original is not listed.
const UNLISTED_MODE: u16 = 0o755;

/// The backups of a run.
pub(super) struct Backups {
    options: BackupOptions,
    /// The open directory, once there is a backup.
    root: Mutex<Option<Arc<WritableRoot>>>,
    /// Directories that were opened for backups, with their final modes and times.
    directories: Mutex<Vec<Directory>>,
}

struct Directory {
    path: TreePath,
    metadata: Metadata,
    inode: Inode,
}

impl Backups {
    /// The backups of a destination. A relative directory is below the destination, as with rsync.
    pub(super) fn new(options: &BackupOptions) -> Self {
        let (root, directories) = Default::default();
        Self { options: options.clone(), root, directories }
    }

    /// The root of the backups, created if it is missing.
    fn root(&self, destination: &Arc<WritableRoot>) -> Result<Arc<WritableRoot>, DiskError> {
        let Some(directory) = &self.options.directory else { return Ok(Arc::clone(destination)) };
        let mut root = lock(&self.root);
        if let Some(root) = &*root {
            return Ok(Arc::clone(root));
        }
        let path = destination.path().join(OsStr::from_bytes(directory));
        // The owner of the destination may have put a link there, which must not lead out.
        let made = match below(destination.path(), directory) {
            Some(below) => destination.create_below(&below, &path)?,
            None => WritableRoot::create(&path)?,
        };
        let made = Arc::new(made.with_policy(destination.policy()));
        *root = Some(Arc::clone(&made));
        Ok(made)
    }

    /// True if a removed entry of this name gets a backup. As with rsync, a backup gets none.
    pub(super) fn takes_removed(&self, name: &[u8]) -> bool {
        !self.options.is_name_of_backup(name)
    }

    /// The path of an entry's backup in the destination; `None` if it is elsewhere.
    fn path_in_destination(&self, destination: &Path, path: &TreePath) -> Option<TreePath> {
        let directory = match &self.options.directory {
            None => Vec::new(),
            Some(directory) => [below(destination, directory)?.as_bytes(), b"/"].concat(),
        };
        TreePath::new([&directory, path.as_bytes(), &self.options.suffix].concat()).ok()
    }

    /// Refuses a backup in place of an entry that the destination is to have.
    pub(super) fn check(
        &self,
        destination: &WritableRoot,
        path: &TreePath,
        wanted: &Manifest,
    ) -> Result<(), DiskError> {
        let to = self.path_in_destination(destination.path(), path);
        match to.filter(|to| wanted.position(to).is_some()) {
            Some(to) => Err(DiskError::new("back up", path.as_bytes(), DiskErrorKind::BackupIsWanted(to))),
            None => Ok(()),
        }
    }

    /// Backs up a file or link of the destination, whose listing is `present`. Unless it
    /// `may_link`, the backup is a copy. Returns the identity of the original afterwards.
    pub(super) fn back_up(
        &self,
        destination: &Arc<WritableRoot>,
        present: &Manifest,
        path: &TreePath,
        seen: &Identity,
        may_link: bool,
    ) -> Result<Identity, DiskError> {
        let to = [path.as_bytes(), &self.options.suffix].concat();
        let to = TreePath::new(to)
            .map_err(|error| DiskError::new("back up", path.as_bytes(), DiskErrorKind::Path(error)))?;
        let root = self.root(destination)?;
        match destination.back_up(path, seen, &root, &to, may_link) {
            Err(error) if error.is_not_found() && self.options.directory.is_some() => {
                let parent = to.parent().ok_or(error)?;
                self.make_directories(&root, parent, present)?;
                destination.back_up(path, seen, &root, &to, may_link)
            }
            result => result,
        }
    }

    /// Makes a directory of backups and those above it, as their originals are.
    fn make_directories(
        &self,
        root: &WritableRoot,
        path: TreePath,
        present: &Manifest,
    ) -> Result<(), DiskError> {
        let mut paths: Vec<TreePath> = std::iter::successors(Some(path), TreePath::parent).collect();
        paths.reverse();
        for path in paths {
            let listed = present.position(&path).and_then(|at| present.get(at));
            let made = root.make_directory(&path, listed.map_or(UNLISTED_MODE, |entry| entry.mode))?;
            if let Some(EntryRef { mode, mtime, attributes, .. }) = listed {
                let metadata = Metadata { mode, mtime, attributes: attributes.cloned() };
                lock(&self.directories).push(Directory { path, metadata, inode: made.inode });
            }
        }
        Ok(())
    }

    /// Gives the directories of the backups their modes and times, and removes their state
    /// directory. No backup is lost if that fails.
    pub(super) fn close(&self) {
        let Some(root) = lock(&self.root).take() else { return };
        for Directory { path, metadata, inode } in lock(&self.directories).drain(..).rev() {
            let _ = root.set_directory(&path, &metadata, inode);
        }
        // Another run may back up into the same directory.
        let _ = clear_leftovers(&root, |_| true);
    }
}

/// The path of a backup directory below the destination, by the words of both. A link of the
/// destination's owner in such a path is not followed.
fn below(destination: &Path, directory: &[u8]) -> Option<TreePath> {
    let path = Path::new(OsStr::from_bytes(directory));
    let inside = if path.is_absolute() {
        path.strip_prefix(std::path::absolute(destination).ok()?).ok()?
    } else {
        path
    };
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in inside.components() {
        match part {
            Component::Normal(name) => parts.push(name.as_bytes()),
            Component::ParentDir if !path.is_absolute() => drop(parts.pop()?),
            Component::CurDir => {}
            _ => return None,
        }
    }
    TreePath::new(parts.join(&b'/')).ok()
}

/// The path of the backup directory inside a destination, if it is there. Such a directory is never
/// a part of the copy.
pub(super) fn path_inside(options: &BackupOptions, root: &Root) -> Option<TreePath> {
    let directory = options.directory.as_ref()?;
    if let Some(below) = below(root.path(), directory) {
        return Some(below);
    }
    let directory = root.path().join(OsStr::from_bytes(directory));
    // Its last parts may not exist yet.
    let there = directory.ancestors().find_map(|above| Some((fs::canonicalize(above).ok()?, above)));
    let (real, above) = there?;
    let path = real.join(directory.strip_prefix(above).ok()?);
    let inside = path.strip_prefix(fs::canonicalize(root.path()).ok()?).ok()?;
    TreePath::new(inside.as_os_str().as_bytes()).ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
