//! Changes of a tree besides its files' content: modes, times, names, removal. Directories and
//! links have modules of their own.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, fchmod, fchown, fstat, futimens, unlinkat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, geteuid};

use crate::disk::durability::Origin;
use crate::disk::error::{DiskError, DiskErrorKind, During};
use crate::disk::root::{check_unchanged, stat_of};
use crate::disk::set_id::Owner;
use crate::disk::stage::Metadata;
use crate::disk::stat::{FileKind, Identity, Stat, mode_bits, times};
use crate::disk::state::GONE;
use crate::disk::swap::{Ready, remove_aside, rename_into};
use crate::disk::writable::WritableRoot;
use crate::tree::attributes::Attributes;
use crate::tree::entry::Time;
use crate::tree::path::TreePath;

/// The wanted owner and group, as far as they differ from the present ones.
pub(crate) fn missing_owner(wanted: &Attributes, (user, group): Owner) -> (Option<u32>, Option<u32>) {
    (wanted.user.filter(|wanted| *wanted != user), wanted.group.filter(|wanted| *wanted != group))
}

impl WritableRoot {
    /// Sets the root's own mode and attributes, if a mode is given, and its modification time, if
    /// they differ.
    ///
    /// # Errors
    /// This user may not change the root.
    pub fn set_self(
        &self,
        mode: Option<u16>,
        mtime: Time,
        attributes: Option<&Attributes>,
    ) -> Result<(), DiskError> {
        const VERB: &str = "set mode and time of";
        let path = self.path().as_os_str().as_bytes();
        let stat = fstat(self.descriptor()).during(VERB, path)?;
        let stat = Stat::of(&stat).ok_or_else(|| DiskError::new(VERB, path, DiskErrorKind::OutOfRange))?;
        let mut xattrs = Ok(());
        if mode.is_some() {
            if let Some(attributes) = attributes {
                let (user, group) = missing_owner(attributes, (stat.uid, stat.gid));
                if user.is_some() || group.is_some() {
                    let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
                    fchown(self.descriptor(), user, group).during("set the owner of", path)?;
                }
            }
            xattrs = self.set_xattrs(self.descriptor(), path, attributes);
        }
        let stat = fstat(self.descriptor()).during(VERB, path)?;
        let stat = Stat::of(&stat).ok_or_else(|| DiskError::new(VERB, path, DiskErrorKind::OutOfRange))?;
        let mode = mode.map(|mode| self.policy().mode_of(self.descriptor(), mode)).transpose();
        if let Some(mode) = mode.during(VERB, path)?.filter(|mode| stat.mode != *mode) {
            fchmod(self.descriptor(), mode_bits(mode)).during(VERB, path)?;
        }
        if stat.mtime() != mtime {
            futimens(self.descriptor(), &times(mtime)).during(VERB, path)?;
        }
        xattrs
    }

    /// Sets the metadata of a regular file whose content is already right. `seen` is the identity
    /// on which the decision was made. Returns the file's new metadata.
    ///
    /// # Errors
    /// It is no regular file, or this user may not change it, or it is not the one that was seen
    /// ([`DiskError::is_conflict`]). [`DiskError::must_be_anew`]: it has other names, which may be
    /// outside of the root, or an owner who may not have this mode, or for whom this user may set
    /// none. Such a file must be replaced by a new one.
    pub fn set_file(&self, path: &TreePath, metadata: &Metadata, seen: &Identity) -> Result<Stat, DiskError> {
        const VERB: &str = "set mode and time of";
        let file = self.handle(path).during(VERB, path.as_bytes())?;
        let stat = stat_of(&file, path)?;
        if stat.kind() != FileKind::File {
            return Err(DiskError::new(VERB, path.as_bytes(), DiskErrorKind::NotRegular));
        }
        if stat.identity != *seen {
            return Err(DiskError::new(VERB, path.as_bytes(), DiskErrorKind::Conflict));
        }
        if stat.nlink > 1 {
            return Err(DiskError::new(VERB, path.as_bytes(), DiskErrorKind::Linked));
        }
        if !self.policy().fits(metadata.mode, (stat.uid, stat.gid)) {
            return Err(DiskError::new(VERB, path.as_bytes(), DiskErrorKind::AnotherOwner));
        }
        // A program may have written the file just now, so the new time must not reach the disk
        // before the content.
        self.mark_change(path, seen.dev, Origin::Now)?;
        let mode = self.policy().mode(metadata.mode);
        let attributes = metadata.attributes.as_deref();
        let (user, group) = attributes.map_or((None, None), |of| missing_owner(of, (stat.uid, stat.gid)));
        if user.is_some() || group.is_some() {
            file.set_owner(user, group).during("set the owner of", path.as_bytes())?;
        }
        let xattrs = self.set_xattrs(&file, path.as_bytes(), attributes);
        // The mode decides if its owner may set an attribute.
        if xattrs.as_ref().is_err_and(|error| error.errno() == Some(Errno::ACCESS)) {
            return Err(DiskError::new(VERB, path.as_bytes(), DiskErrorKind::AnotherOwner));
        }
        let set = file.set_mode(mode).and(file.set_times(&times(metadata.mtime)));
        if set == Err(Errno::PERM) && stat.uid != geteuid().as_raw() {
            return Err(DiskError::new(VERB, path.as_bytes(), DiskErrorKind::AnotherOwner));
        }
        set.during(VERB, path.as_bytes())?;
        let now = stat_of(&file, path)?;
        self.mark(path, &now.identity)?;
        xattrs.map(|()| now)
    }

    /// Gives a verified regular file a new ctime, so that later runs believe it. `seen` is its
    /// identity when it was verified. If the ctime cannot be set, later runs verify the file again.
    ///
    /// # Errors
    /// It is no longer the file that was seen ([`DiskError::is_conflict`]), or cannot be opened.
    pub fn vouch_for(&self, path: &TreePath, seen: &Identity) -> Result<(), DiskError> {
        let (file, stat) = self.open_file(path)?;
        if stat.identity != *seen {
            return Err(DiskError::new("look at", path.as_bytes(), DiskErrorKind::Conflict));
        }
        self.mark_change(path, seen.dev, Origin::Before)?;
        let _ = futimens(&file, &times(seen.mtime));
        Ok(())
    }

    /// Moves a regular file to a path where nothing is, and sets its mode and modification time.
    /// `seen` is the identity on which the decision was made.
    ///
    /// # Errors
    /// As [`WritableRoot::set_file`]; also [`DiskError::is_conflict`] if something is at the new
    /// path by now.
    pub fn move_file(
        &self,
        from: &TreePath,
        seen: &Identity,
        to: &TreePath,
        metadata: &Metadata,
    ) -> Result<(), DiskError> {
        const VERB: &str = "move";
        let old = self.locate(from).during(VERB, from.as_bytes())?;
        let new = self.locate(to).during(VERB, to.as_bytes())?;
        let stat = self.set_file(from, metadata, seen)?;
        check_unchanged(&old, from, VERB, Some(&stat.identity))?;
        rename_into(&old, Ready { name: old.name, identity: None }, &new, to, VERB, None)
    }

    /// Removes a file or a link itself, but no directory. With `seen`, removes only that very
    /// entry.
    ///
    /// # Errors
    /// Nothing is there, or a directory, or not the entry that was seen
    /// ([`DiskError::is_conflict`]).
    pub fn remove_file(&self, path: &TreePath, seen: Option<&Identity>) -> Result<(), DiskError> {
        const VERB: &str = "remove";
        let location = self.locate(path).during(VERB, path.as_bytes())?;
        if let Some(seen) = seen {
            check_unchanged(&location, path, VERB, Some(seen))?;
            if self.may_move_aside() {
                let name = self.staged_name(path, GONE);
                // An entry that cannot be moved aside is removed where it is.
                let state = self.with_state_for(path, |state| Ok(Arc::clone(state)));
                if let Ok(state) = state
                    && remove_aside(&*state, &name, &location, path, seen)?
                {
                    return Ok(());
                }
            }
        }
        unlinkat(&location, location.name, AtFlags::empty()).during(VERB, path.as_bytes())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// It is missing, not empty, or no directory.
    pub fn remove_directory(&self, path: &TreePath) -> Result<(), DiskError> {
        self.locate(path)
            .and_then(|location| unlinkat(&location, location.name, AtFlags::REMOVEDIR))
            .during("remove the directory", path.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::disk::testing::{Fixture, directory, path, time};

    #[test]
    fn a_file_keeps_its_content_when_mode_and_time_are_set() {
        let fixture = Fixture::new();
        fs::write(fixture.at("f"), "same").unwrap();
        let seen = fixture.root.stat(&path("f")).unwrap().unwrap().identity;
        let now = fixture.root.set_file(&path("f"), &directory(0o600, time(-5)), &seen).unwrap();
        assert_eq!((now.mode, now.mtime()), (0o600, time(-5)));
        assert_eq!(fixture.root.stat(&path("f")).unwrap(), Some(now));
        assert!(
            fixture.root.set_file(&path("f"), &directory(0o644, time(1)), &seen).unwrap_err().is_conflict()
        );
    }

    #[test]
    fn an_edited_file_is_not_removed() {
        let fixture = Fixture::new();
        fs::write(fixture.at("f"), "old").unwrap();
        let seen = fixture.root.stat(&path("f")).unwrap().unwrap().identity;
        fs::write(fixture.at("f"), "edited").unwrap();
        assert!(fixture.root.remove_file(&path("f"), Some(&seen)).unwrap_err().is_conflict());
        assert_eq!(fs::read(fixture.at("f")).unwrap(), b"edited");
        fixture.root.remove_file(&path("f"), None).unwrap();
        assert!(fixture.root.remove_file(&path("f"), None).unwrap_err().is_not_found());
    }

    #[test]
    fn directories_and_files_are_not_removed_for_each_other() {
        let fixture = Fixture::new();
        fs::create_dir(fixture.at("d")).unwrap();
        fs::write(fixture.at("d/f"), "").unwrap();
        assert!(fixture.root.remove_file(&path("d"), None).is_err());
        assert!(fixture.root.remove_directory(&path("d/f")).unwrap_err().is_in_the_way());
        assert!(fixture.root.remove_directory(&path("d")).is_err());
        assert!(fixture.at("d/f").exists());
    }
}
