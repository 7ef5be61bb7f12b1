//! A strict reader of OpenSSH's `known_hosts`, which never writes.
//!
//! russh's own reader takes a changed key of another type for an unknown host. It also ignores
//! `@revoked`, wildcards and negation.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use russh::keys::ssh_key::known_hosts::HostPatterns;

/// Largest file of known keys that ksync reads: about a hundred thousand hosts.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A key as text: its type and its base64. One key has exactly one such text, so texts can be
/// compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyText {
    /// The key type, e.g. `ssh-ed25519`.
    pub(super) kind: String,
    /// The public key in base64.
    pub(super) base64: String,
}

impl KeyText {
    /// Parses the first two words of `text` and ignores a comment after them.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let (kind, base64) = (words.next()?, words.next()?);
        Some(Self { kind: kind.to_owned(), base64: base64.to_owned() })
    }
}

/// Meaning of a record for its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// This is the host's key.
    Key,
    /// This key must not be trusted, even if another record trusts it.
    Revoked,
    /// The host shows certificates signed by this key.
    Authority,
}

/// A line about the host.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) meaning: Meaning,
    pub(super) key: KeyText,
    pub(super) file: PathBuf,
    pub(super) line: usize,
    /// True if the line names the host without a port, although the port is not 22.
    pub(super) portless: bool,
}

/// The records of `text`, the content of `file`, about `host` at `port`.
///
/// As in OpenSSH, a malformed line counts as none. ksync refuses a key that no line holds, so this
/// is safe.
pub(super) fn records(file: &Path, text: &str, host: &str, port: u16) -> Vec<Record> {
    let host = host.to_ascii_lowercase();
    let name = if port == 22 { host.clone() } else { format!("[{host}]:{port}") };
    let mut records = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (meaning, rest) = match line.split_once([' ', '\t']) {
            Some(("@revoked", rest)) => (Meaning::Revoked, rest.trim_start()),
            Some(("@cert-authority", rest)) => (Meaning::Authority, rest.trim_start()),
            _ if line.starts_with('@') => continue,
            _ => (Meaning::Key, line),
        };
        let Some((names, key)) = rest.split_once([' ', '\t']) else { continue };
        let Some(key) = KeyText::parse(key) else { continue };
        let portless = match names_match(names, &name) {
            Some(true) => false,
            None if names_match(names, &host) == Some(true) => true,
            // A line that excludes this port does not apply through the bare name either.
            _ => continue,
        };
        records.push(Record { meaning, key, file: file.into(), line: index + 1, portless });
    }
    records
}

/// Reads the whole of `file` as text; empty if the file does not exist.
pub(super) fn read(file: &Path) -> io::Result<String> {
    match File::open(file) {
        Ok(open) => read_open(&open),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// Reads the whole of an open file as text.
pub(super) fn read_open(file: &File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 16 MiB"));
    }
    // Comments may have any encoding. A name or key that is not ASCII matches nothing.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Matches a line's first field with `name`: `Some(false)` if the field excludes it, `None` if the
/// field does not mention it.
fn names_match(field: &str, name: &str) -> Option<bool> {
    if field.starts_with('|') {
        return hash_matches(field, name).then_some(true);
    }
    let mut matches = None;
    for pattern in field.split(',') {
        let pattern = pattern.to_ascii_lowercase();
        match pattern.strip_prefix('!') {
            // A negation decides the whole line, at any position.
            Some(pattern) if pattern_matches(pattern, name) => return Some(false),
            None if pattern_matches(&pattern, name) => matches = Some(true),
            _ => {}
        }
    }
    matches
}

/// Compares a hashed name, `|1|salt|hash`, with `name`.
fn hash_matches(field: &str, name: &str) -> bool {
    let Ok(HostPatterns::HashedName { salt, hash }) = field.parse() else { return false };
    // The format prescribes SHA-1. The hash only hides names and proves nothing.
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
    hmac::verify(&key, name.as_bytes(), &hash).is_ok()
}

/// Matches the whole of `name` with `pattern`, which may contain `*` and `?`.
pub(super) fn pattern_matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Backtrack point: after a mismatch behind the last star, the star takes one byte more.
    let mut retry = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(b'?') => (p, n) = (p + 1, n + 1),
            Some(byte) if name.get(n) == Some(byte) => (p, n) = (p + 1, n + 1),
            _ => match retry {
                Some((after_star, from)) => {
                    (p, n) = (after_star, from + 1);
                    retry = Some((after_star, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).is_some_and(|rest| rest.iter().all(|&byte| byte == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, host: &str, port: u16) -> Vec<(Meaning, String, bool)> {
        let records = records(Path::new("known_hosts"), text, host, port);
        records.into_iter().map(|record| (record.meaning, record.key.base64, record.portless)).collect()
    }

    #[test]
    fn a_bare_name_means_port_22_and_brackets_mean_another() {
        let text = "vm ssh-ed25519 A\n[vm]:2222 ssh-ed25519 B\nother ssh-ed25519 C\n";
        assert_eq!(found(text, "VM", 22), [(Meaning::Key, "A".into(), false)]);
        let both = [(Meaning::Key, "A".into(), true), (Meaning::Key, "B".into(), false)];
        assert_eq!(found(text, "vm", 2222), both);
    }

    #[test]
    fn wildcards_match_and_a_negation_excludes_the_line() {
        let text = "*.example.com,!bad.example.com ssh-ed25519 A\n";
        assert_eq!(found(text, "good.example.com", 22).len(), 1);
        assert_eq!(found(text, "bad.example.com", 22).len(), 0);
        assert_eq!(found(text, "example.com", 22).len(), 0);
        assert_eq!(found("![vm]:2222,* ssh-ed25519 A\n", "vm", 2222).len(), 0);
        for (pattern, name, matches) in [
            ("*", "", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("h?st", "host", true),
            ("h?st", "hst", false),
            ("", "a", false),
        ] {
            assert_eq!(pattern_matches(pattern, name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn hashed_names_are_recognised() {
        // Made by: ssh-keygen -H, for "vm.example.com" and "[vm.example.com]:2222".
        let plain = include_str!("known_hosts_hashed.txt");
        assert_eq!(found(plain, "vm.example.com", 22).len(), 1);
        assert_eq!(found(plain, "vm.example.com", 2222).iter().filter(|record| !record.2).count(), 1);
        assert_eq!(found(plain, "other.example.com", 22).len(), 0);
    }

    #[test]
    fn known_markers_are_understood_and_unknown_ones_ignored() {
        let text = "@revoked * ssh-ed25519 A\n@cert-authority\t*  ssh-ed25519 B c d\n@new * ssh-ed25519 C\n# x\n\njunk\n";
        let expected = [(Meaning::Revoked, "A".into(), false), (Meaning::Authority, "B".into(), false)];
        assert_eq!(found(text, "vm", 22), expected);
    }
}
