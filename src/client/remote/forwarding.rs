//! Port forwarding over a connection: local listeners, listeners on the server, and the connections
//! to both.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use russh::client::Msg;
use russh::{Channel, ChannelOpenFailure};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream, lookup_host};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::remote::carry::{carry, socks_of_channel, socks_of_socket};
use crate::remote::connection::Connection;
use crate::remote::error::RemoteError;
use crate::remote::forward::{Bind, Forward, ForwardTarget, Listen, Side};
use crate::remote::inbound::{Incoming, Listener};
use crate::remote::line::Line;
use crate::remote::session::Session;
use crate::remote::spool::{FILE_BYTES_MAX, Room, Spool};
use crate::remote::tcp::ByteStream;
use crate::remote::timeout::within;
use crate::tree::path::escape;

/// Connections at a time. The server could make this side open any number.
const CONNECTIONS_MAX: usize = 1024;

/// Connections from the server that may wait for the task that takes them: twice the usual backlog
/// of a listener.
const WAITING_MAX: usize = 256;

/// Attempts to find a port that is free on all loopback addresses.
const PORTS_MAX: usize = 10;

/// Pause after a connection that could not be accepted, probably for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Takes lines for the user about connections that failed.
pub type LineListener = Arc<dyn Fn(&str) + Send + Sync>;

/// Forwards whose local listeners are bound.
pub struct Forwards {
    forwards: Vec<(Forward, Vec<Local>)>,
    notice: LineListener,
}

/// A local listener.
enum Local {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _path: SocketPath },
}

/// The path of a socket, removed when dropped.
struct SocketPath(PathBuf);

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Forwards {
    /// Binds the local listeners. Their connections wait until [`Connection::forward`].
    ///
    /// # Errors
    /// An address is in use, or not one of this machine.
    pub async fn bind(forwards: Vec<Forward>, notice: LineListener) -> Result<Self, RemoteError> {
        let mut bound = Vec::new();
        for forward in forwards {
            let (side, listen) = (forward.side, &forward.listen);
            let listeners = match (side, listen) {
                (Side::There, _) => Ok(Vec::new()),
                (Side::Here, Listen::Unix(path)) => UnixListener::bind(path)
                    .map(|listener| vec![Local::Unix { listener, _path: SocketPath(path.clone()) }]),
                (Side::Here, Listen::Tcp { bind, port }) => bind_tcp(bind, *port).await,
            };
            let failed = |source| RemoteError::Listen { address: listen.to_string(), source };
            let listeners = listeners.map_err(failed)?;
            bound.push((forward, listeners));
        }
        Ok(Self { forwards: bound, notice })
    }
}

/// Listens on all addresses that `bind` means.
async fn bind_tcp(bind: &Bind, port: u16) -> io::Result<Vec<Local>> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match bind_all(bind, port).await {
            // A free port of one address may be taken on the other.
            Err(error) if port == 0 && error.kind() == io::ErrorKind::AddrInUse && attempts < PORTS_MAX => {}
            bound => return bound,
        }
    }
}

async fn bind_all(bind: &Bind, port: u16) -> io::Result<Vec<Local>> {
    let addresses: Vec<SocketAddr> = match bind {
        Bind::Loopback => vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()],
        // Usually the IPv6 address takes connections of both kinds.
        Bind::Any => vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()],
        Bind::Host(host) => lookup_host((host.as_str(), port)).await?.collect(),
    };
    let (mut listeners, mut port, mut failure) = (Vec::new(), port, io::ErrorKind::AddrNotAvailable.into());
    for mut address in addresses {
        address.set_port(port);
        match TcpListener::bind(address).await {
            Ok(listener) => {
                port = listener.local_addr()?.port();
                listeners.push(Local::Tcp(listener));
            }
            // Both families of one name, or none: connections must not reach another program.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && *bind != Bind::Any => {
                return Err(error);
            }
            // Not every machine has IPv6.
            Err(error) => failure = error,
        }
    }
    if listeners.is_empty() { Err(failure) } else { Ok(listeners) }
}

/// Forwards at work. Dropping this ends them.
pub struct Forwarding {
    tasks: JoinSet<()>,
    forwards: Vec<Forward>,
    allocated: Vec<String>,
}

impl Forwarding {
    /// The forwards, with allocated ports.
    #[must_use]
    pub fn forwards(&self) -> &[Forward] {
        &self.forwards
    }

    /// A line for each port that the system chose, in the words of ssh.
    #[must_use]
    pub fn allocated(&self) -> &[String] {
        &self.allocated
    }

    /// Ends all listeners and connections.
    pub async fn end(mut self) {
        self.tasks.shutdown().await;
    }
}

impl Connection {
    /// Asks the server for its listeners, and forwards all connections until [`Forwarding::end`].
    ///
    /// # Errors
    /// The server refused to listen, or the connection is lost.
    pub async fn forward(&self, forwards: Forwards) -> Result<Forwarding, RemoteError> {
        let Forwards { forwards, notice } = forwards;
        let line = self.line().await?;
        if !forwards.is_empty() && line.session.forwarding().is_none() {
            return Err(self.no_forwarding());
        }
        let shared = Shared {
            session: Arc::clone(&line.session),
            permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            room: self.spool_room.get_or_init(|| Room::of(FILE_BYTES_MAX)).clone(),
            is_stall_told: Arc::new(AtomicBool::new(false)),
            notice,
        };
        let is_remote = |(forward, _): &(Forward, _)| forward.side == Side::There;
        let incoming = forwards.iter().any(is_remote).then(|| line.inbound.listen(WAITING_MAX));
        let (mut tasks, mut asked) = (JoinSet::new(), Vec::new());
        let (mut all, mut lines) = (Vec::new(), Vec::new());
        for (forward, listeners) in forwards {
            let port = match forward.side {
                Side::There => {
                    let (listener, port) = self.ask(line, &forward).await?;
                    asked.push((listener, forward.target.clone()));
                    port
                }
                Side::Here => listeners.first().and_then(Local::port),
            };
            let at_port = port.map_or_else(|| forward.clone(), |port| forward.at_port(port));
            if let (Listen::Tcp { port: 0, .. }, Some(port)) = (&forward.listen, port) {
                lines.push(allocated(&forward, port));
            }
            for listener in listeners {
                tasks.spawn(accept(listener, forward.target.clone(), shared.clone()));
            }
            all.push(at_port);
        }
        if let Some(incoming) = incoming {
            tasks.spawn(take(incoming, asked, shared));
        }
        Ok(Forwarding { tasks, forwards: all, allocated: lines })
    }

    fn no_forwarding(&self) -> RemoteError {
        RemoteError::NoForwarding { endpoint: self.endpoint.clone() }
    }

    /// Asks the server to listen. Returns the listener, and its port if that is a TCP one.
    async fn ask(&self, line: &Line, forward: &Forward) -> Result<(Listener, Option<u16>), RemoteError> {
        let failed = |source| match source {
            russh::Error::RequestDenied => RemoteError::ForwardRefused {
                address: forward.listen.to_string(),
                endpoint: self.endpoint.clone(),
            },
            source => line.channel_error(&self.endpoint, source),
        };
        let asking = async {
            let session = line.session.forwarding().ok_or_else(|| self.no_forwarding())?;
            match &forward.listen {
                Listen::Tcp { bind, port } => {
                    let (address, wanted) = (bind.requested().to_owned(), u32::from(*port));
                    let allocated = session.tcpip_forward(address.clone(), wanted).await.map_err(failed)?;
                    // The server names the port only if it chose it.
                    let port = if wanted == 0 { allocated } else { wanted };
                    let listener = Listener::Tcp { address, port };
                    Ok((listener, u16::try_from(port).ok()))
                }
                Listen::Unix(path) => {
                    let path = path.display().to_string();
                    session.streamlocal_forward(path.clone()).await.map_err(failed)?;
                    Ok((Listener::Unix(path), None))
                }
            }
        };
        within(self.timeout, "ask for a listener on", &self.endpoint, asking).await
    }
}

/// The line for a port that was chosen by the system, in the words of ssh.
fn allocated(forward: &Forward, port: u16) -> String {
    let side = match forward.side {
        Side::Here => "local",
        Side::There => "remote",
    };
    match &forward.target {
        ForwardTarget::Socks => format!("Allocated port {port} for dynamic forward"),
        target => format!("Allocated port {port} for {side} forward to {target}"),
    }
}

impl Local {
    fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok().map(|address| address.port()),
            Self::Unix { .. } => None,
        }
    }

    /// The next connection, and where it comes from.
    async fn next(&self) -> io::Result<(Box<dyn ByteStream>, (String, u32))> {
        match self {
            Self::Tcp(listener) => {
                let (socket, from) = listener.accept().await?;
                let _ = socket.set_nodelay(true);
                Ok((Box::new(socket), (from.ip().to_string(), from.port().into())))
            }
            Self::Unix { listener, .. } => {
                let (socket, _) = listener.accept().await?;
                Ok((Box::new(socket), ("127.0.0.1".to_owned(), 0)))
            }
        }
    }
}

/// Parts of the connection to the server that all forwarded connections share.
#[derive(Clone)]
struct Shared {
    session: Arc<Session>,
    permits: Arc<Semaphore>,
    room: Room,
    is_stall_told: Arc<AtomicBool>,
    notice: LineListener,
}

/// Accepts local connections.
async fn accept(listener: Local, target: ForwardTarget, shared: Shared) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.next() => match accepted {
                Ok((socket, from)) => {
                    if let Some(permit) = shared.permit() {
                        connections.spawn(shared.clone().outward(socket, from, target.clone(), permit));
                    }
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Takes connections from the server. One to a listener that ksync did not ask for is rejected.
async fn take(mut incoming: mpsc::Receiver<Incoming>, asked: Vec<(Listener, ForwardTarget)>, shared: Shared) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            next = incoming.recv() => {
                let Some(next) = next else { return };
                match (asked.iter().find(|(listener, _)| *listener == next.listener), shared.permit()) {
                    (Some((_, target)), Some(permit)) => {
                        connections.spawn(shared.clone().inward(next, target.clone(), permit));
                    }
                    (Some(_), None) => next.reply.reject(ChannelOpenFailure::ResourceShortage).await,
                    (None, _) => next.reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await,
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

impl Shared {
    fn permit(&self) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok();
        if permit.is_none() {
            (self.notice)(&format!("a connection was closed: {CONNECTIONS_MAX} others are open"));
        }
        permit
    }

    /// Forwards a connection to a local listener.
    async fn outward(
        self,
        mut socket: Box<dyn ByteStream>,
        from: (String, u32),
        target: ForwardTarget,
        _permit: OwnedSemaphorePermit,
    ) {
        use tokio::io::AsyncWriteExt;
        let (target, request) = match target {
            ForwardTarget::Socks => {
                // A client that breaks off, or speaks something else, needs no line.
                let Ok(request) = socks_of_socket(&mut socket).await else { return };
                (ForwardTarget::Tcp { host: request.host.clone(), port: request.port }, Some(request))
            }
            target => (target, None),
        };
        let opened = self.open(&target, from).await;
        if let Some(request) = &request {
            let _ = socket.write_all(&request.answer(opened.is_ok())).await;
        }
        match opened {
            Ok(channel) => {
                let early = request.map_or_else(Bytes::new, |request| request.early.into());
                self.carry(channel, early, socket, Bytes::new(), &target).await;
            }
            Err(error) => self.failed(&target, Side::There, &reason(&error)),
        }
    }

    /// Opens a channel to a target on the server's side.
    async fn open(
        &self,
        target: &ForwardTarget,
        (address, port): (String, u32),
    ) -> Result<Channel<Msg>, russh::Error> {
        let session = self.session.forwarding().ok_or(russh::Error::Inconsistent)?;
        match target {
            ForwardTarget::Tcp { host, port: to } => {
                session.channel_open_direct_tcpip(host.clone(), (*to).into(), address, port).await
            }
            ForwardTarget::Unix(path) => {
                session.channel_open_direct_streamlocal(path.display().to_string()).await
            }
            ForwardTarget::Socks => Err(russh::Error::Inconsistent),
        }
    }

    /// Forwards a connection to a listener on the server.
    async fn inward(self, incoming: Incoming, target: ForwardTarget, _permit: OwnedSemaphorePermit) {
        let Incoming { mut channel, reply, .. } = incoming;
        if target != ForwardTarget::Socks {
            match connect(&target).await {
                Ok(socket) => {
                    reply.accept().await;
                    self.carry(channel, Bytes::new(), socket, Bytes::new(), &target).await;
                }
                Err(error) => {
                    self.failed(&target, Side::Here, &error.to_string());
                    reply.reject(ChannelOpenFailure::ConnectFailed).await;
                }
            }
            return;
        }
        reply.accept().await;
        if let Ok(request) = socks_of_channel(&mut channel).await {
            let target = ForwardTarget::Tcp { host: request.host.clone(), port: request.port };
            let connected = connect(&target).await;
            let is_answered = channel.data_bytes(request.answer(connected.is_ok())).await.is_ok();
            match connected {
                Ok(socket) if is_answered => {
                    return self.carry(channel, Bytes::new(), socket, request.early.into(), &target).await;
                }
                Ok(_) => {}
                Err(error) => self.failed(&target, Side::Here, &error.to_string()),
            }
        }
        let _ = channel.eof().await;
        let _ = channel.close().await;
    }

    /// Carries a connection: `up` are its first bytes for the channel, and `down` for the socket.
    async fn carry(
        &self,
        channel: Channel<Msg>,
        up: Bytes,
        socket: Box<dyn ByteStream>,
        down: Bytes,
        target: &ForwardTarget,
    ) {
        let mut spool = Spool::within(self.room.clone());
        if !down.is_empty() {
            spool.push(down);
        }
        let stalled = || {
            if !self.is_stall_told.swap(true, Ordering::Relaxed) {
                (self.notice)(&format!(
                    "the connection to {target} has too much that its reader does not take: everything else waits for it"
                ));
            }
        };
        carry(channel.split(), up, socket, spool, stalled).await;
    }

    fn failed(&self, target: &ForwardTarget, side: Side, why: &str) {
        (self.notice)(&format!("could not open a connection to {target} {side}: {why}"));
    }
}

/// Connects to a target on this side.
async fn connect(target: &ForwardTarget) -> io::Result<Box<dyn ByteStream>> {
    match target {
        ForwardTarget::Tcp { host, port } => {
            let socket = TcpStream::connect((host.as_str(), *port)).await?;
            let _ = socket.set_nodelay(true);
            Ok(Box::new(socket))
        }
        ForwardTarget::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        ForwardTarget::Socks => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// The server's reason not to open a channel, in the words of ssh.
fn reason(error: &russh::Error) -> String {
    match error {
        russh::Error::ChannelOpenFailure(failure) => match failure {
            ChannelOpenFailure::ConnectFailed => "connect failed".to_owned(),
            ChannelOpenFailure::AdministrativelyProhibited => {
                "the server forbids it (AllowTcpForwarding, PermitOpen)".to_owned()
            }
            ChannelOpenFailure::ResourceShortage => "the server lacks resources".to_owned(),
            ChannelOpenFailure::UnknownChannelType => "the server cannot forward to it".to_owned(),
            ChannelOpenFailure::Other { reason, .. } => escape(reason.as_bytes()).into_owned(),
        },
        _ => "the connection to the server is lost".to_owned(),
    }
}
