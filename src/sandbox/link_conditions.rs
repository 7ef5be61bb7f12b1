//! Link conditions between an accepted socket and the WebSocket: a delay each way, and cuts at a
//! chosen byte.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

/// Most bytes read at once.
const READ_SIZE: usize = 64 * 1024;

/// Most bytes in flight in one direction of a delayed connection: 1 Gbit/s at half a second.
const UNDER_WAY_MAX: usize = 64 << 20;

/// Least cost of a delayed chunk in bytes, so that tiny chunks cannot fill the memory with
/// bookkeeping.
const CHUNK_COST_MIN: usize = 256;

/// Poll interval while the machine is frozen.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Time that the socket stays open after the last byte was sent. Closing it with unread input would
/// reset the connection, and a reset may destroy bytes that the client has not read yet.
const LINGER: Duration = Duration::from_secs(1);

/// Link conditions of every connection. The default is a perfect link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkConditions {
    /// Delay of each byte, one way, in each direction. A round trip takes twice as long. The
    /// throughput is not limited: up to 64 MiB may be in flight in each direction.
    pub delay: Duration,
    /// Resets the connection after this many bytes from the client to the server. They count as TCP
    /// payload, per connection, and the server still receives them.
    pub cut_after: Option<u64>,
    /// The same limit for bytes from the server to the client.
    pub cut_down_after: Option<u64>,
    /// Resets the connection at this age.
    pub lasts: Option<Duration>,
}

/// Conditions of one connection. `stands_still` tells if the machine behind it is frozen now; then
/// nothing arrives either way until it thaws. The connection polls it, if it is set.
pub(super) struct ConnectionConditions {
    pub(super) link: LinkConditions,
    pub(super) stands_still: Option<StandsStill>,
    /// Status of an HTTP server that answers in place of the gateway.
    pub(super) status: Option<u16>,
}

/// Predicate of [`ConnectionConditions`]: the machine is frozen.
pub(super) type StandsStill = Box<dyn Fn() -> bool + Send + Sync>;

impl From<LinkConditions> for ConnectionConditions {
    fn from(link: LinkConditions) -> Self {
        Self { link, stands_still: None, status: None }
    }
}

/// Traffic counters over all connections.
#[derive(Debug, Default)]
pub(super) struct Meter {
    pub(super) connections: AtomicU64,
    pub(super) up_bytes: AtomicU64,
    pub(super) down_bytes: AtomicU64,
}

/// Reason why one direction ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Its source ended, and everything was delivered.
    Eof,
    /// A cut: the chosen byte was reached.
    Cut,
}

/// Carries bytes between `socket` and `inside` until the inside closes, the client is gone or a cut
/// is due.
///
/// The end of the client's input is passed on to the inside. The end of the inside closes the
/// socket.
pub(super) async fn carry(
    socket: TcpStream,
    inside: DuplexStream,
    conditions: ConnectionConditions,
    meter: Arc<Meter>,
) {
    let ConnectionConditions { link, stands_still, .. } = conditions;
    let mut wire = Wire { socket, at_peace: false };
    let (mut from_client, mut to_client) = wire.socket.split();
    let (mut from_inside, mut to_inside) = tokio::io::split(inside);
    let ended = {
        let mut up = pin!(one_way(
            &mut from_client,
            &mut to_inside,
            link.delay,
            link.cut_after,
            stands_still.as_ref(),
            |n| {
                meter.up_bytes.fetch_add(n, Ordering::Relaxed);
            },
            |_| {},
        ));
        let mut down = pin!(one_way(
            &mut from_inside,
            &mut to_client,
            link.delay,
            link.cut_down_after,
            stands_still.as_ref(),
            |_| {},
            |n| {
                meter.down_bytes.fetch_add(n, Ordering::Relaxed);
            },
        ));
        let mut expired = pin!(async {
            match link.lasts {
                Some(lasts) => tokio::time::sleep(lasts).await,
                None => std::future::pending().await,
            }
        });
        let mut up_is_open = true;
        loop {
            tokio::select! {
                () = &mut expired => break Ok(End::Cut),
                end = &mut down => break end,
                end = &mut up, if up_is_open => match end {
                    Ok(End::Eof) | Err(_) => up_is_open = false,
                    Ok(End::Cut) => break Ok(End::Cut),
                },
            }
        }
    };
    if matches!(ended, Ok(End::Eof)) {
        let mut rest = [0; 4096];
        let drained = async { while matches!(from_client.read(&mut rest).await, Ok(1..)) {} };
        let _ = tokio::time::timeout(LINGER, drained).await;
        wire.at_peace = true;
    }
}

/// A client's socket. Unless the connection was closed in order, dropping the socket resets it,
/// after a cut as after the sandbox's end. A reset loses the bytes in its buffers, as on a broken
/// link, and the client notices it. (websocat ignores a mere end of input.)
struct Wire {
    socket: TcpStream,
    at_peace: bool,
}

impl Drop for Wire {
    fn drop(&mut self) {
        if !self.at_peace {
            let _ = self.socket.set_zero_linger();
        }
    }
}

/// One direction: reads, waits for the delay, waits for the machine to thaw, writes. `on_read` and
/// `on_written` get the number of bytes.
async fn one_way<R, W>(
    reader: &mut R,
    writer: &mut W,
    delay: Duration,
    cut_after: Option<u64>,
    stands_still: Option<&StandsStill>,
    on_read: impl Fn(u64),
    on_written: impl Fn(u64),
) -> io::Result<End>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (line_in, line_out) = delay_line(delay);
    // This owns the entrance of the line, which closes with it. The bytes in flight then still
    // arrive.
    let take = async move {
        let mut left = cut_after.unwrap_or(u64::MAX);
        let mut buffer = BytesMut::new();
        while left > 0 {
            buffer.reserve(READ_SIZE / 4);
            let limit = left.min(READ_SIZE as u64);
            // A reset ends the input like a close.
            let read = (&mut *reader).take(limit).read_buf(&mut buffer).await.unwrap_or(0);
            if read == 0 {
                return Ok(End::Eof);
            }
            on_read(read as u64);
            left = left.saturating_sub(read as u64);
            if !line_in.send(buffer.split().freeze()).await {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
        Ok(End::Cut)
    };
    let put = async move {
        let mut line_out = line_out;
        while let Some(chunk) = line_out.receive().await {
            while stands_still.is_some_and(|stands_still| stands_still()) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            writer.write_all(&chunk).await?;
            writer.flush().await?;
            on_written(chunk.len() as u64);
        }
        Ok::<_, io::Error>(writer)
    };
    // A failed write must not wait for the reader: either failure ends both.
    let (end, writer) = tokio::try_join!(take, put)?;
    if end == End::Eof {
        writer.shutdown().await?;
    }
    Ok(end)
}

/// Entrance of a delay line.
struct LineIn {
    delay: Duration,
    space: Arc<Semaphore>,
    chunks: mpsc::UnboundedSender<Delayed>,
}

/// Exit of a delay line.
struct LineOut {
    chunks: mpsc::UnboundedReceiver<Delayed>,
}

/// A chunk in flight, with its share of the line's capacity.
struct Delayed {
    due: Instant,
    chunk: Bytes,
    _room: OwnedSemaphorePermit,
}

/// Makes a line on which every chunk is due `delay` after it was sent, independent of other chunks.
/// The capacity counts bytes and not chunks, because a fast link with a long delay holds many
/// chunks.
fn delay_line(delay: Duration) -> (LineIn, LineOut) {
    let capacity = if delay.is_zero() { 4 * READ_SIZE } else { UNDER_WAY_MAX };
    let (sender, receiver) = mpsc::unbounded_channel();
    (
        LineIn { delay, space: Arc::new(Semaphore::new(capacity)), chunks: sender },
        LineOut { chunks: receiver },
    )
}

impl LineIn {
    /// Sends a chunk once there is room for it. Returns false if the receiver is gone.
    async fn send(&self, chunk: Bytes) -> bool {
        let due = Instant::now() + self.delay;
        let cost = u32::try_from(chunk.len().max(CHUNK_COST_MIN)).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.space).acquire_many_owned(cost).await else {
            return false;
        };
        self.chunks.send(Delayed { due, chunk, _room: room }).is_ok()
    }
}

impl LineOut {
    /// Waits for the next chunk until it is due; `None` after the last.
    async fn receive(&mut self) -> Option<Bytes> {
        let delayed = self.chunks.recv().await?;
        if delayed.due > Instant::now() {
            tokio::time::sleep_until(delayed.due).await;
        }
        Some(delayed.chunk)
    }
}
