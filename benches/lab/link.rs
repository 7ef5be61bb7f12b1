//! The link between client and VM: a TCP relay that delays bytes, limits their rate, counts them,
//! and breaks connections on request.
//!
//! It models the delay each way, and the round trip of TCP's handshake. All connections share one
//! rate per direction. A queue of 50 ms in front of it fills and then stops the sender. It does not
//! model packet loss or slow start, so long links show their best case. Bytes and rates count TCP
//! payload.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};

/// Capacity of the queue in front of a slow link, like a router's.
const QUEUE: Duration = Duration::from_millis(50);

/// Most bytes read at once. On slow links a piece is one millisecond.
const PIECE_MAX: usize = 128 << 10;
const PIECE_MIN: usize = 1500;

/// Receive buffer of a limited link, in bytes. The kernel's own would grow to megabytes, and hide
/// the queue.
const RECEIVE_BUFFER: usize = 256 << 10;

/// Longest silence of one direction, beyond the delay, after the other one has ended. A program
/// that exits closes both. A relay, however, sees two separate ends of input, and websocat ignores
/// one of them.
const LINGER: Duration = Duration::from_millis(100);

/// Properties of a link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conditions {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Bits per second from client to VM; `None` means unlimited.
    pub(crate) up_rate: Option<u64>,
    pub(crate) down_rate: Option<u64>,
    pub(crate) round_trip: Duration,
    /// Breaks a connection after this many bytes, both directions together.
    pub(crate) cut_after: Option<u64>,
}

const fn conditions(
    name: &'static str,
    about: &'static str,
    rates: Option<(u64, u64)>,
    round_trip_ms: u64,
) -> Conditions {
    let (up_rate, down_rate) = match rates {
        Some((up, down)) => (Some(up), Some(down)),
        None => (None, None),
    };
    let round_trip = Duration::from_millis(round_trip_ms);
    Conditions { name, about, up_rate, down_rate, round_trip, cut_after: None }
}

const MBIT: u64 = 1_000_000;

/// Links of the table.
pub(crate) const LINKS: &[Conditions] = &[
    conditions("raw", "loopback", None, 0),
    conditions("l100", "100 Mbit/s, 50 ms", Some((100 * MBIT, 100 * MBIT)), 50),
    conditions("g1", "1 Gbit/s, 100 ms", Some((1000 * MBIT, 1000 * MBIT)), 100),
    conditions("home", "20 Mbit/s up, 100 down, 80 ms", Some((20 * MBIT, 100 * MBIT)), 80),
];

/// Link for everything that is not measured.
pub(crate) const RAW: Conditions = LINKS[0];

/// Traffic since the last reset.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Carried {
    pub(crate) up_bytes: u64,
    pub(crate) down_bytes: u64,
    pub(crate) connections: u64,
}

/// A relay in front of one address. Its conditions may change; a connection keeps those it began
/// with.
pub(crate) struct Link {
    shared: Arc<Shared>,
    pub(crate) port: u16,
}

struct Shared {
    target: SocketAddr,
    conditions: Mutex<Conditions>,
    up: Shaper,
    down: Shaper,
    open: AtomicUsize,
    connections: AtomicU64,
    stop: AtomicBool,
}

/// One direction of the link, shared by all connections.
struct Shaper {
    /// Time at which the last booked byte will have left.
    free_at: Mutex<Instant>,
    bytes: AtomicU64,
}

impl Shaper {
    fn new() -> Shaper {
        Shaper { free_at: Mutex::new(Instant::now()), bytes: AtomicU64::new(0) }
    }

    /// Books the rate for `bytes`, and returns the time at which they will have left.
    fn book(&self, bytes: usize, rate: u64, earliest: Instant) -> Instant {
        let mut free_at = self.free_at.lock().expect("the rate");
        let takes = Duration::from_nanos(bytes as u64 * 8 * 1_000_000_000 / rate);
        *free_at = (*free_at).max(earliest) + takes;
        *free_at
    }
}

impl Link {
    /// Makes an unlimited relay to `target`.
    pub(crate) fn to(target: SocketAddr) -> Link {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            target,
            conditions: Mutex::new(RAW),
            up: Shaper::new(),
            down: Shaper::new(),
            open: AtomicUsize::new(0),
            connections: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let relay = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if relay.stop.load(Ordering::Relaxed) {
                    return;
                }
                relay.connections.fetch_add(1, Ordering::Relaxed);
                relay.open.fetch_add(1, Ordering::SeqCst);
                let relay = Arc::clone(&relay);
                thread::spawn(move || {
                    // If the target is unreachable, the client sees its connection closed.
                    let _ = connect(&relay, client);
                    relay.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Link { shared, port }
    }

    /// Sets the conditions of later connections.
    pub(crate) fn set(&self, conditions: Conditions) {
        *self.shared.conditions.lock().expect("the conditions") = conditions;
    }

    /// Resets the counters.
    pub(crate) fn reset(&self) {
        self.shared.up.bytes.store(0, Ordering::Relaxed);
        self.shared.down.bytes.store(0, Ordering::Relaxed);
        self.shared.connections.store(0, Ordering::Relaxed);
    }

    pub(crate) fn carried(&self) -> Carried {
        Carried {
            up_bytes: self.shared.up.bytes.load(Ordering::Relaxed),
            down_bytes: self.shared.down.bytes.load(Ordering::Relaxed),
            connections: self.shared.connections.load(Ordering::Relaxed),
        }
    }

    /// Reports if no connection is open.
    pub(crate) fn is_quiet(&self) -> bool {
        self.shared.open.load(Ordering::SeqCst) == 0
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // This wakes the listener, which then sees the flag.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

/// Carries one connection until both directions have ended.
fn connect(shared: &Arc<Shared>, client: TcpStream) -> std::io::Result<()> {
    let accepted = Instant::now();
    let conditions = *shared.conditions.lock().expect("the conditions");
    let server = TcpStream::connect(shared.target)?;
    for socket in [&client, &server] {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(LINGER + conditions.round_trip * 2))?;
        if conditions.up_rate.is_some() {
            set_socket_recv_buffer_size(socket, RECEIVE_BUFFER)?;
        }
    }
    let ended = Arc::new(AtomicBool::new(false));
    let left = Arc::new(AtomicU64::new(conditions.cut_after.unwrap_or(u64::MAX)));
    let one_way = |from: &TcpStream, to: &TcpStream, rate| -> std::io::Result<OneWay> {
        Ok(OneWay {
            shared: Arc::clone(shared),
            from: from.try_clone()?,
            to: to.try_clone()?,
            rate,
            delay: conditions.round_trip / 2,
            // The kernel's handshake took no time. On a real link the first byte could leave only
            // now.
            opens_at: accepted + conditions.round_trip,
            left: Arc::clone(&left),
            ended: Arc::clone(&ended),
        })
    };
    let up = one_way(&client, &server, conditions.up_rate)?;
    let down = one_way(&server, &client, conditions.down_rate)?;
    let up = thread::spawn(move || up.carry(|shared| &shared.up));
    down.carry(|shared| &shared.down);
    let _ = up.join();
    if left.load(Ordering::SeqCst) == 0 {
        // As on a broken link, the bytes in the buffers are lost, and a writer gets an error.
        for socket in [&client, &server] {
            set_socket_linger(socket, Some(Duration::ZERO))?;
        }
    }
    Ok(())
}

/// One direction of one connection.
struct OneWay {
    shared: Arc<Shared>,
    from: TcpStream,
    to: TcpStream,
    rate: Option<u64>,
    delay: Duration,
    opens_at: Instant,
    /// Bytes that the connection may still carry, both directions together.
    left: Arc<AtomicU64>,
    /// Set once the other direction has ended.
    ended: Arc<AtomicBool>,
}

impl OneWay {
    fn carry(mut self, direction: fn(&Shared) -> &Shaper) {
        if self.rate.is_none() && self.delay.is_zero() {
            let mut to = self.to.try_clone().expect("a socket");
            self.read_all(direction, |_, piece| to.write_all(piece).is_ok());
        } else {
            self.carry_later(direction);
        }
        self.ended.store(true, Ordering::SeqCst);
        let _ = self.to.shutdown(Shutdown::Write);
        if self.left.load(Ordering::SeqCst) == 0 {
            // This wakes the other direction.
            let _ = self.from.shutdown(Shutdown::Both);
            let _ = self.to.shutdown(Shutdown::Both);
        }
    }

    /// Reads on this thread, and writes each piece on another thread when it is due.
    fn carry_later(&mut self, direction: fn(&Shared) -> &Shaper) {
        let queue = Arc::new(Queue::for_link(self.rate, self.delay));
        let due = Arc::clone(&queue);
        let mut to = self.to.try_clone().expect("a socket");
        let writer = thread::spawn(move || {
            while let Some((at, piece)) = due.pop() {
                thread::sleep(at.saturating_duration_since(Instant::now()));
                if to.write_all(&piece).is_err() {
                    return due.close();
                }
            }
        });
        let (rate, delay, opens_at) = (self.rate, self.delay, self.opens_at);
        self.read_all(direction, |direction, piece| {
            let now = Instant::now().max(opens_at);
            let leaves = rate.map_or(now, |rate| direction.book(piece.len(), rate, now));
            let taken = queue.push(leaves + delay, piece.to_vec());
            // The sender waits for bytes that exceed the link's queue.
            thread::sleep(leaves.saturating_duration_since(Instant::now() + QUEUE));
            taken
        });
        queue.close();
        let _ = writer.join();
    }

    /// Reads to the end, and passes on every piece until the receiver is gone.
    fn read_all(&mut self, direction: fn(&Shared) -> &Shaper, mut pass: impl FnMut(&Shaper, &[u8]) -> bool) {
        let piece_bytes = self.rate.map_or(PIECE_MAX, |rate| rate as usize / 8 / 1000);
        let mut buffer = vec![0; piece_bytes.clamp(PIECE_MIN, PIECE_MAX)];
        let shared = Arc::clone(&self.shared);
        loop {
            let count = match self.from.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => count,
                Err(error) if is_timeout(&error) && !self.ended.load(Ordering::SeqCst) => continue,
                Err(_) => return,
            };
            let direction = direction(&shared);
            direction.bytes.fetch_add(count as u64, Ordering::Relaxed);
            let taken = self.take(count);
            if !pass(direction, &buffer[..taken]) || taken < count {
                return;
            }
        }
    }

    /// Takes up to `count` bytes from the connection's remaining limit.
    fn take(&self, count: usize) -> usize {
        let less = |left: u64| Some(left.saturating_sub(count as u64));
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        count.min(left.map_or(0, |left| usize::try_from(left).unwrap_or(count)))
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

/// Pieces in flight, with their times of arrival. The bound counts bytes, because a long fast link
/// holds many pieces.
struct Queue {
    bytes_max: usize,
    state: Mutex<UnderWay>,
    changed: Condvar,
}

#[derive(Default)]
struct UnderWay {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    is_closed: bool,
}

impl Queue {
    /// Makes a queue with the capacity of a link of this rate and delay, its own queue and some
    /// slack included.
    fn for_link(rate: Option<u64>, delay: Duration) -> Queue {
        let rate = rate.unwrap_or(10_000 * MBIT);
        let bytes_max = (rate as f64 / 8.0 * (delay + QUEUE).as_secs_f64()) as usize + (1 << 20);
        Queue { bytes_max, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits while `holds` is true and the queue is open.
    fn wait_while(&self, holds: impl Fn(&UnderWay) -> bool) -> MutexGuard<'_, UnderWay> {
        let state = self.state.lock().expect("a queue");
        self.changed.wait_while(state, |state| holds(state) && !state.is_closed).expect("a queue")
    }

    /// Waits for room and appends. Returns false if the queue is closed.
    fn push(&self, at: Instant, piece: Vec<u8>) -> bool {
        let mut state = self.wait_while(|state| state.bytes > self.bytes_max);
        if state.is_closed {
            return false;
        }
        state.bytes += piece.len();
        state.pieces.push_back((at, piece));
        self.changed.notify_all();
        true
    }

    /// Waits for a piece and takes it; `None` if the queue is empty and closed.
    fn pop(&self) -> Option<(Instant, Vec<u8>)> {
        let mut state = self.wait_while(|state| state.pieces.is_empty());
        let (at, piece) = state.pieces.pop_front()?;
        state.bytes -= piece.len();
        self.changed.notify_all();
        Some((at, piece))
    }

    fn close(&self) {
        self.state.lock().expect("a queue").is_closed = true;
        self.changed.notify_all();
    }
}
