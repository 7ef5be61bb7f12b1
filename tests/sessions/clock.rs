//! Session expiry: the clock stops while ksync works, and ksync reports an expired session.

use std::fs;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::platform::{Platform, endpoint};
use crate::world::{Run, World, noise, wait_for};

/// Starts a command on the VM that runs until the test creates a file.
fn begin(platform: &Platform, world: &World, id: &str) -> Child {
    let wait = format!("while [ ! -e {} ]; do sleep 0.05; done", world.path("go").display());
    platform.ksync(world, &["ssh", id, &wait]).spawn().unwrap()
}

#[test]
fn a_session_in_use_is_not_deleted_and_an_idle_one_is() {
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
fn a_missing_session_is_reported_and_deletes_nothing() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &["--timeout", "10"]);
    let there = endpoint(&world, &id, "there");
    platform.run(&world, &["src", &there]).ok();
    platform.run(&world, &[&there, "back"]).ok();
    platform.advance(3600);
    wait_for("the end of the session", || (platform.status(&id) == 404).then_some(()));
    let run = platform.run(&world, &["--delete", &there, "back"]);
    assert_eq!(run.status.code().unwrap_or(-1), 41, "{}", run.stderr);
    world.assert_same("src", "back");
}

#[test]
fn a_vm_in_standby_wakes_unless_keep_alive_is_off() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &["--timeout", "300"]);
    platform.run(&world, &["session", "setup", &id]).ok();
    platform.fault(json!({ "call": "bridge", "freezes_in_standby": true, "times": 9 }));
    platform.advance(5);
    assert_eq!(platform.session(&id)["stage"], "standby");
    let there = endpoint(&world, &id, "there");
    platform.run(&world, &["--no-keep-alive", "--contimeout", "1", "src", &there]).fails(35);
    platform.run(&world, &["src", &there]).ok();
    world.assert_same("src", "there");
}

#[test]
fn a_keep_alive_socket_refused_for_a_while_only_costs_time() {
    let world = World::new();
    let platform = Platform::start(&world);
    let id = platform.create(&world, &["--timeout", "300"]);
    platform.run(&world, &["session", "setup", &id]).ok();
    platform.fault(json!({ "call": "bridge", "freezes_in_standby": true }));
    platform.fault(json!({ "call": "cdp", "after_seconds": 60 }));
    platform.fault(json!({ "call": "cdp", "status": 503, "times": 2 }));
    platform.calls();
    let mut child = begin(&platform, &world, &id);
    let stage = |wanted: &str| (platform.session(&id)["stage"] == wanted).then_some(());
    wait_for("the session to be held", || stage("active"));
    platform.advance(61);
    wait_for("the end of the socket", || stage("quiet"));
    platform.advance(5);
    // The VM is in standby in the middle of the command, as long as the platform refuses the
    // socket.
    assert_eq!(platform.session(&id)["stage"], "standby");
    fs::write(world.path("go"), "").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(platform.calls()["cdp"], json!(4));
}

/// Suspends an upload in its middle for longer than the session's timeout. Returns how the upload
/// ends.
fn stopped_in_the_middle(options: &[&str], status: u16) -> (World, Run) {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").file("large", noise(1, 50_000_000));
    let id = platform.create(&world, &["--timeout", "300"]);
    platform.run(&world, &["session", "setup", &id]).ok();
    let there = endpoint(&world, &id, "there");
    let args = [options, &["src", &there]].concat();
    let child = wait_for("a stop that comes in time", || stopped(&world, platform.ksync(&world, &args)));
    platform.advance(3600);
    assert_eq!(platform.status(&id), status);
    kill_process(Pid::from_child(&child), Signal::CONT).unwrap();
    (world, Run::end_of(child))
}

/// Starts an upload and suspends it once a part of it has arrived. Returns `None` if the upload was
/// already complete.
fn stopped(world: &World, mut upload: Command) -> Option<Child> {
    let mut child =
        upload.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let is_staged = || {
        let staged = fs::read_dir(world.path("there/.ksync")).into_iter().flatten().flatten();
        staged.filter_map(|entry| entry.metadata().ok()).any(|entry| entry.is_file() && entry.len() > 0)
    };
    let is_over = || world.path("there/large").exists();
    wait_for("something to arrive", || (is_staged() || is_over()).then_some(()));
    kill_process(Pid::from_child(&child), Signal::STOP).unwrap();
    if !is_over() {
        return Some(child);
    }
    kill_process(Pid::from_child(&child), Signal::CONT).unwrap();
    child.wait().unwrap();
    fs::remove_dir_all(world.path("there")).unwrap();
    None
}

#[test]
fn a_transfer_outlives_the_timeout() {
    let (world, run) = stopped_in_the_middle(&[], 200);
    run.ok();
    world.assert_same("src", "there");
}

#[test]
fn a_transfer_without_keep_alive_reports_that_its_session_is_gone() {
    let (world, run) = stopped_in_the_middle(&["--no-keep-alive"], 404);
    run.fails(41);
    assert!(world.path("src/large").exists() && !world.path("there/large").exists());
}
