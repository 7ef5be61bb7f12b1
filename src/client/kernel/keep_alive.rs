//! Keep-alive of a session's VM: an open CDP WebSocket counts as use, SSH does not.
//!
//! The platform closes such a WebSocket after about an hour, and whenever Chromium restarts. The
//! keep-alive reopens it. The token in its URL expires or is refused at some time. The keep-alive
//! then asks the API for another URL.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Instant;

use crate::kernel::connect::{Access, KernelError};
use crate::kernel::expiry::{Cause, Expiry, SHORT, span};
use crate::kernel::session_store::StoredSession;
use crate::log::debug;
use crate::remote::{self, ErrorKind, RemoteError};
use crate::tree::path::escape;

/// Delay before the WebSocket is reopened: the first one and the longest one. A VM goes into
/// standby after five seconds without a WebSocket. The platform deletes it only after its own
/// timeout, at least ten seconds, from then on.
const AGAIN_FIRST: Duration = Duration::from_millis(250);
const AGAIN_MAX: Duration = Duration::from_secs(4);

/// Lifetime after which the WebSocket is reopened with the first delay: the platform closes them
/// after about an hour.
const LONG: Duration = Duration::from_secs(60);

/// Time without a WebSocket after which the user learns of it. A restart of Chromium takes 5 to
/// 8 s, but the VM is in standby by then.
const TOLD_AFTER: Duration = Duration::from_secs(3);

/// Shortest interval of requests for another URL.
const RENEW_EVERY: Duration = Duration::from_secs(15);

/// Interval of reading the wall clock. Timers use a clock that stops while this machine sleeps.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// State of a keep-alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The WebSocket is open.
    Held,
    /// The WebSocket has been missing for a while: the message for the user, and a hint.
    Lost(String, String),
    /// The WebSocket is open again after [`State::Lost`].
    Back,
    /// The token expires soon, and the API has no longer one: the message, and a hint.
    Expires(String, String),
}

/// Keeps a session awake until it is dropped.
#[derive(Debug)]
pub struct KeepAlive {
    task: JoinHandle<()>,
    is_expiry_told: Arc<AtomicBool>,
}

impl KeepAlive {
    /// Opens the session's WebSocket, and reopens it whenever it is closed. With an API key in
    /// `access` it renews the WebSocket's URL. `is_asked` tells that the API is or was just asked
    /// for the URL. `tell` is told of each change of the state.
    #[must_use]
    pub fn begin(
        stored: &StoredSession,
        access: &Access,
        ca_cert: Option<PathBuf>,
        is_asked: bool,
        tell: impl Fn(State) + Send + Sync + 'static,
    ) -> Self {
        let is_expiry_told = Arc::new(AtomicBool::new(false));
        let now = SystemTime::now();
        let keeper = Keeper {
            margin: if is_asked { margin(stored, now) } else { SHORT },
            stored: stored.clone(),
            access: access.clone(),
            ca_cert,
            asked: is_asked.then(Instant::now),
            gap: Gap::new(),
            is_expiry_told: Arc::clone(&is_expiry_told),
            tell: Box::new(tell),
            now: Box::new(SystemTime::now),
            look_every: LOOK_EVERY,
        };
        Self { task: tokio::spawn(keeper.keep()), is_expiry_told }
    }

    /// Learns that the user knows already that the token expires soon.
    pub fn expiry_is_told(&self) {
        self.is_expiry_told.store(true, Ordering::Relaxed);
    }
}

impl Drop for KeepAlive {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A time without a WebSocket.
struct Gap {
    since: Instant,
    /// The last reason, unless the first attempt is still running.
    reason: Option<RemoteError>,
    is_told: bool,
}

impl Gap {
    fn new() -> Self {
        Self { since: Instant::now(), reason: None, is_told: false }
    }
}

/// The task of a keep-alive.
struct Keeper {
    stored: StoredSession,
    access: Access,
    ca_cert: Option<PathBuf>,
    /// The last request for another URL.
    asked: Option<Instant>,
    gap: Gap,
    is_expiry_told: Arc<AtomicBool>,
    /// Time before the token's expiry at which the keep-alive asks for another URL.
    margin: Duration,
    tell: Box<dyn Fn(State) + Send + Sync>,
    /// The wall clock.
    now: Box<dyn Fn() -> SystemTime + Send + Sync>,
    look_every: Duration,
}

impl Keeper {
    async fn keep(mut self) {
        let mut wait = AGAIN_FIRST;
        let mut is_held = false;
        loop {
            if self.renew_if_short().await == Renewed::Gone {
                return;
            }
            let begun = Instant::now();
            let reason = self.hold(&mut is_held).await;
            debug!("keep-alive held_ms={} error={reason}", begun.elapsed().as_millis());
            wait = if begun.elapsed() >= LONG { AGAIN_FIRST } else { AGAIN_MAX.min(wait * 2) };
            let is_refused = matches!(reason, RemoteError::NoWebSocket { status: 400..500, .. });
            self.gap.reason = Some(reason);
            if is_refused {
                match self.renew().await {
                    Renewed::Gone => return,
                    Renewed::Another => wait = AGAIN_FIRST,
                    Renewed::Same => {}
                }
            }
            self.pause(wait).await;
        }
    }

    /// Opens the WebSocket and holds it. Returns why it is not open, or not any more.
    async fn hold(&mut self, is_held: &mut bool) -> RemoteError {
        let (opened, mut opening) = oneshot::channel();
        let (url, ca_cert) = (self.stored.cdp_ws_url.clone(), self.ca_cert.clone());
        let holding = remote::hold_open(&url, ca_cert.as_deref(), || {
            let _ = opened.send(());
        });
        tokio::pin!(holding);
        loop {
            let due = self.gap.since + TOLD_AFTER;
            tokio::select! {
                reason = &mut holding => return reason,
                _ = &mut opening => break,
                () = tokio::time::sleep_until(due), if !self.gap.is_told => self.tell_lost(),
            }
        }
        let is_first = !std::mem::replace(is_held, true);
        if self.gap.is_told {
            (self.tell)(State::Back);
        } else if is_first {
            (self.tell)(State::Held);
        }
        let reason = loop {
            tokio::select! {
                reason = &mut holding => break reason,
                // The open WebSocket outlives its token, but the next one needs another.
                () = tokio::time::sleep(self.look_every) => {
                    self.renew_if_short().await;
                }
            }
        };
        self.gap = Gap::new();
        reason
    }

    /// Waits, and tells of the missing WebSocket when that is due.
    async fn pause(&mut self, wait: Duration) {
        let due = self.gap.since + TOLD_AFTER;
        let end = Instant::now() + wait;
        if !self.gap.is_told && due <= end {
            tokio::time::sleep_until(due).await;
            self.tell_lost();
        }
        tokio::time::sleep_until(end).await;
    }

    fn tell_lost(&mut self) {
        self.gap.is_told = true;
        let (what, hint) = lost(&self.stored, self.gap.reason.as_ref(), self.access.api.is_some());
        (self.tell)(State::Lost(what, hint));
    }

    /// Asks for another URL if the token expires soon, and tells of the end if there is none.
    async fn renew_if_short(&mut self) -> Renewed {
        if !self.may_renew() || !self.is_short() {
            return Renewed::Same;
        }
        let renewed = self.renew().await;
        if renewed == Renewed::Same {
            self.tell_expiry();
        }
        renewed
    }

    fn is_short(&self) -> bool {
        let until = Expiry::of(&self.stored).awake_until;
        until.is_some_and(|until| until <= (self.now)() + self.margin)
    }

    /// Tells once of a token that expires soon, since the API has no longer one.
    fn tell_expiry(&mut self) {
        let now = (self.now)();
        let end = Expiry::of(&self.stored).end(now, true).filter(|end| end.cause == Cause::Token);
        if let Some(end) = end
            && !self.is_expiry_told.swap(true, Ordering::Relaxed)
        {
            let (what, hint) = end.told(self.stored.shown(), now);
            (self.tell)(State::Expires(what, hint));
        }
    }

    fn may_renew(&self) -> bool {
        self.access.api.is_some() && self.asked.is_none_or(|asked| asked.elapsed() >= RENEW_EVERY)
    }

    /// Asks the API for another URL, and stores it.
    async fn renew(&mut self) -> Renewed {
        if !self.may_renew() {
            return Renewed::Same;
        }
        self.asked = Some(Instant::now());
        let (access, id) = (self.access.clone(), self.stored.session_id.clone());
        let asked = spawn_blocking(move || -> Result<_, KernelError> { Ok(access.api()?.browser(&id)?) });
        let (is_another, error) = match asked.await {
            Ok(Ok(browser)) => {
                let is_another = browser.cdp_ws_url != self.stored.cdp_ws_url;
                self.stored = self.stored.refreshed(&browser);
                self.margin = margin(&self.stored, (self.now)());
                self.access.refresh(&browser);
                (is_another, None)
            }
            Ok(Err(error)) if error.is_gone() => return Renewed::Gone,
            Ok(Err(error)) => (false, Some(error)),
            Err(_) => (false, None),
        };
        debug!("keep-alive renewed={is_another} error={error:?}");
        if is_another { Renewed::Another } else { Renewed::Same }
    }
}

/// Time before the expiry of a new token at which the next one is due: half of its life, and
/// [`SHORT`] at most.
fn margin(stored: &StoredSession, now: SystemTime) -> Duration {
    let (_, left) = Expiry::of(stored).left(now);
    left.map_or(SHORT, |left| SHORT.min(left / 2))
}

/// Result of a request for another URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Renewed {
    /// There is another one.
    Another,
    /// There is no other one, or not now.
    Same,
    /// The session is gone, so nothing is left to be kept awake.
    Gone,
}

/// The message about a session that is not kept awake, and a hint: the reason, the consequence and
/// the remedy.
fn lost(stored: &StoredSession, reason: Option<&RemoteError>, has_key: bool) -> (String, String) {
    let session = stored.shown();
    let cause = match reason {
        Some(error) => with_cause(error),
        None => format!("no answer yet from {}", endpoint(&stored.cdp_ws_url)),
    };
    let after = stored.timeout_seconds.map_or_else(|| "its idle timeout".to_owned(), span);
    let what = format!(
        "session {session} is not kept awake: {cause}; the platform deletes it, and its files with it, {after} after \
         it falls idle, and SSH does not count as use"
    );
    (what, keep_alive_remedy(session, &stored.cdp_ws_url, reason, has_key))
}

/// The next step for a user whose session is not kept awake by the WebSocket `url`.
#[must_use]
pub fn keep_alive_remedy(session: &str, url: &str, reason: Option<&RemoteError>, has_key: bool) -> String {
    match reason {
        Some(RemoteError::NoWebSocket { status: 401 | 403, .. }) if !has_key => {
            "Set KERNEL_API_KEY: the token of the last run does not hold any more, and only the API has another."
                .to_owned()
        }
        Some(RemoteError::NoWebSocket { status: 401 | 403, .. }) => format!(
            "The API has no token that holds, so the session may be about to end: look with ksync session show \
             {session}, and fetch the files you need."
        ),
        Some(RemoteError::NoWebSocket { status: 500.., .. }) => {
            "The platform does not reach the session's browser at the moment. ksync tries again by itself; if this lasts, \
             fetch the files you need, and take a new session."
                .to_owned()
        }
        Some(
            error @ (RemoteError::NoWebSocket { .. } | RemoteError::Redirected { .. } | RemoteError::OtherProtocol { .. }),
        ) => error.hint(),
        Some(error @ RemoteError::Tls { source, .. }) if source.is_about_trust() => error.hint(),
        Some(error) if error.kind() == ErrorKind::Usage => error.hint(),
        _ => format!(
            "Let this machine connect to {}: look at the firewall, the VPN and the proxy on this side. A session made \
             with a longer --timeout lives longer without it.",
            endpoint(url)
        ),
    }
}

/// Scheme, host and port of a URL, whose rest holds a token.
fn endpoint(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("wss", url));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    format!("{}://{}", escape(scheme.as_bytes()), escape(authority.as_bytes()))
}

fn with_cause(error: &RemoteError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU64;
    use std::time::UNIX_EPOCH;

    use data_encoding::BASE64URL_NOPAD;
    use serde_json::json;
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use tokio_tungstenite::accept_hdr_async;
    use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

    use super::*;
    use crate::kernel::testing::{Reply, Server};
    use crate::kernel::{ApiKey, BridgeImage, DEFAULT_TIMEOUT, Settings, Waits};

    const HOUR: Duration = Duration::from_secs(3600);

    /// A server of WebSockets, which tells the path of each. It holds them open.
    async fn sockets() -> (String, mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/browser/cdp", listener.local_addr().unwrap());
        let (told, paths) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut open = Vec::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                #[allow(clippy::result_large_err)]
                let tell = |request: &Request, response: Response| {
                    told.send(request.uri().to_string()).unwrap();
                    Ok(response)
                };
                open.push(accept_hdr_async(stream, tell).await);
            }
        });
        (url, paths)
    }

    /// The URL of a socket whose token expires after this time.
    fn expiring(url: &str, name: &str, after: Duration) -> String {
        let expires = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + after;
        let payload = json!({ "exp": expires.as_secs(), "session": { "fqdn": "vm.example" } }).to_string();
        format!("{url}?jwt={name}.{}.c", BASE64URL_NOPAD.encode(payload.as_bytes()))
    }

    fn browser(cdp_ws_url: &str) -> String {
        json!({
            "session_id": "s1", "cdp_ws_url": cdp_ws_url, "created_at": "unknown",
            "headless": false, "stealth": false, "timeout_seconds": 300,
        })
        .to_string()
    }

    /// A keeper of a session with the socket `old`, for which the API has the socket `new`. Its
    /// clock is ahead by a number of seconds. The directory holds its store.
    fn keeper(old: &str, new: &str) -> (Keeper, Arc<AtomicU64>, Arc<Mutex<Vec<State>>>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::saying([Reply::new(200, browser(new))]);
        let api = Settings {
            base_url: server.url(),
            key: ApiKey::new("sk"),
            project: None,
            ca_cert: None,
            timeout: DEFAULT_TIMEOUT,
        };
        let access = Access {
            api: Some(api),
            directory: folder.path().join("state"),
            identity: None,
            current: None,
            bridge: BridgeImage { gzip: b"", sha256: "" },
            waits: Waits::default(),
        };
        let stored = StoredSession {
            session_id: "s1".to_owned(),
            name: None,
            pool: None,
            vm_domain: "vm.example".to_owned(),
            host_key: "ssh-ed25519 AAAA".to_owned(),
            key_file: "/k".into(),
            cdp_ws_url: old.to_owned(),
            base_url: String::new(),
            created_at: None,
            timeout_seconds: Some(300),
            authorized: Vec::new(),
        };
        access.store().keep(&stored).unwrap();
        let (ahead, states) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (clock, told) = (Arc::clone(&ahead), Arc::clone(&states));
        let keeper = Keeper {
            stored,
            access,
            ca_cert: None,
            asked: None,
            gap: Gap::new(),
            is_expiry_told: Arc::default(),
            margin: SHORT,
            tell: Box::new(move |state| told.lock().unwrap().push(state)),
            now: Box::new(move || SystemTime::now() + Duration::from_secs(clock.load(Ordering::Relaxed))),
            look_every: Duration::from_millis(20),
        };
        (keeper, ahead, states, folder)
    }

    async fn until(mut is_so: impl FnMut() -> bool) {
        let waiting = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("it never came");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_token_that_expires_soon_is_renewed_before_the_socket_opens() {
        let (url, mut paths) = sockets().await;
        let (old, new) = (expiring(&url, "old", HOUR / 10), expiring(&url, "new", 70 * HOUR));
        let (keeper, _, states, _folder) = keeper(&old, &new);
        let store = keeper.access.store();
        let task = tokio::spawn(keeper.keep());
        assert!(paths.recv().await.unwrap().contains("jwt=new."));
        until(|| *states.lock().unwrap() == [State::Held]).await;
        assert_eq!(store.find("s1").unwrap().cdp_ws_url, new);
        task.abort();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_token_is_renewed_while_its_socket_is_open() {
        let (url, mut paths) = sockets().await;
        let (old, new) = (expiring(&url, "old", HOUR), expiring(&url, "new", 70 * HOUR));
        let (keeper, ahead, states, _folder) = keeper(&old, &new);
        let store = keeper.access.store();
        let task = tokio::spawn(keeper.keep());
        assert!(paths.recv().await.unwrap().contains("jwt=old."));
        until(|| *states.lock().unwrap() == [State::Held]).await;
        assert_eq!(store.find("s1").unwrap().cdp_ws_url, old);
        ahead.store(50 * 60, Ordering::Relaxed);
        until(|| store.find("s1").unwrap().cdp_ws_url == new).await;
        assert_eq!(*states.lock().unwrap(), [State::Held]);
        assert!(paths.try_recv().is_err(), "the open socket is good enough");
        task.abort();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_token_that_cannot_be_renewed_is_told_once() {
        let (url, mut paths) = sockets().await;
        let old = expiring(&url, "old", HOUR / 10);
        let (keeper, _, states, _folder) = keeper(&old, &old);
        let task = tokio::spawn(keeper.keep());
        assert!(paths.recv().await.unwrap().contains("jwt=old."));
        until(|| states.lock().unwrap().len() == 2).await;
        let states = states.lock().unwrap().clone();
        assert!(
            matches!(&states[..], [State::Expires(what, _), State::Held] if what.contains("s1 may end in "))
        );
        task.abort();
    }

    #[test]
    fn a_lost_keep_alive_has_its_consequence_and_a_remedy_and_shows_no_token() {
        let (keeper, _, _, _folder) = keeper("wss://proxy.example:8443/browser/cdp?jwt=a.secret.c", "");
        let refused = RemoteError::NoWebSocket { endpoint: "wss://p".to_owned(), status: 401, reason: "no" };
        for (reason, has_key, cause, advice) in [
            (
                None,
                true,
                "no answer yet from wss://proxy.example:8443;",
                "Let this machine connect to wss://proxy.example:8443:",
            ),
            (Some(&refused), false, "it answered 401 no;", "Set KERNEL_API_KEY"),
            (Some(&refused), true, "it answered 401 no;", "The API has no token that holds"),
        ] {
            let (what, hint) = lost(&keeper.stored, reason, has_key);
            assert!(what.starts_with("session s1 is not kept awake: ") && what.contains(cause), "{what}");
            assert!(
                what.contains("deletes it, and its files with it, 5 minutes after it falls idle"),
                "{what}"
            );
            assert!(hint.starts_with(advice), "{hint}");
            assert!(!format!("{what}{hint}").contains("secret"));
        }
    }
}
