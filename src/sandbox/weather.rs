//! Bad weather between an accepted socket and the WebSocket: a delay each way, and cuts at a chosen byte.

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

/// The most that is read at once, in bytes.
const READ_SIZE: usize = 64 * 1024;

/// What may be under way in one direction of a delayed connection, in bytes: 1 Gbit/s at half a second.
const UNDER_WAY_MAX: usize = 64 << 20;

/// What a delayed chunk costs at least, in bytes, so that tiny chunks cannot fill the memory with bookkeeping.
const CHUNK_COST_MIN: usize = 256;

/// How often a machine that stands still is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long the socket stays open after the last byte was sent. Closing it with unread input would reset the
/// connection, and a reset may destroy what the client has not read yet.
const LINGER: Duration = Duration::from_secs(1);

/// What happens to the bytes of every connection. The default is fair weather: nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// How much later each byte arrives, one way, in each direction. A round trip takes twice as long. The
    /// throughput is not limited: up to 64 MiB may be under way in each direction.
    pub delay: Duration,
    /// The connection is reset once so many bytes of it went from the client to the server (TCP payload,
    /// counted over each connection; the server still gets them).
    pub cut_after: Option<u64>,
    /// The same for what goes from the server to the client.
    pub cut_down_after: Option<u64>,
    /// The connection is reset once it is so old.
    pub lasts: Option<Duration>,
}

/// What the weather is, and whether the machine behind a connection stands still now: then nothing arrives, either way,
/// until it goes on. Asked again and again, if there is anybody to ask.
pub(super) struct Forecast {
    pub(super) weather: Weather,
    pub(super) stands_still: Option<StandsStill>,
    /// The status that an HTTP server answers with, where there is one in place of the gateway.
    pub(super) status: Option<u16>,
}

/// See [`Forecast`].
pub(super) type StandsStill = Box<dyn Fn() -> bool + Send + Sync>;

impl From<Weather> for Forecast {
    fn from(weather: Weather) -> Self {
        Self { weather, stands_still: None, status: None }
    }
}

/// What crossed the wire so far, over all connections.
#[derive(Debug, Default)]
pub(super) struct Meter {
    pub(super) connections: AtomicU64,
    pub(super) up_bytes: AtomicU64,
    pub(super) down_bytes: AtomicU64,
}

/// Why one direction ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Its source ended, and everything was delivered.
    Eof,
    /// The chosen byte was reached.
    Cut,
}

/// Carries bytes between `socket` and `inside` until the inside closes, the client is gone or a cut is due.
///
/// The end of the client's input is passed on to the inside; the end of the inside closes the socket.
pub(super) async fn carry(socket: TcpStream, inside: DuplexStream, forecast: Forecast, meter: Arc<Meter>) {
    let Forecast { weather, stands_still, .. } = forecast;
    let mut wire = Wire { socket, at_peace: false };
    let (mut from_client, mut to_client) = wire.socket.split();
    let (mut from_inside, mut to_inside) = tokio::io::split(inside);
    let ended = {
        let mut up = pin!(one_way(
            &mut from_client,
            &mut to_inside,
            weather.delay,
            weather.cut_after,
            stands_still.as_ref(),
            |n| {
                meter.up_bytes.fetch_add(n, Ordering::Relaxed);
            },
            |_| {},
        ));
        let mut down = pin!(one_way(
            &mut from_inside,
            &mut to_client,
            weather.delay,
            weather.cut_down_after,
            stands_still.as_ref(),
            |_| {},
            |n| {
                meter.down_bytes.fetch_add(n, Ordering::Relaxed);
            },
        ));
        let mut expired = pin!(async {
            match weather.lasts {
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

/// A client's socket. However serving it ends, by a cut or with the sandbox, it is reset unless it was closed
/// at peace: what is still in its buffers is lost, as on a broken link, and the client notices (websocat
/// takes a mere end of input as no reason to go).
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

/// One direction: reads, waits, waits for the machine to go on, writes. `on_read` and `on_written` are told how many bytes.
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
    // Owns the entrance of the line, which closes with it: then what is under way arrives, and that is all.
    let take = async move {
        let mut left = cut_after.unwrap_or(u64::MAX);
        let mut buffer = BytesMut::new();
        while left > 0 {
            buffer.reserve(READ_SIZE / 4);
            let limit = left.min(READ_SIZE as u64);
            // A reset ends the input as a close does.
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

/// The way in of a delay line.
struct LineIn {
    delay: Duration,
    space: Arc<Semaphore>,
    chunks: mpsc::UnboundedSender<Delayed>,
}

/// The way out of a delay line.
struct LineOut {
    chunks: mpsc::UnboundedReceiver<Delayed>,
}

/// A chunk on its way, with the room it takes.
struct Delayed {
    due: Instant,
    chunk: Bytes,
    _room: OwnedSemaphorePermit,
}

/// A line on which every chunk is due `delay` after it was sent, whatever else is under way. Its queue is
/// bounded by bytes, not by chunks: a fast link with long delay holds many.
fn delay_line(delay: Duration) -> (LineIn, LineOut) {
    let capacity = if delay.is_zero() { 4 * READ_SIZE } else { UNDER_WAY_MAX };
    let (sender, receiver) = mpsc::unbounded_channel();
    (
        LineIn { delay, space: Arc::new(Semaphore::new(capacity)), chunks: sender },
        LineOut { chunks: receiver },
    )
}

impl LineIn {
    /// Sends a chunk once there is room for it; false when nobody receives any more.
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
    /// The next chunk, when it is due; `None` after the last.
    async fn receive(&mut self) -> Option<Bytes> {
        let delayed = self.chunks.recv().await?;
        if delayed.due > Instant::now() {
            tokio::time::sleep_until(delayed.due).await;
        }
        Some(delayed.chunk)
    }
}
