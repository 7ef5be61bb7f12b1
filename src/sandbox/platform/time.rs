//! The platform's time, which may run faster than real time, and which tests can advance.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// A clock that started at zero when it was made.
#[derive(Debug)]
pub(super) struct Time {
    begun: Instant,
    /// Seconds of this clock per real second.
    scale: f64,
    /// Total advance.
    advanced: watch::Sender<Duration>,
}

impl Time {
    /// Makes a clock that runs `scale` times as fast as real time.
    pub(super) fn new(scale: f64) -> Time {
        Time { begun: Instant::now(), scale, advanced: watch::Sender::new(Duration::ZERO) }
    }

    /// Time since the clock started.
    pub(super) fn now(&self) -> Duration {
        self.scaled(self.begun.elapsed(), self.scale).saturating_add(self.advanced())
    }

    /// Total advance of the clock.
    pub(super) fn advanced(&self) -> Duration {
        *self.advanced.borrow()
    }

    /// Advances the clock, and wakes every sleeper that is due by then.
    pub(super) fn advance(&self, by: Duration) {
        self.advanced.send_modify(|advanced| *advanced = advanced.saturating_add(by));
    }

    /// Sleeps for `duration` of this clock.
    pub(super) async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now().saturating_add(duration)).await;
    }

    /// Sleeps until the clock shows `due`, for durations that begin before the sleep does.
    pub(super) async fn sleep_until(&self, due: Duration) {
        let mut advanced = self.advanced.subscribe();
        loop {
            advanced.borrow_and_update();
            let left = due.saturating_sub(self.now());
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(self.real(left)) => {}
                _ = advanced.changed() => {}
            }
        }
    }

    /// Real time of a duration of this clock, without an advance.
    pub(super) fn real(&self, duration: Duration) -> Duration {
        // Never zero, or a loop that sleeps for a rounding error would spin.
        self.scaled(duration, 1.0 / self.scale).max(Duration::from_millis(1))
    }

    fn scaled(&self, duration: Duration, factor: f64) -> Duration {
        Duration::try_from_secs_f64(duration.as_secs_f64() * factor).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_scaled_clock_sleeps_less_and_an_advanced_one_wakes_at_once() {
        let time = Time::new(600.0);
        let begun = Instant::now();
        time.sleep(Duration::from_secs(120)).await;
        assert!((0.2..2.0).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
        let begun = Instant::now();
        tokio::join!(time.sleep(Duration::from_secs(60_000)), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            time.advance(Duration::from_secs(60_000));
        });
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        assert!(time.now() > Duration::from_secs(60_120));
    }
}
