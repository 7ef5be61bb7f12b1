//! Opens further lanes for an upload, over channels of its SSH connection.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::exchange::lanes::{Entrance, OpenLanes};
use crate::log::debug;
use crate::remote::{self, Agent, AgentImage, Connection};
use crate::sync::meter::Count;
use crate::wire::hello::MAGIC;
use crate::wire::lanes::{Announcement, LANES_MAX, Token};

/// Round-trip time for which one lane pays. OpenSSH's window of 2 MiB per 12.5 ms is more than 1
/// Gbit/s, and a lane reaches two thirds of that.
const ROUND_TRIP_PER_LANE: Duration = Duration::from_micros(12_500);

/// On connections with a shorter round trip, a single lane is as fast as the machines.
const ROUND_TRIP_MIN: Duration = Duration::from_millis(15);

/// The number of lanes that pay at this round trip.
fn worthwhile(round_trip: Duration) -> usize {
    if round_trip < ROUND_TRIP_MIN {
        return 1;
    }
    let lanes = round_trip.as_micros().div_ceil(ROUND_TRIP_PER_LANE.as_micros());
    usize::try_from(lanes).unwrap_or(LANES_MAX).min(LANES_MAX)
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
}

/// Opens the requested lanes, beside the exchange.
pub(super) struct Opening {
    worthwhile: Arc<AtomicUsize>,
    requests: mpsc::UnboundedReceiver<Request>,
    up_bytes: Count,
}

/// Creates both ends. Bytes of the lanes are added to `up_bytes`.
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
    /// Opens lanes over `connection` on request: the chosen number, or as many as pay. Each
    /// starts the agent `image`. Never ends.
    pub(super) async fn run(
        mut self,
        connection: &Connection,
        image: &AgentImage,
        chosen: Option<usize>,
    ) -> std::convert::Infallible {
        let lanes =
            chosen.map_or_else(|| worthwhile(connection.round_trip()), |lanes| lanes.clamp(1, LANES_MAX));
        debug!(
            "lanes worthwhile={lanes} round_trip_us={} chosen={}",
            connection.round_trip().as_micros(),
            chosen.is_some()
        );
        self.worthwhile.store(lanes, Ordering::Relaxed);
        if let Some(request) = self.requests.recv().await {
            let lanes = (1..request.lanes).map(|_| self.open_one(connection, image, &request));
            // A server may allow no more sessions; then the open lanes must suffice.
            let opened = futures_util::future::join_all(lanes).await;
            debug!("lanes asked={} joined={}", opened.len(), opened.iter().flatten().count());
        }
        std::future::pending().await
    }

    async fn open_one(&self, connection: &Connection, image: &AgentImage, request: &Request) -> Option<()> {
        let agent = connection.lane(image.clone(), request.token).await.ok()?;
        let Agent { mut reader, writer, .. } = agent;
        let (entrance, writer) = (request.entrance.clone(), self.up_bytes.meter(writer));
        let joining = move || {
            let mut answer = MAGIC;
            let has_joined = reader.read_exact(&mut answer).is_ok() && answer == MAGIC;
            has_joined.then(|| entrance.add(Box::new(writer)))
        };
        tokio::task::spawn_blocking(joining).await.ok().flatten()
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
        assert_eq!(worthwhile(Duration::MAX), LANES_MAX);
    }
}
