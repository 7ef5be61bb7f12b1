//! The sockets of `cdp_ws_url` and `webdriver_ws_url`. While one is open, the session is active.
//!
//! CDP is spoken by a Chromium, if the platform has one (see `chromium`). Without one the socket
//! answers `Browser.getVersion` and `Target.getTargets`, and an error for any other command.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderMap, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::answer::{Answer, PlatformError, empty, json_answer, set};
use super::chromium;
use super::cloud::Cloud;
use super::faults::Fault;
use super::host::Host;
use super::session::Session;

/// Lifetime of such a socket, in the platform's time.
const AGE_MAX: Duration = Duration::from_secs(60 * 60);

/// Name of the browser that is not there.
const PRODUCT: &str = "Chrome/0.0.0.0";

const USER_AGENT: &str = "Mozilla/5.0 (X11; Linux x86_64) ksync-sandbox";

const PROTOCOL: &str = "1.3";

/// Error codes of JSON-RPC.
const PARSE_ERROR: i64 = -32_700;
const METHOD_NOT_FOUND: i64 = -32_601;

/// A connected client. The session is active until this is dropped.
struct Presence {
    host: Arc<Host>,
    session: Arc<Session>,
}

impl Presence {
    fn new(host: Arc<Host>, session: Arc<Session>) -> Presence {
        session.join();
        Presence { host, session }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.session.leave(self.host.time.now());
    }
}

/// Answers the request for a socket. `at` is the session whose own address the request came to;
/// otherwise the token names the session.
pub(super) async fn accept(
    cloud: &Arc<Cloud>,
    request: Request<Incoming>,
    at: Option<String>,
    fault: Option<Fault>,
) -> Result<Answer, PlatformError> {
    let session = session_of(cloud, &request, at)?;
    let is_cdp = request.uri().path().ends_with("cdp");
    let key = upgrade_key(request.headers())
        .ok_or_else(|| PlatformError::bad_request("a WebSocket is expected"))?;
    let mut answer = empty(StatusCode::SWITCHING_PROTOCOLS);
    set(&mut answer, CONNECTION, "Upgrade");
    set(&mut answer, UPGRADE, "websocket");
    set(&mut answer, SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key.as_bytes()));
    let presence = Presence::new(Arc::clone(&cloud.host), session);
    let after = fault.and_then(|fault| fault.after_seconds).map_or(AGE_MAX, Duration::from_secs);
    let due = cloud.host.time.now().saturating_add(after);
    tokio::spawn(async move {
        let held = async {
            if let Ok(upgraded) = hyper::upgrade::on(request).await {
                hold(upgraded, &presence, is_cdp).await;
            }
        };
        tokio::select! {
            () = held => {}
            () = presence.host.time.sleep_until(due) => {}
            () = presence.session.over() => {}
        }
    });
    Ok(answer)
}

/// The key of a WebSocket handshake, if the request is one.
fn upgrade_key(headers: &HeaderMap) -> Option<String> {
    let asks = headers.get(UPGRADE)?.to_str().ok()?.eq_ignore_ascii_case("websocket");
    asks.then_some(())?;
    Some(headers.get(SEC_WEBSOCKET_KEY)?.to_str().ok()?.to_owned())
}

/// `GET /json/version`: what a client asks for before it connects.
pub(super) fn version(
    cloud: &Cloud,
    request: &Request<Incoming>,
    at: Option<String>,
) -> Result<Answer, PlatformError> {
    let session = session_of(cloud, request, at)?;
    let value = json!({
        "Browser": PRODUCT,
        "Protocol-Version": PROTOCOL,
        "User-Agent": USER_AGENT,
        "webSocketDebuggerUrl": session.cdp_url,
    });
    Ok(json_answer(StatusCode::OK, &value))
}

fn session_of(
    cloud: &Cloud,
    request: &Request<Incoming>,
    at: Option<String>,
) -> Result<Arc<Session>, PlatformError> {
    match at {
        Some(id) => cloud.session(&id),
        None => cloud.session_of_token(request.uri().query()),
    }
}

/// Answers commands, pings and the close, until the client is gone.
async fn hold(upgraded: Upgraded, presence: &Presence, is_cdp: bool) {
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    if let Some(chromium) = presence.host.chromium.as_ref().filter(|_| is_cdp) {
        chromium::join(chromium, socket).await;
        return;
    }
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Text(command) = message {
            let answer = if is_cdp { answer(&presence.session, &command) } else { bidi_error(&command) };
            if socket.send(Message::text(answer.to_string())).await.is_err() {
                return;
            }
        }
    }
}

/// The answer to a CDP command.
fn answer(session: &Session, command: &str) -> Value {
    let Ok(command) = serde_json::from_str::<Value>(command) else {
        return json!({ "error": { "code": PARSE_ERROR, "message": "JSON: parse error" } });
    };
    let method = command.get("method").and_then(Value::as_str).unwrap_or_default();
    let mut answer = match method {
        "Browser.getVersion" => json!({ "result": {
            "protocolVersion": PROTOCOL,
            "product": PRODUCT,
            "revision": "@0",
            "userAgent": USER_AGENT,
            "jsVersion": "0.0",
        } }),
        "Target.getTargets" => {
            let url = session.wish().properties.text("start_url").unwrap_or("about:blank").to_owned();
            json!({ "result": { "targetInfos": [{
                "targetId": session.id,
                "type": "page",
                "title": url,
                "url": url,
                "attached": false,
                "canAccessOpener": false,
            }] } })
        }
        _ => json!({ "error": {
            "code": METHOD_NOT_FOUND,
            "message": format!("'{method}' is not served by the emulator"),
        } }),
    };
    if let Some(fields) = answer.as_object_mut() {
        for name in ["id", "sessionId"] {
            fields.extend(command.get(name).map(|value| (name.to_owned(), value.clone())));
        }
    }
    answer
}

/// The answer to a command of WebDriver BiDi, none of which is served.
fn bidi_error(command: &str) -> Value {
    let command: Value = serde_json::from_str(command).unwrap_or_default();
    json!({
        "type": "error",
        "id": command.get("id"),
        "error": "unknown command",
        "message": "the emulator serves no WebDriver BiDi",
    })
}
