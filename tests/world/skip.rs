//! Requirements of a test: programs, rights, abilities of the machine. A test that lacks one prints
//! that and passes. With `KSYNC_REQUIRE_PEERS=1` it fails.
//!
//! Each test binary uses a part of this module.
#![allow(dead_code, clippy::expect_used)]

use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;

/// Prints why a test, or a part of it, tests nothing here. Fails if all tests are required.
#[track_caller]
pub(crate) fn skip(why: impl Display) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
    let is_required = std::env::var_os("KSYNC_REQUIRE_PEERS").is_some_and(|value| value == "1");
    assert!(!is_required, "{why}");
}

/// Skips unless a requirement is met, and returns if it is.
#[track_caller]
pub(crate) fn needs(is_met: bool, why: impl Display) -> bool {
    if !is_met {
        skip(why);
    }
    is_met
}

/// Skips unless the superuser runs the test, and returns if that is so.
#[track_caller]
pub(crate) fn needs_superuser() -> bool {
    needs(rustix::process::geteuid().is_root(), "only the superuser can test this")
}

/// Skips unless all these programs are installed, and returns if they are.
#[track_caller]
pub(crate) fn needs_programs(names: &[&str]) -> bool {
    let missing = names.iter().find(|name| program(name).is_none());
    missing.is_none_or(|name| needs(false, format!("{name} is missing")))
}

/// Absolute path of a program; `None` if it is not installed.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&path()).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Search path of programs: `KSYNC_PEERS_BIN`, then `PATH`, then the directories of sshd.
pub(crate) fn path() -> OsString {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("KSYNC_PEERS_BIN").map(PathBuf::from).into_iter().collect();
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    std::env::join_paths(folders).expect("a path")
}
