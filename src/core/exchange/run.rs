//! Reader, writer and workers around one engine.
//!
//! ```text
//! stream ─► reader ─► mailbox ─► engine ─► outgoing ─► writer ─► stream
//!                       ▲         └────► works ─► workers ─┐
//!                       └──────────── outcomes ◄───────────┘
//! ```

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::engine::{Engine, Input, Output, RunError, Summary, Traffic};
use crate::exchange::adaptive_level::AdaptiveWriter;
use crate::exchange::common::chain;
use crate::exchange::lanes::{JoinLanes, Lane, Merged};
use crate::exchange::liveness::{Carried, Liveness, Timeouts};
use crate::exchange::mailbox::Mailbox;
use crate::exchange::pool::Pool;
use crate::exchange::send_queue::{Following, SendQueue, Taken};
use crate::log::{self, debug};
use crate::monitor::{Event, Monitor};
use crate::wire::frame::{FrameError, FrameReader, Next};
use crate::wire::hello::{self, Hello};
use crate::wire::message::{AbortKind, Common, FromReceiver, Message};

/// Timeout for the last messages to leave once the run is over. A peer that reads no more must not
/// block this side; a slow one has at most four messages to take.
const LEAVING_TIMEOUT: Duration = Duration::from_secs(5);

/// Time that a message waits for another one that is likely to follow.
const LINGER: Duration = Duration::from_millis(5);

/// Performer of an engine's works.
pub trait Perform<E: Engine>: Send + Sync + 'static {
    /// Performs one work; several threads call this.
    fn perform(&self, work: E::Work) -> E::Outcome;
}

/// The peer's direction, on one stream or on several.
pub struct Incoming {
    /// The stream that exists from the beginning.
    pub main: Lane,
    /// Accepts announced lanes; without it there can be none.
    pub joiner: Option<Box<dyn JoinLanes>>,
    /// Limits of the peer's silence; `None` allows silence for ever.
    pub timeouts: Option<Timeouts>,
    /// Counts the bytes that arrived below the streams, if the transport can.
    pub carried: Option<Carried>,
}

impl Incoming {
    /// A single stream.
    pub fn alone(reader: impl Read + Send + 'static) -> Self {
        Self { main: Lane::new(reader), joiner: None, timeouts: None, carried: None }
    }

    /// Adds a counter of the bytes that the transport carried.
    #[must_use]
    pub fn carried(self, bytes: impl Fn() -> u64 + Send + 'static) -> Self {
        Self { carried: Some(Box::new(bytes)), ..self }
    }

    /// Limits the peer's silence.
    #[must_use]
    pub fn within(self, timeouts: Option<Timeouts>) -> Self {
        Self { timeouts, ..self }
    }
}

/// Runs an exchange to its end. The caller has written its own hello. The peer's hello was read
/// already, or is read first (`expect_hello`).
///
/// When the run ends before the stream does, the reader thread stays behind and ends with the
/// stream. So does a writer thread whose peer takes nothing more.
///
/// # Errors
/// [`RunError`]: the reason why the run ended early.
pub fn run<E: Engine>(
    incoming: Incoming,
    writer: impl Write + Send + 'static,
    engine: E,
    performer: impl Perform<E>,
    expect_hello: bool,
    compress: bool,
    monitor: &dyn Monitor,
) -> Result<Summary, RunError> {
    // Only on its way to the client does a packet pass a relay that uses Nagle's algorithm.
    let linger = if expect_hello { Duration::ZERO } else { LINGER };
    let link = Link::lingering(incoming, writer, expect_hello, compress, linger);
    let result = link.run(engine, performer, monitor);
    let raw_bytes = link.close();
    result.map(|summary| Summary { traffic: Traffic { raw_bytes, ..summary.traffic }, ..summary })
}

/// A stream in and a stream out, for one exchange or for several in a row.
pub struct Link<E: Engine> {
    mailbox: Arc<Mailbox<E>>,
    send_queue: Arc<SendQueue<E::Outgoing>>,
    liveness: Arc<Liveness>,
    pool: Pool,
}

impl<E: Engine> Link<E> {
    /// Starts the reader, the writer and the workers.
    #[must_use]
    pub fn new(
        incoming: Incoming,
        writer: impl Write + Send + 'static,
        expect_hello: bool,
        compress: bool,
    ) -> Self {
        Self::lingering(incoming, writer, expect_hello, compress, Duration::ZERO)
    }

    /// As [`new`](Self::new). A message waits up to `linger` for another one that is likely.
    fn lingering(
        mut incoming: Incoming,
        writer: impl Write + Send + 'static,
        expect_hello: bool,
        compress: bool,
        linger: Duration,
    ) -> Self {
        let carried = incoming.carried.take();
        let mailbox = Arc::new(Mailbox::default());
        let send_queue = Arc::new(SendQueue::default());
        let liveness = Liveness::new(incoming.timeouts, !expect_hello);
        let (reading, heard) = (Arc::clone(&mailbox), Arc::clone(&liveness));
        thread::spawn(move || guarded(&reading, || read_messages(incoming, expect_hello, &reading, &heard)));
        let (writing, messages, beating) =
            (Arc::clone(&mailbox), Arc::clone(&send_queue), Arc::clone(&liveness));
        thread::spawn(move || {
            let _leaving = WriterLeaves { mailbox: &writing, send_queue: &messages };
            guarded(&writing, || write_messages(writer, compress, linger, &messages, &writing, &beating));
        });
        liveness.watch_over(&mailbox, &send_queue, carried);
        Self { mailbox, send_queue, liveness, pool: Pool::new() }
    }

    /// Runs one exchange to its end.
    ///
    /// # Errors
    /// [`RunError`]: the reason why it ended early. This link can then run no further exchange.
    pub fn run(
        &self,
        mut engine: E,
        performer: impl Perform<E>,
        monitor: &dyn Monitor,
    ) -> Result<Summary, RunError> {
        let performer = Arc::new(performer);
        let start = |work: E::Work| {
            let (performer, mailbox) = (Arc::clone(&performer), Arc::clone(&self.mailbox));
            self.pool.start(move || guarded(&mailbox, || mailbox.put_outcome(performer.perform(work))));
        };
        let before_bytes = self.mailbox.raw_bytes();
        let mut waits = Waits::default();
        let (result, abort) = drive(&mut engine, self, &start, &mut waits, monitor);

        // Files that nobody needs any more are not made to their end.
        drop(engine);
        // Works that were begun on the disk must end before the run is over.
        self.pool.wait();
        self.mailbox.clear_outcomes();
        // A peer that hears of the abort may end the connection, and with it this process. So the
        // performer cleans up first.
        drop(performer);
        abort.into_iter().for_each(|message| self.say(message));
        self.liveness.set_works(0);
        let traffic = Traffic { raw_bytes: self.mailbox.raw_bytes() - before_bytes, waits: waits.count };
        match &result {
            Ok(summary) => debug!(
                "exchange ok=true entries={} created={} updated={} deleted={} files={} sent_bytes={} \
                 matched_bytes={} problems={} waits={} raw_bytes={}",
                summary.tally.entries,
                summary.tally.created,
                summary.tally.updated,
                summary.tally.deleted,
                summary.tally.files,
                summary.tally.sent_bytes,
                summary.tally.matched_bytes,
                summary.problem_count,
                traffic.waits,
                traffic.raw_bytes
            ),
            Err(error) => debug!(
                "exchange ok=false kind={:?} by_peer={} error={}",
                error.kind, error.by_peer, error.text
            ),
        }
        match result {
            Ok(summary) => Ok(Summary { traffic, ..summary }),
            Err(error) if error.kind == AbortKind::Connection => Err(self.silence().unwrap_or(error)),
            Err(error) => Err(error),
        }
    }

    /// The timeout as a failure, if the peer was silent for too long.
    fn silence(&self) -> Option<RunError> {
        self.mailbox.silence().map(|text| RunError { kind: AbortKind::Timeout, by_peer: false, text })
    }

    /// The mailbox, for code that runs between two exchanges.
    pub(super) fn mailbox(&self) -> &Arc<Mailbox<E>> {
        &self.mailbox
    }

    /// Tells the peer why there will be no exchange, and closes the link.
    #[must_use]
    pub fn refuse(self, error: RunError) -> RunError {
        self.say(Common::Abort { kind: error.kind, text: error.text.clone() }.into());
        self.close();
        error
    }

    /// Sends a message between two exchanges.
    pub(super) fn say(&self, message: E::Outgoing) {
        // A writer that ended has reported the reason in the mailbox.
        let _ = self.send_queue.put(message, Following::Later);
    }

    /// Marks the pause between two rounds, in which neither side waits for the other, or its end.
    pub(super) fn rest(&self, is_resting: bool) {
        self.liveness.rest(is_resting);
    }

    /// Closes the link once the last messages have left. Returns the bytes of all messages, both
    /// ways.
    pub fn close(self) -> u64 {
        let Self { mailbox, send_queue, liveness, .. } = self;
        send_queue.end();
        mailbox.abandon();
        mailbox.wait_for_writer(LEAVING_TIMEOUT);
        liveness.end();
        mailbox.raw_bytes()
    }
}

impl<E: Engine<Outgoing = FromReceiver>> Link<E> {
    /// A handle that asks the peer for a full round, from any thread.
    #[must_use]
    pub fn asker(&self) -> Asker {
        Asker(Arc::clone(&self.send_queue))
    }
}

/// Asks the peer of a link, which watches its tree, for a full round.
#[derive(Debug, Clone)]
pub struct Asker(Arc<SendQueue<FromReceiver>>);

impl Asker {
    /// Asks; `false` if nobody can answer any more.
    #[must_use]
    pub fn ask(&self) -> bool {
        self.0.put(FromReceiver::Rescan, Following::Later)
    }
}

/// Counts how often this side has sent something and can do nothing until the peer answers.
#[derive(Default)]
struct Waits {
    count: u64,
    works: usize,
    has_spoken: bool,
}

impl Waits {
    /// Called before the engine gets the next input from the mailbox.
    fn wait<E: Engine>(&mut self, mailbox: &Mailbox<E>) {
        if self.has_spoken && self.works == 0 && mailbox.is_empty() {
            self.count += 1;
            self.has_spoken = false;
        }
    }
}

/// Drives an engine to its end. Also returns the abort that the peer must still be sent.
fn drive<E: Engine>(
    engine: &mut E,
    link: &Link<E>,
    start: &dyn Fn(E::Work),
    waits: &mut Waits,
    monitor: &dyn Monitor,
) -> (Result<Summary, RunError>, Option<E::Outgoing>) {
    let Link { mailbox, send_queue, liveness, .. } = link;
    // A writer that ended has reported the reason in the mailbox.
    let send = |message, following| {
        liveness.wait(true);
        // A slow link may hold the engine up here for long, and its progress is the peer's.
        send_queue.put_calling(message, following, || {
            mailbox.take_progress().into_iter().for_each(|written| monitor.observe(Event::Written(written)));
        });
        liveness.wait(false);
    };
    // Hold a message back until another one follows, or the engine waits.
    let mut last: Option<E::Outgoing> = None;
    loop {
        let output = engine.poll();
        if let Output::Done(result) = output {
            let abort = last.take_if(|last| matches!(last.as_common(), Some(Common::Abort { .. })));
            last.into_iter().for_each(|message| send(message, Following::Soon));
            return (result, abort);
        }
        if let Output::Wait | Output::WaitForWork = output
            && let Some(message) = last.take()
        {
            send(message, if waits.works > 0 { Following::Soon } else { Following::Later });
        }
        let only_outcomes = match output {
            Output::Send(message) => {
                log_request(&message, "sent");
                if let Some(earlier) = last.replace(message) {
                    send(earlier, Following::AtOnce);
                }
                waits.has_spoken = true;
                continue;
            }
            Output::Start(work) => {
                start(work);
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
        waits.wait(mailbox);
        liveness.wait(true);
        let input = mailbox.take(only_outcomes);
        liveness.wait(false);
        // A note may come between two rounds.
        if matches!(&input, Input::Message(message) if !matches!(message.as_common(), Some(Common::Note(_))))
        {
            liveness.rest(false);
        }
        if let Input::Message(message) = &input {
            log_request(message, "received");
        }
        waits.works -= usize::from(matches!(input, Input::Outcome(_)));
        liveness.set_works(waits.works);
        engine.input(input);
    }
}

/// Logs a message that asks the peer for something, or brings something unasked.
fn log_request(message: &impl Message, how: &str) {
    if log::is_on()
        && let Some((name, text)) = message.label()
    {
        debug!("{name} {how}={text}");
    }
}

/// Runs a thread that the run depends on: if it panics, the run ends with an error.
fn guarded<E: Engine>(mailbox: &Mailbox<E>, work: impl FnOnce()) {
    struct Guard<'a, E: Engine>(&'a Mailbox<E>);
    impl<E: Engine> Drop for Guard<'_, E> {
        fn drop(&mut self) {
            if thread::panicking() {
                self.0.fail("a thread of this side panicked".to_owned());
            }
        }
    }
    let _guard = Guard(mailbox);
    work();
}

fn read_messages<E: Engine>(
    incoming: Incoming,
    expect_hello: bool,
    mailbox: &Mailbox<E>,
    liveness: &Arc<Liveness>,
) {
    let Incoming { main, mut joiner, .. } = incoming;
    let mut reader = liveness.listen(main);
    if expect_hello {
        match hello::read(&mut reader) {
            Ok(Hello { .. }) => liveness.heard_message(),
            Err(hello::HelloError::Stream(error)) => return mailbox.close(kind(&error), chain(&error)),
            Err(error) => {
                let kind = match error {
                    hello::HelloError::Version(_) => AbortKind::Version,
                    _ => AbortKind::Protocol,
                };
                return mailbox.close(kind, error.to_string());
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
                // Lanes are announced only once.
                if let Some(joiner) = joiner.take() {
                    joiner.join(announcement, joining);
                }
                frames = FrameReader::continuing(Lane::new(merged), unpacker);
                continue;
            }
            Err(error) => return mailbox.close(kind(&error), chain(&error)),
        };
        let message = match E::Incoming::decode(&frame) {
            Ok(message) => message,
            Err(error) => return mailbox.close(AbortKind::Protocol, error.to_string()),
        };
        if let Some(Common::Heartbeat { is_active }) = message.as_common() {
            liveness.heard_heartbeat(*is_active);
            continue;
        }
        liveness.heard_message();
        if message.is_rescan() {
            mailbox.ask_for_rescan();
            continue;
        }
        let ends = matches!(message.as_common(), Some(Common::Abort { .. }));
        liveness.hold_up(true);
        let is_taken = mailbox.put_message(message, frame.len());
        liveness.hold_up(false);
        if !is_taken || ends {
            return;
        }
    }
}

/// Classifies a read error: the stream ended, or it is malformed.
fn kind(error: &FrameError) -> AbortKind {
    match error {
        // Lanes with malformed segments.
        FrameError::Io(error) if error.kind() == io::ErrorKind::InvalidData => AbortKind::Protocol,
        FrameError::Closed | FrameError::Io(_) => AbortKind::Connection,
        FrameError::TooLong { .. } | FrameError::Lanes | FrameError::Damaged => AbortKind::Protocol,
    }
}

/// Reports the end of the writer thread to everyone who waits for it, even after a panic.
struct WriterLeaves<'a, E: Engine> {
    mailbox: &'a Mailbox<E>,
    send_queue: &'a SendQueue<E::Outgoing>,
}

impl<E: Engine> Drop for WriterLeaves<'_, E> {
    fn drop(&mut self) {
        self.send_queue.abandon();
        self.mailbox.end_writing();
    }
}

fn write_messages<E: Engine>(
    writer: impl Write,
    compress: bool,
    linger: Duration,
    messages: &SendQueue<E::Outgoing>,
    mailbox: &Mailbox<E>,
    liveness: &Liveness,
) {
    let mut frames = AdaptiveWriter::new(writer, compress, Instant::now);
    let failed = |error: io::Error| {
        mailbox.close(AbortKind::Connection, format!("writing to the connection: {error}"))
    };
    let mut waiting = None;
    // The hello may still be held back below.
    let mut due = Some(Instant::now() + linger);
    loop {
        let patience = due.map_or(liveness.heartbeat(), |due| due.saturating_duration_since(Instant::now()));
        let (message, following) = match waiting.take() {
            Some(message) => message,
            None => match messages.take(patience) {
                Taken::Message(message) => message,
                Taken::Late if due.take().is_some() => match frames.flush() {
                    Ok(()) => continue,
                    Err(error) => return failed(error),
                },
                Taken::Late => match liveness.beat() {
                    Some(is_active) => (Common::Heartbeat { is_active }.into(), Following::Later),
                    None => continue,
                },
                // The last bytes leave with the end of the stream.
                Taken::End if !linger.is_zero() => return,
                Taken::End => match frames.flush() {
                    Ok(()) => return,
                    Err(error) => return failed(error),
                },
            },
        };
        let raw = message.encode();
        if !matches!(message.as_common(), Some(Common::Heartbeat { .. })) {
            mailbox.count_written(raw.len());
        }
        if let Err(error) = frames.write(&raw, message.has_deltas()) {
            return failed(error);
        }
        // Small messages that follow soon share a packet.
        if following == Following::AtOnce {
            continue;
        }
        waiting = messages.try_take();
        let latest = Instant::now() + if following == Following::Soon { linger } else { Duration::ZERO };
        due = Some(due.map_or(latest, |due| due.min(latest)));
    }
}
