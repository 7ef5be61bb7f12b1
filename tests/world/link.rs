//! The link between a client and a server: a TCP relay that delays bytes, limits their rate, counts
//! them, and breaks or silences connections on request.
//!
//! It models the delay each way, and the round trip of TCP's handshake. All connections share one
//! rate per direction. A queue of 50 ms in front of it fills and then stops the sender. It does not
//! model packet loss or slow start, so long links show their best case. Bytes and rates count TCP
//! payload.
//!
//! Each binary uses a part of this module.
#![allow(dead_code, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
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
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Conditions {
    /// Name and description in tables.
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Bits per second from client to server; `None` means unlimited.
    pub(crate) up_rate: Option<u64>,
    pub(crate) down_rate: Option<u64>,
    pub(crate) round_trip: Duration,
    /// Share of the packets that get lost each way, from 0 to 1. Only a
    /// [`Network`](super::network::Network) has packets.
    pub(crate) loss: f64,
    /// Needs a network: TCP is to see the link.
    pub(crate) is_real_tcp: bool,
    /// Breaks a connection.
    pub(crate) cut: Option<Cut>,
}

/// The bytes of a connection after which it breaks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cut {
    /// Both directions together.
    After(u64),
    UpAfter(u64),
    DownAfter(u64),
}

/// Treatment of the bytes of open and new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Passes,
    /// The link loses all bytes. The connections of that time are useless from then on.
    Vanishes,
    /// The link takes no more bytes, so that the sender's buffers fill.
    Stalls,
}

/// Traffic since the last reset.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Carried {
    pub(crate) up_bytes: u64,
    pub(crate) down_bytes: u64,
    pub(crate) connections: u64,
}

impl Carried {
    /// Bytes of both directions.
    pub(crate) fn bytes(&self) -> u64 {
        self.up_bytes + self.down_bytes
    }
}

/// A relay in front of one address. Its conditions may change; a connection keeps those it began
/// with. The relay serves until the process ends.
pub(crate) struct Link {
    shared: Arc<Shared>,
    pub(crate) port: u16,
}

struct Shared {
    target: Mutex<SocketAddr>,
    conditions: Mutex<Conditions>,
    /// The next connection is the last one that breaks.
    cuts_once: AtomicBool,
    flow: Mutex<Flow>,
    /// New connections end at once.
    is_down: AtomicBool,
    up: Shaper,
    down: Shaper,
    connections: AtomicU64,
    open_count: AtomicUsize,
    open: Mutex<Vec<Weak<Connection>>>,
}

/// One direction of the link, shared by all connections.
///
/// Bytes may answer everything that has arrived at their end before, so each byte has a depth. A
/// byte from the client is one deeper than the deepest byte received there. A byte from the server
/// is as deep as the deepest byte received there.
#[derive(Default)]
struct Shaper {
    /// Time at which the last booked byte will have left.
    free_at: Mutex<Option<Instant>>,
    /// Bytes that had been read after each read since the last reset.
    ends: Mutex<Vec<u64>>,
    /// Depth of the deepest byte that has arrived.
    depth: AtomicUsize,
}

impl Shaper {
    /// Books the rate for `bytes`, and returns the time at which they will have left.
    fn book(&self, bytes: usize, rate: u64) -> Instant {
        let mut free_at = self.free_at.lock().expect("the rate");
        let takes = Duration::from_nanos(bytes as u64 * 8 * 1_000_000_000 / rate);
        let now = Instant::now();
        let leaves = free_at.map_or(now, |free_at| free_at.max(now)) + takes;
        *free_at = Some(leaves);
        leaves
    }

    fn count(&self, bytes: usize) {
        let mut ends = self.ends.lock().expect("the counts");
        let before = ends.last().copied().unwrap_or(0);
        ends.push(before + bytes as u64);
    }

    fn bytes(&self) -> u64 {
        self.ends.lock().expect("the counts").last().copied().unwrap_or(0)
    }
}

impl Link {
    /// Makes an unlimited relay to `target`.
    pub(crate) fn to(target: impl Into<SocketAddr>) -> Link {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            target: Mutex::new(target.into()),
            conditions: Mutex::default(),
            cuts_once: AtomicBool::new(false),
            flow: Mutex::new(Flow::Passes),
            is_down: AtomicBool::new(false),
            up: Shaper::default(),
            down: Shaper::default(),
            connections: AtomicU64::new(0),
            open_count: AtomicUsize::new(0),
            open: Mutex::default(),
        });
        let relay = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if relay.is_down.load(SeqCst) {
                    continue;
                }
                relay.open_count.fetch_add(1, SeqCst);
                let relay = Arc::clone(&relay);
                thread::spawn(move || {
                    // If the target is unreachable, the client sees its connection closed.
                    let _ = connect(&relay, client);
                    relay.open_count.fetch_sub(1, SeqCst);
                });
            }
        });
        Link { shared, port }
    }

    /// Makes a relay with a delay each way and no other limit.
    pub(crate) fn delayed(target: impl Into<SocketAddr>, delay: Duration) -> Link {
        let link = Link::to(target);
        link.set(Conditions { round_trip: 2 * delay, ..Conditions::default() });
        link
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Sets the target port of later connections.
    pub(crate) fn lead_to(&self, port: u16) {
        *self.shared.target.lock().expect("the target") = (Ipv4Addr::LOCALHOST, port).into();
    }

    /// Sets the conditions of later connections.
    pub(crate) fn set(&self, conditions: Conditions) {
        *self.conditions() = conditions;
        self.shared.cuts_once.store(false, SeqCst);
    }

    fn conditions(&self) -> MutexGuard<'_, Conditions> {
        self.shared.conditions.lock().expect("the conditions")
    }

    /// Limits each direction of later connections to this many bytes per second; 0 is no limit.
    pub(crate) fn set_rate(&self, bytes: u64) {
        let rate = (bytes > 0).then_some(8 * bytes);
        let mut conditions = self.conditions();
        (conditions.up_rate, conditions.down_rate) = (rate, rate);
    }

    /// Breaks each later connection after this many bytes.
    pub(crate) fn cut_each(&self, cut: Option<Cut>) {
        self.conditions().cut = cut;
        self.shared.cuts_once.store(false, SeqCst);
    }

    /// Breaks the next connection after this many bytes, and no other one.
    pub(crate) fn cut_next(&self, cut: Cut) {
        self.cut_each(Some(cut));
        self.shared.cuts_once.store(true, SeqCst);
    }

    /// Ends all connections. New ones are accepted at once.
    pub(crate) fn cut(&self) {
        for connection in self.shared.open.lock().expect("connections").drain(..) {
            if let Some(connection) = connection.upgrade() {
                connection.end();
            }
        }
    }

    /// Ends new connections at once while `is_down`, and open ones now.
    pub(crate) fn set_down(&self, is_down: bool) {
        self.shared.is_down.store(is_down, SeqCst);
        if is_down {
            self.cut();
        }
    }

    /// Passes or withholds the bytes from now on.
    pub(crate) fn set_flow(&self, flow: Flow) {
        *self.shared.flow.lock().expect("the flow") = flow;
    }

    /// Resets the counters.
    pub(crate) fn reset(&self) {
        self.shared.up.ends.lock().expect("the counts").clear();
        self.shared.down.ends.lock().expect("the counts").clear();
        self.shared.up.depth.store(0, SeqCst);
        self.shared.down.depth.store(0, SeqCst);
        self.shared.connections.store(0, SeqCst);
    }

    pub(crate) fn carried(&self) -> Carried {
        Carried {
            up_bytes: self.shared.up.bytes(),
            down_bytes: self.shared.down.bytes(),
            connections: self.shared.connections.load(SeqCst),
        }
    }

    /// Positions at which reads from the client and from the server ended, since the last reset.
    pub(crate) fn ends(&self) -> [Vec<u64>; 2] {
        [&self.shared.up, &self.shared.down].map(|shaper| shaper.ends.lock().expect("the counts").clone())
    }

    /// Sequential round trips, connecting included.
    pub(crate) fn round_trips(&self) -> usize {
        self.carried().connections as usize + self.shared.down.depth.load(SeqCst)
    }

    /// Reports if no connection is open.
    pub(crate) fn is_quiet(&self) -> bool {
        self.shared.open_count.load(SeqCst) == 0
    }
}

/// Carries one connection until both directions have ended.
fn connect(shared: &Arc<Shared>, client: TcpStream) -> std::io::Result<()> {
    let conditions = {
        let mut conditions = shared.conditions.lock().expect("the conditions");
        let now = *conditions;
        if shared.cuts_once.swap(false, SeqCst) {
            conditions.cut = None;
        }
        now
    };
    let prepare = |socket: &TcpStream| -> std::io::Result<()> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(LINGER + conditions.round_trip * 2))?;
        if conditions.up_rate.is_some() {
            set_socket_recv_buffer_size(socket, RECEIVE_BUFFER)?;
        }
        Ok(())
    };
    prepare(&client)?;
    // The kernel's handshake took no time. On a real link the first byte could leave only now.
    thread::sleep(conditions.round_trip);
    let target = *shared.target.lock().expect("the target");
    let server = TcpStream::connect(target)?;
    prepare(&server)?;
    shared.connections.fetch_add(1, SeqCst);
    let left = AtomicU64::new(match conditions.cut {
        Some(Cut::After(bytes) | Cut::UpAfter(bytes) | Cut::DownAfter(bytes)) => bytes,
        None => u64::MAX,
    });
    let has_ended = AtomicBool::new(false);
    let connection = Arc::new(Connection { client, server, conditions, left, has_ended });
    {
        let mut open = shared.open.lock().expect("connections");
        open.retain(|connection| connection.strong_count() > 0);
        open.push(Arc::downgrade(&connection));
    }
    thread::scope(|scope| {
        scope.spawn(|| OneWay::up(shared, &connection).carry());
        OneWay::down(shared, &connection).carry();
    });
    if connection.is_cut() {
        // As on a broken link, the bytes in the buffers are lost, and a writer gets an error.
        for socket in [&connection.client, &connection.server] {
            set_socket_linger(socket, Some(Duration::ZERO))?;
        }
    }
    Ok(())
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    conditions: Conditions,
    /// Bytes that the connection may still carry.
    left: AtomicU64,
    /// Set once a direction has ended.
    has_ended: AtomicBool,
}

impl Connection {
    fn is_cut(&self) -> bool {
        self.left.load(SeqCst) == 0
    }

    fn end(&self) {
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}

/// One direction of one connection.
struct OneWay<'c> {
    shared: &'c Shared,
    connection: &'c Connection,
    from: &'c TcpStream,
    to: &'c TcpStream,
    direction: &'c Shaper,
    rate: Option<u64>,
    /// The bytes count for a cut.
    counts: bool,
}

impl<'c> OneWay<'c> {
    fn up(shared: &'c Shared, connection: &'c Connection) -> Self {
        let Connection { client, server, conditions, .. } = connection;
        let counts = !matches!(conditions.cut, Some(Cut::DownAfter(_)));
        let (direction, rate) = (&shared.up, conditions.up_rate);
        OneWay { shared, connection, from: client, to: server, direction, rate, counts }
    }

    fn down(shared: &'c Shared, connection: &'c Connection) -> Self {
        let Connection { client, server, conditions, .. } = connection;
        let counts = !matches!(conditions.cut, Some(Cut::UpAfter(_)));
        let (direction, rate) = (&shared.down, conditions.down_rate);
        OneWay { shared, connection, from: server, to: client, direction, rate, counts }
    }

    fn carry(&self) {
        if self.rate.is_none() && self.connection.conditions.round_trip.is_zero() {
            self.read_all(|depth, piece| self.arrive(depth, piece));
        } else {
            self.carry_later();
        }
        self.connection.has_ended.store(true, SeqCst);
        let _ = self.to.shutdown(Shutdown::Write);
        if self.connection.is_cut() {
            // This wakes the other direction.
            self.connection.end();
        }
    }

    /// Reads on this thread, and writes each piece on another thread when it is due.
    fn carry_later(&self) {
        let delay = self.connection.conditions.round_trip / 2;
        let queue = Queue::for_link(self.rate, delay);
        thread::scope(|scope| {
            scope.spawn(|| {
                while let Some((at, depth, piece)) = queue.pop() {
                    thread::sleep(at.saturating_duration_since(Instant::now()));
                    if !self.arrive(depth, &piece) {
                        return queue.close();
                    }
                }
            });
            self.read_all(|depth, piece| {
                let leaves =
                    self.rate.map_or_else(Instant::now, |rate| self.direction.book(piece.len(), rate));
                let taken = queue.push(leaves + delay, depth, piece.to_vec());
                // The sender waits for bytes that exceed the link's queue.
                thread::sleep(leaves.saturating_duration_since(Instant::now() + QUEUE));
                taken
            });
            queue.close();
        });
    }

    /// Hands a piece over. Returns false if the receiver is gone.
    fn arrive(&self, depth: usize, piece: &[u8]) -> bool {
        self.direction.depth.fetch_max(depth, SeqCst);
        let mut to = self.to;
        to.write_all(piece).is_ok()
    }

    /// Depth of a byte that leaves now.
    fn depth(&self) -> usize {
        if std::ptr::eq(self.direction, &self.shared.up) {
            self.shared.down.depth.load(SeqCst) + 1
        } else {
            self.shared.up.depth.load(SeqCst)
        }
    }

    /// Reads to the end, and passes on every piece until the receiver is gone.
    fn read_all(&self, mut pass: impl FnMut(usize, &[u8]) -> bool) {
        let piece_bytes = self.rate.map_or(PIECE_MAX, |rate| rate as usize / 8 / 1000);
        let mut buffer = vec![0; piece_bytes.clamp(PIECE_MIN, PIECE_MAX)];
        let mut from = self.from;
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => count,
                Err(error) if is_timeout(&error) && !self.connection.has_ended.load(SeqCst) => continue,
                Err(_) => return,
            };
            let depth = self.depth();
            let taken = self.take(count);
            self.direction.count(count);
            while self.flow() == Flow::Stalls {
                thread::sleep(Duration::from_millis(20));
            }
            if self.flow() == Flow::Passes && !pass(depth, &buffer[..taken]) || self.connection.is_cut() {
                return;
            }
        }
    }

    fn flow(&self) -> Flow {
        *self.shared.flow.lock().expect("the flow")
    }

    /// Takes up to `count` bytes from the connection's remaining limit.
    fn take(&self, count: usize) -> usize {
        if !self.counts {
            return count;
        }
        let less = |left: u64| Some(left.saturating_sub(count as u64));
        let left = self.connection.left.fetch_update(SeqCst, SeqCst, less);
        count.min(left.map_or(0, |left| usize::try_from(left).unwrap_or(count)))
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

/// Pieces in flight, with their times of arrival and depths. The bound counts bytes, because a long
/// fast link holds many pieces.
struct Queue {
    bytes_max: usize,
    state: Mutex<UnderWay>,
    changed: Condvar,
}

#[derive(Default)]
struct UnderWay {
    pieces: VecDeque<(Instant, usize, Vec<u8>)>,
    bytes: usize,
    is_closed: bool,
}

impl Queue {
    /// Makes a queue with the capacity of a link of this rate and delay, its own queue and some
    /// slack included.
    fn for_link(rate: Option<u64>, delay: Duration) -> Queue {
        let rate = rate.unwrap_or(10_000_000_000);
        let bytes_max = (rate as f64 / 8.0 * (delay + QUEUE).as_secs_f64()) as usize + (1 << 20);
        Queue { bytes_max, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits while `holds` is true and the queue is open.
    fn wait_while(&self, holds: impl Fn(&UnderWay) -> bool) -> MutexGuard<'_, UnderWay> {
        let state = self.state.lock().expect("a queue");
        self.changed.wait_while(state, |state| holds(state) && !state.is_closed).expect("a queue")
    }

    /// Waits for room and appends. Returns false if the queue is closed.
    fn push(&self, at: Instant, depth: usize, piece: Vec<u8>) -> bool {
        let mut state = self.wait_while(|state| state.bytes > self.bytes_max);
        if state.is_closed {
            return false;
        }
        state.bytes += piece.len();
        state.pieces.push_back((at, depth, piece));
        self.changed.notify_all();
        true
    }

    /// Waits for a piece and takes it; `None` if the queue is empty and closed.
    fn pop(&self) -> Option<(Instant, usize, Vec<u8>)> {
        let mut state = self.wait_while(|state| state.pieces.is_empty());
        let (at, depth, piece) = state.pieces.pop_front()?;
        state.bytes -= piece.len();
        self.changed.notify_all();
        Some((at, depth, piece))
    }

    fn close(&self) {
        self.state.lock().expect("a queue").is_closed = true;
        self.changed.notify_all();
    }
}
