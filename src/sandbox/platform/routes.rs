//! Routing: the call of a request, and its handler.
//!
//! The steps of a call are, in this order: the key, the requested faults, the handler.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap};
use hyper::{Method, Request, StatusCode};

use super::answer::{Answer, PlatformError};
use super::call::{Asked, Call};
use super::cloud::Cloud;
use super::faults::Fault;
use super::host::Host;
use super::session::Session;
use super::{admin, browsers, cdp, computer, exec, files, pools, query, spawn, uploads};

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
    if let ["_sandbox", rest @ ..] = segments.as_slice() {
        let answer = admin::answer(&cloud, request.method().clone(), rest, request.into_body()).await;
        return Ok(answer.unwrap_or_else(|error| error.answer()));
    }
    let Some((call, id, process_id)) = call_of(request.method(), &segments) else {
        return Ok(PlatformError::not_found("route").answer());
    };
    if call.is_request() && at.is_some() {
        return Ok(PlatformError::not_found("route").answer());
    }
    cloud.count(call);
    if call.is_request() && !is_authorized(request.headers(), &cloud.api_key) {
        return Ok(unauthorized().answer());
    }
    let fault = cloud.host.faults.take(call);
    if let Some(fault) = &fault {
        tokio::time::sleep(Duration::from_millis(fault.delay_ms)).await;
        if fault.hang_up {
            return Err(HangUp);
        }
        if let Some(answer) = fault.answer() {
            return Ok(answer);
        }
    }
    let done = if call == Call::Cdp {
        cdp::accept(&cloud, request, at, fault).await
    } else {
        let (parts, body) = request.into_parts();
        let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default();
        let asked = Asked { id, process_id, query: parts.uri.query(), content_type };
        dispatch(&cloud, call, &asked, body, fault.as_ref()).await
    };
    Ok(done.unwrap_or_else(|error| error.answer()))
}

/// Finds the call, and the ids in its path.
fn call_of<'a>(method: &Method, segments: &[&'a str]) -> Option<(Call, &'a str, &'a str)> {
    let (get, post, put) = (method == Method::GET, method == Method::POST, method == Method::PUT);
    let (delete, patch) = (method == Method::DELETE, method == Method::PATCH);
    let call = match *segments {
        ["browser", "cdp" | "webdriver"] if get => (Call::Cdp, "", ""),
        ["browsers"] if post => (Call::Create, "", ""),
        ["browsers"] if get => (Call::List, "", ""),
        ["browsers", id] if get => (Call::Get, id, ""),
        ["browsers", id] if delete => (Call::Delete, id, ""),
        ["browsers", id] if patch => (Call::Patch, id, ""),
        ["browser_pools"] if post => (Call::PoolCreate, "", ""),
        ["browser_pools"] if get => (Call::PoolList, "", ""),
        ["browser_pools", id] if get => (Call::PoolGet, id, ""),
        ["browser_pools", id] if delete => (Call::PoolDelete, id, ""),
        ["browser_pools", id, "acquire"] if post => (Call::Acquire, id, ""),
        ["browser_pools", id, "release"] if post => (Call::Release, id, ""),
        ["browsers", id, "process", "exec"] if post => (Call::Exec, id, ""),
        ["browsers", id, "process", "spawn"] if post => (Call::Spawn, id, ""),
        ["browsers", id, "process", process, "status"] if get => (Call::Status, id, process),
        ["browsers", id, "process", process, "stdin"] if post => (Call::Stdin, id, process),
        ["browsers", id, "process", process, "kill"] if post => (Call::Kill, id, process),
        ["browsers", id, "process", process, "resize"] if post => (Call::Resize, id, process),
        ["browsers", id, "process", process, "stdout", "stream"] if get => (Call::Stream, id, process),
        ["browsers", id, "fs", "write_file"] if put => (Call::WriteFile, id, ""),
        ["browsers", id, "fs", "read_file"] if get => (Call::ReadFile, id, ""),
        ["browsers", id, "fs", "list_files"] if get => (Call::ListFiles, id, ""),
        ["browsers", id, "fs", "file_info"] if get => (Call::FileInfo, id, ""),
        ["browsers", id, "fs", "create_directory"] if put => (Call::CreateDirectory, id, ""),
        ["browsers", id, "fs", "delete_file"] if put => (Call::DeleteFile, id, ""),
        ["browsers", id, "fs", "delete_directory"] if put => (Call::DeleteDirectory, id, ""),
        ["browsers", id, "fs", "move"] if put => (Call::Move, id, ""),
        ["browsers", id, "fs", "set_file_permissions"] if put => (Call::SetFilePermissions, id, ""),
        ["browsers", id, "fs", "upload"] if post => (Call::Upload, id, ""),
        ["browsers", id, "fs", "upload_zip"] if post => (Call::UploadZip, id, ""),
        ["browsers", id, "fs", "download_dir_zip"] if get => (Call::DownloadDirZip, id, ""),
        ["browsers", id, "computer", "batch"] if post => (Call::Batch, id, ""),
        _ => return None,
    };
    Some(call)
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
        Call::Get => browsers::show(cloud, asked.id),
        Call::Delete => browsers::delete(cloud, asked.id).await,
        Call::Patch => browsers::patch(cloud, asked.id, body).await,
        Call::PoolCreate => pools::create(cloud, body).await,
        Call::PoolList => Ok(pools::list(cloud)),
        Call::PoolGet => pools::show(cloud, asked.id),
        Call::PoolDelete => pools::delete(cloud, asked.id, body).await,
        Call::Acquire => pools::acquire(cloud, asked.id, body).await,
        Call::Release => pools::release(cloud, asked.id, body).await,
        Call::Cdp | Call::Bridge => Err(PlatformError::not_found("route")),
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
            Call::Status => spawn::status(session, asked.process_id),
            Call::Stdin => spawn::stdin(session, asked.process_id, body).await,
            Call::Kill => spawn::kill(session, asked.process_id, body).await,
            Call::Resize => spawn::resize(session, asked.process_id, body).await,
            Call::Stream => spawn::stream(session, asked.process_id),
            Call::Batch => computer::batch(host, session, body).await,
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
