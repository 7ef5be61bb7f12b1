//! Uploads over real TCP with losses, and over a link at its rate: how many connections they open.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::machine::Machine;
use crate::world::link::Conditions;
use crate::world::network::{FAR, Network, Router, SEEN};
use crate::world::{Run, noise};

/// A link on which a single connection takes many times as long as the link would.
const LOSSY: Conditions = Conditions {
    name: "lossy",
    about: "",
    up_rate: Some(100_000_000),
    down_rate: Some(100_000_000),
    round_trip: Duration::from_millis(40),
    loss: 0.01,
    is_real_tcp: true,
    cut: None,
};

/// A link that TCP fills, and whose queue overflows.
const SLOW: Conditions = Conditions { up_rate: Some(20_000_000), loss: 0.0, ..LOSSY };

/// Uploads `bytes` of noise over this link, and returns the connections. `None` without the peers.
fn connections(
    conditions: Conditions,
    settings: &'static str,
    bytes: usize,
    options: &'static [&str],
) -> Option<u64> {
    // The namespace is one of a thread.
    let uploading = thread::spawn(move || {
        let network = Network::enter_or_skip()?;
        let machine = Machine::with(&format!("{settings}\nListenAddress {FAR}"))?;
        machine.world.tree("src").file("large", noise(3, bytes));
        network.set(conditions);
        let host_key = fs::read_to_string(machine.world.path("host-key.pub")).expect("a key");
        let endpoint = machine.behind(&format!("ssh://{SEEN}:{}", machine.port), "dst");
        let mut command = machine.world.ksync(["--identity", "key", "--host-key", &host_key]);
        command.args(options).args(["src", &endpoint]);
        Run::of(command).ok();
        machine.rsync_finds_no_difference("src", "dst");
        let (lost, overflowed) = network.dropped();
        assert!(lost + overflowed > 0, "nothing was lost");
        Some(network.carried().connections)
    });
    uploading.join().expect("an upload")
}

#[test]
fn losses_open_further_connections_for_an_upload() {
    let Some(count) = connections(LOSSY, "", 10 << 20, &[]) else { return };
    assert_eq!(count, 4);
}

#[test]
fn a_link_at_its_rate_is_left_to_one_connection() {
    let Some(count) = connections(SLOW, "", 10 << 20, &[]) else { return };
    assert_eq!(count, 1);
}

#[test]
fn a_chosen_number_of_channels_opens_no_further_connection() {
    let Some(count) = connections(LOSSY, "", 4 << 20, &["-j", "2"]) else { return };
    assert_eq!(count, 1);
}

#[test]
fn a_refused_further_connection_is_no_error() {
    // sshd drops all but one of the connections that are not logged in yet.
    let Some(count) = connections(LOSSY, "MaxStartups 1", 5 << 20, &[]) else { return };
    assert_eq!(count, 4);
}

#[test]
fn the_router_delays_packets_and_drops_what_its_queue_cannot_hold() {
    // A packet takes a millisecond, and the queue holds a hundred.
    let (start, ms) = (Instant::now(), Duration::from_millis);
    let mut router = Router::new(Some(12_000_000), ms(100), 0.0, 1);
    let arrivals: Vec<_> = (0..200).map(|_| router.arrival(1500, start)).collect();
    let expected = (0..200).map(|at| (at < 100).then(|| start + ms(51 + at))).collect::<Vec<_>>();
    assert_eq!(arrivals, expected);
    assert_eq!((router.lost, router.overflowed), (0, 100));
    assert_eq!(router.arrival(1500, start + ms(10)), Some(start + ms(151)), "ten have left");
}

#[test]
fn the_router_loses_its_share_of_the_packets_and_always_the_same() {
    let lost = |seed| {
        let mut router = Router::new(None, Duration::ZERO, 0.01, seed);
        let now = Instant::now();
        (0..100_000).filter(|_| router.arrival(1500, now).is_none()).collect::<Vec<_>>()
    };
    assert!((900..1100).contains(&lost(1).len()), "{}", lost(1).len());
    assert!(lost(1) == lost(1) && lost(1) != lost(2));
}
