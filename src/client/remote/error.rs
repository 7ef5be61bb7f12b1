//! Reasons why a connection failed or was lost, and hints what to do about them.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::http::StatusCode;

use crate::remote::hostkey_error::HostKeyError;
use crate::remote::protocol::{Protocol, Wanted};
use crate::remote::proxy_error::ProxyError;
use crate::remote::tls_error::TlsError;

/// Error of a connection that failed or was lost, or of an agent that did not start.
///
/// Texts from the other side are escaped and cut before they get in here. An endpoint contains
/// scheme, host and port only, because the rest of a URL may hold a token.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The URL is not that of a WebSocket bridge.
    #[error("could not use the WebSocket URL: {reason}")]
    Url {
        /// The defect of the URL.
        reason: String,
    },
    /// A file with further TLS roots is unusable.
    #[error("could not read the CA certificates in {}", path.display())]
    CaCert {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A private key is unusable.
    #[error("could not use the private key {name}")]
    Identity {
        /// The file, or another name of the key.
        name: String,
        /// The cause.
        source: russh::keys::Error,
    },
    /// A file holds the public half of a key, whose private half is nowhere.
    #[error(
        "could not use the key {name}: it is only a public half, and ssh-agent does not hold the private one"
    )]
    OnlyPublic {
        /// The file.
        name: String,
    },
    /// Other users can read a private key file.
    #[error("the private key {} can be read by others (mode {mode:04o}), so it is not used", path.display())]
    Unprotected {
        /// The file.
        path: PathBuf,
        /// The file's mode.
        mode: u32,
    },
    /// The TCP connect failed.
    #[error("could not connect to {endpoint}")]
    Connect {
        /// The server.
        endpoint: String,
        /// The cause.
        source: io::Error,
    },
    /// A variable of the environment names no usable proxy.
    #[error("could not use the proxy in {variable}: {reason}")]
    ProxySetting {
        /// The variable.
        variable: &'static str,
        /// The defect of its value.
        reason: String,
    },
    /// The proxy gave no connection to the server.
    #[error("could not connect to {endpoint} through the proxy {proxy}")]
    Proxy {
        /// The server.
        endpoint: String,
        /// The proxy and its variable, without its login.
        proxy: String,
        /// The variable.
        variable: &'static str,
        /// The cause.
        source: Box<ProxyError>,
    },
    /// The TLS handshake failed on either side.
    #[error("could not make a TLS connection to {endpoint}")]
    Tls {
        /// The server.
        endpoint: String,
        /// The cause.
        source: TlsError,
    },
    /// The server speaks another protocol than the one that the endpoint names.
    #[error("could not {wanted} {endpoint}: {protocol}")]
    OtherProtocol {
        /// The server.
        endpoint: String,
        /// The transport that the endpoint names.
        wanted: Wanted,
        /// The server's protocol.
        protocol: Protocol,
    },
    /// The server closed the connection, or reset it, before its protocol began.
    #[error("could not {wanted} {endpoint}: {}", closed(said.as_deref()))]
    ClosedAtOnce {
        /// The server.
        endpoint: String,
        /// The transport that the endpoint names.
        wanted: Wanted,
        /// The line that the server said before.
        said: Option<String>,
    },
    /// The server answered the request for a WebSocket with another HTTP status.
    #[error("could not open a WebSocket to {endpoint}: it answered {status} {reason}")]
    NoWebSocket {
        /// The bridge.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// The name of the status.
        reason: &'static str,
    },
    /// The other side answered, but not with a WebSocket.
    #[error("could not open a WebSocket to {endpoint}")]
    WebSocket {
        /// The bridge.
        endpoint: String,
        /// The cause.
        source: Box<tungstenite::Error>,
    },
    /// The bridge answered with a redirect.
    #[error(
        "could not open a WebSocket to {endpoint}: it answered with a redirect ({status}), which is refused"
    )]
    Redirected {
        /// The bridge.
        endpoint: String,
        /// The HTTP status.
        status: u16,
    },
    /// A step of connecting timed out.
    #[error("could not {verb} {endpoint}: no answer within {} s", after.as_secs_f32())]
    TimedOut {
        /// The step.
        verb: &'static str,
        /// The server.
        endpoint: String,
        /// The timeout.
        after: Duration,
    },
    /// The SSH key exchange failed.
    #[error("could not agree on an SSH session with {endpoint}")]
    Handshake {
        /// The server.
        endpoint: String,
        /// The cause.
        source: russh::Error,
    },
    /// The server and ksync have no algorithm in common.
    #[error(
        "could not agree on {what} with {endpoint}: it has only {}, and ksync has {}",
        theirs.join(", "), ours.join(", ")
    )]
    NoCommonAlgorithm {
        /// The kind of algorithm.
        what: &'static str,
        /// The server.
        endpoint: String,
        /// The server's algorithms, escaped and cut.
        theirs: Vec<String>,
        /// Those of ksync.
        ours: Vec<String>,
    },
    /// The host key is not trusted.
    #[error("could not trust {endpoint}")]
    HostKey {
        /// The server.
        endpoint: String,
        /// The cause.
        source: Box<HostKeyError>,
    },
    /// The host's key could not be stored, so the host cannot be trusted the next time either.
    #[error("cannot write {}", path.display())]
    NotKept {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The server accepted no key.
    #[error("could not log in as {user} on {endpoint}: {reason}")]
    NotAuthorised {
        /// The server.
        endpoint: String,
        /// The login name.
        user: String,
        /// The keys that ksync tried, and the server's answer.
        reason: String,
    },
    /// The server refused to open a channel.
    #[error("could not open a channel to {endpoint}")]
    Channel {
        /// The server.
        endpoint: String,
        /// The cause.
        source: russh::Error,
    },
    /// A local listener of a forward could not be bound.
    #[error("could not listen on {address}")]
    Listen {
        /// The local address.
        address: String,
        /// The cause.
        source: io::Error,
    },
    /// The server refused to listen for a forward.
    #[error("could not forward {address} there: {endpoint} refused to listen on it")]
    ForwardRefused {
        /// The address on the server's side.
        address: String,
        /// The server.
        endpoint: String,
    },
    /// The client for servers with rare algorithms only cannot forward ports.
    #[error("could not forward ports over {endpoint}: its sshd has only sntrup761 or UMAC")]
    NoForwarding {
        /// The server.
        endpoint: String,
    },
    /// A program other than the agent answered.
    #[error(
        "could not find the agent's answer on {endpoint} among the output of its login shell: {beginning:?}…"
    )]
    Noise {
        /// The server.
        endpoint: String,
        /// The beginning of the output.
        beginning: String,
    },
    /// The shell could not install the agent in any directory and run it there.
    #[error("could not install the agent on {endpoint}: {reason}")]
    NotInstalled {
        /// The server.
        endpoint: String,
        /// The shell's reason for each directory.
        reason: String,
    },
    /// The command ended before the agent's first answer.
    #[error("could not start the agent on {endpoint}: {reason}")]
    NotStarted {
        /// The server.
        endpoint: String,
        /// The command's exit status or signal, and its output.
        reason: String,
    },
    /// The login shell, or a ForceCommand, did not run the command.
    #[error("could not start the agent on {endpoint}: its login shell {fault}")]
    NotRun {
        /// The server.
        endpoint: String,
        /// The behaviour of the shell.
        fault: ShellFault,
    },
    /// Bytes from the other side could not be written to standard output.
    #[error("cannot write to standard output")]
    Output {
        /// The cause.
        source: io::Error,
    },
    /// The connection was lost.
    #[error("lost the connection to {endpoint}")]
    Lost {
        /// The server.
        endpoint: String,
        /// The cause.
        source: DisconnectReason,
    },
}

/// Behaviour of a login shell that does not run the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShellFault {
    /// Another program runs in its place and takes the input.
    #[error("does not run commands, but something else that takes their input")]
    RunsNothing,
    /// A start file reads the input that is meant for the command.
    #[error("waits for input before it runs the command")]
    WaitsForInput,
    /// It said nothing for this long.
    #[error("did not run the command within {} s", .0.as_secs_f32())]
    Silent(Duration),
}

/// Disconnect reason.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DisconnectReason {
    /// The other side sent nothing, not even an answer to a ping.
    #[error("nothing was heard for {} s", .0.as_secs_f32())]
    Silence(Duration),
    /// The connection was closed or broke.
    #[error("{0}")]
    Broken(String),
    /// The server ended the login on purpose, and takes no further key.
    #[error("the server closed the session: {0}")]
    Dismissed(String),
}

/// Category of a [`RemoteError`]: one for each exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request makes no sense (exit 1).
    Usage,
    /// The connection stands, but the agent does not run (exit 5).
    CouldNotStart,
    /// The network failed, or a protocol on it (exit 10).
    Socket,
    /// A local output failed (exit 11).
    FileIo,
    /// An established connection fell silent (exit 30).
    Timeout,
    /// The connection did not come up in time (exit 35).
    ConnectTimeout,
    /// The server accepts none of the keys (exit 40).
    NotAuthorised,
    /// The host is not the expected one (exit 43).
    HostKey,
}

impl RemoteError {
    /// Category of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Url { .. } | Self::CaCert { .. } | Self::ProxySetting { .. } => ErrorKind::Usage,
            Self::Identity { .. }
            | Self::OnlyPublic { .. }
            | Self::Unprotected { .. }
            | Self::NotAuthorised { .. } => ErrorKind::NotAuthorised,
            Self::HostKey { .. } => ErrorKind::HostKey,
            Self::Output { .. } => ErrorKind::FileIo,
            Self::TimedOut { .. } => ErrorKind::ConnectTimeout,
            Self::Proxy { source, .. } if matches!(**source, ProxyError::TimedOut(_)) => {
                ErrorKind::ConnectTimeout
            }
            Self::Lost { source: DisconnectReason::Silence(_), .. } => ErrorKind::Timeout,
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::TimedOut => {
                ErrorKind::ConnectTimeout
            }
            Self::Connect { .. }
            | Self::Proxy { .. }
            | Self::Tls { .. }
            | Self::OtherProtocol { .. }
            | Self::ClosedAtOnce { .. }
            | Self::NoWebSocket { .. }
            | Self::WebSocket { .. }
            | Self::Redirected { .. }
            | Self::Handshake { .. }
            | Self::NoCommonAlgorithm { .. }
            | Self::Listen { .. }
            | Self::ForwardRefused { .. }
            | Self::NoForwarding { .. }
            | Self::Lost { .. } => ErrorKind::Socket,
            Self::Channel { .. }
            | Self::NotKept { .. }
            | Self::Noise { .. }
            | Self::NotInstalled { .. }
            | Self::NotRun { .. }
            | Self::NotStarted { .. } => ErrorKind::CouldNotStart,
        }
    }

    /// The error for an HTTP answer of this status.
    pub(super) fn no_websocket(endpoint: &str, status: u16) -> Self {
        let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let reason = reason.unwrap_or("(an unknown status)");
        Self::NoWebSocket { endpoint: endpoint.to_owned(), status, reason }
    }

    /// Reports if a retry a moment later may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::TimedOut { .. }
            | Self::ClosedAtOnce { .. }
            | Self::NotRun { fault: ShellFault::Silent(_), .. }
            | Self::Lost { .. } => true,
            Self::Proxy { source, .. } => source.is_retryable(),
            // While a VM wakes up, the proxy in front of its bridge answers with these statuses.
            Self::NoWebSocket { status, .. } => matches!(status, 429 | 500..),
            Self::WebSocket { source, .. } => {
                matches!(source.as_ref(), tungstenite::Error::Io(_) | tungstenite::Error::ConnectionClosed)
            }
            Self::Handshake { source, .. } => {
                matches!(source, russh::Error::IO(_) | russh::Error::Disconnect | russh::Error::HUP)
            }
            _ => false,
        }
    }

    /// Reports if an established connection was cut, during the login or later.
    #[must_use]
    pub fn was_cut(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::ClosedAtOnce { .. } => true,
            Self::Tls { source: TlsError::Io(error), .. } => is_cut(error),
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

    /// Reports if the connection was cut after the host had proved its identity.
    #[must_use]
    pub fn was_cut_late(&self) -> bool {
        matches!(self, Self::Lost { source: DisconnectReason::Broken(_), .. })
    }

    /// Advice for the user about the next step.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Url { .. } => "Write it as wss://host:port, or ws://host:port without TLS.".into(),
            Self::CaCert { .. } => "--ca-cert takes a PEM file with one or more certificates.".into(),
            Self::Identity { source: russh::keys::Error::KeyIsEncrypted, .. } => {
                "Add the key to ssh-agent with ssh-add: passphrases are not asked for.".into()
            }
            Self::Identity { source: russh::keys::Error::IO(error), .. }
                if error.kind() == io::ErrorKind::NotFound =>
            {
                "Check the path of the key.".into()
            }
            Self::Identity { .. } => {
                "Use an Ed25519, ECDSA or RSA key as ssh-keygen makes it (ssh-keygen -t ed25519).".into()
            }
            Self::OnlyPublic { .. } => {
                "Give the file without .pub, or add the key to ssh-agent with ssh-add.".into()
            }
            Self::Unprotected { path, .. } => format!("Run chmod 600 {}.", path.display()),
            Self::Connect { .. } => "Check the host, the port, and that the network leads there.".into(),
            Self::ProxySetting { .. } => {
                "Write it as http://HOST:PORT or socks5h://HOST:PORT, with USER:PASSWORD@ before HOST if need be.".into()
            }
            Self::Proxy { endpoint, variable, source, .. } => {
                let authority = authority(endpoint);
                source.hint(variable, authority.rsplit_once(':').map_or(authority, |(host, _)| host))
            }
            Self::Tls { source, .. } => source.hint(),
            Self::OtherProtocol { endpoint, wanted, protocol } => protocol.hint(*wanted, authority(endpoint)),
            Self::ClosedAtOnce { wanted: Wanted::SshBehindBridge, .. } => {
                "Check that an SSH server runs behind the bridge.".into()
            }
            Self::ClosedAtOnce { .. } => {
                "Check the host and the port, and try again in a moment: a server that is overloaded does that, too."
                    .into()
            }
            Self::NoWebSocket { status, .. } => match status {
                401 | 403 => "A proxy there wants a permission: check the token in the URL, and the network.".into(),
                404 => "Check the path in the URL: no bridge listens there.".into(),
                407 | 511 => "The network wants a login first.".into(),
                429 => "Try again later: it gets too many requests.".into(),
                500.. => {
                    "A proxy there does not reach the bridge: try again in a moment, and check that the bridge runs."
                        .into()
                }
                _ => "A web server listens there: check the host, the port, and the path in the URL.".into(),
            },
            Self::WebSocket { .. } => "Check that a bridge to sshd listens there.".into(),
            Self::Redirected { .. } => "Use the address that it redirects to, if you trust it.".into(),
            Self::TimedOut { verb: TLS_HANDSHAKE, endpoint, .. } => {
                format!("If the port speaks no TLS, write ws://{}/path; --contimeout gives it more time.", authority(endpoint))
            }
            Self::TimedOut { .. } => {
                "Try again; --contimeout gives it more time. A VM that sleeps needs a moment to wake.".into()
            }
            Self::NoCommonAlgorithm { .. } => "Let the server offer one of these algorithms, too.".into(),
            Self::Handshake { .. } => "Check that an SSH server listens behind that address.".into(),
            Self::HostKey { source, .. } => source.hint(),
            Self::NotKept { .. } => {
                "Make the directory writable for you, and for nobody else, or name another one with XDG_STATE_HOME."
                    .into()
            }
            Self::NotAuthorised { .. } => {
                "Give a key that the server knows with --identity, or add it to ssh-agent.".into()
            }
            Self::Channel { .. } => "Use fewer connections with -j: the server limits its sessions.".into(),
            Self::Listen { source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => "Choose another port, or end the program that listens there.".into(),
                io::ErrorKind::PermissionDenied => "Choose a port from 1024 on.".into(),
                _ => "Choose an address of this machine.".into(),
            },
            Self::ForwardRefused { .. } => {
                "Choose another port: a program listens there, or the server forbids it (AllowTcpForwarding and PermitListen in its sshd_config)."
                    .into()
            }
            Self::NoForwarding { .. } => {
                "Allow curve25519-sha256 or mlkem768x25519-sha256, and an hmac-sha2 or an AES-GCM cipher, in its sshd_config; or forward with ssh.".into()
            }
            Self::Noise { .. } => {
                "Keep the login shell's start files quiet where there is no terminal (test for it with [ -t 1 ])."
                    .into()
            }
            Self::NotInstalled { .. } => {
                "The other side needs x86-64 Linux, gzip, sha256sum, and a private directory where programs may run (XDG_CACHE_HOME names one)."
                    .into()
            }
            Self::NotStarted { reason, .. } if reason.contains(": sudo: ") => {
                "Let sudo run commands of this user without a password (NOPASSWD in its sudoers), or log in as root."
                    .into()
            }
            Self::NotStarted { .. } | Self::NotRun { .. } => {
                "The account must be able to run commands over SSH: look for an exec or a question in the start files of its shell (such as ~/.bashrc), and for a ForceCommand of the server.".into()
            }
            Self::Output { .. } => "Make room, or lead the output elsewhere.".into(),
            Self::Lost { .. } => "Run the same command again: what has arrived is not sent twice.".into(),
        }
    }
}

fn closed(said: Option<&str>) -> String {
    match said {
        Some(line) => format!("it said \"{line}\" and closed the connection"),
        None => "it closed the connection without an answer".to_owned(),
    }
}

/// The step of a TLS handshake, in [`RemoteError::TimedOut`].
pub(super) const TLS_HANDSHAKE: &str = "make a TLS connection to";

/// Host and port of an endpoint.
fn authority(endpoint: &str) -> &str {
    endpoint.split_once("://").map_or(endpoint, |(_, authority)| authority)
}

pub(super) fn is_cut(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// The disconnect reason, shared by all users of a connection. Only the code that sees the
/// connection end knows the reason; SSH's layers report a mere "disconnected". The first one to
/// learn it stores it here for the others. Also counts the bytes received so far.
#[derive(Debug, Clone, Default)]
pub(super) struct ConnectionStatus {
    reason: Arc<OnceLock<DisconnectReason>>,
    heard_bytes: Arc<AtomicU64>,
}

impl ConnectionStatus {
    /// Stores the reason, unless one is already stored.
    pub(super) fn settle(&self, reason: DisconnectReason) {
        // The first caller saw the cause, all later ones its consequences.
        let _ = self.reason.set(reason);
    }

    /// The stored reason, if there is one.
    pub(super) fn known(&self) -> Option<DisconnectReason> {
        self.reason.get().cloned()
    }

    /// Error for a channel that could not be opened or used. It is a channel error only if the
    /// server refused the channel. Every other failure means that the session is gone.
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

    /// Counts `bytes` more received over the connection, for whichever channel.
    pub(super) fn heard(&self, bytes: usize) {
        self.heard_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes received so far.
    pub(super) fn heard_bytes(&self) -> u64 {
        self.heard_bytes.load(Ordering::Relaxed)
    }

    /// The reason as a [`RemoteError`].
    pub(super) fn error(&self, endpoint: &str) -> RemoteError {
        let source =
            self.known().unwrap_or_else(|| DisconnectReason::Broken("the connection was closed".into()));
        RemoteError::Lost { endpoint: endpoint.into(), source }
    }
}
