//! A running agent, as a blocking reader and writer. Their background tasks are in
//! [`pump`](super::pump).

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::{Buf, Bytes};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::remote::error::{ConnectionStatus, RemoteError};

/// Largest write handed to SSH: one SSH packet. SSH cuts larger writes there, and they delay other
/// channels.
pub(super) const WRITE_BYTES_MAX: usize = 32 * 1024;

/// An agent that ksync has started on the other side, or is about to start. No call waits for its
/// first answer.
#[derive(Debug)]
pub struct Agent {
    /// The agent's output, from its first byte on. An error here tells why the agent did not start,
    /// or was lost.
    pub reader: AgentReader,
    /// The agent's input. Dropping the writer ends it.
    pub writer: AgentWriter,
    /// The agent's end, once it has ended.
    pub end: AgentEnd,
    /// The result of the installation.
    pub installed: Installed,
    /// The counter of bytes received over the agent's connection.
    pub heard: Heard,
    /// The counter of bytes that the other side has read from the agent's channel.
    pub acknowledged: Acknowledged,
}

/// Counts the bytes received over a connection, for all its channels. On a slow link a single
/// packet may take a while to arrive completely.
#[derive(Debug, Clone, Default)]
pub struct Heard(pub(super) Arc<OnceLock<ConnectionStatus>>);

impl Heard {
    /// Bytes received so far; 0 before the connection exists.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.get().map_or(0, ConnectionStatus::heard_bytes)
    }
}

/// Counts the bytes that the SSH server has read from a channel, by its window adjustments.
#[derive(Debug, Clone, Default)]
pub struct Acknowledged(pub(super) Arc<AtomicU64>);

impl Acknowledged {
    /// Bytes read so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Result of the agent's installation, known as soon as the agent's first byte was read.
#[derive(Debug, Clone, Default)]
pub struct Installed(pub(super) Arc<OnceLock<Option<u64>>>);

impl Installed {
    /// Returns `None` until the agent has answered. Then returns the number of bytes sent to
    /// install the agent, or `Some(None)` if it was already there.
    #[must_use]
    pub fn sent_bytes(&self) -> Option<Option<u64>> {
        self.0.get().copied()
    }
}

/// The end of an agent.
#[derive(Debug, Default)]
pub struct End {
    /// The exit status, if the agent has one.
    pub exit_status: Option<u32>,
    /// The signal that killed the agent.
    pub signal: Option<String>,
    /// The last 8 KiB, at most, of the agent's stderr, escaped line by line.
    pub stderr: String,
    /// The reason why the agent did not start, or was lost.
    pub error: Option<Arc<RemoteError>>,
}

/// Handle to wait for the end of an agent.
#[derive(Debug)]
pub struct AgentEnd(pub(super) oneshot::Receiver<End>);

impl AgentEnd {
    /// Waits for the end.
    pub async fn wait(self) -> End {
        self.0.await.unwrap_or_default()
    }

    /// Waits for the end on a thread outside the runtime.
    #[must_use]
    pub fn blocking_wait(self) -> End {
        self.0.blocking_recv().unwrap_or_default()
    }
}

/// Bytes from the agent, and their share of the unread budget.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) bytes: Bytes,
    pub(super) _share: Option<OwnedSemaphorePermit>,
}

/// The agent's output. Use it on a thread of its own, because it blocks, and panics inside the
/// runtime.
#[derive(Debug)]
pub struct AgentReader {
    pub(super) chunks: mpsc::UnboundedReceiver<Chunk>,
    pub(super) current: Option<Chunk>,
    pub(super) error: Arc<OnceLock<Arc<RemoteError>>>,
}

impl AgentReader {
    /// True if the agent has ended, and all of its output was read.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.chunks.is_closed() && self.chunks.is_empty()
    }

    /// The next bytes, for a reader inside the runtime; `None` at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        // This returns the chunk's share before it waits for more.
        self.current = None;
        let chunk = self.chunks.recv().await?;
        let bytes = chunk.bytes.clone();
        self.current = Some(chunk);
        Some(bytes)
    }
}

impl Read for AgentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.as_ref().is_none_or(|chunk| chunk.bytes.is_empty()) {
            // This returns the chunk's share before it waits for more.
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

/// The agent's input. Use it on a thread of its own, because it blocks, and panics inside the
/// runtime.
///
/// A successful write does not mean that the bytes have arrived; only an answer does.
#[derive(Debug)]
pub struct AgentWriter {
    pub(super) writes: mpsc::Sender<Bytes>,
    pub(super) error: Arc<OnceLock<Arc<RemoteError>>>,
}

impl AgentWriter {
    /// Sends bytes, for a writer inside the runtime. False if the agent has ended.
    pub async fn send(&self, bytes: Bytes) -> bool {
        self.writes.send(bytes).await.is_ok()
    }
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
