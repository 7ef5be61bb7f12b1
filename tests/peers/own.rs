//! A machine whose sshd only ksync's own SSH client can talk to: all that a sync does.

use std::net::SocketAddr;
use std::time::Duration;

use crate::machine::Machine;
use crate::world::link::Link;
use crate::world::noise;

/// Beside the key exchange that only the own client has, keys that change every two megabytes.
pub(crate) const SETTINGS: &str = "KexAlgorithms sntrup761x25519-sha512@openssh.com\nRekeyLimit 2M\nCiphers aes256-ctr\n\
                        MACs umac-128-etm@openssh.com";

const LARGE_BYTES: usize = 12 << 20;

#[track_caller]
fn assert_copy(machine: &Machine, copy: &str) {
    let path = |name: &str| machine.world.path(name).display().to_string();
    machine.rsync_finds_no_difference(&path("src"), &path(copy));
}

fn machine() -> Option<Machine> {
    let machine = Machine::with(SETTINGS)?;
    machine.world.tree("src").file("large", noise(3, LARGE_BYTES)).file("small", "text");
    Some(machine)
}

#[test]
fn a_tree_goes_there_and_back_and_again() {
    let Some(machine) = machine() else { return };
    let there = machine.ssh("dst");
    let told = machine.world.path("told");
    machine.run(["src", &there, "--exec", &format!("echo done > {}", told.display())]).ok();
    assert!(told.exists());
    assert_copy(&machine, "dst");
    machine.run([&there, "back"]).ok();
    assert_copy(&machine, "back");
    let run = machine.run(["src", &there]).ok();
    assert!(run.stats().summary.starts_with("nothing to do"), "{}", run.stats().summary);
}

#[test]
fn an_upload_takes_several_channels_over_a_bridge() {
    let Some(machine) = machine() else { return };
    let (bridge, _service) = machine.bridge();
    let bridge: SocketAddr = bridge.trim_start_matches("ws://").parse().expect("an address");
    let link = Link::delayed(bridge, Duration::from_millis(30));
    let key = std::fs::read_to_string(machine.world.path("host-key.pub")).expect("a key");
    let there = machine.behind(&format!("ws://{}", link.address()), "dst");
    machine.run(["-j", "4", "--host-key", &key, "src", &there]).ok();
    assert_copy(&machine, "dst");
}
