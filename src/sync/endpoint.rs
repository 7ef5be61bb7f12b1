//! Endpoints: what `SOURCE` and `DEST` can say. Only the grammar; nothing is looked up.
//!
//! | text | meaning |
//! |---|---|
//! | `./x`, `/x`, `x`, `a/b:c`, `C:\x` | local: no colon, a slash before the first colon, or a drive letter |
//! | `:/path` | the VM of `--setup` |
//! | `sandbox:/path` | the embedded stand-in VM |
//! | `session:/path`, `NAME:/path` | a Kernel session |
//! | `user@host:/path`, `[::1]:/path`, `ssh://user@host:port/path` | an SSH host |
//! | `ws://user@host:port/path`, `wss://…` | a WebSocket bridge to an SSH host |
//!
//! A remote path that is empty, `~` or relative is below the remote home. Paths are bytes and are taken as
//! they stand: nothing is percent-decoded, so that a shell's completion of a name works in every form.

mod parse;
#[cfg(test)]
mod table;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::tree::path::escape;

/// One side of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// On this machine.
    Local(PathBuf),
    /// In the embedded stand-in VM.
    Sandbox {
        /// The path there.
        path: Vec<u8>,
    },
    /// In a Kernel session.
    Session {
        /// Its id or name; `session` is the current one.
        name: String,
        /// The path there.
        path: Vec<u8>,
    },
    /// On an SSH host, straight over TCP.
    Ssh {
        /// Who logs in.
        user: Option<String>,
        /// Name or address, an IPv6 address without brackets.
        host: String,
        /// The port, if not the usual one.
        port: Option<u16>,
        /// The path there.
        path: Vec<u8>,
    },
    /// Behind a bridge from WebSocket to SSH.
    WebSocket {
        /// Scheme, host and port of the bridge: `wss://host:2222`.
        url: String,
        /// Who logs in.
        user: Option<String>,
        /// The path there.
        path: Vec<u8>,
    },
    /// In the VM that `--setup` describes.
    Setup {
        /// The path there.
        path: Vec<u8>,
    },
}

/// A text that is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no place to sync with: {fault}", text = escape(.text))]
pub struct EndpointError {
    /// What was given.
    pub text: Vec<u8>,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// There is nothing.
    #[error("it is empty")]
    Empty,
    /// A NUL byte in a path.
    #[error("it holds a NUL byte")]
    Nul,
    /// No host where one is due.
    #[error("it names no host")]
    NoHost,
    /// A host that can be none.
    #[error("its host is no host name or address")]
    Host,
    /// A user that can be none.
    #[error("its user is no user name")]
    User,
    /// A port that is none.
    #[error("its port is not a number from 1 to 65535")]
    Port,
    /// A scheme that is not spoken.
    #[error("its scheme is not ssh, ws or wss")]
    Scheme,
    /// `host::module` or `rsync://`.
    #[error("it names an rsync daemon, whose protocol ksync does not speak")]
    Daemon,
    /// `~name`.
    #[error("the home of another user cannot be named")]
    OtherHome,
}

impl Fault {
    /// What to do about it.
    #[must_use]
    pub fn hint(self) -> Option<&'static str> {
        match self {
            Self::Empty => Some("write . for the current directory"),
            Self::NoHost => Some("write user@host:/path, wss://host:port/path, or ./NAME for a local name"),
            Self::Scheme => Some("write ssh://user@host:port/path or wss://host:port/path"),
            Self::Daemon => Some("reach the machine over SSH: user@host:/path"),
            Self::OtherHome => Some("write the absolute path"),
            Self::Host => Some(
                "an IPv6 address goes in brackets, user@[::1]:/path; a local name with a colon is ./NAME",
            ),
            Self::Nul | Self::User | Self::Port => None,
        }
    }
}

impl Endpoint {
    /// Reads an endpoint as it was typed.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn parse(text: &OsStr) -> Result<Self, EndpointError> {
        parse::parse(text).map_err(|fault| EndpointError { text: text.as_bytes().to_vec(), fault })
    }

    /// Where such a text names a machine and no path there: how the home itself and a directory in
    /// it are written instead. A URL that ends in the slash after its host says no more than one
    /// without.
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

    /// Whether it is anywhere but on this machine.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        !matches!(self, Self::Local(_))
    }

    /// The bytes of its path.
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

    /// The same place with another path: for what a path resolved to.
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

    /// `name` in this directory.
    #[must_use]
    pub fn join(self, name: &[u8]) -> Self {
        let mut path = self.path().to_vec();
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        self.with_path(&path)
    }

    /// The last component of its path; `None` where that says nothing: `/`, `.`, `a/..`, the remote home.
    #[must_use]
    pub fn name(&self) -> Option<&[u8]> {
        let mut components = self.path().split(|&byte| byte == b'/').rev();
        let last = components.find(|component| !component.is_empty() && *component != b".")?;
        (last != b"..").then_some(last)
    }
}

/// For eyes: with every byte that could steer a terminal escaped.
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

/// A path in a URL: one below the remote home is marked by `/~/`.
fn url_path(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/~/{path}") }
}
