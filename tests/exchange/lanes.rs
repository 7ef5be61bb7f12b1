//! An upload whose stream is split over several lanes.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ksync::engine::{Config, Receiver, RunError, Sender, Summary};
use ksync::exchange::lanes::{Entrance, JoinLanes, Joining, Lane, OpenLanes, Striped};
use ksync::exchange::{Incoming, Receiving, Sending, run};
use ksync::monitor::Quiet;
use ksync::wire::hello::{self, Request, Role};
use ksync::wire::lanes::{Announcement, Token};
use ksync::wire::message::AbortKind;

use crate::world::{World, noise};

const LARGE_BYTES: usize = 30 << 20;

/// Number of writes that a lane takes, one each millisecond, before it breaks.
type Writes = usize;

/// The rendezvous of both sides of a test: the first side leaves what the other one needs.
#[derive(Clone)]
struct Meeting {
    /// The writes that each lane takes, the main one first.
    lanes: Arc<Vec<Writes>>,
    entrance: Arc<Mutex<Option<Entrance>>>,
    joined: Arc<AtomicUsize>,
}

impl OpenLanes for Meeting {
    fn worthwhile(&self) -> usize {
        self.lanes.len()
    }

    fn open(&self, entrance: Entrance) -> Option<Announcement> {
        *self.entrance.lock().unwrap() = Some(entrance);
        Some(Announcement { token: Token::new([1; 16]), lanes: self.lanes.len() as u8 })
    }
}

impl JoinLanes for Meeting {
    fn join(&self, announcement: Announcement, joining: Joining) {
        assert_eq!(announcement.token, Token::new([1; 16]));
        let entrance = self.entrance.lock().unwrap().clone().expect("it was announced");
        for &writes in &self.lanes[1..] {
            let (reader, pipe) = io::pipe().unwrap();
            assert!(joining.add(Lane::new(reader)));
            entrance.add(Box::new(Slow { pipe, writes }));
            self.joined.fetch_add(1, Ordering::SeqCst);
        }
    }
}

struct Slow {
    pipe: io::PipeWriter,
    writes: Writes,
}

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        thread::sleep(Duration::from_millis(1));
        self.writes = self.writes.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
        self.pipe.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pipe.flush()
    }
}

/// Uploads a world's source over these lanes. Returns the results of both sides, and the number of
/// joined lanes.
fn upload(world: &World, lanes: &[Writes]) -> (Result<Summary, RunError>, Result<Summary, RunError>, usize) {
    let meeting =
        Meeting { lanes: Arc::new(lanes.to_vec()), entrance: Arc::default(), joined: Arc::default() };
    let (mut there_reader, there) = io::pipe().unwrap();
    let (back_reader, mut back) = io::pipe().unwrap();
    let mut there = Slow { pipe: there, writes: lanes[0] };
    let config = |relay| Config { options: world.options.clone(), relay, ..Config::default() };
    let sending = Sending::new(world.source.clone(), world.options.clone());
    let receiving = Receiving::new(world.target.clone(), world.options.clone());
    let (sender, receiver) = (Sender::new(&config(false)), Receiver::new(&config(true)));
    let request = Request {
        role: Role::Receiver,
        path: Vec::new(),
        further: Vec::new(),
        options: world.options.clone(),
        baseline_key: None,
        watch: None,
        timeout_ms: 0,
    };
    hello::write(&mut there, Some(request)).unwrap();
    hello::write(&mut back, None).unwrap();
    hello::read(&mut there_reader).unwrap();
    let writer = Striped::new(Box::new(there), Box::new(meeting.clone()));
    let incoming = Incoming {
        main: Lane::new(there_reader),
        joiner: Some(Box::new(meeting.clone())),
        timeouts: None,
        carried: None,
    };
    thread::scope(|scope| {
        let client = scope
            .spawn(move || run(Incoming::alone(back_reader), writer, sender, sending, true, false, &Quiet));
        let agent = scope.spawn(move || run(incoming, back, receiver, receiving, false, false, &Quiet));
        (client.join().unwrap(), agent.join().unwrap(), meeting.joined.load(Ordering::SeqCst))
    })
}

fn world() -> World {
    let world = World::in_memory();
    world.write("large", &noise(1, LARGE_BYTES));
    for number in 0..300 {
        world.write(&format!("small/{number}"), &noise(number, 3000));
    }
    world
}

#[test]
fn a_tree_arrives_over_eight_lanes() {
    let world = world();
    let (client, agent, joined) = upload(&world, &[usize::MAX; 8]);
    client.unwrap();
    agent.unwrap();
    assert_eq!(joined, 7);
    world.assert_same();
}

#[test]
fn a_broken_lane_ends_the_run_and_keeps_staged_content() {
    let world = world();
    let (client, agent, joined) = upload(&world, &[usize::MAX, usize::MAX, 40, usize::MAX]);
    assert_eq!(joined, 3);
    for error in [client.unwrap_err(), agent.unwrap_err()] {
        assert_eq!(error.kind, AbortKind::Connection, "{error:?}");
        assert!(!error.text.is_empty());
    }
    assert!(!world.target.join("large").exists());
    let staged = world.staged_bytes();
    assert!(staged > 4 << 20, "{staged}");
    let again = world.run();
    assert_eq!(again.problems(), []);
    world.assert_same();
    assert!(again.bytes < LARGE_BYTES as u64 - staged + 400_000, "{} with {staged} staged", again.bytes);
}

#[test]
fn a_short_upload_stays_on_one_stream() {
    let world = World::new();
    world.write("a", &noise(1, 1 << 20));
    let (client, _, joined) = upload(&world, &[usize::MAX; 8]);
    client.unwrap();
    assert_eq!(joined, 0);
    world.assert_same();
}
