//! Internal errors: the run still ends with an error.

use std::io::{self, Read};
use std::thread;
use std::time::{Duration, Instant};

use ksync::engine::{Config, Engine, ReceiverWork, Sender, SenderWork};
use ksync::exchange::{FileReceiver, FileSender, Incoming, Perform, Receiving, Sending, run};
use ksync::monitor::Quiet;
use ksync::wire::frame::FrameWriter;
use ksync::wire::hello;
use ksync::wire::message::{AbortKind, Common, FromReceiver, Message};

use crate::world::{World, noise};

/// Panics instead of performing the selected works.
struct Panicking<P, E: Engine>(P, fn(&E::Work) -> bool);

impl<E: Engine, P: Perform<E>> Perform<E> for Panicking<P, E> {
    fn perform(&self, work: E::Work) -> E::Outcome {
        assert!(!self.1(&work), "as the test wants it");
        self.0.perform(work)
    }
}

/// Works of the sender and of the receiver that panic.
type Panics = (fn(&<FileSender as Engine>::Work) -> bool, fn(&<FileReceiver as Engine>::Work) -> bool);

#[test]
fn a_panicking_worker_ends_the_run_with_an_error_on_both_sides() {
    let panics: [Panics; 3] = [
        (|work| matches!(work, SenderWork::Scan(_)), |_| false),
        (|work| matches!(work, SenderWork::Step { .. }), |_| false),
        (|_| false, |work| matches!(work, ReceiverWork::Step(..))),
    ];
    for (sender_panics, receiver_panics) in panics {
        let world = World::new();
        world.write("a", b"text");
        let ran = world.run_with(
            Panicking(Sending::new(world.source.clone(), world.options.clone()), sender_panics),
            Panicking(Receiving::new(world.target.clone(), world.options.clone()), receiver_panics),
        );
        for error in [ran.client.unwrap_err(), ran.agent.unwrap_err()] {
            assert_eq!(error.kind, AbortKind::Protocol);
            assert!(error.text.contains("a thread of this side panicked"), "{error:?}");
        }
    }
}

/// A peer that reads nothing, and after a second sends an Abort.
struct Mute {
    rest: io::Cursor<Vec<u8>>,
    hello_bytes: u64,
}

impl Read for Mute {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.position() == self.hello_bytes {
            thread::sleep(Duration::from_secs(1));
        }
        self.rest.read(buffer)
    }
}

#[test]
fn a_peer_that_reads_nothing_does_not_block_the_end() {
    let world = World::in_memory();
    // More names than a pipe takes, even compressed.
    for number in 0..2000 {
        let name: String = noise(number, 100).iter().map(|byte| format!("{byte:02x}")).collect();
        world.write(&name, b"");
    }
    let mut said = Vec::new();
    hello::write(&mut said, None).unwrap();
    let hello_bytes = said.len() as u64;
    let abort = FromReceiver::Common(Common::Abort { kind: AbortKind::Busy, text: "enough".to_owned() });
    FrameWriter::new(&mut said, false).write(&abort.encode()).unwrap();
    let reader = Mute { rest: io::Cursor::new(said), hello_bytes };
    let (_unread, writer) = io::pipe().unwrap();
    let engine = Sender::new(&Config { options: world.options.clone(), relay: false, ..Config::default() });
    let sending = Sending::new(world.source.clone(), world.options.clone());
    let start = Instant::now();
    let error = run(Incoming::alone(reader), writer, engine, sending, true, false, &Quiet).unwrap_err();
    assert_eq!((error.kind, error.by_peer, error.text.as_str()), (AbortKind::Busy, true, "enough"));
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(start.elapsed() > Duration::from_secs(5), "nothing was held up: {:?}", start.elapsed());
}
