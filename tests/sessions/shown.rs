//! Sessions as `ksync session` creates and shows them.

use std::fs;

use serde_json::{Value, json};

use crate::platform::Platform;
use crate::world::World;

#[test]
fn a_cdp_client_gets_what_the_platform_told() {
    let world = World::new();
    let platform = Platform::start(&world);
    let id = platform.create(&world, &["--name", "mine"]);
    let browser = platform.ask("GET", "/browsers/mine", &Value::Null).1;
    let run = platform.run(&world, &["session", "show", "--cdp-url"]).ok();
    assert_eq!(run.stdout, format!("{}\n", browser["cdp_ws_url"].as_str().unwrap()));
    let run = platform.run(&world, &["session", "show", &id, "--json"]).ok();
    let shown: Value = serde_json::from_str(&run.stdout).unwrap();
    // The time of use goes on.
    for (name, value) in browser.as_object().unwrap().iter().filter(|(name, _)| *name != "usage") {
        assert_eq!(shown.get(name), Some(value).filter(|value| !value.is_null()), "{name} in {shown}");
    }
    let text = platform.run(&world, &["session", "show"]).ok().stdout;
    assert!(text.starts_with(&format!("session_id: {id}\nname: mine\n")), "{text}");
    assert!(!text.contains("null") && !text.contains("_ws_url"), "{text}");
}

#[test]
fn the_list_has_a_header_and_a_deletion_says_what_is_gone() {
    let world = World::new();
    let platform = Platform::start(&world);
    platform.run(&world, &["session", "list"]).ok().says("ksync: there is no active session\n");
    let (named, current) =
        (platform.create(&world, &["--name", "mine"]), platform.create(&world, &["--headless"]));
    let run = platform.run(&world, &["session", "list"]).ok();
    let lines: Vec<Vec<&str>> = run.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["SESSION", "SCREEN", "CREATED", "NAME"]);
    let line = |id: &str| lines.iter().find(|words| words.contains(&id)).unwrap();
    assert_eq!((line(&named)[1], line(&named)[3]), ("headful", "mine"));
    assert_eq!((line(&current)[0], line(&current)[2], line(&current).len()), ("*", "headless", 4));
    let listed = platform.run(&world, &["session", "list", "--json"]).ok().stdout;
    assert!(!listed.contains("_url") && !listed.contains("null"), "{listed}");

    let run = platform.run(&world, &["session", "delete", "mine"]).ok();
    assert_eq!(run.stdout, "");
    run.says(&format!("ksync: session mine ({named}) is deleted, with its files\n"));
    let run = platform.run(&world, &["session", "delete"]).ok();
    run.says(&format!("ksync: session {current} is deleted, with its files\n"));
}

#[test]
fn a_session_is_created_with_parameters_of_a_file_and_options() {
    let world = World::new();
    let platform = Platform::start(&world);
    fs::write(world.path("with.json"), r#"{"headless": true, "timeout_seconds": 77, "name": "of-file"}"#)
        .unwrap();
    let run = platform
        .run(&world, &["session", "create", "--with", "with.json", "--stealth", "--name", "mine", "--json"])
        .ok();
    let told: Value = serde_json::from_str(&run.stdout).unwrap();
    let expected = (&json!(true), &json!(true), &json!(77), &json!("mine"));
    assert_eq!((&told["headless"], &told["stealth"], &told["timeout_seconds"], &told["name"]), expected);
    assert!(told["cdp_ws_url"].is_string(), "{told}");
}
