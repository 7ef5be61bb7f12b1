//! The keep-alive: renewed in silence where that is possible, and never lost in silence.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::platform::{Platform, endpoint};
use crate::world::{World, wait_for};

/// A session that needs no API call, and the file of its record.
fn set_up(platform: &Platform, world: &World) -> (String, std::path::PathBuf) {
    let id = platform.create(world, &["--timeout", "300"]);
    platform.run(world, &["session", "setup", &id]).ok();
    let record = world.path(format!("state/ksync/sessions/{id}.json"));
    (id, record)
}

/// Changes the URL of the keep-alive in a record.
fn change_url(record: &std::path::Path, change: impl FnOnce(&str) -> String) {
    let mut stored: Value = serde_json::from_str(&fs::read_to_string(record).unwrap()).unwrap();
    stored["cdp_ws_url"] = json!(change(stored["cdp_ws_url"].as_str().unwrap()));
    fs::write(record, stored.to_string()).unwrap();
}

fn url(record: &std::path::Path) -> String {
    let stored: Value = serde_json::from_str(&fs::read_to_string(record).unwrap()).unwrap();
    stored["cdp_ws_url"].as_str().unwrap().to_owned()
}

/// A command on the VM that runs until the test creates a file.
fn waiting(platform: &Platform, world: &World, id: &str) -> Command {
    let wait = format!("while [ ! -e {} ]; do sleep 0.05; done", world.path("go").display());
    let mut command = platform.ksync(world, &["ssh", id, &wait]);
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

fn lines(child: &mut Child) -> std::io::Lines<BufReader<ChildStderr>> {
    BufReader::new(child.stderr.take().unwrap()).lines()
}

fn end(world: &World, mut child: Child) {
    fs::write(world.path("go"), "").unwrap();
    assert!(child.wait().unwrap().success());
}

fn warning(id: &str, cause: &str) -> String {
    format!(
        "ksync: warning: session {id} is not kept awake: {cause}; the platform deletes it, and its files with it, 5 \
         minutes after it falls idle, and SSH does not count as use"
    )
}

#[test]
fn a_refused_keep_alive_is_told_and_so_is_its_return() {
    let world = World::new();
    let platform = Platform::start(&world);
    let (id, _) = set_up(&platform, &world);
    platform.fault(json!({ "call": "cdp", "status": 403, "times": 1000 }));
    let mut child = waiting(&platform, &world, &id).spawn().unwrap();
    let mut said = lines(&mut child).map(Result::unwrap);
    let address = platform.env("KERNEL_BASE_URL").replace("http", "ws");
    let cause = format!("could not open a WebSocket to {address}: it answered 403 Forbidden");
    assert_eq!(said.next().unwrap(), warning(&id, &cause));
    let hint = said.next().unwrap();
    assert!(hint.contains("The API has no token that holds") && hint.contains(&id), "{hint}");
    platform.ask("DELETE", "/_sandbox/faults", &Value::Null);
    assert_eq!(said.next().unwrap(), "ksync: the session is kept awake again");
    assert_eq!(platform.session(&id)["stage"], "active");
    end(&world, child);
    assert_eq!(said.next(), None);
}

#[test]
fn a_blocked_port_is_told_with_the_firewall() {
    let world = World::new();
    let platform = Platform::start(&world);
    let (id, record) = set_up(&platform, &world);
    change_url(&record, |url| format!("ws://127.0.0.1:1/browser/{}", url.rsplit('/').next().unwrap()));
    let mut child = waiting(&platform, &world, &id).spawn().unwrap();
    let mut said = lines(&mut child).map(Result::unwrap);
    let cause = "could not connect to ws://127.0.0.1:1: connection refused";
    assert_eq!(said.next().unwrap(), warning(&id, cause));
    let hint = said.next().unwrap();
    assert!(hint.contains("connect to ws://127.0.0.1:1: look at the firewall"), "{hint}");
    end(&world, child);
}

#[test]
fn a_refused_token_is_replaced_in_silence() {
    let world = World::new();
    let platform = Platform::start(&world);
    let (id, record) = set_up(&platform, &world);
    let good = url(&record);
    change_url(&record, |url| format!("{url}x"));
    platform.calls();
    let mut child = waiting(&platform, &world, &id).spawn().unwrap();
    let said = lines(&mut child);
    wait_for("the session to be held", || (platform.session(&id)["stage"] == "active").then_some(()));
    end(&world, child);
    assert_eq!(said.map(Result::unwrap).collect::<Vec<_>>(), Vec::<String>::new());
    assert_eq!(platform.calls(), json!({ "cdp": 2, "get": 1 }));
    assert_eq!(url(&record), good);
}

#[test]
fn a_refused_token_without_a_key_names_the_key() {
    let world = World::new();
    let platform = Platform::start(&world);
    let (id, record) = set_up(&platform, &world);
    change_url(&record, |url| format!("{url}x"));
    let mut command = waiting(&platform, &world, &id);
    let mut child = command.env_remove("KERNEL_API_KEY").spawn().unwrap();
    let mut said = lines(&mut child).map(Result::unwrap);
    let what = said.next().unwrap();
    assert!(what.contains("is not kept awake") && what.contains("401 Unauthorized"), "{what}");
    assert!(said.next().unwrap().starts_with("  hint: Set KERNEL_API_KEY"));
    end(&world, child);
}

/// Watches until a line of stderr begins with "watching", and returns it.
fn watching(platform: &Platform, world: &World, id: &str, options: &[&str]) -> String {
    let there = endpoint(world, id, "there");
    let mut command = platform.ksync(world, &[&["-w"], options, &["src", &there]].concat());
    let mut child =
        command.stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let line = lines(&mut child).map(Result::unwrap).find(|line| line.starts_with("watching"));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    child.wait().unwrap();
    line.expect("a line")
}

#[test]
fn a_watch_says_that_a_held_session_is_billed() {
    let world = World::new();
    let platform = Platform::start(&world);
    let (id, _) = set_up(&platform, &world);
    world.tree("src").with_everything();
    let held = "watching; the session is kept awake, and billed, until this ends; Ctrl-C ends it";
    assert_eq!(watching(&platform, &world, &id, &[]), held);
    let off = "watching; the session is not kept awake (--no-keep-alive); Ctrl-C ends it";
    assert_eq!(watching(&platform, &world, &id, &["--no-keep-alive"]), off);
}

#[test]
fn the_events_of_a_watch_tell_the_keep_alive() {
    let world = World::new();
    let platform = Platform::start(&world);
    let (id, _) = set_up(&platform, &world);
    world.tree("src").with_everything();
    platform.fault(json!({ "call": "cdp", "status": 503, "times": 1000 }));
    let there = endpoint(&world, &id, "there");
    let mut command = platform.ksync(&world, &["-w", "--json", "src", &there]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let events = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut events = events.map(|line| serde_json::from_str::<Value>(&line).unwrap());
    let resolved = events.find(|event| event["event"] == "resolved").unwrap();
    let domain = platform.session(&id)["ssh_address"].as_str().unwrap().replace(":2222", "");
    assert_eq!((&resolved["session_id"], &resolved["vm_domain"]), (&json!(id), &json!(domain)));
    let lost = events.find(|event| event["event"] == "warning").unwrap();
    assert_eq!(lost["kind"], "keep-alive");
    assert!(lost["message"].as_str().unwrap().contains("is not kept awake") && lost["hint"].is_string());
    platform.ask("DELETE", "/_sandbox/faults", &Value::Null);
    let back = events.find(|event| event["event"] == "keep-alive").unwrap();
    assert_eq!(back["state"], "held");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    child.wait().unwrap();
}
