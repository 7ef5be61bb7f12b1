//! What changes a tree besides its files' content: modes, times, names, removal. Directories and
//! links have files of their own.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, fchmod, fstat, futimens, unlinkat};

use crate::disk::error::{DiskError, During, Fault};
use crate::disk::root::{Root, check_unchanged, stat_of};
use crate::disk::stat::{Identity, Stat, mode_bits, times};
use crate::disk::state::GONE;
use crate::disk::swap::{Ready, remove_aside, rename_into};
use crate::disk::unconfirmed::Origin;
use crate::tree::entry::Time;
use crate::tree::path::TreePath;

impl Root {
    /// The root's own mode, if one is given, and modification time, where they differ.
    ///
    /// # Errors
    /// It is not ours to change.
    pub fn set_self(&self, mode: Option<u16>, mtime: Time) -> Result<(), DiskError> {
        const VERB: &str = "set mode and time of";
        let path = self.path().as_os_str().as_bytes();
        let stat = fstat(self.descriptor()).during(VERB, path)?;
        let stat = Stat::of(&stat).ok_or_else(|| DiskError::new(VERB, path, Fault::OutOfRange))?;
        let mode = mode.map(|mode| self.policy().mode_of(self.descriptor(), mode)).transpose();
        if let Some(mode) = mode.during(VERB, path)?.filter(|mode| stat.mode != *mode) {
            fchmod(self.descriptor(), mode_bits(mode)).during(VERB, path)?;
        }
        if stat.mtime() != mtime {
            futimens(self.descriptor(), &times(mtime)).during(VERB, path)?;
        }
        Ok(())
    }

    /// A regular file's mode and modification time, where its content is already right; `seen` is
    /// what the decision was made on. Answers what it is now.
    ///
    /// # Errors
    /// It is no regular file, not ours to change, not what was seen ([`DiskError::is_conflict`]), or has
    /// other names, which may lie outside, or an owner for whom it may not have this mode: so it
    /// must be written anew ([`DiskError::must_be_anew`]).
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
        if !self.policy().fits(mode, (stat.uid, stat.gid)) {
            return Err(DiskError::new(VERB, path.as_bytes(), Fault::AnotherOwner));
        }
        // Whoever wrote it may have done so just now: then the time must not reach the disk before
        // the content.
        self.mark_change(path, seen.dev, Origin::Now)?;
        let raw = mode_bits(self.policy().mode(mode));
        fchmod(&file, raw).during(VERB, path.as_bytes())?;
        futimens(&file, &times(mtime)).during(VERB, path.as_bytes())?;
        let now = stat_of(&file, path)?;
        self.mark(path, &now.identity)?;
        Ok(now)
    }

    /// A regular file was found to be what size and time say, as it was `seen`: it gets a new
    /// ctime, and so later runs know. If it cannot have one, they look again.
    ///
    /// # Errors
    /// It is not what was seen any more ([`DiskError::is_conflict`]), or cannot be opened.
    pub fn vouch_for(&self, path: &TreePath, seen: &Identity) -> Result<(), DiskError> {
        let (file, stat) = self.open_file(path)?;
        if stat.identity != *seen {
            return Err(DiskError::new("look at", path.as_bytes(), Fault::Conflict));
        }
        self.mark_change(path, seen.dev, Origin::Before)?;
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
        rename_into(&old, Ready { name: old.name, identity: None }, &new, to, VERB, None)
    }

    /// Removes what is no directory: a file or a link itself. With `seen`, only if it still is just that.
    ///
    /// # Errors
    /// It is not there, a directory, or not what was seen ([`DiskError::is_conflict`]).
    pub fn remove_file(&self, path: &TreePath, seen: Option<&Identity>) -> Result<(), DiskError> {
        const VERB: &str = "remove";
        let place = self.place(path).during(VERB, path.as_bytes())?;
        if let Some(seen) = seen {
            check_unchanged(&place, path, VERB, Some(seen))?;
            if self.may_move_aside() {
                let name = self.staged_name(path, GONE);
                // Where nothing can be moved aside it is removed where it is.
                let state = self.with_state_for(path, |state| Ok(Arc::clone(state)));
                if let Ok(state) = state
                    && remove_aside(&*state, &name, &place, path, seen)?
                {
                    return Ok(());
                }
            }
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
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::disk::testing::{Place, path, time};

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
}
