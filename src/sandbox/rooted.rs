//! Files below a root: paths of a VM, as this process reads and writes them. No path and no link
//! leads out.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;

/// A directory that is the `/` of a VM.
#[derive(Debug, Clone)]
pub(crate) struct Root(PathBuf);

impl Root {
    pub(crate) fn new(path: PathBuf) -> Root {
        Root(path)
    }

    /// Path of the root itself, on this machine.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A path of the VM, relative to its root. A path that already starts with the root's own path
    /// means the same file.
    fn clean(&self, path: &Path) -> PathBuf {
        let mut clean = PathBuf::new();
        for component in path.strip_prefix(&self.0).unwrap_or(path).components() {
            match component {
                Component::Normal(name) => clean.push(name),
                Component::ParentDir => {
                    clean.pop();
                }
                _ => {}
            }
        }
        clean
    }

    /// A path of the VM as one of this machine, if no link stands in the way.
    pub(crate) fn host_path(&self, path: &Path) -> PathBuf {
        self.0.join(self.clean(path))
    }

    /// Opens a file. The mode counts if that creates it.
    pub(crate) fn open(&self, path: impl AsRef<Path>, flags: OFlags, mode: u32) -> io::Result<File> {
        self.open_clean(&self.clean(path.as_ref()), flags, mode)
    }

    #[cfg(target_os = "linux")]
    fn open_clean(&self, path: &Path, flags: OFlags, mode: u32) -> io::Result<File> {
        use rustix::fs::{Mode, ResolveFlags, openat2};
        let root = File::open(&self.0)?;
        let path = if path == Path::new("") { Path::new(".") } else { path };
        let mode = if flags.contains(OFlags::CREATE) { mode & 0o7777 } else { 0 };
        let (flags, mode) = (flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode));
        loop {
            match openat2(&root, path, flags, mode, ResolveFlags::IN_ROOT) {
                // Something was renamed meanwhile.
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                opened => return Ok(opened?.into()),
            }
        }
    }

    /// Elsewhere the kernel does not confine links, and the VM shares this machine's files anyway.
    #[cfg(not(target_os = "linux"))]
    fn open_clean(&self, path: &Path, flags: OFlags, mode: u32) -> io::Result<File> {
        use rustix::fs::Mode;
        let mode = Mode::from_bits_truncate((mode & 0o7777) as _);
        Ok(rustix::fs::open(self.0.join(path), flags | OFlags::CLOEXEC, mode)?.into())
    }

    /// Opens an entry of any kind for its metadata, and as an [`Entry::path`].
    pub(crate) fn find(&self, path: impl AsRef<Path>) -> io::Result<Entry> {
        self.find_clean(&self.clean(path.as_ref()))
    }

    fn find_clean(&self, path: &Path) -> io::Result<Entry> {
        #[cfg(target_os = "linux")]
        let flags = OFlags::PATH;
        #[cfg(not(target_os = "linux"))]
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = self.open_clean(path, flags, 0)?;
        Ok(Entry { path: place_of(&file, &self.0, path), file })
    }

    /// The place of an entry that need not exist, itself not followed if it is a link.
    ///
    /// # Errors
    /// Its directory does not exist, or it is the root.
    pub(crate) fn place(&self, path: impl AsRef<Path>) -> io::Result<Place> {
        let path = self.clean(path.as_ref());
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let parent = self.find_clean(parent)?;
        Ok(Place { path: parent.path.join(name), _parent: parent })
    }

    /// Creates a directory, with its parents. An existing one is as good.
    pub(crate) fn make_directory(&self, path: impl AsRef<Path>, mode: u32) -> io::Result<()> {
        self.make_clean(&self.clean(path.as_ref()), mode)
    }

    /// Creates the parents of an entry.
    pub(crate) fn make_parents(&self, path: impl AsRef<Path>) -> io::Result<()> {
        match self.clean(path.as_ref()).parent() {
            Some(parent) => self.make_clean(parent, 0o755),
            None => Ok(()),
        }
    }

    fn make_clean(&self, path: &Path, mode: u32) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        match self.find_clean(path).and_then(|entry| entry.metadata()) {
            Ok(metadata) if metadata.is_dir() => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(error) => {
                let Some(parent) = path.parent() else { return Err(error) };
                self.make_clean(parent, mode)?;
            }
        }
        match fs::DirBuilder::new().mode(mode).create(&self.place(path)?.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && self.is_directory(path) => Ok(()),
            other => other,
        }
    }

    /// True if `path` is a directory, or a link to one.
    pub(crate) fn is_directory(&self, path: impl AsRef<Path>) -> bool {
        self.find(path).and_then(|entry| entry.metadata()).is_ok_and(|metadata| metadata.is_dir())
    }

    /// Checks that a program can be started: a path, or a name in `search_path`.
    ///
    /// # Errors
    /// There is none, or it is not executable.
    pub(crate) fn check_program(&self, program: &Path, cwd: &Path, search_path: &OsStr) -> io::Result<()> {
        let check = |path: PathBuf| {
            let metadata = self.find(path)?.metadata()?;
            if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
                Ok(())
            } else {
                Err(io::Error::from(io::ErrorKind::PermissionDenied))
            }
        };
        if program.components().count() > 1 {
            return check(cwd.join(program));
        }
        let mut found = std::env::split_paths(search_path).map(|directory| check(directory.join(program)));
        found.find(Result::is_ok).unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))
    }

    /// Entries of a directory, by name. One that goes meanwhile is skipped.
    pub(crate) fn list(&self, path: impl AsRef<Path>) -> io::Result<Vec<(OsString, Metadata)>> {
        list(&self.find(path)?)
    }

    /// Writes a file in place, with its parents.
    pub(crate) fn write(&self, path: impl AsRef<Path>, content: &[u8], mode: u32) -> io::Result<()> {
        let path = path.as_ref();
        self.make_parents(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        io::Write::write_all(&mut self.open(path, flags, mode)?, content)
    }
}

/// Entries of an opened directory, by name.
pub(crate) fn list(directory: &Entry) -> io::Result<Vec<(OsString, Metadata)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(&directory.path)? {
        let entry = entry?;
        let Ok(metadata) = entry.metadata() else { continue };
        entries.push((entry.file_name(), metadata));
    }
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(entries)
}

/// An opened entry.
#[derive(Debug)]
pub(crate) struct Entry {
    file: File,
    path: PathBuf,
}

impl Entry {
    pub(crate) fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// A path that leads to this very entry, as long as this lives.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The place of an entry, in an opened directory.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    _parent: Entry,
}

impl Place {
    /// A path that leads there, as long as this lives.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The path of an opened file.
fn place_of(file: &File, root: &Path, path: &Path) -> PathBuf {
    use std::os::fd::AsRawFd;
    if cfg!(target_os = "linux") {
        format!("/proc/self/fd/{}", file.as_raw_fd()).into()
    } else {
        root.join(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    #[cfg(target_os = "linux")]
    fn no_path_and_no_link_leads_out_of_the_root() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().canonicalize().expect("a path");
        let root = Root::new(folder.join("root"));
        fs::create_dir(root.path()).expect("a directory");
        symlink(&folder, root.path().join("out")).expect("a link");
        symlink("..", root.path().join("up")).expect("a link");
        symlink("/in", root.path().join("absolute")).expect("a link");
        for path in ["/../../file", "up/file", "/up/../up/file"] {
            root.write(path, b"1", 0o644).expect("a file");
            assert_eq!(fs::read(root.path().join("file")).expect("inside"), b"1", "{path}");
            fs::remove_file(root.path().join("file")).expect("inside");
        }
        assert!(root.write("out/file", b"1", 0o644).is_err());
        assert!(!folder.join("file").exists());
        // An absolute link leads to a path of the root, and that comes to be.
        root.make_directory("/in", 0o755).expect("a directory");
        root.write("absolute/deep/file", b"2", 0o644).expect("a file");
        assert_eq!(fs::read(root.path().join("in/deep/file")).expect("inside"), b"2");
        assert!(root.place("/").is_err());
        assert_eq!(root.place("up").expect("a place").path().file_name(), Some(OsStr::new("up")));
    }
}
