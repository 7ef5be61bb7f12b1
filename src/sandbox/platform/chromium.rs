//! A Chromium beside the emulator: it answers the CDP sockets of all sessions.

use std::io;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use hyper::Uri;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;

/// Most bytes of the answer to `/json/version`.
const VERSION_MAX: usize = 64 * 1024;

/// Longest wait for the connection to a Chromium.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Joins a client to the Chromium at `url`, until one of them closes. A failure closes the client's
/// socket.
pub(super) async fn join(url: &str, mut client: WebSocketStream<TokioIo<Upgraded>>) {
    if let Ok(Ok(mut chromium)) = tokio::time::timeout(CONNECT_MAX, connect(url)).await {
        loop {
            let sent = tokio::select! {
                message = client.next() => match message {
                    Some(Ok(message)) => chromium.send(message).await,
                    _ => break,
                },
                message = chromium.next() => match message {
                    Some(Ok(message)) => client.send(message).await,
                    _ => break,
                },
            };
            if sent.is_err() {
                break;
            }
        }
        let _ = chromium.close(None).await;
    }
    let _ = client.close(None).await;
}

/// Connects to a Chromium: `ws://…`, or `http://…` with the socket's URL in its `/json/version`.
async fn connect(url: &str) -> io::Result<WebSocketStream<TcpStream>> {
    let url = if url.starts_with("http://") { socket_url(url).await? } else { url.to_owned() };
    let socket = TcpStream::connect(authority(&url)?).await?;
    socket.set_nodelay(true)?;
    let (socket, _) = tokio_tungstenite::client_async(url, socket).await.map_err(io::Error::other)?;
    Ok(socket)
}

async fn socket_url(url: &str) -> io::Result<String> {
    let authority = authority(url)?;
    let mut socket = TcpStream::connect(&authority).await?;
    let request = format!("GET /json/version HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    // A Chromium may keep the connection open after its answer.
    let mut answer = Vec::with_capacity(VERSION_MAX);
    while answer.len() < VERSION_MAX && socket.read_buf(&mut answer).await? > 0 {
        let text = String::from_utf8_lossy(&answer);
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        let version = serde_json::from_str::<Value>(body).unwrap_or_default();
        if let Some(url) = version.get("webSocketDebuggerUrl").and_then(Value::as_str) {
            return Ok(url.to_owned());
        }
    }
    Err(io::Error::other("no webSocketDebuggerUrl"))
}

/// Host and port of a URL.
fn authority(url: &str) -> io::Result<String> {
    let uri: Uri = url.parse().map_err(io::Error::other)?;
    uri.authority().map(ToString::to_string).ok_or_else(|| io::Error::other("no host in the URL"))
}
