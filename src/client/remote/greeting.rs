//! A server's first bytes, from which its protocol is recognised.
//!
//! A port of the wrong protocol often answers nothing that its protocol's parser could explain, or
//! nothing at all. [`Greeted`] keeps the first bytes below all parsers, and fails at once if they
//! belong to another protocol. A silent port is asked what it speaks.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::remote::error::{DisconnectReason, RemoteError, is_cut};
use crate::remote::protocol::{Protocol, Wanted, first_line};
use crate::remote::tls::Tls;
use crate::remote::tls_error::TlsError;

/// Bytes kept of a server's first bytes.
const KEPT_BYTES_MAX: usize = 1024;

/// Silence after which a port is asked for its protocol. An SSH server greets at once, and a TLS
/// server answers within a round trip.
const SILENCE: Duration = Duration::from_secs(2);

/// The port of SSH.
const SSH_PORT: u16 = 22;

/// Timeout for the answer to such a question, and for the rest of the answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const BODY_TIMEOUT: Duration = Duration::from_millis(200);

/// The first bytes of a server, for the code that explains an error.
#[derive(Debug, Clone, Default)]
pub(super) struct Greeting(Arc<Mutex<Vec<u8>>>);

impl Greeting {
    fn hear(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = KEPT_BYTES_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The identification of an SSH server.
    pub(super) fn ssh_id(&self) -> Option<String> {
        let bytes = self.bytes();
        let mut lines = bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
        let line = lines.find(|line| line.starts_with(b"SSH-"))?;
        Some(String::from_utf8_lossy(line.trim_ascii_end()).into_owned())
    }

    /// Reports if the server has sent nothing so far.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    /// The server's protocol, if it is known not to be the one that `wanted` needs.
    pub(super) fn other_than(&self, wanted: Wanted) -> Option<Protocol> {
        Protocol::of(&self.bytes()).filter(|protocol| !wanted.allows(protocol))
    }

    /// Reports if the server's protocol is known.
    fn is_known(&self) -> bool {
        Protocol::of(&self.bytes()).is_some()
    }

    /// The first line that the server sent, if it tells no protocol.
    fn unknown_line(&self) -> Option<String> {
        let bytes = self.bytes();
        (!bytes.trim_ascii().is_empty()).then(|| first_line(&bytes))
    }

    /// The status of an HTTP answer, other than the one that opens a WebSocket.
    fn status(&self) -> Option<u16> {
        let bytes = self.bytes();
        let line = std::str::from_utf8(bytes.split(|&byte| byte == b'\r').next()?).ok()?;
        let status = line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
        (status != 101).then_some(status)
    }

    /// Reports if the server complains that it got HTTP where it speaks TLS. Web servers answer
    /// this in plain text, within 400 Bad Request.
    pub(super) fn asks_for_tls(&self) -> bool {
        let text = self.bytes().to_ascii_lowercase();
        let says = |what: &str| text.windows(what.len()).any(|part| part == what.as_bytes());
        text.starts_with(b"http/1.") && says(" 400 ") && (says("https") || says("ssl-enabled"))
    }
}

/// A stream that keeps the first bytes of the server. Reading fails as soon as they belong to
/// another protocol than the wanted one.
pub(super) struct Greeted<S> {
    stream: S,
    greeting: Greeting,
    wanted: Wanted,
    is_known: bool,
}

impl<S> Greeted<S> {
    /// Wraps a stream from which nothing was read yet.
    pub(super) fn new(stream: S, wanted: Wanted) -> (Self, Greeting) {
        let greeting = Greeting::default();
        (Self { stream, greeting: greeting.clone(), wanted, is_known: false }, greeting)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        if !self.is_known {
            self.greeting.hear(buffer.filled().get(before..).unwrap_or_default());
            if self.greeting.other_than(self.wanted).is_some() {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            let bytes = self.greeting.bytes();
            self.is_known = bytes.len() == KEPT_BYTES_MAX
                || Protocol::of(&bytes).is_some_and(|protocol| protocol != Protocol::Http);
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Waits until the server has been silent for a while, and then asks its port over a connection of
/// its own if it speaks HTTP. Returns only if it does. Sends neither path nor query, because they
/// may hold a token.
pub(super) async fn speaks_http(greeting: &Greeting, port: Option<(&str, u16)>, round_trip: Duration) {
    tokio::time::sleep(SILENCE.max(4 * round_trip)).await;
    let answer = match port.filter(|_| greeting.is_empty()) {
        Some(port) => ask_http(port).await,
        None => None,
    };
    if answer != Some(Protocol::Http) {
        std::future::pending::<()>().await;
    }
}

/// Asks a port for a WebSocket, without TLS.
async fn ask_http((host, port): (&str, u16)) -> Option<Protocol> {
    let asking = async {
        let (mut stream, greeting) = Greeted::new(TcpStream::connect((host, port)).await.ok()?, Wanted::Ws);
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: a3N5bmMga25vY2tzLi4uLg==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut room = [0; KEPT_BYTES_MAX];
        let _ = stream.read(&mut room).await;
        // A port that speaks TLS complains in the body, which may come later than the status.
        let _ = tokio::time::timeout(BODY_TIMEOUT, stream.read(&mut room)).await;
        if greeting.asks_for_tls() {
            return Some(Protocol::Tls);
        }
        Protocol::of(&greeting.bytes())
    };
    tokio::time::timeout(ASK_TIMEOUT, asking).await.ok().flatten()
}

/// Asks a port for TLS. Its certificate does not matter.
async fn ask_tls((host, port): (&str, u16)) -> Option<Protocol> {
    let asking = async {
        let tls = Tls::new(None, host).ok()?;
        let stream = TcpStream::connect((host, port)).await.ok()?;
        let (stream, greeting) = Greeted::new(stream, Wanted::Wss);
        let _ = tls.connect(host, stream, host).await;
        Protocol::of(&greeting.bytes())
    };
    tokio::time::timeout(ASK_TIMEOUT, asking).await.ok().flatten()
}

/// Replaces the error of a parser by what the server's first bytes tell, if they tell anything.
pub(super) async fn explain(
    error: RemoteError,
    greeting: &Greeting,
    wanted: Wanted,
    port: Option<(&str, u16)>,
) -> RemoteError {
    let (endpoint, is_closed) = match &error {
        RemoteError::NoWebSocket { endpoint, .. } | RemoteError::WebSocket { endpoint, .. }
            if greeting.asks_for_tls() =>
        {
            let (endpoint, protocol) = (endpoint.clone(), Protocol::Tls);
            return RemoteError::OtherProtocol { endpoint, wanted, protocol };
        }
        RemoteError::Tls { endpoint, source } if !source.is_about_trust() => {
            (endpoint, matches!(source, TlsError::Io(error) if is_cut(error)))
        }
        // The parser refuses the answers of HTTP/1.0 before it reads their status.
        RemoteError::WebSocket { endpoint, .. } => match greeting.status() {
            Some(status) => return RemoteError::no_websocket(endpoint, status),
            None => (endpoint, error.was_cut()),
        },
        // Before its greeting, an SSH server can do no more than say a line and close.
        RemoteError::Handshake { endpoint, .. } => (endpoint, true),
        RemoteError::Lost { endpoint, source } => (endpoint, matches!(source, DisconnectReason::Broken(_))),
        RemoteError::TimedOut { endpoint, .. } => (endpoint, false),
        _ => return error,
    };
    let endpoint = endpoint.clone();
    if let Some(protocol) = greeting.other_than(wanted) {
        return RemoteError::OtherProtocol { endpoint, wanted, protocol };
    }
    match (is_closed, greeting.unknown_line()) {
        _ if greeting.is_known() => return error,
        (false, None) => return error,
        (false, Some(line)) => {
            return RemoteError::OtherProtocol { endpoint, wanted, protocol: Protocol::Line(line) };
        }
        (true, Some(line)) => return RemoteError::ClosedAtOnce { endpoint, wanted, said: Some(line) },
        (true, None) => {}
    }
    // Many servers close a connection that begins in a foreign protocol.
    let answer = match (wanted, port) {
        (Wanted::Ws, Some(port)) => ask_tls(port).await,
        (Wanted::Wss, Some(port)) => ask_http(port).await,
        // On its own port an SSH server that closes is too busy for questions.
        (Wanted::Ssh, Some(port)) if port.1 != SSH_PORT => {
            let (tls, http) = tokio::join!(ask_tls(port), ask_http(port));
            tls.or(http)
        }
        _ => None,
    };
    match answer.filter(|protocol| !wanted.allows(protocol)) {
        Some(protocol) => RemoteError::OtherProtocol { endpoint, wanted, protocol },
        None => RemoteError::ClosedAtOnce { endpoint, wanted, said: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_web_server_that_wants_tls_is_recognised() {
        for (answer, expected) in [
            (
                "HTTP/1.1 400 Bad Request\r\n\r\n<title>400 The plain HTTP request was sent to HTTPS port",
                true,
            ),
            ("HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n", true),
            ("HTTP/1.1 400 Bad Request\r\n\r\nyou're speaking plain HTTP to an SSL-enabled server", true),
            ("HTTP/1.1 400 Bad Request\r\n\r\n", false),
            ("HTTP/1.1 301 Moved\r\nLocation: https://a\r\n\r\n", false),
        ] {
            let greeting = Greeting::default();
            greeting.hear(answer.as_bytes());
            assert_eq!(greeting.asks_for_tls(), expected, "{answer}");
        }
    }

    #[tokio::test]
    async fn a_stream_of_another_protocol_fails_at_once() {
        for (greeting, wanted, fails) in [
            ("SSH-2.0-x\r\n", Wanted::Ssh, false),
            ("hello\r\nSSH-2.0-x\r\n", Wanted::Ssh, false),
            ("220 mail\r\n", Wanted::Ssh, true),
            ("SSH-2.0-x\r\n", Wanted::Ws, true),
            ("HTTP/1.1 101\r\n", Wanted::Ws, false),
            ("HTTP/1.1 400\r\n", Wanted::Wss, true),
        ] {
            let (near, mut far) = tokio::io::duplex(100);
            let (mut stream, _) = Greeted::new(near, wanted);
            far.write_all(greeting.as_bytes()).await.unwrap();
            let mut heard = vec![0; 100];
            assert_eq!(stream.read(&mut heard).await.is_err(), fails, "{greeting:?} {wanted:?}");
        }
    }
}
