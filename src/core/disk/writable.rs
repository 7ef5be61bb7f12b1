//! `WritableRoot`: a root that a run writes to, with the state of that run.

use std::ops::Deref;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::fstat;
use rustix::process::{Gid, Uid, getegid, geteuid};

use crate::disk::boundaries::{Boundaries, is_keyed, key};
use crate::disk::closing::CloseErrors;
use crate::disk::error::{DiskError, DiskErrorKind, During};
use crate::disk::lock::{self, Held};
use crate::disk::root::Root;
use crate::disk::set_id::{Owner, Policy};
use crate::disk::state::{Staged, StateDir, clear_in, staged_name};
use crate::disk::swap::ASIDE_MAX;
use crate::disk::unconfirmed::Unconfirmed;
use crate::disk::xattr;
use crate::tree::attributes::Attributes;
use crate::tree::path::TreePath;

/// A root with all that a run needs to write to it.
#[derive(Debug)]
pub struct WritableRoot {
    root: Root,
    policy: Policy,
    owner: Option<Owner>,
    /// The one directory that stays open between operations. It belongs to this process alone.
    /// Wherever it is moved, its staged files can still be renamed into place from there.
    state: Mutex<Option<Arc<StateDir>>>,
    held: Mutex<Option<Held>>,
    boundaries: Boundaries,
    /// Entries that were moved aside before their removal.
    moved_aside: AtomicU32,
    pub(crate) unconfirmed: Unconfirmed,
    /// False once the filesystem or the system turned out to have no anonymous temporary files.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    pub(crate) has_anonymous: AtomicBool,
    /// Reports write errors of anonymous temporary files.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    pub(crate) close_errors: CloseErrors,
}

impl Deref for WritableRoot {
    type Target = Root;

    fn deref(&self) -> &Root {
        &self.root
    }
}

impl WritableRoot {
    /// As [`Root::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        Self::of(Root::open_for_receiver(path)?)
    }

    /// Makes a root writable.
    pub(crate) fn of(root: Root) -> Result<Self, DiskError> {
        let stat = fstat(root.descriptor()).during("look at", root.path().as_os_str().as_encoded_bytes())?;
        let is_foreign = stat.st_uid != geteuid().as_raw() || stat.st_gid != getegid().as_raw();
        Ok(Self {
            root,
            policy: Policy::default(),
            owner: (geteuid().is_root() && is_foreign).then_some((stat.st_uid, stat.st_gid)),
            state: Mutex::default(),
            held: Mutex::default(),
            boundaries: Boundaries::default(),
            moved_aside: AtomicU32::new(0),
            unconfirmed: Unconfirmed::default(),
            has_anonymous: AtomicBool::new(cfg!(target_os = "linux")),
            close_errors: CloseErrors::default(),
        })
    }

    /// The owner of new entries, if it is not this user. The superuser's new entries get the owner
    /// of the root, so that a browser's user can use the files in its home.
    pub(crate) fn owner(&self) -> Option<(Uid, Gid)> {
        self.owner.map(|(user, group)| (Uid::from_raw(user), Gid::from_raw(group)))
    }

    /// The owner and group that a new entry with these attributes gets, if not this process's.
    pub(crate) fn owner_for(&self, attributes: Option<&Attributes>) -> Option<(Option<Uid>, Option<Gid>)> {
        let (user, group) = self.owner().unzip();
        let own = |id: fn(&Attributes) -> Option<u32>| attributes.and_then(id);
        let user = own(|of| of.user).map(Uid::from_raw).or(user);
        let group = own(|of| of.group).map(Gid::from_raw).or(group);
        (user.is_some() || group.is_some()).then_some((user, group))
    }

    /// Sets the extended attributes of what a descriptor leads to, as far as this run copies them.
    pub(crate) fn set_xattrs(
        &self,
        entry: impl AsFd,
        path: &[u8],
        attributes: Option<&Attributes>,
    ) -> Result<(), DiskError> {
        if !self.policy.namespaces.any() {
            return Ok(());
        }
        let wanted = attributes.map(|attributes| &*attributes.xattrs).unwrap_or_default();
        xattr::set(entry, wanted, self.policy.namespaces).map_err(|error| xattr::set_error(error, path))
    }

    /// The same root with another policy.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// The policy for metadata in this root.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Locks out other runs until this root is dropped or [unlocked](Self::unlock). A destination
    /// that can have no state directory is not locked: two runs could stage nothing in it.
    ///
    /// # Errors
    /// [`DiskError::is_busy`] if another run holds the lock.
    pub fn lock(&self) -> Result<(), DiskError> {
        match lock::take(self) {
            Ok(held) => {
                *self.held() = Some(held);
                Ok(())
            }
            Err(error) if error.is_busy() => {
                Err(DiskError::new("lock", self.path().as_os_str().as_encoded_bytes(), DiskErrorKind::Busy))
            }
            Err(_) => Ok(()),
        }
    }

    /// True if this run holds the lock.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.held().is_some()
    }

    /// Releases the lock, and removes the state directory if it is empty.
    pub fn unlock(&self) {
        *self.held() = None;
    }

    /// The lock on this root, if this process holds it.
    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the boundaries that a scan found, in path order.
    pub fn set_boundaries(&self, paths: Vec<TreePath>) {
        self.boundaries.set(paths);
    }

    /// One directory, with its device number, for each filesystem of the tree; `None` is the root.
    pub(crate) fn filesystems(&self) -> Vec<(Option<TreePath>, u64)> {
        let beyond = self.boundaries.all().iter().filter_map(|boundary| {
            let stat = self.stat(&boundary.path).ok()??;
            Some((Some(boundary.path.clone()), stat.identity.dev))
        });
        std::iter::once((None, self.dev())).chain(beyond).collect()
    }

    /// True if `path` is on another filesystem than the root.
    pub(crate) fn is_beyond_boundary(&self, path: &TreePath) -> bool {
        self.boundaries.above(path).is_some()
    }

    /// The name under which `path` is staged.
    pub(crate) fn staged_name(&self, path: &TreePath, ending: &str) -> String {
        let name = staged_name(path, ending);
        if self.is_beyond_boundary(path) { key(self) + &name } else { name }
    }

    /// Calls `with` on the state directory of the filesystem that holds `path`, and creates it
    /// first if it is missing.
    ///
    /// # Errors
    /// The state directory belongs to another user or cannot be created, or `with` fails.
    pub(crate) fn with_state_for<T>(
        &self,
        path: &TreePath,
        with: impl Fn(&Arc<StateDir>) -> Result<T, DiskError>,
    ) -> Result<T, DiskError> {
        match self.boundaries.above(path) {
            None => self.with_state(with),
            Some(boundary) => boundary.with_state(self, path, with),
        }
    }

    /// The same for the state directory of the root itself.
    fn with_state<T>(&self, with: impl Fn(&Arc<StateDir>) -> Result<T, DiskError>) -> Result<T, DiskError> {
        let open = || {
            let state = Arc::new(StateDir::create(self.descriptor())?);
            *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&state));
            Ok(state)
        };
        let kept = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let was_kept = kept.is_some();
        match with(&kept.map_or_else(open, Ok)?) {
            // Another run ended and removed the directory.
            Err(error) if error.is_not_found() && was_kept => with(&open()?),
            result => result,
        }
    }

    /// The state directory of the filesystem that holds `path`, if there is one.
    pub(crate) fn find_state_for(&self, path: &TreePath) -> Result<Option<StateDir>, DiskError> {
        match self.boundaries.above(path) {
            None => StateDir::open(self.descriptor()),
            Some(boundary) => boundary.find_state(self, path),
        }
    }

    /// True if one more entry may be moved aside before its removal. Counts that entry.
    pub(crate) fn may_move_aside(&self) -> bool {
        self.moved_aside.load(Ordering::Relaxed) < ASIDE_MAX
            && self.moved_aside.fetch_add(1, Ordering::Relaxed) < ASIDE_MAX
    }
}

/// Removes staged files that earlier runs left, except the names that `keep` accepts (see
/// [`Staging::name`](crate::disk::stage::Staging::name)). Then removes the state directory if it is
/// empty. Returns the number of removed files. Called at the end of a successful run.
///
/// # Errors
/// The state directory belongs to another user, or an entry in it cannot be removed.
pub fn clear_leftovers(root: &WritableRoot, keep: impl Fn(&[u8]) -> bool) -> Result<usize, DiskError> {
    let beyond = root.boundaries.clear(root)?;
    let Some(state) = StateDir::open(root.descriptor())? else { return Ok(beyond) };
    let count = clear_in(root.descriptor(), &state, |name| !is_keyed(name) && !keep(name))?;
    Ok(beyond + count)
}

/// Counts the staged files that earlier runs left.
///
/// # Errors
/// The state directory belongs to another user.
pub fn staged(root: &WritableRoot) -> Result<Staged, DiskError> {
    let mut staged = root.boundaries.staged(root);
    if let Some(state) = StateDir::open(root.descriptor())? {
        staged.add(&state, |name| !is_keyed(name))?;
    }
    Ok(staged)
}
