//! The port of a VM: the layers of a connection from the socket to the SSH server.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::gateway;
use super::link_conditions::{self, ConnectionConditions, Meter};
use super::server::Server;

/// Buffer between the gateway and the SSH server on the way up, in bytes: more than the windows of
/// ten sessions and 200 forwarded connections together. It grows as needed. russh does not read
/// while it writes. With a small buffer, two russh ends that both write much would deadlock. sshd
/// reads while it writes.
const PENDING_UP_MAX: usize = 512 << 20;

/// Buffer of the way down, and of both ways between link and gateway, in bytes: a socket's buffer.
const PENDING_MAX: usize = 256 * 1024;

/// Most bytes read of a request before it is refused.
const REQUEST_MAX: usize = 16 * 1024;

/// Connections served at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 256;

/// State shared by all connections to one VM.
pub(super) struct Port {
    pub(super) server: Inside,
    pub(super) meter: Arc<Meter>,
    /// TLS for a VM with a `wss:` URL.
    pub(super) tls: Option<TlsAcceptor>,
    /// Makes the conditions of each connection.
    pub(super) conditions: Box<dyn Fn() -> ConnectionConditions + Send + Sync>,
}

/// The SSH server of a VM.
pub(super) enum Inside {
    Own(Server),
    /// A real sshd, on this port of 127.0.0.1.
    Sshd(u16),
}

impl Inside {
    /// Speaks SSH on `stream` until either side ends the connection.
    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        match self {
            // The client sees how the connection ended, and its mistakes are no event here.
            Self::Own(server) => drop(server.serve(stream).await),
            Self::Sshd(port) => {
                let Ok(mut sshd) = TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await else { return };
                let _ = sshd.set_nodelay(true);
                let _ = copy_bidirectional(&mut stream, &mut sshd).await;
            }
        }
    }
}

/// Accepts and serves connections. Aborting the task ends them all.
pub(super) async fn accept(listener: TcpListener, port: Arc<Port>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((socket, _)) => {
                    port.meter.connections.fetch_add(1, Ordering::Relaxed);
                    connections.spawn(serve(socket, Arc::clone(&port)));
                }
                // The process is probably out of file descriptors; some will be free again.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves one connection, from the socket to the SSH server.
async fn serve(socket: TcpStream, port: Arc<Port>) {
    let _ = socket.set_nodelay(true);
    let (link_end, outside) = tokio::io::duplex(PENDING_MAX);
    let conditions = (port.conditions)();
    let status = conditions.status;
    let inside = async {
        match &port.tls {
            None => greet(outside, &port.server, status).await,
            Some(tls) => {
                if let Ok(outside) = tls.accept(outside).await {
                    greet(outside, &port.server, status).await;
                }
            }
        }
    };
    tokio::join!(link_conditions::carry(socket, link_end, conditions, Arc::clone(&port.meter)), inside);
}

/// Speaks with the gateway, or with an HTTP server if there is a status.
async fn greet(outside: impl AsyncRead + AsyncWrite + Unpin, server: &Inside, status: Option<u16>) {
    match status {
        None => speak(outside, server).await,
        // If the client is gone, it needs no answer.
        Some(status) => drop(refuse(outside, status).await),
    }
}

/// Answers as an HTTP server without WebSocket.
async fn refuse(mut outside: impl AsyncRead + AsyncWrite + Unpin, status: u16) -> io::Result<()> {
    let mut request = BytesMut::new();
    while !request.ends_with(b"\r\n\r\n") && request.len() < REQUEST_MAX {
        if outside.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let answer = format!("HTTP/1.1 {status} \r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    outside.write_all(answer.as_bytes()).await?;
    outside.shutdown().await
}

/// Speaks WebSocket on `outside`, and SSH within it.
async fn speak(outside: impl AsyncRead + AsyncWrite + Unpin, server: &Inside) {
    let (to_server, server_in) = tokio::io::duplex(PENDING_UP_MAX);
    let (server_out, from_server) = tokio::io::duplex(PENDING_MAX);
    let _ = tokio::join!(
        gateway::bridge(outside, from_server, to_server),
        server.serve(tokio::io::join(server_in, server_out)),
    );
}
