//! Filesystems below a root: a boundary is a directory on another filesystem than its parent.
//!
//! No rename crosses from one filesystem into another, or from one mount into another mount of the
//! same filesystem. So files below such a boundary are staged in a state directory of their own, at
//! the top of that filesystem. If none can be created there, they are staged beside their final
//! place. Their names begin with a key of the root that staged them, since other roots may stage
//! there too.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::content::hash::Hash;
use crate::content::hex::to_hex;
use crate::disk::error::{DiskError, During};
use crate::disk::lock::keeping_time;
use crate::disk::resolve::PASSAGE;
use crate::disk::root::Root;
use crate::disk::state::{Staged, StateDir, clear_in};
use crate::tree::path::TreePath;

/// The boundaries below a root, once they are known.
#[derive(Debug, Default)]
pub(crate) struct Boundaries(OnceLock<Vec<Boundary>>);

/// The top of a filesystem below a root.
#[derive(Debug)]
pub(crate) struct Boundary {
    pub(crate) path: TreePath,
    state: Mutex<Option<Arc<StateDir>>>,
    /// Directories with a state directory of their own, because the top can have none. Lists those
    /// of this run.
    beside: Mutex<BTreeSet<TreePath>>,
}

impl Boundaries {
    /// Sets the boundaries that a scan found, in path order.
    pub(crate) fn set(&self, paths: Vec<TreePath>) {
        let new = |path| Boundary { path, state: Mutex::default(), beside: Mutex::default() };
        let _ = self.0.set(paths.into_iter().map(new).collect());
    }

    /// The innermost boundary above `path`.
    pub(crate) fn above(&self, path: &TreePath) -> Option<&Boundary> {
        self.0.get()?.iter().rev().find(|boundary| path.is_below(&boundary.path))
    }

    pub(crate) fn all(&self) -> &[Boundary] {
        self.0.get().map_or(&[], Vec::as_slice)
    }

    /// Removes the files that `root` staged beyond boundaries.
    pub(crate) fn clear(&self, root: &Root) -> Result<usize, DiskError> {
        let (key, mut count) = (key(root), 0);
        let is_own = |name: &[u8]| name.starts_with(key.as_bytes());
        for boundary in self.all() {
            let beside = std::mem::take(&mut *boundary.beside.lock().unwrap_or_else(PoisonError::into_inner));
            for directory in std::iter::once(boundary.path.clone()).chain(beside) {
                // Nothing was staged in a directory that cannot be opened.
                let Ok(directory) = root.open_directory(Some(&directory)) else { continue };
                if let Ok(Some(state)) = StateDir::open(&directory) {
                    count += keeping_time(directory.as_fd(), || clear_in(directory.as_fd(), &state, is_own))?;
                }
            }
        }
        Ok(count)
    }

    /// Counts the files that an earlier run of `root` left staged beyond boundaries.
    pub(crate) fn staged(&self, root: &Root) -> Staged {
        let (key, mut staged) = (key(root), Staged::default());
        for boundary in self.all() {
            // Nothing was staged in a directory that cannot be opened.
            if let Ok(Some(state)) = passage(root, &boundary.path).and_then(StateDir::open) {
                let _ = staged.add(&state, |name| name.starts_with(key.as_bytes()));
            }
        }
        staged
    }
}

impl Boundary {
    /// Calls `with` on the state directory for `path`, and creates it first if it is missing.
    pub(crate) fn with_state<T>(
        &self,
        root: &Root,
        path: &TreePath,
        with: impl Fn(&Arc<StateDir>) -> Result<T, DiskError>,
    ) -> Result<T, DiskError> {
        let kept = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(state) = kept {
            match with(&state) {
                // Another run ended and removed the directory.
                Err(error) if error.is_not_found() => {}
                result => return result,
            }
        }
        let made = passage(root, &self.path).and_then(StateDir::create);
        let Ok(state) = made.map(Arc::new) else {
            let parent = path.parent().unwrap_or_else(|| self.path.clone());
            let state = Arc::new(StateDir::create(passage(root, &parent)?)?);
            self.beside.lock().unwrap_or_else(PoisonError::into_inner).insert(parent);
            return with(&state);
        };
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&state));
        with(&state)
    }

    /// The state directory for `path`, if there is one.
    pub(crate) fn find_state(&self, root: &Root, path: &TreePath) -> Result<Option<StateDir>, DiskError> {
        if let Ok(Some(state)) = passage(root, &self.path).and_then(StateDir::open) {
            return Ok(Some(state));
        }
        let Some(parent) = path.parent() else { return Ok(None) };
        match passage(root, &parent).and_then(StateDir::open) {
            Err(error) if error.is_not_found() => Ok(None),
            result => result,
        }
    }
}

/// Prefix of all names that `root` stages beyond boundaries.
pub(crate) fn key(root: &Root) -> String {
    let inode = root.inode();
    let hash = Hash::of(&[inode.dev.to_le_bytes(), inode.ino.to_le_bytes()].concat());
    let (key, _) = hash.as_bytes().split_at(8);
    to_hex(key) + "-"
}

/// Opens a directory as the base of further names.
fn passage(root: &Root, path: &TreePath) -> Result<OwnedFd, DiskError> {
    root.descend(path, PASSAGE).during("open", path.as_bytes())
}

/// True if an open directory is the top of a mount: of a whole filesystem, or of a bind mount.
#[cfg(target_os = "linux")]
pub(crate) fn is_mount_root(directory: impl AsFd) -> bool {
    use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};
    let is = |stat: rustix::fs::Statx| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    // Linux before 5.8 does not report this; then the device numbers decide alone.
    statx(directory, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE).is_ok_and(is)
}

/// On other systems no filesystem is mounted twice.
#[cfg(not(target_os = "linux"))]
pub(crate) fn is_mount_root(_directory: impl AsFd) -> bool {
    false
}

/// True for a name in a state directory that some root staged beyond a boundary.
pub(crate) fn is_keyed(name: &[u8]) -> bool {
    name.contains(&b'-')
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::disk::stage::{Durability, Staging};
    use crate::disk::testing::{Fixture, metadata, path, time};
    use crate::disk::writable::WritableRoot;
    use crate::disk::{clear_leftovers, staged};

    fn divided() -> Fixture {
        let fixture = Fixture::new();
        fs::create_dir_all(fixture.at("m/d")).unwrap();
        fixture.root.set_boundaries(vec![path("m")]);
        fixture
    }

    #[test]
    fn files_below_a_boundary_are_staged_below_it() {
        let fixture = divided();
        let (mut staging, _) = Staging::open(&fixture.root, &path("m/d/f")).unwrap();
        staging.append(b"new").unwrap();
        assert!(fixture.at("m/.ksync").is_dir() && !fixture.at(".ksync").exists());
        drop(staging);
        assert!(staged(&fixture.root).unwrap().files == 1);
        let staging = Staging::find(&fixture.root, &path("m/d/f")).unwrap().unwrap();
        assert_eq!(staging.len(), 3);
        staging.finish(&fixture.root, &metadata(), None, Durability::Eventually).unwrap();
        fixture.root.make_symlink(&path("m/l"), b"t", time(1), None, None).unwrap();
        assert!(!fixture.root.put_new(&path("m/g"), b"1", &metadata()).unwrap());
        assert!(staged(&fixture.root).unwrap().files == 0);
        clear_leftovers(&fixture.root, |_| false).unwrap();
        assert!(fixture.at("m/d/f").is_file() && !fixture.at("m/.ksync").exists());
    }

    #[test]
    fn files_that_another_root_staged_stay() {
        let fixture = divided();
        drop(Staging::open(&fixture.root, &path("m/f")).unwrap());
        let other = WritableRoot::open(&fixture.at("m")).unwrap();
        drop(Staging::open(&other, &path("f")).unwrap());
        clear_leftovers(&fixture.root, |_| false).unwrap();
        assert_eq!(fs::read_dir(fixture.at("m/.ksync")).unwrap().count(), 1);
        drop(Staging::open(&fixture.root, &path("m/f")).unwrap());
        clear_leftovers(&other, |_| false).unwrap();
        assert_eq!(fs::read_dir(fixture.at("m/.ksync")).unwrap().count(), 1);
    }

    #[test]
    fn files_are_staged_beside_their_place_if_the_top_cannot_hold_them() {
        let fixture = divided();
        fs::write(fixture.at("m/.ksync"), "in the way").unwrap();
        let (staging, _) = Staging::open(&fixture.root, &path("m/d/f")).unwrap();
        assert!(fixture.at("m/d/.ksync").is_dir());
        drop(staging);
        assert!(Staging::find(&fixture.root, &path("m/d/f")).unwrap().is_some());
        clear_leftovers(&fixture.root, |_| false).unwrap();
        assert!(!fixture.at("m/d/.ksync").exists());
    }
}
