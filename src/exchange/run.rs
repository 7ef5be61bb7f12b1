//! Reader, writer and workers around one engine.
//!
//! ```text
//! stream ─► reader ─► inbox ─► engine ─► outgoing ─► writer ─► stream
//!                       ▲         └────► works ─► workers ─┐
//!                       └──────────── outcomes ◄───────────┘
//! ```

use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::engine::{Engine, Failure, Outcome, Output, Summary, Work};
use crate::exchange::chain;
use crate::exchange::inbox::Inbox;
use crate::monitor::Monitor;
use crate::wire::frame::{FrameError, FrameReader, FrameWriter};
use crate::wire::hello::{self, Hello};
use crate::wire::message::{AbortKind, Message};

/// Threads that perform works: enough that one can wait for the disk while others hash.
const WORKERS: usize = 4;

/// Messages between engine and writer: with a megabyte of content in each, what keeps a writer busy while
/// the next one is read.
const OUTGOING_MESSAGES: usize = 4;

/// Performs works.
pub trait Perform: Send + Sync + 'static {
    /// Performs one; called from several threads.
    fn perform(&self, work: Work) -> Outcome;
}

/// Runs an exchange to its end, after our own hello has been written. `agreed` looks at the peer's hello
/// (`None` where that has been read already).
///
/// The reader is left behind, waiting for its stream, when the run ends before the stream does; it ends
/// with the stream.
///
/// # Errors
/// [`Failure`]: why the run ended early.
pub fn run(
    reader: impl Read + Send + 'static,
    writer: impl Write + Send + 'static,
    mut engine: impl Engine,
    performer: impl Perform,
    expect_hello: bool,
    compress: bool,
    monitor: &dyn Monitor,
) -> Result<Summary, Failure> {
    let inbox = Arc::new(Inbox::default());
    let performer = Arc::new(performer);
    let (outgoing, messages) = sync_channel(OUTGOING_MESSAGES);
    let (works, queue) = channel();

    let reading = Arc::clone(&inbox);
    thread::spawn(move || read_messages(reader, expect_hello, &reading));
    let writing = Arc::clone(&inbox);
    let writer = thread::spawn(move || write_messages(writer, compress, &messages, &writing));
    let queue = Arc::new(Mutex::new(queue));
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let (queue, inbox, performer) = (Arc::clone(&queue), Arc::clone(&inbox), Arc::clone(&performer));
            thread::spawn(move || perform_works(&queue, &*performer, &inbox))
        })
        .collect();

    let result = drive(&mut engine, &inbox, &outgoing, &works, monitor);

    // What was said last has to leave, and what was begun on the disk has to end, before the run is over.
    drop((outgoing, works));
    inbox.abandon();
    let _ = writer.join();
    workers.into_iter().for_each(|worker| drop(worker.join()));
    result
}

fn drive(
    engine: &mut impl Engine,
    inbox: &Inbox,
    outgoing: &SyncSender<Message>,
    works: &Sender<Work>,
    monitor: &dyn Monitor,
) -> Result<Summary, Failure> {
    loop {
        let only_outcomes = match engine.poll() {
            // A writer that is gone has left word in the inbox.
            Output::Send(message) => {
                let _ = outgoing.send(message);
                continue;
            }
            Output::Start(work) => {
                let _ = works.send(work);
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
        engine.input(inbox.take(only_outcomes));
    }
}

fn read_messages(mut reader: impl Read, expect_hello: bool, inbox: &Inbox) {
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
        let frame = match frames.read() {
            Ok(frame) => frame,
            Err(error) => return inbox.close(kind(&error), chain(&error)),
        };
        let message = match Message::decode(&frame) {
            Ok(message) => message,
            Err(error) => return inbox.close(AbortKind::Protocol, error.to_string()),
        };
        let ends = matches!(message, Message::Abort { .. });
        if !inbox.put_message(message, frame.len()) || ends {
            return;
        }
    }
}

/// Whether a stream that cannot be read any further ended, or is in disorder.
fn kind(error: &FrameError) -> AbortKind {
    match error {
        FrameError::Closed | FrameError::Io(_) => AbortKind::Connection,
        FrameError::TooLong { .. } | FrameError::Damaged => AbortKind::Protocol,
    }
}

fn write_messages(writer: impl Write, compress: bool, messages: &Receiver<Message>, inbox: &Inbox) {
    let mut frames = FrameWriter::new(writer, compress);
    let mut next = messages.recv().ok();
    while let Some(message) = next {
        if let Err(error) = frames.write(&message.encode()) {
            return inbox.close(AbortKind::Connection, format!("writing to the connection: {error}"));
        }
        // Small messages that follow at once share a packet.
        next = messages.try_recv().ok();
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
