//! `Pace`: an upper limit of the rate at which bytes leave.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of one portion, in parts of a second. Shorter portions cost more sleeps, and longer ones
/// make the peer wait for a sign of life.
const PORTIONS_PER_SECOND: u64 = 20;

/// Shortest and longest portion, in bytes. The longest is one SSH packet.
const PORTION_BYTES_MIN: u64 = 512;
const PORTION_BYTES_MAX: u64 = 32 << 10;

/// Time that a sender who was late may catch up.
const CATCH_UP_MAX: Duration = Duration::from_millis(200);

/// Limits the bytes of one or several streams together.
#[derive(Debug)]
pub struct Pace {
    rate: u64,
    /// The time from which the next portion may leave.
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// A limit of this many bytes a second; 0 is none.
    #[must_use]
    pub fn of(rate: u64) -> Option<Self> {
        (rate > 0).then(|| Self { rate, next: Mutex::default() })
    }

    /// Bytes that one write may have.
    #[must_use]
    pub fn portion(&self) -> usize {
        let bytes = (self.rate / PORTIONS_PER_SECOND).clamp(PORTION_BYTES_MIN, PORTION_BYTES_MAX);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Waits until a portion of this length may leave.
    pub fn wait(&self, bytes: usize) {
        let now = Instant::now();
        let wait = self.reserve(bytes, now).saturating_duration_since(now);
        if !wait.is_zero() {
            thread::sleep(wait);
        }
    }

    /// Reserves the time of a portion, and returns its beginning.
    fn reserve(&self, bytes: usize, now: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(CATCH_UP_MAX).unwrap_or(now);
        // The first portion leaves after its time: so even a short transfer keeps the limit.
        let took = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        let end = next.unwrap_or(now).max(earliest) + took;
        *next = Some(end);
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rate_is_no_limit() {
        assert!(Pace::of(0).is_none());
    }

    #[test]
    fn portions_take_the_time_of_their_bytes() {
        let (pace, start) = (Pace::of(1000).unwrap(), Instant::now());
        let at = |pace: &Pace, bytes, ms| {
            (pace.reserve(bytes, start + Duration::from_millis(ms)) - start).as_millis()
        };
        assert_eq!([at(&pace, 500, 0), at(&pace, 500, 0), at(&pace, 100, 600)], [500, 1000, 1100]);
        // A pause counts for a fifth of a second only.
        assert_eq!([at(&pace, 100, 9000), at(&pace, 200, 9000)], [8900, 9100]);
    }

    #[test]
    fn portions_are_short_at_any_rate() {
        let portions = [1, 20_000, 100_000, u64::MAX].map(|rate| Pace::of(rate).unwrap().portion());
        assert_eq!(portions, [512, 1000, 5000, 32 << 10]);
    }
}
