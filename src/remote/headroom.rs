//! `Headroom`: keeps what was sent from piling up before an agent that has not read it yet.
//!
//! sshd keeps that in a buffer that grows by a packet at a time and is copied as a whole each time (`sshbuf_allocate`
//! in OpenSSH's sshbuf.c). Until it holds a window, 2 MiB, 64 MiB have been copied, to fresh pages: a tenth of a
//! second on one processor for the first 2 MiB of an upload that the agent does not read at once. Over a short way
//! little need be under way for nobody to wait, so no more is.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;

/// The window that OpenSSH gives a session's channel (`CHAN_SES_WINDOW_DEFAULT` in its channels.h). Of another server
/// less is known: [`Headroom`] gives up soon if its window is smaller, and admits more if it is larger.
const SERVER_WINDOW_BYTES: usize = 2 << 20;

/// OpenSSH tells what was read when it has got more than three packets (`channel_check_window`).
const TOLD_BYTES_MIN: usize = 96 << 10;

/// What may always be under way: several times that.
const AHEAD_BYTES_MIN: usize = 512 << 10;

/// More than comes through a WebSocket and sshd in a second: so much times the round trip may be under way.
const BYTES_PER_SECOND_MAX: f64 = 250e6;

/// Over a way that is surely longer than this nobody is to wait. (It looks longer than it is where sshd is at work.)
const ROUND_TRIP_MAX: Duration = Duration::from_millis(30);

/// For so long nothing is heard of an agent that reads before more is sent all the same.
const PATIENCE: Duration = Duration::from_millis(20);

/// How far a sender is ahead of whoever reads on the other side, and may be.
#[derive(Debug)]
pub(super) struct Headroom {
    state: Mutex<State>,
    read: Notify,
}

#[derive(Debug)]
struct State {
    unread: usize,
    ahead_max: usize,
    first: First,
}

/// What tells how long the way is: when so much had been sent that the other side tells of it, and when it did.
#[derive(Debug)]
enum First {
    Sent(usize),
    Due(Instant),
    Told,
}

impl Headroom {
    /// For a way with this round trip, or a shorter one.
    pub(super) fn over(round_trip: Duration) -> Self {
        let ahead_max = if round_trip > ROUND_TRIP_MAX { SERVER_WINDOW_BYTES } else { AHEAD_BYTES_MIN };
        let state = State { unread: 0, ahead_max, first: First::Sent(0) };
        Self { state: Mutex::new(state), read: Notify::new() }
    }

    /// Waits until `count` bytes more may be under way.
    pub(super) async fn admit(&self, count: usize) {
        while !self.state().admits(count) {
            if timeout(PATIENCE, self.read.notified()).await.is_err() {
                // The way is long, the agent has other things to do, or the server seldom tells.
                self.state().ahead_max *= 2;
            }
        }
        let mut state = self.state();
        state.unread += count;
        if let First::Sent(sent) = &mut state.first {
            *sent += count;
            if *sent > TOLD_BYTES_MIN {
                state.first = First::Due(Instant::now());
            }
        }
    }

    /// The other side told that it has room for so much.
    pub(super) fn has_room(&self, window: u32) {
        let mut state = self.state();
        if let First::Due(since) = state.first {
            state.first = First::Told;
            let under_way = (since.elapsed().as_secs_f64() * BYTES_PER_SECOND_MAX) as usize;
            state.ahead_max = state.ahead_max.max(under_way);
        }
        state.unread = SERVER_WINDOW_BYTES.saturating_sub(window as usize);
        self.read.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn admits(&self, count: usize) -> bool {
        self.unread + count <= self.ahead_max || self.ahead_max >= SERVER_WINDOW_BYTES
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const PACKET: usize = 32 << 10;

    /// How many packets are admitted without waiting, of so many.
    fn admitted(headroom: &Headroom, most: usize) -> usize {
        (0..most).take_while(|_| headroom.admit(PACKET).now_or_never().is_some()).count()
    }

    /// There is room for all but so many packets.
    fn unread(headroom: &Headroom, packets: usize) {
        headroom.has_room((SERVER_WINDOW_BYTES - packets * PACKET) as u32);
    }

    #[tokio::test]
    async fn over_a_short_way_little_is_under_way_until_it_was_read() {
        let most = AHEAD_BYTES_MIN / PACKET;
        let headroom = Headroom::over(ROUND_TRIP_MAX);
        headroom.state().first = First::Told;
        assert_eq!(admitted(&headroom, 1000), most);
        unread(&headroom, most - 3);
        assert_eq!(admitted(&headroom, 1000), 3);
    }

    #[tokio::test]
    async fn over_a_long_way_nobody_waits() {
        let headroom = Headroom::over(2 * ROUND_TRIP_MAX);
        assert_eq!(admitted(&headroom, 1000), 1000);
        let headroom = Headroom::over(Duration::ZERO);
        assert_eq!(admitted(&headroom, 4), 4);
        // That is more than a window at that rate.
        tokio::time::sleep(Duration::from_millis(10)).await;
        unread(&headroom, 0);
        assert_eq!(admitted(&headroom, 1000), 1000);
    }

    #[tokio::test]
    async fn a_server_that_tells_nothing_stops_nobody() {
        let headroom = Headroom::over(Duration::ZERO);
        let begin = Instant::now();
        for _ in 0..1000 {
            headroom.admit(PACKET).await;
        }
        let waited = begin.elapsed();
        assert!(waited >= 2 * PATIENCE && waited < 50 * PATIENCE, "{waited:?}");
    }
}
