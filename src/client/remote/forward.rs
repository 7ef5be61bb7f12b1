//! Port forwards as `-L`, `-R` and `-D` of OpenSSH write them.

use std::fmt;
use std::path::{Path, PathBuf};

/// The forms of a value of `-L`, for an error.
const LOCAL: &str = "[BIND:]PORT:HOST:PORT";

/// The forms of a value of `-R`, for an error.
const REMOTE: &str = "[BIND:]PORT:HOST:PORT, or [BIND:]PORT for SOCKS";

/// The forms of a value of `-D`, for an error.
const DYNAMIC: &str = "[BIND:]PORT";

/// Most fields of a forward.
const FIELDS_MAX: usize = 4;

/// One port forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// The side that listens.
    pub side: Side,
    /// The address that it listens on.
    pub listen: Listen,
    /// The target of its connections, reached from the other side.
    pub target: ForwardTarget,
}

/// A side of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This machine: `-L` and `-D`.
    Here,
    /// The server: `-R`.
    There,
}

/// The address of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP port. Port 0 is any free one.
    Tcp {
        /// The address to bind.
        bind: Bind,
        /// The port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// The local address of a TCP listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bind {
    /// Both loopback addresses.
    Loopback,
    /// All addresses: an empty field, or `*`.
    Any,
    /// A name or an address.
    Host(String),
}

/// The target of a forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForwardTarget {
    /// A TCP port.
    Tcp {
        /// A name or an address, resolved by the side that connects.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
    /// The address that each connection names by SOCKS.
    Socks,
}

/// One field of a forward.
enum Field {
    Word(String),
    Path(PathBuf),
}

impl Forward {
    /// Parses the value of `-L`.
    ///
    /// # Errors
    /// The forms of such a value, if `text` has none of them.
    pub fn local(text: &str) -> Result<Self, &'static str> {
        let (listen, target) = parse(text).ok_or(LOCAL)?;
        if target == ForwardTarget::Socks {
            return Err(LOCAL);
        }
        Ok(Self { side: Side::Here, listen, target })
    }

    /// Parses the value of `-R`.
    ///
    /// # Errors
    /// The forms of such a value, if `text` has none of them.
    pub fn remote(text: &str) -> Result<Self, &'static str> {
        let (listen, target) = parse(text).ok_or(REMOTE)?;
        Ok(Self { side: Side::There, listen, target })
    }

    /// Parses the value of `-D`.
    ///
    /// # Errors
    /// The forms of such a value, if `text` has none of them.
    pub fn dynamic(text: &str) -> Result<Self, &'static str> {
        match parse(text).ok_or(DYNAMIC)? {
            (listen @ Listen::Tcp { .. }, target @ ForwardTarget::Socks) => {
                Ok(Self { side: Side::Here, listen, target })
            }
            _ => Err(DYNAMIC),
        }
    }

    /// The forward of an allocated port.
    pub(super) fn at_port(&self, allocated: u16) -> Self {
        let mut forward = self.clone();
        if let Listen::Tcp { port, .. } = &mut forward.listen {
            *port = allocated;
        }
        forward
    }
}

/// Parses the fields as OpenSSH does (`parse_forward` in its readconf.c).
fn parse(text: &str) -> Option<(Listen, ForwardTarget)> {
    use Field::{Path, Word};
    let mut fields = fields(text)?.into_iter();
    let parts = (fields.next(), fields.next(), fields.next(), fields.next());
    let tcp = |bind, listen: &str| Some(Listen::Tcp { bind, port: port(listen)? });
    let to = |host: String, text: &str| {
        let port = port(text).filter(|port| *port > 0)?;
        (!host.is_empty()).then_some(ForwardTarget::Tcp { host, port })
    };
    Some(match parts {
        (Some(Word(listen)), None, None, None) => (tcp(Bind::Loopback, &listen)?, ForwardTarget::Socks),
        (Some(Path(listen)), None, None, None) => (Listen::Unix(listen), ForwardTarget::Socks),
        (Some(Path(listen)), Some(Path(target)), None, None) => {
            (Listen::Unix(listen), ForwardTarget::Unix(target))
        }
        (Some(Word(listen)), Some(Path(target)), None, None) => {
            (tcp(Bind::Loopback, &listen)?, ForwardTarget::Unix(target))
        }
        (Some(Word(host)), Some(Word(listen)), None, None) => {
            (tcp(bind(host), &listen)?, ForwardTarget::Socks)
        }
        (Some(Path(listen)), Some(Word(host)), Some(Word(target)), None) => {
            (Listen::Unix(listen), to(host, &target)?)
        }
        (Some(Word(host)), Some(Word(listen)), Some(Path(target)), None) => {
            (tcp(bind(host), &listen)?, ForwardTarget::Unix(target))
        }
        (Some(Word(listen)), Some(Word(host)), Some(Word(target)), None) => {
            (tcp(Bind::Loopback, &listen)?, to(host, &target)?)
        }
        (Some(Word(bound)), Some(Word(listen)), Some(Word(host)), Some(Word(target))) => {
            (tcp(bind(bound), &listen)?, to(host, &target)?)
        }
        _ => return None,
    })
}

/// Splits a forward at its colons. A field in brackets may hold colons, and a backslash takes the
/// meaning of the next character away. A field with a leading slash is a path.
fn fields(text: &str) -> Option<Vec<Field>> {
    let (mut fields, mut rest) = (Vec::new(), Some(text));
    while let Some(text) = rest {
        if fields.len() == FIELDS_MAX {
            return None;
        }
        let (field, after) = match text.strip_prefix('[') {
            Some(inside) => {
                let (field, after) = inside.split_once(']')?;
                let after = if after.is_empty() { None } else { Some(after.strip_prefix(':')?) };
                (field.to_owned(), after)
            }
            None => {
                let (mut field, mut letters) = (String::new(), text.char_indices());
                let after = loop {
                    match letters.next() {
                        None => break None,
                        Some((at, ':')) => break text.get(at + 1..),
                        Some((_, '\\')) => field.push(letters.next()?.1),
                        Some((_, letter)) => field.push(letter),
                    }
                };
                (field, after)
            }
        };
        fields.push(if field.starts_with('/') { Field::Path(field.into()) } else { Field::Word(field) });
        rest = after;
    }
    Some(fields)
}

fn bind(host: String) -> Bind {
    match host.as_str() {
        "" | "*" => Bind::Any,
        "localhost" => Bind::Loopback,
        _ => Bind::Host(host),
    }
}

fn port(text: &str) -> Option<u16> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

impl Bind {
    /// The address of a request to the server, in the words of RFC 4254, section 7.1.
    pub(super) fn requested(&self) -> &str {
        match self {
            Self::Loopback => "localhost",
            Self::Any => "",
            Self::Host(host) => host,
        }
    }
}

/// An address with its port; brackets set off an IPv6 address.
pub(super) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&match self {
            Self::Tcp { bind: Bind::Loopback, port } => authority("localhost", *port),
            Self::Tcp { bind: Bind::Any, port } => authority("*", *port),
            Self::Tcp { bind: Bind::Host(host), port } => authority(host, *port),
            Self::Unix(socket) => path(socket),
        })
    }
}

impl fmt::Display for ForwardTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&match self {
            Self::Tcp { host, port } => authority(host, *port),
            Self::Unix(socket) => path(socket),
            Self::Socks => "SOCKS".to_owned(),
        })
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Here => "here",
            Self::There => "there",
        })
    }
}

impl Side {
    /// The other side.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Here => Self::There,
            Self::There => Self::Here,
        }
    }
}

/// `localhost:8080 here to web:80 there`, or `SOCKS on localhost:1080 here`.
impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { side, listen, target } = self;
        match target {
            ForwardTarget::Socks => write!(f, "SOCKS on {listen} {side}"),
            target => write!(f, "{listen} {side} to {target} {}", side.other()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_read_as_openssh_reads_them() {
        for (text, told) in [
            ("8080:web:80", "localhost:8080 here to web:80 there"),
            ("localhost:8080:web:80", "localhost:8080 here to web:80 there"),
            ("127.0.0.2:8080:10.0.0.1:80", "127.0.0.2:8080 here to 10.0.0.1:80 there"),
            (":8080:web:80", "*:8080 here to web:80 there"),
            ("*:8080:web:80", "*:8080 here to web:80 there"),
            ("[::1]:8080:[fe80::1%eth0]:80", "[::1]:8080 here to [fe80::1%eth0]:80 there"),
            ("[*]:8080:[web]:80", "*:8080 here to web:80 there"),
            ("0:web:80", "localhost:0 here to web:80 there"),
            ("/run/a:web:80", "/run/a here to web:80 there"),
            ("[/run/a:b]:/run/c", "/run/a:b here to /run/c there"),
            ("8080:/run/c", "localhost:8080 here to /run/c there"),
            ("*:8080:/run/c\\:d", "*:8080 here to /run/c:d there"),
        ] {
            assert_eq!(
                Forward::local(text).map(|forward| forward.to_string()),
                Ok(told.to_owned()),
                "{text}"
            );
        }
        let remote = |text| Forward::remote(text).map(|forward| forward.to_string());
        assert_eq!(remote("3000:localhost:3001"), Ok("localhost:3000 there to localhost:3001 here".into()));
        assert_eq!(remote("0:localhost:1"), Ok("localhost:0 there to localhost:1 here".into()));
        assert_eq!(remote("1080"), Ok("SOCKS on localhost:1080 there".into()));
        assert_eq!(remote("*:1080"), Ok("SOCKS on *:1080 there".into()));
        let dynamic = |text| Forward::dynamic(text).map(|forward| forward.to_string());
        assert_eq!(dynamic("1080"), Ok("SOCKS on localhost:1080 here".into()));
        assert_eq!(dynamic("[::1]:1080"), Ok("SOCKS on [::1]:1080 here".into()));
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "8080",
            "a:80",
            "8080:web",
            "8080:web:0",
            "8080:web:x",
            "x:web:80",
            "8080:web:65536",
            "-1:web:80",
            "+1:web:80",
            "8080::80",
            "1:2:3:4:5",
            "[::1:8080:web:80",
            "[::1]8080:web:80",
            "::1:8080:web:80",
            "8080:web:80:",
            "8080:web:80\\",
        ] {
            assert_eq!(Forward::local(text), Err(LOCAL), "{text}");
        }
        for text in ["", "x", "1:2:3:4:5", "8080:web:0"] {
            assert_eq!(Forward::remote(text), Err(REMOTE), "{text}");
        }
        for text in ["", "x", "a:b", "8080:web:80", "/run/a", "1080:"] {
            assert_eq!(Forward::dynamic(text), Err(DYNAMIC), "{text}");
        }
    }
}
