//! `process/spawn`, and the calls about a spawned process.
//!
//! The process may have a terminal. It then has one output, stdout, and its input counts as typed.
//! All output goes through one queue of 256 events of at most 4 KiB. If nobody reads the events,
//! the process blocks; two readers share them. The platform forgets a process 10 s after its end.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::HeaderName;
use rustix::process::{Pid, Signal};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;
use tokio::sync::{Mutex, mpsc, watch};

use super::answer::{Answer, PlatformError, json_answer, read_json, set, streamed};
use super::exec::{Output, Program, Started};
use super::host::Host;
use super::session::Session;
use super::spawned::Spawned;
use super::{rfc3339, rng};
use crate::machine::Handle;
use crate::terminal::Size;

/// Capacity of the event queue.
const EVENTS_MAX: usize = 256;

/// Most bytes of an event.
const EVENT_SIZE: usize = 4096;

/// Time that the platform remembers an ended process, in its own time.
const RETENTION: Duration = Duration::from_secs(10);

/// Time to read the outputs after a process's end, in case another process holds them open.
const DRAIN_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Deserialize)]
struct Typed {
    data_b64: String,
}

#[derive(Debug, Deserialize)]
struct Resize {
    rows: u16,
    cols: u16,
}

#[derive(Debug, Deserialize)]
struct Kill {
    signal: String,
}

/// `POST process/spawn`.
pub(super) async fn spawn(
    host: &Arc<Host>,
    session: &Arc<Session>,
    body: Incoming,
) -> Result<Answer, PlatformError> {
    let program: Program = read_json(body).await?;
    let id = rng::uuid().map_err(PlatformError::internal)?;
    let Started { child, stdin, stdout, stderr, terminal } = program.start_fed(host, session).await?;
    let started_at = rfc3339::format(SystemTime::now());
    let handle = session.machine.handle(&child);
    let pid = match handle {
        Some(handle) => Some(handle.started().await),
        None => None,
    };
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let (end, ended) = watch::channel(None);
    let spawned =
        Arc::new(Spawned { handle, stdin: Mutex::new(stdin), terminal, events: Mutex::new(events), ended });
    processes(session).insert(id.clone(), spawned);
    let (host, session_then, id_then) = (Arc::clone(host), Arc::clone(session), id.clone());
    tokio::spawn(async move {
        let lived = async {
            let ended_at = follow(&host, child, [stdout, stderr], sender, end).await;
            host.time.sleep_until(ended_at.saturating_add(RETENTION)).await;
        };
        // The end of the session drops the child, which kills it.
        tokio::select! {
            () = lived => {}
            () = session_then.over() => {}
        }
        processes(&session_then).remove(&id_then);
    });
    Ok(json_answer(StatusCode::OK, &json!({ "process_id": id, "pid": pid, "started_at": started_at })))
}

/// Passes on a process's output and its end. Returns the time at which the queue had room for the
/// exit event.
async fn follow(
    host: &Host,
    mut child: Child,
    [stdout, stderr]: [Option<Output>; 2],
    events: mpsc::Sender<Value>,
    end: watch::Sender<Option<i32>>,
) -> Duration {
    let outputs = [
        stdout.map(|output| tokio::spawn(pass_on("stdout", output, events.clone()))),
        stderr.map(|output| tokio::spawn(pass_on("stderr", output, events.clone()))),
    ];
    let code = child.wait().await.ok().and_then(|status| status.code()).unwrap_or(-1);
    end.send_replace(Some(code));
    let due = tokio::time::Instant::now() + DRAIN_MAX;
    for mut output in outputs.into_iter().flatten() {
        if tokio::time::timeout_at(due, &mut output).await.is_err() {
            output.abort();
        }
    }
    let room = events.reserve().await;
    // Take the time before anybody hears of the end and advances the clock.
    let ended_at = host.time.now();
    if let Ok(room) = room {
        room.send(json!({ "event": "exit", "exit_code": code }));
    }
    ended_at
}

/// Passes one output on as events, to its end.
async fn pass_on(stream: &'static str, mut output: impl AsyncRead + Unpin, events: mpsc::Sender<Value>) {
    let mut buffer = [0; EVENT_SIZE];
    while let Ok(length @ 1..) = output.read(&mut buffer).await {
        let data = STANDARD.encode(buffer.get(..length).unwrap_or_default());
        if events.send(json!({ "stream": stream, "data_b64": data })).await.is_err() {
            return;
        }
    }
}

/// `GET process/{id}/status`.
pub(super) fn status(session: &Session, id: &str) -> Result<Answer, PlatformError> {
    let process = find(session, id)?;
    let code = *process.ended.borrow();
    let pid = process.handle.filter(|_| code.is_none()).and_then(Handle::pid);
    let memory = pid.and_then(resident_bytes);
    let mut value = json!({
        "state": if code.is_some() { "exited" } else { "running" },
        "exit_code": code,
        "cpu_pct": 0,
    });
    if let (Some(fields), Some(memory)) = (value.as_object_mut(), memory) {
        fields.insert("mem_bytes".to_owned(), json!(memory));
    }
    Ok(json_answer(StatusCode::OK, &value))
}

/// Resident memory of a process, from Linux.
fn resident_bytes(pid: Pid) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()?.saturating_mul(1024))
}

/// `POST process/{id}/stdin`.
pub(super) async fn stdin(session: &Session, id: &str, body: Incoming) -> Result<Answer, PlatformError> {
    let process = find(session, id)?;
    let Typed { data_b64 } = read_json(body).await?;
    let data = STANDARD
        .decode(data_b64)
        .map_err(|_| PlatformError::in_vm(StatusCode::BAD_REQUEST, "invalid base64"))?;
    let mut stdin = process.stdin.lock().await;
    let mut ended = process.ended.clone();
    let written = async {
        let stdin = stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        stdin.write_all(&data).await?;
        stdin.flush().await
    };
    let written = tokio::select! {
        written = written => written,
        _ = ended.wait_for(Option::is_some) => Err(io::ErrorKind::BrokenPipe.into()),
    };
    written
        .map_err(|_| PlatformError::in_vm(StatusCode::INTERNAL_SERVER_ERROR, "failed to write to stdin"))?;
    Ok(json_answer(StatusCode::OK, &json!({ "written_bytes": data.len() })))
}

/// `POST process/{id}/resize`: resizes the process's terminal.
pub(super) async fn resize(session: &Session, id: &str, body: Incoming) -> Result<Answer, PlatformError> {
    let process = find(session, id)?;
    let Resize { rows, cols } = read_json(body).await?;
    let terminal = process.terminal.as_ref();
    let terminal =
        terminal.ok_or_else(|| PlatformError::in_vm(StatusCode::BAD_REQUEST, "process has no terminal"))?;
    terminal.resize(Size { columns: cols, rows }).map_err(PlatformError::internal)?;
    Ok(json_answer(StatusCode::OK, &json!({ "ok": true })))
}

/// `POST process/{id}/kill`: signals the process alone.
pub(super) async fn kill(session: &Session, id: &str, body: Incoming) -> Result<Answer, PlatformError> {
    let process = find(session, id)?;
    let Kill { signal } = read_json(body).await?;
    let signal = match signal.as_str() {
        "TERM" => Signal::TERM,
        "KILL" => Signal::KILL,
        "INT" => Signal::INT,
        "HUP" => Signal::HUP,
        _ => return Err(PlatformError::in_vm(StatusCode::BAD_REQUEST, "invalid signal")),
    };
    // After the wait, the system may have reused the pid of an ended process.
    let is_running = process.ended.borrow().is_none();
    let killed = process.handle.filter(|_| is_running).is_some_and(|handle| handle.signal(signal));
    if killed {
        Ok(json_answer(StatusCode::OK, &json!({ "ok": true })))
    } else {
        Err(PlatformError::in_vm(StatusCode::INTERNAL_SERVER_ERROR, "failed to signal process"))
    }
}

/// `GET process/{id}/stdout/stream`: server-sent events, up to the exit event.
pub(super) fn stream(session: &Session, id: &str) -> Result<Answer, PlatformError> {
    let process = find(session, id)?;
    let pieces = futures_util::stream::unfold(Some(process), |process| async {
        let process = process?;
        let event = process.events.lock().await.recv().await?;
        let piece: io::Result<Bytes> = Ok(format!("data: {event}\n\n").into());
        let goes_on = event.get("event").is_none();
        Some((piece, goes_on.then_some(process)))
    });
    let mut answer = streamed("text/event-stream", pieces);
    set(&mut answer, HeaderName::from_static("x-sse-content-type"), "application/json");
    Ok(answer)
}

fn find(session: &Session, id: &str) -> Result<Arc<Spawned>, PlatformError> {
    let found = processes(session).get(id).cloned();
    found.ok_or_else(|| PlatformError::in_vm(StatusCode::NOT_FOUND, "process not found"))
}

type Table<'a> = std::sync::MutexGuard<'a, std::collections::BTreeMap<String, Arc<Spawned>>>;

fn processes(session: &Session) -> Table<'_> {
    session.spawned.lock().unwrap_or_else(PoisonError::into_inner)
}
