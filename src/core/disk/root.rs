//! `Root`: a directory handle that no path climbs out of.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, openat, readlinkat, statat, unlinkat};
use rustix::io::Errno;

use crate::disk::attributes;
use crate::disk::error::{DiskError, DiskErrorKind, During};
use crate::disk::resolve::{DIRECTORY, PASSAGE, Resolver};
use crate::disk::stat::{FileKind, Identity, Inode, Stat, check_inode_numbers};
use crate::disk::typed_path;
use crate::tree::attributes::Attributes;
use crate::tree::links::FollowedLinks;
use crate::tree::metadata::MetadataOptions;
use crate::tree::path::TreePath;

/// A directory, and the only way to the entries below it.
///
/// Every operation starts at the directory's own descriptor and follows no link. Between operations
/// the root keeps no directory open, since a kept directory may have been moved. The price is one
/// `openat2` per operation, about 1 µs.
#[derive(Debug)]
pub struct Root {
    descriptor: OwnedFd,
    path: PathBuf,
    resolver: Resolver,
    dev: u64,
    ino: u64,
}

/// Pins a root's device and inode number. While the pin is held, no other directory can get these
/// numbers. Without it a filesystem gives the inode number of a removed directory to the next new
/// one, often at once.
#[derive(Debug)]
pub struct Pin {
    _held: OwnedFd,
    dev: u64,
    ino: u64,
}

impl Pin {
    /// True if `root` is the pinned directory.
    #[must_use]
    pub fn is(&self, root: &Root) -> bool {
        (self.dev, self.ino) == (root.dev, root.ino)
    }
}

/// The directory that holds an entry, and the entry's name in it.
pub(crate) struct Location<'a> {
    directory: Option<OwnedFd>,
    root: BorrowedFd<'a>,
    pub(crate) name: &'a [u8],
}

impl AsFd for Location<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_ref().map_or(self.root, |directory| directory.as_fd())
    }
}

impl Root {
    /// Opens the existing directory `path`. The user named this path, so links in it are followed.
    ///
    /// # Errors
    /// Nothing is at `path`, or no directory, or it cannot be read.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor =
            openat(CWD, path, flags, Mode::empty()).during("open", path.as_os_str().as_bytes())?;
        Self::of(descriptor, path)
    }

    /// The same for a directory of the receiver. Links of other users are not followed: they could
    /// lead the writes of root anywhere.
    ///
    /// # Errors
    /// As [`Self::open`], or such a link is on the way.
    pub fn open_for_receiver(path: &Path) -> Result<Self, DiskError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let opened = typed_path::open(path, flags, Mode::empty());
        Self::of(opened.during("open", path.as_os_str().as_bytes())?, path)
    }

    /// Makes a root of the open directory that was found at `path`.
    pub(crate) fn of(descriptor: OwnedFd, path: &Path) -> Result<Self, DiskError> {
        let bytes = path.as_os_str().as_bytes();
        check_inode_numbers(&descriptor).during("look at", bytes)?;
        let stat = fstat(&descriptor).during("look at", bytes)?;
        let stat =
            Stat::of(&stat).ok_or_else(|| DiskError::new("look at", bytes, DiskErrorKind::OutOfRange))?;
        let resolver = Resolver::probe(descriptor.as_fd());
        let Identity { dev, ino, .. } = stat.identity;
        Ok(Self { descriptor, path: path.to_owned(), resolver, dev, ino })
    }

    /// The same root, resolving paths without `openat2`.
    #[cfg(test)]
    pub(crate) fn walking(self) -> Self {
        Self { resolver: Resolver::Walk, ..self }
    }

    /// The same root, whose paths lead through these links.
    #[must_use]
    pub fn following(self, links: FollowedLinks) -> Self {
        let follow = Resolver::Follow { files: links.may_lead_to_files() };
        Self { resolver: if links.any() { follow } else { self.resolver }, ..self }
    }

    /// The path as the caller gave it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The device number of this directory's filesystem.
    #[must_use]
    pub fn dev(&self) -> u64 {
        self.dev
    }

    pub(crate) fn inode(&self) -> Inode {
        Inode { dev: self.dev, ino: self.ino }
    }

    /// Pins this directory's identity, but not a lock on it.
    ///
    /// # Errors
    /// The directory cannot be opened a second time.
    pub fn pin(&self) -> Result<Pin, DiskError> {
        Ok(Pin { _held: self.open_directory(None)?, dev: self.dev, ino: self.ino })
    }

    /// True if the path still leads to this directory: it was not replaced, removed or unmounted.
    #[must_use]
    pub fn is_still_there(&self) -> bool {
        let there = statat(CWD, &self.path, AtFlags::empty()).ok().and_then(|stat| Stat::of(&stat));
        there.is_some_and(|stat| (stat.identity.dev, stat.identity.ino) == (self.dev, self.ino))
    }

    /// The metadata of the root itself.
    ///
    /// # Errors
    /// The system does not report it, or it is out of range.
    pub fn own_stat(&self) -> Result<Stat, DiskError> {
        let path = self.path.as_os_str().as_bytes();
        let stat = fstat(&self.descriptor).during("look at", path)?;
        Stat::of(&stat).ok_or_else(|| DiskError::new("look at", path, DiskErrorKind::OutOfRange))
    }

    /// The attributes of the root itself, as far as the options ask for any.
    #[must_use]
    pub fn own_attributes(&self, options: Option<&MetadataOptions>) -> Option<Arc<Attributes>> {
        options.and_then(|options| attributes::of_open(&self.descriptor, &self.own_stat().ok()?, options))
    }

    /// Opens a directory for listing; `None` is the root.
    ///
    /// # Errors
    /// The directory does not exist, is no directory, or is not readable.
    pub fn open_directory(&self, path: Option<&TreePath>) -> Result<OwnedFd, DiskError> {
        match path {
            Some(path) => self.descend(path, DIRECTORY).during("open", path.as_bytes()),
            None => openat(&self.descriptor, c".", DIRECTORY, Mode::empty())
                .during("open", self.path.as_os_str().as_bytes()),
        }
    }

    /// Opens a regular file for reading. Returns it with its metadata at the time of opening.
    ///
    /// # Errors
    /// The file does not exist or is not readable, or [`DiskError::is_not_regular`].
    pub fn open_file(&self, path: &TreePath) -> Result<(File, Stat), DiskError> {
        // Without NONBLOCK, opening a FIFO waits for a writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let descriptor = self.descend(path, flags).during("open", path.as_bytes())?;
        let stat = stat_of(&descriptor, path)?;
        if stat.kind() != FileKind::File {
            return Err(DiskError::new("read", path.as_bytes(), DiskErrorKind::NotRegular));
        }
        Ok((File::from(descriptor), stat))
    }

    /// The metadata of `path` itself, not of a link's target; `None` if nothing is there.
    ///
    /// # Errors
    /// A component of the path is a link, or its directory may not be searched.
    pub fn stat(&self, path: &TreePath) -> Result<Option<Stat>, DiskError> {
        match self.locate(path) {
            Ok(location) => stat_in(&location, path),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).during("look at", path.as_bytes()),
        }
    }

    /// The metadata of what `path` leads to, if it is a link; `None` if nothing is there.
    ///
    /// # Errors
    /// As [`Root::stat`].
    pub fn stat_followed(&self, path: &TreePath) -> Result<Option<Stat>, DiskError> {
        match self.locate(path).and_then(|location| statat(&location, location.name, AtFlags::empty())) {
            Ok(stat) => Ok(Stat::of(&stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).during("look at", path.as_bytes()),
        }
    }

    /// Removes a file or link of a source. The caller has seen that it is the right one.
    ///
    /// # Errors
    /// Nothing is there, or this user may not remove it.
    pub fn remove_entry(&self, path: &TreePath) -> Result<(), DiskError> {
        let removed =
            self.locate(path).and_then(|location| unlinkat(&location, location.name, AtFlags::empty()));
        removed.during("remove", path.as_bytes())
    }

    /// The target of the symbolic link `path`.
    ///
    /// # Errors
    /// Nothing is at `path`, or no link.
    pub fn read_link(&self, path: &TreePath) -> Result<Box<[u8]>, DiskError> {
        let target = self.locate(path).and_then(|location| readlinkat(&location, location.name, Vec::new()));
        Ok(target.during("read", path.as_bytes())?.into_bytes().into())
    }

    /// Opens the directory that holds `path`.
    pub(crate) fn locate<'a>(&'a self, path: &'a TreePath) -> rustix::io::Result<Location<'a>> {
        let (parent, name) = path.split_last();
        let root = self.descriptor.as_fd();
        let directory = parent.map(|parent| self.resolver.open(root, parent, PASSAGE)).transpose()?;
        Ok(Location { directory, root, name })
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Opens `path` itself; a link there is an error.
    pub(crate) fn descend(&self, path: &TreePath, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        self.resolver.open(self.descriptor.as_fd(), path.as_bytes(), flags)
    }
}

/// The metadata of an open descriptor.
pub(crate) fn stat_of(descriptor: impl AsFd, path: &TreePath) -> Result<Stat, DiskError> {
    let stat = fstat(descriptor).during("look at", path.as_bytes())?;
    Stat::of(&stat).ok_or_else(|| DiskError::new("look at", path.as_bytes(), DiskErrorKind::OutOfRange))
}

/// The metadata of the entry at `location`; `None` if nothing is there.
pub(crate) fn stat_in(location: &Location<'_>, path: &TreePath) -> Result<Option<Stat>, DiskError> {
    match statat(location, location.name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error).during("look at", path.as_bytes()),
        Ok(stat) => Stat::of(&stat)
            .map(Some)
            .ok_or_else(|| DiskError::new("look at", path.as_bytes(), DiskErrorKind::OutOfRange)),
    }
}

/// Fails with a conflict unless `location` still holds the entry that was `seen` there. `None`
/// means that nothing was there.
pub(crate) fn check_unchanged(
    location: &Location<'_>,
    path: &TreePath,
    verb: &'static str,
    seen: Option<&Identity>,
) -> Result<(), DiskError> {
    let now = stat_in(location, path)?.map(|stat| stat.identity);
    if now.as_ref() == seen {
        Ok(())
    } else {
        Err(DiskError::new(verb, path.as_bytes(), DiskErrorKind::Conflict))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::disk::testing::{Fixture, path};
    use crate::disk::writable::WritableRoot;

    #[test]
    fn open_fails_on_a_missing_root_and_create_makes_it() {
        let fixture = Fixture::new();
        assert!(Root::open(&fixture.at("a")).unwrap_err().is_not_found());
        WritableRoot::create(&fixture.at("a/b/c")).unwrap();
        assert!(fixture.at("a/b/c").is_dir());
        fs::write(fixture.at("f"), "").unwrap();
        assert!(Root::open(&fixture.at("f")).unwrap_err().is_in_the_way());
    }

    #[test]
    fn links_above_the_root_are_followed() {
        let fixture = Fixture::new();
        fs::create_dir(fixture.at("real")).unwrap();
        symlink("real", fixture.at("link")).unwrap();
        let root = WritableRoot::create(&fixture.at("link/below")).unwrap();
        assert!(fixture.at("real/below").is_dir() && root.is_still_there());
    }

    #[test]
    fn a_recreated_root_differs_from_its_pin() {
        let fixture = Fixture::new();
        let pins = [1, 2, 3].map(|_| {
            let root = WritableRoot::create(&fixture.at("root")).unwrap();
            root.lock().unwrap();
            let pin = root.pin().unwrap();
            drop(root);
            let again = WritableRoot::open(&fixture.at("root")).unwrap();
            again.lock().unwrap();
            assert!(pin.is(&again));
            fs::remove_dir_all(fixture.at("root")).unwrap();
            pin
        });
        let root = WritableRoot::create(&fixture.at("root")).unwrap();
        assert!(pins.iter().all(|pin| !pin.is(&root)));
    }

    #[test]
    fn stat_of_a_missing_path_is_none() {
        for fixture in [Fixture::new(), Fixture::walking()] {
            assert_eq!(fixture.root.stat(&path("a")).unwrap(), None);
            assert_eq!(fixture.root.stat(&path("a/b/c")).unwrap(), None);
            assert!(fixture.root.open_file(&path("a/b")).unwrap_err().is_not_found());
        }
    }
}
