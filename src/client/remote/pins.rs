//! The pin store: it keeps the first key that an endpoint shows, and rejects every other key
//! afterwards.

use std::io::Write;
use std::path::Path;

use crate::private;
use crate::remote::hostkey_error::HostKeyError;
use crate::remote::known_hosts::{KeyText, read, read_open};
use crate::tree::path::escape;

/// The keys pinned for `endpoint`, with their line numbers.
pub(super) fn pins<'a>(text: &'a str, endpoint: &str) -> impl Iterator<Item = (usize, KeyText)> + 'a {
    let endpoint = pin_name(endpoint);
    text.lines().enumerate().filter_map(move |(index, line)| {
        let (name, key) = line.split_once(' ')?;
        // A truncated line counts as a key that cannot match. Otherwise the host would count as
        // never seen.
        let nothing = || KeyText { kind: "no whole key".into(), base64: String::new() };
        (name == endpoint).then(|| (index + 1, KeyText::parse(key).unwrap_or_else(nothing)))
    })
}

/// Encodes an endpoint as one word.
fn pin_name(endpoint: &str) -> String {
    escape(endpoint.as_bytes()).replace(' ', "\\x20")
}

/// Compares `key` with the pinned key, or pins `key` if there is none.
pub(super) fn pin(
    store: &Path,
    endpoint: &str,
    key: KeyText,
    fingerprint: String,
) -> Result<(), HostKeyError> {
    let unreadable = |source| HostKeyError::Unreadable { path: store.into(), source };
    let text = read(store).map_err(unreadable)?;
    if let Some(verdict) = compare(store, &text, endpoint, &key, &fingerprint) {
        return verdict;
    }
    let not_kept = |source| HostKeyError::NotKept { path: store.into(), source };
    let mut file = private::grow(store).map_err(not_kept)?;
    // With two first connections at once, the second must find the line that the first wrote.
    file.lock().map_err(not_kept)?;
    let text = read_open(&file).map_err(unreadable)?;
    if let Some(verdict) = compare(store, &text, endpoint, &key, &fingerprint) {
        return verdict;
    }
    // A line truncated by a power failure must not swallow this one.
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

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str = "ssh-ed25519 AAAA";
    const OTHER: &str = "ssh-ed25519 BBBB";
    const ECDSA: &str = "ecdsa-sha2-nistp256 AAAA";

    fn shown(store: &Path, endpoint: &str, key: &str) -> Result<(), HostKeyError> {
        pin(store, endpoint, KeyText::parse(key).unwrap(), "fingerprint".into())
    }

    #[test]
    fn the_first_key_is_pinned_privately_and_every_other_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("a/b/hosts");
        shown(&store, "wss://vm:2222", ED25519).unwrap();
        shown(&store, "wss://vm:2222", ED25519).unwrap();
        shown(&store, "a b", OTHER).unwrap();
        for other in [OTHER, ECDSA] {
            let error = shown(&store, "wss://vm:2222", other).unwrap_err();
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
        shown(&store, "vm", ED25519).unwrap();
        assert_eq!(std::fs::read_to_string(&store).unwrap(), format!("wss://old ssh-ed2\nvm {ED25519}\n"));
    }
}
