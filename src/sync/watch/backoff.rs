//! How long to wait before the next try.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const MOST: Duration = Duration::from_secs(30);

/// Doubles from a quarter of a second to half a minute, each taken at three quarters to five quarters of it: clients
/// that were cut off together do not come back together.
#[derive(Debug)]
pub(in crate::sync) struct Backoff {
    wait: Duration,
    random: fn() -> u64,
}

impl Default for Backoff {
    fn default() -> Self {
        // Seeded by the system for each of them.
        Self { wait: FIRST, random: || RandomState::new().hash_one(0) }
    }
}

impl Backoff {
    /// How long to wait now.
    pub(in crate::sync) fn next(&mut self) -> Duration {
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
    fn waits_double_up_to_half_a_minute_and_are_spread() {
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
