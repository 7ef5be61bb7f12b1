//! TCP forwarding of the SSH server: `direct-tcpip` for `ssh -L`, `-D` and `-W`, `tcpip-forward`
//! for `-R` (RFC 4254, section 7).
//!
//! Listeners are on loopback only, whatever address the client names. sshd does the same with its
//! default `GatewayPorts no`. All connections end with the SSH connection.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;

use super::backlog::Backlog;

/// Forwarded connections of one client at a time. `PENDING_UP_MAX` in `port` has room for their
/// windows.
pub(super) const CONNECTIONS_MAX: usize = 200;

/// Bytes read of a socket at once: the content of one SSH packet.
const READ_SIZE: usize = 32 * 1024;

/// Pause after a connection that could not be accepted, probably for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The forwards of one SSH connection. Dropping this ends them.
pub(super) struct Forwards {
    /// Listeners by the address and port of the client's request.
    listeners: HashMap<(String, u32), Vec<Listening>>,
    shared: Shared,
    /// Never sent on. Its receivers learn that it was dropped.
    _alive: watch::Sender<()>,
}

/// Parts of the SSH connection that all forwarded connections share.
#[derive(Clone)]
struct Shared {
    permits: Arc<Semaphore>,
    /// Reports an error once the SSH connection has ended.
    alive: watch::Receiver<()>,
}

/// The task of a listener; dropping this ends it.
struct Listening(JoinHandle<()>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Shared {
    fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }

    /// Runs `work` in a task of its own, at most until the SSH connection ends.
    fn spawn(&self, permit: OwnedSemaphorePermit, work: impl Future<Output = ()> + Send + 'static) {
        let mut alive = self.alive.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = work => {}
                _ = alive.changed() => {}
            }
            drop(permit);
        });
    }
}

impl Forwards {
    pub(super) fn new() -> Forwards {
        let (sender, alive) = watch::channel(());
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Forwards { listeners: HashMap::new(), shared: Shared { permits, alive }, _alive: sender }
    }

    /// Connects to `host` for the client, and answers its request for a channel.
    pub(super) async fn connect(
        &self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        host: String,
        port: u32,
    ) {
        let Some(permit) = self.shared.permit() else {
            return reply.reject(ChannelOpenFailure::ResourceShortage).await;
        };
        self.shared.spawn(permit, async move {
            let connected = match u16::try_from(port) {
                Ok(port) => TcpStream::connect((host, port)).await.ok(),
                Err(_) => None,
            };
            match connected {
                Some(socket) => {
                    reply.accept().await;
                    carry(channel, socket).await;
                }
                None => reply.reject(ChannelOpenFailure::ConnectFailed).await,
            }
        });
    }

    /// Listens for the client, and opens a channel to it for each connection. Port 0 is replaced by
    /// a free one. Returns if that succeeded.
    pub(super) async fn listen(&mut self, address: &str, port: &mut u32, session: &Handle) -> bool {
        let Ok(wanted) = u16::try_from(*port) else { return false };
        let Ok(listeners) = bind(address, wanted).await else { return false };
        let Some(Ok(bound)) = listeners.first().map(TcpListener::local_addr) else { return false };
        *port = bound.port().into();
        let key = (address.to_owned(), *port);
        let listening = listeners.into_iter().map(|listener| {
            let accepting = accept(listener, key.clone(), session.clone(), self.shared.clone());
            Listening(tokio::spawn(accepting))
        });
        let listening = listening.collect();
        self.listeners.insert(key, listening);
        true
    }

    /// Ends a listener. Its connections go on. Returns if there was one.
    pub(super) fn cancel(&mut self, address: &str, port: u32) -> bool {
        self.listeners.remove(&(address.to_owned(), port)).is_some()
    }
}

/// Listens on the loopback addresses that `address` may mean: one of them, or both.
async fn bind(address: &str, port: u16) -> std::io::Result<Vec<TcpListener>> {
    if address.parse() == Ok(Ipv6Addr::LOCALHOST) {
        return Ok(vec![TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await?]);
    }
    let first = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let port = first.local_addr()?.port();
    let mut listeners = vec![first];
    if address.parse() != Ok(Ipv4Addr::LOCALHOST) {
        // Not every machine has IPv6.
        listeners.extend(TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await);
    }
    Ok(listeners)
}

/// Accepts connections, each of which the client gets a channel for.
async fn accept(listener: TcpListener, (address, port): (String, u32), session: Handle, shared: Shared) {
    loop {
        let Ok((socket, from)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // A connection that is too many is closed.
        let Some(permit) = shared.permit() else { continue };
        let (session, address) = (session.clone(), address.clone());
        shared.spawn(permit, async move {
            let (host, from_port) = origin(from);
            let opened = session.channel_open_forwarded_tcpip(address, port, host, from_port).await;
            if let Ok(channel) = opened {
                carry(channel, socket).await;
            }
        });
    }
}

fn origin(from: SocketAddr) -> (String, u32) {
    (from.ip().to_string(), from.port().into())
}

/// Carries bytes between a channel and a socket until both directions have ended. The end of one
/// direction leaves the other one open.
async fn carry(channel: Channel<Msg>, socket: TcpStream) {
    let _ = socket.set_nodelay(true);
    let (mut reader, writer) = channel.split();
    let (from_socket, mut to_socket) = socket.into_split();
    let mut sending = pin!(async {
        let mut source = BufReader::with_capacity(READ_SIZE, from_socket);
        let mut sink = pin!(writer.make_writer());
        let _ = tokio::io::copy_buf(&mut source, &mut sink).await;
        let _ = writer.eof().await;
    });
    let (mut is_sent, mut is_ended, mut is_shut, mut is_closed) = (false, false, false, false);
    // The server drains its channels always: see `backlog`.
    let mut backlog = Backlog::default();
    let mut next = Bytes::new();
    loop {
        if next.is_empty() {
            match backlog.pop() {
                Ok(Some(bytes)) => next = bytes,
                Ok(None) if is_closed => return,
                Ok(None) if is_ended && !is_shut => {
                    is_shut = true;
                    let _ = to_socket.shutdown().await;
                }
                Ok(None) => {}
                // Lost bytes must not look like the end.
                Err(_) => break,
            }
        }
        if is_sent && is_shut {
            break;
        }
        tokio::select! {
            () = &mut sending, if !is_sent && !is_closed => is_sent = true,
            written = to_socket.write(&next), if !next.is_empty() => match written {
                Ok(written) => next.advance(written),
                Err(_) => break,
            },
            message = reader.wait(), if !is_closed => match message {
                Some(ChannelMsg::Data { data }) => {
                    if backlog.push(data).is_err() {
                        break;
                    }
                }
                Some(ChannelMsg::Eof) => is_ended = true,
                // Bytes that have arrived still go to the socket.
                Some(ChannelMsg::Close) => is_closed = true,
                Some(_) => {}
                None => return,
            },
        }
    }
    let _ = writer.close().await;
}
