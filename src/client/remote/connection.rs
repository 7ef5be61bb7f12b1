//! An SSH session to a server, and the agents on it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::log::debug;
use crate::remote::agent::Agent;
use crate::remote::agent_image::AgentImage;
use crate::remote::auth;
use crate::remote::bootstrap::{self, Purpose};
use crate::remote::bridge;
use crate::remote::error::{ConnectionStatus, RemoteError};
use crate::remote::greeting::{self, Greeted};
use crate::remote::hostkey::HostKeys;
use crate::remote::inbound::Inbound;
use crate::remote::keys::Keys;
use crate::remote::lent::{Lent, Opener};
use crate::remote::own;
use crate::remote::probe::Probe;
use crate::remote::protocol::{Protocol, Wanted};
use crate::remote::proxies::Proxies;
use crate::remote::pump::{self, Waiting};
use crate::remote::secrets::Secrets;
use crate::remote::session::{Channel, Library, Session};
use crate::remote::spool::Room;
use crate::remote::ssh::{self, Hooks, Shown};
use crate::remote::ssh_config::AddressFamily;
use crate::remote::tcp::{self, ByteStream, GuardedStream};
use crate::remote::timeout::{GOODBYE_TIMEOUT, within};
use crate::remote::websocket::Address;
use crate::tree::path::escape;
use crate::wire::lanes::Token;

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

/// Round trips of opening a channel.
const CHANNEL_ROUND_TRIPS: u32 = 1;

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
    /// The keys to log in with.
    pub keys: Keys,
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
        /// The kind of addresses to connect to.
        family: AddressFamily,
        /// The local address to connect from.
        from: Option<String>,
    },
    /// A bridge that carries the bytes in binary WebSocket messages.
    WebSocket {
        /// `wss://…`, or `ws://…` without TLS.
        url: String,
        /// A PEM file with roots that ksync trusts in addition to the platform's.
        ca_cert: Option<PathBuf>,
        /// The proxies to go through.
        proxies: Proxies,
    },
}

impl Transport {
    /// A direct TCP connection from any local address to any address of `host`.
    #[must_use]
    pub fn tcp(host: String, port: u16) -> Self {
        Self::Tcp { host, port, family: AddressFamily::Any, from: None }
    }
}

/// An SSH session.
pub struct Connection {
    pub(super) session: Arc<Session>,
    /// The task that owns the WebSocket; `None` over plain TCP.
    socket: Option<JoinHandle<()>>,
    pub(super) endpoint: String,
    pub(super) timeout: Duration,
    budget: Arc<Semaphore>,
    pub(super) connection_status: ConnectionStatus,
    /// The shortest round trip so far, in microseconds.
    round_trip: AtomicU64,
    /// Round trips from the TCP connect until an agent is started.
    round_trips: u32,
    /// The target, for a further connection to it.
    pub(super) target: Target,
    shown: Shown,
    pub(super) inbound: Inbound,
    /// Room for bytes that nobody here takes, once the connection has forwards.
    pub(super) spool_room: OnceLock<Room>,
    /// Reports an error once the session has ended.
    alive: watch::Receiver<()>,
    secrets: Option<Secrets>,
}

/// A connection that a keeper lends.
pub struct Loan {
    /// The keeper's target.
    pub target: Target,
    /// Its name, for messages.
    pub endpoint: String,
    /// The round trip that the keeper has measured.
    pub round_trip: Duration,
    /// A stream to an agent that waits for a run.
    pub agent: Option<UnixStream>,
    /// Opens channels.
    pub open: Opener,
}

/// Connects and logs in.
///
/// # Errors
/// The network failed, the host key is not trusted, or the server refused the login.
pub async fn connect(target: &Target) -> Result<Connection, RemoteError> {
    match connect_by(Library::Russh, target).await {
        Err(error) if own::has_what_is_missing(&error) => {
            debug!("connect step=again client=own why={error:?}");
            connect_by(Library::Own, target).await
        }
        connected => connected,
    }
}

async fn connect_by(library: Library, target: &Target) -> Result<Connection, RemoteError> {
    let (connection_status, hooks) = (ConnectionStatus::default(), Hooks::default());
    let timeout = target.connect_timeout;
    let mut round_trips = TCP_ROUND_TRIPS + HANDSHAKE_ROUND_TRIPS + CHANNEL_ROUND_TRIPS;
    let (stream, socket, round_trip, endpoint): (Box<dyn ByteStream>, _, _, _) = match &target.transport {
        Transport::Tcp { host, port, family, from } => {
            let endpoint = format!("{}:{port}", escape(host.as_bytes()));
            let begin = Instant::now();
            let stream =
                tcp::connect_from(from.as_deref(), *family, (host, *port), &endpoint, timeout).await?;
            (Box::new(stream), None, begin.elapsed() / TCP_ROUND_TRIPS, endpoint)
        }
        Transport::WebSocket { url, ca_cert, proxies } => {
            let address = Address::parse(url)?;
            let on_top = WEBSOCKET_ROUND_TRIPS + if address.encrypted { TLS_ROUND_TRIPS } else { 0 };
            round_trips += on_top;
            let (silence, begin) = (target.silence_timeout, Instant::now());
            let (stream, socket) =
                bridge::open(&address, ca_cert.as_deref(), proxies, timeout, silence, &connection_status)
                    .await?;
            let round_trip = begin.elapsed() / (TCP_ROUND_TRIPS + on_top);
            (Box::new(stream), Some(socket), round_trip, address.endpoint())
        }
    };
    let mut session =
        handshake(library, target, stream, round_trip, &endpoint, &connection_status, &hooks).await?;
    let login_round_trips = session.login_round_trips();
    round_trips += login_round_trips;
    let begin = Instant::now();
    auth::authenticate(&mut session, &target.user, &target.keys, &endpoint, timeout, &connection_status)
        .await?;
    let budget = Arc::new(Semaphore::new(UNREAD_BYTES_MAX));
    let round_trip = AtomicU64::new(u64::MAX);
    let (target, secrets) = (target.clone(), None);
    let connection = Connection {
        session: Arc::new(session),
        socket,
        endpoint,
        timeout,
        budget,
        connection_status,
        round_trip,
        round_trips,
        target,
        shown: hooks.shown,
        inbound: hooks.inbound,
        spool_room: OnceLock::new(),
        alive: hooks.alive.subscribe(),
        secrets,
    };
    connection.took(begin.elapsed() / login_round_trips);
    if let Some(round_trip) = connection.session.round_trip() {
        connection.took(round_trip);
    }
    debug!("connect ok=true ms={} endpoint={} step=log in", begin.elapsed().as_millis(), connection.endpoint);
    Ok(connection)
}

impl Connection {
    /// A connection that a keeper lends. Closing it ends only the channels of this process.
    #[must_use]
    pub fn lent(loan: Loan) -> Self {
        let (connection_status, hooks) = (ConnectionStatus::default(), Hooks::default());
        let Loan { target, endpoint, round_trip, agent, open } = loan;
        let session = Session::Lent(Lent::new(open, agent, connection_status.clone()));
        let connection = Self {
            session: Arc::new(session),
            socket: None,
            endpoint,
            timeout: target.connect_timeout,
            budget: Arc::new(Semaphore::new(UNREAD_BYTES_MAX)),
            connection_status,
            round_trip: AtomicU64::new(u64::MAX),
            round_trips: 0,
            target,
            shown: hooks.shown,
            inbound: hooks.inbound,
            spool_room: OnceLock::new(),
            alive: hooks.alive.subscribe(),
            secrets: None,
        };
        connection.took(round_trip);
        connection
    }

    /// The name of the server, for messages.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// True if a keeper lends this connection.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        matches!(*self.session, Session::Lent(_))
    }

    /// Returns the connection with a file (mode 0600) that keeps the agents' secrets. With its
    /// secret, ksync seals the agent's first bytes, and they travel in the command line. Without a
    /// secret the first bytes arrive one round trip later.
    #[must_use]
    pub fn with_secrets(self, file: PathBuf) -> Self {
        let secrets = self.shown.get().map(|key| Secrets::of(file, key, &self.target.user));
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
        if let Session::Lent(lent) = &*self.session
            && let Some(channel) = lent.agent()
        {
            debug!("agent step=start for=exchange kept=true");
            self.attach(waiting, Channel::Lent(channel), image, String::new(), None);
            return Ok(());
        }
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

    pub(super) async fn start_for(
        &self,
        purpose: impl FnOnce(&mut Waiting) -> Purpose,
        mut waiting: Waiting,
        image: AgentImage,
    ) -> Result<(), RemoteError> {
        let marker = bootstrap::marker().ok_or_else(|| RemoteError::NotStarted {
            endpoint: self.endpoint.clone(),
            reason: "this machine gave no random number".into(),
        })?;
        let opening = async {
            let begin = Instant::now();
            let channel = self.session.open().await?;
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
        let probe = Some(Probe::new(&self.session, self.round_trip()));
        self.attach(waiting, channel, image, marker, probe);
        Ok(())
    }

    /// Connects an agent's reader and writer to the channel that it runs on.
    fn attach(
        &self,
        waiting: Waiting,
        channel: Channel,
        image: AgentImage,
        marker: String,
        probe: Option<Probe>,
    ) {
        let (read, write) = channel.split();
        let (endpoint, timeout, round_trip) = (self.endpoint.clone(), self.timeout, self.round_trip());
        let (budget, connection_status, secrets) =
            (self.budget.clone(), self.connection_status.clone(), self.secrets.clone());
        let start = pump::Start {
            image,
            marker,
            endpoint,
            timeout,
            round_trip,
            budget,
            connection_status,
            secrets,
            probe,
        };
        waiting.start(read, write, start);
    }

    /// Error for a channel that could not be opened or used.
    pub(super) fn channel_error(&self, source: russh::Error) -> RemoteError {
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

    /// Waits until the session has ended, and returns the reason.
    pub async fn lost(&self) -> RemoteError {
        match &*self.session {
            Session::Russh(_) => drop(self.alive.clone().changed().await),
            Session::Own(own) => own.ended().await,
            Session::Lent(lent) => lent.ended().await,
        }
        self.connection_status.error(&self.endpoint)
    }

    /// Ends the session. This cuts off agents that still run, so read to their end first.
    pub async fn close(self) {
        let goodbye = async {
            self.session.disconnect().await;
            if let Some(mut session) = Arc::into_inner(self.session) {
                session.ended().await;
            }
            if let Some(socket) = self.socket {
                let _ = socket.await;
            }
        };
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, goodbye).await;
    }
}

async fn handshake(
    library: Library,
    target: &Target,
    stream: Box<dyn ByteStream>,
    round_trip: Duration,
    endpoint: &str,
    connection_status: &ConnectionStatus,
    hooks: &Hooks,
) -> Result<Session, RemoteError> {
    // A silent port is asked what it speaks, unless a bridge leads to it.
    let (wanted, port) = match &target.transport {
        Transport::Tcp { host, port, .. } => (Wanted::Ssh, Some((host.as_str(), *port))),
        Transport::WebSocket { .. } => (Wanted::SshBehindBridge, None),
    };
    let (stream, greeting) = Greeted::new(stream, wanted);
    let (host_keys, silence) = (target.host_keys.clone(), target.silence_timeout);
    let stream: Box<dyn ByteStream> = Box::new(stream);
    let stream = GuardedStream::new(stream, silence, connection_status.clone());
    let (connection_status, hooks) = (connection_status.clone(), hooks.clone());
    let handshake = async {
        Ok(match library {
            Library::Russh => Session::Russh(Box::new(
                ssh::handshake(stream, round_trip, host_keys, silence, endpoint, connection_status, hooks)
                    .await?,
            )),
            Library::Own => Session::Own(
                own::handshake(
                    stream,
                    round_trip,
                    host_keys,
                    silence,
                    endpoint,
                    connection_status,
                    hooks.shown,
                )
                .await?,
            ),
        })
    };
    let handshake = within(target.connect_timeout, "agree on an SSH session with", endpoint, handshake);
    let shaken = tokio::select! {
        shaken = handshake => shaken,
        () = greeting::speaks_http(&greeting, port, round_trip) => {
            let (endpoint, protocol) = (endpoint.into(), Protocol::Http);
            Err(RemoteError::OtherProtocol { endpoint, wanted, protocol })
        }
    };
    match shaken {
        Ok(session) => Ok(session),
        Err(error) => Err(greeting::explain(error, &greeting, wanted, port).await),
    }
}
