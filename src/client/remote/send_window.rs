//! `SendWindow`: the send window, which limits the bytes that pile up before an agent that has not
//! read them yet.
//!
//! sshd keeps such bytes in a buffer that grows one packet at a time. At each growth sshd copies
//! the whole buffer (`sshbuf_allocate` in OpenSSH's sshbuf.c). Until the buffer holds a window of 2
//! MiB, sshd has copied 64 MiB, to fresh pages. That costs 0.1 s on one processor for the first 2
//! MiB of an upload that the agent does not read at once. Over a short round trip few bytes in
//! flight suffice to keep the link busy, so the send window is small there.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::select;
use tokio::sync::Notify;

/// Window that OpenSSH gives a session's channel (`CHAN_SES_WINDOW_DEFAULT` in its channels.h).
/// Another server's window is unknown: [`SendWindow`] soon gives up if it is smaller, and admits
/// more if it is larger.
pub(crate) const SERVER_WINDOW_BYTES: usize = 2 << 20;

/// Bytes after which OpenSSH adjusts the window: more than three packets (`channel_check_window`).
const ADJUSTED_BYTES_MIN: usize = 96 << 10;

/// Smallest send window: several times [`ADJUSTED_BYTES_MIN`].
const WINDOW_BYTES_MIN: usize = 512 << 10;

/// A rate that no WebSocket and sshd reach. The send window may be this rate times the round trip.
const BYTES_PER_SECOND_MAX: f64 = 250e6;

/// Round trip above which the send window has no limit. (A busy sshd makes the round trip look
/// longer than it is.)
const ROUND_TRIP_MAX: Duration = Duration::from_millis(30);

/// Wait for a window adjustment, after which the send window doubles.
const ADJUSTMENT_TIMEOUT: Duration = Duration::from_millis(20);

/// The bytes in flight to the agent, and their limit.
pub(super) struct SendWindow {
    state: Mutex<State>,
    read: Notify,
    /// Tells the time.
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
}

#[derive(Debug)]
struct State {
    in_flight: usize,
    bytes_max: usize,
    first: First,
}

/// Progress of the round trip measurement: bytes sent, then the time at which an adjustment was
/// due, then done.
#[derive(Debug)]
enum First {
    Sent(usize),
    Due(Instant),
    Measured,
}

impl SendWindow {
    /// Makes a send window for a link with this round trip or a shorter one. `clock` tells the
    /// time.
    pub(super) fn over(round_trip: Duration, clock: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        let bytes_max = if round_trip > ROUND_TRIP_MAX { SERVER_WINDOW_BYTES } else { WINDOW_BYTES_MIN };
        let state = State { in_flight: 0, bytes_max, first: First::Sent(0) };
        Self { state: Mutex::new(state), read: Notify::new(), clock: Box::new(clock) }
    }

    /// Waits until `count` more bytes may be in flight. `sleep` waits for a timeout.
    pub(super) async fn admit<S: Future>(&self, count: usize, sleep: impl Fn(Duration) -> S) {
        while !self.state().admits(count) {
            select! {
                biased;
                () = self.read.notified() => {}
                // The round trip is long, the agent is busy, or the server seldom adjusts the
                // window.
                _ = sleep(ADJUSTMENT_TIMEOUT) => self.state().bytes_max *= 2,
            }
        }
        let mut state = self.state();
        state.in_flight += count;
        if let First::Sent(sent) = &mut state.first {
            *sent += count;
            if *sent > ADJUSTED_BYTES_MIN {
                state.first = First::Due((self.clock)());
            }
        }
    }

    /// Handles a window adjustment: the other side has room for `window` bytes. Returns the number
    /// of bytes that it has read since the last one.
    pub(super) fn has_room(&self, window: u32) -> u64 {
        let mut state = self.state();
        if let First::Due(since) = state.first {
            state.first = First::Measured;
            let passed = (self.clock)() - since;
            let under_way = (passed.as_secs_f64() * BYTES_PER_SECOND_MAX) as usize;
            state.bytes_max = state.bytes_max.max(under_way);
        }
        let in_flight = SERVER_WINDOW_BYTES.saturating_sub(window as usize);
        let read = state.in_flight.saturating_sub(in_flight);
        state.in_flight = in_flight;
        self.read.notify_one();
        read as u64
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn admits(&self, count: usize) -> bool {
        self.in_flight + count <= self.bytes_max || self.bytes_max >= SERVER_WINDOW_BYTES
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, ready};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures_util::FutureExt;

    use super::*;

    const PACKET: usize = 32 << 10;

    /// Counts the packets, of at most `most`, that are admitted without waiting.
    fn admitted(send_window: &SendWindow, most: usize) -> usize {
        let is_admitted = |_: &usize| send_window.admit(PACKET, |_| pending::<()>()).now_or_never().is_some();
        (0..most).take_while(is_admitted).count()
    }

    /// Reports room for all but `packets` packets.
    fn adjust(send_window: &SendWindow, packets: usize) -> u64 {
        send_window.has_room((SERVER_WINDOW_BYTES - packets * PACKET) as u32)
    }

    /// Counts the packets that are admitted after an adjustment that takes this long.
    fn admitted_after(round_trip: Duration) -> usize {
        let (begin, passed_ms) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let passed = Arc::clone(&passed_ms);
        let clock = move || begin + Duration::from_millis(passed.load(Ordering::Relaxed));
        let send_window = SendWindow::over(Duration::ZERO, clock);
        assert_eq!(admitted(&send_window, 4), 4);
        passed_ms.store(round_trip.as_millis() as u64, Ordering::Relaxed);
        adjust(&send_window, 0);
        admitted(&send_window, 1000)
    }

    #[test]
    fn a_short_round_trip_keeps_few_bytes_in_flight() {
        let most = WINDOW_BYTES_MIN / PACKET;
        let send_window = SendWindow::over(ROUND_TRIP_MAX, Instant::now);
        send_window.state().first = First::Measured;
        assert_eq!(admitted(&send_window, 1000), most);
        assert_eq!(adjust(&send_window, most - 3), 3 * PACKET as u64);
        assert_eq!(admitted(&send_window, 1000), 3);
    }

    #[test]
    fn a_long_round_trip_makes_no_write_wait() {
        let send_window = SendWindow::over(2 * ROUND_TRIP_MAX, Instant::now);
        assert_eq!(admitted(&send_window, 1000), 1000);
        // At the assumed rate this is worth more than a window.
        assert_eq!(admitted_after(Duration::from_millis(10)), 1000);
    }

    #[test]
    fn a_measured_round_trip_sets_the_limit() {
        assert_eq!(admitted_after(Duration::from_millis(1)), WINDOW_BYTES_MIN / PACKET);
        assert_eq!(admitted_after(Duration::from_millis(4)), 1_000_000 / PACKET);
    }

    #[test]
    fn a_server_without_window_adjustments_does_not_stop_the_sender() {
        let send_window = SendWindow::over(Duration::ZERO, Instant::now);
        let waits = Cell::new(0);
        let sleep = |timeout| {
            assert_eq!(timeout, ADJUSTMENT_TIMEOUT);
            waits.set(waits.get() + 1);
            ready(())
        };
        for _ in 0..1000 {
            send_window.admit(PACKET, sleep).now_or_never().unwrap();
        }
        // The limit doubles until it is the server's window.
        assert_eq!(WINDOW_BYTES_MIN << waits.get(), SERVER_WINDOW_BYTES);
    }

    #[test]
    fn a_waiting_write_goes_on_when_the_server_adjusts_its_window() {
        let send_window = SendWindow::over(Duration::ZERO, Instant::now);
        send_window.state().first = First::Measured;
        admitted(&send_window, 1000);
        let mut waiting = Box::pin(send_window.admit(PACKET, |_| pending::<()>()));
        assert!(waiting.as_mut().now_or_never().is_none());
        adjust(&send_window, 0);
        assert!(waiting.now_or_never().is_some());
    }
}
