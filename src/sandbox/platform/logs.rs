//! `logs/stream`: lines of a file as they are written.
//!
//! As in the VM, errors are lines too, and the stream goes on until the client leaves.

use std::io::{self, SeekFrom};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::Either;
use hyper::header::HeaderName;
use rustix::fs::OFlags;
use serde_json::json;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::answer::{Answer, set, streamed};
use super::call::Asked;
use super::rfc3339;
use super::session::Session;

/// Interval between looks for new lines.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A file that is read while it grows.
struct Tail {
    session: Arc<Session>,
    file: File,
    /// Bytes that were read and are not sent.
    pending: Vec<u8>,
}

/// `GET logs/stream`: from the end of the file, or with `follow=false` from its start.
pub(super) async fn stream(session: &Arc<Session>, asked: &Asked<'_>) -> Answer {
    let pieces = match open(session, asked).await {
        Ok(tail) => Either::Left(lines(tail)),
        Err(message) => Either::Right(futures_util::stream::iter([Ok(event(message.as_bytes()))])),
    };
    let mut answer = streamed("text/event-stream", pieces);
    set(&mut answer, HeaderName::from_static("x-sse-content-type"), "application/json");
    answer
}

async fn open(session: &Arc<Session>, asked: &Asked<'_>) -> Result<Tail, &'static str> {
    let path = asked.value("path").filter(|path| path.starts_with('/'));
    let path = path.filter(|_| asked.value("source").as_deref() == Some("path"));
    let path = path.ok_or("logs source not available")?;
    let failed = |_| "failed to open log path";
    let file = session.root().open(&path, OFlags::RDONLY, 0).map_err(failed)?;
    let mut file = File::from_std(file);
    if asked.value("follow").as_deref() != Some("false") {
        file.seek(SeekFrom::End(0)).await.map_err(failed)?;
    }
    Ok(Tail { session: Arc::clone(session), file, pending: Vec::new() })
}

fn lines(tail: Tail) -> impl Stream<Item = io::Result<Bytes>> + Send {
    futures_util::stream::unfold(tail, |mut tail| async {
        loop {
            if let Some(end) = tail.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = tail.pending.drain(..=end).collect();
                match line.strip_suffix(b"\n") {
                    Some(line) if !line.is_empty() => return Some((Ok(event(line)), tail)),
                    _ => continue,
                }
            }
            if tail.file.read_buf(&mut tail.pending).await.ok()? > 0 {
                continue;
            }
            // A shortened file is read from its new end.
            let (place, size) =
                (tail.file.stream_position().await.ok()?, tail.file.metadata().await.ok()?.len());
            if size < place {
                tail.file.seek(SeekFrom::Start(size)).await.ok()?;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = tail.session.over() => return None,
            }
        }
    })
}

/// The server-sent event of a line.
fn event(line: &[u8]) -> Bytes {
    let event = json!({
        "event": "log",
        "timestamp": rfc3339::format(SystemTime::now()),
        "message": String::from_utf8_lossy(line),
    });
    format!("data: {event}\n\n").into()
}
