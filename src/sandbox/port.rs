//! The port of a VM: what a connection passes on its way from the socket to the SSH server.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::gateway;
use super::server::Server;
use super::weather::{self, Forecast, Meter};

/// What may wait between the gateway and the SSH server on its way up, in bytes: more than the windows of ten
/// channels together. While russh writes it does not read; if this were small, two russh that both write much
/// would wait for each other for ever. sshd reads while it writes.
const PENDING_UP_MAX: usize = 32 << 20;

/// The same for the way down and for both ways between weather and gateway, in bytes: a socket's buffer.
const PENDING_MAX: usize = 256 * 1024;

/// The longest request that is read before it is refused, in bytes.
const REQUEST_MAX: usize = 16 * 1024;

/// The connections that are served at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 256;

/// What all connections to one VM share.
pub(super) struct Port {
    pub(super) server: Server,
    pub(super) meter: Arc<Meter>,
    /// For a VM that is reached by `wss:`.
    pub(super) tls: Option<TlsAcceptor>,
    /// Says for each connection what it meets.
    pub(super) forecast: Box<dyn Fn() -> Forecast + Send + Sync>,
}

/// Accepts connections and serves them until it is aborted, which ends them all.
pub(super) async fn accept(listener: TcpListener, port: Arc<Port>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((socket, _)) => {
                    port.meter.connections.fetch_add(1, Ordering::Relaxed);
                    connections.spawn(serve(socket, Arc::clone(&port)));
                }
                // Out of descriptors, most likely: some will be free again.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, from the socket to the SSH server.
async fn serve(socket: TcpStream, port: Arc<Port>) {
    let _ = socket.set_nodelay(true);
    let (weather_end, outside) = tokio::io::duplex(PENDING_MAX);
    let forecast = (port.forecast)();
    let status = forecast.status;
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
    tokio::join!(weather::carry(socket, weather_end, forecast, Arc::clone(&port.meter)), inside);
}

/// What is there to be spoken with.
async fn greet(outside: impl AsyncRead + AsyncWrite + Unpin, server: &Server, status: Option<u16>) {
    match status {
        None => speak(outside, server).await,
        // A client that is gone needs no answer.
        Some(status) => drop(refuse(outside, status).await),
    }
}

/// An HTTP server that knows of no WebSocket.
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

/// WebSocket on `outside`, SSH within it.
async fn speak(outside: impl AsyncRead + AsyncWrite + Unpin, server: &Server) {
    let (to_server, server_in) = tokio::io::duplex(PENDING_UP_MAX);
    let (server_out, from_server) = tokio::io::duplex(PENDING_MAX);
    // How a connection ended is the client's to find out, and a client's mistakes are no event here.
    let _ = tokio::join!(
        gateway::bridge(outside, from_server, to_server),
        server.serve(tokio::io::join(server_in, server_out)),
    );
}
