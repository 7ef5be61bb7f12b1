//! Reader, writer and workers around one engine.
//!
//! ```text
//! stream ─► reader ─► inbox ─► engine ─► outgoing ─► writer ─► stream
//!                       ▲         └────► works ─► workers ─┐
//!                       └──────────── outcomes ◄───────────┘
//! ```

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::engine::{Engine, Failure, Input, Outcome, Output, Summary, Traffic, Work};
use crate::exchange::chain;
use crate::exchange::inbox::Inbox;
use crate::exchange::lanes::{JoinLanes, Lane, Merged};
use crate::exchange::liveness::{Liveness, Timeouts};
use crate::exchange::outbox::{Outbox, Taken};
use crate::exchange::pace::PacedWriter;
use crate::monitor::Monitor;
use crate::wire::frame::{FrameError, FrameReader, Next};
use crate::wire::hello::{self, Hello};
use crate::wire::message::{AbortKind, Message};

/// Threads that perform works: enough that one can wait for the disk while others hash.
const WORKERS: usize = 4;

/// How long what was said last may take to leave once the run is over. A peer that reads no more must not keep
/// us; a slow one has four messages to take.
const LEAVING_PATIENCE: Duration = Duration::from_secs(5);

/// Performs works.
pub trait Perform: Send + Sync + 'static {
    /// Performs one; called from several threads.
    fn perform(&self, work: Work) -> Outcome;
}

/// Runs an exchange to its end, after our own hello has been written. The peer's has been read already, or is
/// looked at first (`expect_hello`).
///
/// The reader is left behind, waiting for its stream, when the run ends before the stream does; it ends
/// with the stream. So is a writer whose peer takes nothing more.
///
/// # Errors
/// [`Failure`]: why the run ended early.
pub fn run(
    reader: impl Read + Send + 'static,
    writer: impl Write + Send + 'static,
    engine: impl Engine,
    performer: impl Perform,
    expect_hello: bool,
    compress: bool,
    monitor: &dyn Monitor,
) -> Result<Summary, Failure> {
    run_over(Incoming::alone(reader), writer, engine, performer, expect_hello, compress, monitor)
}

/// What a peer says, on one stream or on several.
pub struct Incoming {
    /// The stream that is there from the beginning.
    pub main: Lane,
    /// Who lets announced lanes in; with nobody there can be none.
    pub joiner: Option<Box<dyn JoinLanes>>,
    /// How long the peer may be silent; without any it may be for ever.
    pub timeouts: Option<Timeouts>,
    /// Counts the bytes that came to below the streams, if somebody does.
    pub carried: Option<Carried>,
}

/// Answers how many bytes came so far.
pub type Carried = Box<dyn Fn() -> u64 + Send>;

impl Incoming {
    /// On one.
    pub fn alone(reader: impl Read + Send + 'static) -> Self {
        Self { main: Lane::new(reader), joiner: None, timeouts: None, carried: None }
    }

    /// The same, over something that counts what it carries.
    #[must_use]
    pub fn carried(self, bytes: impl Fn() -> u64 + Send + 'static) -> Self {
        Self { carried: Some(Box::new(bytes)), ..self }
    }

    /// The same, from a peer that may be silent only for so long.
    #[must_use]
    pub fn within(self, timeouts: Option<Timeouts>) -> Self {
        Self { timeouts, ..self }
    }
}

/// Runs an exchange whose peer may spread what it says over lanes; else as [`run`].
///
/// # Errors
/// As there.
pub fn run_over(
    incoming: Incoming,
    writer: impl Write + Send + 'static,
    engine: impl Engine,
    performer: impl Perform,
    expect_hello: bool,
    compress: bool,
    monitor: &dyn Monitor,
) -> Result<Summary, Failure> {
    let link = Link::new(incoming, writer, expect_hello, compress);
    let result = link.run(engine, performer, monitor);
    let raw_bytes = link.close();
    result.map(|summary| Summary { traffic: Traffic { raw_bytes, ..summary.traffic }, ..summary })
}

/// A stream in and a stream out, for one exchange or for several that follow each other.
pub struct Link {
    inbox: Arc<Inbox>,
    outbox: Arc<Outbox>,
    liveness: Arc<Liveness>,
}

impl Link {
    /// Begins to read and to write.
    #[must_use]
    pub fn new(
        mut incoming: Incoming,
        writer: impl Write + Send + 'static,
        expect_hello: bool,
        compress: bool,
    ) -> Self {
        let carried = incoming.carried.take();
        let inbox = Arc::new(Inbox::default());
        let outbox = Arc::new(Outbox::default());
        let liveness = Liveness::new(incoming.timeouts, !expect_hello);
        let (reading, heard) = (Arc::clone(&inbox), Arc::clone(&liveness));
        thread::spawn(move || guarded(&reading, || read_messages(incoming, expect_hello, &reading, &heard)));
        let (writing, messages, beating) = (Arc::clone(&inbox), Arc::clone(&outbox), Arc::clone(&liveness));
        thread::spawn(move || {
            let _leaving = WriterLeaves { inbox: &writing, outbox: &messages };
            guarded(&writing, || write_messages(writer, compress, &messages, &writing, &beating));
        });
        liveness.watch_over(&inbox, &outbox, carried);
        Self { inbox, outbox, liveness }
    }

    /// Runs one exchange to its end.
    ///
    /// # Errors
    /// [`Failure`]: why it ended early. Then there can be no other on this link.
    pub fn run(
        &self,
        mut engine: impl Engine,
        performer: impl Perform,
        monitor: &dyn Monitor,
    ) -> Result<Summary, Failure> {
        let (works, queue) = channel();
        let (performer, queue) = (Arc::new(performer), Arc::new(Mutex::new(queue)));
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| {
                let (queue, inbox) = (Arc::clone(&queue), Arc::clone(&self.inbox));
                let performer = Arc::clone(&performer);
                thread::spawn(move || guarded(&inbox, || perform_works(&queue, &*performer, &inbox)))
            })
            .collect();
        let before_bytes = self.inbox.raw_bytes();
        let mut waits = Waits::default();
        let (result, abort) = drive(&mut engine, self, &works, &mut waits, monitor);

        // What was begun on the disk has to end before the run is over.
        drop(works);
        workers.into_iter().for_each(|worker| drop(worker.join()));
        // Whoever hears of the abort may end the connection, and with it this process: before that
        // the performer cleans up.
        drop(performer);
        abort.into_iter().for_each(|message| self.say(message));
        self.inbox.clear_outcomes();
        self.liveness.set_works(0);
        let traffic = Traffic { raw_bytes: self.inbox.raw_bytes() - before_bytes, waits: waits.count };
        match result {
            Ok(summary) => Ok(Summary { traffic, ..summary }),
            Err(failure) if failure.kind == AbortKind::Connection => Err(self.silence().unwrap_or(failure)),
            Err(failure) => Err(failure),
        }
    }

    /// Why the connection counts as lost, if the peer was silent for too long.
    fn silence(&self) -> Option<Failure> {
        self.inbox.silence().map(|text| Failure { kind: AbortKind::Timeout, by_peer: false, text })
    }

    /// What runs between two exchanges uses this.
    pub(super) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Tells the peer why there will be no exchange.
    #[must_use]
    pub fn refuse(&self, failure: Failure) -> Failure {
        self.say(Message::Abort { kind: failure.kind, text: failure.text.clone() });
        failure
    }

    /// Says something between two exchanges.
    pub(super) fn say(&self, message: Message) {
        // A writer that is gone has left word in the inbox.
        let _ = self.outbox.put(message, false);
    }

    /// A round is over and the next one has not begun, so neither side waits for the other; or it
    /// begins.
    pub(super) fn rest(&self, is_resting: bool) {
        self.liveness.rest(is_resting);
    }

    /// What asks the peer for a round about everything, from another thread.
    #[must_use]
    pub fn asker(&self) -> Asker {
        Asker(Arc::clone(&self.outbox))
    }

    /// Ends it, once what was said last has left; the bytes of all messages come back, both ways.
    pub fn close(self) -> u64 {
        let Self { inbox, outbox, liveness } = self;
        outbox.end();
        inbox.abandon();
        inbox.wait_for_writer(LEAVING_PATIENCE);
        liveness.end();
        inbox.raw_bytes()
    }
}

/// Asks the peer of a link, which watches its tree, for a round about everything.
#[derive(Debug, Clone)]
pub struct Asker(Arc<Outbox>);

impl Asker {
    /// Asks; `false` where nobody can answer any more.
    #[must_use]
    pub fn ask(&self) -> bool {
        self.0.put(Message::Rescan, false)
    }
}

/// Counts how often this side has said something and can do nothing until the other one answers.
#[derive(Default)]
struct Waits {
    count: u64,
    works: usize,
    has_spoken: bool,
}

impl Waits {
    /// The engine is going to be given what is in the inbox next.
    fn wait(&mut self, inbox: &Inbox) {
        if self.has_spoken && self.works == 0 && inbox.is_empty() {
            self.count += 1;
            self.has_spoken = false;
        }
    }
}

/// Drives an engine to its end; gives also the abort that the peer has still to be told.
fn drive(
    engine: &mut impl Engine,
    link: &Link,
    works: &Sender<Work>,
    waits: &mut Waits,
    monitor: &dyn Monitor,
) -> (Result<Summary, Failure>, Option<Message>) {
    let Link { inbox, outbox, liveness } = link;
    // A writer that is gone has left word in the inbox.
    let send = |message, follows| {
        liveness.wait(true);
        outbox.put(message, follows);
        liveness.wait(false);
    };
    // Held back until it is known whether another one follows.
    let mut last: Option<Message> = None;
    loop {
        let output = engine.poll();
        if let Output::Done(result) = output {
            let abort = last.take_if(|last| matches!(last, Message::Abort { .. }));
            last.into_iter().for_each(|message| send(message, false));
            return (result, abort);
        }
        if let Output::Wait | Output::WaitForWork = output
            && let Some(message) = last.take()
        {
            send(message, false);
        }
        let only_outcomes = match output {
            Output::Send(message) => {
                if let Some(earlier) = last.replace(message) {
                    send(earlier, true);
                }
                waits.has_spoken = true;
                continue;
            }
            Output::Start(work) => {
                let _ = works.send(work);
                waits.works += 1;
                liveness.set_works(waits.works);
                continue;
            }
            Output::Report(event) => {
                monitor.observe(event);
                continue;
            }
            Output::WaitForWork => true,
            Output::Wait | Output::Done(_) => false,
        };
        waits.wait(inbox);
        liveness.wait(true);
        let input = inbox.take(only_outcomes);
        liveness.wait(false);
        // A note may come between two rounds.
        if matches!(&input, Input::Message(message) if !matches!(message, Message::Note(_))) {
            liveness.rest(false);
        }
        waits.works -= usize::from(matches!(input, Input::Outcome(_)));
        liveness.set_works(waits.works);
        engine.input(input);
    }
}

/// Does the work of a thread that the run depends on: if it panics, the run ends with an error.
fn guarded(inbox: &Inbox, work: impl FnOnce()) {
    struct Guard<'a>(&'a Inbox);
    impl Drop for Guard<'_> {
        fn drop(&mut self) {
            if thread::panicking() {
                self.0.fail("a thread of this side panicked".to_owned());
            }
        }
    }
    let _guard = Guard(inbox);
    work();
}

fn read_messages(incoming: Incoming, expect_hello: bool, inbox: &Inbox, liveness: &Arc<Liveness>) {
    let Incoming { main, mut joiner, .. } = incoming;
    let mut reader = liveness.listen(main);
    if expect_hello {
        match hello::read(&mut reader) {
            Ok(Hello { .. }) => liveness.heard_message(),
            Err(hello::HelloError::Stream(error)) => return inbox.close(kind(&error), chain(&error)),
            Err(error) => {
                let kind = match error {
                    hello::HelloError::Version(_) => AbortKind::Version,
                    _ => AbortKind::Protocol,
                };
                return inbox.close(kind, error.to_string());
            }
        }
    }
    let mut frames = FrameReader::new(reader);
    loop {
        let next = match &joiner {
            Some(_) => frames.read_next(),
            None => frames.read().map(Next::Frame),
        };
        let frame = match next {
            Ok(Next::Frame(frame)) => frame,
            Ok(Next::Lanes(announcement)) => {
                let (main, unpacker) = frames.into_parts();
                let (merged, joining) = Merged::listening(main, announcement, liveness);
                // They are announced once.
                if let Some(joiner) = joiner.take() {
                    joiner.join(announcement, joining);
                }
                frames = FrameReader::continuing(Lane::new(merged), unpacker);
                continue;
            }
            Err(error) => return inbox.close(kind(&error), chain(&error)),
        };
        let message = match Message::decode(&frame) {
            Ok(message) => message,
            Err(error) => return inbox.close(AbortKind::Protocol, error.to_string()),
        };
        if let Message::Heartbeat { is_active } = message {
            liveness.heard_heartbeat(is_active);
            continue;
        }
        liveness.heard_message();
        if message == Message::Rescan {
            inbox.ask_for_rescan();
            continue;
        }
        let ends = matches!(message, Message::Abort { .. });
        liveness.hold_up(true);
        let is_taken = inbox.put_message(message, frame.len());
        liveness.hold_up(false);
        if !is_taken || ends {
            return;
        }
    }
}

/// Whether a stream that cannot be read any further ended, or is in disorder.
fn kind(error: &FrameError) -> AbortKind {
    match error {
        // Of lanes whose segments make no sense.
        FrameError::Io(error) if error.kind() == io::ErrorKind::InvalidData => AbortKind::Protocol,
        FrameError::Closed | FrameError::Io(_) => AbortKind::Connection,
        FrameError::TooLong { .. } | FrameError::Lanes | FrameError::Damaged => AbortKind::Protocol,
    }
}

/// Whoever waits for the writer learns that it is gone, however it went.
struct WriterLeaves<'a> {
    inbox: &'a Inbox,
    outbox: &'a Outbox,
}

impl Drop for WriterLeaves<'_> {
    fn drop(&mut self) {
        self.outbox.abandon();
        self.inbox.end_writing();
    }
}

fn write_messages(writer: impl Write, compress: bool, messages: &Outbox, inbox: &Inbox, liveness: &Liveness) {
    let mut frames = PacedWriter::new(writer, compress);
    let failed =
        |error: io::Error| inbox.close(AbortKind::Connection, format!("writing to the connection: {error}"));
    let mut next = None;
    loop {
        let (message, follows) = match next.take() {
            Some(message) => message,
            None => match messages.take(liveness.heartbeat()) {
                Taken::Message(message) => message,
                Taken::Late => match liveness.beat() {
                    Some(is_active) => (Message::Heartbeat { is_active }, false),
                    None => continue,
                },
                Taken::End => return,
            },
        };
        let raw = message.encode();
        if !matches!(message, Message::Heartbeat { .. }) {
            inbox.count_written(raw.len());
        }
        if let Err(error) = frames.write(&raw, message.has_deltas()) {
            return failed(error);
        }
        // Small messages that follow at once share a packet.
        if follows {
            continue;
        }
        next = messages.try_take();
        if next.is_none()
            && let Err(error) = frames.flush()
        {
            return failed(error);
        }
    }
}

fn perform_works(queue: &Mutex<Receiver<Work>>, performer: &dyn Perform, inbox: &Inbox) {
    loop {
        // Taken in a statement of its own, so that the lock is not held during the work.
        let work = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match work {
            Ok(work) => inbox.put_outcome(performer.perform(work)),
            Err(_) => return,
        }
    }
}
