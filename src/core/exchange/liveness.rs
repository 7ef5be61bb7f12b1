//! Liveness: how a side notices that its peer is gone, and shows its own life.
//!
//! A peer can stop without the connection ending: a process is stopped, a VM is paused, a laptop
//! sleeps. The SSH server in between goes on answering, so only the two ends can tell. Both send a
//! [`Common::Heartbeat`](crate::wire::message::Common) when they have written nothing else for a
//! while. The writer's thread sends it, so a peer that waits for a slow disk beats too. The message
//! says whether its sender is at work.
//!
//! A peer counts as alive in each of these cases:
//! - A message arrived from it, or 4 KiB more of one on any lane, or 16 KiB of anything on its
//!   connection.
//! - It beats, and is at work or took in something from this side since its last heartbeat.
//! - It beats, and this side waits for nothing: it has works of its own under way, or rests between
//!   two rounds.
//! - This side does not read, because its engine has not taken the messages that arrived.
//!
//! A peer that only beats while this side waits for it counts as dead after a while. It has at
//! least a minute, since on a slow link an SSH packet of 32 KiB takes a while to complete.
//!
//! Time is counted in ticks while this process runs. While the process is stopped or its machine
//! sleeps, no time passes. After that the peer gets some extra time: its messages may still wait to
//! be read.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::engine::Engine;
use crate::exchange::lanes::lane::Lane;
use crate::exchange::mailbox::Mailbox;
use crate::exchange::send_queue::SendQueue;
use crate::wire::message::AbortKind;

/// Most time between two writes. A heartbeat costs about 60 bytes. It replaces SSH's keepalive,
/// which is due after 15 s without traffic.
const HEARTBEAT_MAX: Duration = Duration::from_secs(14);

/// Heartbeats within the timeout for silence.
const HEARTBEATS_PER_SILENCE: u32 = 2;

/// An agent waits longer for its client than the client for its agent, so that the client reports
/// what happened. It does not wait for ever, since it keeps others out of the destination.
const AGENT_FACTOR: u32 = 3;
const AGENT_SILENCE_MIN: Duration = Duration::from_secs(180);

/// Bytes of a message that count as a sign of life. A link that carries one byte a second is none.
/// At 56 kbit/s a message of a megabyte takes two minutes.
const PROGRESS_BYTES: usize = 4 << 10;

/// Bytes of a connection that count as a sign of life; they include packet headers, padding and
/// keepalives.
const CARRIED_BYTES: u64 = 16 << 10;

/// Shortest time that a peer may beat without progress.
const STALL_MIN: Duration = Duration::from_secs(60);

/// Longest interval between two looks at the clock.
const TICK_MAX: Duration = Duration::from_secs(2);
const TICKS_PER_SILENCE: u32 = 10;

/// Excess of a tick that means the process was stopped, or the machine slept.
const SUSPENDED: Duration = Duration::from_secs(4);

/// Timeout for the peer after that: enough for a heartbeat, and for a network that comes back.
const WAKING_TIMEOUT: Duration = Duration::from_secs(15);

/// Times after which a side beats, and after which it gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    heartbeat: Duration,
    silence: Duration,
    /// True if the peer must also make progress.
    is_strict: bool,
}

impl Timeouts {
    /// Timeouts of a client that waits this long for its agent; `None` for zero, which means for
    /// ever.
    #[must_use]
    pub fn of_client(silence: Duration) -> Option<Self> {
        let heartbeat = HEARTBEAT_MAX.min(silence / HEARTBEATS_PER_SILENCE);
        (!silence.is_zero()).then_some(Self { heartbeat, silence, is_strict: true })
    }

    /// Timeouts of an agent whose client waits this long.
    #[must_use]
    pub fn of_agent(silence: Duration) -> Option<Self> {
        let timeout = AGENT_SILENCE_MIN.max(silence.saturating_mul(AGENT_FACTOR));
        Self::of_client(silence).map(|client| Self { silence: timeout, is_strict: false, ..client })
    }
}

/// Signs of life of the peer and of this side. Without timeouts nobody checks them.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    timeouts: Option<Timeouts>,
    /// The peer has sent its first byte. Until then the connecting code watches the time.
    has_begun: AtomicBool,
    /// The peer showed life since the last tick.
    is_alive: AtomicBool,
    /// The peer beat since the last tick, whatever the heartbeat said.
    has_beaten: AtomicBool,
    /// Bytes of an incomplete message.
    unfinished_bytes: AtomicUsize,
    /// Something other than heartbeats arrived since this side's last heartbeat.
    has_heard: AtomicBool,
    /// The engine of this side has not taken the messages that arrived, so nobody reads.
    is_held_up: AtomicBool,
    /// The engine of this side waits for something to arrive or to leave. It does not wait while it
    /// asks the observer.
    is_waiting: AtomicBool,
    /// Works of this side under way.
    works: AtomicUsize,
    /// No round is under way.
    is_resting: AtomicBool,
    /// The link has ended.
    has_ended: AtomicBool,
}

impl Liveness {
    /// Watches a link. `has_begun` is set if the peer has already sent something.
    pub(super) fn new(timeouts: Option<Timeouts>, has_begun: bool) -> Arc<Self> {
        Arc::new(Self { timeouts, has_begun: AtomicBool::new(has_begun), ..Self::default() })
    }

    /// Time without writes after which a heartbeat is due; the longest one if none ever is.
    pub(super) fn heartbeat(&self) -> Duration {
        self.timeouts.map_or(Duration::MAX, |timeouts| timeouts.heartbeat)
    }

    /// The content of a due heartbeat; `None` if it may not be sent yet.
    pub(super) fn beat(&self) -> Option<bool> {
        let is_active = self.has_heard.swap(false, Relaxed) || self.works.load(Relaxed) > 0;
        self.has_begun.load(Relaxed).then_some(is_active)
    }

    /// Takes in a heartbeat.
    pub(super) fn heard_heartbeat(&self, is_active: bool) {
        self.unfinished_bytes.store(0, Relaxed);
        let is_strict = self.timeouts.is_some_and(|timeouts| timeouts.is_strict);
        let waits =
            self.is_waiting.load(Relaxed) && self.works.load(Relaxed) == 0 && !self.is_resting.load(Relaxed);
        self.has_beaten.store(true, Relaxed);
        if is_active || !waits || !is_strict {
            self.is_alive.store(true, Relaxed);
        }
    }

    /// Takes in any other message.
    pub(super) fn heard_message(&self) {
        self.unfinished_bytes.store(0, Relaxed);
        self.went_on();
    }

    fn heard_bytes(&self, count: usize) {
        self.has_begun.store(true, Relaxed);
        if self.unfinished_bytes.fetch_add(count, Relaxed) + count >= PROGRESS_BYTES {
            self.heard_message();
        }
    }

    fn went_on(&self) {
        self.has_heard.store(true, Relaxed);
        self.is_alive.store(true, Relaxed);
    }

    /// Wraps a lane, so that its bytes count as signs of life.
    pub(super) fn listen(self: &Arc<Self>, mut lane: Lane) -> Lane {
        if self.timeouts.is_none() {
            return lane;
        }
        let liveness = Arc::clone(self);
        Lane::of(move |buffer| lane.read(buffer).inspect(|&count| liveness.heard_bytes(count)))
    }

    /// Records whether the reader waits for room in the mailbox.
    pub(super) fn hold_up(&self, is_held_up: bool) {
        self.is_held_up.store(is_held_up, Relaxed);
        self.is_alive.store(true, Relaxed);
    }

    /// Records whether this side's engine waits.
    pub(super) fn wait(&self, is_waiting: bool) {
        self.is_waiting.store(is_waiting, Relaxed);
    }

    /// Records the number of this side's works under way.
    pub(super) fn set_works(&self, works: usize) {
        self.works.store(works, Relaxed);
    }

    /// Records whether this side rests between two rounds.
    pub(super) fn rest(&self, is_resting: bool) {
        self.is_resting.store(is_resting, Relaxed);
    }

    /// Ends the watch.
    pub(super) fn end(&self) {
        self.has_ended.store(true, Relaxed);
    }

    /// Watches the time until the link ends, or the peer has been silent for too long. Then it
    /// closes both the mailbox and the send queue.
    pub(super) fn watch_over<E: Engine>(
        self: &Arc<Self>,
        mailbox: &Arc<Mailbox<E>>,
        send_queue: &Arc<SendQueue<E::Outgoing>>,
        carried: Option<Carried>,
    ) {
        let Some(Timeouts { silence, .. }) = self.timeouts else { return };
        let (liveness, mailbox, send_queue) = (Arc::clone(self), Arc::clone(mailbox), Arc::clone(send_queue));
        thread::spawn(move || {
            let mut clock = Clock::new(silence);
            let mut carried = Carriage { bytes: carried, last: 0 };
            let what = loop {
                if let Some(what) = clock.is_over() {
                    break what;
                }
                let (begun, wall) = (Instant::now(), SystemTime::now());
                thread::sleep(clock.tick);
                if liveness.has_ended.load(Relaxed) {
                    return;
                }
                // Only the wall clock goes on while a machine sleeps.
                let passed = begun.elapsed().max(wall.elapsed().unwrap_or_default());
                let is_alive = liveness.take_life();
                let sign = match (
                    carried.has_come(is_alive) || is_alive,
                    liveness.has_beaten.swap(false, Relaxed),
                ) {
                    (true, _) => Sign::Life,
                    (false, true) => Sign::Heartbeat,
                    (false, false) => Sign::None,
                };
                clock.pass(passed, sign);
            };
            mailbox.close(AbortKind::Timeout, what);
            send_queue.abandon();
        });
    }

    /// True if the peer showed life since the last call, or could not.
    fn take_life(&self) -> bool {
        let is_alive = self.is_alive.swap(false, Relaxed);
        is_alive || self.is_held_up.load(Relaxed) || !self.has_begun.load(Relaxed)
    }
}

/// Returns the number of bytes that arrived so far.
pub type Carried = Box<dyn Fn() -> u64 + Send>;

/// Bytes that a connection carried.
struct Carriage {
    bytes: Option<Carried>,
    last: u64,
}

impl Carriage {
    /// True if enough bytes came since the peer's last sign of life.
    fn has_come(&mut self, is_alive: bool) -> bool {
        let now = self.bytes.as_ref().map_or(0, |bytes| bytes());
        let has_come = now.saturating_sub(self.last) >= CARRIED_BYTES;
        if is_alive || has_come {
            self.last = now;
        }
        has_come
    }
}

/// The peer's sign within a tick.
#[derive(Debug, Clone, Copy)]
enum Sign {
    Life,
    /// A heartbeat of a peer that makes no progress.
    Heartbeat,
    None,
}

/// Counts the peer's silence, and its time without progress.
#[derive(Debug)]
struct Clock {
    tick: Duration,
    silence_max: Duration,
    silence: Duration,
    stall: Duration,
}

impl Clock {
    fn new(silence_max: Duration) -> Self {
        let tick = TICK_MAX.min(silence_max / TICKS_PER_SILENCE);
        Self { tick, silence_max, silence: Duration::ZERO, stall: Duration::ZERO }
    }

    /// Counts a tick that took this long.
    fn pass(&mut self, passed: Duration, sign: Sign) {
        let was_suspended = passed > self.tick + SUSPENDED;
        self.silence = match sign {
            Sign::Life | Sign::Heartbeat => Duration::ZERO,
            Sign::None if was_suspended => self.silence_max.saturating_sub(WAKING_TIMEOUT),
            Sign::None => self.silence + passed,
        };
        self.stall = match sign {
            Sign::Life => Duration::ZERO,
            Sign::Heartbeat | Sign::None if was_suspended => self.stall,
            Sign::Heartbeat | Sign::None => self.stall + passed,
        };
    }

    /// The peer's failure in words, once it has lasted too long.
    fn is_over(&self) -> Option<String> {
        let stall_max = STALL_MIN.max(self.silence_max);
        if self.silence >= self.silence_max {
            Some(format!("nothing was heard from the other side for {} s", self.silence_max.as_secs()))
        } else if self.stall >= stall_max {
            Some(format!("the other side answers, but has made no progress for {} s", stall_max.as_secs()))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn liveness(timeouts: fn(Duration) -> Option<Timeouts>) -> Arc<Liveness> {
        Liveness::new(timeouts(60 * SECOND), true)
    }

    #[test]
    fn heartbeat_is_due_twice_in_a_silence_and_within_fourteen_seconds() {
        for (silence, heartbeat, agent) in [(2, 1, 180), (30, 14, 180), (600, 14, 1800)] {
            let client = Timeouts::of_client(silence * SECOND).unwrap();
            assert_eq!((client.heartbeat, client.silence), (heartbeat * SECOND, silence * SECOND));
            let agent_timeouts = Timeouts::of_agent(silence * SECOND).unwrap();
            assert_eq!(
                (agent_timeouts.heartbeat, agent_timeouts.silence),
                (heartbeat * SECOND, agent * SECOND)
            );
        }
        assert_eq!((Timeouts::of_client(Duration::ZERO), Timeouts::of_agent(Duration::ZERO)), (None, None));
    }

    #[test]
    fn heartbeat_is_life_if_its_sender_works_or_nobody_waits_for_it() {
        let client = liveness(Timeouts::of_client);
        client.wait(true);
        let beats = |is_active| {
            client.heard_heartbeat(is_active);
            client.take_life()
        };
        assert!(beats(true) && !beats(false) && !client.take_life());
        client.set_works(1);
        assert!(beats(false));
        client.set_works(0);
        client.rest(true);
        assert!(beats(false));
        client.rest(false);
        assert!(!beats(false));
        client.wait(false);
        assert!(beats(false), "somebody thinks about a question");
        client.wait(true);
        let agent = liveness(Timeouts::of_agent);
        agent.wait(true);
        agent.heard_heartbeat(false);
        assert!(agent.take_life());
    }

    #[test]
    fn bytes_are_life_by_the_page_and_heartbeats_do_not_add_up() {
        let client = liveness(Timeouts::of_client);
        client.heard_bytes(PROGRESS_BYTES - 1);
        assert!(!client.take_life());
        client.heard_bytes(1);
        assert!(client.take_life() && !client.take_life());
        client.wait(true);
        for _ in 0..PROGRESS_BYTES {
            client.heard_bytes(6);
            client.heard_heartbeat(false);
        }
        assert!(!client.take_life());
        client.heard_message();
        assert!(client.take_life());
    }

    #[test]
    fn heartbeat_tells_whether_its_sender_heard_something_or_works() {
        let agent = liveness(Timeouts::of_agent);
        assert_eq!(agent.beat(), Some(false));
        agent.heard_heartbeat(true);
        assert_eq!(
            agent.beat(),
            Some(false),
            "two sides that wait for each other do not keep each other alive"
        );
        agent.heard_bytes(PROGRESS_BYTES);
        assert_eq!((agent.beat(), agent.beat()), (Some(true), Some(false)));
        agent.set_works(2);
        assert_eq!((agent.beat(), agent.beat()), (Some(true), Some(true)));
        let early = Liveness::new(Timeouts::of_client(SECOND), false);
        assert_eq!(early.beat(), None, "there is nobody yet");
        assert!(early.take_life());
        early.heard_bytes(1);
        assert!(!early.take_life() && early.beat().is_some());
    }

    #[test]
    fn side_that_does_not_read_does_not_judge_its_peer() {
        let client = liveness(Timeouts::of_client);
        client.hold_up(true);
        assert!(client.take_life() && client.take_life());
        client.hold_up(false);
        assert!(client.take_life() && !client.take_life());
    }

    #[test]
    fn silence_counts_only_while_this_process_runs() {
        let mut clock = Clock::new(30 * SECOND);
        let mut pass = |seconds: u32, sign| {
            clock.pass(seconds * SECOND, sign);
            clock.silence.as_secs()
        };
        let none = Sign::None;
        assert_eq!([pass(2, none), pass(2, none), pass(2, Sign::Life), pass(3, none)], [2, 4, 0, 3]);
        assert_eq!(pass(3600, Sign::Life), 0, "what was said meanwhile was read first");
        assert_eq!(pass(3600, none), 15);
        assert_eq!([pass(2, none), pass(2, Sign::Heartbeat)], [17, 0]);
        assert_eq!(clock.is_over(), None);
        clock.pass(5 * SECOND, none);
        clock.pass(25 * SECOND, none);
        assert_eq!(clock.is_over(), None, "it was stopped meanwhile");
        (0..8).for_each(|_| clock.pass(2 * SECOND, none));
        assert_eq!(clock.is_over().unwrap(), "nothing was heard from the other side for 30 s");
        let mut short = Clock::new(5 * SECOND);
        short.pass(60 * SECOND, none);
        assert_eq!(short.silence, Duration::ZERO);
    }

    #[test]
    fn peer_that_beats_without_progress_is_given_up_after_a_minute() {
        for (silence, given_up) in [(2, 60), (30, 60), (100, 100)] {
            let mut clock = Clock::new(silence * SECOND);
            let mut seconds = 0;
            while clock.is_over().is_none() {
                clock.pass(SECOND, Sign::Heartbeat);
                seconds += 1;
            }
            let text = format!("the other side answers, but has made no progress for {given_up} s");
            assert_eq!((seconds, clock.is_over()), (given_up, Some(text)));
        }
    }

    #[test]
    fn connection_bytes_count_from_the_last_sign_of_life() {
        let came = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&came);
        let bytes: Carried = Box::new(move || counted.load(Relaxed) as u64);
        let mut carriage = Carriage { bytes: Some(bytes), last: 0 };
        let mut comes = |count, is_alive| {
            came.fetch_add(count, Relaxed);
            carriage.has_come(is_alive)
        };
        let enough = usize::try_from(CARRIED_BYTES).unwrap();
        assert!(!comes(enough - 1, false) && comes(1, false) && !comes(0, false));
        assert!(!comes(enough - 1, true) && !comes(enough - 1, false));
        assert!(!Carriage { bytes: None, last: 0 }.has_come(false));
    }
}
