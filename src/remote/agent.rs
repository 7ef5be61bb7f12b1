//! A running agent, as a blocking reader and writer. What stands behind them is in [`pump`](super::pump).

use std::io::{self, Read, Write};
use std::sync::{Arc, OnceLock};

use bytes::{Buf, Bytes};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::remote::error::{Fate, RemoteError};
use crate::remote::pump::{self, Waiting};

/// Largest write handed to SSH: its packet. Larger ones are cut there, and hold up others.
pub(super) const WRITE_BYTES_MAX: usize = 32 * 1024;

/// An agent that was started on the other side, or is about to be: nothing waits until it has answered.
#[derive(Debug)]
pub struct Agent {
    /// What it says, from its first byte on. An error here tells why it could not be started or was lost.
    pub reader: AgentReader,
    /// What it is told. Dropping it is the end of its input.
    pub writer: AgentWriter,
    /// How it ended, once it has.
    pub end: AgentEnd,
    /// Whether it had to be installed.
    pub installed: Installed,
    /// What came over its connection.
    pub heard: Heard,
}

/// Counts what came over a connection, whatever it belongs to: on a slow link a packet takes a
/// while to be complete.
#[derive(Debug, Clone, Default)]
pub struct Heard(pub(super) Arc<OnceLock<Fate>>);

impl Heard {
    /// Bytes so far; none while there is no connection.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.get().map_or(0, Fate::heard_bytes)
    }
}

impl Agent {
    /// An agent that there is no connection for yet. Its writer can be written to already; its reader ends if
    /// what waits is dropped instead of being given to [`Connection::start`](crate::remote::Connection::start).
    #[must_use]
    pub fn waiting() -> (Self, Waiting) {
        pump::waiting()
    }
}

/// Whether the agent had to be put on the other side. Known as soon as its first byte was read.
#[derive(Debug, Clone, Default)]
pub struct Installed(pub(super) Arc<OnceLock<Option<u64>>>);

impl Installed {
    /// `None` as long as the agent has not answered; then how many bytes were sent to install it, and
    /// `Some(None)` where it was there.
    #[must_use]
    pub fn sent_bytes(&self) -> Option<Option<u64>> {
        self.0.get().copied()
    }
}

/// How an agent ended.
#[derive(Debug, Default)]
pub struct End {
    /// Its exit status, if it has one.
    pub exit_status: Option<u32>,
    /// The signal that killed it.
    pub signal: Option<String>,
    /// The end of what it wrote to stderr, at most 8 KiB of it, escaped line by line.
    pub stderr: String,
    /// Why it could not be started, or was lost.
    pub error: Option<Arc<RemoteError>>,
}

/// Tells how an agent ended.
#[derive(Debug)]
pub struct AgentEnd(pub(super) oneshot::Receiver<End>);

impl AgentEnd {
    /// Waits for the end.
    pub async fn wait(self) -> End {
        self.0.await.unwrap_or_default()
    }

    /// Waits for the end, on a thread that is none of the runtime's.
    #[must_use]
    pub fn blocking_wait(self) -> End {
        self.0.blocking_recv().unwrap_or_default()
    }
}

/// Bytes from the agent, and their share of what may wait to be read.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) bytes: Bytes,
    pub(super) _share: Option<OwnedSemaphorePermit>,
}

/// What the agent says. For threads of their own: it blocks, and panics inside of the runtime.
#[derive(Debug)]
pub struct AgentReader {
    pub(super) chunks: mpsc::UnboundedReceiver<Chunk>,
    pub(super) current: Option<Chunk>,
    pub(super) error: Arc<OnceLock<Arc<RemoteError>>>,
}

impl Read for AgentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.as_ref().is_none_or(|chunk| chunk.bytes.is_empty()) {
            // Gives back its share before waiting for more.
            self.current = None;
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = Some(chunk),
                None => {
                    return match self.error.get() {
                        Some(error) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, error.clone())),
                        None => Ok(0),
                    };
                }
            }
        }
        let Some(chunk) = &mut self.current else { return Ok(0) };
        let count = chunk.bytes.len().min(buffer.len());
        chunk.bytes.copy_to_slice(buffer.get_mut(..count).unwrap_or_default());
        Ok(count)
    }
}

/// What the agent is told. For threads of their own: it blocks, and panics inside of the runtime.
///
/// Written is not arrived: only an answer tells that.
#[derive(Debug)]
pub struct AgentWriter {
    pub(super) writes: mpsc::Sender<Bytes>,
    pub(super) error: Arc<OnceLock<Arc<RemoteError>>>,
}

impl Write for AgentWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = bytes.get(..WRITE_BYTES_MAX).unwrap_or(bytes);
        if bytes.is_empty() {
            return Ok(0);
        }
        match self.writes.blocking_send(Bytes::copy_from_slice(bytes)) {
            Ok(()) => Ok(bytes.len()),
            Err(_) => Err(match self.error.get() {
                Some(error) => io::Error::new(io::ErrorKind::ConnectionAborted, error.clone()),
                None => io::Error::new(io::ErrorKind::BrokenPipe, "the agent has ended"),
            }),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
