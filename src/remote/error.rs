//! `RemoteError`: why the way there failed, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio_tungstenite::tungstenite;

use crate::remote::hostkey::HostKeyError;

/// Why a connection could not be made, or an agent not be started, or either was lost.
///
/// Texts from the other side are escaped and cut before they get in here. An endpoint is named by scheme,
/// host and port only: the rest of a URL may hold a token.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The URL is none that leads to a bridge.
    #[error("could not use the WebSocket URL: {reason}")]
    Url {
        /// What is wrong with it.
        reason: String,
    },
    /// A file with further TLS roots could not be used.
    #[error("could not read the CA certificates in {}", path.display())]
    CaCert {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A private key could not be used.
    #[error("could not use the private key {name}")]
    Identity {
        /// The file, or what else it is known by.
        name: String,
        /// Why.
        source: russh::keys::Error,
    },
    /// A private key file can be read by others.
    #[error("the private key {} can be read by others (mode {mode:04o}), so it is not used", path.display())]
    Unprotected {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// No TCP connection.
    #[error("could not connect to {endpoint}")]
    Connect {
        /// Where to.
        endpoint: String,
        /// Why.
        source: io::Error,
    },
    /// TLS did not accept the other side, or the other way round.
    #[error("could not make a TLS connection to {endpoint}")]
    Tls {
        /// Where to.
        endpoint: String,
        /// Why.
        source: io::Error,
    },
    /// The other side answered, but with no WebSocket.
    #[error("could not open a WebSocket to {endpoint}")]
    WebSocket {
        /// Where to.
        endpoint: String,
        /// Why.
        source: Box<tungstenite::Error>,
    },
    /// The other side wanted to send us elsewhere.
    #[error(
        "could not open a WebSocket to {endpoint}: it answered with a redirect ({status}), which is refused"
    )]
    Redirected {
        /// Where to.
        endpoint: String,
        /// The HTTP status.
        status: u16,
    },
    /// A step of connecting took too long.
    #[error("could not {verb} {endpoint}: no answer within {} s", after.as_secs_f32())]
    TimedOut {
        /// What was tried.
        verb: &'static str,
        /// With whom.
        endpoint: String,
        /// For how long.
        after: Duration,
    },
    /// SSH's key exchange failed.
    #[error("could not agree on an SSH session with {endpoint}")]
    Handshake {
        /// With whom.
        endpoint: String,
        /// Why.
        source: russh::Error,
    },
    /// The host key is not the one it has to be.
    #[error("could not trust {endpoint}")]
    HostKey {
        /// Whom.
        endpoint: String,
        /// Why.
        source: Box<HostKeyError>,
    },
    /// The server accepted no key.
    #[error("could not log in as {user} on {endpoint}: {reason}")]
    NotAuthorised {
        /// Where.
        endpoint: String,
        /// As whom.
        user: String,
        /// What was tried and what the server said.
        reason: String,
    },
    /// The server opened no channel.
    #[error("could not open a channel to {endpoint}")]
    Channel {
        /// Where.
        endpoint: String,
        /// Why.
        source: russh::Error,
    },
    /// Something other than the agent answered.
    #[error(
        "could not find the agent's answer on {endpoint} among the output of its login shell: {beginning:?}…"
    )]
    Noise {
        /// Where.
        endpoint: String,
        /// How the output began.
        beginning: String,
    },
    /// The agent could not be put into any directory and run there.
    #[error("could not install the agent on {endpoint}: {reason}")]
    NotInstalled {
        /// Where.
        endpoint: String,
        /// What the far shell said of each directory.
        reason: String,
    },
    /// The command ended before the agent said anything.
    #[error("could not start the agent on {endpoint}: {reason}")]
    NotStarted {
        /// Where.
        endpoint: String,
        /// How it ended and what it said.
        reason: String,
    },
    /// The connection ended before its time.
    #[error("lost the connection to {endpoint}")]
    Lost {
        /// To whom.
        endpoint: String,
        /// Why.
        source: Loss,
    },
}

/// Why a connection ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Loss {
    /// Nothing came, not even an answer to a ping.
    #[error("nothing was heard for {} s", .0.as_secs_f32())]
    Silence(Duration),
    /// It was closed, or broke.
    #[error("{0}")]
    Broken(String),
    /// The server ended the login on purpose: it takes no further key.
    #[error("the server closed the session: {0}")]
    Dismissed(String),
}

/// What kind of trouble a [`RemoteError`] is: one for each way in which a program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// What was asked for makes no sense (exit 1).
    Usage,
    /// The connection stands, the agent does not (exit 5).
    CouldNotStart,
    /// The network, or what speaks on it (exit 10).
    Socket,
    /// A connection that stood fell silent (exit 30).
    Timeout,
    /// No connection in time (exit 35).
    ConnectTimeout,
    /// No key opens the door (exit 40).
    NotAuthorised,
    /// The host is not the one it should be (exit 43).
    HostKey,
}

impl RemoteError {
    /// What kind of trouble this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Url { .. } | Self::CaCert { .. } => ErrorKind::Usage,
            Self::Identity { .. } | Self::Unprotected { .. } | Self::NotAuthorised { .. } => {
                ErrorKind::NotAuthorised
            }
            Self::HostKey { .. } => ErrorKind::HostKey,
            Self::TimedOut { .. } => ErrorKind::ConnectTimeout,
            Self::Lost { source: Loss::Silence(_), .. } => ErrorKind::Timeout,
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::TimedOut => {
                ErrorKind::ConnectTimeout
            }
            Self::Connect { .. }
            | Self::Tls { .. }
            | Self::WebSocket { .. }
            | Self::Redirected { .. }
            | Self::Handshake { .. }
            | Self::Lost { .. } => ErrorKind::Socket,
            Self::Channel { .. }
            | Self::Noise { .. }
            | Self::NotInstalled { .. }
            | Self::NotStarted { .. } => ErrorKind::CouldNotStart,
        }
    }

    /// Whether the same thing may go well a moment later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::TimedOut { .. } | Self::Lost { .. } => true,
            // What stands between us and the bridge while a VM wakes up answers with these.
            Self::WebSocket { source, .. } => match source.as_ref() {
                tungstenite::Error::Http(response) => {
                    response.status().is_server_error() || response.status().as_u16() == 429
                }
                tungstenite::Error::Io(_) | tungstenite::Error::ConnectionClosed => true,
                _ => false,
            },
            Self::Handshake { source, .. } => {
                matches!(source, russh::Error::IO(_) | russh::Error::Disconnect | russh::Error::HUP)
            }
            _ => false,
        }
    }

    /// Whether a connection that stood was cut, while logging in or later.
    #[must_use]
    pub fn was_cut(&self) -> bool {
        match self {
            Self::Lost { .. } => true,
            Self::Tls { source, .. } => is_cut(source),
            Self::WebSocket { source, .. } => match source.as_ref() {
                tungstenite::Error::Io(error) => is_cut(error),
                tungstenite::Error::Protocol(error) => {
                    matches!(error, tungstenite::error::ProtocolError::HandshakeIncomplete)
                }
                tungstenite::Error::ConnectionClosed => true,
                _ => false,
            },
            Self::Handshake { source, .. } => match source {
                russh::Error::IO(error) => is_cut(error),
                russh::Error::Disconnect | russh::Error::HUP => true,
                _ => false,
            },
            _ => false,
        }
    }

    /// What to do next, for a person.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Url { .. } => "Write it as wss://host:port, or ws://host:port without TLS.".into(),
            Self::CaCert { .. } => "--ca-cert takes a PEM file with one or more certificates.".into(),
            Self::Identity { source: russh::keys::Error::KeyIsEncrypted, .. } => {
                "Add the key to ssh-agent with ssh-add: passphrases are not asked for.".into()
            }
            Self::Identity { .. } => {
                "Use an Ed25519 or ECDSA key in OpenSSH's format (ssh-keygen -t ed25519 makes one).".into()
            }
            Self::Unprotected { path, .. } => format!("Run chmod 600 {}.", path.display()),
            Self::Connect { .. } => "Check the host, the port, and that the network leads there.".into(),
            Self::Tls { .. } => {
                "Check the host name and the clock. For a private CA give its certificate with --ca-cert.".into()
            }
            Self::WebSocket { .. } => "Check that a bridge to sshd listens there.".into(),
            Self::Redirected { .. } => "Use the address that it redirects to, if you trust it.".into(),
            Self::TimedOut { .. } => {
                "Try again; --contimeout gives it more time. A VM that sleeps needs a moment to wake.".into()
            }
            Self::Handshake { source: russh::Error::NoCommonAlgo { .. }, .. } => {
                "The server must offer AES-GCM or ChaCha20, no compression, and an Ed25519 or ECDSA host key.".into()
            }
            Self::Handshake { .. } => "Check that an SSH server listens behind that address.".into(),
            Self::HostKey { source, .. } => source.hint(),
            Self::NotAuthorised { .. } => {
                "Give a key that the server knows with --identity, or add it to ssh-agent.".into()
            }
            Self::Channel { .. } => "Use fewer connections with -j: the server limits its sessions.".into(),
            Self::Noise { .. } => {
                "Keep the login shell's start files quiet where there is no terminal (test for it with [ -t 1 ])."
                    .into()
            }
            Self::NotInstalled { .. } => {
                "The other side needs x86-64 Linux, gzip, sha256sum, and a private directory where programs may run (XDG_CACHE_HOME names one)."
                    .into()
            }
            Self::NotStarted { .. } => "Check that the account may run commands over SSH.".into(),
            Self::Lost { .. } => "Run the same command again: what has arrived is not sent twice.".into(),
        }
    }
}

fn is_cut(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// Where whoever first learns why a connection ended leaves the reason for all others. Only the one
/// who sees it happen knows: through SSH's layers it is a mere "disconnected". Counts what came
/// until then, too.
#[derive(Debug, Clone, Default)]
pub(super) struct Fate {
    loss: Arc<OnceLock<Loss>>,
    heard_bytes: Arc<AtomicU64>,
}

impl Fate {
    /// Leaves the reason, unless there is one.
    pub(super) fn settle(&self, loss: Loss) {
        // Whoever came first saw the cause, all others its consequences.
        let _ = self.loss.set(loss);
    }

    /// The reason, if any is known.
    pub(super) fn known(&self) -> Option<Loss> {
        self.loss.get().cloned()
    }

    /// The error of a channel that could not be opened or used. Only a server that says no to the
    /// channel is at fault; all else means that the session is gone.
    pub(super) fn channel_error(&self, endpoint: &str, source: russh::Error, is_closed: bool) -> RemoteError {
        let is_refused = matches!(source, russh::Error::ChannelOpenFailure(_));
        let is_gone = matches!(
            source,
            russh::Error::Disconnect | russh::Error::HUP | russh::Error::SendError | russh::Error::IO(_)
        );
        if !is_refused && (is_gone || is_closed || self.known().is_some()) {
            return self.error(endpoint);
        }
        RemoteError::Channel { endpoint: endpoint.into(), source }
    }

    /// So many bytes more came over the connection, whatever they belong to.
    pub(super) fn heard(&self, bytes: usize) {
        self.heard_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// What came so far.
    pub(super) fn heard_bytes(&self) -> u64 {
        self.heard_bytes.load(Ordering::Relaxed)
    }

    /// The reason as an error.
    pub(super) fn error(&self, endpoint: &str) -> RemoteError {
        let source = self.known().unwrap_or_else(|| Loss::Broken("the connection was closed".into()));
        RemoteError::Lost { endpoint: endpoint.into(), source }
    }
}
