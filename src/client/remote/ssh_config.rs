//! `~/.ssh/config`, read as OpenSSH's `ssh` reads it: Host, Match, Include, and the keywords that
//! decide where and how to connect.
//!
//! ksync has its own parser, because russh-config supports neither Include, Match, tabs nor
//! `Key=Value`, and ssh2-config skips Match. The differential test against `ssh -G` is
//! `tests/remote/config.rs`.
//!
//! A keyword that would change where or how to connect, and that ksync cannot honour, is an error.
//! So is a Match block that may apply and whose criterion ksync does not know. All other keywords
//! are ignored. The caller must not connect directly if [`HostConfig::proxy`] is set.

mod names;
mod words;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use nix::unistd::{Uid, User, gethostname, getuid};

pub use self::names::{hosts, names};
use self::words::{
    arguments, expand_environment, expand_tokens, included, is_blank, list_matches, take_word,
};
use crate::remote::known_hosts::pattern_matches;

/// Deepest nesting of Include, as in OpenSSH.
const INCLUDE_DEPTH_MAX: usize = 16;

/// The port that `%p` means while none is configured.
const SSH_PORT: u16 = 22;

/// Keywords of which the first value counts.
const FIRST_COUNTS: [&str; 18] = [
    "addressfamily",
    "bindaddress",
    "bindinterface",
    "canonicalizehostname",
    "globalknownhostsfile",
    "hostkeyalias",
    "hostname",
    "identitiesonly",
    "identityagent",
    "port",
    "preferredauthentications",
    "proxycommand",
    "proxyjump",
    "pubkeyauthentication",
    "revokedhostkeys",
    "tag",
    "user",
    "userknownhostsfile",
];

/// Keywords whose values add up.
const ADDING_UP: [&str; 2] = ["identityfile", "certificatefile"];

/// A requested connection: the host, and its settings on the command line.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The host, as typed.
    pub host: &'a str,
    /// The login name, if one was typed.
    pub user: Option<&'a str>,
    /// The port, if one was typed.
    pub port: Option<u16>,
    /// The home directory.
    pub home: &'a Path,
}

/// The configuration of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// The real name or address.
    pub host_name: String,
    /// The port, as typed or configured.
    pub port: Option<u16>,
    /// Login name, as typed or configured.
    pub user: Option<String>,
    /// Private key files in order; `None` if the configuration names none, so that the default
    /// files count.
    pub identity_files: Option<Vec<PathBuf>>,
    /// Certificate files in order.
    pub certificate_files: Vec<PathBuf>,
    /// True if only the named keys may be offered, even if ssh-agent holds others.
    pub identities_only: bool,
    /// The ssh-agent to ask.
    pub ssh_agent: SshAgent,
    /// The user's files with known keys; `None`: the default ones.
    pub user_known_hosts_files: Option<Vec<PathBuf>>,
    /// The machine's files with known keys; `None`: the default ones.
    pub global_known_hosts_files: Option<Vec<PathBuf>>,
    /// Name of the host in the known_hosts files.
    pub host_key_alias: Option<String>,
    /// The addresses to connect to.
    pub address_family: AddressFamily,
    /// The local address to connect from.
    pub bind_address: Option<String>,
    /// A ProxyJump or ProxyCommand other than `none`. ksync can neither use it nor connect without
    /// it.
    pub proxy: Option<String>,
}

/// The ssh-agent to ask for keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SshAgent {
    /// The one that `SSH_AUTH_SOCK` names.
    #[default]
    OfEnvironment,
    /// The one behind this socket.
    At(PathBuf),
    /// None.
    Off,
}

/// Kind of the addresses to connect to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AddressFamily {
    /// Every kind.
    #[default]
    Any,
    /// IPv4.
    Inet,
    /// IPv6.
    Inet6,
}

/// Reason why a configuration cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file exists and is unreadable. It might configure this host.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A line that is wrong, or that ksync cannot honour.
    #[error("{place}: {reason}")]
    Line {
        /// The line.
        place: Place,
        /// The reason.
        reason: String,
    },
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The number of the line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

impl HostConfig {
    /// Files in which OpenSSH would look for the host's key: the user's files, then the machine's.
    #[must_use]
    pub fn known_hosts_files(&self, home: &Path) -> Vec<PathBuf> {
        let users = ["known_hosts", "known_hosts2"].map(|name| home.join(".ssh").join(name));
        let machines = ["ssh_known_hosts", "ssh_known_hosts2"].map(|name| Path::new("/etc/ssh").join(name));
        let mut files = self.user_known_hosts_files.clone().unwrap_or_else(|| users.into());
        files.extend(self.global_known_hosts_files.clone().unwrap_or_else(|| machines.into()));
        files
    }
}

/// Files with the configuration: the user's, then the machine's.
#[must_use]
pub fn files(home: &Path) -> [PathBuf; 2] {
    [home.join(".ssh/config"), PathBuf::from("/etc/ssh/ssh_config")]
}

/// Loads the configuration of a host from these files. The first one is the user's.
///
/// # Errors
/// [`ConfigError`].
pub fn load(query: &Query<'_>, files: &[PathBuf]) -> Result<HostConfig, ConfigError> {
    let mut reader = Reader::new(query);
    reader.read_all(files)?;
    let host_name = reader.host_name()?;
    let host_name = if host_name.parse::<IpAddr>().is_ok() { host_name } else { host_name.to_lowercase() };
    if reader.wants_final {
        (reader.is_final, reader.host) = (true, host_name.clone());
        reader.read_all(files)?;
    }
    reader.host = host_name;
    reader.is_final = true;
    reader.finish()
}

/// The absolute path that an Include in `file` means.
fn anchored(value: &str, home: &Path, file: &Path) -> PathBuf {
    // A relative path is below the directory of the user's or the machine's configuration.
    let directory = home.join(".ssh");
    let base = if file.starts_with("/etc/ssh") { Path::new("/etc/ssh") } else { &directory };
    base.join(expand_home(value, home))
}

fn expand_home(path: &str, home: &Path) -> PathBuf {
    match path.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None => PathBuf::from(path),
    }
}

/// The value of a keyword.
#[derive(Debug, Clone)]
struct Setting {
    /// The keyword, as written.
    keyword: String,
    values: Vec<String>,
    place: Place,
}

impl Setting {
    fn error(&self, reason: impl fmt::Display) -> ConfigError {
        let reason = format!("{} {}: {reason}", self.keyword, self.values.join(" "));
        ConfigError::Line { place: self.place.clone(), reason }
    }

    /// The only value.
    fn value(&self) -> Result<&str, ConfigError> {
        match self.values.as_slice() {
            [value] if !value.is_empty() => Ok(value),
            _ => Err(self.error("it takes one value")),
        }
    }

    fn is_yes(&self) -> Result<bool, ConfigError> {
        match self.value()?.to_ascii_lowercase().as_str() {
            "yes" | "true" => Ok(true),
            "no" | "false" => Ok(false),
            _ => Err(self.error("it takes yes or no")),
        }
    }
}

struct Reader<'a> {
    query: &'a Query<'a>,
    /// The host that Host lines match: the typed one, or in the final pass the real one.
    host: String,
    is_final: bool,
    /// Set by `Match final`: the files are read a second time, with the real host.
    wants_final: bool,
    settings: HashMap<String, Setting>,
    identity_files: Vec<Setting>,
    certificate_files: Vec<Setting>,
    local_user: String,
    local_host: String,
}

impl<'a> Reader<'a> {
    fn new(query: &'a Query<'a>) -> Self {
        Self {
            query,
            host: query.host.to_owned(),
            is_final: false,
            wants_final: false,
            settings: HashMap::new(),
            identity_files: Vec::new(),
            certificate_files: Vec::new(),
            local_user: local_user().unwrap_or_default(),
            local_host: gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        }
    }

    fn read_all(&mut self, files: &[PathBuf]) -> Result<(), ConfigError> {
        files.iter().try_for_each(|file| self.read(file, true, 0))
    }

    /// Reads `file`. `outer` tells if the block around its Include applies.
    fn read(&mut self, file: &Path, outer: bool, depth: usize) -> Result<(), ConfigError> {
        match std::fs::read(file) {
            Ok(bytes) => self.text(&String::from_utf8_lossy(&bytes), file, outer, depth),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(())
            }
            // A home that is not this user's holds no settings for this user. ssh skips such a
            // file, too.
            Err(error)
                if error.kind() == io::ErrorKind::PermissionDenied
                    && depth == 0
                    && !is_own(self.query.home) =>
            {
                Ok(())
            }
            Err(source) => Err(ConfigError::Unreadable { path: file.to_owned(), source }),
        }
    }

    fn text(&mut self, text: &str, file: &Path, outer: bool, depth: usize) -> Result<(), ConfigError> {
        let mut active = outer;
        for (index, line) in text.lines().enumerate() {
            let place = Place { file: file.to_owned(), line: index + 1 };
            let wrong = |reason| ConfigError::Line { place: place.clone(), reason };
            let mut rest = line.trim_start();
            if rest.is_empty() || rest.starts_with('#') {
                continue;
            }
            let keyword = take_word(&mut rest).map_err(wrong)?;
            match keyword.to_ascii_lowercase().as_str() {
                "host" => active = outer && self.is_host(&arguments(rest).map_err(wrong)?),
                "match" if outer => active = self.matches(rest, file).map_err(wrong)?,
                // As in ssh, even a block that does not apply can ask for the final pass.
                "match" => self.wants_final |= rest.to_ascii_lowercase().split(is_blank).any(is_final),
                "include" if depth < INCLUDE_DEPTH_MAX => {
                    for value in arguments(rest).map_err(wrong)? {
                        if active && value.contains('[') {
                            return Err(wrong(format!(
                                "Include {value}: ksync knows the wildcards * and ? only"
                            )));
                        }
                        for included in included(&anchored(&value, self.query.home, file)) {
                            let read = self.read(&included, active, depth + 1);
                            if active {
                                read?;
                            }
                        }
                    }
                }
                lower if active => self.set(lower, &keyword, rest, &place).map_err(wrong)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn is_host(&self, patterns: &[String]) -> bool {
        let mut matches = false;
        for pattern in patterns {
            match pattern.strip_prefix('!') {
                Some(pattern) if pattern_matches(pattern, &self.host) => return false,
                Some(_) => {}
                None => matches |= pattern_matches(pattern, &self.host),
            }
        }
        matches
    }

    /// Decides if a Match block applies.
    fn matches(&mut self, mut rest: &str, file: &Path) -> Result<bool, String> {
        let (mut result, mut count, mut unknown) = (true, 0, None);
        loop {
            let word = take_word(&mut rest)?;
            if word.is_empty() || word.starts_with('#') {
                break;
            }
            let (negated, criterion) = match word.strip_prefix('!') {
                Some(criterion) => (true, criterion.to_ascii_lowercase()),
                None => (false, word.to_ascii_lowercase()),
            };
            if criterion == "all" {
                let is_last = rest.is_empty() || rest.starts_with('#');
                if count > 1 || !is_last {
                    return Err("all cannot be combined with other criteria of Match".to_owned());
                }
                return Ok(result && !negated);
            }
            count += 1;
            let is_met = match criterion.as_str() {
                "final" => {
                    self.wants_final = true;
                    self.is_final
                }
                "canonical" => self.is_final,
                _ => {
                    let value = take_word(&mut rest)?;
                    if value.is_empty() || value.starts_with('#') {
                        return Err(format!("Match {criterion} has no value"));
                    }
                    let lower = value.to_lowercase();
                    match criterion.as_str() {
                        // After the files, `load` reports a host name that is wrong.
                        "host" => list_matches(&lower, &self.host_name().unwrap_or_default().to_lowercase()),
                        "originalhost" => list_matches(&lower, &self.query.host.to_lowercase()),
                        "user" => list_matches(&value, &self.user()),
                        "localuser" => list_matches(&value, &self.local_user),
                        "tagged" => list_matches(&value, &self.first("tag").unwrap_or_default()),
                        "exec" => result && self.execute(&value, file)?,
                        _ => {
                            unknown = Some(criterion);
                            continue;
                        }
                    }
                }
            };
            result &= is_met != negated;
        }
        match unknown {
            // Another criterion is not met, so this one does not count.
            Some(criterion) if result => Err(format!("ksync does not know the Match criterion {criterion}")),
            None if count == 0 => Err("Match has no criterion".to_owned()),
            _ => Ok(result),
        }
    }

    /// Runs the command of `Match exec`, and reports if it succeeded.
    fn execute(&self, command: &str, file: &Path) -> Result<bool, String> {
        if !is_safe(file) {
            return Err("Match exec runs a command, and other users can change this file".to_owned());
        }
        let command = expand_tokens(command, |token| self.token(token))?;
        let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty()).unwrap_or("/bin/sh".into());
        let ended =
            Command::new(shell).arg("-c").arg(&command).stdin(Stdio::null()).stdout(Stdio::null()).status();
        let code = ended.map_err(|error| format!("Match exec \"{command}\" cannot be run: {error}"))?.code();
        Ok(code.ok_or_else(|| format!("Match exec \"{command}\" was killed"))? == 0)
    }

    /// Stores the value of a keyword that counts.
    fn set(&mut self, lower: &str, keyword: &str, rest: &str, place: &Place) -> Result<(), String> {
        let adds_up = ADDING_UP.contains(&lower);
        if !adds_up && (!FIRST_COUNTS.contains(&lower) || self.settings.contains_key(lower)) {
            return Ok(());
        }
        // Of ProxyCommand and ProxyJump the first one counts, but a ProxyCommand after
        // `ProxyJump none` does.
        let jump = self.first("proxyjump");
        let is_late = match lower {
            "proxycommand" => jump.is_some_and(|jump| !is_none(&jump)),
            "proxyjump" => self.settings.contains_key("proxycommand"),
            _ => false,
        };
        if is_late {
            return Ok(());
        }
        let values = match lower {
            "proxycommand" => vec![rest.trim_start_matches('=').trim().to_owned()],
            "proxyjump" => vec![rest.split('#').next().unwrap_or_default().trim().to_owned()],
            _ => arguments(rest)?,
        };
        if values.is_empty() {
            return Err(format!("{keyword} has no value"));
        }
        let setting = Setting { keyword: keyword.to_owned(), values, place: place.clone() };
        let list = match lower {
            "identityfile" => &mut self.identity_files,
            "certificatefile" => &mut self.certificate_files,
            _ => {
                self.settings.insert(lower.to_owned(), setting);
                return Ok(());
            }
        };
        if !list.iter().any(|other| other.values == setting.values) {
            list.push(setting);
        }
        Ok(())
    }

    /// The first word of a keyword's value.
    fn first(&self, keyword: &str) -> Option<String> {
        self.settings.get(keyword)?.values.first().cloned()
    }

    /// The host to connect to, as far as it is known.
    fn host_name(&self) -> Result<String, ConfigError> {
        match self.settings.get("hostname").filter(|_| !self.is_final) {
            Some(setting) => {
                let host = |token| (token == 'h').then(|| self.host.clone());
                expand_tokens(setting.value()?, host).map_err(|reason| setting.error(reason))
            }
            None => Ok(self.host.clone()),
        }
    }

    fn user(&self) -> String {
        let typed = self.query.user.map(str::to_owned);
        typed.or_else(|| self.first("user")).unwrap_or_else(|| self.local_user.clone())
    }

    fn port(&self) -> Result<Option<u16>, ConfigError> {
        match (self.query.port, self.settings.get("port")) {
            (Some(port), _) => Ok(Some(port)),
            (None, Some(setting)) => match setting.value()?.parse() {
                Ok(port) if port != 0 => Ok(Some(port)),
                _ => Err(setting.error("it takes a number from 1 to 65535")),
            },
            (None, None) => Ok(None),
        }
    }

    /// The meaning of a `%` token.
    fn token(&self, token: char) -> Option<String> {
        let host = || self.host_name().ok();
        let port = || self.port().ok().flatten().unwrap_or(SSH_PORT).to_string();
        match token {
            'C' => {
                let parts = [&self.local_host, &host()?, &port(), &self.user()].map(String::as_str).concat();
                let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, parts.as_bytes());
                Some(HEXLOWER.encode(hash.as_ref()))
            }
            'd' => Some(self.query.home.to_string_lossy().into_owned()),
            'h' => host(),
            'i' => Some(getuid().to_string()),
            'k' => self.first("hostkeyalias").or_else(host),
            'L' => self.local_host.split('.').next().map(str::to_owned),
            'l' => Some(self.local_host.clone()),
            'n' => Some(self.query.host.to_owned()),
            'p' => Some(port()),
            'r' => Some(self.user()),
            'u' => Some(self.local_user.clone()),
            _ => None,
        }
    }

    /// The path that a value means.
    fn path(&self, value: &str) -> Result<PathBuf, String> {
        let path = expand_home(value, self.query.home);
        let expanded = expand_tokens(&path.to_string_lossy(), |token| self.token(token))?;
        Ok(PathBuf::from(expand_environment(&expanded)?))
    }

    /// The paths of settings; `none` names no file.
    fn paths(&self, settings: &[Setting]) -> Result<Vec<PathBuf>, ConfigError> {
        let mut paths = Vec::new();
        for setting in settings {
            for value in setting.values.iter().filter(|value| !is_none(value)) {
                paths.push(self.path(value).map_err(|reason| setting.error(reason))?);
            }
        }
        Ok(paths)
    }

    /// The paths of a keyword; `None` if it is not set.
    fn paths_of(&self, keyword: &str) -> Result<Option<Vec<PathBuf>>, ConfigError> {
        let setting = self.settings.get(keyword);
        setting.map(|setting| self.paths(std::slice::from_ref(setting))).transpose()
    }

    /// Interprets the complete configuration.
    fn finish(self) -> Result<HostConfig, ConfigError> {
        self.refuse()?;
        let value = |keyword: &str| -> Result<Option<String>, ConfigError> {
            self.settings.get(keyword).map(|setting| setting.value().map(str::to_owned)).transpose()
        };
        let names_keys = !self.identity_files.is_empty();
        let identities_only = self.settings.get("identitiesonly").map(Setting::is_yes);
        for setting in self.identity_files.iter().chain(&self.certificate_files) {
            setting.value()?;
        }
        Ok(HostConfig {
            port: self.port()?,
            user: self.query.user.map(str::to_owned).or(value("user")?),
            identity_files: names_keys.then(|| self.paths(&self.identity_files)).transpose()?,
            certificate_files: self.paths(&self.certificate_files)?,
            identities_only: identities_only.transpose()?.unwrap_or(false),
            ssh_agent: self.ssh_agent()?,
            user_known_hosts_files: self.paths_of("userknownhostsfile")?,
            global_known_hosts_files: self.paths_of("globalknownhostsfile")?,
            host_key_alias: value("hostkeyalias")?,
            address_family: self.address_family()?,
            bind_address: value("bindaddress")?,
            proxy: ["proxyjump", "proxycommand"]
                .into_iter()
                .filter_map(|keyword| self.first(keyword))
                .find(|proxy| !is_none(proxy)),
            host_name: self.host,
        })
    }

    fn ssh_agent(&self) -> Result<SshAgent, ConfigError> {
        let Some(setting) = self.settings.get("identityagent") else { return Ok(SshAgent::OfEnvironment) };
        let value = setting.value()?;
        let variable = value.strip_prefix('$').filter(|name| !name.starts_with('{'));
        Ok(match (value, variable) {
            ("none", _) => SshAgent::Off,
            ("SSH_AUTH_SOCK", _) => SshAgent::OfEnvironment,
            (_, Some(name)) => std::env::var_os(name).map_or(SshAgent::Off, |path| SshAgent::At(path.into())),
            _ => SshAgent::At(self.path(value).map_err(|reason| setting.error(reason))?),
        })
    }

    fn address_family(&self) -> Result<AddressFamily, ConfigError> {
        let Some(setting) = self.settings.get("addressfamily") else { return Ok(AddressFamily::Any) };
        match setting.value()?.to_ascii_lowercase().as_str() {
            "any" => Ok(AddressFamily::Any),
            "inet" => Ok(AddressFamily::Inet),
            "inet6" => Ok(AddressFamily::Inet6),
            _ => Err(setting.error("it takes any, inet or inet6")),
        }
    }

    /// Refuses settings that change where or how to connect, and that ksync cannot honour.
    fn refuse(&self) -> Result<(), ConfigError> {
        let refused =
            |keyword: &str, is_wrong: fn(&str) -> bool, reason: &str| match self.settings.get(keyword) {
                Some(setting) if is_wrong(&setting.values.join(" ").to_ascii_lowercase()) => {
                    Err(setting.error(reason))
                }
                _ => Ok(()),
            };
        refused("bindinterface", |_| true, "ksync cannot bind a connection to an interface")?;
        refused(
            "revokedhostkeys",
            |value| value != "none",
            "ksync reads revoked keys in known_hosts files only",
        )?;
        refused(
            "canonicalizehostname",
            |value| !matches!(value, "no" | "false" | "none"),
            "ksync does not canonicalise host names",
        )?;
        refused(
            "pubkeyauthentication",
            |value| matches!(value, "no" | "false"),
            "ksync logs in with keys only",
        )?;
        let has_no_key = |value: &str| !value.split(',').any(|method| method == "publickey");
        refused("preferredauthentications", has_no_key, "ksync logs in with keys only")
    }
}

fn is_final(criterion: &str) -> bool {
    matches!(criterion, "final" | "!final")
}

fn is_none(value: &str) -> bool {
    value.eq_ignore_ascii_case("none")
}

/// The name of the user who runs this process.
#[must_use]
pub fn local_user() -> Option<String> {
    User::from_uid(getuid()).ok().flatten().map(|user| user.name)
}

fn is_own(directory: &Path) -> bool {
    std::fs::metadata(directory).is_ok_and(|data| data.uid() == getuid().as_raw())
}

/// True if nobody but this user and the superuser can change `file`.
fn is_safe(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|data| {
        let owner = Uid::from_raw(data.uid());
        (owner.is_root() || owner == getuid()) && data.mode() & 0o002 == 0
    })
}
