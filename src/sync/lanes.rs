//! Opens further lanes for an upload, over channels of its own SSH session.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::exchange::lanes::{Entrance, OpenLanes};
use crate::remote::{self, Agent, AgentImage, Connection};
use crate::sync::meter::Count;
use crate::wire::hello::MAGIC;
use crate::wire::lanes::{Announcement, LANES_MAX, Token};

/// For so much of a round trip one lane pays: OpenSSH's window of 2 MiB in 12.5 ms is more than 1 Gbit/s, of
/// which a lane reaches two thirds.
const ROUND_TRIP_PER_LANE: Duration = Duration::from_micros(12_500);

/// On shorter ways a single lane is as fast as the machines are.
const ROUND_TRIP_MIN: Duration = Duration::from_millis(15);

/// How many lanes pay on a way with this round trip.
fn worthwhile(round_trip: Duration) -> usize {
    if round_trip < ROUND_TRIP_MIN {
        return 1;
    }
    let lanes = round_trip.as_micros().div_ceil(ROUND_TRIP_PER_LANE.as_micros());
    usize::try_from(lanes).unwrap_or(LANES_MAX).min(LANES_MAX)
}

/// What lanes are asked for.
struct Request {
    token: Token,
    lanes: usize,
    entrance: Entrance,
}

/// Asks for lanes, from a thread of the exchange.
pub(super) struct Asking {
    worthwhile: Arc<AtomicUsize>,
    requests: mpsc::UnboundedSender<Request>,
}

/// Opens them, beside the exchange.
pub(super) struct Opening {
    worthwhile: Arc<AtomicUsize>,
    requests: mpsc::UnboundedReceiver<Request>,
    up_bytes: Count,
}

/// Both ends. What goes over the lanes is added to `up_bytes`.
pub(super) fn pair(up_bytes: Count) -> (Asking, Opening) {
    let worthwhile = Arc::new(AtomicUsize::new(1));
    let (sender, requests) = mpsc::unbounded_channel();
    let asking = Asking { worthwhile: Arc::clone(&worthwhile), requests: sender };
    (asking, Opening { worthwhile, requests, up_bytes })
}

impl OpenLanes for Asking {
    fn worthwhile(&self) -> usize {
        self.worthwhile.load(Ordering::Relaxed)
    }

    fn open(&self, entrance: Entrance) -> Option<Announcement> {
        let (token, lanes) = (remote::token()?, self.worthwhile());
        self.requests.send(Request { token, lanes, entrance }).ok()?;
        Some(Announcement { token, lanes: u8::try_from(lanes).ok()? })
    }
}

impl Opening {
    /// Opens lanes over `connection` when it is asked to, as many as were chosen, or as pay. Never ends.
    pub(super) async fn run(
        mut self,
        connection: &Connection,
        chosen: Option<usize>,
    ) -> std::convert::Infallible {
        let lanes =
            chosen.map_or_else(|| worthwhile(connection.round_trip()), |lanes| lanes.clamp(1, LANES_MAX));
        self.worthwhile.store(lanes, Ordering::Relaxed);
        if let Some(request) = self.requests.recv().await {
            let lanes = (1..request.lanes).map(|_| self.open_one(connection, &request));
            // A server may have no more sessions; then those that there are have to do.
            let _ = futures_util::future::join_all(lanes).await;
        }
        std::future::pending().await
    }

    async fn open_one(&self, connection: &Connection, request: &Request) -> Option<()> {
        let agent = connection.lane_from(AgentImage::embedded(), request.token).await.ok()?;
        let Agent { mut reader, writer, .. } = agent;
        let (entrance, writer) = (request.entrance.clone(), self.up_bytes.meter(writer));
        let joining = move || {
            let mut answer = MAGIC;
            if reader.read_exact(&mut answer).is_ok() && answer == MAGIC {
                entrance.add(Box::new(writer));
            }
        };
        tokio::task::spawn_blocking(joining).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_the_way_the_more_lanes() {
        for (round_trip_ms, lanes) in
            [(0, 1), (14, 1), (15, 2), (25, 2), (50, 4), (80, 7), (100, 8), (300, 8)]
        {
            assert_eq!(worthwhile(Duration::from_millis(round_trip_ms)), lanes, "{round_trip_ms}");
        }
        assert_eq!(worthwhile(Duration::MAX), LANES_MAX);
    }
}
