//! One connection to a server: the transport, and the SSH session over it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ksync_ssh::Order;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::log::debug;
use crate::remote::auth::{LoginOn, Logins};
use crate::remote::bridge;
use crate::remote::error::{ConnectionStatus, RemoteError};
use crate::remote::facts::HostFacts;
use crate::remote::greeting::{self, Greeted};
use crate::remote::inbound::Inbound;
use crate::remote::own;
use crate::remote::protocol::{Protocol, Wanted};
use crate::remote::session::{Library, Session};
use crate::remote::ssh::{self, Hooks, Shown};
use crate::remote::target::{Target, Transport};
use crate::remote::tcp::{self, ByteStream, GuardedStream};
use crate::remote::timeout::{GOODBYE_TIMEOUT, within};
use crate::remote::websocket::Address;

/// Round trips of a TCP connect.
const TCP_ROUND_TRIPS: u32 = 1;

/// Round trips that a WebSocket adds: one for its own handshake, and one for TLS 1.3.
const WEBSOCKET_ROUND_TRIPS: u32 = 1;
const TLS_ROUND_TRIPS: u32 = 1;

/// Round trips of the SSH handshake in order: one for the algorithm lists, one for the key
/// exchange.
const HANDSHAKE_ROUND_TRIPS: u32 = 2;

/// Round trips of opening a channel.
const CHANNEL_ROUND_TRIPS: u32 = 1;

/// The transport of a connection.
pub(super) struct Wire {
    pub(super) stream: Box<dyn ByteStream>,
    /// The task that owns the WebSocket; `None` over plain TCP.
    pub(super) socket: Option<JoinHandle<()>>,
    pub(super) status: ConnectionStatus,
    /// Upper bound of a round trip.
    pub(super) round_trip: Duration,
    /// Round trips that opening it took.
    pub(super) round_trips: u32,
}

impl Wire {
    /// Connects to the target's server or bridge.
    pub(super) async fn open(target: &Target) -> Result<Self, RemoteError> {
        let (timeout, status) = (target.connect_timeout, ConnectionStatus::default());
        let begin = Instant::now();
        match &target.transport {
            Transport::Tcp { host, port, family, from } => {
                let endpoint = target.endpoint()?;
                let stream =
                    tcp::connect_from(from.as_deref(), *family, (host, *port), &endpoint, timeout).await?;
                let (stream, round_trips) = (Box::new(stream), TCP_ROUND_TRIPS);
                Ok(Self {
                    stream,
                    socket: None,
                    status,
                    round_trip: begin.elapsed() / round_trips,
                    round_trips,
                })
            }
            Transport::WebSocket { url, ca_cert, proxies } => {
                let address = Address::parse(url)?;
                let on_top = WEBSOCKET_ROUND_TRIPS + if address.encrypted { TLS_ROUND_TRIPS } else { 0 };
                let silence = target.silence_timeout;
                let (stream, socket) =
                    bridge::open(&address, ca_cert.as_deref(), proxies, timeout, silence, &status).await?;
                let (stream, round_trips) = (Box::new(stream), TCP_ROUND_TRIPS + on_top);
                let (socket, round_trip) = (Some(socket), begin.elapsed() / round_trips);
                Ok(Self { stream, socket, status, round_trip, round_trips })
            }
        }
    }
}

/// A connection with its session.
pub(super) struct Line {
    pub(super) session: Arc<Session>,
    socket: Option<JoinHandle<()>>,
    pub(super) status: ConnectionStatus,
    pub(super) inbound: Inbound,
    shown: Shown,
    /// Reports an error once the session has ended.
    alive: watch::Receiver<()>,
    /// The shortest round trip so far, in microseconds.
    round_trip: AtomicU64,
    /// Round trips from the TCP connect until an agent is started.
    pub(super) round_trips: u32,
    /// Facts about the host, once the login has succeeded.
    pub(super) seen: Option<HostFacts>,
}

impl Line {
    /// A connection with this session.
    pub(super) fn over(
        socket: Option<JoinHandle<()>>,
        session: Session,
        status: ConnectionStatus,
        hooks: &Hooks,
        round_trips: u32,
    ) -> Self {
        Self {
            session: Arc::new(session),
            socket,
            status,
            inbound: hooks.inbound.clone(),
            shown: hooks.shown.clone(),
            alive: hooks.alive.subscribe(),
            round_trip: AtomicU64::new(u64::MAX),
            round_trips,
            seen: None,
        }
    }

    /// Connects and logs in, in order.
    pub(super) async fn in_order(library: Library, target: &Target) -> Result<Self, RemoteError> {
        let (hooks, timeout, endpoint) = (Hooks::default(), target.connect_timeout, target.endpoint()?);
        let wire = Wire::open(target).await?;
        let Wire { stream, socket, status, round_trip, round_trips } = wire;
        let (mut session, mut seen) =
            handshake(library, target, stream, round_trip, &endpoint, &status, &hooks).await?;
        let login_round_trips = session.login_round_trips();
        let begin = Instant::now();
        let on = LoginOn { user: &target.user, endpoint: &endpoint, timeout, status: &status };
        let logins = Logins::load(&session, &target.keys).await?;
        let key = logins.log_in(&mut session, &on, None).await?;
        if let (Some(seen), Some(key)) = (&mut seen, key) {
            seen.admitted(&key);
        }
        let round_trips = round_trips + HANDSHAKE_ROUND_TRIPS + login_round_trips + CHANNEL_ROUND_TRIPS;
        let line = Self { seen, ..Self::over(socket, session, status, &hooks, round_trips) };
        line.took(begin.elapsed() / login_round_trips);
        if let Some(round_trip) = line.session.round_trip() {
            line.took(round_trip);
        }
        debug!("connect ok=true ms={} endpoint={endpoint} step=log in", begin.elapsed().as_millis());
        Ok(line)
    }

    /// Error for a channel that could not be opened or used.
    pub(super) fn channel_error(&self, endpoint: &str, source: russh::Error) -> RemoteError {
        self.status.channel_error(endpoint, source, self.session.is_closed())
    }

    /// Records that a round trip took `elapsed` or less.
    pub(super) fn took(&self, elapsed: Duration) {
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        self.round_trip.fetch_min(micros, Ordering::Relaxed);
    }

    /// Upper bound of a round trip: the shortest one measured among those that connecting needed
    /// anyway.
    pub(super) fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip.load(Ordering::Relaxed))
    }

    /// The trusted host key, as text.
    pub(super) fn host_key(&self) -> Option<&String> {
        self.shown.get()
    }

    /// Waits until the session has ended, and returns the reason.
    pub(super) async fn lost(&self, endpoint: &str) -> RemoteError {
        match &*self.session {
            Session::Russh(_) => drop(self.alive.clone().changed().await),
            Session::Own(own) => own.ended().await,
        }
        self.status.error(endpoint)
    }

    /// Ends the session.
    pub(super) async fn close(self) {
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

/// Agrees on a session in order. Returns the facts that it shows about the host.
async fn handshake(
    library: Library,
    target: &Target,
    stream: Box<dyn ByteStream>,
    round_trip: Duration,
    endpoint: &str,
    status: &ConnectionStatus,
    hooks: &Hooks,
) -> Result<(Session, Option<HostFacts>), RemoteError> {
    // A silent port is asked what it speaks, unless a bridge leads to it.
    let (wanted, port) = match &target.transport {
        Transport::Tcp { host, port, .. } => (Wanted::Ssh, Some((host.as_str(), *port))),
        Transport::WebSocket { .. } => (Wanted::SshBehindBridge, None),
    };
    let (stream, greeting) = Greeted::new(stream, wanted);
    let (host_keys, silence) = (target.host_keys.clone(), target.silence_timeout);
    let stream: Box<dyn ByteStream> = Box::new(stream);
    let stream = GuardedStream::new(stream, silence, status.clone());
    let handshake = async {
        Ok(match library {
            Library::Russh => Session::Russh(Box::new(
                ssh::handshake(
                    stream,
                    round_trip,
                    host_keys,
                    silence,
                    endpoint,
                    status.clone(),
                    hooks.clone(),
                )
                .await?,
            )),
            Library::Own => {
                let settings =
                    own::Settings { round_trip, silence, host_keys, order: Order::Safe, is_lean: false };
                let session = own::handshake(stream, settings, status.clone(), hooks.shown.clone()).await;
                Session::Own(session.map_err(|error| own::explain(endpoint, error, status))?)
            }
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
    let session = match shaken {
        Ok(session) => session,
        Err(error) => return Err(greeting::explain(error, &greeting, wanted, port).await),
    };
    let seen = match &session {
        Session::Own(own) => own.facts(),
        Session::Russh(_) => greeting
            .ssh_id()
            .zip(hooks.seen.get().cloned())
            .map(|(server_id, seen)| HostFacts { server_id, ..seen }),
    };
    Ok((session, seen))
}
