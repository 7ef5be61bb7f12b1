//! `fs/watch`: events of a directory, until the watch is stopped.
//!
//! As in the VM, a watch keeps its first 100 events until a client reads them, and drops the rest.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, MutexGuard, PoisonError};

use bytes::Bytes;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::HeaderName;
use notify::event::{ModifyKind, RenameMode};
use notify::{Event, EventKind, RecursiveMode, Watcher};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};

use super::answer::{Answer, PlatformError, empty, json_answer, read_json, set, streamed};
use super::files::absolute;
use super::rng;
use super::session::Session;
use super::watch::Watch;

/// Events that wait for a client.
const EVENTS_MAX: usize = 100;

#[derive(Debug, Deserialize)]
struct Start {
    #[serde(default)]
    path: String,
    recursive: Option<bool>,
}

/// `POST fs/watch`.
pub(super) async fn start(session: &Session, body: Incoming) -> Result<Answer, PlatformError> {
    let Start { path, recursive } = read_json(body).await?;
    let path = absolute(path)?;
    let entry = session.root().find(&path);
    let entry = entry.map_err(|_| PlatformError::in_vm(StatusCode::NOT_FOUND, "path not found"))?;
    let id = rng::word(24).map_err(PlatformError::internal)?;
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let mode = if recursive == Some(true) { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive };
    let watched = entry.path().to_owned();
    let handler = move |event: notify::Result<Event>| {
        let Ok(event) = event else { return };
        for changed in &event.paths {
            if let Some(kind) = kind_of(&event.kind, changed) {
                // A full channel drops the event.
                let _ = sender.try_send(describe(kind, &path, &watched, changed));
            }
        }
    };
    let watcher = notify::recommended_watcher(handler).and_then(|mut watcher| {
        watcher.watch(entry.path(), mode)?;
        Ok(watcher)
    });
    let watcher = watcher.map_err(PlatformError::internal)?;
    let watch = Watch { events: Arc::new(Mutex::new(events)), _watcher: watcher, _entry: entry };
    watches(session).insert(id.clone(), watch);
    Ok(json_answer(StatusCode::CREATED, &json!({ "watch_id": id })))
}

/// `GET fs/watch/{id}/events`: server-sent events.
pub(super) fn events(session: &Session, id: &str) -> Result<Answer, PlatformError> {
    let events = watches(session).get(id).map(|watch| Arc::clone(&watch.events)).ok_or_else(not_found)?;
    let pieces = futures_util::stream::unfold(events, |events| async {
        let event = events.lock().await.recv().await?;
        let piece: io::Result<Bytes> = Ok(format!("data: {event}\n\n").into());
        Some((piece, events))
    });
    let mut answer = streamed("text/event-stream", pieces);
    set(&mut answer, HeaderName::from_static("x-sse-content-type"), "application/json");
    Ok(answer)
}

/// `DELETE fs/watch/{id}`.
pub(super) fn stop(session: &Session, id: &str) -> Result<Answer, PlatformError> {
    watches(session).remove(id).ok_or_else(not_found)?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// The API's name of an event; `None` for events that it does not report.
fn kind_of(kind: &EventKind, path: &Path) -> Option<&'static str> {
    match kind {
        EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Some("CREATE"),
        EventKind::Remove(_) => Some("DELETE"),
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) => Some("RENAME"),
        // Both ends were reported before.
        EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => None,
        // macOS does not tell the ends apart.
        EventKind::Modify(ModifyKind::Name(_)) => Some(if path.exists() { "CREATE" } else { "RENAME" }),
        EventKind::Modify(ModifyKind::Data(_)) => Some("WRITE"),
        _ => None,
    }
}

/// The API's description of an event, with the path in the VM.
fn describe(kind: &str, path: &str, root: &Path, changed: &Path) -> Value {
    let below = changed.strip_prefix(root).unwrap_or(changed);
    let path = Path::new(path).join(below);
    let name = path.file_name().map(|name| name.to_string_lossy());
    json!({ "type": kind, "path": path.to_string_lossy(), "name": name, "is_dir": changed.is_dir() })
}

fn watches(session: &Session) -> MutexGuard<'_, BTreeMap<String, Watch>> {
    session.watches.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_found() -> PlatformError {
    PlatformError::in_vm(StatusCode::NOT_FOUND, "watch not found")
}
