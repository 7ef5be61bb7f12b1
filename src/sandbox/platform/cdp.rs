//! The socket of `cdp_ws_url`. It does not speak CDP, but while it is open the session is active.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderMap, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::answer::{Answer, PlatformError, empty, set};
use super::cloud::Cloud;
use super::faults::Fault;
use super::host::Host;
use super::query;
use super::session::Session;

/// Lifetime of such a socket, in the platform's time.
const AGE_MAX: Duration = Duration::from_secs(60 * 60);

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
    let session = match at {
        Some(id) => cloud.session(&id)?,
        None => {
            let jwt = query::value(request.uri().query(), "jwt").unwrap_or_default();
            let mut sessions = cloud.sessions().into_iter();
            let now = cloud.host.time.now();
            let is_good =
                |session: &Session| session.token.as_ref() == Some(&jwt) && now < session.token_expires;
            let found = sessions.find(|session| is_good(session));
            found.ok_or_else(|| {
                PlatformError::new(
                    StatusCode::UNAUTHORIZED,
                    "unauthorized",
                    "no such session, or it has ended",
                )
            })?
        }
    };
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
                hold(upgraded).await;
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

/// Answers pings and the close, and nothing else, until the client is gone.
async fn hold(upgraded: Upgraded) {
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    while let Some(Ok(_)) = socket.next().await {}
}
