//! Devices, named pipes and sockets: made aside, and renamed into place with their metadata.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, chmod, chownat, openat, utimensat};

use crate::disk::error::{DiskError, During};
use crate::disk::stage::Metadata;
use crate::disk::stat::{Identity, mode_bits, times};
use crate::disk::state::{LINK, StateDir};
use crate::disk::writable::WritableRoot;
use crate::tree::attributes::{Attributes, Special};
use crate::tree::path::TreePath;

impl WritableRoot {
    /// Creates a special file aside and renames it into place, if its path still holds the entry
    /// that was `seen` there (`None`: nothing).
    ///
    /// # Errors
    /// [`DiskError::is_conflict`], or the path cannot be written to, or only the superuser may make
    /// such an entry.
    pub fn make_special(
        &self,
        path: &TreePath,
        special: Special,
        metadata: &Metadata,
        seen: Option<&Identity>,
    ) -> Result<(), DiskError> {
        const VERB: &str = "make the special file";
        let name = self.staged_name(path, LINK);
        let state = self.with_state_for(path, |state| {
            state.remove(name.as_bytes())?;
            make_node(state, &name, special).during(VERB, path.as_bytes())?;
            Ok(Arc::clone(state))
        })?;
        let attributes = metadata.attributes.as_deref();
        if let Some((user, group)) = self.owner_for(attributes) {
            chownat(&state, &*name, user, group, AtFlags::SYMLINK_NOFOLLOW)
                .during("set the owner of", path.as_bytes())?;
        }
        self.set_staged_xattrs(&state, &name, path, attributes)?;
        // No other user can change a name in the state directory.
        let node = openat(&state, &*name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .during(VERB, path.as_bytes())?;
        let mode = mode_bits(self.policy().mode(metadata.mode));
        chmod(format!("/proc/self/fd/{}", node.as_raw_fd()), mode)
            .during("set the mode of", path.as_bytes())?;
        utimensat(&state, &*name, &times(metadata.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .during("set the time of", path.as_bytes())?;
        state.install(&name, None, self, path, seen).inspect_err(|_| {
            // A special file is cheap to create again.
            let _ = state.remove(name.as_bytes());
        })
    }

    /// Sets the extended attributes of a staged link or special file.
    pub(crate) fn set_staged_xattrs(
        &self,
        state: &StateDir,
        name: &str,
        path: &TreePath,
        attributes: Option<&Attributes>,
    ) -> Result<(), DiskError> {
        if !self.policy().namespaces.any() {
            return Ok(());
        }
        let staged = openat(state, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .during("open", path.as_bytes())?;
        self.set_xattrs(&staged, path.as_bytes(), attributes)
    }
}

#[cfg(target_os = "linux")]
fn make_node(state: &StateDir, name: &str, special: Special) -> rustix::io::Result<()> {
    use rustix::fs::{FileType, mknodat};

    let (kind, number) = match special {
        Special::Fifo => (FileType::Fifo, 0),
        Special::Socket => (FileType::Socket, 0),
        Special::Character(number) => (FileType::CharacterDevice, number),
        Special::Block(number) => (FileType::BlockDevice, number),
    };
    mknodat(state, name, kind, Mode::RUSR | Mode::WUSR, number)
}

#[cfg(not(target_os = "linux"))]
fn make_node(_state: &StateDir, _name: &str, _special: Special) -> rustix::io::Result<()> {
    Err(rustix::io::Errno::NOTSUP)
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    use super::*;
    use crate::disk::testing::skip::needs_superuser;
    use crate::disk::testing::{Fixture, metadata, path, time};

    #[test]
    fn special_files_replace_only_what_was_seen() {
        let fixture = Fixture::new();
        std::fs::write(fixture.at("f"), "old").unwrap();
        let make = |seen| fixture.root.make_special(&path("f"), Special::Fifo, &metadata(), seen);
        assert!(make(None).unwrap_err().is_conflict());
        let seen = fixture.root.stat(&path("f")).unwrap().unwrap().identity;
        make(Some(&seen)).unwrap();
        let made = fixture.at("f").symlink_metadata().unwrap();
        assert!(made.file_type().is_fifo() && made.mode() & 0o7777 == 0o644);
        assert_eq!(fixture.root.stat(&path("f")).unwrap().unwrap().mtime(), time(1));
        assert_eq!(std::fs::read_dir(fixture.at(".ksync")).unwrap().count(), 0);
    }

    #[test]
    fn device_keeps_its_number() {
        if !needs_superuser() {
            return;
        }
        let fixture = Fixture::new();
        let null = std::fs::metadata("/dev/null").unwrap().rdev();
        let made = fixture.root.make_special(&path("n"), Special::Character(null), &metadata(), None);
        made.unwrap();
        let made = fixture.at("n").symlink_metadata().unwrap();
        assert!(made.file_type().is_char_device() && made.rdev() == null);
    }
}
