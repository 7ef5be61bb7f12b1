//! The connection to a VM: WebSocket, SSH, host keys, and installing the agent. This layer knows
//! neither the engine nor the disk.
//!
//! ```text
//! tcp ─┬───────────────────────────┬─ ssh ─ auth ─ exec channel ─ bootstrap ─ agent
//!      └─ (tls) ─ websocket ───────┘   └─ hostkey (known_hosts)     └─ agent_image
//! ```
//!
//! [`connect`] opens an SSH session to a [`Target`]. [`Connection::agent`] starts an [`Agent`] on a
//! channel of that session, any number of times. [`Connection::lane`] starts an agent that is
//! a further lane of another one. Everything up to the agent is asynchronous. The agent's reader
//! and writer block, because the engine's driver needs blocking ones. Four rules hold throughout:
//!
//! - ksync trusts no host without proof, and learns no new key where it expects a known one;
//! - every wait for the other side has a timeout;
//! - ksync bounds whatever it keeps of the other side's output, and escapes it before showing it;
//! - no name or path ever becomes part of a command.

mod agent;
mod agent_image;
mod auth;
mod bootstrap;
mod bridge;
mod command;
mod error;
mod hostkey;
mod known_hosts;
mod pins;
mod pump;
mod secrets;
mod send_window;
mod shell;
mod ssh;
pub mod ssh_config;
mod tcp;
mod tls;
mod websocket;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use russh::Disconnect;
use russh::client::Handle;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use agent::{Agent, AgentEnd, AgentReader, AgentWriter, End, Heard, Installed};
pub use agent_image::{AgentImage, BLOCK_BYTES};
pub use bridge::{hold_open, proxy};
pub use command::Lines;
pub use error::{DisconnectReason, ErrorKind, RemoteError};
pub use hostkey::{HostKeyError, HostKeys};
pub use pump::Waiting;
pub use shell::{Size, Terminal};
pub(crate) use tls::client_config;

use crate::log::debug;
use crate::tree::path::escape;
use crate::wire::lanes::Token;
use bootstrap::Purpose;
use error::ConnectionStatus;
use secrets::Secrets;
use tcp::ByteStream;

/// Unread bytes that all agents of a connection may have together: one full window. Beyond this
/// limit the session stops, its sends included, until somebody reads.
const UNREAD_BYTES_MAX: usize = ssh::WINDOW_BYTES_MAX as usize;

/// Round trips of a TCP connect.
const TCP_ROUND_TRIPS: u32 = 1;

/// Round trips that a WebSocket adds: one for its own handshake, and one for TLS 1.3.
const WEBSOCKET_ROUND_TRIPS: u32 = 1;
const TLS_ROUND_TRIPS: u32 = 1;

/// Round trips of the SSH handshake: one for the algorithm lists, one for the key exchange.
const HANDSHAKE_ROUND_TRIPS: u32 = 2;

/// Fewest round trips of a login: service request, key offer, signature.
const LOGIN_ROUND_TRIPS: u32 = 3;

/// Round trips of opening a channel.
const CHANNEL_ROUND_TRIPS: u32 = 1;

/// Timeout for closing the session cleanly.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// The server to connect to, and the connect options.
///
/// `Target` has no `Debug`, because it may hold a private key, and a token in the URL.
#[derive(Clone)]
pub struct Target {
    /// The transport that carries the SSH session.
    pub transport: Transport,
    /// Login name on the server.
    pub user: String,
    /// Proof that the host must give of its identity.
    pub host_keys: HostKeys,
    /// Private key files. If this list is empty and `identity_text` is `None`, ksync tries
    /// ssh-agent, then `~/.ssh/id_ed25519` and `~/.ssh/id_ecdsa`.
    pub identities: Vec<PathBuf>,
    /// A private key in memory. ksync offers it first.
    pub identity_text: Option<String>,
    /// Permission to ask ssh-agent for keys.
    pub use_ssh_agent: bool,
    /// Timeout of each step of connecting.
    pub connect_timeout: Duration,
    /// Silence after which ksync gives the connection up.
    pub silence_timeout: Duration,
}

/// The transport between ksync and the SSH server.
#[derive(Clone)]
pub enum Transport {
    /// A direct TCP connection.
    Tcp {
        /// The server's name or address.
        host: String,
        /// The server's port.
        port: u16,
    },
    /// A bridge that carries the bytes in binary WebSocket messages.
    WebSocket {
        /// `wss://…`, or `ws://…` without TLS.
        url: String,
        /// A PEM file with roots that ksync trusts in addition to the platform's.
        ca_cert: Option<PathBuf>,
    },
}

/// An SSH session.
pub struct Connection {
    session: Handle<ssh::Client>,
    /// The task that owns the WebSocket; `None` over plain TCP.
    socket: Option<JoinHandle<()>>,
    endpoint: String,
    timeout: Duration,
    budget: Arc<Semaphore>,
    connection_status: ConnectionStatus,
    /// The shortest round trip so far, in microseconds.
    round_trip: AtomicU64,
    /// Round trips from the TCP connect until an agent is started.
    round_trips: u32,
    user: String,
    shown: ssh::Shown,
    secrets: Option<Secrets>,
}

/// Connects and logs in.
///
/// # Errors
/// The network failed, the host key is not trusted, or the server refused the login.
pub async fn connect(target: &Target) -> Result<Connection, RemoteError> {
    let (connection_status, shown) = (ConnectionStatus::default(), ssh::Shown::default());
    let timeout = target.connect_timeout;
    let mut round_trips = TCP_ROUND_TRIPS + HANDSHAKE_ROUND_TRIPS + LOGIN_ROUND_TRIPS + CHANNEL_ROUND_TRIPS;
    let (mut session, socket, endpoint) = match &target.transport {
        Transport::Tcp { host, port } => {
            let endpoint = format!("{}:{port}", escape(host.as_bytes()));
            let begin = Instant::now();
            let stream = dial(host, *port, &endpoint, timeout).await?;
            let round_trip = begin.elapsed() / TCP_ROUND_TRIPS;
            (
                handshake(target, Box::new(stream), round_trip, &endpoint, &connection_status, &shown)
                    .await?,
                None,
                endpoint,
            )
        }
        Transport::WebSocket { url, ca_cert } => {
            let address = websocket::Address::parse(url)?;
            let endpoint = address.endpoint();
            let on_top = WEBSOCKET_ROUND_TRIPS + if address.encrypted { TLS_ROUND_TRIPS } else { 0 };
            round_trips += on_top;
            let (silence, begin) = (target.silence_timeout, Instant::now());
            let (stream, socket) =
                bridge::open(&address, ca_cert.as_deref(), timeout, silence, &connection_status).await?;
            let round_trip = begin.elapsed() / (TCP_ROUND_TRIPS + on_top);
            let session =
                handshake(target, Box::new(stream), round_trip, &endpoint, &connection_status, &shown)
                    .await?;
            (session, Some(socket), endpoint)
        }
    };
    let credentials = auth::Credentials {
        user: &target.user,
        files: &target.identities,
        text: target.identity_text.as_deref(),
        use_ssh_agent: target.use_ssh_agent,
    };
    let begin = Instant::now();
    auth::authenticate(&mut session, &credentials, &endpoint, timeout, &connection_status).await?;
    let budget = Arc::new(Semaphore::new(UNREAD_BYTES_MAX));
    let round_trip = AtomicU64::new(u64::MAX);
    let (user, secrets) = (target.user.clone(), None);
    let connection = Connection {
        session,
        socket,
        endpoint,
        timeout,
        budget,
        connection_status,
        round_trip,
        round_trips,
        user,
        shown,
        secrets,
    };
    connection.took(begin.elapsed() / LOGIN_ROUND_TRIPS);
    debug!("connect ok=true ms={} endpoint={} step=log in", begin.elapsed().as_millis(), connection.endpoint);
    Ok(connection)
}

impl Connection {
    /// Returns the connection with a file (mode 0600) that keeps the agents' secrets. With its
    /// secret, ksync seals the agent's first bytes, and they travel in the command line. Without a
    /// secret the first bytes arrive one round trip later.
    #[must_use]
    pub fn with_secrets(self, file: PathBuf) -> Self {
        let secrets = self.shown.get().map(|key| Secrets::of(file, key, &self.user));
        Self { secrets, ..self }
    }

    /// Starts the agent `image`, and installs it first if it is missing. Returns without waiting
    /// for the agent's first answer. Up to 64 KiB that the caller writes meanwhile are already on
    /// their way.
    ///
    /// # Errors
    /// The server opens no channel. The agent's reader and its end report every later failure.
    pub async fn agent(&self, image: AgentImage) -> Result<Agent, RemoteError> {
        let (agent, waiting) = Agent::waiting();
        self.start(waiting, image).await?;
        Ok(agent)
    }

    /// Starts the agent for which a reader and a writer already exist. Up to 8 KiB that were
    /// already written travel in the command line, and so arrive one round trip earlier. They
    /// travel there only if they can be sealed, because every user of that machine can read its
    /// command lines.
    ///
    /// # Errors
    /// The same as [`Connection::agent`].
    pub async fn start(&self, waiting: Waiting, image: AgentImage) -> Result<(), RemoteError> {
        let secret = self.secrets.as_ref().and_then(Secrets::recall);
        let sealing = image.clone();
        let purpose = move |waiting: &mut Waiting| {
            Purpose::Exchange(secret.and_then(|secret| waiting.seal_first_flight(&secret, &sealing)))
        };
        self.start_for(purpose, waiting, image).await
    }

    /// Starts the agent `image` as a further lane of the exchange that announces `token`. The
    /// agent's first answer means that it has joined. Everything written to it from then on belongs
    /// to that exchange.
    ///
    /// # Errors
    /// The same as [`Connection::agent`].
    pub async fn lane(&self, image: AgentImage, token: Token) -> Result<Agent, RemoteError> {
        let (agent, waiting) = Agent::waiting();
        self.start_for(|_| Purpose::Lane(token), waiting, image).await?;
        Ok(agent)
    }

    async fn start_for(
        &self,
        purpose: impl FnOnce(&mut Waiting) -> Purpose,
        mut waiting: Waiting,
        image: AgentImage,
    ) -> Result<(), RemoteError> {
        let endpoint = self.endpoint.clone();
        let marker = bootstrap::marker().map_err(|_| RemoteError::NotStarted {
            endpoint: endpoint.clone(),
            reason: "this machine gave no random number".into(),
        })?;
        let opening = async {
            let begin = Instant::now();
            let channel = self.session.channel_open_session().await?;
            self.took(begin.elapsed());
            let purpose = purpose(&mut waiting);
            debug!("agent step=start {}", purpose.kind());
            let command = bootstrap::command(&image, &marker, &purpose);
            // Ask for no reply: the agent's own first answer arrives one round trip earlier.
            channel.exec(false, command).await?;
            Ok(channel)
        };
        let opened =
            within(self.timeout, "open a channel to", &self.endpoint, async { Ok(opening.await) }).await?;
        let channel = opened.map_err(|source: russh::Error| self.channel_error(source))?;
        let (read, write) = channel.split();
        let (timeout, round_trip) = (self.timeout, self.round_trip());
        let (budget, connection_status, secrets) =
            (self.budget.clone(), self.connection_status.clone(), self.secrets.clone());
        waiting.start(
            read,
            write,
            pump::Start { image, marker, endpoint, timeout, round_trip, budget, connection_status, secrets },
        );
        Ok(())
    }

    /// Error for a channel that could not be opened or used.
    fn channel_error(&self, source: russh::Error) -> RemoteError {
        self.connection_status.channel_error(&self.endpoint, source, self.session.is_closed())
    }

    /// Records that a round trip took `elapsed` or less.
    fn took(&self, elapsed: Duration) {
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        self.round_trip.fetch_min(micros, Ordering::Relaxed);
    }

    /// Upper bound of a round trip: the shortest one measured among those that connecting needed
    /// anyway.
    #[must_use]
    pub fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip.load(Ordering::Relaxed))
    }

    /// Round trips until an agent is started, if the server accepts the first key and TLS is 1.3.
    #[must_use]
    pub fn round_trips(&self) -> u32 {
        self.round_trips
    }

    /// Reports if the session has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.session.is_closed()
    }

    /// Ends the session. This cuts off agents that still run, so read to their end first.
    pub async fn close(self) {
        let goodbye = async {
            // These calls fail if the session is already gone, which does no harm.
            let _ = self.session.disconnect(Disconnect::ByApplication, "", "").await;
            let _ = self.session.await;
            if let Some(socket) = self.socket {
                let _ = socket.await;
            }
        };
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, goodbye).await;
    }
}

/// Returns a token for the lanes of one exchange, or `None` if this machine gives no random number.
#[must_use]
pub fn token() -> Option<Token> {
    bootstrap::token().ok()
}

async fn dial(host: &str, port: u16, endpoint: &str, timeout: Duration) -> Result<TcpStream, RemoteError> {
    let failed = |source: io::Error| RemoteError::Connect { endpoint: endpoint.into(), source };
    within(timeout, "connect to", endpoint, async { tcp::connect(host, port).await.map_err(failed) }).await
}

async fn handshake(
    target: &Target,
    stream: Box<dyn ByteStream>,
    round_trip: Duration,
    endpoint: &str,
    connection_status: &ConnectionStatus,
    shown: &ssh::Shown,
) -> Result<Handle<ssh::Client>, RemoteError> {
    let (host_keys, silence) = (target.host_keys.clone(), target.silence_timeout);
    let stream = tcp::GuardedStream::new(stream, silence, connection_status.clone());
    let (connection_status, shown) = (connection_status.clone(), shown.clone());
    let handshake =
        ssh::handshake(stream, round_trip, host_keys, silence, endpoint, connection_status, shown);
    within(target.connect_timeout, "agree on an SSH session with", endpoint, handshake).await
}

/// Runs `work` with a timeout.
async fn within<T>(
    timeout: Duration,
    verb: &'static str,
    endpoint: &str,
    work: impl Future<Output = Result<T, RemoteError>>,
) -> Result<T, RemoteError> {
    let begin = Instant::now();
    let result = match tokio::time::timeout(timeout, work).await {
        Ok(result) => result,
        Err(_) => Err(RemoteError::TimedOut { verb, endpoint: endpoint.into(), after: timeout }),
    };
    let (ms, is_ok) = (begin.elapsed().as_millis(), result.is_ok());
    debug!("connect ok={is_ok} ms={ms} endpoint={endpoint} step={verb}");
    result
}
