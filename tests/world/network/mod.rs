//! A network whose every packet takes its time: real TCP from end to end on one machine.
//!
//! ```text
//! client at 10.77.0.1 ─► 10.77.0.4 ─► TUN device ─► router ─► TUN device ─► server at 10.77.0.2
//! ```
//! The sockets of both ends see the true round trip, losses and congestion, unlike those at a
//! relay ([`link`](super::link)), which ends TCP next door. The router renames each packet: the
//! server is 10.77.0.4 to clients, and a client is 10.77.0.3 to the server. Checksums stay right,
//! because 1 + 4 = 3 + 2.
//!
//! Both directions have a rate, a delay, a seeded loss, and a queue of one bandwidth-delay product
//! (at least a hundred packets) that drops what exceeds it. Rates and counters include the headers
//! and the repeated packets. Both ends use cubic, the default of Linux, macOS and Windows. bbr,
//! which some servers have, hardly notices losses.
//!
//! One thread receives from the device, and one for each direction sends to it. Together they carry
//! 1 Gbit/s on one core.

mod router;

use std::collections::{HashSet, VecDeque};
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) use router::Router;

use super::link::{Carried, Conditions};

/// Address at which servers listen.
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// Address at which clients reach them.
pub(crate) const SEEN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 4);

/// Commands that set the network up. The device queues every burst that TCP sends: only the router
/// may drop packets.
const SETUP: &[&str] = &[
    "link set lo up",
    "addr add 10.77.0.1/24 dev far0",
    "addr add 10.77.0.2/24 dev far0",
    "link set far0 mtu 1500 txqueuelen 20000 up",
    "route replace 10.77.0.0/24 dev far0 proto kernel scope link src 10.77.0.1 congctl cubic",
];

/// Silence after which the network counts as quiet, beyond the round trip.
const SILENCE: Duration = Duration::from_millis(20);

/// Seeds of the dice.
const SEEDS: [u64; 2] = [1, 2];

/// The network of the current thread, and of all threads and programs that it starts from now on.
pub(crate) struct Network(Arc<Shared>);

struct Shared {
    device: Device,
    up: OneWay,
    down: OneWay,
    conditions: Mutex<Conditions>,
    /// Client ports of the connections.
    connections: Mutex<HashSet<[u8; 2]>>,
}

/// One direction.
struct OneWay {
    state: Mutex<State>,
    filled: Condvar,
}

struct State {
    router: Router,
    /// Packets under way with their time of arrival, in this order.
    queue: VecDeque<(Instant, Vec<u8>)>,
    bytes: u64,
    last: Option<Instant>,
}

impl Network {
    /// Moves the current thread into a network namespace with a TUN device. Fails with the reason
    /// where the machine has none, or this user may not.
    pub(crate) fn enter() -> Result<Network, String> {
        if super::skip::program("ip").is_none() {
            return Err("ip is not installed".to_owned());
        }
        let device = open()?;
        for command in SETUP {
            ip(command)?;
        }
        // A connection must not profit from what the kernel learnt from an earlier one.
        std::fs::write("/proc/sys/net/ipv4/tcp_no_metrics_save", "1")
            .map_err(|error| format!("tcp_no_metrics_save: {error}"))?;
        let one_way = |seed| {
            let router = Router::new(None, Duration::ZERO, 0.0, seed);
            let state = State { router, queue: VecDeque::new(), bytes: 0, last: None };
            OneWay { state: Mutex::new(state), filled: Condvar::new() }
        };
        let [up, down] = SEEDS.map(one_way);
        let (conditions, connections) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { device, up, down, conditions, connections });
        let carriers: [fn(&Shared); 3] =
            [Shared::receive, |shared| shared.deliver(&shared.up), |shared| shared.deliver(&shared.down)];
        for carry in carriers {
            let shared = Arc::clone(&shared);
            thread::spawn(move || carry(&shared));
        }
        Ok(Network(shared))
    }

    /// The same, but says why there is none. That is an error for those who require all peers if a
    /// program is missing, and not if the machine lacks the device or forbids namespaces.
    pub(crate) fn enter_or_skip() -> Option<Network> {
        let reason = match Network::enter() {
            Ok(network) => return Some(network),
            Err(reason) => format!("no network with real TCP: {reason}"),
        };
        if super::skip::program("ip").is_none() {
            super::skip::skip(reason);
        } else {
            let _ = writeln!(std::io::stderr(), "skipped: {reason}");
        }
        None
    }

    /// Sets the conditions of all packets from now on.
    pub(crate) fn set(&self, conditions: Conditions) {
        let Conditions { up_rate, down_rate, round_trip, loss, .. } = conditions;
        *self.0.conditions.lock().expect("the conditions") = conditions;
        self.0.up.lock().router = Router::new(up_rate, round_trip, loss, SEEDS[0]);
        self.0.down.lock().router = Router::new(down_rate, round_trip, loss, SEEDS[1]);
    }

    /// Resets the counters.
    pub(crate) fn reset(&self) {
        self.0.up.lock().bytes = 0;
        self.0.down.lock().bytes = 0;
        self.0.connections.lock().expect("the ports").clear();
    }

    /// Bytes of all packets sent, and connections begun, since the last reset.
    pub(crate) fn carried(&self) -> Carried {
        let connections = self.0.connections.lock().expect("the ports").len() as u64;
        let (up_bytes, down_bytes) = (self.0.up.lock().bytes, self.0.down.lock().bytes);
        Carried { up_bytes, down_bytes, connections }
    }

    /// Packets dropped under these conditions: by the dice, and by full queues.
    pub(crate) fn dropped(&self) -> (u64, u64) {
        let (up, down) = (self.0.up.lock(), self.0.down.lock());
        (up.router.lost + down.router.lost, up.router.overflowed + down.router.overflowed)
    }

    /// Reports if no packet is under way, and none was for longer than a round trip.
    pub(crate) fn is_quiet(&self) -> bool {
        let silence = SILENCE + 2 * self.0.conditions.lock().expect("the conditions").round_trip;
        [&self.0.up, &self.0.down].into_iter().all(|one_way| {
            let state = one_way.lock();
            state.queue.is_empty() && state.last.is_none_or(|last| last.elapsed() > silence)
        })
    }
}

impl Shared {
    /// Receives packets, and hands them to their direction.
    fn receive(&self) {
        let mut buffer = [0; 2048];
        while let Ok(length) = self.device.recv(&mut buffer) {
            let packet = &mut buffer[..length];
            // IPv4 only: the kernel asks for IPv6 routers by itself.
            let (Some(0x45), true) = (packet.first(), length >= 40) else { continue };
            let one_way = match (packet[15], packet[19]) {
                (1, 4) => {
                    (packet[15], packet[19]) = (3, 2);
                    // A SYN without ACK begins a connection.
                    if packet[9] == 6 && packet[33] & 0x12 == 0x02 {
                        self.connections.lock().expect("the ports").insert([packet[20], packet[21]]);
                    }
                    &self.up
                }
                (2, 3) => {
                    (packet[15], packet[19]) = (4, 1);
                    &self.down
                }
                _ => continue,
            };
            let now = Instant::now();
            let mut state = one_way.lock();
            state.bytes += length as u64;
            state.last = Some(now);
            if let Some(arrival) = state.router.arrival(length, now) {
                state.queue.push_back((arrival, packet.to_vec()));
                one_way.filled.notify_one();
            }
        }
    }

    /// Sends the packets of a direction when they are due.
    fn deliver(&self, one_way: &OneWay) {
        let mut due = Vec::new();
        loop {
            let mut state = one_way.lock();
            loop {
                let now = Instant::now();
                while state.queue.front().is_some_and(|(at, _)| *at <= now) {
                    due.extend(state.queue.pop_front().map(|(_, packet)| packet));
                }
                if !due.is_empty() {
                    break;
                }
                state = match state.queue.front() {
                    Some((at, _)) => {
                        let left = *at - now;
                        one_way.filled.wait_timeout(state, left).expect("the queue").0
                    }
                    None => one_way.filled.wait(state).expect("the queue"),
                };
            }
            state.last = Some(Instant::now());
            drop(state);
            for packet in due.drain(..) {
                let _ = self.device.send(&packet);
            }
        }
    }
}

impl OneWay {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the queue")
    }
}

/// Runs `ip` with these arguments.
fn ip(arguments: &str) -> Result<(), String> {
    let program = super::skip::program("ip").ok_or("ip is not installed")?;
    let output = Command::new(program).args(arguments.split(' ')).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("ip: {error}")),
    }
}

#[cfg(target_os = "linux")]
type Device = tun::Device;

#[cfg(target_os = "linux")]
fn open() -> Result<Device, String> {
    use nix::sched::{CloneFlags, unshare};
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Err("this machine has no /dev/net/tun".to_owned());
    }
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("no network namespace: {}", error.desc()))?;
    let mut configuration = tun::Configuration::default();
    // `ip` gives the device its addresses.
    configuration.tun_name("far0").platform_config(|config| {
        config.ensure_root_privileges(false);
    });
    tun::create(&configuration).map_err(|error| format!("no TUN device: {error}"))
}

#[cfg(not(target_os = "linux"))]
struct Device;

#[cfg(not(target_os = "linux"))]
impl Device {
    fn recv(&self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn send(&self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

#[cfg(not(target_os = "linux"))]
fn open() -> Result<Device, String> {
    Err("only Linux has network namespaces".to_owned())
}
