//! Sets a VM up for SSH in one call, and undoes that.
//!
//! The scripts document their steps. This module calls them and parses their output. No output of a
//! VM can make ksync trust another host than the one that the API names.

use crate::kernel::types::{Exec, Executed};
use crate::remote::HostFacts;
use crate::tree::path::escape;

/// Script that sets a VM up.
const PROVISION: &str = include_str!("provision.sh");

/// Script that removes ksync's traces.
const CLEANUP: &str = include_str!("cleanup.sh");

/// Lock that admits one provisioning at a time. Others cannot create a file in its directory.
const LOCK: &str = "/run/ksync-provision.lock";

/// Timeout of the lock, in seconds.
const LOCK_TIMEOUT_SECONDS: u64 = 60;

/// Timeout of provisioning with all downloads, as in the official CLI.
const PROVISION_SECONDS: u64 = 120;

/// Timeout of cleaning up.
const CLEANUP_SECONDS: u64 = 30;

/// Exit code of flock after its timeout.
const LOCKED: i32 = 75;

/// Exit code of the script if no websocat runs and none can be downloaded.
const NO_BRIDGE: i32 = 73;

/// Exit code of the script if there is no sshd, and no network to install it from.
const NO_SSHD: i32 = 74;

/// Longest line and text accepted from a script, in bytes.
const LINE_BYTES_MAX: usize = 4 << 10;

/// Facts about a VM that has been set up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provisioned {
    /// The VM's host key, as a line of OpenSSH: `ssh-ed25519 AAAA…`.
    pub host_key: String,
    /// Version of the VM's sshd, if reported.
    pub sshd: Option<String>,
    /// Version of the VM's bridge, if reported.
    pub websocat: Option<String>,
    /// True if the bridge's connections have TCP_NODELAY, as far as is known.
    pub has_nodelay: Option<bool>,
    /// First line of sshd, if reported.
    pub server_id: Option<String>,
    /// Names of sshd's key exchanges, separated by commas, if reported.
    pub key_exchanges: Option<String>,
    /// Packages that the script installed.
    pub installed: Vec<String>,
}

impl Provisioned {
    /// Version of the bridge for display, and how it sends small packets.
    #[must_use]
    pub fn bridge(&self) -> String {
        let version = self.websocat.as_deref().unwrap_or("of an unknown version");
        match self.has_nodelay {
            Some(true) => format!("{version} with TCP_NODELAY"),
            Some(false) => format!("{version} without TCP_NODELAY, which makes each connection slower"),
            None => version.to_owned(),
        }
    }

    /// Facts for a fast first connection, for the owner of `public_key`, a line of OpenSSH that was
    /// just authorised. They cannot change which host key is trusted.
    pub(super) fn facts(&self, public_key: &str) -> Option<HostFacts> {
        let (server_id, key_exchanges) = (self.server_id.as_deref()?, self.key_exchanges.as_deref()?);
        HostFacts::provisioned(server_id, key_exchanges, &self.host_key, public_key)
    }
}

/// Reason why a VM could not be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProvisionError {
    /// The script failed.
    #[error("could not {step} on the VM (exit code {exit_code}): {said}")]
    Failed {
        /// The failed step, in the script's words.
        step: String,
        /// The script's exit code.
        exit_code: i32,
        /// The last output of the step.
        said: String,
    },
    /// No websocat runs, and none could be downloaded: ksync must upload its own bridge.
    #[error("the VM has no websocat that runs, and could not download one: {said}")]
    NoBridge {
        /// The last output of the step.
        said: String,
    },
    /// There is no sshd, and no network to install it from, so ksync cannot help.
    #[error("the VM has neither sshd nor a network to install it from: {said}")]
    NoSshd {
        /// The last output of the step.
        said: String,
    },
    /// Another client holds the lock.
    #[error("another client has been setting this VM up for {LOCK_TIMEOUT_SECONDS} s")]
    Busy,
    /// The script succeeded without reporting a host key.
    #[error("the VM reported no usable host key")]
    NoHostKey,
}

/// A bridge that was written to the VM.
#[derive(Debug, Clone, Copy)]
pub(super) struct Brought<'a> {
    /// The SHA-256 of the program, in hex.
    pub(super) sha256: &'a str,
    /// Path of the compressed bridge.
    pub(super) file: &'a str,
}

/// Path of the file `name` on the VM, in the directory of the script's own bridge.
pub(super) fn remote_path(name: &str) -> String {
    format!("/usr/local/lib/ksync/{name}")
}

/// Builds the call that sets a VM up and authorises `public_key`, a line of OpenSSH. `bridge` is
/// the uploaded bridge, if there is one.
#[must_use]
pub(super) fn provision(public_key: &str, bridge: Option<Brought<'_>>) -> Exec {
    let bridge = bridge.map(|bridge| [bridge.sha256, bridge.file]);
    let args = [public_key].into_iter().chain(bridge.into_iter().flatten());
    call(PROVISION, args, PROVISION_SECONDS)
}

/// Builds the call that removes ksync's traces and revokes these keys, lines of OpenSSH.
#[must_use]
pub(super) fn cleanup(public_keys: &[String]) -> Exec {
    call(CLEANUP, public_keys.iter().map(String::as_str), CLEANUP_SECONDS)
}

/// Builds the call of a script, under the lock.
fn call<'a>(script: &str, args: impl IntoIterator<Item = &'a str>, seconds: u64) -> Exec {
    let wait = LOCK_TIMEOUT_SECONDS.to_string();
    let locked = LOCKED.to_string();
    let before = ["-o", "-w", &wait, "-E", &locked, LOCK, "bash", "-c", script, "ksync"].map(str::to_owned);
    Exec {
        command: "flock".to_owned(),
        args: before.into_iter().chain(args.into_iter().map(str::to_owned)).collect(),
        as_root: true,
        timeout_sec: LOCK_TIMEOUT_SECONDS + seconds,
        ..Exec::default()
    }
}

/// Parses the script's output.
///
/// # Errors
/// [`ProvisionError`]: the script failed; with its last output.
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
    let mut told = Provisioned::default();
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
            "nodelay" => told.has_nodelay = Some(value == "yes"),
            "server-id" => told.server_id = shown(),
            "key-exchanges" => told.key_exchanges = shown(),
            "installed" => {
                told.installed =
                    value.split_whitespace().map(|name| escape(name.as_bytes()).into_owned()).collect();
            }
            _ => {}
        }
    }
    if told.host_key.is_empty() { Err(ProvisionError::NoHostKey) } else { Ok(told) }
}

/// Checks that a text is a key type and a key in base64, and nothing else.
fn is_host_key(text: &str) -> bool {
    let is_word = |word: &str, more: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    text.split_once(' ').is_some_and(|(kind, key)| is_word(kind, "-@.") && is_word(key, "+/="))
}

/// The last step that a log names, and the output after it, on one line.
fn last_step(log: &str) -> (String, String) {
    let (step, said) = match log.rfind("== ") {
        Some(at) => log.get(at + 3..).and_then(|rest| rest.split_once('\n')).unwrap_or_default(),
        None => ("start", log),
    };
    let step = if step.is_empty() { "begin" } else { step };
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    // The last lines hold the error; the lines before show the progress.
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
    fn the_output_of_the_script_is_parsed() {
        let told = read(&executed(
            0,
            b"noise\nKSYNC host-key ssh-ed25519 AAAA+/=\nKSYNC sshd OpenSSH_8.9p1\nKSYNC websocat \n\
              KSYNC nodelay yes\nKSYNC server-id SSH-2.0-OpenSSH_8.9p1 Ubuntu\nKSYNC key-exchanges a,b\n\
              KSYNC installed openssh-server websocat \nKSYNC more later\n\xff\n",
            "",
        ));
        let expected = Provisioned {
            host_key: "ssh-ed25519 AAAA+/=".to_owned(),
            sshd: Some("OpenSSH_8.9p1".to_owned()),
            websocat: None,
            has_nodelay: Some(true),
            server_id: Some("SSH-2.0-OpenSSH_8.9p1 Ubuntu".to_owned()),
            key_exchanges: Some("a,b".to_owned()),
            installed: vec!["openssh-server".to_owned(), "websocat".to_owned()],
        };
        assert_eq!(told, Ok(expected));
    }

    #[test]
    fn the_bridge_is_named_with_its_way_of_sending() {
        let of = |has_nodelay| Provisioned {
            websocat: Some("websocat 1.14.1".to_owned()),
            has_nodelay,
            ..Provisioned::default()
        };
        assert_eq!(of(Some(true)).bridge(), "websocat 1.14.1 with TCP_NODELAY");
        assert!(of(Some(false)).bridge().starts_with("websocat 1.14.1 without TCP_NODELAY, "));
        assert_eq!(of(None).bridge(), "websocat 1.14.1");
        assert_eq!(Provisioned::default().bridge(), "of an unknown version");
    }

    #[test]
    fn the_facts_are_those_of_the_authorised_key_and_need_a_known_server() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
        let of = |version: &str, key_exchanges: &str| Provisioned {
            host_key: key.to_owned(),
            server_id: Some(format!("SSH-2.0-{version}")),
            key_exchanges: Some(key_exchanges.to_owned()),
            ..Provisioned::default()
        };
        let line = format!("{key} ksync");
        let facts = of("OpenSSH_8.9p1", "diffie-hellman-group14-sha256,curve25519-sha256").facts(&line);
        let facts = facts.expect("facts");
        assert_eq!((facts.server_id.as_str(), facts.failures), ("SSH-2.0-OpenSSH_8.9p1", 0));
        assert_eq!(
            (facts.key_exchange.as_str(), facts.host_key.as_str()),
            ("curve25519-sha256", "ssh-ed25519")
        );
        assert!(facts.user_key.is_some());
        // A VM cannot make ksync offer anything that it would not offer by itself.
        for (version, key_exchanges) in [
            ("OpenSSH_8.9p1", "diffie-hellman-group14-sha256"),
            ("OpenSSH_6.6", "curve25519-sha256"),
            ("", ""),
        ] {
            assert_eq!(of(version, key_exchanges).facts(&line), None);
        }
        assert_eq!(Provisioned { key_exchanges: None, ..of("OpenSSH_8.9p1", "") }.facts(&line), None);
    }

    #[test]
    fn a_missing_or_malformed_host_key_is_an_error() {
        let long = [b"KSYNC host-key ssh-ed25519 ".as_slice(), &[b'A'; LINE_BYTES_MAX]].concat();
        for output in
            [&b""[..], b"KSYNC host-key ", b"KSYNC host-key ssh-ed25519", b"KSYNC host-key a b c", &long]
        {
            assert_eq!(read(&executed(0, output, "")), Err(ProvisionError::NoHostKey));
        }
    }

    #[test]
    fn a_failure_names_the_step_and_its_last_output() {
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
    fn the_key_is_an_argument_and_not_part_of_the_script() {
        let exec = provision("ssh-ed25519 AAAA $(touch x)", None);
        assert_eq!(exec.args.last().map(String::as_str), Some("ssh-ed25519 AAAA $(touch x)"));
        assert!(exec.as_root && !exec.args.iter().rev().skip(1).any(|arg| arg.contains("AAAA")));
        let exec = provision("k", Some(Brought { sha256: "5", file: "/f" }));
        assert_eq!(exec.args.get(10..).map(<[_]>::concat).as_deref(), Some("k5/f"));
        let exec = cleanup(&["k 1".to_owned(), "k 2".to_owned()]);
        assert_eq!(exec.args.get(10..), Some(&["k 1".to_owned(), "k 2".to_owned()][..]));
    }
}
