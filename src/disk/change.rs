//! What changes a tree besides its files' content: directories, links, modes, times, removal.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, Mode, chownat, fchmod, fstat, futimens, mkdirat, openat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::disk::error::{DiskError, During, Fault};
use crate::disk::root::{DIRECTORY, Root, check_unchanged, rename_into, stat_of};
use crate::disk::stat::{Identity, Stat, mode_bits, times};
use crate::disk::state::{LINK, staged_name};
use crate::disk::unconfirmed::Made;
use crate::tree::entry::Time;
use crate::tree::path::TreePath;

/// A directory must keep these while it is being filled.
const FILLING_BITS: u16 = 0o700;

impl Root {
    /// Makes a directory that we can fill, whatever its final `mode`; the final one comes with
    /// [`Root::set_directory`]. A directory that is there already is fine and becomes writable for us.
    /// Says whether it was made.
    ///
    /// # Errors
    /// Something else is there, or the parent is not.
    pub fn make_directory(&self, path: &TreePath, mode: u16) -> Result<bool, DiskError> {
        const VERB: &str = "make the directory";
        let place = self.place(path).during(VERB, path.as_bytes())?;
        let raw = mode_bits(self.policy().mode(mode) | FILLING_BITS);
        match mkdirat(&place, place.name, raw) {
            Ok(()) => {
                if let Some((user, group)) = self.owner() {
                    chownat(&place, place.name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
                        .during("set the owner of", path.as_bytes())?;
                }
                return Ok(true);
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error).during(VERB, path.as_bytes()),
        }
        let descriptor =
            openat(&place, place.name, DIRECTORY, Mode::empty()).during(VERB, path.as_bytes())?;
        let stat = stat_of(&descriptor, path)?;
        if stat.mode & FILLING_BITS != FILLING_BITS {
            let raw = mode_bits(stat.mode | FILLING_BITS);
            fchmod(&descriptor, raw).during(VERB, path.as_bytes())?;
        }
        Ok(false)
    }

    /// A directory's final mode and modification time.
    ///
    /// # Errors
    /// It is no directory, or not ours to change.
    pub fn set_directory(&self, path: &TreePath, mode: u16, mtime: Time) -> Result<(), DiskError> {
        const VERB: &str = "set mode and time of";
        let descriptor = self.descend(path, DIRECTORY).during(VERB, path.as_bytes())?;
        let raw = mode_bits(self.policy().mode(mode));
        fchmod(&descriptor, raw).during(VERB, path.as_bytes())?;
        futimens(&descriptor, &times(mtime)).during(VERB, path.as_bytes())
    }

    /// The root's own mode and modification time, where they differ.
    ///
    /// # Errors
    /// It is not ours to change.
    pub fn set_self(&self, mode: u16, mtime: Time) -> Result<(), DiskError> {
        const VERB: &str = "set mode and time of";
        let path = self.path().as_os_str().as_bytes();
        let stat = fstat(self.descriptor()).during(VERB, path)?;
        let stat = Stat::of(&stat).ok_or_else(|| DiskError::new(VERB, path, Fault::OutOfRange))?;
        let mode = self.policy().mode(mode);
        if stat.mode != mode {
            fchmod(self.descriptor(), mode_bits(mode)).during(VERB, path)?;
        }
        if stat.mtime() != mtime {
            futimens(self.descriptor(), &times(mtime)).during(VERB, path)?;
        }
        Ok(())
    }

    /// A regular file's mode and modification time, where its content is already right; `seen` is what the
    /// decision was made on. Answers what it is now.
    ///
    /// # Errors
    /// It is no regular file, not ours to change, not what was seen ([`DiskError::is_conflict`]), or has
    /// other names ([`DiskError::is_linked`]): those may lie outside, so it must be written anew.
    pub fn set_file(
        &self,
        path: &TreePath,
        mode: u16,
        mtime: Time,
        seen: &Identity,
    ) -> Result<Stat, DiskError> {
        const VERB: &str = "set mode and time of";
        let (file, stat) = self.open_file(path)?;
        if stat.identity != *seen {
            return Err(DiskError::new(VERB, path.as_bytes(), Fault::Conflict));
        }
        if stat.nlink > 1 {
            return Err(DiskError::new(VERB, path.as_bytes(), Fault::Linked));
        }
        // Whoever wrote it may have done so just now: then the time must not reach the disk before the content.
        self.mark_change(path, seen.dev, Made::Now)?;
        let raw = mode_bits(self.policy().mode(mode));
        fchmod(&file, raw).during(VERB, path.as_bytes())?;
        futimens(&file, &times(mtime)).during(VERB, path.as_bytes())?;
        let now = stat_of(&file, path)?;
        self.mark(path, &now.identity)?;
        Ok(now)
    }

    /// A regular file was found to be what size and time say, as it was `seen`: it gets a new ctime, and so later runs
    /// know. If it cannot have one, they look again.
    ///
    /// # Errors
    /// It is not what was seen any more ([`DiskError::is_conflict`]), or cannot be opened.
    pub fn vouch_for(&self, path: &TreePath, seen: &Identity) -> Result<(), DiskError> {
        let (file, stat) = self.open_file(path)?;
        if stat.identity != *seen {
            return Err(DiskError::new("look at", path.as_bytes(), Fault::Conflict));
        }
        self.mark_change(path, seen.dev, Made::Before)?;
        let _ = futimens(&file, &times(seen.mtime));
        Ok(())
    }

    /// Moves a regular file to where nothing is, and gives it its mode and modification time there; `seen` is
    /// what the decision was made on.
    ///
    /// # Errors
    /// As [`Root::set_file`]; and something is there by now ([`DiskError::is_conflict`]).
    pub fn move_file(
        &self,
        from: &TreePath,
        seen: &Identity,
        to: &TreePath,
        mode: u16,
        mtime: Time,
    ) -> Result<(), DiskError> {
        const VERB: &str = "move";
        let old = self.place(from).during(VERB, from.as_bytes())?;
        let new = self.place(to).during(VERB, to.as_bytes())?;
        let stat = self.set_file(from, mode, mtime, seen)?;
        check_unchanged(&old, from, VERB, Some(&stat.identity))?;
        rename_into(&old, old.name, &new, to, VERB, None)
    }

    /// A symbolic link's own modification time.
    ///
    /// # Errors
    /// It is not there, or not ours to change.
    pub fn set_link_time(&self, path: &TreePath, mtime: Time) -> Result<(), DiskError> {
        self.place(path)
            .and_then(|place| utimensat(&place, place.name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW))
            .during("set the time of", path.as_bytes())
    }

    /// Removes what is no directory: a file or a link itself. With `seen`, only if it still is just that.
    ///
    /// # Errors
    /// It is not there, a directory, or not what was seen ([`DiskError::is_conflict`]).
    pub fn remove_file(&self, path: &TreePath, seen: Option<&Identity>) -> Result<(), DiskError> {
        const VERB: &str = "remove";
        let place = self.place(path).during(VERB, path.as_bytes())?;
        if seen.is_some() {
            check_unchanged(&place, path, VERB, seen)?;
        }
        unlinkat(&place, place.name, AtFlags::empty()).during(VERB, path.as_bytes())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// It is not there, not empty, or no directory.
    pub fn remove_directory(&self, path: &TreePath) -> Result<(), DiskError> {
        self.place(path)
            .and_then(|place| unlinkat(&place, place.name, AtFlags::REMOVEDIR))
            .during("remove the directory", path.as_bytes())
    }

    /// Makes a symbolic link aside and renames it into place, if what is there is still what was `seen` there
    /// (`None`: nothing).
    ///
    /// # Errors
    /// [`DiskError::is_conflict`], or the place cannot be written to.
    pub fn make_symlink(
        &self,
        path: &TreePath,
        target: &[u8],
        mtime: Time,
        seen: Option<&Identity>,
    ) -> Result<(), DiskError> {
        const VERB: &str = "make the link";
        let name = staged_name(path, LINK);
        let state = self.with_state(|state| {
            state.remove(name.as_bytes())?;
            symlinkat(target, state, &*name).during(VERB, path.as_bytes())?;
            Ok(Arc::clone(state))
        })?;
        if let Some((user, group)) = self.owner() {
            chownat(&state, &*name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
                .during("set the owner of", path.as_bytes())?;
        }
        utimensat(&state, &*name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW).during(VERB, path.as_bytes())?;
        state.install(&name, self, path, seen).inspect_err(|_| {
            // A link is cheap to make again, and the first error is the one that matters.
            let _ = state.remove(name.as_bytes());
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::disk::root::Policy;
    use crate::disk::testing::{Place, path, time};

    fn seen(place: &Place) -> Option<Identity> {
        place.root.stat(&path("f")).unwrap().map(|stat| stat.identity)
    }

    #[test]
    fn a_directory_can_be_filled_until_it_gets_its_own_mode() {
        let place = Place::new();
        let mode = || place.at("d").metadata().unwrap().mode() & 0o7777;
        assert!(place.root.make_directory(&path("d"), 0o555).unwrap());
        assert_eq!(mode(), 0o755);
        place.root.set_directory(&path("d"), 0o555, time(9)).unwrap();
        assert_eq!(mode(), 0o555);
        assert_eq!(place.root.stat(&path("d")).unwrap().unwrap().mtime(), time(9));
        assert!(!place.root.make_directory(&path("d"), 0o555).unwrap());
        assert_eq!(mode(), 0o755);
    }

    #[test]
    fn a_file_keeps_its_content_when_mode_and_time_are_set() {
        let place = Place::new();
        fs::write(place.at("f"), "same").unwrap();
        let seen = place.root.stat(&path("f")).unwrap().unwrap().identity;
        let now = place.root.set_file(&path("f"), 0o600, time(-5), &seen).unwrap();
        assert_eq!((now.mode, now.mtime()), (0o600, time(-5)));
        assert_eq!(place.root.stat(&path("f")).unwrap(), Some(now));
        assert!(place.root.set_file(&path("f"), 0o644, time(1), &seen).unwrap_err().is_conflict());
    }

    #[test]
    fn only_what_was_seen_is_removed() {
        let place = Place::new();
        fs::write(place.at("f"), "old").unwrap();
        let seen = place.root.stat(&path("f")).unwrap().unwrap().identity;
        fs::write(place.at("f"), "edited").unwrap();
        assert!(place.root.remove_file(&path("f"), Some(&seen)).unwrap_err().is_conflict());
        assert_eq!(fs::read(place.at("f")).unwrap(), b"edited");
        place.root.remove_file(&path("f"), None).unwrap();
        assert!(place.root.remove_file(&path("f"), None).unwrap_err().is_not_found());
    }

    #[test]
    fn directories_and_files_are_not_removed_for_each_other() {
        let place = Place::new();
        fs::create_dir(place.at("d")).unwrap();
        fs::write(place.at("d/f"), "").unwrap();
        assert!(place.root.remove_file(&path("d"), None).is_err());
        assert!(place.root.remove_directory(&path("d/f")).unwrap_err().is_in_the_way());
        assert!(place.root.remove_directory(&path("d")).is_err());
        assert!(place.at("d/f").exists());
    }

    #[test]
    fn set_id_bits_can_be_allowed() {
        let mut place = Place::new();
        place.root = place.root.with_policy(Policy { special_bits: true });
        place.root.make_directory(&path("d"), 0o2755).unwrap();
        place.root.set_directory(&path("d"), 0o2755, time(1)).unwrap();
        assert_eq!(place.at("d").metadata().unwrap().mode() & 0o7777, 0o2755);
    }

    #[test]
    fn a_link_replaces_what_was_seen_and_nothing_else() {
        let place = Place::new();
        let make = |seen: Option<&Identity>| place.root.make_symlink(&path("f"), b"to/there", time(7), seen);
        fs::write(place.at("f"), "old").unwrap();
        assert!(make(None).unwrap_err().is_conflict());
        make(seen(&place).as_ref()).unwrap();
        assert_eq!(&*place.root.read_link(&path("f")).unwrap(), b"to/there");
        assert_eq!(place.root.stat(&path("f")).unwrap().unwrap().mtime(), time(7));
        assert_eq!(fs::read_dir(place.at(".ksync")).unwrap().count(), 0);
    }
}
