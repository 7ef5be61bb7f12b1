//! Round trips of a sync.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::machine::Machine;
use crate::tls::Tls;
use crate::world::link::{Conditions, Link};
use crate::world::{Run, noise, wait_for};

/// TCP 1, WebSocket 1, key exchange 2, login 3, channel 1, and the agent's answer 1.
const ROUND_TRIPS: usize = 9;

/// Limits of the upload. In order there is the script that starts the agent, and after it the hello
/// and the manifest in hex. A host that is remembered gets a short script, and the rest as it is.
const UP_BYTES_MAX: u64 = 8000;
const FAST_UP_BYTES_MAX: u64 = 3000;

/// The same with TLS 1.3, whose first packet has a key of 1.2 kB.
const TLS_UP_BYTES_MAX: u64 = 6000;

/// Attempts to stay within the limits.
const ATTEMPTS: usize = 3;

const ROUND_TRIP: Duration = Duration::from_millis(300);

/// A machine with 300 files.
fn machine() -> Option<Machine> {
    let machine = Machine::start_alone()?;
    let mut tree = machine.world.tree("src");
    for number in 0..300 {
        let mut name = String::new();
        write!(name, "dir-{}/file-{number}.bin", number % 7).expect("a name");
        tree = tree.file(name, noise(number, 10_000));
    }
    Some(machine)
}

fn sync(machine: &Machine, endpoint: &str) -> Run {
    let key = std::fs::read_to_string(machine.world.path("host-key.pub")).expect("a key");
    let ca_cert = machine.world.path("ca.pem").display().to_string();
    let mut args = vec!["--host-key", &key, "src", endpoint];
    if endpoint.starts_with("wss:") {
        args.extend(["--ca-cert", &ca_cert]);
    }
    machine.run(args).ok()
}

/// Finds nothing to do at `endpoint`, which is behind `link`: without a delay, and with one.
/// Asserts the limits. A machine that is too busy for the deadlines of the fast order gets another
/// attempt.
#[track_caller]
fn assert_takes(round_trips: usize, up_bytes: u64, machine: &Machine, link: &Link, endpoint: &str) {
    let seen: Vec<_> =
        (0..ATTEMPTS).map_while(|_| exceeds(round_trips, up_bytes, machine, link, endpoint)).collect();
    assert!(seen.len() < ATTEMPTS, "{seen:?}");
}

/// The figures that were seen, if they exceed the limits.
fn exceeds(
    round_trips: usize,
    up_bytes: u64,
    machine: &Machine,
    link: &Link,
    endpoint: &str,
) -> Option<String> {
    let sync = |round_trip| {
        wait_for("the end of the last connection", || link.is_quiet().then_some(()));
        link.set(Conditions { round_trip, ..Conditions::default() });
        link.reset();
        let start = Instant::now();
        let run = sync(machine, endpoint);
        (run.stats(), start.elapsed())
    };
    let [(_, near), (far_stats, far)] = [sync(Duration::ZERO), sync(ROUND_TRIP)];
    assert!(far_stats.summary.starts_with("nothing to do"), "{}", far_stats.summary);
    let trips = (far.saturating_sub(near)).as_secs_f64() / ROUND_TRIP.as_secs_f64();
    let seen = format!(
        "{} round trips, {trips:.2} by the clock, {} bytes up, {} of them the exchange's",
        link.round_trips(),
        link.carried().up_bytes,
        far_stats.wire_up_bytes
    );
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{endpoint}: {seen}\n").as_bytes());
    // The clock confirms the count. The work of both sides varies by less than two round trips.
    let is_within = link.round_trips() <= round_trips
        && trips < round_trips as f64 + 2.0
        && link.carried().up_bytes <= up_bytes;
    (!is_within).then_some(seen)
}

#[test]
fn finding_nothing_to_do_takes_four_round_trips_of_a_remembered_host() {
    let Some(machine) = machine() else { return };
    let (bridge, _service) = machine.bridge();
    let tls = Tls::before(&bridge, &machine.world);
    let port =
        |url: &str| -> u16 { url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port") };
    for (scheme, port, round_trips) in
        [("ws://", port(&bridge), 4), ("wss://", port(&tls.url), 5), ("ssh://", machine.port, 3)]
    {
        let link = Link::to(SocketAddr::from(([127, 0, 0, 1], port)));
        let path = machine.world.path("dst");
        let endpoint = format!("{scheme}root@localhost:{}{}", link.port, path.display());
        sync(&machine, &endpoint);
        let up_bytes = if scheme == "wss://" { TLS_UP_BYTES_MAX } else { FAST_UP_BYTES_MAX };
        assert_takes(round_trips, up_bytes, &machine, &link, &endpoint);
    }
}

#[test]
fn finding_nothing_to_do_takes_nine_round_trips_in_order() {
    let Some(machine) = machine() else { return };
    let (bridge, _service) = machine.bridge();
    let bridge: SocketAddr = bridge.trim_start_matches("ws://").parse().expect("an address");
    let link = Link::to(bridge);
    let endpoint = machine.behind(&format!("ws://{}", link.address()), "dst");
    sync(&machine, &endpoint);
    // A directory in place of the file: nothing can be remembered.
    let facts = machine.world.path("state/ksync/facts");
    std::fs::remove_file(&facts).expect("facts");
    std::fs::create_dir(&facts).expect("a directory");
    assert_takes(ROUND_TRIPS, UP_BYTES_MAX, &machine, &link, &endpoint);
}
