//! Whether the host is the one it should be.
//!
//! Three ways to know, and no way to not care: OpenSSH's `known_hosts`, a key that was read through another
//! trusted channel, or a store of our own that keeps the first key it sees.

use std::io;
use std::path::PathBuf;

use russh::keys::ssh_key::Algorithm;
use russh::keys::{HashAlg, PublicKey};

use crate::remote::known_hosts::{KeyText, Meaning, Record, read, records};
use crate::remote::pins::{pin, pins};
use crate::tree::path::escape;

/// How a host proves that it is the right one.
#[derive(Debug, Clone)]
pub enum HostKeys {
    /// By a key that stands in one of OpenSSH's files. Nothing is ever added to them.
    KnownHosts {
        /// The files; those that do not exist are skipped.
        files: Vec<PathBuf>,
        /// The host's name in them.
        host: String,
        /// The port, which is part of the name unless it is 22.
        port: u16,
    },
    /// By one of these keys, a line each: `ssh-ed25519 AAAA…`.
    Exactly(String),
    /// By the key that it had the first time.
    PinOnFirstUse {
        /// Where keys are kept: a line per endpoint in a file (0600) in a private directory (0700).
        store: PathBuf,
        /// Under which name.
        endpoint: String,
    },
}

/// Why a host is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// A file that may say something cannot be read, so nothing is known.
    #[error("could not read the known keys in {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key could not be kept.
    #[error("could not keep the host's key in {}", path.display())]
    NotKept {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing is known of the host.
    #[error("its key ({kind} {fingerprint}) is not known: {name} stands in none of the known_hosts files")]
    Unknown {
        /// The name that was looked up.
        name: String,
        /// The key's type.
        kind: String,
        /// The key's fingerprint.
        fingerprint: String,
    },
    /// The host has had another key.
    #[error("its key has changed: it shows {kind} {fingerprint}, but {}:{line} has another ({known_kind})", path.display())]
    Changed {
        /// The type of the key that it shows.
        kind: String,
        /// That key's fingerprint.
        fingerprint: String,
        /// Which file says otherwise.
        path: PathBuf,
        /// In which line.
        line: usize,
        /// The type of the key there.
        known_kind: String,
    },
    /// The key is marked as revoked.
    #[error("its key ({kind} {fingerprint}) is revoked by {}:{line}", path.display())]
    Revoked {
        /// The key's type.
        kind: String,
        /// The key's fingerprint.
        fingerprint: String,
        /// Which file says so.
        path: PathBuf,
        /// In which line.
        line: usize,
    },
    /// The host is known by certificates only.
    #[error("{}:{line} knows it by a certificate authority only, which ksync does not support", path.display())]
    Authority {
        /// Which file says so.
        path: PathBuf,
        /// In which line.
        line: usize,
    },
    /// The key is not the one that was asked for.
    #[error("its key ({kind} {fingerprint}) is not the one that it must have")]
    NotExpected {
        /// The key's type.
        kind: String,
        /// The key's fingerprint.
        fingerprint: String,
    },
    /// What should be the expected key is none.
    #[error("the key that it must have is given in no known form")]
    Malformed,
}

impl HostKeyError {
    /// What to do next, for a person.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Unreadable { .. } => "Make the file readable; until then no host is trusted.".into(),
            Self::NotKept { .. } => "Make the directory writable for you, and for nobody else.".into(),
            Self::Unknown { .. } => {
                "Compare the fingerprint with the host's (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub there), then connect once with ssh.".into()
            }
            Self::Changed { .. } => {
                "Somebody may be listening in. If the host was made anew, or has got a key of another type, compare the fingerprint and replace the line.".into()
            }
            Self::Revoked { .. } => "The key is in wrong hands: do not connect.".into(),
            Self::Authority { .. } => "Connect once with ssh -o HostKeyAlgorithms=ssh-ed25519 to learn its plain key.".into(),
            Self::NotExpected { .. } => {
                "Somebody may be listening in. If the VM was made anew, look up its key again.".into()
            }
            Self::Malformed => "Write it as in known_hosts: ssh-ed25519 AAAA…".into(),
        }
    }
}

impl HostKeys {
    /// The types of key by which the host is known, to be asked for first: a host that has several keys must
    /// show the one that can be recognised.
    pub(super) fn known_kinds(&self) -> Result<Vec<Algorithm>, HostKeyError> {
        let kinds: Vec<String> = match self {
            Self::KnownHosts { files, host, port } => known(files, host, *port)?
                .into_iter()
                .filter(|record| record.meaning == Meaning::Key)
                .map(|record| record.key.kind)
                .collect(),
            Self::Exactly(keys) => expected(keys)?.into_iter().map(|key| key.kind).collect(),
            Self::PinOnFirstUse { store, endpoint } => match read(store) {
                Ok(text) => pins(&text, endpoint).map(|(_, key)| key.kind).collect(),
                Err(source) => return Err(HostKeyError::Unreadable { path: store.clone(), source }),
            },
        };
        Ok(kinds.iter().filter_map(|kind| Algorithm::new(kind).ok()).collect())
    }

    /// Whether `key`, which the host has proved to have, is the right one.
    pub(super) fn check(&self, key: &PublicKey) -> Result<(), HostKeyError> {
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        let text =
            key.to_openssh().ok().and_then(|text| KeyText::parse(&text)).ok_or(HostKeyError::Malformed)?;
        match self {
            Self::KnownHosts { files, host, port } => {
                judge(&known(files, host, *port)?, host, *port, text, fingerprint)
            }
            Self::Exactly(keys) if expected(keys)?.contains(&text) => Ok(()),
            Self::Exactly(_) => Err(HostKeyError::NotExpected { kind: text.kind, fingerprint }),
            Self::PinOnFirstUse { store, endpoint } => pin(store, endpoint, text, fingerprint),
        }
    }
}

/// What the files' lines mean for the key that the host showed.
fn judge(
    records: &[Record],
    host: &str,
    port: u16,
    key: KeyText,
    fingerprint: String,
) -> Result<(), HostKeyError> {
    let find = |test: &dyn Fn(&&Record) -> bool| records.iter().find(test);
    if let Some(record) = find(&|record| record.meaning == Meaning::Revoked && record.key == key) {
        let (path, line) = (record.file.clone(), record.line);
        return Err(HostKeyError::Revoked { kind: key.kind, fingerprint, path, line });
    }
    let named = |record: &&Record| record.meaning == Meaning::Key && !record.portless;
    // As with OpenSSH, a line without the port counts if it has the right key and none has the port.
    let any_port = find(&named).is_none();
    if find(&|record| record.meaning == Meaning::Key && record.key == key && (any_port || !record.portless))
        .is_some()
    {
        return Ok(());
    }
    if let Some(record) = find(&named) {
        let (path, line, known_kind) = (record.file.clone(), record.line, record.key.kind.clone());
        let known_kind = escape(known_kind.as_bytes()).into_owned();
        return Err(HostKeyError::Changed { kind: key.kind, fingerprint, path, line, known_kind });
    }
    if let Some(record) = find(&|record| record.meaning == Meaning::Authority) {
        return Err(HostKeyError::Authority { path: record.file.clone(), line: record.line });
    }
    let name = if port == 22 { host.to_owned() } else { format!("[{host}]:{port}") };
    Err(HostKeyError::Unknown { name: escape(name.as_bytes()).into_owned(), kind: key.kind, fingerprint })
}

/// Every line of `files` about the host. A file that is not there says nothing; one that cannot be read
/// might have said something, so nothing is trusted.
fn known(files: &[PathBuf], host: &str, port: u16) -> Result<Vec<Record>, HostKeyError> {
    let mut all = Vec::new();
    for file in files {
        let text = read(file).map_err(|source| HostKeyError::Unreadable { path: file.clone(), source })?;
        all.extend(records(file, &text, host, port));
    }
    Ok(all)
}

fn expected(keys: &str) -> Result<Vec<KeyText>, HostKeyError> {
    let lines = keys.lines().map(str::trim).filter(|line| !line.is_empty());
    let keys: Option<Vec<_>> =
        lines.map(|line| PublicKey::from_openssh(line).ok().and_then(|_| KeyText::parse(line))).collect();
    keys.filter(|keys| !keys.is_empty()).ok_or(HostKeyError::Malformed)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::remote) const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    pub(in crate::remote) const OTHER: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINfh+nCmeeIEKp2guV1TdNDWLK7IrJcNfkNPaMGBoRyS";
    pub(in crate::remote) const ECDSA: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBIMU3cq0fIwY/tWcjFKGi+oNgPmiCFH/KJnjP+U8yWA26ZsM+M3cNhCREQACQfQxxysaQFgGlBW0+aZ3PePVeNw=";

    fn check(lines: &str, host: &str, port: u16, shown: &str) -> Result<(), HostKeyError> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("known_hosts");
        std::fs::write(&file, lines).unwrap();
        let files = vec![directory.path().join("missing"), file];
        HostKeys::KnownHosts { files, host: host.into(), port }
            .check(&PublicKey::from_openssh(shown).unwrap())
    }

    #[test]
    fn the_known_key_is_trusted_among_others() {
        assert!(check(&format!("vm {OTHER}\nvm {ED25519}\n"), "vm", 22, ED25519).is_ok());
        assert!(check(&format!("*.a,v? {ED25519} comment\n"), "vm", 22, ED25519).is_ok());
        assert!(check(&format!("vm {ED25519}\n"), "vm", 2222, ED25519).is_ok());
    }

    #[test]
    fn a_changed_key_is_refused_whatever_its_type() {
        for known in [OTHER, ECDSA, "ssh-rsa AAAA"] {
            let error = check(&format!("vm {known}\n"), "vm", 22, ED25519).unwrap_err();
            assert!(matches!(error, HostKeyError::Changed { line: 1, .. }), "{error}");
        }
        // The line with the port is the one that counts.
        let error = check(&format!("[vm]:2222 {OTHER}\nvm {ED25519}\n"), "vm", 2222, ED25519).unwrap_err();
        assert!(matches!(error, HostKeyError::Changed { line: 1, .. }), "{error}");
    }

    #[test]
    fn an_unknown_host_is_refused() {
        for lines in [String::new(), format!("other {ED25519}\n"), format!("!vm,* {ED25519}\n")] {
            let error = check(&lines, "vm", 22, ED25519).unwrap_err();
            assert!(matches!(error, HostKeyError::Unknown { .. }), "{error}");
        }
    }

    #[test]
    fn a_revoked_key_is_refused_though_it_is_known() {
        let error = check(&format!("vm {ED25519}\n@revoked * {ED25519}\n"), "vm", 22, ED25519).unwrap_err();
        assert!(matches!(error, HostKeyError::Revoked { line: 2, .. }), "{error}");
        assert!(check(&format!("vm {ED25519}\n@revoked * {OTHER}\n"), "vm", 22, ED25519).is_ok());
    }

    #[test]
    fn a_certificate_authority_is_not_a_key() {
        let error = check(&format!("@cert-authority * {ED25519}\n"), "vm", 22, ED25519).unwrap_err();
        assert!(matches!(error, HostKeyError::Authority { .. }), "{error}");
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_empty() {
        let directory = tempfile::tempdir().unwrap();
        let key = PublicKey::from_openssh(ED25519).unwrap();
        let files = vec![directory.path().into()];
        let error = HostKeys::KnownHosts { files, host: "vm".into(), port: 22 }.check(&key).unwrap_err();
        assert!(matches!(error, HostKeyError::Unreadable { .. }), "{error}");
        let store = HostKeys::PinOnFirstUse { store: directory.path().into(), endpoint: "vm".into() };
        assert!(matches!(store.check(&key).unwrap_err(), HostKeyError::Unreadable { .. }));
    }

    #[test]
    fn the_expected_key_and_no_other_is_trusted() {
        let keys = HostKeys::Exactly(format!("{ED25519} root@vm\n{ECDSA}\n"));
        assert!(keys.check(&PublicKey::from_openssh(ED25519).unwrap()).is_ok());
        let error = keys.check(&PublicKey::from_openssh(OTHER).unwrap()).unwrap_err();
        assert!(matches!(error, HostKeyError::NotExpected { .. }), "{error}");
        for text in ["", "\n", "ssh-ed25519", "junk AAAA"] {
            assert!(HostKeys::Exactly(text.into()).known_kinds().is_err(), "{text:?}");
        }
        assert_eq!(keys.known_kinds().unwrap().len(), 2);
    }
}
