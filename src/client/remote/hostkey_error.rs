//! Reasons not to trust a host, and hints what to do about them.

use std::io;
use std::path::PathBuf;

/// Reason not to trust a host.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// A file of known keys is unreadable, so ksync trusts no host.
    #[error("could not read the known keys in {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The pin store could not be written.
    #[error("could not keep the host's key in {}", path.display())]
    NotKept {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No record names the host.
    #[error("its key ({kind} {fingerprint}) is not known: {name} is not in any known_hosts file")]
    Unknown {
        /// The name that ksync looked up.
        name: String,
        /// The key's type.
        kind: String,
        /// The key's fingerprint.
        fingerprint: String,
    },
    /// The host showed another key before.
    #[error("its key has changed: it shows {kind} {fingerprint}, but {}:{line} has another ({known_kind})", path.display())]
    Changed {
        /// Type of the key that the host shows.
        kind: String,
        /// Fingerprint of that key.
        fingerprint: String,
        /// File with the other key.
        path: PathBuf,
        /// Line number in that file.
        line: usize,
        /// Type of the key in that line.
        known_kind: String,
    },
    /// A record marks the key as revoked.
    #[error("its key ({kind} {fingerprint}) is revoked by {}:{line}", path.display())]
    Revoked {
        /// The key's type.
        kind: String,
        /// The key's fingerprint.
        fingerprint: String,
        /// File with the revocation.
        path: PathBuf,
        /// Line number in that file.
        line: usize,
    },
    /// The host's certificate is wrong, although a trusted authority is said to have signed it.
    #[error("its certificate of the authority in {}:{line} is not valid: {reason}", path.display())]
    Certificate {
        /// File with the authority.
        path: PathBuf,
        /// Line number in that file.
        line: usize,
        /// The reason.
        reason: &'static str,
    },
    /// The records know the host by a certificate authority only.
    #[error("{}:{line} knows it by a certificate authority, but it has no certificate of that authority", path.display())]
    Authority {
        /// File with that record.
        path: PathBuf,
        /// Line number in that file.
        line: usize,
    },
    /// The key is not the expected one.
    #[error("its key ({kind} {fingerprint}) is not the one that it must have")]
    NotExpected {
        /// The key's type.
        kind: String,
        /// The key's fingerprint.
        fingerprint: String,
    },
    /// The expected key is malformed.
    #[error("the key that it must have is malformed")]
    Malformed,
}

impl HostKeyError {
    /// Advice for the user about the next step.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Unreadable { .. } => "Make the file readable; until then no host is trusted.".into(),
            Self::NotKept { .. } => "Make the directory writable for you, and for nobody else.".into(),
            Self::Unknown { .. } => {
                "Compare the fingerprint with the host's (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub there), then connect once with ssh, or give the key with --host-key.".into()
            }
            Self::Changed { .. } => {
                "Somebody may be listening in. If the host was made anew, or has got a key of another type, compare the fingerprint and replace the line.".into()
            }
            Self::Revoked { .. } => "The key may be stolen: do not connect.".into(),
            Self::Certificate { .. } | Self::Authority { .. } => {
                "Somebody may be listening in, or the host needs a new certificate.".into()
            }
            Self::NotExpected { .. } => {
                "Somebody may be listening in. If the VM was made anew, look up its key again.".into()
            }
            Self::Malformed => "Write its type and the key, as in known_hosts.".into(),
        }
    }
}
