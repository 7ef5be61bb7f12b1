//! Whether the host is the one it should be.
//!
//! Three ways to know, and no way to not care: OpenSSH's `known_hosts`, a key that was read through another
//! trusted channel, or a store of our own that keeps the first key it sees.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::Algorithm;
use russh::keys::{HashAlg, PublicKey};

use crate::remote::known_hosts::{KeyText, Meaning, Record, records};
use crate::tree::path::escape;

/// Largest file of known keys that is read: a hundred thousand hosts.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

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

/// The whole of `file` as text; empty if there is none.
fn read(file: &Path) -> io::Result<String> {
    match File::open(file) {
        Ok(open) => read_open(&open),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

fn read_open(file: &File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 16 MiB"));
    }
    // Comments may be in any encoding; a name or key that is not ASCII matches nothing.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The keys pinned for `endpoint`, with their line numbers.
fn pins<'a>(text: &'a str, endpoint: &str) -> impl Iterator<Item = (usize, KeyText)> + 'a {
    let endpoint = pin_name(endpoint);
    text.lines().enumerate().filter_map(move |(index, line)| {
        let (name, key) = line.split_once(' ')?;
        // A line that was cut off is a key that cannot match, not a host that was never seen.
        let nothing = || KeyText { kind: "no whole key".into(), base64: String::new() };
        (name == endpoint).then(|| (index + 1, KeyText::parse(key).unwrap_or_else(nothing)))
    })
}

/// An endpoint as one word.
fn pin_name(endpoint: &str) -> String {
    escape(endpoint.as_bytes()).replace(' ', "\\x20")
}

/// Compares with the pinned key, or pins `key` if there is none.
fn pin(store: &Path, endpoint: &str, key: KeyText, fingerprint: String) -> Result<(), HostKeyError> {
    let unreadable = |source| HostKeyError::Unreadable { path: store.into(), source };
    let text = read(store).map_err(unreadable)?;
    if let Some(verdict) = compare(store, &text, endpoint, &key, &fingerprint) {
        return verdict;
    }
    let not_kept = |source| HostKeyError::NotKept { path: store.into(), source };
    let mut file = open_store(store).map_err(not_kept)?;
    // Two first connections at once: the second one must find what the first one wrote.
    file.lock().map_err(not_kept)?;
    let text = read_open(&file).map_err(unreadable)?;
    if let Some(verdict) = compare(store, &text, endpoint, &key, &fingerprint) {
        return verdict;
    }
    // A line that was cut off by a power failure must not swallow this one.
    let start = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let line = format!("{start}{} {} {}\n", pin_name(endpoint), key.kind, key.base64);
    file.write_all(line.as_bytes()).and_then(|()| file.sync_data()).map_err(not_kept)
}

fn compare(
    store: &Path,
    text: &str,
    endpoint: &str,
    key: &KeyText,
    fingerprint: &str,
) -> Option<Result<(), HostKeyError>> {
    let (line, known) = pins(text, endpoint).next()?;
    if known == *key {
        return Some(Ok(()));
    }
    Some(Err(HostKeyError::Changed {
        kind: key.kind.clone(),
        fingerprint: fingerprint.into(),
        path: store.into(),
        line,
        known_kind: known.kind,
    }))
}

/// Opens the store for appending; makes it, and its directory, for this user only.
fn open_store(store: &Path) -> io::Result<File> {
    let mut directory = DirBuilder::new();
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        directory.mode(0o700);
        options.mode(0o600);
    }
    if let Some(parent) = store.parent() {
        directory.recursive(true).create(parent)?;
    }
    options.open(store)
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

    #[test]
    fn the_first_key_is_pinned_privately_and_no_other_taken_after_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("a/b/hosts");
        let keys =
            |endpoint: &str| HostKeys::PinOnFirstUse { store: store.clone(), endpoint: endpoint.into() };
        let shown = |text| PublicKey::from_openssh(text).unwrap();
        keys("wss://vm:2222").check(&shown(ED25519)).unwrap();
        keys("wss://vm:2222").check(&shown(ED25519)).unwrap();
        keys("a b").check(&shown(OTHER)).unwrap();
        for other in [OTHER, ECDSA] {
            let error = keys("wss://vm:2222").check(&shown(other)).unwrap_err();
            assert!(matches!(error, HostKeyError::Changed { line: 1, .. }), "{error}");
        }
        assert_eq!(
            std::fs::read_to_string(&store).unwrap(),
            format!("wss://vm:2222 {ED25519}\na\\x20b {OTHER}\n")
        );
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&store), mode(store.parent().unwrap())), (0o600, 0o700));
        }
    }

    #[test]
    fn a_torn_line_does_not_swallow_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("hosts");
        std::fs::write(&store, "wss://old ssh-ed2").unwrap();
        let keys = HostKeys::PinOnFirstUse { store: store.clone(), endpoint: "vm".into() };
        keys.check(&PublicKey::from_openssh(ED25519).unwrap()).unwrap();
        assert_eq!(std::fs::read_to_string(&store).unwrap(), format!("wss://old ssh-ed2\nvm {ED25519}\n"));
    }
}
