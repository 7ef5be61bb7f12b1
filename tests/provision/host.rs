//! State of the machine that runs the tests, to assert that a test leaves it unchanged.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Paths that the scripts, the services and apt-get write on a VM.
const WATCHED: [&str; 14] = [
    "/root/.ssh",
    "/etc/ssh",
    "/etc/supervisor",
    "/etc/passwd",
    "/etc/pam.d",
    "/usr/local/bin",
    "/usr/sbin/policy-rc.d",
    "/usr/sbin/sshd",
    "/run/sshd",
    "/run/supervisor.sock",
    "/var/log/supervisord",
    "/var/lib/dpkg/status",
    "/var/lib/dpkg/info",
    "/var/cache/apt/archives",
];

/// Larger files are compared by their times only: no program sets the time of an inode's change
/// back.
const READ_BYTES_MAX: u64 = 64 << 10;

/// Entries at these paths: kind and mode, length, times of the content and of the inode, and text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Host(BTreeMap<PathBuf, (u32, u64, [i64; 4], Vec<u8>)>);

impl Host {
    pub(crate) fn now() -> Host {
        Host::at(WATCHED)
    }

    fn at<P: AsRef<Path>>(places: impl IntoIterator<Item = P>) -> Host {
        let mut found = BTreeMap::new();
        for place in places {
            for entry in walkdir::WalkDir::new(place).into_iter().filter_map(Result::ok) {
                let Ok(meta) = fs::symlink_metadata(entry.path()) else { continue };
                let is_read = meta.is_file() && meta.len() <= READ_BYTES_MAX;
                let text = if is_read { fs::read(entry.path()).unwrap_or_default() } else { Vec::new() };
                let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
                found.insert(entry.into_path(), (meta.mode(), meta.len(), times, text));
            }
        }
        Host(found)
    }

    /// Asserts that nothing has changed since.
    #[track_caller]
    pub(crate) fn assert_unchanged(&self) {
        let now = Host::now();
        let paths = self.0.keys().chain(now.0.keys());
        let changed: Vec<_> = paths.filter(|path| self.0.get(*path) != now.0.get(*path)).collect();
        assert!(changed.is_empty(), "changed on the machine that runs the tests: {changed:?}");
    }
}

#[test]
fn each_kind_of_change_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let mut before = Host::at([folder.path()]);
    let mut assert_seen = |what: &str| {
        let now = Host::at([folder.path()]);
        assert_ne!(now, before, "{what}");
        before = now;
    };
    fs::write(&file, "a").unwrap();
    assert_seen("a new file");
    fs::write(&file, "b").unwrap();
    assert_seen("another text");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    assert_seen("another mode");
    fs::remove_file(&file).unwrap();
    assert_seen("no file");
    assert_eq!(Host::at([folder.path()]), before);
}

/// PID namespace of a process.
pub(crate) fn namespace_of(process: impl AsRef<Path>) -> Option<PathBuf> {
    fs::read_link(Path::new("/proc").join(process).join("ns/pid")).ok()
}

/// Number of processes in a namespace.
pub(crate) fn processes_in(namespace: &Path) -> usize {
    let all = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    all.filter(|entry| namespace_of(entry.file_name()).as_deref() == Some(namespace)).count()
}
