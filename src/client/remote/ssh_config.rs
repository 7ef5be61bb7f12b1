//! The part of `~/.ssh/config` that ksync follows. Keywords: HostName, Port, User, IdentityFile,
//! UserKnownHostsFile and HostKeyAlias. Blocks: Host with patterns, Include, and `Match all`.
//!
//! ksync has its own parser, because russh-config supports neither Include, tabs nor `Key=Value`,
//! and stops at the first malformed line. ssh2-config is 7,000 lines for six keywords. ProxyJump
//! and ProxyCommand, which ksync cannot follow, are reported to the caller. The caller must then
//! not connect directly.

use std::io;
use std::path::{Path, PathBuf};

use crate::remote::known_hosts::pattern_matches;

/// Deepest nesting of Include, as in OpenSSH.
const INCLUDE_DEPTH_MAX: usize = 16;

/// The configuration of one host. The first value of each keyword counts, except that all
/// [`identity_files`](Self::identity_files) count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// The real name or address.
    pub host_name: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// Login name.
    pub user: Option<String>,
    /// Private keys, in order.
    pub identity_files: Vec<PathBuf>,
    /// Files with known keys; empty if the configuration names none.
    pub user_known_hosts_files: Vec<PathBuf>,
    /// Name of the host in the known_hosts files.
    pub host_key_alias: Option<String>,
    /// A ProxyJump or ProxyCommand other than `none`. ksync can neither use it nor connect without
    /// it.
    pub proxy: Option<String>,
}

impl HostConfig {
    /// Files in which OpenSSH would look for the host's key: the user's files, then the machine's.
    #[must_use]
    pub fn known_hosts_files(&self, home: &Path) -> Vec<PathBuf> {
        let mut files = self.user_known_hosts_files.clone();
        if files.is_empty() {
            files.extend([home.join(".ssh/known_hosts"), home.join(".ssh/known_hosts2")]);
        }
        files.extend(["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"].map(PathBuf::from));
        files
    }
}

/// Loads the configuration of `host` from `~/.ssh/config` and `/etc/ssh/ssh_config`.
///
/// # Errors
/// A file exists and is unreadable. It might configure this host.
pub fn load(host: &str, home: &Path) -> io::Result<HostConfig> {
    let mut reader = Reader { host, home, config: HostConfig::default() };
    for file in [home.join(".ssh/config"), PathBuf::from("/etc/ssh/ssh_config")] {
        let directory = file.parent().unwrap_or(home).to_path_buf();
        reader.file(&file, &directory, true, 0)?;
    }
    Ok(reader.finish())
}

struct Reader<'a> {
    host: &'a str,
    home: &'a Path,
    config: HostConfig,
}

impl Reader<'_> {
    /// Reads `file`. `active` tells if the block around its Include applies.
    fn file(&mut self, file: &Path, directory: &Path, active: bool, depth: usize) -> io::Result<()> {
        match std::fs::read(file) {
            Ok(bytes) => self.text(&String::from_utf8_lossy(&bytes), directory, active, depth),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => {
                Err(io::Error::new(error.kind(), format!("could not read {}: {error}", file.display())))
            }
        }
    }

    fn text(&mut self, text: &str, directory: &Path, outer: bool, depth: usize) -> io::Result<()> {
        let mut active = outer;
        for line in text.lines() {
            let words = words(line);
            let Some((keyword, values)) = words.split_first() else { continue };
            match keyword.to_ascii_lowercase().as_str() {
                "host" => active = outer && host_matches(values, self.host),
                // Every other condition needs facts that are unknown here. A skipped block adds
                // nothing.
                "match" => active = outer && matches!(values, [all] if all.eq_ignore_ascii_case("all")),
                "include" if active && depth < INCLUDE_DEPTH_MAX => {
                    for value in values {
                        for file in included(&self.expand_home(value), directory) {
                            self.file(&file, directory, active, depth + 1)?;
                        }
                    }
                }
                keyword if active => self.set(keyword, values),
                _ => {}
            }
        }
        Ok(())
    }

    fn set(&mut self, keyword: &str, values: &[String]) {
        let Some(value) = values.first() else { return };
        let first = |slot: &mut Option<String>| {
            slot.get_or_insert_with(|| value.clone());
        };
        match keyword {
            "hostname" => first(&mut self.config.host_name),
            "user" => first(&mut self.config.user),
            "hostkeyalias" => first(&mut self.config.host_key_alias),
            "proxyjump" | "proxycommand" => {
                self.config.proxy.get_or_insert_with(|| values.join(" "));
            }
            "port" => self.config.port = self.config.port.or(value.parse().ok()),
            "identityfile" if value.eq_ignore_ascii_case("none") => {}
            "identityfile" => self.config.identity_files.push(PathBuf::from(value)),
            "userknownhostsfile" if self.config.user_known_hosts_files.is_empty() => {
                self.config.user_known_hosts_files = values.iter().map(PathBuf::from).collect();
            }
            _ => {}
        }
    }

    /// Expands `%` tokens and `~`, which needs the complete configuration.
    fn finish(mut self) -> HostConfig {
        let config = std::mem::take(&mut self.config);
        let host =
            config.host_name.map(|name| name.replace("%%", "\0").replace("%h", self.host).replace('\0', "%"));
        let real = host.clone().unwrap_or_else(|| self.host.to_owned());
        let user = config.user.clone().unwrap_or_default();
        let expand = |path: PathBuf| {
            let text = self.expand_home(&path.to_string_lossy());
            let text = text.to_string_lossy().replace("%%", "\0").replace("%d", &self.home.to_string_lossy());
            let text = text.replace("%h", &real).replace("%n", self.host).replace("%r", &user);
            PathBuf::from(text.replace('\0', "%"))
        };
        HostConfig {
            host_name: host,
            identity_files: config.identity_files.into_iter().map(expand).collect(),
            user_known_hosts_files: config.user_known_hosts_files.into_iter().map(expand).collect(),
            proxy: config.proxy.filter(|proxy| !proxy.eq_ignore_ascii_case("none")),
            ..config
        }
    }

    fn expand_home(&self, path: &str) -> PathBuf {
        match path.strip_prefix("~/") {
            Some(rest) => self.home.join(rest),
            None => PathBuf::from(path),
        }
    }
}

/// Splits a line into words at blanks, or at one `=` after the first word. Double quotes protect
/// blanks.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() && !rest.starts_with('#') {
        let (word, after) = match rest.strip_prefix('"').and_then(|quoted| quoted.split_once('"')) {
            Some((word, after)) => (word, after),
            None => {
                let is_end = |c: char| c.is_ascii_whitespace() || (words.is_empty() && c == '=');
                rest.split_at(rest.find(is_end).unwrap_or(rest.len()))
            }
        };
        words.push(word.to_owned());
        rest = after.trim_start();
        if let ([_], Some(after)) = (words.as_slice(), rest.strip_prefix('=')) {
            rest = after.trim_start();
        }
    }
    words
}

fn host_matches(patterns: &[String], host: &str) -> bool {
    let mut matches = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(pattern) if pattern_matches(pattern, host) => return false,
            Some(_) => {}
            None => matches |= pattern_matches(pattern, host),
        }
    }
    matches
}

/// Files that an Include names, sorted by name. Wildcards work in the last component only.
fn included(path: &Path, directory: &Path) -> Vec<PathBuf> {
    let path = directory.join(path);
    let (Some(parent), Some(pattern)) = (path.parent(), path.file_name().map(|name| name.to_string_lossy()))
    else {
        return Vec::new();
    };
    if !pattern.contains(['*', '?']) {
        return vec![path.clone()];
    }
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
    let mut files: Vec<_> = names
        .filter(|name| {
            let name = name.to_string_lossy();
            !name.starts_with('.') && pattern_matches(&pattern, &name)
        })
        .map(|name| parent.join(name))
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, host: &str) -> HostConfig {
        let mut reader = Reader { host, home: Path::new("/home/me"), config: HostConfig::default() };
        reader.text(text, Path::new("/home/me/.ssh"), true, 0).unwrap();
        reader.finish()
    }

    #[test]
    fn the_first_value_counts_and_identities_add_up() {
        let text = "
            # mine
            Host vm *.example.com !bad.example.com
                HostName=10.0.0.1
                Port = 2222
                IdentityFile \"~/my keys/id\"
            Host *
            \tPort 22
                User root
                IdentityFile %d/.ssh/%n_%r
                UserKnownHostsFile ~/a ~/b
        ";
        let config = read(text, "vm");
        assert_eq!(config.host_name.as_deref(), Some("10.0.0.1"));
        assert_eq!((config.port, config.user.as_deref()), (Some(2222), Some("root")));
        let files = ["/home/me/my keys/id", "/home/me/.ssh/vm_root"].map(PathBuf::from);
        assert_eq!(config.identity_files, files);
        assert_eq!(config.user_known_hosts_files, ["/home/me/a", "/home/me/b"].map(PathBuf::from));
        assert_eq!(read(text, "bad.example.com").port, Some(22));
        assert_eq!(read(text, "good.example.com").port, Some(2222));
    }

    #[test]
    fn conditions_that_are_not_understood_do_not_apply() {
        let text = "Match host vm exec true\nPort 1\nMatch all\nPort 2\n";
        assert_eq!(read(text, "vm").port, Some(2));
    }

    #[test]
    fn a_proxy_other_than_none_is_reported() {
        assert_eq!(read("ProxyJump none\nProxyCommand nc %h %p\n", "vm").proxy, None);
        assert_eq!(read("ProxyCommand nc %h %p\n", "vm").proxy.as_deref(), Some("nc %h %p"));
    }

    #[test]
    fn includes_apply_only_in_their_block_and_loops_end() {
        let home = tempfile::tempdir().unwrap();
        let ssh = home.path().join(".ssh");
        std::fs::create_dir_all(ssh.join("config.d")).unwrap();
        std::fs::write(ssh.join("config"), "Include config.d/* config\nHost other\nInclude x\n").unwrap();
        std::fs::write(ssh.join("config.d/1"), "Host vm\nUser one\n").unwrap();
        std::fs::write(ssh.join("config.d/2"), "User two\nPort 7\n").unwrap();
        std::fs::create_dir(ssh.join("x")).unwrap();
        let config = load("vm", home.path()).unwrap();
        assert_eq!((config.user.as_deref(), config.port), (Some("one"), Some(7)));
        // An unreadable file in a block that applies is an error.
        assert!(load("other", home.path()).is_err());
    }
}
