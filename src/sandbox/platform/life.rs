//! The life of a session: a state machine that gets the time as an argument and has no side
//! effects.
//!
//! 1. While a client is connected (CDP or WebDriver; not SSH) the session is active.
//! 2. Without a client or a computer-control request it is quiet, and after 5 s in standby.
//! 3. In standby the session's own timeout runs. A client or a request makes it active or quiet
//!    again.
//! 4. When the timeout has run out, or 72 h after its creation, the session is over.

use std::time::Duration;

use serde::Serialize;

/// Quiet time before standby.
const QUIET: Duration = Duration::from_secs(5);

/// Maximum age of a session.
pub(super) const AGE_MAX: Duration = Duration::from_secs(72 * 60 * 60);

/// Stage of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    Active,
    Quiet,
    Standby,
    Over,
}

/// A session's clock. All times count from the platform's start.
#[derive(Debug)]
pub(super) struct Life {
    timeout: Duration,
    begun: Duration,
    clients: usize,
    quiet_since: Duration,
}

impl Life {
    /// Starts a session at `now`, quiet, with `timeout` as its longest standby.
    pub(super) fn new(timeout: Duration, now: Duration) -> Life {
        Life { timeout, begun: now, clients: 0, quiet_since: now }
    }

    /// Records that a client has connected.
    pub(super) fn join(&mut self) {
        self.clients += 1;
    }

    /// Records that a client has disconnected.
    pub(super) fn leave(&mut self, now: Duration) {
        self.clients = self.clients.saturating_sub(1);
        self.touch(now);
    }

    /// Records a request that counts as activity.
    pub(super) fn touch(&mut self, now: Duration) {
        self.quiet_since = self.quiet_since.max(now);
    }

    /// Age of the session.
    pub(super) fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.begun)
    }

    /// Stage of the session at `now`.
    pub(super) fn stage(&self, now: Duration) -> Stage {
        let quiet = now.saturating_sub(self.quiet_since);
        if self.age(now) >= AGE_MAX {
            Stage::Over
        } else if self.clients > 0 {
            Stage::Active
        } else if quiet < QUIET {
            Stage::Quiet
        } else if quiet < QUIET.saturating_add(self.timeout) {
            Stage::Standby
        } else {
            Stage::Over
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn standby_precedes_the_timeout_and_a_client_restarts_it() {
        let mut life = Life::new(at(60), at(100));
        let stages = |life: &Life, times: [u64; 4]| times.map(|time| life.stage(at(time)));
        let all = [Stage::Quiet, Stage::Standby, Stage::Standby, Stage::Over];
        assert_eq!(stages(&life, [104, 105, 164, 165]), all);
        life.join();
        life.join();
        assert_eq!(life.stage(at(9000)), Stage::Active);
        life.leave(at(9000));
        assert_eq!(life.stage(at(9900)), Stage::Active);
        life.leave(at(10_000));
        assert_eq!(stages(&life, [10_004, 10_005, 10_064, 10_065]), all);
        life.touch(at(10_064));
        assert_eq!(stages(&life, [10_068, 10_069, 10_128, 10_129]), all);
    }

    #[test]
    fn no_session_lives_longer_than_three_days() {
        let mut life = Life::new(at(60), at(0));
        life.join();
        assert_eq!(life.stage(AGE_MAX - at(1)), Stage::Active);
        assert_eq!(life.stage(AGE_MAX), Stage::Over);
    }
}
