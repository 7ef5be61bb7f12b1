//! The gateway: WebSocket on one side, plain bytes on the other, and no idea what they mean.
//!
//! It behaves like `websocat --binary ws-l:… tcp:…`: binary frames of at most 64 KiB, pings answered but
//! never sent, no half-close (when either side ends, both do).

use std::io;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};

/// The largest payload of a frame that is sent, in bytes: websocat's buffer.
const FRAME_MAX: usize = 64 * 1024;

/// The largest message that is accepted, in bytes. websocat takes more; this only bounds the memory.
const MESSAGE_MAX: usize = 1 << 20;

/// Speaks WebSocket with the client on `outside` and bridges it to `from_server` and `to_server`.
///
/// # Errors
/// When the handshake fails, or the connection breaks otherwise than by a close.
pub(super) async fn bridge(
    outside: DuplexStream,
    mut from_server: DuplexStream,
    mut to_server: DuplexStream,
) -> Result<(), tungstenite::Error> {
    let websocket = tokio_tungstenite::accept_async_with_config(outside, Some(config())).await?;
    let (mut sink, mut stream) = websocket.split();
    let up = async {
        while let Some(message) = stream.next().await {
            match message? {
                Message::Binary(bytes) => to_server.write_all(&bytes).await?,
                Message::Text(text) => to_server.write_all(text.as_bytes()).await?,
                Message::Close(_) => break,
                // A ping's answer is written by the next read.
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
    }
    ended
}

/// Sends what is left to send: the last data, or the answer to the client's close.
async fn farewell(websocket: &mut WebSocketStream<DuplexStream>) -> Result<(), tungstenite::Error> {
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
