//! Routing: the call of a request, and its handler.
//!
//! The steps of a call are, in this order: the key or the token, the requested faults, the handler.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName};
use hyper::{Request, StatusCode};

use super::answer::{Answer, PlatformError, read_body, set};
use super::call::{self, Asked, Call};
use super::cloud::Cloud;
use super::faults::Fault;
use super::host::Host;
use super::session::Session;
use super::{
    admin, browsers, cdp, computer, curl, exec, files, fs_watch, logs, pools, query, spawn, uploads,
};

/// Most bytes read of the body of a refused request.
const REFUSED_MAX: usize = 16 << 20;

/// Ends the connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("hung up as it was asked for")]
pub(super) struct HangUp;

/// Answers a request. `at` is the session whose own address the request came to.
pub(super) async fn answer(
    cloud: Arc<Cloud>,
    request: Request<Incoming>,
    at: Option<String>,
) -> Result<Answer, HangUp> {
    let path = query::segments(request.uri().path());
    let segments: Vec<&str> = path.iter().map(String::as_str).collect();
    match *segments.as_slice() {
        ["_sandbox", ref rest @ ..] => {
            let answer = match admin::refuse_web_pages(request.headers()) {
                Ok(()) => admin::answer(&cloud, request.method().clone(), rest, request.into_body()).await,
                Err(error) => Err(error),
            };
            Ok(answer.unwrap_or_else(|error| error.answer()))
        }
        // `base_url`: what a VM serves itself. The token takes the place of the key and of the id.
        ["browser", "kernel", ref rest @ ..] if call::is_in_vm(rest) && at.is_none() => {
            let session = match cloud.session_of_token(request.uri().query()) {
                Ok(session) => session,
                Err(error) => return Ok(refuse(request, &error).await),
            };
            let segments = [&["browsers", session.id.as_str()], rest].concat();
            routed(&cloud, request, &segments, true, None).await
        }
        ["browser", "live", ..] if at.is_none() => Ok(refuse_unserved(request).await),
        ref segments => {
            let is_authorized = is_authorized(request.headers(), &cloud.api_key);
            routed(&cloud, request, segments, is_authorized, at).await
        }
    }
}

async fn routed(
    cloud: &Arc<Cloud>,
    request: Request<Incoming>,
    segments: &[&str],
    is_authorized: bool,
    at: Option<String>,
) -> Result<Answer, HangUp> {
    let Some((call, ids)) = Call::of(request.method().as_str(), segments) else {
        return Ok(match call::is_unserved(segments) && at.is_none() {
            true if is_authorized => refuse_unserved(request).await,
            true => refuse(request, &unauthorized()).await,
            false => refuse(request, &PlatformError::not_found("route")).await,
        });
    };
    if call.is_request() && at.is_some() {
        return Ok(refuse(request, &PlatformError::not_found("route")).await);
    }
    cloud.count(call);
    if call.is_request() && !is_authorized {
        return Ok(refuse(request, &unauthorized()).await);
    }
    let fault = cloud.host.faults.take(call);
    if let Some(fault) = &fault {
        tokio::time::sleep(Duration::from_millis(fault.delay_ms)).await;
        if fault.hang_up {
            return Err(HangUp);
        }
        if let Some(answer) = fault.answer() {
            drain(request).await;
            return Ok(answer);
        }
    }
    let done = match call {
        Call::Cdp => cdp::accept(cloud, request, at, fault).await,
        Call::CdpVersion => cdp::version(cloud, &request, at),
        _ => {
            let (parts, body) = request.into_parts();
            let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let content_type = content_type.unwrap_or_default();
            let mut ids = ids.into_iter();
            let (id, inner_id) = (ids.next().unwrap_or_default(), ids.next().unwrap_or_default());
            let (method, headers) = (&parts.method, &parts.headers);
            let asked = Asked { id, inner_id, method, headers, query: parts.uri.query(), content_type };
            dispatch(cloud, call, &asked, body, fault.as_ref()).await
        }
    };
    Ok(done.unwrap_or_else(|error| error.answer()))
}

async fn refuse(request: Request<Incoming>, error: &PlatformError) -> Answer {
    drain(request).await;
    error.answer()
}

/// 501 for what the platform serves and the emulator does not. The header keeps the official
/// clients from trying again.
async fn refuse_unserved(request: Request<Incoming>) -> Answer {
    let message = format!("the emulator does not serve {} {}", request.method(), request.uri().path());
    let error = PlatformError::new(StatusCode::NOT_IMPLEMENTED, "not_implemented", message);
    let mut answer = refuse(request, &error).await;
    set(&mut answer, HeaderName::from_static("x-should-retry"), "false");
    answer
}

/// Reads the body of a request that is answered without it. Otherwise a client that still sends
/// sees a broken connection in place of the answer.
async fn drain(request: Request<Incoming>) {
    let _ = read_body(request.into_body(), REFUSED_MAX).await;
}

async fn dispatch(
    cloud: &Arc<Cloud>,
    call: Call,
    asked: &Asked<'_>,
    body: Incoming,
    fault: Option<&Fault>,
) -> Result<Answer, PlatformError> {
    match call {
        Call::Create => browsers::create(cloud, body, fault).await,
        Call::List => browsers::list(cloud, asked),
        Call::Get => browsers::show(cloud, asked),
        Call::Delete => browsers::delete(cloud, asked.id).await,
        Call::Patch => browsers::patch(cloud, asked.id, body).await,
        Call::PoolCreate => pools::create(cloud, body).await,
        Call::PoolList => pools::list(cloud, asked),
        Call::PoolGet => pools::show(cloud, asked.id),
        Call::PoolPatch => pools::patch(cloud, asked.id, body).await,
        Call::PoolFlush => pools::flush(cloud, asked.id).await,
        Call::PoolDelete => pools::delete(cloud, asked.id, body).await,
        Call::Acquire => pools::acquire(cloud, asked.id, body).await,
        Call::Release => pools::release(cloud, asked.id, body).await,
        Call::Cdp | Call::CdpVersion | Call::Bridge => Err(PlatformError::not_found("route")),
        _ => in_session(&cloud.host, call, &cloud.session(asked.id)?, asked, body).await,
    }
}

/// Runs the calls that go to a VM. If the VM ends meanwhile, the answer is "not found".
async fn in_session(
    host: &Arc<Host>,
    call: Call,
    session: &Arc<Session>,
    asked: &Asked<'_>,
    body: Incoming,
) -> Result<Answer, PlatformError> {
    let answered = async {
        match call {
            Call::Exec => exec::exec(host, session, body).await,
            Call::Spawn => spawn::spawn(host, session, body).await,
            Call::Status => spawn::status(session, asked.inner_id),
            Call::Stdin => spawn::stdin(session, asked.inner_id, body).await,
            Call::Kill => spawn::kill(session, asked.inner_id, body).await,
            Call::Resize => spawn::resize(session, asked.inner_id, body).await,
            Call::Stream => spawn::stream(session, asked.inner_id),
            Call::WatchStart => fs_watch::start(session, body).await,
            Call::WatchEvents => fs_watch::events(session, asked.inner_id),
            Call::WatchStop => fs_watch::stop(session, asked.inner_id),
            Call::Curl => curl::curl(body).await,
            Call::CurlRaw => curl::raw(asked, body).await,
            Call::LogStream => Ok(logs::stream(session, asked).await),
            Call::Batch
            | Call::ClickMouse
            | Call::MoveMouse
            | Call::DragMouse
            | Call::TypeText
            | Call::PressKey
            | Call::Scroll
            | Call::SetCursor
            | Call::MousePosition
            | Call::Screenshot
            | Call::ReadClipboard
            | Call::WriteClipboard => computer::answer(host, session, call, body).await,
            Call::Upload => uploads::upload(session, asked, body).await,
            Call::UploadZip => uploads::upload_zip(session, asked, body).await,
            Call::DownloadDirZip => uploads::download_dir_zip(session, asked),
            _ => files::answer(session, call, asked, body).await,
        }
    };
    tokio::select! {
        answer = answered => answer,
        () = session.over() => Err(PlatformError::not_found("browser")),
    }
}

fn is_authorized(headers: &HeaderMap, api_key: &str) -> bool {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    given.and_then(|value| value.strip_prefix("Bearer ")) == Some(api_key)
}

fn unauthorized() -> PlatformError {
    PlatformError::new(StatusCode::UNAUTHORIZED, "unauthorized", "missing or invalid API key")
}
