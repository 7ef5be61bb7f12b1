//! The clock of a session: it stands while ksync works, and when it has run out that is what is said.

use std::fs;

use serde_json::json;

use crate::platform::{Platform, place};
use crate::world::{World, wait_for};

/// A command on the VM that ends when it is told to.
fn begin(platform: &Platform, world: &World, id: &str) -> std::process::Child {
    let wait = format!("while [ ! -e {} ]; do sleep 0.05; done", world.path("go").display());
    platform.ksync(world, &["ssh", id, &wait]).spawn().unwrap()
}

#[test]
fn a_session_in_use_is_not_deleted_and_one_that_is_not_is() {
    let world = World::new();
    let platform = Platform::start(&world);
    let id = platform.create(&world, &["--timeout", "10"]);
    let mut child = begin(&platform, &world, &id);
    wait_for("the session to be held", || (platform.session(&id)["stage"] == "active").then_some(()));
    platform.advance(3600);
    assert_eq!(platform.status(&id), 200);
    fs::write(world.path("go"), "").unwrap();
    assert!(child.wait().unwrap().success());
    platform.advance(3600);
    wait_for("the end of the session", || (platform.status(&id) == 404).then_some(()));
}

#[test]
fn a_session_that_is_gone_is_told_so_and_takes_nothing_away() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &["--timeout", "10"]);
    let there = place(&world, &id, "there");
    platform.run(&world, &["src", &there]).ok();
    platform.run(&world, &[&there, "back"]).ok();
    platform.advance(3600);
    wait_for("the end of the session", || (platform.status(&id) == 404).then_some(()));
    let run = platform.run(&world, &["--delete", &there, "back"]);
    assert_eq!(run.status.code().unwrap_or(-1), 41, "{}", run.stderr);
    world.assert_same("src", "back");
}

#[test]
fn a_vm_in_standby_is_woken_unless_that_is_not_wanted() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &["--timeout", "300"]);
    platform.run(&world, &["session", "setup", &id]).ok();
    platform.fault(json!({ "call": "bridge", "freezes_in_standby": true, "times": 9 }));
    platform.advance(5);
    assert_eq!(platform.session(&id)["stage"], "standby");
    let there = place(&world, &id, "there");
    platform.run(&world, &["--no-keep-alive", "--contimeout", "1", "src", &there]).fails(35);
    platform.run(&world, &["src", &there]).ok();
    world.assert_same("src", "there");
}

#[test]
fn a_socket_that_is_closed_and_refused_for_a_while_costs_time_and_nothing_else() {
    let world = World::new();
    let platform = Platform::start(&world);
    let id = platform.create(&world, &["--timeout", "300"]);
    platform.run(&world, &["session", "setup", &id]).ok();
    platform.fault(json!({ "call": "bridge", "freezes_in_standby": true }));
    platform.fault(json!({ "call": "cdp", "after_seconds": 60 }));
    platform.fault(json!({ "call": "cdp", "status": 503, "times": 3 }));
    platform.calls();
    let mut child = begin(&platform, &world, &id);
    let stage = |wanted: &str| (platform.session(&id)["stage"] == wanted).then_some(());
    wait_for("the session to be held", || stage("active"));
    platform.advance(61);
    wait_for("the end of the socket", || stage("quiet"));
    platform.advance(5);
    // It stands still in the middle of what it does, and for as long as the socket is refused.
    assert_eq!(platform.session(&id)["stage"], "standby");
    fs::write(world.path("go"), "").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(platform.calls()["cdp"], json!(5));
}
