//! Keys for the login: ksync makes one for each session on its first use.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use russh::keys::key::safe_rng;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey, PublicKey, decode_secret_key};

use crate::private;

/// Comment of ksync's keys on the VM.
const COMMENT: &str = "ksync";

/// A key pair on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// File with the private half.
    pub file: PathBuf,
    /// The public half, as a line of `authorized_keys`.
    pub public: String,
}

/// Reason why there is no key for the login.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The named key is unreadable, or has no public half.
    #[error("could not read the key {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// ksync could not make or store its own key.
    #[error("could not make a key in {}", path.display())]
    NotMade {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Key {
    /// Loads a key that the user named. Its public half is in the `.pub` file beside it, or in the
    /// key file.
    ///
    /// # Errors
    /// [`KeyError::Unreadable`].
    pub fn named(file: &Path) -> Result<Self, KeyError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| KeyError::Unreadable {
            path: file.to_owned(),
            source,
        };
        let mut beside = file.as_os_str().to_owned();
        beside.push(".pub");
        let public = match private::read(Path::new(&beside)) {
            Ok(text) => PublicKey::from_openssh(text.trim()).map_err(|error| failed(Box::new(error)))?,
            Err(_) => {
                let text = private::read(file).map_err(|error| failed(Box::new(error)))?;
                public_half(&text).map_err(|error| failed(Box::new(error)))?
            }
        };
        let public = line(&public).map_err(|error| failed(Box::new(error)))?;
        Ok(Self { file: file.to_owned(), public })
    }

    /// Loads the key `name` in `directory`, and makes it if it is missing: Ed25519, mode 0600. If
    /// two runs make it at once, one wins, and both use that key.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn own(directory: &Path, name: &str) -> Result<Self, KeyError> {
        let file = directory.join(name);
        if file.symlink_metadata().is_err() {
            make(&file).map_err(|source| KeyError::NotMade { path: file.clone(), source })?;
            // A directory that is none shows only now.
            return Self::named(&file).map_err(|error| match error {
                KeyError::Unreadable { path, source } => KeyError::NotMade { path, source },
                error => error,
            });
        }
        Self::named(&file)
    }

    /// Deletes one of ksync's own keys.
    pub fn forget(directory: &Path, name: &str) {
        let _ = fs::remove_file(directory.join(name));
    }
}

/// The public half in the text of a key file, or of a `.pub` file whose private half ssh-agent
/// holds.
fn public_half(text: &str) -> Result<PublicKey, russh::keys::Error> {
    // OpenSSH's format shows the public half even if the private one has a passphrase.
    let private = || PrivateKey::from_openssh(text).ok().map(|key| key.public_key().clone());
    match PublicKey::from_openssh(text.trim()).ok().or_else(private) {
        Some(public) => Ok(public),
        None => decode_secret_key(text, None).map(|key| key.public_key().clone()),
    }
}

fn make(file: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519)?;
    key.set_comment(COMMENT);
    let text = key.to_openssh(LineEnding::LF)?;
    match private::make(file, text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => Ok(result?),
    }
}

fn line(key: &PublicKey) -> Result<String, russh::keys::ssh_key::Error> {
    let mut key = key.clone();
    // The user's own comment could reveal a name and a host.
    key.set_comment(COMMENT);
    key.to_openssh()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("keys");
        let key = Key::own(&directory, "abc").unwrap();
        assert!(key.public.starts_with("ssh-ed25519 ") && key.public.ends_with(" ksync"), "{}", key.public);
        assert_eq!(Key::own(&directory, "abc").unwrap(), key);
        assert_ne!(Key::own(&directory, "def").unwrap().public, key.public);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&key.file)), (0o700, 0o600));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
        Key::forget(&directory, "abc");
        assert_ne!(Key::own(&directory, "abc").unwrap().public, key.public);
    }

    #[test]
    fn the_public_half_comes_from_the_pub_file_or_the_key_file() {
        let folder = tempfile::tempdir().unwrap();
        let key = Key::own(folder.path(), "own").unwrap();
        let other = Key::own(folder.path(), "other").unwrap();
        fs::write(
            folder.path().join("own.pub"),
            format!("{} me@home\n", other.public.trim_end_matches(" ksync")),
        )
        .unwrap();
        assert_eq!(Key::named(&key.file).unwrap().public, other.public);
        assert_eq!(Key::named(&folder.path().join("own.pub")).unwrap().public, other.public);
        fs::write(folder.path().join("own.pub"), "nonsense").unwrap();
        assert!(matches!(Key::named(&key.file), Err(KeyError::Unreadable { .. })));
        assert!(Key::named(&folder.path().join("none")).is_err());
    }
}
