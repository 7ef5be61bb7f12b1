//! The delay before the next attempt.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const MOST: Duration = Duration::from_secs(30);

/// A delay that doubles from a quarter of a second to half a minute. Each delay is multiplied by a
/// random factor from 0.75 to 1.25, so clients that were cut off together do not reconnect
/// together.
#[derive(Debug)]
pub(super) struct Backoff {
    wait: Duration,
    random: fn() -> u64,
}

impl Default for Backoff {
    fn default() -> Self {
        // The system seeds each of them.
        Self { wait: FIRST, random: || RandomState::new().hash_one(0) }
    }
}

impl Backoff {
    /// The delay before the next attempt.
    pub(super) fn next(&mut self) -> Duration {
        let share = (self.random)() as f64 / u64::MAX as f64;
        let wait = self.wait.mul_f64(0.75 + share / 2.0);
        self.wait = MOST.min(self.wait * 2);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_half_a_minute_with_jitter() {
        let waits = |random| {
            let mut backoff = Backoff { random, ..Backoff::default() };
            (0..9).map(|_| backoff.next().as_millis()).collect::<Vec<_>>()
        };
        assert_eq!(waits(|| 0), [187, 375, 750, 1500, 3000, 6000, 12_000, 22_500, 22_500]);
        assert_eq!(waits(|| u64::MAX), [312, 625, 1250, 2500, 5000, 10_000, 20_000, 37_500, 37_500]);
        let mut backoff = Backoff::default();
        assert!((187..=313).contains(&backoff.next().as_millis()));
    }
}
