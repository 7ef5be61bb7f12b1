//! Names of sessions: the platform alone knows to which session a name leads now.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::platform::Platform;
use crate::world::{Run, World};

/// Two sessions. The name of the first one, which was used from here, now leads to the second one.
fn renamed(platform: &Platform, world: &World) -> (String, String) {
    let before = platform.create(world, &["--name", "mine"]);
    platform.run(world, &["session", "setup", "mine"]).ok();
    let now = platform.create(world, &["--name", "other"]);
    for (id, name) in [(&before, "old"), (&now, "mine")] {
        let patch = json!({ "name": name });
        assert_eq!(platform.ask("PATCH", &format!("/browsers/{id}"), &patch).0, 200);
    }
    platform.calls();
    (before, now)
}

/// The output of a command on a session's VM.
fn on(platform: &Platform, world: &World, id: &str, command: &str) -> String {
    platform.run(world, &["ssh", id, command]).stdout
}

fn without_key(platform: &Platform, world: &World, args: &[&str]) -> Command {
    let mut command = platform.ksync(world, args);
    command.env_remove("KERNEL_API_KEY").env_remove("KERNEL_BASE_URL");
    command
}

#[test]
fn a_name_leads_to_the_session_that_has_it_now() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").file("a", "new");
    let (before, now) = renamed(&platform, &world);
    // The connection to the former one stands long before the API answers.
    platform.fault(json!({ "call": "get", "delay_ms": 2000 }));
    let run = platform.run(&world, &["--json", "src", "mine:there"]).ok();
    let events: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let resolved = events.iter().find(|event| event["event"] == "resolved").unwrap();
    assert_eq!(resolved["session_id"], json!(now), "{resolved}");
    assert_eq!(on(&platform, &world, &now, "cat there/a"), "new");
    // Not even the agent was put on the wrong one.
    assert_eq!(on(&platform, &world, &before, "ls -d there .cache/ksync 2>/dev/null"), "");
    // From now on the name is known to be that of the other session.
    let run = platform.run(&world, &["mine:there/a", "back"]).ok();
    assert!(!run.stderr.contains("setting its VM up"), "{}", run.stderr);
    assert_eq!(fs::read_to_string(world.path("back")).unwrap(), "new");
}

#[test]
fn a_name_is_confirmed_while_the_connection_is_made() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").file("a", "new");
    platform.create(&world, &["--name", "mine"]);
    platform.run(&world, &["src", "mine:there"]).ok();
    platform.calls();
    platform.fault(json!({ "call": "get", "delay_ms": 2000 }));
    fs::write(world.path("src/a"), "newer").unwrap();
    let mut command = platform.ksync(&world, &["src", "mine:there"]);
    command.env("KSYNC_LOG", "debug");
    let told = Run::of(command).ok().stderr;
    let at = |text: &str| told.find(text).unwrap_or_else(|| panic!("{text} in {told}"));
    assert!(at("step=log in") < at("api status=200"), "{told}");
    assert!(at("api status=200") < at("agent step=start"), "{told}");
    assert_eq!((&platform.calls()["get"], &platform.calls()["exec"]), (&json!(1), &Value::Null));
}

#[test]
fn a_name_that_cannot_be_confirmed_stops_the_run() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").file("a", "new");
    let (before, _) = renamed(&platform, &world);
    let headers = json!({ "retry-after-ms": "10" });
    platform.fault(json!({ "call": "get", "status": 500, "times": 9, "headers": headers }));
    let run = platform.run(&world, &["src", "mine:there"]).fails(5);
    assert!(
        run.stderr.contains("could not find out which session is called \"mine\" now: "),
        "{}",
        run.stderr
    );
    let hint = format!("An id needs no API: the session that had the name is {before}.\n");
    assert!(run.stderr.ends_with(&hint), "{}", run.stderr);
    platform.run(&world, &["src", &format!("{before}:there")]).ok();
}

#[test]
fn a_name_is_believed_where_no_key_is_there_to_ask_and_that_is_said() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").file("a", "new");
    let (before, _) = renamed(&platform, &world);
    let run = Run::of(without_key(&platform, &world, &["src", "mine:there"])).ok();
    let said = format!(
        "ksync: warning: \"mine\" is taken for the session {before}, which was called so when it was last used from \
         here: there is no API key to ask\n  hint: Set KERNEL_API_KEY, or name the session by its id.\n"
    );
    assert!(run.stderr.starts_with(&said), "{}", run.stderr);
    let run = Run::of(without_key(&platform, &world, &["session", "use", "mine"])).ok();
    assert_eq!((run.stdout, run.stderr), (format!("{before}\n"), said));
    let run = Run::of(without_key(&platform, &world, &["src", &format!("{before}:there")])).ok();
    assert!(!run.stderr.contains("warning"), "{}", run.stderr);
}

#[test]
fn a_verb_takes_the_session_that_has_the_name_now() {
    let world = World::new();
    let platform = Platform::start(&world);
    let (before, now) = renamed(&platform, &world);
    assert_eq!(platform.run(&world, &["session", "use", "mine"]).ok().stdout, format!("{now}\n"));
    platform.run(&world, &["session", "delete", "mine"]).ok();
    assert_eq!((platform.status(&before), platform.status(&now)), (200, 404));
}

#[test]
fn a_name_with_odd_characters_is_that_of_a_session() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").file("a", "new");
    for name in ["a b/c", "x:y", "z #?[1]"] {
        let id = platform.create(&world, &["--name", name]);
        platform.run(&world, &["session", "setup", name]).ok();
        platform.run(&world, &["src", &format!("{name}:there")]).ok();
        assert_eq!(on(&platform, &world, &id, "cat there/a"), "new", "{name}");
        let run = platform.run(&world, &["src", &format!("{name}:")]).fails(1);
        assert!(run.stderr.contains(&format!("Write {name}:. for the home itself")), "{}", run.stderr);
    }
    // A blank alone makes no local path.
    platform.create(&world, &["--name", "b l"]);
    platform.run(&world, &["src", "b l:there"]).ok();
    // Another name with a slash is a local path, with a word about it.
    let run = platform.run(&world, &["src", "d/e:/f"]);
    assert!(run.stderr.contains("warning: d/e:/f is a name on this machine"), "{}", run.stderr);
    assert!(run.stderr.contains("ksync session use \"d/e\""), "{}", run.stderr);
}
