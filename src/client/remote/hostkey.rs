//! Host key verification.
//!
//! There are three proofs and no way to switch the check off. They are OpenSSH's `known_hosts`,
//! with keys and certificate authorities; a key read over another trusted channel; and ksync's own
//! store, which pins the first key it sees.

use std::path::PathBuf;

use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey};

use crate::remote::hostkey_error::HostKeyError;
use crate::remote::known_hosts::{KeyText, Meaning, Record, pattern_matches, read, records};
use crate::remote::pins::{pin, pins};
use crate::tree::path::escape;

/// Proof that a host must give of its identity.
#[derive(Debug, Clone)]
pub enum HostKeys {
    /// A key in one of OpenSSH's files. ksync never adds to them.
    KnownHosts {
        /// The files. ksync skips those that do not exist.
        files: Vec<PathBuf>,
        /// The host's name in these files.
        host: String,
        /// The port. It is part of the name unless it is 22.
        port: u16,
    },
    /// One of these keys, one a line: `ssh-ed25519 AAAA…`.
    Exactly(String),
    /// The key that the host showed on the first connection.
    PinOnFirstUse {
        /// The pin store: a file (mode 0600) in a private directory (mode 0700), with one line per
        /// endpoint.
        store: PathBuf,
        /// The endpoint's name in the store.
        endpoint: String,
    },
}

impl HostKeys {
    /// The kind of proof, for the log.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::KnownHosts { .. } => "known_hosts",
            Self::Exactly(_) => "given-key",
            Self::PinOnFirstUse { .. } => "pin",
        }
    }

    /// Key types by which the host is known. The handshake asks for them first, so that a host with
    /// several keys shows one that ksync can recognise.
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

    /// The records that decide about the host's key now, as text: they change when its trust does.
    #[must_use]
    pub fn records(&self) -> String {
        match self {
            Self::KnownHosts { files, host, port } => format!("{:?}", known(files, host, *port).ok()),
            Self::Exactly(keys) => keys.clone(),
            Self::PinOnFirstUse { store, endpoint } => {
                let text = read(store).unwrap_or_default();
                pins(&text, endpoint).map(|(_, key)| format!("{} {}\n", key.kind, key.base64)).collect()
            }
        }
    }

    /// Reports if the host is known by a certificate authority, so that it is asked for a
    /// certificate.
    pub(super) fn has_authority(&self) -> Result<bool, HostKeyError> {
        Ok(match self {
            Self::KnownHosts { files, host, port } => {
                known(files, host, *port)?.iter().any(|record| record.meaning == Meaning::Authority)
            }
            Self::Exactly(_) | Self::PinOnFirstUse { .. } => false,
        })
    }

    /// Checks a certificate of a key of which the host has proved possession. As in OpenSSH, a
    /// certificate of an unknown authority counts as its plain key.
    pub(super) fn check_certificate(&self, certificate: &Certificate) -> Result<(), HostKeyError> {
        if let Self::KnownHosts { files, host, port } = self {
            let records = known(files, host, *port)?;
            let signed_by = text(&PublicKey::from(certificate.signature_key().clone()))?;
            let find = |meaning, key: &KeyText| {
                records.iter().find(|record| record.meaning == meaning && record.key == *key)
            };
            if let Some(record) = find(Meaning::Authority, &signed_by) {
                let (path, line) = (record.file.clone(), record.line);
                if let Some(record) = find(Meaning::Revoked, &signed_by) {
                    let fingerprint = certificate.signature_key().fingerprint(HashAlg::Sha256).to_string();
                    let (path, line) = (record.file.clone(), record.line);
                    return Err(HostKeyError::Revoked { kind: signed_by.kind, fingerprint, path, line });
                }
                let key = text(&PublicKey::from(certificate.public_key().clone()))?;
                if find(Meaning::Revoked, &key).is_none() {
                    let wrong = |reason| HostKeyError::Certificate { path, line, reason };
                    return valid(certificate, host).map_err(wrong);
                }
            }
        }
        self.check(&PublicKey::from(certificate.public_key().clone()))
    }

    /// Checks `key`, of which the host has proved possession.
    pub(super) fn check(&self, key: &PublicKey) -> Result<(), HostKeyError> {
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        let text = text(key)?;
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

fn text(key: &PublicKey) -> Result<KeyText, HostKeyError> {
    key.to_openssh().ok().and_then(|text| KeyText::parse(&text)).ok_or(HostKeyError::Malformed)
}

/// Checks a certificate that a trusted authority is said to have signed, as OpenSSH's
/// `sshkey_cert_check_host` does.
fn valid(certificate: &Certificate, host: &str) -> Result<(), &'static str> {
    let host = host.to_ascii_lowercase();
    let is_named = |name: &String| pattern_matches(&name.to_ascii_lowercase(), &host);
    if certificate.cert_type() != CertType::Host {
        Err("it is not one of a host")
    } else if !certificate.valid_principals().iter().any(is_named) {
        Err("it does not name this host")
    } else if !certificate.critical_options().is_empty() {
        Err("it has an option that ksync does not know")
    } else if certificate.signature().algorithm() == (Algorithm::Rsa { hash: None }) {
        Err("it is signed with SHA-1")
    } else if certificate.validate(&[certificate.signature_key().fingerprint(HashAlg::Sha256)]).is_err() {
        Err("its signature is wrong, or this is not its time")
    } else {
        Ok(())
    }
}

/// Applies the files' records to the key that the host showed.
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
    // As in OpenSSH, a record without the port counts if it has the right key and no record has the
    // port.
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

/// Collects every record of `files` about the host. A missing file is empty. An unreadable file
/// might hold a record, so it is an error.
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
mod tests {
    use super::*;

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const OTHER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINfh+nCmeeIEKp2guV1TdNDWLK7IrJcNfkNPaMGBoRyS";
    const ECDSA: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBIMU3cq0fIwY/tWcjFKGi+oNgPmiCFH/KJnjP+U8yWA26ZsM+M3cNhCREQACQfQxxysaQFgGlBW0+aZ3PePVeNw=";

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
        // Only the record with the port counts.
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
    fn a_known_but_revoked_key_is_refused() {
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
    fn an_unreadable_file_is_not_taken_for_an_empty_one() {
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
