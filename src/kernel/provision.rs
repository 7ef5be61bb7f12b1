//! Making a VM reachable over SSH, in one call, and taking it back.
//!
//! The scripts tell what they do. Here is how they are called, and what their output means: whatever it says, a VM
//! cannot make ksync trust another host than the one that the API vouches for.

use crate::kernel::types::{Exec, Executed};
use crate::tree::path::escape;

/// The script that sets a VM up.
const PROVISION: &str = include_str!("provision.sh");

/// The script that takes back what ksync left.
const CLEANUP: &str = include_str!("cleanup.sh");

/// One provisioning at a time. Not in a directory where others could put a file of this name.
const LOCK: &str = "/run/ksync-provision.lock";

/// How long one waits for another one.
const LOCK_PATIENCE_SECONDS: u64 = 60;

/// How long it may take with all downloads, as with the official CLI.
const PROVISION_SECONDS: u64 = 120;

/// How long cleaning up may take.
const CLEANUP_SECONDS: u64 = 30;

/// What flock answers when it has waited long enough.
const LOCKED: i32 = 75;

/// What the script answers where there is no websocat that runs, and none to be had.
const NO_BRIDGE: i32 = 73;

/// What the script answers where there is no sshd, and no network to install it from.
const NO_SSHD: i32 = 74;

/// Longest line and text that are believed to be a script's, in bytes.
const LINE_BYTES_MAX: usize = 4 << 10;

/// What is known of a VM that has been set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provisioned {
    /// Its host key, as a line of OpenSSH: `ssh-ed25519 AAAA…`.
    pub host_key: String,
    /// The version of its sshd, if it told.
    pub sshd: Option<String>,
    /// The version of its bridge, if it told.
    pub websocat: Option<String>,
    /// What had to be installed.
    pub installed: Vec<String>,
}

/// Why a VM could not be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProvisionError {
    /// The script failed.
    #[error("could not {step} on the VM (exit code {exit_code}): {said}")]
    Failed {
        /// The step that failed, in words of the script.
        step: String,
        /// The script's exit code.
        exit_code: i32,
        /// What the step said last.
        said: String,
    },
    /// There is no websocat that runs, and none could be downloaded: a bridge has to be brought.
    #[error("the VM has no websocat that runs, and could not download one: {said}")]
    NoBridge {
        /// What was said last.
        said: String,
    },
    /// There is no sshd, and no network to install it from, so nothing can be done from here.
    #[error("the VM has neither sshd nor a network to install it from: {said}")]
    NoSshd {
        /// What was said last.
        said: String,
    },
    /// Others are at it.
    #[error("another client has been setting this VM up for {LOCK_PATIENCE_SECONDS} s")]
    Busy,
    /// The script succeeded and told no host key.
    #[error("the VM told no host key that can be used")]
    NoHostKey,
}

/// A bridge that was written to the VM.
#[derive(Debug, Clone, Copy)]
pub(super) struct Brought<'a> {
    /// The SHA-256 of the program, in hex.
    pub(super) sha256: &'a str,
    /// Where it lies, compressed.
    pub(super) file: &'a str,
}

/// Where `name` is written on the VM: in the directory that the script makes its own of.
pub(super) fn place(name: &str) -> String {
    format!("/usr/local/lib/ksync/{name}")
}

/// The call that sets a VM up and lets `public_key`, a line of OpenSSH, in; with the bridge that was brought, if one
/// was.
#[must_use]
pub(super) fn provision(public_key: &str, bridge: Option<Brought<'_>>) -> Exec {
    let bridge = bridge.map(|bridge| [bridge.sha256, bridge.file]);
    let args = [public_key].into_iter().chain(bridge.into_iter().flatten());
    call(PROVISION, args, PROVISION_SECONDS)
}

/// The call that takes back what ksync left, and shuts `public_key` out.
#[must_use]
pub(super) fn cleanup(public_key: &str) -> Exec {
    call(CLEANUP, [public_key], CLEANUP_SECONDS)
}

/// A script, run by one at a time.
fn call<'a>(script: &str, args: impl IntoIterator<Item = &'a str>, seconds: u64) -> Exec {
    let wait = LOCK_PATIENCE_SECONDS.to_string();
    let locked = LOCKED.to_string();
    let before = ["-o", "-w", &wait, "-E", &locked, LOCK, "bash", "-c", script, "ksync"].map(str::to_owned);
    Exec {
        command: "flock".to_owned(),
        args: before.into_iter().chain(args.into_iter().map(str::to_owned)).collect(),
        as_root: true,
        timeout_sec: LOCK_PATIENCE_SECONDS + seconds,
        ..Exec::default()
    }
}

/// What the script's output says.
///
/// # Errors
/// [`ProvisionError`]: it failed, with what it said last.
pub(super) fn read(executed: &Executed) -> Result<Provisioned, ProvisionError> {
    match executed.exit_code {
        0 => {}
        LOCKED => return Err(ProvisionError::Busy),
        exit_code => {
            let text = String::from_utf8_lossy(&executed.stderr);
            let (step, said) = last_step(&text);
            return Err(match exit_code {
                NO_BRIDGE => ProvisionError::NoBridge { said },
                NO_SSHD => ProvisionError::NoSshd { said },
                _ => ProvisionError::Failed { step, exit_code, said },
            });
        }
    }
    let mut told = Provisioned { host_key: String::new(), sshd: None, websocat: None, installed: Vec::new() };
    let lines = executed.stdout.split(|&byte| byte == b'\n').filter(|line| line.len() <= LINE_BYTES_MAX);
    for line in lines.filter_map(|line| std::str::from_utf8(line).ok()) {
        let Some((what, value)) = line.strip_prefix("KSYNC ").and_then(|line| line.split_once(' ')) else {
            continue;
        };
        let value = value.trim();
        let shown = || (!value.is_empty()).then(|| escape(value.as_bytes()).into_owned());
        match what {
            "host-key" if is_host_key(value) => value.clone_into(&mut told.host_key),
            "sshd" => told.sshd = shown(),
            "websocat" => told.websocat = shown(),
            "installed" => {
                told.installed =
                    value.split_whitespace().map(|name| escape(name.as_bytes()).into_owned()).collect();
            }
            _ => {}
        }
    }
    if told.host_key.is_empty() { Err(ProvisionError::NoHostKey) } else { Ok(told) }
}

/// The type and the key in base64, and nothing else.
fn is_host_key(text: &str) -> bool {
    let is_word = |word: &str, more: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    text.split_once(' ').is_some_and(|(kind, key)| is_word(kind, "-@.") && is_word(key, "+/="))
}

/// The last step that a log names, and what stands after it, on one line.
fn last_step(log: &str) -> (String, String) {
    let (step, said) = match log.rfind("== ") {
        Some(at) => log.get(at + 3..).and_then(|rest| rest.split_once('\n')).unwrap_or_default(),
        None => ("start", log),
    };
    let step = if step.is_empty() { "begin" } else { step };
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    // The last lines say what went wrong; those before, how far it came.
    let lines: Vec<_> = lines.collect();
    let last = lines.get(lines.len().saturating_sub(4)..).unwrap_or_default().join("; ");
    let said =
        if last.is_empty() { "it said nothing".to_owned() } else { escape(last.as_bytes()).into_owned() };
    (escape(step.as_bytes()).into_owned(), said)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn executed(exit_code: i32, stdout: &[u8], stderr: &str) -> Executed {
        Executed { exit_code, stdout: stdout.to_vec(), stderr: stderr.into(), duration: Duration::ZERO }
    }

    #[test]
    fn what_the_script_tells_is_read() {
        let told = read(&executed(
            0,
            b"noise\nKSYNC host-key ssh-ed25519 AAAA+/=\nKSYNC sshd OpenSSH_8.9p1\nKSYNC websocat \n\
              KSYNC installed openssh-server websocat \nKSYNC more later\n\xff\n",
            "",
        ));
        let expected = Provisioned {
            host_key: "ssh-ed25519 AAAA+/=".to_owned(),
            sshd: Some("OpenSSH_8.9p1".to_owned()),
            websocat: None,
            installed: vec!["openssh-server".to_owned(), "websocat".to_owned()],
        };
        assert_eq!(told, Ok(expected));
    }

    #[test]
    fn without_a_host_key_nothing_is_trusted() {
        let long = [b"KSYNC host-key ssh-ed25519 ".as_slice(), &[b'A'; LINE_BYTES_MAX]].concat();
        for output in
            [&b""[..], b"KSYNC host-key ", b"KSYNC host-key ssh-ed25519", b"KSYNC host-key a b c", &long]
        {
            assert_eq!(read(&executed(0, output, "")), Err(ProvisionError::NoHostKey));
        }
    }

    #[test]
    fn a_failure_names_the_step_and_what_it_said_last() {
        let log =
            "== let the key in\n== install openssh-server\nReading...\n\n a\nb\nc\nE: no \x1b[1mnetwork\n";
        let error = read(&executed(1, b"", log)).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("could not install openssh-server on the VM (exit code 1): a; b; c; E: no"));
        assert!(!text.contains('\x1b'));
        let error = read(&executed(-1, b"", "")).unwrap_err().to_string();
        assert_eq!(error, "could not start on the VM (exit code -1): it said nothing");
        assert_eq!(read(&executed(LOCKED, b"", "")), Err(ProvisionError::Busy));
        let log = "== download websocat\ncurl: (6) no host\n";
        let error = read(&executed(NO_BRIDGE, b"", log)).unwrap_err();
        assert_eq!(error, ProvisionError::NoBridge { said: "curl: (6) no host".to_owned() });
        let error = read(&executed(NO_SSHD, b"", "== install openssh-server\nE: no network\n")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the VM has neither sshd nor a network to install it from: E: no network"
        );
    }

    #[test]
    fn the_calls_hold_no_word_of_the_key_in_the_script() {
        let exec = provision("ssh-ed25519 AAAA $(touch x)", None);
        assert_eq!(exec.args.last().map(String::as_str), Some("ssh-ed25519 AAAA $(touch x)"));
        assert!(exec.as_root && !exec.args.iter().rev().skip(1).any(|arg| arg.contains("AAAA")));
        let exec = provision("k", Some(Brought { sha256: "5", file: "/f" }));
        assert_eq!(exec.args.get(10..).map(<[_]>::concat).as_deref(), Some("k5/f"));
        assert_eq!(cleanup("k").args.last().map(String::as_str), Some("k"));
    }
}
