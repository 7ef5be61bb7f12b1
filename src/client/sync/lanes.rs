//! Opens further lanes for an upload: over channels of its SSH connection where OpenSSH's window
//! limits it, and over further connections where losses do.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};

use crate::exchange::lanes::{Entrance, OpenLanes};
use crate::log::debug;
use crate::remote::{self, Acknowledged, Agent, AgentImage, Connection};
use crate::sync::congestion::Losses;
use crate::sync::meter::Count;
use crate::wire::hello::MAGIC;
use crate::wire::lanes::{Announcement, CHANNELS_MAX, FURTHER_CONNECTIONS_MAX, LANES_MAX, Token};

/// Round-trip time for which one lane pays. OpenSSH's window of 2 MiB per 12.5 ms is more than 1
/// Gbit/s, and a lane reaches two thirds of that.
const ROUND_TRIP_PER_LANE: Duration = Duration::from_micros(12_500);

/// On connections with a shorter round trip, a single lane is as fast as the machines.
const ROUND_TRIP_MIN: Duration = Duration::from_millis(15);

/// Bytes that the other side reads in a round trip, from which OpenSSH's window limits a single
/// lane: half the window. Below that the link is the limit. There the main lane is enough, and what
/// is sent arrives in order.
const READ_BYTES_MIN: f64 = (1 << 20) as f64;

/// Shortest time to measure that. A server may adjust a window only when half of it was read, so
/// over a slow link a megabyte seems to be read at once.
const PACE_SPAN_MIN: Duration = Duration::from_millis(250);

/// Shortest and longest time between two looks at the TCP sender.
const LOOK_SPAN_MIN: Duration = Duration::from_millis(200);
const LOOK_SPAN_MAX: Duration = Duration::from_millis(500);

/// Pause between two looks, in durations of a look.
const LOOK_PAUSE: u32 = 50;

/// Attempts of a lane to join. Each waits ten seconds for the announcement, which may take longer
/// over a link with many losses.
const JOIN_ATTEMPTS: usize = 6;

/// The number of lanes that pay at this round trip.
fn worthwhile(round_trip: Duration) -> usize {
    if round_trip < ROUND_TRIP_MIN {
        return 1;
    }
    let lanes = round_trip.as_micros().div_ceil(ROUND_TRIP_PER_LANE.as_micros());
    usize::try_from(lanes).unwrap_or(CHANNELS_MAX).min(CHANNELS_MAX)
}

/// A request for lanes.
struct Request {
    token: Token,
    lanes: usize,
    entrance: Entrance,
}

/// Requests lanes, from a thread of the exchange.
pub(super) struct Asking {
    worthwhile: Arc<AtomicUsize>,
    requests: mpsc::UnboundedSender<Request>,
    filled: Arc<Notify>,
}

/// Opens the requested lanes, beside the exchange.
pub(super) struct Opening {
    worthwhile: Arc<AtomicUsize>,
    requests: mpsc::UnboundedReceiver<Request>,
    /// Signals that so many bytes wait that channels pay.
    filled: Arc<Notify>,
    up_bytes: Count,
}

/// Creates both ends. Bytes of the lanes are added to `up_bytes`.
pub(super) fn pair(up_bytes: Count) -> (Asking, Opening) {
    let worthwhile = Arc::new(AtomicUsize::new(1));
    let (sender, requests) = mpsc::unbounded_channel();
    let filled = Arc::<Notify>::default();
    let asking =
        Asking { worthwhile: Arc::clone(&worthwhile), requests: sender, filled: Arc::clone(&filled) };
    (asking, Opening { worthwhile, requests, filled, up_bytes })
}

impl OpenLanes for Asking {
    fn worthwhile(&self) -> usize {
        self.worthwhile.load(Ordering::Relaxed)
    }

    fn open(&self, entrance: Entrance) -> Option<Announcement> {
        let (token, lanes) = (remote::token()?, self.worthwhile());
        self.requests.send(Request { token, lanes, entrance }).ok()?;
        // Further connections may join later, if they turn out to pay.
        let lanes = (lanes + FURTHER_CONNECTIONS_MAX).min(LANES_MAX);
        Some(Announcement { token, lanes: u8::try_from(lanes).ok()? })
    }

    fn fills(&self) {
        self.filled.notify_one();
    }
}

impl Opening {
    /// Opens lanes over `connection` on request: the chosen number, or as many as pay. Each
    /// starts the agent `image`. Never ends.
    pub(super) async fn run(
        mut self,
        connection: &Connection,
        image: &AgentImage,
        chosen: Option<usize>,
        acknowledged: Acknowledged,
    ) -> std::convert::Infallible {
        let lanes =
            chosen.map_or_else(|| worthwhile(connection.round_trip()), |lanes| lanes.clamp(1, CHANNELS_MAX));
        debug!(
            "lanes worthwhile={lanes} round_trip_us={} chosen={}",
            connection.round_trip().as_micros(),
            chosen.is_some()
        );
        self.worthwhile.store(lanes, Ordering::Relaxed);
        if let Some(request) = self.requests.recv().await {
            let channels = async {
                self.filled.notified().await;
                let pace = Pace { since: Instant::now(), bytes: acknowledged.bytes() };
                let pays = async || {
                    if chosen.is_none() {
                        window_limits(&acknowledged, pace, connection.round_trip()).await;
                    }
                };
                let lanes = (1..request.lanes).map(|_| self.open_one(connection, image, &request, &pays));
                // A server may allow no more sessions; then the open lanes must suffice.
                let opened = futures_util::future::join_all(lanes).await;
                debug!("lanes asked={} joined={}", opened.len(), opened.iter().flatten().count());
            };
            let connections = async {
                // The chosen number is a number of channels.
                if chosen.is_none() {
                    losses_limit(connection).await;
                    self.open_connections(connection, image, &request).await;
                }
            };
            tokio::join!(channels, connections);
        }
        std::future::pending().await
    }

    /// Opens further connections with a lane each, and keeps them. A connection that fails, or that
    /// leads to another machine, is left out.
    async fn open_connections(&self, connection: &Connection, image: &AgentImage, request: &Request) {
        let open = async || {
            let another = connection.another().await.ok()?;
            for _ in 0..JOIN_ATTEMPTS {
                if self.open_one(&another, image, request, &async || ()).await.is_some() {
                    return Some(another);
                }
            }
            None
        };
        let opened = futures_util::future::join_all((0..FURTHER_CONNECTIONS_MAX).map(|_| open())).await;
        debug!("connections asked={} joined={}", opened.len(), opened.iter().flatten().count());
        std::future::pending().await
    }

    /// Opens a lane, and adds it once it `pays`.
    async fn open_one(
        &self,
        connection: &Connection,
        image: &AgentImage,
        request: &Request,
        pays: &impl AsyncFn(),
    ) -> Option<()> {
        let agent = connection.lane(image.clone(), request.token).await.ok()?;
        let Agent { mut reader, writer, .. } = agent;
        let joining = move || {
            let mut answer = MAGIC;
            reader.read_exact(&mut answer).is_ok() && answer == MAGIC
        };
        let has_joined = tokio::task::spawn_blocking(joining).await.ok()?;
        pays().await;
        has_joined.then(|| request.entrance.add(Box::new(self.up_bytes.meter(writer))))
    }
}

/// The acknowledged bytes at a time.
#[derive(Debug, Clone, Copy)]
struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    /// True if so many bytes were read since then that the window limits the lane.
    fn is_limited(self, bytes: u64, now: Instant, round_trip: Duration) -> bool {
        let round_trips = now.duration_since(self.since).as_secs_f64() / round_trip.as_secs_f64();
        bytes.saturating_sub(self.bytes) as f64 >= READ_BYTES_MIN * round_trips.max(1.0)
    }
}

/// Waits until the window limits the main lane, and not the link.
async fn window_limits(acknowledged: &Acknowledged, begin: Pace, round_trip: Duration) {
    let mut last = begin;
    loop {
        let now = Pace { since: Instant::now(), bytes: acknowledged.bytes() };
        if [begin, last].iter().any(|pace| pace.is_limited(now.bytes, now.since, round_trip)) {
            return;
        }
        last = now;
        tokio::time::sleep(PACE_SPAN_MIN.max(4 * round_trip)).await;
    }
}

/// Waits until losses limit the connection's TCP sender, and not the link.
async fn losses_limit(connection: &Connection) {
    let round_trip = connection.round_trip();
    let span = round_trip.clamp(LOOK_SPAN_MIN, LOOK_SPAN_MAX);
    let mut losses = Losses::over(u64::try_from(round_trip.as_millis()).unwrap_or(u64::MAX));
    let (mut last, mut cost) = (Instant::now(), Duration::ZERO);
    loop {
        // A machine with many sockets has a long table.
        tokio::time::sleep(span.max(LOOK_PAUSE * cost)).await;
        let passed = last.elapsed();
        last += passed;
        let sender = connection.tcp_sender();
        cost = last.elapsed();
        let passed_ms = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        if sender.is_some_and(|sender| losses.limit(sender, passed_ms)) {
            debug!("connections why=losses sender={sender:?}");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_round_trip_justifies_more_lanes() {
        for (round_trip_ms, lanes) in
            [(0, 1), (14, 1), (15, 2), (25, 2), (50, 4), (80, 7), (100, 8), (300, 8)]
        {
            assert_eq!(worthwhile(Duration::from_millis(round_trip_ms)), lanes, "{round_trip_ms}");
        }
        assert_eq!(worthwhile(Duration::MAX), CHANNELS_MAX);
    }

    #[test]
    fn lanes_wait_until_the_window_limits_the_main_lane() {
        let (since, round_trip) = (Instant::now(), Duration::from_millis(50));
        let pace = Pace { since, bytes: 1000 };
        let is_limited =
            |bytes: u64, ms| pace.is_limited(1000 + bytes, since + Duration::from_millis(ms), round_trip);
        assert!(is_limited(2 << 20, 100) && is_limited(40 << 20, 1000));
        assert!(!is_limited((2 << 20) - 1, 100));
        assert!(!is_limited(250_000, 100), "20 Mbit/s");
    }
}
