//! `-e`, `--rsh`: the ssh command that rsync would start, mapped onto ksync's own SSH client.
//! Whatever would connect elsewhere, or trust another host key, is refused by name.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use ksync::remote::ssh_config::AddressFamily;
use ksync::sync::endpoint::Endpoint;
use ksync::sync::{self, ConnectOptions};
use ksync::tree::path::escape;

use crate::report::CliError;

/// The settings of an ssh command line. As in ssh, the first value of each counts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Rsh {
    port: Option<u16>,
    user: Option<String>,
    /// Private key files, in order.
    pub(crate) identities: Vec<PathBuf>,
    /// ConnectTimeout, in seconds.
    pub(crate) connect_timeout: Option<u64>,
    /// AddressFamily.
    pub(crate) address_family: Option<AddressFamily>,
    /// The file of `-F`; empty for none.
    pub(crate) config: Option<PathBuf>,
}

/// `--rsync-path`: the program that rsync would start there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RsyncPath {
    Plain,
    Sudo,
}

impl RsyncPath {
    /// Parses the program. The error continues "takes".
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let is = |word: &str, name: &str| word.rsplit('/').next() == Some(name);
        match *words {
            [rsync] if is(rsync, "rsync") => Ok(Self::Plain),
            [sudo, rsync] | [sudo, "-n", rsync] if is(sudo, "sudo") && is(rsync, "rsync") => Ok(Self::Sudo),
            _ => Err("rsync or \"sudo rsync\": ksync runs its own agent on the other side"),
        }
    }

    /// True if sudo starts the program.
    pub(crate) fn is_by_sudo(self) -> bool {
        self == Self::Sudo
    }
}

/// Flags that leave the copy as it is. `-C`, `-q` and `-v` concern what ssh does and prints; ksync
/// forwards no X11 and no ssh-agent, and asks for no terminal.
const HARMLESS: &[u8] = b"qvCxTaAk";

/// Flags of ssh that take a value.
const WITH_VALUE: &[u8] = b"BbcDEeFIiJLlmOoPpQRSWw";

/// `-o` keywords whose value leaves the copy as it is, in lower case. The last ones are login
/// methods that ksync does not have.
const ANY_VALUE: [&str; 17] = [
    "addkeystoagent",
    "batchmode",
    "checkhostip",
    "compression",
    "controlmaster",
    "controlpath",
    "controlpersist",
    "forwardagent",
    "forwardx11",
    "loglevel",
    "serveralivecountmax",
    "serveraliveinterval",
    "tcpkeepalive",
    "challengeresponseauthentication",
    "gssapiauthentication",
    "kbdinteractiveauthentication",
    "passwordauthentication",
];

const HOST_KEY: &str =
    "ksync accepts no unknown host key: connect once with ssh, or give the key by --host-key";
const PROXY: &str = "ksync connects through no other host yet: use rsync, or forward a port with ssh -L";
const IN_CONFIG: &str = "ksync follows it in ~/.ssh/config only: write it there, in a Host block";

impl Rsh {
    /// Parses the command.
    pub(crate) fn parse(command: &OsStr) -> Result<Self, CliError> {
        let words = words(command.as_bytes())?;
        let shown = escape(command.as_bytes());
        let Some((program, arguments)) = words.split_first() else {
            return Err(CliError::usage("-e names no program", "Leave it out, or write -e ssh."));
        };
        if program != b"ssh" && !program.ends_with(b"/ssh") {
            return Err(CliError::usage(
                format!("\"{shown}\" is not a plain ssh (-e, --rsh), and ksync starts no remote shell"),
                "Write user@host:/path, ssh://user@host:port/path or wss://host:port/path.",
            ));
        }
        let mut rsh = Self::default();
        let mut arguments = arguments.iter();
        while let Some(word) = arguments.next() {
            let Some(flags) = word.strip_prefix(b"-").filter(|flags| !flags.is_empty() && *flags != b"-")
            else {
                let shown = escape(word);
                return Err(refused(&shown, "ksync adds no words of its own to an ssh command"));
            };
            let mut rest = flags;
            while let Some((flag, behind)) = rest.split_first() {
                rest = behind;
                if WITH_VALUE.contains(flag) {
                    let mut next = || arguments.next().map(Vec::as_slice).unwrap_or_default();
                    let value = if behind.is_empty() { next() } else { behind };
                    if value.is_empty() {
                        let told = format!("-{} of -e needs a value", char::from(*flag));
                        return Err(CliError::usage(told, "Write it as in -e 'ssh -p 2222 -i FILE'."));
                    }
                    rsh.set(*flag, value)?;
                    break;
                }
                rsh.set_flag(*flag)?;
            }
        }
        Ok(rsh)
    }

    fn set_flag(&mut self, flag: u8) -> Result<(), CliError> {
        let shown = format!("-{}", escape(&[flag]));
        match flag {
            _ if HARMLESS.contains(&flag) => Ok(()),
            // As in ssh, the last of these flags counts.
            b'4' => {
                self.address_family = Some(AddressFamily::Inet);
                Ok(())
            }
            b'6' => {
                self.address_family = Some(AddressFamily::Inet6);
                Ok(())
            }
            _ => Err(refused(&shown, "ksync has its own SSH client, which lacks it")),
        }
    }

    /// Sets what a flag with a value means.
    fn set(&mut self, flag: u8, value: &[u8]) -> Result<(), CliError> {
        let shown = format!("-{} {}", char::from(flag), escape(value));
        match flag {
            b'p' => self.set_port(value, &shown),
            b'l' => self.set_user(value, &shown),
            b'i' => self.add_identity(value, &shown),
            b'o' => self.option(value),
            b'J' => Err(refused(&shown, PROXY)),
            b'F' => {
                // As in ssh, the last file counts, and none is a word of its own.
                let none = value == b"none";
                self.config = Some(if none { PathBuf::new() } else { file(value, &shown)? });
                Ok(())
            }
            b'b' => Err(refused(&shown, &format!("BindAddress: {IN_CONFIG}"))),
            _ => Err(refused(&shown, "ksync has its own SSH client, which lacks it")),
        }
    }

    /// `-o`: a line as in ssh's configuration, `Keyword=value` or `Keyword value`.
    fn option(&mut self, line: &[u8]) -> Result<(), CliError> {
        let shown = format!("-o {}", escape(line));
        let is_gap = |byte: &u8| matches!(byte, b' ' | b'\t' | b'=');
        let end = line.iter().position(is_gap).unwrap_or(line.len());
        let (keyword, value) = line.split_at_checked(end).unwrap_or((line, b""));
        let keyword = String::from_utf8_lossy(keyword).to_ascii_lowercase();
        let start = value.iter().position(|byte| !is_gap(byte)).unwrap_or(value.len());
        let value = value.get(start..).unwrap_or_default().trim_ascii();
        let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        let lower = String::from_utf8_lossy(value).to_ascii_lowercase();
        if value.is_empty() {
            return Err(CliError::usage(
                format!("{shown} of -e has no value"),
                "Write it as in -e 'ssh -o Port=2222'.",
            ));
        }
        match (keyword.as_str(), lower.as_str()) {
            ("port", _) => self.set_port(value, &shown),
            ("user", _) => self.set_user(value, &shown),
            ("identityfile", _) => self.add_identity(value, &shown),
            ("addressfamily", "any" | "inet" | "inet6") => {
                self.address_family.get_or_insert(match lower.as_str() {
                    "inet" => AddressFamily::Inet,
                    "inet6" => AddressFamily::Inet6,
                    _ => AddressFamily::Any,
                });
                Ok(())
            }
            ("connecttimeout", _) => {
                let seconds = if lower == "none" { Some(0) } else { lower.parse().ok() };
                let seconds = seconds.ok_or_else(|| refused(&shown, "ConnectTimeout takes whole seconds"))?;
                self.connect_timeout.get_or_insert(seconds);
                Ok(())
            }
            (name, _) if ANY_VALUE.contains(&name) => Ok(()),
            // ksync offers the named keys only, if there are any.
            ("identitiesonly", "yes" | "true" | "no" | "false")
            | ("stricthostkeychecking", "yes" | "true" | "ask")
            | ("pubkeyauthentication", "yes" | "true")
            | ("proxyjump" | "proxycommand", "none") => Ok(()),
            ("preferredauthentications", list) if list.split(',').any(|method| method == "publickey") => {
                Ok(())
            }
            ("stricthostkeychecking", _) => Err(refused(&shown, HOST_KEY)),
            ("userknownhostsfile" | "globalknownhostsfile", "/dev/null" | "none") => {
                Err(refused(&shown, HOST_KEY))
            }
            ("proxyjump" | "proxycommand", _) => Err(refused(&shown, PROXY)),
            (
                "addressfamily"
                | "bindaddress"
                | "certificatefile"
                | "globalknownhostsfile"
                | "hostkeyalias"
                | "hostname"
                | "identityagent"
                | "userknownhostsfile",
                _,
            ) => Err(refused(&shown, IN_CONFIG)),
            _ => Err(refused(&shown, "ksync does not know what it would change")),
        }
    }

    fn set_port(&mut self, value: &[u8], shown: &str) -> Result<(), CliError> {
        let text = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        let port = text.and_then(|text| text.parse().ok()).filter(|&port| port != 0);
        let port = port.ok_or_else(|| refused(shown, "a port is a number from 1 to 65535"))?;
        self.port.get_or_insert(port);
        Ok(())
    }

    fn set_user(&mut self, value: &[u8], shown: &str) -> Result<(), CliError> {
        let is_plain = |c: char| !c.is_control() && !c.is_whitespace();
        let text = std::str::from_utf8(value).ok().filter(|text| text.chars().all(is_plain));
        let user = text.filter(|text| !text.starts_with('-'));
        let user = user.ok_or_else(|| refused(shown, "it is no user name"))?;
        self.user.get_or_insert_with(|| user.to_owned());
        Ok(())
    }

    fn add_identity(&mut self, value: &[u8], shown: &str) -> Result<(), CliError> {
        self.identities.push(file(value, shown)?);
        Ok(())
    }

    /// The endpoint that ssh would connect to with these settings.
    pub(crate) fn endpoint(
        &self,
        endpoint: Endpoint,
        connect_options: &ConnectOptions,
    ) -> Result<Endpoint, CliError> {
        match sync::resolve_for_ssh(endpoint, connect_options) {
            local @ Endpoint::Local(_) => Ok(local),
            Endpoint::Ssh { user, host, port, path } => {
                let port = one("port", port, self.port, &host)?;
                let user = one("user", user, self.user.clone(), &host)?;
                Ok(Endpoint::Ssh { user, host, port, path })
            }
            other => Err(CliError::usage(
                format!("-e ssh is for an SSH host, and {other} is none"),
                "Leave -e out; an SSH host is user@host:/path, or ssh://user@host:port/path.",
            )),
        }
    }
}

/// A file of a flag. The shell leaves a quoted `~` to ssh.
fn file(value: &[u8], shown: &str) -> Result<PathBuf, CliError> {
    if value.contains(&b'%') || value.windows(2).any(|pair| pair == b"${") {
        return Err(refused(shown, "ksync expands only ~/ here; write the file's name"));
    }
    let home = || std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
    match value.strip_prefix(b"~/") {
        Some(below) => home()
            .map(|home| home.join(OsStr::from_bytes(below)))
            .ok_or_else(|| refused(shown, "there is no home directory")),
        None if value.starts_with(b"~") => {
            Err(refused(shown, "ksync expands only ~/ here; write the absolute path"))
        }
        None => Ok(PathBuf::from(OsString::from_vec(value.to_vec()))),
    }
}

/// The one value of the endpoint and of `-e`.
fn one<T: PartialEq + std::fmt::Display>(
    what: &str,
    typed: Option<T>,
    by_rsh: Option<T>,
    host: &str,
) -> Result<Option<T>, CliError> {
    match (typed, by_rsh) {
        (Some(typed), Some(by_rsh)) if typed != by_rsh => Err(CliError::usage(
            format!("the endpoint names {what} {typed} of {host}, and -e names {what} {by_rsh}"),
            "Leave one of them out.",
        )),
        (typed, by_rsh) => Ok(typed.or(by_rsh)),
    }
}

fn refused(option: &str, reason: &str) -> CliError {
    CliError::usage(format!("{option} of -e is refused: {reason}"), "Leave it out, or use rsync.")
}

/// Splits a command as rsync does: at blanks, with single and double quotes, where a doubled quote
/// stands for itself. There are no backslashes.
fn words(command: &[u8]) -> Result<Vec<Vec<u8>>, CliError> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<Vec<u8>>, None);
    let mut bytes = command.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match quote {
            None if byte == b' ' => words.extend(word.take()),
            None if matches!(byte, b'\'' | b'"') => {
                word.get_or_insert_default();
                quote = Some(byte);
            }
            Some(open) if byte == open && bytes.next_if_eq(&open).is_none() => quote = None,
            _ => word.get_or_insert_default().push(byte),
        }
    }
    if let Some(quote) = quote {
        return Err(CliError::usage(
            format!("-e \"{}\" has an opening {} without a closing one", escape(command), char::from(quote)),
            "Close it, or write it twice inside quotes.",
        ));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(command: &str) -> Result<Rsh, String> {
        Rsh::parse(command.as_ref()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_command_is_split_as_rsync_splits_it() {
        let split = |text: &str| {
            let words = words(text.as_bytes()).unwrap();
            words.into_iter().map(|word| String::from_utf8(word).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(split("  ssh  -p 22 "), ["ssh", "-p", "22"]);
        assert_eq!(split("ssh -i 'a b' -o \"User x\""), ["ssh", "-i", "a b", "-o", "User x"]);
        assert_eq!(split("ssh -i'a ''b'\"c\"d\\ e"), ["ssh", "-ia 'bcd\\", "e"]);
        assert_eq!(split("a\tb ''"), ["a\tb", ""]);
        assert!(parsed("ssh -i 'a").unwrap_err().contains("opening '"));
    }

    #[test]
    fn port_user_and_key_are_understood_in_every_form() {
        let expected = Rsh {
            port: Some(2222),
            user: Some("me".into()),
            identities: vec!["/k".into()],
            ..Rsh::default()
        };
        for command in [
            "ssh -p 2222 -l me -i /k",
            "/usr/bin/ssh -p2222 -lme -i/k",
            "ssh -qTp 2222 -Cxl me -vvi /k -a -A -k",
            "ssh -o Port=2222 -oUser=me -o 'IdentityFile /k'",
            "ssh -o 'port = \"2222\"' -o user=me -o IDENTITYFILE=/k -p 9 -l other",
            "ssh -o StrictHostKeyChecking=yes -p 2222 -l me -i /k -o BatchMode=yes -o ControlPath=/x",
            "ssh -p 2222 -l me -i /k -o ServerAliveInterval=5 -o LogLevel=ERROR -o Compression=no",
            "ssh -p 2222 -l me -i /k -o IdentitiesOnly=yes -o PasswordAuthentication=no -o ProxyJump=none",
        ] {
            assert_eq!(parsed(command).as_ref(), Ok(&expected), "{command}");
        }
        assert_eq!(parsed("ssh"), Ok(Rsh::default()));
        assert_eq!(parsed("ssh -o ConnectTimeout=7").unwrap().connect_timeout, Some(7));
        let home = std::env::home_dir().unwrap();
        assert_eq!(parsed("ssh -i ~/.ssh/k").unwrap().identities, [home.join(".ssh/k")]);
    }

    #[test]
    fn addresses_and_files_of_settings_are_followed() {
        let family = |command: &str| parsed(command).unwrap().address_family;
        assert_eq!(
            [family("ssh -4"), family("ssh -46")],
            [AddressFamily::Inet, AddressFamily::Inet6].map(Some)
        );
        assert_eq!(family("ssh -o AddressFamily=inet6 -o AddressFamily=inet"), Some(AddressFamily::Inet6));
        assert_eq!(family("ssh"), None);
        let config = |command: &str| parsed(command).unwrap().config;
        assert_eq!(config("ssh -F /a -F /b"), Some("/b".into()));
        assert_eq!(config("ssh -F none"), Some(PathBuf::new()));
    }

    #[test]
    fn rsyncs_program_is_itself_or_by_sudo() {
        for (text, is_by_sudo) in [
            ("rsync", false),
            ("/usr/bin/rsync", false),
            ("sudo rsync", true),
            ("/bin/sudo -n /x/rsync", true),
        ] {
            assert_eq!(RsyncPath::parse(text).unwrap().is_by_sudo(), is_by_sudo, "{text}");
        }
        for text in ["", "sudo", "doas rsync", "sudo -u www rsync", "cd x && rsync"] {
            assert!(RsyncPath::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn whatever_changes_the_connection_is_refused_by_name() {
        for (command, name) in [
            ("rsh", "\"rsh\" is not a plain ssh"),
            ("sudo ssh", "\"sudo ssh\""),
            ("autossh -M 0", "\"autossh -M 0\""),
            ("", "-e names no program"),
            ("ssh -J jump", "-J jump"),
            ("ssh -qJjump", "-J jump"),
            ("ssh -o ProxyCommand='nc %h %p'", "-o ProxyCommand=nc %h %p"),
            ("ssh -o ProxyJump=a", "-o ProxyJump=a"),
            ("ssh -F /c%h", "-F /c%h"),
            ("ssh -t", "-t"),
            ("ssh -L 1:a:2", "-L 1:a:2"),
            ("ssh host", "host"),
            ("ssh --", "--"),
            ("ssh -p x", "-p x"),
            ("ssh -p 0", "-p 0"),
            ("ssh -p +1", "-p +1"),
            ("ssh -p", "-p of -e needs a value"),
            ("ssh -l 'a b'", "-l a b"),
            ("ssh -i %d/k", "-i %d/k"),
            ("ssh -i ~bob/k", "-i ~bob/k"),
            ("ssh -o Port", "-o Port of -e has no value"),
            ("ssh -o HostName=x", "-o HostName=x"),
            ("ssh -o Frobnicate=1", "-o Frobnicate=1"),
            ("ssh -o PubkeyAuthentication=no", "-o PubkeyAuthentication=no"),
            ("ssh -o PreferredAuthentications=password", "-o PreferredAuthentications=password"),
        ] {
            let told = parsed(command).unwrap_err();
            let (what, hint) = told.split_once("\n  hint: ").unwrap_or_else(|| panic!("{told}"));
            assert!(what.contains(name) && hint.ends_with('.'), "{command}: {told}");
        }
        for option in
            ["StrictHostKeyChecking=no", "StrictHostKeyChecking=accept-new", "UserKnownHostsFile=/dev/null"]
        {
            let told = parsed(&format!("ssh -o {option}")).unwrap_err();
            assert!(told.contains(option) && told.contains("--host-key"), "{told}");
        }
    }
}
