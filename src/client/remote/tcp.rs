//! A stream that goes on reading while a write waits, and that detects a dead peer meanwhile.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::Sleep;

use crate::remote::error::{ConnectionStatus, RemoteError};
use crate::remote::ssh_config::AddressFamily;
use crate::remote::timeout::within;

/// Most bytes kept of waiting writes. SSH's unsolicited output fits: eight lanes with OpenSSH's
/// window of 2 MiB.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// Wait after which the stream keeps a write, if it can read something. On a healthy link no write
/// waits that long.
const KEPT_AFTER: Duration = Duration::from_secs(1);

/// Error for a host without an address of the wanted family.
const NO_ADDRESS: &str = "the host has no address of the kind that the SSH configuration asks for";

/// Bytes read ahead while a write waits.
const AHEAD_BYTES: usize = 16 << 10;

/// Connects to the first of the host's addresses that accepts, in their order.
///
/// Nagle's delay is off, because SSH sends many small packets for which somebody waits. TCP's own
/// keepalive stays off, because SSH and WebSocket both probe the connection more often than TCP
/// would.
pub(super) async fn connect(
    host: &str,
    port: u16,
    endpoint: &str,
    timeout: Duration,
) -> Result<Tcp, RemoteError> {
    connect_from(None, AddressFamily::Any, (host, port), endpoint, timeout).await
}

/// Like [`connect`], to addresses of one family, and from a local address if one is named.
pub(super) async fn connect_from(
    from: Option<&str>,
    family: AddressFamily,
    to: (&str, u16),
    endpoint: &str,
    timeout: Duration,
) -> Result<Tcp, RemoteError> {
    let connecting = async {
        let locals: Vec<SocketAddr> = match from {
            Some(from) => lookup_host((from, 0)).await?.collect(),
            None => Vec::new(),
        };
        let mut failure = io::Error::new(io::ErrorKind::AddrNotAvailable, NO_ADDRESS);
        for address in lookup_host(to).await.map_err(resolved)?.filter(|address| is_of(family, address)) {
            let local = locals.iter().find(|local| local.is_ipv4() == address.is_ipv4());
            if from.is_some() && local.is_none() {
                continue;
            }
            match connect_address(address, local).await {
                Ok(stream) => return Ok(Tcp(stream)),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    };
    let failed = |source: io::Error| RemoteError::Connect { endpoint: endpoint.into(), source };
    within(timeout, "connect to", endpoint, async { connecting.await.map_err(failed) }).await
}

fn is_of(family: AddressFamily, address: &SocketAddr) -> bool {
    match family {
        AddressFamily::Any => true,
        AddressFamily::Inet => address.is_ipv4(),
        AddressFamily::Inet6 => address.is_ipv6(),
    }
}

async fn connect_address(address: SocketAddr, local: Option<&SocketAddr>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(local) = local {
        socket.bind(*local)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Bytes of a read that may be all that the peer sends for now.
const SMALL_READ_BYTES: usize = 4 << 10;

/// A TCP connection that acknowledges small reads at once.
///
/// A relay that uses Nagle's algorithm, as websocat does and sshd did up to 10.0, holds its next
/// packet back until its last one is acknowledged. Linux delays that by up to 40 ms.
#[derive(Debug)]
pub(super) struct Tcp(TcpStream);

impl AsyncRead for Tcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(cx, buf))?;
        #[cfg(target_os = "linux")]
        if (1..SMALL_READ_BYTES).contains(&(buf.filled().len() - before)) {
            // The kernel forgets the option whenever it likes.
            let _ = rustix::net::sockopt::set_tcp_quickack(&self.0, true);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Words the error of a host name that cannot be resolved.
fn resolved(error: io::Error) -> io::Error {
    let text = error.to_string();
    match text.strip_prefix("failed to lookup address information: ") {
        Some(cause) => io::Error::other(format!("its name cannot be resolved ({})", cause.to_lowercase())),
        None => error,
    }
}

/// A connected byte stream: TCP, TLS or a pipe. As a trait object it has russh and the WebSocket
/// compiled for one type only.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> ByteStream for S {}

/// A stream below russh, which reads nothing and counts no time while it writes.
///
/// On a slow link a write may wait half a minute until the kernel or a relay has room again. The
/// other side's keepalives arrive meanwhile. This stream then keeps the write and passes it on
/// later, so russh goes on reading.
///
/// The write fails if for too long nothing arrives and nothing can be written. On a dead link
/// russh's keepalive would never fire, and the kernel gives up only after a quarter of an hour.
pub(super) struct GuardedStream<S> {
    stream: S,
    timeout: Duration,
    /// Counts the bytes received.
    connection_status: ConnectionStatus,
    /// Timer of the current waiting step, and the time that the write has waited when it fires.
    stuck: Option<Pin<Box<Sleep>>>,
    waited: Duration,
    /// Bytes that russh has written and the stream has not yet passed on.
    kept: BytesMut,
    /// Bytes read while a write waited.
    ahead: BytesMut,
    /// End or error met while reading ahead.
    end: Option<io::Result<()>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> GuardedStream<S> {
    /// Wraps `stream`. `timeout` is the timeout of a write.
    pub(super) fn new(stream: S, timeout: Duration, connection_status: ConnectionStatus) -> Self {
        let (kept, ahead) = Default::default();
        Self {
            stream,
            timeout,
            connection_status,
            stuck: None,
            waited: Duration::ZERO,
            kept,
            ahead,
            end: None,
        }
    }

    fn went_on(&mut self) {
        (self.stuck, self.waited) = (None, Duration::ZERO);
    }

    /// Passes the kept bytes on.
    fn poll_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.kept.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.kept))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.kept.advance(count);
            self.went_on();
        }
        // This frees the buffer.
        self.kept = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    /// Waits until there is something to read, or the end of the stream.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ahead.is_empty() && self.end.is_none() {
            let mut room = [0; AHEAD_BYTES];
            let mut buffer = ReadBuf::new(&mut room);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
            match read {
                Ok(()) if !buffer.filled().is_empty() => {
                    self.connection_status.heard(buffer.filled().len());
                    self.ahead.extend_from_slice(buffer.filled());
                }
                end => self.end = Some(end),
            }
        }
        Poll::Ready(())
    }

    /// Waits until the stream can read although it cannot write. Fails if for too long it could do
    /// neither.
    fn poll_stuck(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let step = KEPT_AFTER.min(self.timeout);
        let has_room = self.kept.len() < KEPT_BYTES_MAX;
        loop {
            if has_room && !self.kept.is_empty() && self.poll_ahead(cx).is_ready() {
                break;
            }
            let sleep = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(step)));
            ready!(sleep.as_mut().poll(cx));
            self.stuck = None;
            self.waited += step;
            if has_room && self.poll_ahead(cx).is_ready() {
                break;
            }
            if self.waited >= self.timeout {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        self.went_on();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for GuardedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A reader waits for reads and for the kept writes.
        if let Poll::Ready(Err(error)) = self.poll_kept(cx) {
            return Poll::Ready(Err(error));
        }
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead.split_to(count));
            return Poll::Ready(Ok(()));
        }
        match self.end.take() {
            Some(end) => Poll::Ready(end),
            None => {
                let before = buffer.filled().len();
                let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
                self.connection_status.heard(buffer.filled().len() - before);
                Poll::Ready(read)
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for GuardedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.poll_kept(cx)?.is_ready()
            && let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(cx, bytes)
        {
            self.went_on();
            return Poll::Ready(written);
        }
        ready!(self.poll_stuck(cx))?;
        let count = bytes.len().min(KEPT_BYTES_MAX - self.kept.len());
        self.kept.extend_from_slice(bytes.get(..count).unwrap_or_default());
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.poll_kept(cx)?.is_pending() {
            // The next reads pass the rest on.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.poll_kept(cx)?.is_ready()
            && let Poll::Ready(shut) = Pin::new(&mut self.stream).poll_shutdown(cx)
        {
            self.went_on();
            return Poll::Ready(shut);
        }
        // After a shutdown the reader needs no more bytes.
        match ready!(self.poll_stuck(cx)) {
            Ok(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn an_unknown_name_is_no_system_error() {
        let error = connect("no.invalid", 1, "no.invalid:1", Duration::from_secs(20)).await.unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.starts_with("its name cannot be resolved ("), "{cause}");
    }

    #[tokio::test]
    async fn a_write_that_the_peer_never_reads_times_out() {
        let (near, _far) = tokio::io::duplex(16);
        let mut near = GuardedStream::new(near, Duration::from_millis(50), ConnectionStatus::default());
        let error = near.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_waiting_write_does_not_stop_reads_and_arrives_in_order() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut near = GuardedStream::new(near, Duration::from_secs(60), ConnectionStatus::default());
        let sent: Vec<u8> = (0..200).collect();
        far.write_all(b"alive").await.unwrap();
        // The far side reads nothing.
        near.write_all(&sent[..100]).await.unwrap();
        near.flush().await.unwrap();
        let mut heard = [0; 5];
        near.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"alive");
        let mut taken = vec![0; 200];
        let taking = async {
            far.read_exact(&mut taken[..120]).await.unwrap();
            far.write_all(b"more").await.unwrap();
            far.read_exact(&mut taken[120..]).await.unwrap();
            // After this drop nothing more can arrive.
            drop(far);
        };
        let giving = async {
            near.write_all(&sent[100..]).await.unwrap();
            let mut rest = Vec::new();
            near.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"more");
        };
        tokio::join!(taking, giving);
        assert_eq!(taken, sent);
    }

    #[tokio::test]
    async fn the_reader_learns_of_a_dead_peer_after_its_last_bytes() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut near = GuardedStream::new(near, Duration::from_secs(60), ConnectionStatus::default());
        far.write_all(b"bye").await.unwrap();
        near.write_all(&[0; 64]).await.unwrap();
        drop(far);
        let mut heard = Vec::new();
        let error = near.read_to_end(&mut heard).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
