//! The platform's time: it may run faster than the real one, and it can be moved forward.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// A clock that began at zero when it was made.
#[derive(Debug)]
pub(super) struct Time {
    begun: Instant,
    /// How many of its seconds pass in a real one.
    scale: f64,
    /// By how much it was moved forward.
    advanced: watch::Sender<Duration>,
}

impl Time {
    /// A clock that runs `scale` times as fast as the real one.
    pub(super) fn new(scale: f64) -> Time {
        Time { begun: Instant::now(), scale, advanced: watch::Sender::new(Duration::ZERO) }
    }

    /// How long it has run.
    pub(super) fn now(&self) -> Duration {
        self.scaled(self.begun.elapsed(), self.scale).saturating_add(self.advanced())
    }

    /// By how much it was moved forward.
    pub(super) fn advanced(&self) -> Duration {
        *self.advanced.borrow()
    }

    /// Moves it forward. Who sleeps and is due by then wakes.
    pub(super) fn advance(&self, by: Duration) {
        self.advanced.send_modify(|advanced| *advanced = advanced.saturating_add(by));
    }

    /// Sleeps until so much of its time has passed.
    pub(super) async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now().saturating_add(duration)).await;
    }

    /// Sleeps until it has run so long. For what begins before the sleep does.
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

    /// How long a duration of its time takes when nobody moves it.
    pub(super) fn real(&self, duration: Duration) -> Duration {
        // Never nothing, or a loop that sleeps for what rounding left would be busy.
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
    async fn a_scaled_clock_sleeps_shorter_and_one_that_is_moved_wakes_at_once() {
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
