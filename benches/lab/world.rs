//! The world of a run: one directory with all its files, and an environment that hides the user's
//! own.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::statvfs;

/// Default directory of a world, if it has room: memory. On a disk, writing a tree right after
/// another was removed can take five times as long.
const MEMORY: &str = "/dev/shm";

/// A directory of the harness, removed when dropped.
pub(crate) struct World {
    root: PathBuf,
}

impl World {
    /// Makes a world in `folder`. Without `folder` it uses memory if `bytes_needed` are free there,
    /// or else the target directory.
    pub(crate) fn new(folder: Option<&Path>, bytes_needed: u64) -> World {
        let folder = match folder {
            Some(folder) => folder.to_owned(),
            None if free_bytes(Path::new(MEMORY)) > bytes_needed => PathBuf::from(MEMORY),
            None => Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned(),
        };
        let root = folder.join(format!("ksync-bench-{}", std::process::id()));
        for name in ["home", "tmp", "cache", "config", "state", "data", "far"] {
            fs::create_dir_all(root.join(name)).expect("a directory");
        }
        World { root: root.canonicalize().expect("its path") }
    }

    /// Path of a file in the world.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// Runs `program` with a clean environment, except for `PATH`.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().current_dir(&self.root);
        for (name, value) in [
            ("PATH", path()),
            ("LC_ALL", "C".into()),
            ("SHELL", "/bin/sh".into()),
            ("USER", user().into()),
            ("HOME", self.path("home").into()),
            ("TMPDIR", self.path("tmp").into()),
            ("XDG_CACHE_HOME", self.path("cache").into()),
            ("XDG_CONFIG_HOME", self.path("config").into()),
            ("XDG_STATE_HOME", self.path("state").into()),
            ("XDG_DATA_HOME", self.path("data").into()),
        ] {
            command.env(name, value);
        }
        command
    }

    /// Kind of the filesystem that holds the world.
    pub(crate) fn filesystem(&self) -> &'static str {
        // TMPFS_MAGIC of linux/magic.h.
        let is_memory = rustix::fs::statfs(&self.root).is_ok_and(|stat| stat.f_type == 0x0102_1994);
        if is_memory { "tmpfs" } else { "disk" }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Free bytes of a directory, limited to the available memory, because a tmpfs may claim more.
fn free_bytes(folder: &Path) -> u64 {
    let of_folder = statvfs(folder).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    of_folder.min(memory_bytes("MemAvailable"))
}

/// A line of the kernel's memory information, in bytes.
pub(crate) fn memory_bytes(line: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = text.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    let kilobytes = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// Search path of programs: `KSYNC_PEERS_BIN`, then `PATH`, then the directories of sshd.
pub(crate) fn path() -> OsString {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("KSYNC_PEERS_BIN").map(PathBuf::from).into_iter().collect();
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    std::env::join_paths(folders).expect("a path")
}

/// Absolute path of a program; `None` if it is not installed.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&path()).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Login name of the current user: sshd without root's rights accepts nobody else.
pub(crate) fn user() -> String {
    let output = Command::new("id").arg("-un").output().expect("id");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
