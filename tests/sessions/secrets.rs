//! Secrecy of keys and tokens.

use std::fs;

use serde_json::json;

use crate::platform::{Platform, endpoint};
use crate::world::World;

#[test]
fn no_key_or_token_is_printed_unasked_or_passed_as_an_argument() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let key = platform.env("KERNEL_API_KEY").to_owned();
    let id = platform.create(&world, &[]);
    let there = endpoint(&world, &id, "there");
    let mut said = Vec::new();
    let mut run = |args: &[&str]| {
        let run = platform.run(&world, args);
        said.push(format!("{args:?}: {}{}", run.stdout, run.stderr));
    };
    run(&["-vv", "--stats", "src", &there]);
    run(&["session", "list", "--json"]);
    run(&["session", "show", &id]);
    run(&["session", "setup", "--json"]);
    run(&["session", "show", "--ssh-config"]);
    // The process list contains this very run, because the emulated VM is this machine.
    run(&["ssh", &id, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"]);
    let message = format!("no such key: {key}");
    platform.fault(json!({ "call": "get", "status": 401, "times": 9, "message": message }));
    run(&["session", "show", "other"]);
    let known = fs::read_to_string(world.path(format!("state/ksync/sessions/{id}.json"))).unwrap();
    let token = known.split("jwt=").nth(1).unwrap().split('"').next().unwrap();
    assert!(token.len() > 20);
    assert!(said.iter().any(|text| text.contains(&format!("ksync ssh {id} cat /proc"))), "{said:?}");
    for text in &said {
        assert!(!text.contains(&key) && !text.contains(token), "{text}");
    }
}

#[test]
fn files_of_sessions_and_keys_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &[]);
    platform.run(&world, &["src", &endpoint(&world, &id, "there")]).ok();
    let mode = |name: String| world.path(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(format!("state/ksync/sessions/{id}.json")), 0o600);
    assert_eq!(mode(format!("state/ksync/keys/{id}")), 0o600);
    assert_eq!((mode("state/ksync/sessions".into()), mode("state/ksync/keys".into())), (0o700, 0o700));
}
