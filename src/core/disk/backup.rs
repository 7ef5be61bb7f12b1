//! Backups: a further name for an entry that is about to be replaced or removed.
//!
//! The backup is a hard link, made before the entry goes. So at each instant at least one of the
//! two names leads to the old content, and no content is copied. Where the filesystem has no hard
//! links, and in a backup directory on another filesystem, the backup is a copy.

use std::sync::Arc;

use rustix::fs::{AtFlags, linkat, renameat};
use rustix::io::Errno;

use crate::disk::error::{DiskError, DiskErrorKind, During};
use crate::disk::root::{check_unchanged, stat_in};
use crate::disk::stage::{Durability, Metadata, Staging};
use crate::disk::stat::{FileKind, Identity};
use crate::disk::state::LINK;
use crate::disk::writable::WritableRoot;
use crate::disk::xattr::{self, Namespaces};
use crate::tree::attributes::Attributes;
use crate::tree::path::TreePath;

const VERB: &str = "back up";

impl WritableRoot {
    /// Makes a backup of the file or link at `path`: the entry `to` of `backups`, whose directory
    /// must exist. Replaces an older backup. `seen` is the identity on which the decision was made.
    /// Unless it `may_link`, the backup is a copy: the file itself is about to be written into.
    /// Returns the identity of the entry, whose ctime a hard link changes.
    ///
    /// # Errors
    /// It is no longer the entry that was seen ([`DiskError::is_conflict`]), or `to` cannot be
    /// written.
    pub fn back_up(
        &self,
        path: &TreePath,
        seen: &Identity,
        backups: &WritableRoot,
        to: &TreePath,
        may_link: bool,
    ) -> Result<Identity, DiskError> {
        let location = self.locate(path).during(VERB, path.as_bytes())?;
        check_unchanged(&location, path, VERB, Some(seen))?;
        if !may_link {
            self.copy_as_backup(path, seen, backups, to)?;
            return Ok(*seen);
        }
        // First, since each new name changes the ctime.
        let place = backups.locate(to).during(VERB, to.as_bytes())?;
        let name = backups.staged_name(to, LINK);
        let state = backups.with_state_for(to, |state| {
            state.remove(name.as_bytes())?;
            Ok(Arc::clone(state))
        })?;
        match linkat(&location, location.name, &*state, &*name, AtFlags::empty()) {
            Ok(()) => {}
            // Another filesystem, none with hard links, too many of them, or a file of another
            // user that the kernel protects.
            Err(Errno::XDEV | Errno::PERM | Errno::NOTSUP | Errno::NOSYS | Errno::MLINK | Errno::ACCESS) => {
                self.copy_as_backup(path, seen, backups, to)?;
                return Ok(*seen);
            }
            Err(error) => return Err(error).during(VERB, path.as_bytes()),
        }
        let is_same = |now: &Identity| Identity { ctime: seen.ctime, ..*now } == *seen;
        let same_as_seen = || {
            let now = stat_in(&location, path)?.map(|stat| stat.identity).filter(is_same);
            now.ok_or_else(|| DiskError::new(VERB, path.as_bytes(), DiskErrorKind::Conflict))
        };
        let linked = || {
            same_as_seen()?;
            renameat(&*state, &*name, &place, place.name).during(VERB, to.as_bytes())?;
            same_as_seen()
        };
        let linked = linked();
        // A rename onto another name of the same file changes nothing, and leaves this one.
        let _ = state.remove(name.as_bytes());
        linked
    }

    /// Copies an entry to its backup.
    pub(crate) fn copy_as_backup(
        &self,
        path: &TreePath,
        seen: &Identity,
        backups: &WritableRoot,
        to: &TreePath,
    ) -> Result<(), DiskError> {
        let before = backups.stat(to)?.map(|stat| stat.identity);
        if seen.kind == FileKind::Symlink {
            let target = self.read_link(path)?;
            return backups.make_symlink(to, &target, seen.mtime, None, before.as_ref());
        }
        let (file, stat) = self.open_file(path)?;
        if stat.identity != *seen {
            return Err(DiskError::new(VERB, path.as_bytes(), DiskErrorKind::Conflict));
        }
        let (mut staging, _) = Staging::open(backups, to)?;
        staging.keep(0)?;
        staging.append_from(&file, 0, seen.size)?;
        let owner = Attributes { user: Some(stat.uid), group: Some(stat.gid), ..Attributes::default() };
        // The copy has no ACL, whose mask is what the mode shows for the group.
        let acls = xattr::read(&file, Namespaces { acls: true, ..Namespaces::default() });
        let mode = if acls.is_ok_and(|acls| acls.is_empty()) { stat.mode } else { stat.mode & !0o070 };
        let metadata = Metadata { mode, mtime: stat.mtime(), attributes: Some(Arc::new(owner)) };
        let complete = staging.complete(backups, &metadata, Durability::Eventually)?;
        complete.install(backups, before.as_ref()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;
    use crate::disk::testing::{Fixture, path};

    fn seen(root: &WritableRoot, name: &str) -> Identity {
        root.stat(&path(name)).unwrap().unwrap().identity
    }

    #[test]
    fn backup_is_the_same_file_under_a_further_name() {
        let fixture = Fixture::new();
        fs::write(fixture.at("f"), "old").unwrap();
        fs::write(fixture.at("f~"), "older").unwrap();
        let root = &fixture.root;
        let now = root.back_up(&path("f"), &seen(root, "f"), root, &path("f~"), true).unwrap();
        assert_eq!(now, seen(root, "f"));
        assert_eq!(fs::read(fixture.at("f~")).unwrap(), b"old");
        assert_eq!(fixture.at("f").metadata().unwrap().ino(), fixture.at("f~").metadata().unwrap().ino());
        // Once more, as after a run that was killed in between.
        root.back_up(&path("f"), &now, root, &path("f~"), true).unwrap();
        assert_eq!(fs::read_dir(fixture.at(".ksync")).unwrap().count(), 0);
        symlink("to/there", fixture.at("l")).unwrap();
        root.back_up(&path("l"), &seen(root, "l"), root, &path("l~"), true).unwrap();
        assert_eq!(fs::read_link(fixture.at("l~")).unwrap().to_str(), Some("to/there"));
    }

    #[test]
    fn backup_of_a_file_that_is_written_into_is_a_copy() {
        let fixture = Fixture::new();
        fs::write(fixture.at("f"), "old").unwrap();
        let root = &fixture.root;
        root.back_up(&path("f"), &seen(root, "f"), root, &path("f~"), false).unwrap();
        assert_eq!(fixture.at("f").metadata().unwrap().nlink(), 1);
        assert_eq!(fs::read(fixture.at("f~")).unwrap(), b"old");
    }

    #[test]
    fn edited_file_is_not_backed_up() {
        let fixture = Fixture::new();
        fs::write(fixture.at("f"), "old").unwrap();
        let before = seen(&fixture.root, "f");
        fs::write(fixture.at("f"), "edited").unwrap();
        let failed = fixture.root.back_up(&path("f"), &before, &fixture.root, &path("f~"), true);
        assert!(failed.unwrap_err().is_conflict());
        assert!(!fixture.at("f~").exists());
    }

    #[test]
    fn backup_never_leaves_its_root() {
        let fixture = Fixture::new();
        fs::write(fixture.at("f"), "old").unwrap();
        symlink(fixture.outside(), fixture.at("d")).unwrap();
        let root = &fixture.root;
        root.back_up(&path("f"), &seen(root, "f"), root, &path("d/f"), true).unwrap_err();
        fixture.assert_canary_untouched();
    }

    #[test]
    fn copied_backup_has_content_mode_and_time() {
        let fixture = Fixture::new();
        fs::write(fixture.at("f"), "old").unwrap();
        symlink("to/there", fixture.at("l")).unwrap();
        let root = &fixture.root;
        for name in ["f", "l"] {
            let to = path(format!("{name}~"));
            root.copy_as_backup(&path(name), &seen(root, name), root, &to).unwrap();
            root.copy_as_backup(&path(name), &seen(root, name), root, &to).unwrap();
            let (old, new) = (root.stat(&path(name)).unwrap().unwrap(), root.stat(&to).unwrap().unwrap());
            assert_eq!((old.mode, old.mtime(), old.kind()), (new.mode, new.mtime(), new.kind()));
        }
        assert_eq!(fs::read(fixture.at("f~")).unwrap(), b"old");
        assert_eq!(fs::read_link(fixture.at("l~")).unwrap().to_str(), Some("to/there"));
    }
}
