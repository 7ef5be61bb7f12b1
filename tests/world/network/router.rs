//! One direction of a simulated router: it decides when a packet arrives, or that it never does.
//!
//! Time comes from the caller. A packet waits in the queue until those before it have left at the
//! link's rate, and then travels for the delay. A full queue drops it, and so does a die with the
//! link's loss.

use std::time::{Duration, Instant};

/// Shortest queue, in bytes: a hundred packets.
const QUEUE_BYTES_MIN: u64 = 150_000;

/// One direction of a link.
#[derive(Debug, Clone)]
pub(crate) struct Router {
    /// Bits per second; `None` means unlimited.
    rate: Option<u64>,
    delay: Duration,
    /// Share of the packets that get lost, from 0 to 1.
    loss: f64,
    /// Bytes that may wait. One bandwidth-delay product, which lets a single connection fill the
    /// link.
    queue_bytes: u64,
    /// Time at which the last booked byte will have left.
    free_at: Option<Instant>,
    /// State of the die.
    die: u64,
    /// Packets that the die dropped, and packets that the full queue dropped.
    pub(crate) lost: u64,
    pub(crate) overflowed: u64,
}

impl Router {
    /// Makes a direction with a die of this seed. `round_trip` is that of the link.
    pub(crate) fn new(rate: Option<u64>, round_trip: Duration, loss: f64, seed: u64) -> Router {
        let product = rate.map_or(0.0, |rate| rate as f64 / 8.0 * round_trip.as_secs_f64()) as u64;
        let (delay, queue_bytes) = (round_trip / 2, product.max(QUEUE_BYTES_MIN));
        Router { rate, delay, loss, queue_bytes, free_at: None, die: seed, lost: 0, overflowed: 0 }
    }

    /// Time at which a packet of `bytes` arrives that was sent `now`; `None` if it is dropped.
    pub(crate) fn arrival(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        let Some(rate) = self.rate else { return self.survives().then(|| now + self.delay) };
        let free_at = self.free_at.map_or(now, |free_at| free_at.max(now));
        let waiting = (free_at - now).as_secs_f64() * rate as f64 / 8.0;
        if waiting as u64 + bytes as u64 > self.queue_bytes {
            self.overflowed += 1;
            return None;
        }
        let leaves = free_at + Duration::from_nanos(bytes as u64 * 8 * 1_000_000_000 / rate);
        self.free_at = Some(leaves);
        // A lost packet has taken its time on the link.
        self.survives().then(|| leaves + self.delay)
    }

    /// Casts the die.
    fn survives(&mut self) -> bool {
        // SplitMix64.
        self.die = self.die.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.die;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let is_lost =
            ((word ^ (word >> 31)) >> 11) as f64 / (1_u64 << 53) as f64 <= self.loss && self.loss > 0.0;
        self.lost += u64::from(is_lost);
        !is_lost
    }
}
