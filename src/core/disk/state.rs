//! The state directory: holds unfinished files, out of the users' sight.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FlockOperation, Mode, OFlags, fchmod, flock, fstat, mkdirat, openat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::content::hash::Hash;
use crate::content::hex::to_hex;
use crate::disk::closing::CloseErrors;
use crate::disk::error::{DiskError, DiskErrorKind, During};
use crate::disk::resolve::DIRECTORY;
use crate::disk::root::Root;
use crate::disk::stat::{FileKind, Identity, Stat, is_same_inode};
use crate::disk::swap::{Ready, rename_into};
use crate::tree::path::{STATE_DIR, TreePath};

/// Suffix of a file that is not complete yet.
pub(crate) const PART: &str = ".part";

/// Suffix of a symbolic link that is not in place yet.
pub(crate) const LINK: &str = ".link";

/// Suffix of a directory that is not in place yet.
pub(crate) const DIRECTORY_MADE: &str = ".dir";

/// Suffix of an entry that is being removed.
pub(crate) const GONE: &str = ".gone";

/// The directory's mode: only this user may list and change it.
const PRIVATE: u32 = 0o700;

/// An open state directory: a directory of our own directly below the root, and no link to one.
#[derive(Debug)]
pub(crate) struct StateDir {
    descriptor: OwnedFd,
    close_errors: CloseErrors,
}

impl AsFd for StateDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl StateDir {
    /// Reports write errors of what is staged in it.
    pub(crate) fn close_errors(&self) -> &CloseErrors {
        &self.close_errors
    }

    /// The state directory of a directory, if there is one.
    pub(crate) fn open(directory: impl AsFd) -> Result<Option<Self>, DiskError> {
        match openat(directory, STATE_DIR, DIRECTORY, Mode::empty()) {
            Ok(descriptor) => own(descriptor).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => Err(refused()),
            Err(error) => Err(error).during("open", STATE_DIR.as_bytes()),
        }
    }

    /// The state directory of a directory, created if it is missing.
    pub(crate) fn create(directory: impl AsFd) -> Result<Self, DiskError> {
        // Runs that end remove it while others begin.
        const ATTEMPTS: usize = 16;
        for _ in 0..ATTEMPTS {
            if let Some(there) = Self::open(&directory)? {
                return Ok(there);
            }
            match mkdirat(&directory, STATE_DIR, Mode::from_raw_mode(PRIVATE as _)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).during("make the directory", STATE_DIR.as_bytes()),
            }
        }
        Self::open(directory)?.ok_or_else(refused)
    }

    /// Removes `name`, whatever its kind; a missing entry is no error.
    pub(crate) fn remove(&self, name: &[u8]) -> Result<(), DiskError> {
        match unlinkat(&self.descriptor, name, AtFlags::empty()) {
            // Linux and POSIX have different errors for "that is a directory".
            Err(Errno::ISDIR | Errno::PERM) => unlinkat(&self.descriptor, name, AtFlags::REMOVEDIR),
            Err(Errno::NOENT) => Ok(()),
            result => result,
        }
        .during("remove", &in_state(name))
    }

    /// Opens the staged file `name` and locks it against other runs. A file that another user can
    /// write to or watch is replaced by an empty one.
    pub(crate) fn open_part(&self, name: &str) -> Result<(OwnedFd, u64), DiskError> {
        const ATTEMPTS: usize = 3;
        // Without NONBLOCK, opening a planted FIFO would wait for a writer.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let staged_path = in_state(name.as_bytes());
        for _ in 0..ATTEMPTS {
            match openat(&self.descriptor, name, flags, Mode::RUSR | Mode::WUSR) {
                Ok(descriptor) => {
                    match flock(&descriptor, FlockOperation::NonBlockingLockExclusive) {
                        Err(Errno::WOULDBLOCK) => {
                            return Err(DiskError::new("write to", &staged_path, DiskErrorKind::Busy));
                        }
                        result => result.during("lock", &staged_path)?,
                    }
                    let stat = fstat(&descriptor).during("look at", &staged_path)?;
                    // The previous holder of the lock may have renamed the file into place, where
                    // it must not be written to any more.
                    let named = statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW);
                    if !named.is_ok_and(|named| is_same_inode(&named, &stat)) {
                        continue;
                    }
                    let own = Stat::of(&stat).filter(|stat| {
                        stat.kind() == FileKind::File && stat.nlink == 1 && stat.uid == geteuid().as_raw()
                    });
                    if let Some(stat) = own {
                        return Ok((descriptor, stat.size()));
                    }
                }
                Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO | Errno::ACCESS | Errno::TXTBSY) => {}
                Err(error) => return Err(error).during("make", &staged_path),
            }
            self.remove(name.as_bytes())?;
        }
        Err(DiskError::new("make", &staged_path, DiskErrorKind::NotOurs))
    }

    /// Creates an empty directory called `name`, and opens it for filling. An earlier run's entry
    /// of that name is removed first.
    pub(crate) fn make_directory(&self, name: &str) -> Result<OwnedFd, DiskError> {
        let make = || mkdirat(&self.descriptor, name, Mode::from_raw_mode(PRIVATE as _));
        let staged_path = in_state(name.as_bytes());
        match make() {
            Err(Errno::EXIST) => {
                self.remove(name.as_bytes())?;
                make()
            }
            result => result,
        }
        .and_then(|()| openat(&self.descriptor, name, DIRECTORY, Mode::empty()))
        .during("make the directory", &staged_path)
    }

    /// Renames the staged file `name` to `path`.
    pub(crate) fn install(
        &self,
        name: &str,
        identity: Option<Identity>,
        root: &Root,
        path: &TreePath,
        seen: Option<&Identity>,
    ) -> Result<(), DiskError> {
        const VERB: &str = "replace";
        let location = root.locate(path).during(VERB, path.as_bytes())?;
        rename_into(&self.descriptor, Ready { name: name.as_bytes(), identity }, &location, path, VERB, seen)
    }
}

/// The name under which `path` is staged: a hash and the `ending`. It has the same length for every
/// path, and is the same in every run.
pub(crate) fn staged_name(path: &TreePath, ending: &str) -> String {
    let hash = Hash::of(path.as_bytes());
    let (half, _) = hash.as_bytes().split_at(16);
    to_hex(half) + ending
}

/// The path of `name` below the root, for errors.
pub(crate) fn in_state(name: &[u8]) -> Vec<u8> {
    [STATE_DIR.as_bytes(), b"/", name].concat()
}

/// Removes the staged files of one state directory whose names `is_left` accepts.
pub(crate) fn clear_in(
    directory: BorrowedFd<'_>,
    state: &StateDir,
    is_left: impl Fn(&[u8]) -> bool,
) -> Result<usize, DiskError> {
    let endings = [PART, LINK, DIRECTORY_MADE, GONE].map(str::as_bytes);
    let is_staged = |name: &[u8]| endings.iter().any(|ending| name.ends_with(ending));
    let mut leftovers = Vec::new();
    for entry in Dir::read_from(state).during("list", STATE_DIR.as_bytes())? {
        let entry = entry.during("list", STATE_DIR.as_bytes())?;
        let name = entry.file_name().to_bytes();
        if is_staged(name) && is_left(name) {
            leftovers.push(name.to_owned());
        }
    }
    for name in &leftovers {
        state.remove(name)?;
    }
    match unlinkat(directory, STATE_DIR, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => Ok(leftovers.len()),
        Err(error) => Err(error).during("remove the directory", STATE_DIR.as_bytes()),
    }
}

/// Count of the staged files that earlier runs left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Staged {
    /// Number of files.
    pub files: u64,
    /// Bytes that they occupy on the disk.
    pub bytes: u64,
}

impl Staged {
    /// Adds the files of one state directory whose names `is_own` accepts.
    pub(crate) fn add(&mut self, state: &StateDir, is_own: impl Fn(&[u8]) -> bool) -> Result<(), DiskError> {
        for entry in Dir::read_from(state).during("list", STATE_DIR.as_bytes())?.filter_map(Result::ok) {
            let name = entry.file_name();
            if name.to_bytes().ends_with(PART.as_bytes()) && is_own(name.to_bytes()) {
                let stat = statat(state, name, AtFlags::SYMLINK_NOFOLLOW).ok();
                self.files += 1;
                self.bytes += stat.and_then(|stat| Stat::of(&stat)).map_or(0, |stat| stat.allocated_bytes);
            }
        }
        Ok(())
    }
}

fn own(descriptor: OwnedFd) -> Result<StateDir, DiskError> {
    let stat = fstat(&descriptor).during("look at", STATE_DIR.as_bytes())?;
    if stat.st_uid != geteuid().as_raw() {
        return Err(refused());
    }
    if Mode::from_raw_mode(stat.st_mode) != Mode::from_raw_mode(PRIVATE as _) {
        fchmod(&descriptor, Mode::from_raw_mode(PRIVATE as _))
            .during("keep private", STATE_DIR.as_bytes())?;
    }
    Ok(StateDir { descriptor, close_errors: CloseErrors::default() })
}

fn refused() -> DiskError {
    DiskError::new("use", STATE_DIR.as_bytes(), DiskErrorKind::NotOurs)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::disk::clear_leftovers;
    use crate::disk::testing::{Fixture, give_away, path};

    #[test]
    fn the_state_directory_is_private_and_removed_when_empty() {
        let fixture = Fixture::new();
        StateDir::create(fixture.root.descriptor()).unwrap();
        assert_eq!(fixture.at(".ksync").metadata().unwrap().mode() & 0o7777, 0o700);
        fs::write(fixture.at(".ksync/0.part"), "").unwrap();
        fs::write(fixture.at(".ksync/1.part"), "").unwrap();
        assert_eq!(clear_leftovers(&fixture.root, |name| name == b"1.part").unwrap(), 1);
        assert!(fixture.at(".ksync/1.part").exists());
        assert_eq!(clear_leftovers(&fixture.root, |_| false).unwrap(), 1);
        assert!(!fixture.at(".ksync").exists());
    }

    #[test]
    fn unknown_files_in_the_state_directory_are_no_leftovers() {
        let fixture = Fixture::new();
        StateDir::create(fixture.root.descriptor()).unwrap();
        fs::write(fixture.at(".ksync/manifest"), "").unwrap();
        assert_eq!(clear_leftovers(&fixture.root, |_| false).unwrap(), 0);
        assert!(fixture.at(".ksync/manifest").exists());
    }

    #[test]
    fn a_link_or_a_file_as_state_directory_is_refused() {
        let fixture = Fixture::new();
        symlink(fixture.outside(), fixture.at(".ksync")).unwrap();
        assert!(matches!(
            StateDir::create(fixture.root.descriptor()).err().unwrap().reason(),
            DiskErrorKind::NotOurs
        ));
        fs::remove_file(fixture.at(".ksync")).unwrap();
        fs::write(fixture.at(".ksync"), "").unwrap();
        assert!(StateDir::create(fixture.root.descriptor()).is_err());
        fixture.assert_canary_untouched();
    }

    #[test]
    fn a_readable_state_directory_becomes_private() {
        let fixture = Fixture::new();
        fs::create_dir(fixture.at(".ksync")).unwrap();
        fs::set_permissions(fixture.at(".ksync"), fs::Permissions::from_mode(0o777)).unwrap();
        StateDir::create(fixture.root.descriptor()).unwrap();
        assert_eq!(fixture.at(".ksync").metadata().unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn a_state_directory_of_another_user_is_refused() {
        let fixture = Fixture::new();
        fs::create_dir(fixture.at(".ksync")).unwrap();
        if give_away(&fixture.at(".ksync")) {
            assert!(matches!(
                StateDir::create(fixture.root.descriptor()).err().unwrap().reason(),
                DiskErrorKind::NotOurs
            ));
        }
    }

    #[test]
    fn staged_names_depend_on_the_path_only() {
        let name = staged_name(&path("a/b"), PART);
        assert_eq!(name, staged_name(&path("a/b"), PART));
        assert_ne!(name, staged_name(&path("a/c"), PART));
        assert_eq!(name.len(), 32 + PART.len());
    }
}
