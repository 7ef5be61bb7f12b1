//! What is left of a session's processes, wherever they moved to: each has the session's root in its
//! environment. Found where there is `/proc`; elsewhere process groups have to do.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use crate::sandbox::process::ROOT_VARIABLE;

/// How often the processes are looked through: those that are killed may have begun others just before.
const ROUNDS_MAX: usize = 20;

/// Kills every process with this root in its environment, as it was given to it or its parents.
pub(super) fn kill(root: &Path) {
    let variable = [ROOT_VARIABLE.as_bytes(), b"=", root.as_os_str().as_bytes()].concat();
    for _ in 0..ROUNDS_MAX {
        let found: Vec<Pid> = with_variable(&variable).collect();
        if found.is_empty() {
            return;
        }
        for pid in found {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// The other processes whose environment has `variable`. Those of other people cannot be read, and have it not.
fn with_variable(variable: &[u8]) -> impl Iterator<Item = Pid> {
    let myself = std::process::id();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(move |pid| *pid != myself)
        .filter(move |pid| {
            // Nothing is left of a process that has ended and was not waited for.
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == variable)
        })
        .filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
}
