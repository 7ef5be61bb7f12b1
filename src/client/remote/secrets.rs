//! The agents' secrets, which seal the first flight to each (see [`flight`](crate::wire::flight)).
//!
//! A secret belongs to one login on one host, over any connection. It is therefore stored under the
//! host's key and the user. A lost or outdated secret costs one round trip and nothing else, so
//! errors here are ignored.

use std::fmt::Write as _;
use std::path::PathBuf;

use aws_lc_rs::digest::{SHA256, digest};

use crate::private;
use crate::wire::flight::Secret;

/// Limit of stored secrets; the oldest ones are dropped.
const SECRETS_MAX: usize = 256;

/// Hex digits of a login's name in the file.
const NAME_DIGITS: usize = 32;

/// Store for the secret of one login.
#[derive(Debug, Clone)]
pub(super) struct Secrets {
    file: PathBuf,
    name: String,
}

impl Secrets {
    /// Makes the store for `user` on the host with this key.
    pub(super) fn of(file: PathBuf, host_key: &str, user: &str) -> Self {
        let hash = digest(&SHA256, format!("{host_key}\n{user}").as_bytes());
        let mut name = String::new();
        for byte in hash.as_ref().iter().take(NAME_DIGITS / 2) {
            let _ = write!(name, "{byte:02x}");
        }
        Self { file, name }
    }

    /// Reads the stored secret.
    pub(super) fn recall(&self) -> Option<Secret> {
        let text = private::read(&self.file).ok()?;
        let secret = text.lines().find_map(|line| line.strip_prefix(&self.name)?.strip_prefix(' '));
        Secret::from_hex(secret?.as_bytes())
    }

    /// Stores a secret in place of an earlier one.
    pub(super) fn remember(&self, secret: &Secret) {
        // An agent that was started without a sealed flight tells its secret each time.
        if self.recall().as_ref() == Some(secret) {
            return;
        }
        let text = private::read(&self.file).unwrap_or_default();
        let mut new = format!("{} {}\n", self.name, secret.to_hex());
        for line in text.lines().filter(|line| !line.starts_with(&self.name)).take(SECRETS_MAX - 1) {
            new.push_str(line);
            new.push('\n');
        }
        let _ = private::replace(&self.file, new.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::wire::flight::SECRET_BYTES;

    #[test]
    fn each_login_has_its_own_secret_and_the_newest_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state/secrets");
        let login = |key: &str, user: &str| Secrets::of(file.clone(), key, user);
        let secret = |number: u8| Secret::new([number; SECRET_BYTES]);
        assert_eq!(login("key", "root").recall(), None);
        for (key, user, number) in
            [("key", "root", 1), ("key", "me", 2), ("other", "root", 3), ("key", "root", 4)]
        {
            login(key, user).remember(&secret(number));
        }
        let kept = [("key", "root"), ("key", "me"), ("other", "root"), ("other", "me")];
        let kept = kept.map(|(key, user)| login(key, user).recall());
        assert_eq!(kept, [Some(secret(4)), Some(secret(2)), Some(secret(3)), None]);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        for number in 0..SECRETS_MAX {
            login(&number.to_string(), "root").remember(&secret(5));
        }
        assert_eq!(login("0", "root").recall(), Some(secret(5)));
        assert_eq!(login("key", "root").recall(), None);
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), SECRETS_MAX);
    }
}
