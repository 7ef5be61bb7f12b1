//! Reader, writer and workers around one engine.
//!
//! ```text
//! stream ─► reader ─► inbox ─► engine ─► outgoing ─► writer ─► stream
//!                       ▲         └────► works ─► workers ─┐
//!                       └──────────── outcomes ◄───────────┘
//! ```

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::engine::{Engine, Failure, Input, Outcome, Output, Summary, Traffic, Work};
use crate::exchange::chain;
use crate::exchange::inbox::Inbox;
use crate::exchange::lanes::{JoinLanes, Lane, Merged};
use crate::exchange::pace::PacedWriter;
use crate::monitor::Monitor;
use crate::wire::frame::{FrameError, FrameReader, Next};
use crate::wire::hello::{self, Hello};
use crate::wire::message::{AbortKind, Message};

/// Threads that perform works: enough that one can wait for the disk while others hash.
const WORKERS: usize = 4;

/// Messages between engine and writer: with a megabyte of content in each, what keeps a writer busy while
/// the next one is read.
const OUTGOING_MESSAGES: usize = 4;

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
}

impl Incoming {
    /// On one.
    pub fn alone(reader: impl Read + Send + 'static) -> Self {
        Self { main: Lane::new(reader), joiner: None }
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

/// What goes to the writer: a message, and whether another one follows at once. Each packet costs both sides and all
/// that lies between them, and where a relay has Nagle's algorithm on, a second one waits up to 40 ms until the first is
/// acknowledged.
type Outgoing = (Message, bool);

/// A stream in and a stream out, for one exchange or for several that follow each other.
pub struct Link {
    inbox: Arc<Inbox>,
    outgoing: SyncSender<Outgoing>,
    asker: Asker,
}

impl Link {
    /// Begins to read and to write.
    #[must_use]
    pub fn new(
        incoming: Incoming,
        writer: impl Write + Send + 'static,
        expect_hello: bool,
        compress: bool,
    ) -> Self {
        let inbox = Arc::new(Inbox::default());
        let (outgoing, messages) = sync_channel(OUTGOING_MESSAGES);
        let reading = Arc::clone(&inbox);
        thread::spawn(move || guarded(&reading, || read_messages(incoming, expect_hello, &reading)));
        let writing = Arc::clone(&inbox);
        thread::spawn(move || {
            guarded(&writing, || write_messages(writer, compress, &messages, &writing));
            writing.end_writing();
        });
        let asker = Asker(Arc::new(Mutex::new(Some(outgoing.clone()))));
        Self { inbox, outgoing, asker }
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
        let result = drive(&mut engine, &self.inbox, &self.outgoing, &works, &mut waits, monitor);

        // What was begun on the disk has to end before the run is over.
        drop(works);
        workers.into_iter().for_each(|worker| drop(worker.join()));
        self.inbox.clear_outcomes();
        let traffic = Traffic { raw_bytes: self.inbox.raw_bytes() - before_bytes, waits: waits.count };
        result.map(|summary| Summary { traffic, ..summary })
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
        let _ = self.outgoing.send((message, false));
    }

    /// What asks the peer for a round about everything, from another thread.
    #[must_use]
    pub fn asker(&self) -> Asker {
        self.asker.clone()
    }

    /// Ends it, once what was said last has left; the bytes of all messages come back, both ways.
    pub fn close(self) -> u64 {
        let Self { inbox, outgoing, asker } = self;
        asker.end();
        drop(outgoing);
        inbox.abandon();
        inbox.wait_for_writer(LEAVING_PATIENCE);
        inbox.raw_bytes()
    }
}

/// Asks the peer of a link, which watches its tree, for a round about everything.
#[derive(Debug, Clone)]
pub struct Asker(Arc<Mutex<Option<SyncSender<Outgoing>>>>);

impl Asker {
    /// Asks; `false` where nobody can answer any more.
    #[must_use]
    pub fn ask(&self) -> bool {
        let outgoing = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        outgoing.is_some_and(|outgoing| outgoing.send((Message::Rescan, false)).is_ok())
    }

    /// The link ends, and nothing may keep its writer waiting.
    fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
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

fn drive(
    engine: &mut impl Engine,
    inbox: &Inbox,
    outgoing: &SyncSender<Outgoing>,
    works: &Sender<Work>,
    waits: &mut Waits,
    monitor: &dyn Monitor,
) -> Result<Summary, Failure> {
    // A writer that is gone has left word in the inbox.
    let send = |message, follows| drop(outgoing.send((message, follows)));
    // Held back until it is known whether another one follows.
    let mut last: Option<Message> = None;
    loop {
        let output = engine.poll();
        if let Output::Wait | Output::WaitForWork | Output::Done(_) = output
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
                continue;
            }
            Output::Report(event) => {
                monitor.observe(event);
                continue;
            }
            Output::Done(result) => return result,
            Output::Wait => false,
            Output::WaitForWork => true,
        };
        waits.wait(inbox);
        let input = inbox.take(only_outcomes);
        waits.works -= usize::from(matches!(input, Input::Outcome(_)));
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

fn read_messages(incoming: Incoming, expect_hello: bool, inbox: &Inbox) {
    let Incoming { main: mut reader, mut joiner } = incoming;
    if expect_hello {
        match hello::read(&mut reader) {
            Ok(Hello { .. }) => {}
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
                let (merged, joining) = Merged::new(main, announcement);
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
        if message == Message::Rescan {
            inbox.ask_for_rescan();
            continue;
        }
        let ends = matches!(message, Message::Abort { .. });
        if !inbox.put_message(message, frame.len()) || ends {
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

fn write_messages(writer: impl Write, compress: bool, messages: &Receiver<Outgoing>, inbox: &Inbox) {
    let mut frames = PacedWriter::new(writer, compress);
    let mut next = messages.recv().ok();
    while let Some((message, follows)) = next {
        let raw = message.encode();
        inbox.count_written(raw.len());
        if let Err(error) = frames.write(&raw, message.has_deltas()) {
            return inbox.close(AbortKind::Connection, format!("writing to the connection: {error}"));
        }
        // Small messages that follow at once share a packet.
        next = if follows { messages.recv().ok() } else { messages.try_recv().ok() };
        if next.is_none() {
            if let Err(error) = frames.flush() {
                return inbox.close(AbortKind::Connection, format!("writing to the connection: {error}"));
            }
            next = messages.recv().ok();
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
