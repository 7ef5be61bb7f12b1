//! Symbolic links: made aside, and given a time without trusting their name twice.

use std::sync::Arc;

use rustix::fs::{AtFlags, chownat, symlinkat, utimensat};

use crate::disk::error::{DiskError, During};
use crate::disk::stat::{Identity, times};
use crate::disk::state::LINK;
use crate::disk::writable::WritableRoot;
use crate::tree::attributes::Attributes;
use crate::tree::entry::Time;
use crate::tree::path::TreePath;

impl WritableRoot {
    /// Creates a symbolic link aside and renames it into place, if its path still holds the entry
    /// that was `seen` there (`None`: nothing). Owner and time are set in the state directory,
    /// where no other user can change names.
    ///
    /// # Errors
    /// [`DiskError::is_conflict`], or the path cannot be written to.
    pub fn make_symlink(
        &self,
        path: &TreePath,
        target: &[u8],
        mtime: Time,
        attributes: Option<&Attributes>,
        seen: Option<&Identity>,
    ) -> Result<(), DiskError> {
        const VERB: &str = "make the link";
        let name = self.staged_name(path, LINK);
        let state = self.with_state_for(path, |state| {
            state.remove(name.as_bytes())?;
            symlinkat(target, state, &*name).during(VERB, path.as_bytes())?;
            Ok(Arc::clone(state))
        })?;
        if let Some((user, group)) = self.owner_for(attributes) {
            chownat(&state, &*name, user, group, AtFlags::SYMLINK_NOFOLLOW)
                .during("set the owner of", path.as_bytes())?;
        }
        self.set_staged_xattrs(&state, &name, path, attributes)?;
        utimensat(&state, &*name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW).during(VERB, path.as_bytes())?;
        state.install(&name, None, self, path, seen).inspect_err(|_| {
            // A link is cheap to create again, and the first error is the one that matters.
            let _ = state.remove(name.as_bytes());
        })
    }

    /// Sets the modification time of the symbolic link that was `seen` there and points to
    /// `target`. If the system cannot set it on an open link, a new link replaces the old one.
    ///
    /// # Errors
    /// It is another link ([`DiskError::is_conflict`]), or this user may not change it.
    pub fn set_link_time(
        &self,
        path: &TreePath,
        target: &[u8],
        mtime: Time,
        seen: &Identity,
    ) -> Result<(), DiskError> {
        if self.set_open_link_time(path, mtime, seen)? {
            return Ok(());
        }
        self.make_symlink(path, target, mtime, None, Some(seen))
    }

    /// Sets the time on a descriptor of the link; `false` if the system cannot (Linux before 5.8).
    #[cfg(target_os = "linux")]
    fn set_open_link_time(&self, path: &TreePath, mtime: Time, seen: &Identity) -> Result<bool, DiskError> {
        use rustix::fs::OFlags;
        use rustix::io::Errno;

        use crate::disk::error::DiskErrorKind;
        use crate::disk::root::stat_of;

        const VERB: &str = "set the time of";
        let link = self.descend(path, OFlags::PATH | OFlags::NOFOLLOW).during(VERB, path.as_bytes())?;
        if stat_of(&link, path)?.identity != *seen {
            return Err(DiskError::new(VERB, path.as_bytes(), DiskErrorKind::Conflict));
        }
        match utimensat(&link, c"", &times(mtime), AtFlags::EMPTY_PATH) {
            Err(Errno::INVAL | Errno::BADF) => Ok(false),
            result => result.map(|()| true).during(VERB, path.as_bytes()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps)]
    fn set_open_link_time(&self, _: &TreePath, _: Time, _: &Identity) -> Result<bool, DiskError> {
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::disk::testing::{Fixture, path, time};

    fn seen(fixture: &Fixture) -> Option<Identity> {
        fixture.root.stat(&path("f")).unwrap().map(|stat| stat.identity)
    }

    #[test]
    fn a_link_replaces_only_the_entry_that_was_seen() {
        let fixture = Fixture::new();
        let make =
            |seen: Option<&Identity>| fixture.root.make_symlink(&path("f"), b"to/there", time(7), None, seen);
        fs::write(fixture.at("f"), "old").unwrap();
        assert!(make(None).unwrap_err().is_conflict());
        make(seen(&fixture).as_ref()).unwrap();
        assert_eq!(&*fixture.root.read_link(&path("f")).unwrap(), b"to/there");
        assert_eq!(fixture.root.stat(&path("f")).unwrap().unwrap().mtime(), time(7));
        assert_eq!(fs::read_dir(fixture.at(".ksync")).unwrap().count(), 0);
    }

    #[test]
    fn a_link_keeps_its_target_when_its_time_is_set() {
        let fixture = Fixture::new();
        symlink("to/there", fixture.at("f")).unwrap();
        let before = seen(&fixture).unwrap();
        fixture.root.set_link_time(&path("f"), b"to/there", time(7), &before).unwrap();
        assert_eq!(&*fixture.root.read_link(&path("f")).unwrap(), b"to/there");
        assert_eq!(seen(&fixture).unwrap().mtime, time(7));
    }

    #[test]
    fn a_file_in_a_links_place_keeps_its_time() {
        let fixture = Fixture::new();
        symlink("to/there", fixture.at("f")).unwrap();
        let before = seen(&fixture).unwrap();
        fs::remove_file(fixture.at("f")).unwrap();
        fs::write(fixture.at("f"), "other").unwrap();
        let written = seen(&fixture);
        let error = fixture.root.set_link_time(&path("f"), b"to/there", time(7), &before).unwrap_err();
        assert!(error.is_conflict(), "{error}");
        assert_eq!(seen(&fixture), written);
    }
}
