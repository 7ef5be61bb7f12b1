//! Trees on the disk: creation, snapshots and comparison.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

/// A directory under construction. Names are bytes; missing parents are created.
pub(crate) struct Tree(PathBuf);

impl Tree {
    /// The tree at `path`, created if it is missing.
    pub(crate) fn at(path: PathBuf) -> Tree {
        fs::create_dir_all(&path).expect("a directory");
        Tree(path)
    }

    fn place(&self, name: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(OsStr::from_bytes(name.as_ref()));
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        path
    }

    /// Writes a file with this content.
    pub(crate) fn file(self, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Tree {
        fs::write(self.place(name), content).expect("a file");
        self
    }

    /// Creates a directory.
    pub(crate) fn dir(self, name: impl AsRef<[u8]>) -> Tree {
        fs::create_dir_all(self.place(name)).expect("a directory");
        self
    }

    /// Creates a symbolic link.
    pub(crate) fn link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Tree {
        symlink(OsStr::from_bytes(target.as_ref()), self.place(name)).expect("a link");
        self
    }

    /// Sets the mode of an entry.
    pub(crate) fn mode(self, name: impl AsRef<[u8]>, mode: u32) -> Tree {
        fs::set_permissions(self.place(name), fs::Permissions::from_mode(mode)).expect("a mode");
        self
    }

    /// Sets the modification time of an entry, also of a link.
    pub(crate) fn time(self, name: impl AsRef<[u8]>, seconds: i64, nanos: i64) -> Tree {
        let time = Timespec { tv_sec: seconds, tv_nsec: nanos as _ };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, self.place(name), &times, AtFlags::SYMLINK_NOFOLLOW).expect("a time");
        self
    }

    /// Changes the content of a file, but neither its size nor its time.
    pub(crate) fn secretly(self, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Tree {
        let path = self.place(&name);
        let before = fs::metadata(&path).expect("a file");
        assert_eq!(before.len(), content.as_ref().len() as u64);
        fs::write(&path, content).expect("a file");
        self.time(name, before.mtime(), before.mtime_nsec())
    }

    /// Adds a sample of everything that ksync carries.
    pub(crate) fn with_everything(self) -> Tree {
        self.file("read me.txt", "text\n".repeat(1000))
            .file("src/main.rs", "fn main() {}\n")
            .file("src/data.bin", noise(7, 300_000))
            .file("empty", "")
            .file(b"raw \xff\xfe name", "raw")
            .dir("nothing/in/here")
            .link("link", "src/main.rs")
            .link("dangling", "nowhere")
            .mode("src/main.rs", 0o755)
            .mode("src", 0o750)
            .time("read me.txt", 1_000_000_000, 123_456_789)
            .time("nothing", 1_234_567_890, 1)
    }
}

/// An entry as the filesystem shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    kind: String,
    mode: u32,
    mtime: (i64, i64),
}

impl Seen {
    /// True for a symbolic link.
    pub(crate) fn is_link(&self) -> bool {
        self.kind.starts_with("link")
    }

    /// Takes the time for one that does not count.
    pub(crate) fn forget_time(&mut self) {
        self.mtime = (0, 0);
    }
}

/// The entries of a tree by path, its root included.
pub(crate) type Snapshot = BTreeMap<PathBuf, Seen>;

/// Takes a snapshot of `root` and everything below. ksync's own directory is skipped.
pub(crate) fn snapshot(root: &Path) -> Snapshot {
    let walk = walkdir::WalkDir::new(root).into_iter();
    let entries = walk.filter_entry(|entry| entry.depth() != 1 || entry.file_name() != ".ksync");
    let seen = |entry: walkdir::DirEntry| {
        let meta = entry.path().symlink_metadata().expect("an entry");
        let kind = if meta.is_symlink() {
            format!("link to {:?}", fs::read_link(entry.path()).expect("a link"))
        } else if meta.is_file() {
            let content = fs::read(entry.path()).expect("a file");
            format!("file of {} bytes, {}", content.len(), blake3::hash(&content))
        } else if meta.is_dir() {
            "directory".to_owned()
        } else {
            "special".to_owned()
        };
        let path = entry.path().strip_prefix(root).expect("below the root").to_owned();
        (path, Seen { kind, mode: meta.mode() & 0o7777, mtime: (meta.mtime(), meta.mtime_nsec()) })
    };
    entries.map(|entry| seen(entry.expect("an entry"))).collect()
}

/// Asserts that two trees have the same contents, modes and times, to the nanosecond.
#[track_caller]
pub(crate) fn assert_same(one: &Path, other: &Path) {
    let (one, other) = (snapshot(one), snapshot(other));
    let paths = one.keys().chain(other.keys());
    let differences: Vec<_> = paths
        .filter(|path| one.get(*path) != other.get(*path))
        .map(|path| format!("{path:?}: {:?} and {:?}", one.get(path), other.get(path)))
        .collect();
    assert!(differences.is_empty(), "the trees differ:\n{}", differences.join("\n"));
}

/// Incompressible bytes without repetition, different for each seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ seed.wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
