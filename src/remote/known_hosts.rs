//! What OpenSSH's `known_hosts` says of a host: a strict reading, which never writes.
//!
//! russh has one of its own, which takes a changed key of another type for an unknown host and overlooks
//! `@revoked`, wildcards and negation.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use russh::keys::ssh_key::known_hosts::HostPatterns;

/// Largest file of known keys that is read: a hundred thousand hosts.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A key as it stands in a file: its type and its base64 text. Compared as text: one key has one such text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyText {
    /// `ssh-ed25519` and the like.
    pub(super) kind: String,
    /// The public key in base64.
    pub(super) base64: String,
}

impl KeyText {
    /// Takes the first two words of `text`, whatever comment follows.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let (kind, base64) = (words.next()?, words.next()?);
        Some(Self { kind: kind.to_owned(), base64: base64.to_owned() })
    }
}

/// What a line that concerns the host says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// This is the host's key.
    Key,
    /// This key must not be trusted, whatever else is said.
    Revoked,
    /// Certificates by this key are the host's.
    Authority,
}

/// A line that concerns the host.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) meaning: Meaning,
    pub(super) key: KeyText,
    pub(super) file: PathBuf,
    pub(super) line: usize,
    /// Whether the line names the host without its port, though the port is not SSH's own.
    pub(super) portless: bool,
}

/// The lines of `text`, the content of `file`, that concern `host` at `port`.
///
/// A line that makes no sense says nothing, as with OpenSSH: what is not found is refused.
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
            // A line that takes this port out does not mean it by the bare name either.
            _ => continue,
        };
        records.push(Record { meaning, key, file: file.into(), line: index + 1, portless });
    }
    records
}

/// The whole of `file` as text; empty if there is none.
pub(super) fn read(file: &Path) -> io::Result<String> {
    match File::open(file) {
        Ok(open) => read_open(&open),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// The whole of an open file as text.
pub(super) fn read_open(file: &File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 16 MiB"));
    }
    // Comments may be in any encoding; a name or key that is not ASCII matches nothing.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether a line's first field means `name`, or takes it out; `None` where it says nothing of it.
fn names_match(field: &str, name: &str) -> Option<bool> {
    if field.starts_with('|') {
        return hash_matches(field, name).then_some(true);
    }
    let mut matches = None;
    for pattern in field.split(',') {
        let pattern = pattern.to_ascii_lowercase();
        match pattern.strip_prefix('!') {
            // A negation decides the whole line, wherever it stands.
            Some(pattern) if pattern_matches(pattern, name) => return Some(false),
            None if pattern_matches(&pattern, name) => matches = Some(true),
            _ => {}
        }
    }
    matches
}

/// Whether a hashed name, `|1|salt|hash`, is that of `name`.
fn hash_matches(field: &str, name: &str) -> bool {
    let Ok(HostPatterns::HashedName { salt, hash }) = field.parse() else { return false };
    // SHA-1 is what the format is made of. It hides names and proves nothing.
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
    hmac::verify(&key, name.as_bytes(), &hash).is_ok()
}

/// Whether `pattern`, with `*` and `?`, matches the whole of `name`.
pub(super) fn pattern_matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where to go on when what follows the last star does not fit: one byte later.
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
    fn a_name_stands_for_port_22_and_brackets_for_others() {
        let text = "vm ssh-ed25519 A\n[vm]:2222 ssh-ed25519 B\nother ssh-ed25519 C\n";
        assert_eq!(found(text, "VM", 22), [(Meaning::Key, "A".into(), false)]);
        let both = [(Meaning::Key, "A".into(), true), (Meaning::Key, "B".into(), false)];
        assert_eq!(found(text, "vm", 2222), both);
    }

    #[test]
    fn wildcards_match_and_a_negation_takes_the_line_away() {
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
    fn markers_are_understood_and_unknown_ones_say_nothing() {
        let text = "@revoked * ssh-ed25519 A\n@cert-authority\t*  ssh-ed25519 B c d\n@new * ssh-ed25519 C\n# x\n\njunk\n";
        let expected = [(Meaning::Revoked, "A".into(), false), (Meaning::Authority, "B".into(), false)];
        assert_eq!(found(text, "vm", 22), expected);
    }
}
