//! A root in a temporary directory, next to a canary that no operation may touch.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use tempfile::TempDir;

use crate::disk::root::Root;
use crate::disk::stage::Metadata;
use crate::disk::writable::WritableRoot;
use crate::tree::entry::Time;
use crate::tree::path::TreePath;

#[path = "../../../tests/world/skip.rs"]
pub(crate) mod skip;

/// Visible metadata of a file: mode, owner, size, times, links.
type Traits = (u32, u32, u64, i64, i64, i64, u64);

/// User and group of nobody.
pub(crate) const NOBODY: u32 = 65534;

pub(crate) struct Fixture {
    pub(crate) root: WritableRoot,
    folder: TempDir,
    canary: BTreeMap<PathBuf, (Traits, Vec<u8>)>,
}

impl Fixture {
    /// `root/` is empty, `outside/` holds the canary.
    pub(crate) fn new() -> Self {
        Self::below(TempDir::new().unwrap())
    }

    /// A fixture on a filesystem that `is_able` accepts: that of the temporary directory, of shared
    /// memory or of the test program. Skips the test if there is none.
    #[track_caller]
    pub(crate) fn able(why: &str, is_able: impl Fn(&Self) -> bool) -> Option<Self> {
        let program = std::env::current_exe().unwrap();
        let places = [std::env::temp_dir(), "/dev/shm".into(), program.parent().unwrap().into()];
        let folders = places.iter().filter_map(|place| TempDir::new_in(place).ok());
        let fixture = folders.map(Self::below).find(is_able);
        skip::needs(fixture.is_some(), why);
        fixture
    }

    fn below(folder: TempDir) -> Self {
        fs::create_dir(folder.path().join("outside")).unwrap();
        fs::create_dir(folder.path().join("outside/d")).unwrap();
        fs::write(folder.path().join("outside/d/f"), "canary").unwrap();
        fs::write(folder.path().join("outside/f"), "canary").unwrap();
        let root = WritableRoot::create(&folder.path().join("root")).unwrap();
        let mut fixture = Self { root, folder, canary: BTreeMap::new() };
        fixture.canary = fixture.look_outside();
        fixture
    }

    /// The same without `openat2`.
    pub(crate) fn walking() -> Self {
        let fixture = Self::new();
        let root = Root::open(fixture.root.path()).unwrap().walking();
        Self { root: WritableRoot::of(root).unwrap(), ..fixture }
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join("root").join(path)
    }

    pub(crate) fn outside(&self) -> PathBuf {
        self.folder.path().join("outside")
    }

    pub(crate) fn assert_canary_untouched(&self) {
        assert_eq!(self.look_outside(), self.canary);
    }

    fn look_outside(&self) -> BTreeMap<PathBuf, (Traits, Vec<u8>)> {
        walkdir::WalkDir::new(self.outside())
            .into_iter()
            .map(|entry| {
                let path = entry.unwrap().into_path();
                let data = path.symlink_metadata().unwrap();
                let traits = (
                    data.mode(),
                    data.uid(),
                    data.len(),
                    data.mtime_nsec(),
                    data.mtime(),
                    data.ctime_nsec(),
                    data.nlink(),
                );
                let content = if data.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
                (path, (traits, content))
            })
            .collect()
    }
}

/// Gives a file or directory to the user nobody. Skips the test if this user may not do that, and
/// returns if it is done.
#[track_caller]
pub(crate) fn give_away(at: &Path) -> bool {
    let is_given = geteuid().is_root() && chown(at, Some(NOBODY), Some(NOBODY)).is_ok();
    skip::needs(is_given, "only the superuser can give files away")
}

/// The metadata of a directory.
pub(crate) fn directory(mode: u16, mtime: Time) -> Metadata {
    Metadata { mode, mtime, attributes: None }
}

/// The metadata of an ordinary file.
pub(crate) fn metadata() -> Metadata {
    Metadata { mode: 0o644, mtime: time(1), attributes: None }
}

pub(crate) fn path(text: impl AsRef<[u8]>) -> TreePath {
    TreePath::new(text.as_ref()).unwrap()
}

pub(crate) fn time(seconds: i64) -> Time {
    Time::new(seconds, 123_456_789).unwrap()
}
