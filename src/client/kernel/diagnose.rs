//! Diagnosis of a VM through the API, if SSH fails.

use std::fmt;

use crate::kernel::types::{Exec, Executed};
use crate::tree::path::escape;

/// The diagnosis script.
const SCRIPT: &str = include_str!("diagnose.sh");

/// Timeout of the script, which itself waits 5 s for an answer.
const LOOK_SECONDS: u64 = 20;

/// Characters kept of a line.
const SAID_CHARS_MAX: usize = 120;

/// A VM's own report about its SSH server and the bridge to it. Its `Display` continues a sentence
/// after "which says that".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    sshd: String,
    bridge: String,
    /// Answer on the bridge's port, empty for none; `None` if the script did not ask.
    answer: Option<String>,
    /// sshd's setting `PermitRootLogin`, empty if it is unknown.
    root: String,
}

impl Diagnosis {
    /// Reports if every service that clients connect to is up.
    #[must_use]
    pub fn is_well(&self) -> bool {
        let answers = self.answer.as_ref().is_none_or(|answer| answer.starts_with("HTTP/1.1 101"));
        runs(&self.sshd) && runs(&self.bridge) && answers
    }

    /// Reports if sshd lets root in with a key, as far as is known.
    #[must_use]
    pub fn admits_root(&self) -> bool {
        !matches!(self.root.as_str(), "no" | "forced-commands-only")
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sshd, bridge, answer, root } = self;
        match answer.as_deref() {
            _ if self.is_well() && !self.admits_root() => {
                write!(f, "sshd and its bridge run, but sshd lets no root in (PermitRootLogin {root})")
            }
            _ if self.is_well() => f.write_str("sshd and its bridge run"),
            _ if !runs(sshd) => write!(f, "sshd does not run ({sshd})"),
            _ if !runs(bridge) => write!(f, "the bridge to sshd does not run ({bridge})"),
            Some(answer) if !answer.is_empty() => {
                write!(f, "its own port 2222 answers with \"{answer}\", which is no bridge to sshd")
            }
            _ => f.write_str("sshd and its bridge run, but nothing answers on its own port 2222"),
        }
    }
}

/// Reports if the supervisor's status line is that of a running service.
fn runs(status: &str) -> bool {
    status.starts_with("RUNNING")
}

/// Builds the call of the script.
pub(super) fn call() -> Exec {
    Exec {
        command: "bash".to_owned(),
        args: vec!["-c".to_owned(), SCRIPT.to_owned()],
        as_root: true,
        timeout_sec: LOOK_SECONDS,
        ..Exec::default()
    }
}

/// Parses the script's output.
pub(super) fn read(executed: &Executed) -> Diagnosis {
    let mut diagnosis =
        Diagnosis { sshd: String::new(), bridge: String::new(), answer: None, root: String::new() };
    let text = String::from_utf8_lossy(&executed.stdout);
    for line in text.lines() {
        let Some((what, said)) = line.strip_prefix("KSYNC ").and_then(|line| line.split_once(' ')) else {
            continue;
        };
        let said: String = said.trim().chars().take(SAID_CHARS_MAX).collect();
        let said = escape(said.as_bytes()).into_owned();
        match what {
            "sshd" => diagnosis.sshd = said,
            "bridge" => diagnosis.bridge = said,
            "root" => diagnosis.root = said,
            "answer" => diagnosis.answer = Some(said),
            _ => {}
        }
    }
    for status in [&mut diagnosis.sshd, &mut diagnosis.bridge] {
        if status.is_empty() {
            "no status".clone_into(status);
        }
    }
    diagnosis
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_report_of_a_vm_names_the_first_cause() {
        let run = "RUNNING pid 1, uptime 0:00:01";
        for (sshd, bridge, answer, said) in [
            (run, run, "\nKSYNC answer HTTP/1.1 101 Switching Protocols", "sshd and its bridge run"),
            (run, run, "", "sshd and its bridge run"),
            (run, run, "\nKSYNC root prohibit-password", "sshd and its bridge run"),
            (run, run, "\nKSYNC root ", "sshd and its bridge run"),
            (
                run,
                run,
                "\nKSYNC root no",
                "sshd and its bridge run, but sshd lets no root in (PermitRootLogin no)",
            ),
            (
                "FATAL Exited too quickly",
                run,
                "\nKSYNC answer ",
                "sshd does not run (FATAL Exited too quickly)",
            ),
            (run, "STOPPED", "\nKSYNC answer ", "the bridge to sshd does not run (STOPPED)"),
            (run, "", "", "the bridge to sshd does not run (no status)"),
            (
                run,
                run,
                "\nKSYNC answer ",
                "sshd and its bridge run, but nothing answers on its own port 2222",
            ),
            (
                run,
                run,
                "\nKSYNC answer HTTP/1.1 502 \x1bBad",
                "its own port 2222 answers with \"HTTP/1.1 502 \\u{1b}Bad\", which is no bridge to sshd",
            ),
        ] {
            let stdout = format!("noise\nKSYNC sshd {sshd}\nKSYNC bridge  {bridge}{answer}\n").into_bytes();
            let diagnosis =
                read(&Executed { exit_code: 0, stdout, stderr: Vec::new(), duration: Duration::ZERO });
            assert_eq!(diagnosis.to_string(), said);
            assert_eq!(
                diagnosis.is_well(),
                said.starts_with("sshd and its bridge run") && !said.contains("port")
            );
            assert_eq!(diagnosis.admits_root(), !said.contains("root"));
        }
    }
}
