//! The session store: sessions used before, and the current one. With it the next run connects
//! without asking the API.
//!
//! There is one file per session, with mode 0600, because the keep-alive URL holds a token. The
//! store is only a shortcut. If a VM shows another host key or is gone, ksync asks the API again.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::kernel::types::Browser;
use crate::private;

/// Limit of stored sessions; the least recently used ones are dropped.
const SESSIONS_MAX: usize = 256;

/// Port of the bridge on a VM.
const BRIDGE_PORT: u16 = 2222;

/// Suffix of a session's file.
const ENDING: &str = ".json";

/// Extension of the file with a session's host key.
const HOSTS: &str = "hosts";

/// File that names the current session.
const CURRENT: &str = "current";

/// A session that ksync can connect to. Its `Debug` shows no token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSession {
    /// The session's id.
    pub session_id: String,
    /// The session's name, if it has one.
    pub name: Option<String>,
    /// The pool that the session came from and returns to.
    pub pool: Option<String>,
    /// The VM's domain.
    pub vm_domain: String,
    /// The VM's host key, as a line of OpenSSH.
    pub host_key: String,
    /// Private key for the login.
    pub key_file: PathBuf,
    /// WebSocket URL that keeps the session awake.
    pub cdp_ws_url: String,
    /// Base URL of the session's API.
    pub base_url: String,
    /// Creation time in RFC 3339; an older ksync did not store it.
    pub created_at: Option<String>,
    /// Idle timeout in seconds; an older ksync did not store it.
    pub timeout_seconds: Option<u64>,
    /// The lines that this client added to the VM's `authorized_keys`, one for each identity.
    #[serde(default)]
    pub authorized: Vec<String>,
}

impl fmt::Debug for StoredSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredSession")
            .field("session_id", &self.session_id)
            .field("name", &self.name)
            .field("vm_domain", &self.vm_domain)
            .finish_non_exhaustive()
    }
}

impl StoredSession {
    /// The session's name for display, or its id.
    #[must_use]
    pub fn shown(&self) -> &str {
        self.name.as_ref().unwrap_or(&self.session_id)
    }

    /// The same session with what the API now tells of it.
    #[must_use]
    pub fn refreshed(&self, browser: &Browser) -> Self {
        Self {
            name: browser.name.clone(),
            pool: browser.pool.as_ref().map(|pool| pool.id.clone()),
            cdp_ws_url: browser.cdp_ws_url.clone(),
            created_at: Some(browser.created_at.clone()),
            timeout_seconds: Some(browser.timeout_seconds),
            ..self.clone()
        }
    }

    /// URL of the bridge to the session's SSH server.
    #[must_use]
    pub fn bridge_url(&self) -> String {
        bridge_url(&self.vm_domain)
    }
}

/// URL of the bridge to a VM's SSH server.
#[must_use]
pub fn bridge_url(vm_domain: &str) -> String {
    format!("wss://{vm_domain}:{BRIDGE_PORT}")
}

/// The session store.
#[derive(Debug, Clone)]
pub struct SessionStore {
    directory: PathBuf,
}

impl SessionStore {
    /// Opens the store in `directory`, which the first write creates.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Finds a session by id or name. Of several with the same name it takes the most recently used
    /// one.
    #[must_use]
    pub fn find(&self, id_or_name: &str) -> Option<StoredSession> {
        if let Some(file) = self.file(id_or_name)
            && let Some(stored) = load(&file)
        {
            return Some(stored);
        }
        let named = |stored: &StoredSession| stored.name.as_deref() == Some(id_or_name);
        self.all().into_iter().find(named)
    }

    /// All sessions, the most recently used one first.
    #[must_use]
    pub fn all(&self) -> Vec<StoredSession> {
        self.files().into_iter().filter_map(|file| load(&file)).collect()
    }

    /// Stores a session, or updates it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, stored: &StoredSession) -> io::Result<()> {
        let file = self.file(&stored.session_id).ok_or(io::ErrorKind::InvalidInput)?;
        let text = serde_json::to_string_pretty(stored)?;
        private::replace(&file, text.as_bytes())?;
        for old in self.files().into_iter().skip(SESSIONS_MAX) {
            let _ = fs::remove_file(old);
        }
        Ok(())
    }

    /// Writes a session's host key for OpenSSH. Returns the file, which is deleted with the
    /// session.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep_host_key(&self, session_id: &str, host_key: &str) -> io::Result<PathBuf> {
        let file = self.file(session_id).ok_or(io::ErrorKind::InvalidInput)?.with_extension(HOSTS);
        private::replace(&file, format!("{session_id} {host_key}\n").as_bytes())?;
        Ok(file)
    }

    /// Stores what the API told of the owner of a name: no other session has it any more.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn rename(&self, session_id: &str, name: &str) -> io::Result<()> {
        let has_it =
            |other: &StoredSession| other.session_id != session_id && other.name.as_deref() == Some(name);
        for other in self.all().into_iter().filter(has_it) {
            // The modification time is that of the last use.
            let file = self.file(&other.session_id).ok_or(io::ErrorKind::InvalidInput)?;
            let used = file.metadata()?.modified()?;
            self.keep(&StoredSession { name: None, ..other })?;
            fs::File::options().write(true).open(file)?.set_modified(used)?;
        }
        Ok(())
    }

    /// Forgets how to log in to a session, but neither the session nor which one is current.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn forget_login(&self, session_id: &str) -> io::Result<()> {
        let Some(file) = self.file(session_id) else { return Ok(()) };
        let _ = fs::remove_file(file.with_extension(HOSTS));
        let Some(stored) = load(&file) else { return Ok(()) };
        self.keep(&StoredSession { key_file: PathBuf::new(), authorized: Vec::new(), ..stored })
    }

    /// Forgets a session; a missing one is no error.
    pub fn forget(&self, session_id: &str) {
        if let Some(file) = self.file(session_id) {
            let _ = fs::remove_file(file.with_extension(HOSTS));
            let _ = fs::remove_file(file);
        }
        if self.current().as_deref() == Some(session_id) {
            let _ = fs::remove_file(self.directory.join(CURRENT));
        }
    }

    /// Id of the current session.
    #[must_use]
    pub fn current(&self) -> Option<String> {
        let text = private::read(&self.directory.join(CURRENT)).ok()?;
        Some(text.trim().to_owned()).filter(|id| !id.is_empty())
    }

    /// Makes a session the current one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_current(&self, session_id: &str) -> io::Result<()> {
        private::replace(&self.directory.join(CURRENT), session_id.as_bytes())
    }

    /// File of a session; `None` for an invalid id.
    fn file(&self, session_id: &str) -> Option<PathBuf> {
        is_plain(session_id).then(|| self.directory.join(format!("{session_id}{ENDING}")))
    }

    /// Files of all sessions, the most recently used one first.
    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let mut files: Vec<_> = entries
            .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.ends_with(ENDING)))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        files.sort();
        files.into_iter().rev().map(|(_, file)| file).collect()
    }
}

/// Checks that a text is valid as an id and as a file name: no separator, no leading dot.
pub(super) fn is_plain(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with('.')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn load(file: &Path) -> Option<StoredSession> {
    serde_json::from_str(&private::read(file).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn stored(id: &str, name: Option<&str>) -> StoredSession {
        StoredSession {
            session_id: id.to_owned(),
            name: name.map(str::to_owned),
            pool: None,
            vm_domain: "vm.example".to_owned(),
            host_key: "ssh-ed25519 AAAA".to_owned(),
            key_file: "/k".into(),
            cdp_ws_url: "wss://proxy.example/browser/cdp?jwt=a.secret.c".to_owned(),
            base_url: "https://api.example".to_owned(),
            created_at: Some("2026-08-05T13:37:00Z".to_owned()),
            timeout_seconds: Some(300),
            authorized: vec!["ssh-ed25519 AAAA ksync".to_owned()],
        }
    }

    #[test]
    fn a_session_is_found_by_id_and_by_name_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let store = SessionStore::new(folder.path().join("sessions"));
        assert!(store.find("a").is_none() && store.all().is_empty() && store.current().is_none());
        let (one, two) = (stored("a", Some("site")), stored("b", None));
        assert!(!format!("{one:?}").contains("secret"));
        assert_eq!(one.bridge_url(), "wss://vm.example:2222");
        store.keep(&one).unwrap();
        store.keep(&two).unwrap();
        assert_eq!((store.find("a"), store.find("site")), (Some(one.clone()), Some(one)));
        assert_eq!(store.find("b"), Some(two));
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&store.directory), mode(&store.directory.join("a.json"))), (0o700, 0o600));
        let hosts = store.keep_host_key("a", "ssh-ed25519 AAAA").unwrap();
        assert_eq!(fs::read_to_string(&hosts).unwrap(), "a ssh-ed25519 AAAA\n");
        store.set_current("b").unwrap();
        assert_eq!(store.current().as_deref(), Some("b"));
        store.forget("a");
        assert!(!hosts.exists());
        assert_eq!((store.find("site"), store.current().as_deref()), (None, Some("b")));
        store.forget("b");
        assert_eq!(store.current(), None);
    }

    #[test]
    fn a_name_belongs_to_one_session_and_its_former_owner_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = SessionStore::new(folder.path().to_owned());
        for (id, name) in [("a", Some("site")), ("b", Some("other")), ("c", None)] {
            store.keep(&stored(id, name)).unwrap();
        }
        let used = |id: &str| store.file(id).unwrap().metadata().unwrap().modified().unwrap();
        let before = used("a");
        store.rename("b", "site").unwrap();
        assert_eq!((store.find("site"), store.find("a")), (None, Some(stored("a", None))));
        assert_eq!((used("a"), store.find("b")), (before, Some(stored("b", Some("other")))));
    }

    #[test]
    fn a_session_without_its_login_stays_the_current_one() {
        let folder = tempfile::tempdir().unwrap();
        let store = SessionStore::new(folder.path().to_owned());
        store.keep(&StoredSession { pool: Some("p".to_owned()), ..stored("a", Some("site")) }).unwrap();
        store.set_current("a").unwrap();
        store.forget_login("a").unwrap();
        store.forget_login("missing").unwrap();
        let left = store.find("site").unwrap();
        assert_eq!((left.pool.as_deref(), store.current().as_deref()), (Some("p"), Some("a")));
        assert!(!left.key_file.exists() && left.authorized.is_empty());
    }

    #[test]
    fn a_file_of_an_older_ksync_is_still_read() {
        let folder = tempfile::tempdir().unwrap();
        let store = SessionStore::new(folder.path().to_owned());
        let text = r#"{"session_id":"a","name":null,"pool":null,"vm_domain":"vm.example","key_file":"/k",
            "host_key":"ssh-ed25519 AAAA","base_url":"https://api.example",
            "cdp_ws_url":"wss://proxy.example/browser/cdp?jwt=a.secret.c"}"#;
        fs::write(folder.path().join("a.json"), text).unwrap();
        assert_eq!(
            store.find("a"),
            Some(StoredSession {
                created_at: None,
                timeout_seconds: None,
                authorized: Vec::new(),
                ..stored("a", None)
            })
        );
    }

    #[test]
    fn the_newest_session_of_a_name_counts_and_the_store_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let store = SessionStore::new(folder.path().to_owned());
        for number in 0..SESSIONS_MAX + 3 {
            store.keep(&stored(&format!("s{number}"), Some("site"))).unwrap();
            let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
            let file = store.directory.join(format!("s{number}.json"));
            fs::File::options().write(true).open(file).unwrap().set_modified(time).unwrap();
        }
        store.keep(&stored("last", None)).unwrap();
        assert_eq!(store.all().len(), SESSIONS_MAX);
        assert_eq!(store.find("site").unwrap().session_id, format!("s{}", SESSIONS_MAX + 2));
    }

    #[test]
    fn an_invalid_id_never_becomes_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = SessionStore::new(folder.path().join("x"));
        for id in ["", "..", "../a", "a/b", "a\0", ".hidden", "a b"] {
            assert!(store.find(id).is_none() && store.keep(&stored(id, None)).is_err(), "{id:?}");
        }
        fs::create_dir(folder.path().join("x")).unwrap();
        fs::write(folder.path().join("x/broken.json"), "{").unwrap();
        assert!(store.find("broken").is_none() && store.all().is_empty());
    }
}
