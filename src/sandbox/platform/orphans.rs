//! Orphans: processes of a session that left their process group. Each has the session's root in
//! its environment. The search needs `/proc`; elsewhere only the process groups are killed.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use crate::process::ROOT_VARIABLE;

/// Passes over the process list, because a killed process may have started another one just before.
const ROUNDS_MAX: usize = 20;

/// Kills every process that got this root in its environment at its start.
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

/// Finds the other processes with `variable` in their environment. The environments of other users
/// are unreadable, and count as without it.
fn with_variable(variable: &[u8]) -> impl Iterator<Item = Pid> {
    let myself = std::process::id();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(move |pid| *pid != myself)
        .filter(move |pid| {
            // The environment of a zombie is empty.
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == variable)
        })
        .filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
}
