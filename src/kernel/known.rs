//! Sessions that were used before, so that the next run connects without asking the API; and which is the current
//! one.
//!
//! One file for each session, readable by nobody else: the URL for staying active holds a token. What is remembered is
//! only ever a shortcut: a VM that shows another host key than this one, or is not there, is asked for anew.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::private;

/// Most sessions that are remembered: the ones used last.
const SESSIONS_MAX: usize = 256;

/// The port of the bridge on a VM.
const BRIDGE_PORT: u16 = 2222;

/// Ends the name of a session's file.
const ENDING: &str = ".json";

/// Ends the name of the file with a session's host key.
const HOSTS: &str = "hosts";

/// The file that names the current session.
const CURRENT: &str = "current";

/// A session that can be connected to. Its `Debug` shows no token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Its id.
    pub session_id: String,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// The pool that it came from and goes back to.
    pub pool: Option<String>,
    /// The VM's domain.
    pub vm_domain: String,
    /// Its host key, as a line of OpenSSH.
    pub host_key: String,
    /// The private key to log in with.
    pub key_file: PathBuf,
    /// The WebSocket that keeps it active.
    pub cdp_ws_url: String,
    /// Which API it belongs to.
    pub base_url: String,
    /// When it was made, by RFC 3339; an older ksync did not remember that.
    pub created_at: Option<String>,
    /// How long it stays when nobody uses it, in seconds; an older ksync did not remember that.
    pub timeout_seconds: Option<u64>,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known")
            .field("session_id", &self.session_id)
            .field("name", &self.name)
            .field("vm_domain", &self.vm_domain)
            .finish_non_exhaustive()
    }
}

impl Known {
    /// The bridge to its SSH server.
    #[must_use]
    pub fn bridge_url(&self) -> String {
        bridge_url(&self.vm_domain)
    }
}

/// The bridge to the SSH server of a VM.
#[must_use]
pub fn bridge_url(vm_domain: &str) -> String {
    format!("wss://{vm_domain}:{BRIDGE_PORT}")
}

/// Where sessions are remembered.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// The store in `directory`, which is made when there is something to keep.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The session of this id or name; with the same name, the one that was used last.
    #[must_use]
    pub fn find(&self, id_or_name: &str) -> Option<Known> {
        if let Some(file) = self.file(id_or_name)
            && let Some(known) = load(&file)
        {
            return Some(known);
        }
        let named = |known: &Known| known.name.as_deref() == Some(id_or_name);
        self.all().into_iter().find(named)
    }

    /// All sessions, the one used last first.
    #[must_use]
    pub fn all(&self) -> Vec<Known> {
        self.files().into_iter().filter_map(|file| load(&file)).collect()
    }

    /// Remembers a session, or remembers it anew.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&self, known: &Known) -> io::Result<()> {
        let file = self.file(&known.session_id).ok_or(io::ErrorKind::InvalidInput)?;
        let text = serde_json::to_string_pretty(known)?;
        private::replace(&file, text.as_bytes())?;
        for old in self.files().into_iter().skip(SESSIONS_MAX) {
            let _ = fs::remove_file(old);
        }
        Ok(())
    }

    /// Writes a session's host key where OpenSSH can read it; answers the file, which goes with the session.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep_host_key(&self, session_id: &str, host_key: &str) -> io::Result<PathBuf> {
        let file = self.file(session_id).ok_or(io::ErrorKind::InvalidInput)?.with_extension(HOSTS);
        private::replace(&file, format!("{session_id} {host_key}\n").as_bytes())?;
        Ok(file)
    }

    /// Forgets a session; nothing there is fine.
    pub fn forget(&self, session_id: &str) {
        if let Some(file) = self.file(session_id) {
            let _ = fs::remove_file(file.with_extension(HOSTS));
            let _ = fs::remove_file(file);
        }
        if self.current().as_deref() == Some(session_id) {
            let _ = fs::remove_file(self.directory.join(CURRENT));
        }
    }

    /// The id of the current session.
    #[must_use]
    pub fn current(&self) -> Option<String> {
        let text = private::read(&self.directory.join(CURRENT)).ok()?;
        Some(text.trim().to_owned()).filter(|id| !id.is_empty())
    }

    /// Makes a session the current one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn set_current(&self, session_id: &str) -> io::Result<()> {
        private::replace(&self.directory.join(CURRENT), session_id.as_bytes())
    }

    /// The file of a session; `None` for what can be no id.
    fn file(&self, session_id: &str) -> Option<PathBuf> {
        is_plain(session_id).then(|| self.directory.join(format!("{session_id}{ENDING}")))
    }

    /// The files of sessions, the one used last first.
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

/// Whether a text can be a file name as it is, and an id: no separator, no leading dot.
pub(super) fn is_plain(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with('.')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn load(file: &Path) -> Option<Known> {
    serde_json::from_str(&private::read(file).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn known(id: &str, name: Option<&str>) -> Known {
        Known {
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
        }
    }

    #[test]
    fn a_session_is_found_by_id_and_by_name_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("sessions"));
        assert!(store.find("a").is_none() && store.all().is_empty() && store.current().is_none());
        let (one, two) = (known("a", Some("site")), known("b", None));
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
    fn what_an_older_ksync_remembered_is_still_read() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        let text = r#"{"session_id":"a","name":null,"pool":null,"vm_domain":"vm.example","key_file":"/k",
            "host_key":"ssh-ed25519 AAAA","base_url":"https://api.example",
            "cdp_ws_url":"wss://proxy.example/browser/cdp?jwt=a.secret.c"}"#;
        fs::write(folder.path().join("a.json"), text).unwrap();
        assert_eq!(
            store.find("a"),
            Some(Known { created_at: None, timeout_seconds: None, ..known("a", None) })
        );
    }

    #[test]
    fn of_two_with_a_name_the_newer_counts_and_there_are_never_too_many() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        for number in 0..SESSIONS_MAX + 3 {
            store.keep(&known(&format!("s{number}"), Some("site"))).unwrap();
            let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
            let file = store.directory.join(format!("s{number}.json"));
            fs::File::options().write(true).open(file).unwrap().set_modified(time).unwrap();
        }
        store.keep(&known("last", None)).unwrap();
        assert_eq!(store.all().len(), SESSIONS_MAX);
        assert_eq!(store.find("site").unwrap().session_id, format!("s{}", SESSIONS_MAX + 2));
    }

    #[test]
    fn what_can_be_no_id_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("x"));
        for id in ["", "..", "../a", "a/b", "a\0", ".hidden", "a b"] {
            assert!(store.find(id).is_none() && store.keep(&known(id, None)).is_err(), "{id:?}");
        }
        fs::create_dir(folder.path().join("x")).unwrap();
        fs::write(folder.path().join("x/broken.json"), "{").unwrap();
        assert!(store.find("broken").is_none() && store.all().is_empty());
    }
}
