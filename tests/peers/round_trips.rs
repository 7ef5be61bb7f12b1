//! Round trips of a sync.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::machine::Machine;
use crate::world::link::Link;
use crate::world::noise;

/// TCP 1, WebSocket 1, key exchange 2, login 3, channel 1, and the agent's answer 1.
const ROUND_TRIPS: usize = 9;

/// Limit of the upload: the script that starts the agent, and after it the hello and the manifest
/// in hex.
const UP_BYTES_MAX: u64 = 8000;

const ROUND_TRIP: Duration = Duration::from_millis(300);

#[test]
fn finding_nothing_to_do_takes_nine_round_trips_and_eight_kilobytes() {
    let Some(machine) = Machine::start_alone() else { return };
    let mut tree = machine.world.tree("src");
    for number in 0..300 {
        let mut name = String::new();
        write!(name, "dir-{}/file-{number}.bin", number % 7).expect("a name");
        tree = tree.file(name, noise(number, 10_000));
    }
    let (bridge, _service) = machine.bridge();
    let bridge: SocketAddr = bridge.trim_start_matches("ws://").parse().expect("an address");
    let links = [Link::to(bridge), Link::delayed(bridge, ROUND_TRIP / 2)];
    let sync = |link: &Link| {
        let endpoint = machine.behind(&format!("ws://{}", link.address()), "dst");
        let start = Instant::now();
        let key = std::fs::read_to_string(machine.world.path("host-key.pub")).expect("a key");
        let run = machine.run(["--host-key", &key, "src", &endpoint]).ok();
        (run.stats(), start.elapsed())
    };
    sync(&Link::to(bridge));
    let [(_, near), (far_stats, far)] = [sync(&links[0]), sync(&links[1])];
    assert!(far_stats.summary.starts_with("nothing to do"), "{}", far_stats.summary);
    let trips = (far.saturating_sub(near)).as_secs_f64() / ROUND_TRIP.as_secs_f64();
    let seen = format!(
        "{} round trips, {trips:.2} by the clock, {} bytes up, {} of them the exchange's",
        links[1].round_trips(),
        links[1].carried().up_bytes,
        far_stats.wire_up_bytes
    );
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{seen}\n").as_bytes());
    assert!(links[1].round_trips() <= ROUND_TRIPS, "{seen}");
    // The clock confirms the count. The work of both sides varies by less than two round trips.
    assert!(trips < ROUND_TRIPS as f64 + 2.0, "{seen}");
    assert!(links[1].carried().up_bytes <= UP_BYTES_MAX, "{seen}");
}
