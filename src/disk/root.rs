//! `Root`: a directory handle that nothing climbs out of.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, OFlags, fchmod, flock, fstat, fstatvfs, futimens, mkdirat, openat,
    readlinkat, statat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::disk::error::{DiskError, During, Fault};
use crate::disk::resolve::{PASSAGE, Resolver};
use crate::disk::stat::{FileKind, Identity, Stat, times};
use crate::tree::entry::{MODE_MASK, Time};
use crate::tree::path::TreePath;

/// Set-user-id and set-group-id: rights that a tree from elsewhere must not hand out.
const SET_ID_BITS: u16 = 0o6000;

/// A directory must keep these while it is being filled.
const FILLING_BITS: u16 = 0o700;

/// Flags to read a directory or to set its metadata.
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What a tree from elsewhere may set here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// Keep set-user-id and set-group-id bits.
    pub special_bits: bool,
}

impl Policy {
    /// `mode` without the bits that may not be set.
    #[must_use]
    pub fn mode(self, mode: u16) -> u16 {
        mode & if self.special_bits { MODE_MASK } else { MODE_MASK & !SET_ID_BITS }
    }
}

/// What the filesystem has left for this user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes.
    pub bytes: u64,
    /// Files and directories; `u64::MAX` where the filesystem does not count them.
    pub inodes: u64,
}

/// A directory, and the only way to what is below it.
///
/// Every operation starts at the directory's own descriptor and follows no link; nothing between root and
/// entry is remembered from one operation to the next, since a remembered directory may have been moved.
/// The price is one `openat2` an operation, about 1 µs.
#[derive(Debug)]
pub struct Root {
    descriptor: OwnedFd,
    path: PathBuf,
    resolver: Resolver,
    policy: Policy,
    dev: u64,
    ino: u64,
}

/// The directory that holds an entry, and the entry's name in it.
pub(crate) struct Place<'a> {
    directory: Option<OwnedFd>,
    root: BorrowedFd<'a>,
    pub(crate) name: &'a [u8],
}

impl AsFd for Place<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_ref().map_or(self.root, |directory| directory.as_fd())
    }
}

impl Root {
    /// The existing directory `path`, which is the user's own: links in it are followed.
    ///
    /// # Errors
    /// Nothing is there, or no directory, or it cannot be read.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        let bytes = path.as_os_str().as_bytes();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = openat(CWD, path, flags, Mode::empty()).during("open", bytes)?;
        let stat = fstat(&descriptor).during("look at", bytes)?;
        let stat = Stat::of(&stat).ok_or_else(|| DiskError::new("look at", bytes, Fault::OutOfRange))?;
        let resolver = Resolver::probe(descriptor.as_fd());
        let Identity { dev, ino, .. } = stat.identity;
        Ok(Self { descriptor, path: path.to_owned(), resolver, policy: Policy::default(), dev, ino })
    }

    /// As [`Root::open`], but makes the directory and its parents where they are missing.
    ///
    /// # Errors
    /// It cannot be made or opened.
    pub fn create(path: &Path) -> Result<Self, DiskError> {
        std::fs::create_dir_all(path).during("make", path.as_os_str().as_bytes())?;
        Self::open(path)
    }

    /// The same root with other rules for what may be set in it.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// The same root without the kernel's help.
    #[cfg(test)]
    pub(crate) fn walking(self) -> Self {
        Self { resolver: Resolver::Walk, ..self }
    }

    /// What may be set in this root.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// The path as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The filesystem this directory is in.
    #[must_use]
    pub fn dev(&self) -> u64 {
        self.dev
    }

    /// Whether the path still leads to this directory: it was not replaced, removed or unmounted.
    #[must_use]
    pub fn is_still_there(&self) -> bool {
        let there = statat(CWD, &self.path, AtFlags::empty()).ok().and_then(|stat| Stat::of(&stat));
        there.is_some_and(|stat| (stat.identity.dev, stat.identity.ino) == (self.dev, self.ino))
    }

    /// Keeps other runs out until this root is dropped.
    ///
    /// # Errors
    /// [`DiskError::is_busy`] where another run is in.
    pub fn lock(&self) -> Result<(), DiskError> {
        let path = self.path.as_os_str().as_bytes();
        match flock(&self.descriptor, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(DiskError::new("lock", path, Fault::Busy)),
            result => result.during("lock", path),
        }
    }

    /// What the filesystem has left.
    ///
    /// # Errors
    /// The filesystem does not say.
    pub fn space(&self) -> Result<Space, DiskError> {
        let space =
            fstatvfs(&self.descriptor).during("ask for the space in", self.path.as_os_str().as_bytes())?;
        let inodes = if space.f_files == 0 { u64::MAX } else { space.f_favail };
        Ok(Space { bytes: space.f_bavail.saturating_mul(space.f_frsize), inodes })
    }

    /// A directory to be listed; `None` is the root.
    ///
    /// # Errors
    /// It is not there, no directory, or not readable.
    pub fn open_directory(&self, path: Option<&TreePath>) -> Result<OwnedFd, DiskError> {
        match path {
            Some(path) => self.descend(path, DIRECTORY).during("open", path.as_bytes()),
            None => openat(&self.descriptor, c".", DIRECTORY, Mode::empty())
                .during("open", self.path.as_os_str().as_bytes()),
        }
    }

    /// A regular file to be read, and what was known of it when it was opened.
    ///
    /// # Errors
    /// It is not there, not readable, or [`DiskError::is_not_regular`].
    pub fn open_file(&self, path: &TreePath) -> Result<(File, Stat), DiskError> {
        // Without NONBLOCK a FIFO would keep us waiting for somebody to write.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let descriptor = self.descend(path, flags).during("open", path.as_bytes())?;
        let stat = stat_of(&descriptor, path)?;
        if stat.kind() != FileKind::File {
            return Err(DiskError::new("read", path.as_bytes(), Fault::NotRegular));
        }
        Ok((File::from(descriptor), stat))
    }

    /// What is at `path`, itself and not what it may point to; `None` where nothing is.
    ///
    /// # Errors
    /// A link is on the way, or the directory may not be searched.
    pub fn stat(&self, path: &TreePath) -> Result<Option<Stat>, DiskError> {
        match self.place(path) {
            Ok(place) => stat_in(&place, path),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).during("look at", path.as_bytes()),
        }
    }

    /// Where the symbolic link `path` points to.
    ///
    /// # Errors
    /// It is not there or no link.
    pub fn read_link(&self, path: &TreePath) -> Result<Box<[u8]>, DiskError> {
        let target = self.place(path).and_then(|place| readlinkat(&place, place.name, Vec::new()));
        Ok(target.during("read", path.as_bytes())?.into_bytes().into())
    }

    /// Makes a directory that we can fill, whatever its final `mode`; the final one comes with
    /// [`Root::set_directory`]. A directory that is there already is fine and becomes writable for us.
    /// Says whether it was made.
    ///
    /// # Errors
    /// Something else is there, or the parent is not.
    pub fn make_directory(&self, path: &TreePath, mode: u16) -> Result<bool, DiskError> {
        const VERB: &str = "make the directory";
        let place = self.place(path).during(VERB, path.as_bytes())?;
        let raw = Mode::from_raw_mode((self.policy.mode(mode) | FILLING_BITS).into());
        match mkdirat(&place, place.name, raw) {
            Ok(()) => return Ok(true),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error).during(VERB, path.as_bytes()),
        }
        let descriptor =
            openat(&place, place.name, DIRECTORY, Mode::empty()).during(VERB, path.as_bytes())?;
        let stat = stat_of(&descriptor, path)?;
        if stat.mode & FILLING_BITS != FILLING_BITS {
            let raw = Mode::from_raw_mode((stat.mode | FILLING_BITS).into());
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
        let raw = Mode::from_raw_mode(self.policy.mode(mode).into());
        fchmod(&descriptor, raw).during(VERB, path.as_bytes())?;
        futimens(&descriptor, &times(mtime)).during(VERB, path.as_bytes())
    }

    /// The root's own mode and modification time, where they differ.
    ///
    /// # Errors
    /// It is not ours to change.
    pub fn set_self(&self, mode: u16, mtime: Time) -> Result<(), DiskError> {
        const VERB: &str = "set mode and time of";
        let path = self.path.as_os_str().as_bytes();
        let stat = fstat(&self.descriptor).during(VERB, path)?;
        let stat = Stat::of(&stat).ok_or_else(|| DiskError::new(VERB, path, Fault::OutOfRange))?;
        let mode = self.policy.mode(mode);
        if stat.mode != mode {
            fchmod(&self.descriptor, Mode::from_raw_mode(mode.into())).during(VERB, path)?;
        }
        if stat.mtime() != mtime {
            futimens(&self.descriptor, &times(mtime)).during(VERB, path)?;
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
        let raw = Mode::from_raw_mode(self.policy.mode(mode).into());
        fchmod(&file, raw).during(VERB, path.as_bytes())?;
        futimens(&file, &times(mtime)).during(VERB, path.as_bytes())?;
        stat_of(&file, path)
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

    /// The directory that holds `path`.
    pub(crate) fn place<'a>(&'a self, path: &'a TreePath) -> rustix::io::Result<Place<'a>> {
        let (parent, name) = path.split_last();
        let root = self.descriptor.as_fd();
        let directory = parent.map(|parent| self.resolver.open(root, parent, PASSAGE)).transpose()?;
        Ok(Place { directory, root, name })
    }

    /// The root's own descriptor.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    fn descend(&self, path: &TreePath, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        self.resolver.open(self.descriptor.as_fd(), path.as_bytes(), flags)
    }
}

/// What is known of an open descriptor.
pub(crate) fn stat_of(descriptor: impl AsFd, path: &TreePath) -> Result<Stat, DiskError> {
    let stat = fstat(descriptor).during("look at", path.as_bytes())?;
    Stat::of(&stat).ok_or_else(|| DiskError::new("look at", path.as_bytes(), Fault::OutOfRange))
}

/// What is in that place, if anything.
pub(crate) fn stat_in(place: &Place<'_>, path: &TreePath) -> Result<Option<Stat>, DiskError> {
    match statat(place, place.name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error).during("look at", path.as_bytes()),
        Ok(stat) => Stat::of(&stat)
            .map(Some)
            .ok_or_else(|| DiskError::new("look at", path.as_bytes(), Fault::OutOfRange)),
    }
}

/// A conflict unless that place holds what was `seen` there, which may be nothing.
pub(crate) fn check_unchanged(
    place: &Place<'_>,
    path: &TreePath,
    verb: &'static str,
    seen: Option<&Identity>,
) -> Result<(), DiskError> {
    let now = stat_in(place, path)?.map(|stat| stat.identity);
    if now.as_ref() == seen { Ok(()) } else { Err(DiskError::new(verb, path.as_bytes(), Fault::Conflict)) }
}
