//! A WebSocket as a byte stream.
//!
//! One task owns the socket and joins it to an in-memory pipe. SSH reads and writes the other end
//! of the pipe. The task therefore sends pings, and answers the other side's, whatever SSH is
//! waiting for. No send is ever cancelled halfway.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::Uri;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::remote::error::{ConnectionStatus, DisconnectReason, RemoteError};
use crate::remote::tcp::ByteStream;
use crate::remote::upgrade::upgrade;
use crate::tree::path::escape;

/// Largest message that ksync sends: websocat's buffer size. Larger messages are no faster and
/// delay pings.
const SENT_MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Largest message that ksync accepts. This is ample, because a bridge sends the bytes of one read.
const RECEIVED_MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// Limit of the WebSocket's own write buffer, which holds one message at a time. A limit near a
/// message's size would end the connection with "Write buffer is full" instead of slowing it down.
const WRITE_BUFFER_BYTES_MAX: usize = 8 * SENT_MESSAGE_BYTES_MAX;

/// Capacity of the pipe between SSH and the socket's task, in each direction.
const PIPE_BYTES: usize = 4 * SENT_MESSAGE_BYTES_MAX;

/// Delay of the first ping after the last data.
const FIRST_PING: Duration = Duration::from_secs(1);

/// Overrun of a timeout that means that this process was stopped.
const SUSPENDED: Duration = Duration::from_secs(4);

/// Pings per silence timeout, so that a lost or late one does no harm.
const PINGS_PER_SILENCE: u32 = 3;

/// A parsed WebSocket URL.
pub(super) struct Address {
    uri: Uri,
    /// True for `wss`.
    pub(super) encrypted: bool,
    /// The host, without the brackets of an IPv6 address.
    pub(super) host: String,
    /// The port of the URL, or the scheme's default.
    pub(super) port: u16,
}

impl Address {
    /// Parses `url`. A user name or password in it is an error, because nothing would use it.
    pub(super) fn parse(url: &str) -> Result<Self, RemoteError> {
        let wrong = |reason: &str| RemoteError::Url { reason: reason.into() };
        let uri: Uri = url.parse().map_err(|_| wrong("it is not a URL"))?;
        let encrypted = match uri.scheme_str() {
            Some("wss") => true,
            Some("ws") => false,
            _ => return Err(wrong("it begins with neither wss:// nor ws://")),
        };
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(wrong("it holds a user name"));
        }
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(wrong("it has no host"));
        }
        let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        Ok(Self { uri, encrypted, host, port })
    }

    /// The address for display, without path and query, because they may hold a token.
    pub(super) fn endpoint(&self) -> String {
        let scheme = if self.encrypted { "wss" } else { "ws" };
        let host = escape(self.host.as_bytes());
        if host.contains(':') {
            format!("{scheme}://[{host}]:{}", self.port)
        } else {
            format!("{scheme}://{host}:{}", self.port)
        }
    }
}

/// Opens a WebSocket over `stream`. Returns the near end of the pipe, and the task that owns the
/// socket. The task ends when the pipe or the socket ends.
pub(super) async fn open(
    address: &Address,
    mut stream: Box<dyn ByteStream>,
    silence: Duration,
    connection_status: ConnectionStatus,
) -> Result<(DuplexStream, JoinHandle<()>), RemoteError> {
    let endpoint = address.endpoint();
    let failed = |error| match error {
        // The client follows no redirect: one from wss:// to ws:// would circumvent TLS.
        Error::Http(response) if response.status().is_redirection() => {
            RemoteError::Redirected { endpoint: endpoint.clone(), status: response.status().as_u16() }
        }
        Error::Http(response) => RemoteError::no_websocket(&endpoint, response.status().as_u16()),
        error => RemoteError::WebSocket { endpoint: endpoint.clone(), source: Box::new(error) },
    };
    let request = address.uri.clone().into_client_request().map_err(failed)?;
    let config = WebSocketConfig::default()
        .read_buffer_size(32 * 1024)
        .write_buffer_size(SENT_MESSAGE_BYTES_MAX)
        .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
        .max_message_size(Some(RECEIVED_MESSAGE_BYTES_MAX))
        .max_frame_size(Some(RECEIVED_MESSAGE_BYTES_MAX));
    let read = upgrade(&mut stream, request).await.map_err(failed)?;
    let socket = WebSocketStream::from_partially_read(stream, read, Role::Client, Some(config)).await;
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let task = tokio::spawn(own(socket, far, silence, connection_status));
    Ok((near, task))
}

/// Carries bytes both ways until either end closes, and stores the disconnect reason.
async fn own(
    socket: WebSocketStream<Box<dyn ByteStream>>,
    pipe: DuplexStream,
    silence: Duration,
    connection_status: ConnectionStatus,
) {
    let (mut sink, mut stream) = socket.split();
    let (mut pipe_reader, mut pipe_writer) = tokio::io::split(pipe);
    let reason = {
        let heard = AtomicBool::new(false);
        let pings = Pings::new(silence / PINGS_PER_SILENCE);
        tokio::select! {
            reason = receive(&mut stream, &mut pipe_writer, silence, &heard) => reason,
            sent = send(&mut pipe_reader, &mut sink, pings, &heard) => match sent {
                // The other side's answer to this close would take a round trip and tell nothing
                // new: SSH has already disconnected.
                Ok(()) => DisconnectReason::Broken("the connection was closed by this side".into()),
                Err(error) => broken(&error),
            },
        }
    };
    // Store the reason before the pipe ends, so that whoever sees the pipe's end finds it.
    connection_status.settle(reason);
}

/// Ping schedule: the first ping soon after data stopped coming, then ever longer intervals.
///
/// websocat 1.14 forgets to flush after its socket was full. The last bytes from a server may then
/// stay in websocat until it writes something else. The answer to a ping makes it write.
struct Pings {
    tick: Duration,
    /// Most ticks between two pings.
    ticks_max: u32,
    wait_ticks: u32,
    left_ticks: u32,
}

impl Pings {
    /// Makes a schedule with at least one ping per `interval`.
    fn new(interval: Duration) -> Self {
        let tick = interval.min(FIRST_PING).max(Duration::from_millis(1));
        let ticks = interval.as_millis() / tick.as_millis();
        Self { tick, ticks_max: u32::try_from(ticks).unwrap_or(u32::MAX), wait_ticks: 1, left_ticks: 1 }
    }

    /// Reports if this tick sends a ping. `heard` tells if data came since the last tick.
    fn is_due(&mut self, heard: bool) -> bool {
        if heard {
            (self.wait_ticks, self.left_ticks) = (1, 1);
            return false;
        }
        self.left_ticks = self.left_ticks.saturating_sub(1);
        if self.left_ticks > 0 {
            return false;
        }
        self.wait_ticks = self.wait_ticks.saturating_mul(2).min(self.ticks_max).max(1);
        self.left_ticks = self.wait_ticks;
        true
    }
}

/// Copies from SSH to the socket, with pings in between. Returns `Ok` at the end of SSH's output.
async fn send<R, W>(pipe: &mut R, sink: &mut W, mut pings: Pings, heard: &AtomicBool) -> Result<(), Error>
where
    R: AsyncRead + Unpin,
    W: Sink<Message, Error = Error> + Unpin,
{
    let mut ticks = interval_at(Instant::now() + pings.tick, pings.tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(SENT_MESSAGE_BYTES_MAX);
        let mut room = (&mut buffer).limit(SENT_MESSAGE_BYTES_MAX);
        let message = tokio::select! {
            read = pipe.read_buf(&mut room) => match read {
                Ok(0) | Err(_) => return sink.close().await,
                Ok(_) => Message::Binary(buffer.split().freeze()),
            },
            _ = ticks.tick() => {
                if !pings.is_due(heard.swap(false, Ordering::Relaxed)) {
                    continue;
                }
                Message::Ping(Bytes::new())
            }
        };
        // This waits until the socket took the message, so the write buffer never holds more than
        // one.
        sink.send(message).await?;
    }
}

/// Copies from the socket to SSH, until the socket ends or falls silent.
async fn receive<R, W>(
    stream: &mut R,
    pipe: &mut W,
    silence: Duration,
    heard: &AtomicBool,
) -> DisconnectReason
where
    R: Stream<Item = Result<Message, Error>> + Unpin,
    W: AsyncWrite + Unpin,
{
    loop {
        // Only the wait for the socket counts as silence. The wait for SSH to take the bytes does
        // not.
        let begun = Instant::now();
        let message = match timeout(silence, stream.next()).await {
            // This process was stopped meanwhile, and the socket may hold unread data.
            Err(_) if begun.elapsed() > silence + SUSPENDED => continue,
            Err(_) => return DisconnectReason::Silence(silence),
            Ok(None) => return DisconnectReason::Broken("the WebSocket ended".into()),
            Ok(Some(Err(error))) => return broken(&error),
            Ok(Some(Ok(message))) => message,
        };
        match message {
            Message::Binary(bytes) => {
                heard.store(true, Ordering::Relaxed);
                if pipe.write_all(&bytes).await.is_err() {
                    return DisconnectReason::Broken("the connection was closed by this side".into());
                }
            }
            Message::Close(frame) => {
                let reason =
                    frame.map(|frame| format!(" ({} {})", frame.code, escape(frame.reason.as_bytes())));
                return DisconnectReason::Broken(format!(
                    "the bridge closed the WebSocket{}",
                    reason.unwrap_or_default()
                ));
            }
            Message::Text(_) => {
                return DisconnectReason::Broken(
                    "the bridge sent text: it must be run in binary mode".into(),
                );
            }
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }
}

fn broken(error: &Error) -> DisconnectReason {
    DisconnectReason::Broken(escape(error.to_string().as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_come_soon_after_data_and_ever_more_rarely() {
        let mut pings = Pings::new(Duration::from_secs(20));
        let mut due = |heard| pings.is_due(heard);
        assert!(!due(true) && !due(true));
        let times: Vec<_> = (1..=100).filter(|_| due(false)).collect();
        assert_eq!(times, [1, 3, 7, 15, 31, 51, 71, 91]);
        assert!(!due(true) && due(false), "a second after the data");
    }

    #[test]
    fn an_endpoint_shows_no_token() {
        let address = Address::parse("wss://example.com/path?jwt=secret").unwrap();
        assert_eq!(address.endpoint(), "wss://example.com:443");
        let address = Address::parse("ws://[::1]:2222").unwrap();
        assert_eq!((address.endpoint().as_str(), address.host.as_str()), ("ws://[::1]:2222", "::1"));
    }

    #[test]
    fn only_websocket_urls_are_taken() {
        for url in
            ["https://example.com", "example.com", "wss://", "wss://me:secret@example.com", "wss://a b"]
        {
            let error = Address::parse(url).map(|_| ()).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
