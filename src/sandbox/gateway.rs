//! The gateway: WebSocket on one side, plain bytes on the other.
//!
//! It behaves like `websocat --binary ws-l:… tcp:…`. It sends binary frames of at most 64 KiB,
//! answers pings but sends none, and has no half-close: if either side ends, both do.

use std::io;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};

/// Largest frame payload sent, in bytes: websocat's buffer.
const FRAME_MAX: usize = 64 * 1024;

/// Largest message accepted, in bytes. websocat accepts more; this limit only bounds the memory.
const MESSAGE_MAX: usize = 1 << 20;

/// Speaks WebSocket with the client on `outside`, and bridges it to `from_server` and `to_server`.
///
/// # Errors
/// The handshake fails, or the connection breaks without a close.
pub(super) async fn bridge<S>(
    outside: S,
    mut from_server: DuplexStream,
    mut to_server: DuplexStream,
) -> Result<(), tungstenite::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let websocket = tokio_tungstenite::accept_async_with_config(outside, Some(config())).await?;
    let (mut sink, mut stream) = websocket.split();
    let up = async {
        while let Some(message) = stream.next().await {
            match message? {
                Message::Binary(bytes) => to_server.write_all(&bytes).await?,
                Message::Text(text) => to_server.write_all(text.as_bytes()).await?,
                Message::Close(_) => break,
                // The next read writes a ping's answer.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        Ok::<(), tungstenite::Error>(())
    };
    let down = async {
        let mut buffer = bytes::BytesMut::new();
        loop {
            buffer.reserve(FRAME_MAX);
            let read = (&mut from_server).take(FRAME_MAX as u64).read_buf(&mut buffer).await?;
            if read == 0 {
                return sink.send(Message::Close(None)).await;
            }
            sink.send(Message::Binary(buffer.split().freeze())).await?;
        }
    };
    let ended = tokio::select! {
        ended = up => ended,
        ended = down => ended,
    };
    if let Ok(mut websocket) = sink.reunite(stream) {
        farewell(&mut websocket).await?;
        // The layer below may need a closing message: without TLS's own, this end would look like
        // an attack.
        let _ = websocket.get_mut().shutdown().await;
    }
    ended
}

/// Sends the rest: the last data, or the answer to the client's close.
async fn farewell<S>(websocket: &mut WebSocketStream<S>) -> Result<(), tungstenite::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match websocket.flush().await {
        Err(tungstenite::Error::ConnectionClosed) => Ok(()),
        Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(64 * 1024)
        .max_message_size(Some(MESSAGE_MAX))
        .max_frame_size(Some(MESSAGE_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_gateway_limits_frames_answers_pings_and_closes_both_ways() {
        let (outside, socket) = tokio::io::duplex(4096);
        let (mut server_out, from_server) = tokio::io::duplex(1 << 20);
        let (to_server, mut server_in) = tokio::io::duplex(1 << 20);
        let bridge = tokio::spawn(bridge(outside, from_server, to_server));
        let (mut client, _) =
            tokio_tungstenite::client_async("ws://127.0.0.1/", socket).await.expect("handshake");

        let sent = vec![7; 3 * FRAME_MAX + 1];
        server_out.write_all(&sent).await.expect("write");
        let mut received = 0;
        while received < sent.len() {
            match client.next().await.expect("open").expect("a message") {
                Message::Binary(bytes) if bytes.len() <= FRAME_MAX => received += bytes.len(),
                other => assert!(other.is_empty(), "unexpected: {} bytes", other.len()),
            }
        }

        client.send(Message::Ping("are you there".into())).await.expect("send");
        let answer = client.next().await.expect("open").expect("a message");
        assert_eq!(answer, Message::Pong("are you there".into()));

        client.send(Message::Binary("up".into())).await.expect("send");
        client.send(Message::Text("text, too".into())).await.expect("send");
        client.send(Message::Close(None)).await.expect("send");
        assert!(client.next().await.expect("open").expect("a message").is_close());
        bridge.await.expect("no panic").expect("a clean end");
        let mut up = String::new();
        server_in.read_to_string(&mut up).await.expect("read");
        assert_eq!(up, "uptext, too");
        assert!(server_out.write_all(b"late").await.is_err());
    }
}
