//! Endpoints: the grammar of `SOURCE` and `DEST`. Parsing looks nothing up.
//!
//! | text | meaning |
//! |---|---|
//! | `./x`, `/x`, `x`, `a/b:c`, `C:\x` | local: no colon, a slash before it, or a drive letter |
//! | `:/path` | the VM of `--setup` |
//! | `sandbox:/path` | the embedded VM emulator |
//! | `session:/path`, `NAME:/path` | a Kernel session: see `sync::resolve` and `sync::parse` |
//! | `user@host:/path`, `[::1]:/path`, `ssh://user@host:port/path` | an SSH host |
//! | `ws://user@host:port/path`, `wss://…` | a WebSocket bridge to an SSH host |
//!
//! A remote path that is empty, `~` or relative is below the remote home. Paths are bytes and stay
//! as typed: nothing is percent-decoded, so a shell's completion of a name works in every form.

mod parse;
#[cfg(test)]
mod table;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::tree::path::escape;

/// One side of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Endpoint {
    /// A path on this machine.
    Local(PathBuf),
    /// The embedded VM emulator.
    Sandbox {
        /// The path in the VM.
        path: Vec<u8>,
    },
    /// A Kernel session.
    Session {
        /// The session's id or name; `session` is the current one.
        name: String,
        /// The path in the session's VM.
        path: Vec<u8>,
    },
    /// An SSH host, reached directly over TCP.
    Ssh {
        /// The login user.
        user: Option<String>,
        /// Name or address, an IPv6 address without brackets.
        host: String,
        /// The port, if not 22.
        port: Option<u16>,
        /// The path on the host.
        path: Vec<u8>,
    },
    /// An SSH host behind a WebSocket bridge.
    WebSocket {
        /// Scheme, host and port of the bridge: `wss://host:2222`.
        url: String,
        /// The login user.
        user: Option<String>,
        /// The path on the host.
        path: Vec<u8>,
    },
    /// The VM that `--setup` describes.
    Setup {
        /// The path in the VM.
        path: Vec<u8>,
    },
}

/// A text that is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not an endpoint: {kind}", text = escape(.text))]
pub struct EndpointError {
    /// The given text.
    pub text: Vec<u8>,
    /// The reason.
    pub kind: EndpointErrorKind,
}

/// Reasons why a text is no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointErrorKind {
    /// The text is empty.
    #[error("it is empty")]
    Empty,
    /// A NUL byte in a path.
    #[error("it holds a NUL byte")]
    Nul,
    /// The host is missing.
    #[error("it names no host")]
    NoHost,
    /// An impossible host.
    #[error("its host is no host name or address")]
    Host,
    /// An impossible user.
    #[error("its user is no user name")]
    User,
    /// An impossible port.
    #[error("its port is not a number from 1 to 65535")]
    Port,
    /// An unknown scheme.
    #[error("its scheme is not ssh, ws or wss")]
    Scheme,
    /// `host::module` or `rsync://`.
    #[error("it names an rsync daemon, whose protocol ksync does not speak")]
    Daemon,
    /// `~name`.
    #[error("the home of another user cannot be named")]
    OtherHome,
}

impl EndpointErrorKind {
    /// Advice for the user.
    #[must_use]
    pub fn hint(self) -> Option<&'static str> {
        match self {
            Self::Empty => Some("Write . for the current directory."),
            Self::NoHost => Some("Write user@host:/path, wss://host:port/path, or ./NAME for a local name."),
            Self::Scheme => Some("Write ssh://user@host:port/path or wss://host:port/path."),
            Self::Daemon => Some("Reach the machine over SSH: user@host:/path."),
            Self::OtherHome => Some("Write the absolute path."),
            Self::Host => Some(
                "An IPv6 address goes in brackets, user@[::1]:/path; a local name with a colon is ./NAME.",
            ),
            Self::Nul | Self::User | Self::Port => None,
        }
    }
}

impl Endpoint {
    /// Parses an endpoint as the user typed it.
    ///
    /// # Errors
    /// The reason why the text is no endpoint.
    pub fn parse(text: &OsStr) -> Result<Self, EndpointError> {
        parse::parse(text).map_err(|kind| EndpointError { text: text.as_bytes().to_vec(), kind })
    }

    /// Parses `NAME:path` with the name of a session that is known to exist. Such a name may hold
    /// slashes, colons and brackets.
    ///
    /// # Errors
    /// The reason why the path is none.
    pub(super) fn in_session(text: &OsStr, name: &str) -> Option<Result<Self, EndpointError>> {
        let path = text.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b":")?;
        let parsed = parse::in_session(name, path);
        Some(parsed.map_err(|kind| EndpointError { text: text.as_bytes().to_vec(), kind }))
    }

    /// For a text that names a machine but no path: how the user can write the home itself, and a
    /// directory `name` in it. A URL that ends in the slash after its host counts as one without a
    /// path.
    #[must_use]
    pub fn without_path(text: &OsStr, name: &str) -> Option<(String, String)> {
        let start = parse::without_path(text)?;
        let start = escape(start);
        let is_url = start.contains("://");
        Some(if is_url {
            (format!("{start}/~"), format!("{start}/~/{name}"))
        } else {
            (format!("{start}."), format!("{start}{name}"))
        })
    }

    /// True unless the endpoint is on this machine.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        !matches!(self, Self::Local(_))
    }

    /// The bytes of the endpoint's path.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        match self {
            Self::Local(path) => path.as_os_str().as_bytes(),
            Self::Sandbox { path }
            | Self::Session { path, .. }
            | Self::Ssh { path, .. }
            | Self::WebSocket { path, .. }
            | Self::Setup { path } => path,
        }
    }

    /// The same endpoint with another path, for a path that was resolved.
    #[must_use]
    pub fn with_path(mut self, new: &[u8]) -> Self {
        match &mut self {
            Self::Local(path) => *path = PathBuf::from(OsString::from_vec(new.to_vec())),
            Self::Sandbox { path }
            | Self::Session { path, .. }
            | Self::Ssh { path, .. }
            | Self::WebSocket { path, .. }
            | Self::Setup { path } => *path = new.to_vec(),
        }
        self
    }

    /// The endpoint of `name` in this directory.
    #[must_use]
    pub fn join(self, name: &[u8]) -> Self {
        let mut path = self.path().to_vec();
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        self.with_path(&path)
    }

    /// The last component of the path; `None` if it is no name: `/`, `.`, `a/..`, the remote home.
    #[must_use]
    pub fn name(&self) -> Option<&[u8]> {
        name_of(self.path())
    }
}

/// The last component of a path, if it is a name.
pub(super) fn name_of(path: &[u8]) -> Option<&[u8]> {
    let mut components = path.split(|&byte| byte == b'/').rev();
    let last = components.find(|component| !component.is_empty() && *component != b".")?;
    (last != b"..").then_some(last)
}

/// For messages: escapes every byte that could steer a terminal.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = escape(self.path());
        match self {
            Self::Local(_) => f.write_str(&path),
            Self::Sandbox { .. } => write!(f, "sandbox:{path}"),
            Self::Session { name, .. } => write!(f, "{name}:{path}"),
            Self::Setup { .. } => write!(f, ":{path}"),
            Self::Ssh { user, host, port, .. } => {
                let user = user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                match port {
                    Some(port) => write!(f, "ssh://{user}{host}:{port}{}", url_path(&path)),
                    None => write!(f, "{user}{host}:{path}"),
                }
            }
            Self::WebSocket { url, user, .. } => {
                let (scheme, authority) = url.split_once("://").unwrap_or(("ws", url));
                let user = user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
                write!(f, "{scheme}://{user}{authority}{}", url_path(&path))
            }
        }
    }
}

/// A path in a URL: `/~/` marks a path below the remote home.
fn url_path(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/~/{path}") }
}
