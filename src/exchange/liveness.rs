//! Liveness: how a side learns that its peer is gone, and shows its own life.
//!
//! A peer can stop without the connection ending: a process that is stopped, a VM that is paused, a
//! laptop that sleeps. The SSH server in between goes on answering, so only the two ends can tell.
//! Both send a [`Message::Heartbeat`](crate::wire::message::Message) when they have written nothing
//! else for a while. It comes from the writer's thread, so a peer that waits for a slow disk beats
//! too; the message says whether its sender is at work.
//!
//! A peer counts as alive when
//! - a message arrived from it, or 4 KiB more of one, on whichever lane, or 16 KiB of whatever its
//!   connection carries;
//! - it beats and is at work, or took in something of ours since its last heartbeat;
//! - it beats and this side waits for nothing: it has works of its own under way, or rests between
//!   two rounds;
//! - this side does not read, because its engine has not taken what arrived.
//!
//! A peer that beats and neither works nor takes anything in while this side waits for it has as
//! good as died; it has a minute at least, since on a slow link a packet of SSH, 32 KiB, takes a
//! while to be complete.
//!
//! Time is counted in ticks while this process runs. While it is stopped or its machine sleeps no
//! time passes, and after that the peer gets a moment: what it said meanwhile may wait to be read.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::exchange::inbox::Inbox;
use crate::exchange::lanes::Lane;
use crate::exchange::outbox::Outbox;
use crate::exchange::run::Carried;
use crate::wire::message::AbortKind;

/// Most time between two writes. A heartbeat costs some 60 bytes, and spares SSH its keepalive,
/// which is due after 15 s without anything.
const HEARTBEAT_MAX: Duration = Duration::from_secs(14);

/// Heartbeats in the time after which silence means death.
const HEARTBEATS_PER_SILENCE: u32 = 2;

/// An agent waits longer for its client than the client for its agent, so that it is the client who
/// says what happened; but not for ever, since it keeps others out of the destination.
const AGENT_FACTOR: u32 = 3;
const AGENT_SILENCE_MIN: Duration = Duration::from_secs(180);

/// So much more of a message is a sign of life. A link that carries a byte a second is none; one
/// with 56 kbit/s takes two minutes for a message of a megabyte.
const PROGRESS_BYTES: usize = 4 << 10;

/// The same of what a connection carries, where packets, their padding and keepalives are counted
/// too.
const CARRIED_BYTES: u64 = 16 << 10;

/// How long at least a peer may beat without going on.
const STALL_MIN: Duration = Duration::from_secs(60);

/// How often the clock is looked at.
const TICK_MAX: Duration = Duration::from_secs(2);
const TICKS_PER_SILENCE: u32 = 10;

/// A tick that took so much longer than it should: the process was stopped, or the machine slept.
const SUSPENDED: Duration = Duration::from_secs(4);

/// How long a peer has after that: enough for a heartbeat, and for a network that comes back.
const WAKING_PATIENCE: Duration = Duration::from_secs(15);

/// When a side beats, and when it gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    heartbeat: Duration,
    silence: Duration,
    /// Whether a peer has to go on, too.
    is_strict: bool,
}

impl Timeouts {
    /// A client's, which waits for its agent for so long; none for no time at all, which stands for
    /// ever.
    #[must_use]
    pub fn of_client(silence: Duration) -> Option<Self> {
        let heartbeat = HEARTBEAT_MAX.min(silence / HEARTBEATS_PER_SILENCE);
        (!silence.is_zero()).then_some(Self { heartbeat, silence, is_strict: true })
    }

    /// An agent's, whose client waits for so long.
    #[must_use]
    pub fn of_agent(silence: Duration) -> Option<Self> {
        let patience = AGENT_SILENCE_MIN.max(silence.saturating_mul(AGENT_FACTOR));
        Self::of_client(silence).map(|client| Self { silence: patience, is_strict: false, ..client })
    }
}

/// What is known of the peer's life, and of this side's. Without timeouts nobody looks.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    timeouts: Option<Timeouts>,
    /// The peer has said its first byte. Until then whoever connects watches the time.
    has_begun: AtomicBool,
    /// The peer showed life since the last tick.
    is_alive: AtomicBool,
    /// The peer beat since then, whatever it said.
    has_beaten: AtomicBool,
    /// Bytes of a message that is not complete.
    unfinished_bytes: AtomicUsize,
    /// Something other than heartbeats arrived since our own last heartbeat.
    has_heard: AtomicBool,
    /// Our engine has not taken what arrived, so nobody reads.
    is_held_up: AtomicBool,
    /// Our engine waits for something to come, or for something to leave. It does not while whoever
    /// looks on is asked.
    is_waiting: AtomicBool,
    /// Works of ours under way.
    works: AtomicUsize,
    /// No round is under way.
    is_resting: AtomicBool,
    /// The link has ended.
    has_ended: AtomicBool,
}

impl Liveness {
    /// Of a link; the peer has spoken already, or not.
    pub(super) fn new(timeouts: Option<Timeouts>, has_begun: bool) -> Arc<Self> {
        Arc::new(Self { timeouts, has_begun: AtomicBool::new(has_begun), ..Self::default() })
    }

    /// How long nothing may be written before a heartbeat is due.
    pub(super) fn heartbeat(&self) -> Option<Duration> {
        self.timeouts.map(|timeouts| timeouts.heartbeat)
    }

    /// Whether a heartbeat that is due may be sent, and what it says.
    pub(super) fn beat(&self) -> Option<bool> {
        let is_active = self.has_heard.swap(false, Relaxed) || self.works.load(Relaxed) > 0;
        self.has_begun.load(Relaxed).then_some(is_active)
    }

    /// A heartbeat arrived.
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

    /// Any other message arrived.
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

    /// Reads from a lane, and notes what comes.
    pub(super) fn listen(self: &Arc<Self>, lane: Lane) -> Lane {
        if self.timeouts.is_none() {
            return lane;
        }
        Lane::new(Listening { lane, liveness: Arc::clone(self) })
    }

    /// Whoever reads waits for room in the inbox, or not any more.
    pub(super) fn hold_up(&self, is_held_up: bool) {
        self.is_held_up.store(is_held_up, Relaxed);
        self.is_alive.store(true, Relaxed);
    }

    /// Our engine waits, or not any more.
    pub(super) fn wait(&self, is_waiting: bool) {
        self.is_waiting.store(is_waiting, Relaxed);
    }

    /// So many works of ours are under way.
    pub(super) fn set_works(&self, works: usize) {
        self.works.store(works, Relaxed);
    }

    /// A round is over, or another one begins.
    pub(super) fn rest(&self, is_resting: bool) {
        self.is_resting.store(is_resting, Relaxed);
    }

    /// Nobody needs to look any more.
    pub(super) fn end(&self) {
        self.has_ended.store(true, Relaxed);
    }

    /// Looks at the time until the link ends, or the peer has been silent for too long: then
    /// nothing is read or written any more.
    pub(super) fn watch_over(
        self: &Arc<Self>,
        inbox: &Arc<Inbox>,
        outbox: &Arc<Outbox>,
        carried: Option<Carried>,
    ) {
        let Some(Timeouts { silence, .. }) = self.timeouts else { return };
        let (liveness, inbox, outbox) = (Arc::clone(self), Arc::clone(inbox), Arc::clone(outbox));
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
            inbox.close(AbortKind::Timeout, what);
            outbox.abandon();
        });
    }

    /// Whether the peer showed life since this was asked last, or could not.
    fn take_life(&self) -> bool {
        let is_alive = self.is_alive.swap(false, Relaxed);
        is_alive || self.is_held_up.load(Relaxed) || !self.has_begun.load(Relaxed)
    }
}

/// What a connection carries.
struct Carriage {
    bytes: Option<Carried>,
    last: u64,
}

impl Carriage {
    /// Whether enough came since the peer showed life last.
    fn has_come(&mut self, is_alive: bool) -> bool {
        let now = self.bytes.as_ref().map_or(0, |bytes| bytes());
        let has_come = now.saturating_sub(self.last) >= CARRIED_BYTES;
        if is_alive || has_come {
            self.last = now;
        }
        has_come
    }
}

/// What a peer gave within a tick.
#[derive(Debug, Clone, Copy)]
enum Sign {
    Life,
    /// Of a peer that does not go on.
    Heartbeat,
    None,
}

/// Counts how long a peer was silent, and how long it has not gone on.
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

    /// A tick took so long.
    fn pass(&mut self, passed: Duration, sign: Sign) {
        let was_suspended = passed > self.tick + SUSPENDED;
        self.silence = match sign {
            Sign::Life | Sign::Heartbeat => Duration::ZERO,
            Sign::None if was_suspended => self.silence_max.saturating_sub(WAKING_PATIENCE),
            Sign::None => self.silence + passed,
        };
        self.stall = match sign {
            Sign::Life => Duration::ZERO,
            Sign::Heartbeat | Sign::None if was_suspended => self.stall,
            Sign::Heartbeat | Sign::None => self.stall + passed,
        };
    }

    /// In what the peer has failed for too long, in words.
    fn is_over(&self) -> Option<String> {
        let stall_max = STALL_MIN.max(self.silence_max);
        if self.silence >= self.silence_max {
            Some(format!("nothing was heard from the other side for {} s", self.silence_max.as_secs()))
        } else if self.stall >= stall_max {
            Some(format!("the other side answers, but has not gone on for {} s", stall_max.as_secs()))
        } else {
            None
        }
    }
}

/// A lane, whose bytes are signs of life.
struct Listening {
    lane: Lane,
    liveness: Arc<Liveness>,
}

impl Read for Listening {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.lane.read(buffer)?;
        self.liveness.heard_bytes(count);
        Ok(count)
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
    fn a_heartbeat_is_life_where_its_sender_can_go_on_or_nobody_waits_for_it() {
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
    fn a_heartbeat_says_whether_something_was_heard_or_is_done() {
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
    fn who_does_not_read_does_not_judge() {
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
    fn who_beats_and_does_not_go_on_is_given_up_after_a_minute_or_more() {
        for (silence, given_up) in [(2, 60), (30, 60), (100, 100)] {
            let mut clock = Clock::new(silence * SECOND);
            let mut seconds = 0;
            while clock.is_over().is_none() {
                clock.pass(SECOND, Sign::Heartbeat);
                seconds += 1;
            }
            let text = format!("the other side answers, but has not gone on for {given_up} s");
            assert_eq!((seconds, clock.is_over()), (given_up, Some(text)));
        }
    }

    #[test]
    fn what_a_connection_carries_counts_from_the_last_sign_of_life() {
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
