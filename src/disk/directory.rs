//! Directories: made, opened for filling, given their final mode and time.
//!
//! Owner, mode and time are set on the open descriptor of a directory that nobody else can have
//! replaced. Where a destination belongs to somebody else, its owner may swap any name in it for a
//! root-owned file between two of our calls: so there the superuser makes a directory in the state
//! directory, gives it away there and renames it.

use rustix::fs::{Mode, fchmod, fchown, fstat, futimens, mkdirat, openat};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::disk::error::{DiskError, During, Fault};
use crate::disk::root::{DIRECTORY, Place, Root, stat_in, stat_of};
use crate::disk::stat::{Identity, Stat, mode_bits, times};
use crate::disk::state::DIRECTORY_MADE;
use crate::tree::entry::Time;
use crate::tree::path::TreePath;

/// A directory must keep these while it is being filled.
const FILLING_BITS: u16 = 0o700;

const VERB: &str = "make the directory";

/// A directory that can be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenedDirectory {
    /// Whether it was made just now.
    pub is_new: bool,
    /// Which directory it is.
    pub inode: Inode,
}

/// Which file or directory something is, as long as it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Inode {
    /// The filesystem.
    pub dev: u64,
    /// The inode in that filesystem.
    pub ino: u64,
}

impl From<&Identity> for Inode {
    fn from(identity: &Identity) -> Self {
        Self { dev: identity.dev, ino: identity.ino }
    }
}

impl From<&Stat> for Inode {
    fn from(stat: &Stat) -> Self {
        Self::from(&stat.identity)
    }
}

impl Root {
    /// Makes a directory that we can fill, whatever its final `mode`; the final one comes with
    /// [`Root::set_directory`]. A directory that is there already is fine and becomes writable for
    /// us.
    ///
    /// # Errors
    /// Something else is there, or the parent is not.
    pub fn make_directory(&self, path: &TreePath, mode: u16) -> Result<OpenedDirectory, DiskError> {
        let place = self.place(path).during(VERB, path.as_bytes())?;
        // Set-id bits come last, when it is known whose they are.
        let mode = mode & 0o1777 | FILLING_BITS;
        let is_anothers = self.is_anothers(&place).during(VERB, path.as_bytes())?;
        let made = if is_anothers {
            match stat_in(&place, path)? {
                Some(_) => None,
                None => self.make_directory_aside(path, mode)?,
            }
        } else {
            match mkdirat(&place, place.name, mode_bits(mode)) {
                Ok(()) => Some(inode_in(&place, path)?),
                Err(Errno::EXIST) => None,
                Err(error) => return Err(error).during(VERB, path.as_bytes()),
            }
        };
        match made {
            Some(inode) => Ok(OpenedDirectory { is_new: true, inode }),
            None => open_for_filling(&place, path, is_anothers),
        }
    }

    /// Whether the superuser works in a directory whose names somebody else may change.
    fn is_anothers(&self, place: &Place<'_>) -> rustix::io::Result<bool> {
        Ok(geteuid().is_root() && (self.owner().is_some() || fstat(place)?.st_uid != 0))
    }

    /// Makes a directory, gives it away, and puts it into its place. `None`: something is there by
    /// now.
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

    /// A directory's final mode and modification time, if it still is the one that was listed or
    /// made.
    ///
    /// # Errors
    /// It is no directory, another one ([`DiskError::is_conflict`]), or not ours to change.
    pub fn set_directory(
        &self,
        path: &TreePath,
        mode: u16,
        mtime: Time,
        expected: Inode,
    ) -> Result<(), DiskError> {
        const VERB: &str = "set mode and time of";
        let descriptor = self.descend(path, DIRECTORY).during(VERB, path.as_bytes())?;
        // Somebody who put another directory there may want to have its mode changed.
        let stat = stat_of(&descriptor, path)?;
        if Inode::from(&stat) != expected {
            return Err(DiskError::new(VERB, path.as_bytes(), Fault::Conflict));
        }
        let mode = self.policy().mode_of(&descriptor, mode).during(VERB, path.as_bytes())?;
        if mode != stat.mode {
            // All that we made there was given to the destination's owner. A directory of the
            // superuser's own may have been put there by him, to have it opened.
            if self.owner().is_some_and(|(user, _)| user.as_raw() != stat.uid) {
                return Err(DiskError::new(VERB, path.as_bytes(), Fault::NotOurs));
            }
            fchmod(&descriptor, mode_bits(mode)).during(VERB, path.as_bytes())?;
        }
        futimens(&descriptor, &times(mtime)).during(VERB, path.as_bytes())
    }
}

/// Which file or directory a name leads to.
fn inode_in(place: &Place<'_>, path: &TreePath) -> Result<Inode, DiskError> {
    let stat = stat_in(place, path)?;
    stat.as_ref().map(Inode::from).ok_or_else(|| DiskError::new(VERB, path.as_bytes(), Fault::Conflict))
}

/// A directory that is there already, writable for us from now on. The superuser can write to it
/// as it is, and opens nothing that somebody else may have put there.
fn open_for_filling(
    place: &Place<'_>,
    path: &TreePath,
    is_anothers: bool,
) -> Result<OpenedDirectory, DiskError> {
    let descriptor = openat(place, place.name, DIRECTORY, Mode::empty()).during(VERB, path.as_bytes())?;
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
    use crate::disk::root::Policy;
    use crate::disk::testing::{Place, path, time};

    #[test]
    fn a_directory_can_be_filled_until_it_gets_its_own_mode() {
        let place = Place::new();
        let mode = || place.at("d").metadata().unwrap().mode() & 0o7777;
        let made = place.root.make_directory(&path("d"), 0o555).unwrap();
        assert!(made.is_new);
        assert_eq!(mode(), 0o755);
        place.root.set_directory(&path("d"), 0o555, time(9), made.inode).unwrap();
        assert_eq!(mode(), 0o555);
        assert_eq!(place.root.stat(&path("d")).unwrap().unwrap().mtime(), time(9));
        let again = place.root.make_directory(&path("d"), 0o555).unwrap();
        assert_eq!(again, OpenedDirectory { is_new: false, ..made });
        assert_eq!(mode(), 0o755);
    }

    #[test]
    fn set_id_bits_can_be_allowed() {
        let mut place = Place::new();
        let is = place.at("").metadata().unwrap();
        place.root = place.root.with_policy(Policy { set_id_owner: Some((is.uid(), is.gid())) });
        let made = place.root.make_directory(&path("d"), 0o2755).unwrap();
        place.root.set_directory(&path("d"), 0o2755, time(1), made.inode).unwrap();
        assert_eq!(place.at("d").metadata().unwrap().mode() & 0o7777, 0o2755);
    }

    #[test]
    fn a_directory_that_was_exchanged_keeps_its_mode() {
        let place = Place::new();
        let made = place.root.make_directory(&path("d"), 0o755).unwrap();
        fs::rename(place.at("d"), place.at("mine")).unwrap();
        fs::create_dir(place.at("d")).unwrap();
        let error = place.root.set_directory(&path("d"), 0o777, time(1), made.inode).unwrap_err();
        assert!(error.is_conflict(), "{error}");
        assert_eq!(place.at("d").metadata().unwrap().mode() & 0o7777, 0o755);
    }
}
