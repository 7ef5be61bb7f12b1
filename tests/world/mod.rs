//! The world of a test: a directory with all its files, and the real `ksync` in its own
//! environment. It makes, reads and compares trees without any of ksync's code.
//!
//! Each integration binary uses a part of this module.
#![allow(
    dead_code,
    unused_imports,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod emulator;
pub(crate) mod link;
pub(crate) mod network;
mod run;
pub(crate) mod schema;
mod screen;
pub(crate) mod service;
pub(crate) mod skip;
mod terminal;
mod tree;

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub(crate) use emulator::Emulator;
pub(crate) use run::{Run, Stats};
pub(crate) use screen::Screen;
pub(crate) use skip::path;
pub(crate) use terminal::Terminal;
pub(crate) use tree::{Snapshot, Tree, assert_same, noise, snapshot};

/// Longer than any test takes, and short enough to tell a hang from a slow machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A directory with a home, XDG directories and the trees of a test.
pub(crate) struct World {
    folder: tempfile::TempDir,
    root: PathBuf,
    /// Changes each command.
    adapt: fn(&mut Command),
}

impl World {
    /// Makes an empty world.
    pub(crate) fn new() -> World {
        World::within(&std::env::temp_dir(), |_| ())
    }

    /// Makes an empty world in a directory, whose commands are adapted by a function.
    pub(crate) fn within(parent: &Path, adapt: fn(&mut Command)) -> World {
        let folder = tempfile::Builder::new().prefix("ksync-test-").tempdir_in(parent).expect("a folder");
        // The path is canonical, because a mapping shows the resolved path.
        let root = folder.path().canonicalize().expect("its path");
        for name in ["home", "tmp", "cache", "config", "state", "data"] {
            std::fs::create_dir(root.join(name)).expect("a directory");
        }
        World { folder, root, adapt }
    }

    /// Path of a file in the world.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// A directory of the world as an endpoint in the emulated VM.
    pub(crate) fn far(&self, name: impl AsRef<Path>) -> OsString {
        let mut endpoint = OsString::from("sandbox:");
        endpoint.push(self.path(name));
        endpoint
    }

    /// Home directory of the local user.
    pub(crate) fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// Home directory in the emulated VM.
    pub(crate) fn far_home(&self) -> PathBuf {
        self.path("cache/ksync/sandbox")
    }

    /// A tree to fill, created if it is missing.
    pub(crate) fn tree(&self, name: impl AsRef<Path>) -> Tree {
        Tree::at(self.path(name))
    }

    /// Takes a snapshot of a tree.
    pub(crate) fn snapshot(&self, name: impl AsRef<Path>) -> Snapshot {
        snapshot(&self.path(name))
    }

    /// Asserts that two trees have the same contents, modes and times, to the nanosecond.
    #[track_caller]
    pub(crate) fn assert_same(&self, one: impl AsRef<Path>, other: impl AsRef<Path>) {
        assert_same(&self.path(one), &self.path(other));
    }

    /// `program` in the environment of this world, with nothing of the real one but `PATH`.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", path())
            .env("HOME", self.home())
            .env("TMPDIR", self.path("tmp"))
            .env("USER", "root")
            // Most tests look for the emulated VM's files at the same path on this machine.
            .env("KSYNC_SANDBOX_HOST_FILES", "1")
            // No process outlives its test, unless the test is about that.
            .env("KSYNC_KEEP", "0")
            .current_dir(&self.root);
        for (variable, name) in [
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_CONFIG_HOME", "config"),
            ("XDG_STATE_HOME", "state"),
            ("XDG_DATA_HOME", "data"),
        ] {
            command.env(variable, self.path(name));
        }
        (self.adapt)(&mut command);
        command
    }

    /// Unpacks a compressed program and makes it executable. gzip writes it, not this process: a
    /// fork of another test could inherit the open file, and a program open for writing cannot run.
    pub(crate) fn unpack(&self, name: &str, gzip: &[u8]) -> PathBuf {
        let packed = self.path(format!("{name}.gz"));
        std::fs::write(&packed, gzip).expect("a file");
        let mut gunzip = self.command("gzip");
        gunzip.arg("-d").arg(&packed);
        Run::of(gunzip).ok();
        let program = self.path(name);
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("a mode");
        program
    }

    /// `ksync` with these arguments, not yet started, with the world as its working directory.
    pub(crate) fn ksync<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_ksync"));
        command.args(args);
        command
    }

    /// Runs `ksync` to its end.
    pub(crate) fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Run {
        Run::of(self.ksync(args))
    }

    /// Runs `ksync --stats` from one endpoint to another, and asserts its success.
    #[track_caller]
    pub(crate) fn sync(&self, source: impl AsRef<OsStr>, destination: impl AsRef<OsStr>) -> Stats {
        self.sync_with(&[], source, destination)
    }

    /// The same with options.
    #[track_caller]
    pub(crate) fn sync_with(
        &self,
        options: &[&str],
        source: impl AsRef<OsStr>,
        destination: impl AsRef<OsStr>,
    ) -> Stats {
        let mut command = self.ksync(options);
        Run::of({
            command.arg("--stats").arg(source).arg(destination);
            command
        })
        .ok()
        .stats()
    }
}

/// Polls until `look` returns a value.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(start.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
