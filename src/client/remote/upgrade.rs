//! The HTTP request that turns a connection into a WebSocket.
//!
//! tungstenite's own handshake takes `Connection: keep-alive, Upgrade` for a refusal, which proxies
//! send and RFC 6455 (section 4.1) allows.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::client::{Request, Response, generate_request};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::handshake::machine::TryParse;
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::http::header::{HeaderMap, HeaderName};

/// Longest head of a response, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Bytes of one read.
const READ_BYTES: usize = 4096;

/// Sends `request` and checks the response. Returns the bytes that were read after its head: they
/// belong to the WebSocket.
///
/// # Errors
/// [`Error::Http`] with the response and its first bytes if the server did not switch protocols.
pub(super) async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    request: Request,
) -> Result<Vec<u8>, Error> {
    let (request, key) = generate_request(request)?;
    stream.write_all(&request).await?;
    stream.flush().await?;
    let mut head = Vec::new();
    loop {
        if let Some((length, mut response)) = Response::try_parse(&head)? {
            let rest = head.split_off(length.min(head.len()));
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                return check(response.headers(), &key).map(|()| rest).map_err(Error::Protocol);
            }
            *response.body_mut() = Some(rest);
            return Err(Error::Http(Box::new(response)));
        }
        if head.len() > HEAD_BYTES_MAX {
            return Err(Error::Capacity(CapacityError::TooManyHeaders));
        }
        let mut buffer = [0; READ_BYTES];
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Err(Error::Protocol(ProtocolError::HandshakeIncomplete));
        }
        head.extend_from_slice(buffer.get(..count).unwrap_or_default());
    }
}

/// Checks the headers of a response that switches protocols.
fn check(headers: &HeaderMap, key: &str) -> Result<(), ProtocolError> {
    let has = |name: &str, token: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
    };
    if !has("upgrade", "websocket") {
        return Err(ProtocolError::MissingUpgradeWebSocketHeader);
    }
    if !has("connection", "upgrade") {
        return Err(ProtocolError::MissingConnectionUpgradeHeader);
    }
    if headers.get("sec-websocket-accept").is_none_or(|accept| accept != &derive_accept_key(key.as_bytes())) {
        return Err(ProtocolError::SecWebSocketAcceptKeyMismatch);
    }
    // The request asked for neither, and the bytes would mean something else.
    let is_foreign =
        |name: &&HeaderName| matches!(name.as_str(), "sec-websocket-protocol" | "sec-websocket-extensions");
    match headers.keys().find(is_foreign) {
        Some(name) => Err(ProtocolError::InvalidHeader(Box::new(name.clone()))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;

    use super::*;

    /// Answers a request with this head, in which `ACCEPT` stands for the right value.
    async fn answered(head: &str) -> Result<Vec<u8>, Error> {
        let (mut near, mut far) = tokio::io::duplex(64);
        let serving = async {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(far.read_u8().await.unwrap());
            }
            let request = String::from_utf8(request).unwrap();
            let key = request.split("Sec-WebSocket-Key: ").nth(1).unwrap().split("\r\n").next().unwrap();
            let head = head.replace("ACCEPT", &derive_accept_key(key.as_bytes()));
            far.write_all(head.as_bytes()).await.unwrap();
            drop(far);
        };
        let request = "ws://vm:1/".into_client_request().unwrap();
        tokio::join!(serving, upgrade(&mut near, request)).1
    }

    #[tokio::test]
    async fn a_list_of_connection_options_is_understood() {
        for (connection, upgrade) in [
            ("Upgrade", "websocket"),
            ("keep-alive, Upgrade", "WebSocket"),
            ("upgrade,close", "h2c, websocket"),
        ] {
            let head = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: {connection}\r\nUpgrade: {upgrade}\r\n\
                 Sec-WebSocket-Accept: ACCEPT\r\n\r\nrest"
            );
            assert_eq!(answered(&head).await.unwrap(), b"rest", "{connection}");
        }
    }

    #[tokio::test]
    async fn other_answers_are_refused() {
        let good = "HTTP/1.1 101 OK\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ACCEPT\r\n";
        for head in [
            format!("{}\r\n", good.replace("Connection: Upgrade", "Connection: keep-alive")),
            format!("{}\r\n", good.replace("Upgrade: websocket", "Upgrade: h2c")),
            format!("{}\r\n", good.replace("ACCEPT", "c2hlIGlzIG5vdA==")),
            format!("{good}Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
            format!("{good}Sec-WebSocket-Protocol: chat\r\n\r\n"),
            good.to_owned(),
        ] {
            assert!(matches!(answered(&head).await, Err(Error::Protocol(_))), "{head}");
        }
        let refusal = answered("HTTP/1.1 502 Bad Gateway\r\nServer: x\r\n\r\n<html>").await.unwrap_err();
        let Error::Http(response) = refusal else { panic!("{refusal}") };
        assert_eq!((response.status().as_u16(), response.body().as_deref()), (502, Some(&b"<html>"[..])));
    }
}
