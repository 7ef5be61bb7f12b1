//! Anonymous temporary files (`O_TMPFILE`): new files without a name until they are complete.
//!
//! A staged file with a name is created, locked, checked for its owner, filled and renamed: twelve
//! system calls. An anonymous file cannot belong to another user and needs no lock. It is linked
//! into its place, which fails if something is there: eight system calls. 80,000 files of 12 kB
//! took 2.5 s on tmpfs instead of 2.9 s, and most of both is their content. If the run ends before
//! the link, nothing of the file stays. The loss is small, since such a file arrives in one
//! message.

use std::fs::File;

use crate::disk::error::DiskError;
use crate::disk::stage::{Durability, Metadata};
use crate::disk::writable::WritableRoot;
use crate::tree::path::TreePath;

impl WritableRoot {
    /// Puts a whole file at `path` if nothing is there. Returns `false`, and has changed nothing,
    /// if that needs a [`Staging`](crate::disk::stage::Staging).
    ///
    /// # Errors
    /// [`DiskError::is_conflict`] if something is there, or the content cannot be written. Nothing
    /// has changed then.
    pub fn put_new(&self, path: &TreePath, content: &[u8], metadata: &Metadata) -> Result<bool, DiskError> {
        let Some(file) = self.make_new(path, content, metadata, Durability::Eventually)? else {
            return Ok(false);
        };
        self.name_new(path, &file)
    }

    /// Opens an empty anonymous file on the filesystem of the root, if that has any.
    #[cfg(target_os = "linux")]
    pub(crate) fn anonymous_file(&self) -> Option<File> {
        use std::sync::atomic::Ordering;

        use rustix::fs::{Mode, OFlags, openat};

        if !self.has_anonymous.load(Ordering::Relaxed) {
            return None;
        }
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let opened = openat(self.descriptor(), c".", flags, Mode::RUSR | Mode::WUSR);
        self.has_anonymous.store(opened.is_ok(), Ordering::Relaxed);
        opened.ok().map(File::from)
    }

    /// Creates a whole anonymous temporary file. `None` if that needs a
    /// [`Staging`](crate::disk::stage::Staging).
    ///
    /// # Errors
    /// The content cannot be written, or cannot be flushed to the disk.
    #[cfg(target_os = "linux")]
    pub fn make_new(
        &self,
        path: &TreePath,
        content: &[u8],
        metadata: &Metadata,
        durability: Durability,
    ) -> Result<Option<File>, DiskError> {
        use std::sync::atomic::Ordering;

        use rustix::fs::fsync;

        use crate::disk::error::During;
        use crate::disk::stage::{set_metadata, write_all};

        let Some(file) = (!self.is_beyond_boundary(path)).then(|| self.anonymous_file()).flatten() else {
            return Ok(None);
        };
        write_all(&file, content).during("write", path.as_bytes())?;
        self.close_errors.of(&file).during("write", path.as_bytes())?;
        if set_metadata(&file, self, path, metadata)?.is_some() {
            // A staged file is installed all the same, and the refusal is reported.
            self.has_anonymous.store(false, Ordering::Relaxed);
            return Ok(None);
        }
        self.mark_open(path, &file)?;
        if durability == Durability::Immediately {
            fsync(&file).inspect_err(|_| self.mark_lost()).during("write to the disk", path.as_bytes())?;
        }
        Ok(Some(file))
    }

    /// Links an anonymous temporary file to `path` if nothing is there. Returns `false`, and has
    /// changed nothing, if that needs a [`Staging`](crate::disk::stage::Staging).
    ///
    /// # Errors
    /// [`DiskError::is_conflict`] if something is there.
    #[cfg(target_os = "linux")]
    pub fn name_new(&self, path: &TreePath, file: &File) -> Result<bool, DiskError> {
        use std::sync::atomic::Ordering;

        use rustix::fs::{AtFlags, linkat};
        use rustix::io::Errno;

        use crate::disk::error::{DiskErrorKind, During};

        let location = self.locate(path).during("make", path.as_bytes())?;
        match linkat(file, c"", &location, location.name, AtFlags::EMPTY_PATH) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Err(DiskError::new("make", path.as_bytes(), DiskErrorKind::Conflict)),
            // Before Linux 6.10 only the superuser may do that.
            Err(_) => {
                self.has_anonymous.store(false, Ordering::Relaxed);
                Ok(false)
            }
        }
    }

    /// This system has no anonymous temporary files.
    #[cfg(not(target_os = "linux"))]
    #[allow(clippy::unused_self)]
    pub(crate) fn anonymous_file(&self) -> Option<File> {
        None
    }

    /// This system has no anonymous temporary files.
    ///
    /// # Errors
    /// Never fails.
    #[cfg(not(target_os = "linux"))]
    #[allow(clippy::unused_self)]
    pub fn make_new(
        &self,
        _: &TreePath,
        _: &[u8],
        _: &Metadata,
        _: Durability,
    ) -> Result<Option<File>, DiskError> {
        Ok(None)
    }

    /// This system has no anonymous temporary files.
    ///
    /// # Errors
    /// Never fails.
    #[cfg(not(target_os = "linux"))]
    #[allow(clippy::unused_self)]
    pub fn name_new(&self, _: &TreePath, _: &File) -> Result<bool, DiskError> {
        Ok(false)
    }
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::Path;
    use std::sync::atomic::Ordering;

    use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open, unlink};

    use super::*;
    use crate::disk::testing::{Fixture, NOBODY, give_away, metadata, path, time};

    /// A fixture on a filesystem that links anonymous files. Skips the test elsewhere: before Linux
    /// 6.10 only the superuser may do that, and some filesystems have no such files.
    fn fixture() -> Option<Fixture> {
        Fixture::able("no anonymous files here", |fixture| {
            let file = open(fixture.at("."), OFlags::TMPFILE | OFlags::WRONLY, Mode::RUSR);
            file.and_then(|file| linkat(file, c"", CWD, fixture.at("probe"), AtFlags::EMPTY_PATH))
                .and_then(|()| unlink(fixture.at("probe")))
                .is_ok()
        })
    }

    fn put(root: &WritableRoot, name: &str, content: &[u8]) -> Result<bool, DiskError> {
        root.put_new(&path(name), content, &metadata())
    }

    #[test]
    fn a_new_file_appears_with_content_mode_and_time() {
        let Some(fixture) = fixture() else { return };
        fs::create_dir(fixture.at("d")).unwrap();
        let zeros = vec![0; 100_000];
        for (name, content) in [("f", &b"new"[..]), ("d/f", b""), ("d/zeros", &zeros)] {
            assert!(put(&fixture.root, name, content).unwrap(), "{name}");
            let stat = fixture.root.stat(&path(name)).unwrap().unwrap();
            assert_eq!(fs::read(fixture.at(name)).unwrap(), content);
            assert_eq!((stat.mode, stat.mtime(), stat.nlink), (0o644, time(1), 1));
        }
        // Only its last block, by which the length reaches the disk.
        assert!(fixture.at("d/zeros").metadata().unwrap().blocks() <= 8);
        assert!(!fixture.at(".ksync").exists());
    }

    #[test]
    fn an_existing_entry_stays() {
        let Some(fixture) = fixture() else { return };
        fs::write(fixture.at("f"), "old").unwrap();
        fs::create_dir(fixture.at("d")).unwrap();
        symlink("nowhere", fixture.at("l")).unwrap();
        for name in ["f", "d", "l"] {
            let error = put(&fixture.root, name, b"new").unwrap_err();
            assert!(error.is_conflict(), "{error}");
        }
        assert_eq!(fs::read(fixture.at("f")).unwrap(), b"old");
        assert!(fixture.at("d").is_dir());
        assert_eq!(fs::read_link(fixture.at("l")).unwrap(), Path::new("nowhere"));
    }

    #[test]
    fn superusers_new_files_get_the_owner_of_the_directory() {
        let Some(fixture) = fixture() else { return };
        if !give_away(&fixture.at(".")) {
            return;
        }
        let root = WritableRoot::open(&fixture.at(".")).unwrap();
        assert!(put(&root, "f", b"new").unwrap());
        let made = fixture.at("f").metadata().unwrap();
        assert_eq!((made.uid(), made.gid()), (NOBODY, NOBODY));
    }

    #[test]
    fn put_new_returns_false_without_anonymous_files() {
        let root = WritableRoot::open(Path::new("/proc")).unwrap();
        assert!(!put(&root, "ksync-test", b"").unwrap());
        assert!(!root.has_anonymous.load(Ordering::Relaxed));
    }
}
