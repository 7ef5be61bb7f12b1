//! Directories: creation, opening for filling, final mode and time.
//!
//! Owner, mode and time are set on the open descriptor of a directory that no other user can have
//! replaced. If a destination belongs to another user, its owner may swap any name in it for a
//! root-owned file between two of our calls. So there the superuser creates a directory in the
//! state directory, gives it away there, and renames it into place.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, fchmod, fchown, fstat, mkdirat, openat};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::disk::change::missing_owner;
use crate::disk::error::{DiskError, DiskErrorKind, During};
use crate::disk::resolve::DIRECTORY;
use crate::disk::root::{Location, Root, stat_in, stat_of};
use crate::disk::stage::Metadata;
use crate::disk::stat::{Inode, mode_bits, times};
use crate::disk::state::DIRECTORY_MADE;
use crate::disk::writable::{WritableRoot, clear_leftovers};
use crate::tree::path::TreePath;

/// Mode bits that a directory must keep while it is being filled.
const FILLING_BITS: u16 = 0o700;

/// The mode of a root that the superuser creates for another user.
const NEW_ROOT_MODE: u16 = 0o755;

const VERB: &str = "make the directory";

/// A directory that can be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenedDirectory {
    /// True if it was created just now.
    pub is_new: bool,
    /// The identity of the directory.
    pub inode: Inode,
}

impl WritableRoot {
    /// As [`WritableRoot::open`], but creates the directory and its missing parents. Directories
    /// that the superuser creates get the owner of the nearest directory that existed already.
    ///
    /// # Errors
    /// The directory cannot be created or opened.
    pub fn create(path: &Path) -> Result<Self, DiskError> {
        let bytes = path.as_os_str().as_bytes();
        let named = || path.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty());
        let missing = named().take_while(|ancestor| !ancestor.exists()).count();
        if missing > 0 {
            let above = Self::open(named().nth(missing).unwrap_or(Path::new(".")))?;
            if above.owner().is_some() {
                let below = path.strip_prefix(above.path()).unwrap_or(path);
                let below = TreePath::new(below.as_os_str().as_bytes());
                let below =
                    below.map_err(|error| DiskError::new("make", bytes, DiskErrorKind::Path(error)))?;
                return above.create_below(&below, path);
            }
        }
        std::fs::create_dir_all(path).during("make", bytes)?;
        Self::open(path)
    }

    /// Creates `below` and its missing parents, and opens it as the root that the caller named
    /// `path`. The owner of this directory may replace anything in it at any time, so no name is
    /// trusted twice.
    pub(crate) fn create_below(&self, below: &TreePath, path: &Path) -> Result<Self, DiskError> {
        let mut missing: Vec<TreePath> =
            std::iter::successors(Some(below.clone()), TreePath::parent).collect();
        missing.reverse();
        let made = missing.iter().try_for_each(|path| self.make_directory(path, NEW_ROOT_MODE).map(drop));
        // Another run may work in the directory above: its staged files stay.
        let _ = clear_leftovers(self, |_| true);
        made?;
        Self::of(Root::of(self.open_directory(Some(below))?, path)?)
    }

    /// Creates a directory that this process can fill, whatever its final `mode`.
    /// [`WritableRoot::set_directory`] sets the final mode. An existing directory is no error, and
    /// becomes writable for this user.
    ///
    /// # Errors
    /// Another entry is at `path`, or its parent is missing.
    pub fn make_directory(&self, path: &TreePath, mode: u16) -> Result<OpenedDirectory, DiskError> {
        let location = self.locate(path).during(VERB, path.as_bytes())?;
        // Set-id bits come last, when the owner is known.
        let mode = mode & 0o1777 | FILLING_BITS;
        let is_anothers = self.is_anothers(&location).during(VERB, path.as_bytes())?;
        let made = if is_anothers {
            match stat_in(&location, path)? {
                Some(_) => None,
                None => self.make_directory_aside(path, mode)?,
            }
        } else {
            match mkdirat(&location, location.name, mode_bits(mode)) {
                Ok(()) => Some(inode_in(&location, path)?),
                Err(Errno::EXIST) => None,
                Err(error) => return Err(error).during(VERB, path.as_bytes()),
            }
        };
        match made {
            Some(inode) => Ok(OpenedDirectory { is_new: true, inode }),
            None => open_for_filling(&location, path, is_anothers),
        }
    }

    /// True if the superuser works in a directory whose names another user may change.
    fn is_anothers(&self, location: &Location<'_>) -> rustix::io::Result<bool> {
        Ok(geteuid().is_root() && (self.owner().is_some() || fstat(location)?.st_uid != 0))
    }

    /// Creates a directory, gives it away, and puts it into its place. `None` means that another
    /// entry is there by now.
    fn make_directory_aside(&self, path: &TreePath, mode: u16) -> Result<Option<Inode>, DiskError> {
        let name = self.staged_name(path, DIRECTORY_MADE);
        self.with_state_for(path, |state| {
            let made = state.make_directory(&name)?;
            let inode = Inode::from(&stat_of(&made, path)?);
            if let Some((user, group)) = self.owner() {
                fchown(&made, Some(user), Some(group)).during("set the owner of", path.as_bytes())?;
            }
            fchmod(&made, mode_bits(mode)).during("set the mode of", path.as_bytes())?;
            match state.install(&name, None, self, path, None) {
                Ok(()) => Ok(Some(inode)),
                Err(error) => {
                    state.remove(name.as_bytes())?;
                    if error.is_conflict() { Ok(None) } else { Err(error) }
                }
            }
        })
    }

    /// Sets a directory's final metadata, if it is still the `expected` one.
    ///
    /// # Errors
    /// It is no directory, or another one ([`DiskError::is_conflict`]), or this user may not change
    /// it.
    pub fn set_directory(
        &self,
        path: &TreePath,
        metadata: &Metadata,
        expected: Inode,
    ) -> Result<(), DiskError> {
        const VERB: &str = "set mode and time of";
        let descriptor = self.handle(path).during(VERB, path.as_bytes())?;
        // A user who put another directory there may want its mode changed.
        let stat = stat_of(&descriptor, path)?;
        if Inode::from(&stat) != expected {
            return Err(DiskError::new(VERB, path.as_bytes(), DiskErrorKind::Conflict));
        }
        let attributes = metadata.attributes.as_deref();
        let (user, group) = attributes.map_or((None, None), |of| missing_owner(of, (stat.uid, stat.gid)));
        let is_owned = attributes.is_some_and(|of| of.user.is_some());
        if user.is_some() || group.is_some() {
            descriptor.set_owner(user, group).during("set the owner of", path.as_bytes())?;
        }
        let xattrs = self.set_xattrs(&descriptor, path.as_bytes(), attributes);
        let mtime = metadata.mtime;
        let mode = self.policy().mode_of(&descriptor, metadata.mode).during(VERB, path.as_bytes())?;
        if mode != stat_of(&descriptor, path)?.mode {
            // All directories that we made there were given to the destination's owner. The owner
            // may have put a directory of the superuser there, to have its mode opened.
            if !is_owned && self.owner().is_some_and(|(user, _)| user.as_raw() != stat.uid) {
                return Err(DiskError::new(VERB, path.as_bytes(), DiskErrorKind::NotOurs));
            }
            let timed = descriptor.set_times(&times(mtime));
            descriptor.set_mode(mode).and(timed).during(VERB, path.as_bytes())?;
            return xattrs;
        }
        descriptor.set_times(&times(mtime)).during(VERB, path.as_bytes())?;
        xattrs
    }
}

/// The inode at `location`.
fn inode_in(location: &Location<'_>, path: &TreePath) -> Result<Inode, DiskError> {
    let stat = stat_in(location, path)?;
    stat.as_ref()
        .map(Inode::from)
        .ok_or_else(|| DiskError::new(VERB, path.as_bytes(), DiskErrorKind::Conflict))
}

/// Opens an existing directory, and makes it writable for this user. The superuser can write
/// anyway, so it changes no mode of a directory that another user may have put there.
fn open_for_filling(
    location: &Location<'_>,
    path: &TreePath,
    is_anothers: bool,
) -> Result<OpenedDirectory, DiskError> {
    let descriptor =
        openat(location, location.name, DIRECTORY, Mode::empty()).during(VERB, path.as_bytes())?;
    let stat = stat_of(&descriptor, path)?;
    if stat.mode & FILLING_BITS != FILLING_BITS && !is_anothers {
        fchmod(&descriptor, mode_bits(stat.mode | FILLING_BITS)).during(VERB, path.as_bytes())?;
    }
    Ok(OpenedDirectory { is_new: false, inode: Inode::from(&stat) })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::disk::set_id::Policy;
    use crate::disk::testing::{Fixture, directory, path, time};

    #[test]
    fn a_directory_can_be_filled_until_it_gets_its_final_mode() {
        let fixture = Fixture::new();
        let mode = || fixture.at("d").metadata().unwrap().mode() & 0o7777;
        let made = fixture.root.make_directory(&path("d"), 0o555).unwrap();
        assert!(made.is_new);
        assert_eq!(mode(), 0o755);
        fixture.root.set_directory(&path("d"), &directory(0o555, time(9)), made.inode).unwrap();
        assert_eq!(mode(), 0o555);
        assert_eq!(fixture.root.stat(&path("d")).unwrap().unwrap().mtime(), time(9));
        let again = fixture.root.make_directory(&path("d"), 0o555).unwrap();
        assert_eq!(again, OpenedDirectory { is_new: false, ..made });
        assert_eq!(mode(), 0o755);
    }

    #[test]
    fn a_policy_can_allow_set_id_bits() {
        let mut fixture = Fixture::new();
        let is = fixture.at("").metadata().unwrap();
        fixture.root = fixture
            .root
            .with_policy(Policy { set_id_owner: Some((is.uid(), is.gid())), ..Policy::default() });
        let made = fixture.root.make_directory(&path("d"), 0o2755).unwrap();
        fixture.root.set_directory(&path("d"), &directory(0o2755, time(1)), made.inode).unwrap();
        assert_eq!(fixture.at("d").metadata().unwrap().mode() & 0o7777, 0o2755);
    }

    #[test]
    fn an_exchanged_directory_keeps_its_mode() {
        let fixture = Fixture::new();
        let made = fixture.root.make_directory(&path("d"), 0o755).unwrap();
        fs::rename(fixture.at("d"), fixture.at("mine")).unwrap();
        fs::create_dir(fixture.at("d")).unwrap();
        let error =
            fixture.root.set_directory(&path("d"), &directory(0o777, time(1)), made.inode).unwrap_err();
        assert!(error.is_conflict(), "{error}");
        assert_eq!(fixture.at("d").metadata().unwrap().mode() & 0o7777, 0o755);
    }
}
