//! The way there: WebSocket, SSH, host keys, and putting the agent on the other side. Knows neither the
//! engine nor the disk.
//!
//! ```text
//! tcp ─┬───────────────────────────┬─ ssh ─ auth ─ exec channel ─ bootstrap ─ agent
//!      └─ (tls) ─ websocket ───────┘   └─ hostkey (known_hosts)     └─ agent_image
//! ```
//!
//! [`connect`] makes an SSH session with a [`Target`]; [`Connection::agent`] starts an [`Agent`] on a channel
//! of it, as often as wanted, and [`Connection::lane_from`] one that is a further lane of another. Everything
//! up to the agent is asynchronous; its reader and writer block, as the engine's driver needs them. What holds
//! throughout:
//!
//! - no host is trusted without proof, and no proof is learned where one is expected;
//! - every wait for the other side has an end;
//! - nothing that the other side says is kept without a limit, or shown without being escaped;
//! - no name or path ever becomes part of a command.

mod agent;
mod agent_image;
mod auth;
mod bootstrap;
mod bridge;
mod command;
mod error;
mod headroom;
mod hostkey;
mod known_hosts;
mod pins;
mod pump;
mod secrets;
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
use tokio::time::{Instant, timeout};

pub use agent::{Agent, AgentEnd, AgentReader, AgentWriter, End, Heard, Installed};
pub use agent_image::{AgentImage, BLOCK_BYTES};
pub use bridge::{hold_open, proxy};
pub use command::Lines;
pub use error::{ErrorKind, Loss, RemoteError};
pub use hostkey::{HostKeyError, HostKeys};
pub use pump::Waiting;
pub use shell::{Size, Terminal};
pub(crate) use tls::client_config;

use crate::tree::path::escape;
use crate::wire::lanes::Token;
use bootstrap::Purpose;
use error::Fate;
use secrets::Secrets;

/// What may wait to be read from all agents of a connection together: a full window. Beyond it the session
/// stands still until somebody reads, and so does what is sent.
const UNREAD_BYTES_MAX: usize = ssh::WINDOW_BYTES_MAX as usize;

/// Round trips that a TCP connection takes.
const TCP_ROUND_TRIPS: u32 = 1;

/// Round trips that a WebSocket takes on top: its own, and with TLS 1.3 another one.
const WEBSOCKET_ROUND_TRIPS: u32 = 1;
const TLS_ROUND_TRIPS: u32 = 1;

/// Round trips until an SSH session has its keys: what both can, and the exchange of keys.
const HANDSHAKE_ROUND_TRIPS: u32 = 2;

/// Round trips that logging in takes at least: asking for it, offering the key, signing.
const LOGIN_ROUND_TRIPS: u32 = 3;

/// Round trips that opening a channel takes.
const CHANNEL_ROUND_TRIPS: u32 = 1;

/// How long saying goodbye may take.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(2);

/// Where to connect to, and how.
///
/// It has no `Debug`: a private key may be in it, and a token in the URL.
#[derive(Clone)]
pub struct Target {
    /// How bytes get there.
    pub transport: Transport,
    /// Whom to log in as.
    pub user: String,
    /// How the host proves that it is the right one.
    pub host_keys: HostKeys,
    /// Private key files. If there are none, and no `identity_text`: ssh-agent, then `~/.ssh/id_ed25519` and
    /// `~/.ssh/id_ecdsa`.
    pub identities: Vec<PathBuf>,
    /// A private key in memory, tried first.
    pub identity_text: Option<String>,
    /// Whether ssh-agent may be asked.
    pub use_ssh_agent: bool,
    /// How long each step of connecting may take.
    pub connect_timeout: Duration,
    /// After how much silence a connection is dead.
    pub silence_timeout: Duration,
}

/// How bytes get to the SSH server.
#[derive(Clone)]
pub enum Transport {
    /// Straight to it.
    Tcp {
        /// Its name or address.
        host: String,
        /// Its port.
        port: u16,
    },
    /// Over a bridge that puts them into binary WebSocket messages.
    WebSocket {
        /// `wss://…`, or `ws://…` without TLS.
        url: String,
        /// A PEM file with roots that are trusted besides the platform's.
        ca_cert: Option<PathBuf>,
    },
}

/// An SSH session.
pub struct Connection {
    session: Handle<ssh::Client>,
    /// The task that owns the WebSocket, if there is one.
    socket: Option<JoinHandle<()>>,
    endpoint: String,
    patience: Duration,
    budget: Arc<Semaphore>,
    fate: Fate,
    /// The shortest round trip so far, in microseconds.
    round_trip: AtomicU64,
    /// How many it took until an agent was started.
    round_trips: u32,
    user: String,
    shown: ssh::Shown,
    secrets: Option<Secrets>,
}

/// Connects and logs in.
///
/// # Errors
/// Where the network, the host's key, or the login is not as it has to be.
pub async fn connect(target: &Target) -> Result<Connection, RemoteError> {
    let (fate, shown) = (Fate::default(), ssh::Shown::default());
    let patience = target.connect_timeout;
    let mut round_trips = TCP_ROUND_TRIPS + HANDSHAKE_ROUND_TRIPS + LOGIN_ROUND_TRIPS + CHANNEL_ROUND_TRIPS;
    let (mut session, socket, endpoint) = match &target.transport {
        Transport::Tcp { host, port } => {
            let endpoint = format!("{}:{port}", escape(host.as_bytes()));
            let begin = Instant::now();
            let stream = dial(host, *port, &endpoint, patience).await?;
            let round_trip = begin.elapsed() / TCP_ROUND_TRIPS;
            (handshake(target, stream, round_trip, &endpoint, &fate, &shown).await?, None, endpoint)
        }
        Transport::WebSocket { url, ca_cert } => {
            let address = websocket::Address::parse(url)?;
            let endpoint = address.endpoint();
            let on_top = WEBSOCKET_ROUND_TRIPS + if address.encrypted { TLS_ROUND_TRIPS } else { 0 };
            round_trips += on_top;
            let (silence, begin) = (target.silence_timeout, Instant::now());
            let (stream, socket) =
                bridge::open(&address, ca_cert.as_deref(), patience, silence, &fate).await?;
            let round_trip = begin.elapsed() / (TCP_ROUND_TRIPS + on_top);
            let session = handshake(target, stream, round_trip, &endpoint, &fate, &shown).await?;
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
    auth::authenticate(&mut session, &credentials, &endpoint, patience, &fate).await?;
    let budget = Arc::new(Semaphore::new(UNREAD_BYTES_MAX));
    let round_trip = AtomicU64::new(u64::MAX);
    let (user, secrets) = (target.user.clone(), None);
    let connection = Connection {
        session,
        socket,
        endpoint,
        patience,
        budget,
        fate,
        round_trip,
        round_trips,
        user,
        shown,
        secrets,
    };
    connection.took(begin.elapsed() / LOGIN_ROUND_TRIPS);
    Ok(connection)
}

impl Connection {
    /// The same, with a file (0600) where secrets of agents are kept: what an agent is told first
    /// is sealed with its secret, and so may travel with the command. Without one it comes a round
    /// trip later.
    #[must_use]
    pub fn with_secrets(self, file: PathBuf) -> Self {
        let secrets = self.shown.get().map(|key| Secrets::of(file, key, &self.user));
        Self { secrets, ..self }
    }

    /// Starts an agent, and installs it first where it is not there. Does not wait until it has answered:
    /// what is written to it meanwhile, up to 64 KiB, is on its way.
    ///
    /// # Errors
    /// Where the server opens no channel. All that goes wrong later is told by the agent's reader and end.
    pub async fn agent(&self) -> Result<Agent, RemoteError> {
        self.agent_from(AgentImage::embedded()).await
    }

    /// Starts the agent `image`; else as [`Connection::agent`].
    ///
    /// # Errors
    /// As there.
    pub async fn agent_from(&self, image: AgentImage) -> Result<Agent, RemoteError> {
        let (agent, waiting) = Agent::waiting();
        self.start(waiting, image).await?;
        Ok(agent)
    }

    /// Starts the agent that a reader and a writer wait for. What was written already travels along
    /// with the command, up to 8 KiB of it, and so arrives a round trip earlier; where it can be
    /// sealed, since all users of that machine can read its command lines.
    ///
    /// # Errors
    /// As [`Connection::agent`].
    pub async fn start(&self, waiting: Waiting, image: AgentImage) -> Result<(), RemoteError> {
        let secret = self.secrets.as_ref().and_then(Secrets::recall);
        let sealing = image.clone();
        let purpose = move |waiting: &mut Waiting| {
            Purpose::Exchange(secret.and_then(|secret| waiting.seal_first_flight(&secret, &sealing)))
        };
        self.start_for(purpose, waiting, image).await
    }

    /// Starts the agent `image` as a further lane of the exchange that announces `token`. It has joined when it
    /// has answered; what it is told from then on belongs to that exchange.
    ///
    /// # Errors
    /// As [`Connection::agent`].
    pub async fn lane_from(&self, image: AgentImage, token: Token) -> Result<Agent, RemoteError> {
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
            let command = bootstrap::command(&image, &marker, &purpose(&mut waiting));
            // No reply is wanted: the first answer is the agent's own, a round trip earlier.
            channel.exec(false, command).await?;
            Ok(channel)
        };
        let opened =
            within(self.patience, "open a channel to", &self.endpoint, async { Ok(opening.await) }).await?;
        let channel = opened.map_err(|source: russh::Error| self.channel_error(source))?;
        let (read, write) = channel.split();
        let (patience, round_trip) = (self.patience, self.round_trip());
        let (budget, fate, secrets) = (self.budget.clone(), self.fate.clone(), self.secrets.clone());
        waiting.start(
            read,
            write,
            pump::Start { image, marker, endpoint, patience, round_trip, budget, fate, secrets },
        );
        Ok(())
    }

    /// Why a channel could not be opened or used.
    fn channel_error(&self, source: russh::Error) -> RemoteError {
        self.fate.channel_error(&self.endpoint, source, self.session.is_closed())
    }

    /// A round trip took so long, or less.
    fn took(&self, elapsed: Duration) {
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        self.round_trip.fetch_min(micros, Ordering::Relaxed);
    }

    /// How long a round trip takes at most: the shortest that was seen of those that were needed anyway.
    #[must_use]
    pub fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip.load(Ordering::Relaxed))
    }

    /// How many round trips it takes until an agent is started, with the first key accepted and TLS 1.3.
    #[must_use]
    pub fn round_trips(&self) -> u32 {
        self.round_trips
    }

    /// Whether the session has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.session.is_closed()
    }

    /// Says goodbye. Agents that still run are cut off, so read to their end first.
    pub async fn close(self) {
        let goodbye = async {
            // A session that is gone needs no goodbye.
            let _ = self.session.disconnect(Disconnect::ByApplication, "", "").await;
            let _ = self.session.await;
            if let Some(socket) = self.socket {
                let _ = socket.await;
            }
        };
        let _ = timeout(GOODBYE_PATIENCE, goodbye).await;
    }
}

/// A token for the lanes of one exchange; `None` where this machine gives no random number.
#[must_use]
pub fn token() -> Option<Token> {
    bootstrap::token().ok()
}

async fn dial(host: &str, port: u16, endpoint: &str, patience: Duration) -> Result<TcpStream, RemoteError> {
    let failed = |source: io::Error| RemoteError::Connect { endpoint: endpoint.into(), source };
    within(patience, "connect to", endpoint, async { tcp::connect(host, port).await.map_err(failed) }).await
}

async fn handshake<S>(
    target: &Target,
    stream: S,
    round_trip: Duration,
    endpoint: &str,
    fate: &Fate,
    shown: &ssh::Shown,
) -> Result<Handle<ssh::Client>, RemoteError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (host_keys, silence) = (target.host_keys.clone(), target.silence_timeout);
    let stream = tcp::Watched::new(stream, silence, fate.clone());
    let (fate, shown) = (fate.clone(), shown.clone());
    let handshake = ssh::handshake(stream, round_trip, host_keys, silence, endpoint, fate, shown);
    within(target.connect_timeout, "agree on an SSH session with", endpoint, handshake).await
}

/// Gives `work` so much time and no more.
async fn within<T>(
    patience: Duration,
    verb: &'static str,
    endpoint: &str,
    work: impl Future<Output = Result<T, RemoteError>>,
) -> Result<T, RemoteError> {
    match timeout(patience, work).await {
        Ok(result) => result,
        Err(_) => Err(RemoteError::TimedOut { verb, endpoint: endpoint.into(), after: patience }),
    }
}
