//! `session cleanup` and `session delete`: exactly ksync's own keys go, and nothing runs on unseen.

use std::fs;

use serde_json::{Value, json};

use crate::platform::{Platform, endpoint};
use crate::world::World;
use crate::world::service::make_key;
use crate::world::skip::needs_programs;

#[test]
fn a_cleanup_removes_the_keys_of_all_identities_and_no_others() {
    if !needs_programs(&["ssh-keygen"]) {
        return;
    }
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &[]);
    for name in ["one", "two", "users", "limited"] {
        make_key(&world, name, "ed25519");
    }
    let bare = |name: &str| {
        let line = fs::read_to_string(world.path(format!("{name}.pub"))).unwrap();
        line.split(' ').take(2).collect::<Vec<_>>().join(" ")
    };
    let file = platform.root(&id).join("root/.ssh/authorized_keys");
    let theirs = format!(
        "# a note\n{} me@home\nfrom=\"10.0.0.1\",no-pty {} limited\n",
        bare("users"),
        bare("limited")
    );
    fs::write(&file, &theirs).unwrap();
    let there = endpoint(&world, &id, "there");
    platform.run(&world, &["src", &there]).ok();
    for name in ["one", "two", "users", "limited"] {
        platform.run(&world, &["--identity", name, "src", &there]).ok();
    }
    let keys = fs::read_to_string(&file).unwrap();
    // The user's own key is there already. The one with options does not let everybody in.
    assert!(keys.starts_with(&theirs), "{keys}");
    let ours: Vec<_> = keys.lines().skip(3).map(str::to_owned).collect();
    let expected = ["one", "two", "limited"].map(|name| format!("{} ksync", bare(name)));
    assert_eq!(ours.get(1..), Some(&expected[..]), "{keys}");
    platform.run(&world, &["session", "cleanup", &id]).ok();
    assert_eq!(fs::read_to_string(&file).unwrap(), theirs);
}

#[test]
fn a_session_is_still_deleted_after_its_cleanup() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &[]);
    platform.run(&world, &["src", &endpoint(&world, "session", "there")]).ok();
    let run = platform.run(&world, &["session", "cleanup"]).ok();
    let said = format!(
        "ksync: nothing of ksync is left in session {id}, which runs on; ksync session delete ends it\n"
    );
    run.says(&said);
    // It can be used again.
    platform.run(&world, &[&endpoint(&world, "session", "there"), "back"]).ok();
    platform.run(&world, &["session", "cleanup"]).ok();
    assert_eq!(platform.status(&id), 200);
    platform.run(&world, &["session", "delete"]).ok();
    assert_eq!(platform.status(&id), 404);
}

#[test]
fn a_session_of_a_pool_returns_there_after_its_cleanup() {
    let world = World::new();
    let platform = Platform::start(&world);
    assert_eq!(platform.ask("POST", "/browser_pools", &json!({ "size": 1, "name": "swimmers" })).0, 201);
    let id = platform.create(&world, &["--pool", "swimmers"]);
    platform.run(&world, &["session", "setup", &id]).ok();
    platform.run(&world, &["session", "cleanup", &id]).ok();
    platform.calls();
    platform.run(&world, &["session", "delete", &id]).ok();
    assert_eq!(platform.calls(), json!({ "release": 1 }));
}

#[test]
fn deleting_what_is_gone_is_a_success_and_says_so() {
    let world = World::new();
    let platform = Platform::start(&world);
    let id = platform.create(&world, &["--name", "mine"]);
    platform.run(&world, &["session", "setup", &id]).ok();
    let deleted = format!("ksync: session {id} is deleted, with its files\n");
    platform.run(&world, &["session", "delete", &id]).ok().says(&deleted);
    let gone = |name: &str| format!("ksync: there is no session {name} any more: nothing was deleted\n");
    platform.run(&world, &["session", "delete", &id]).ok().says(&gone(&id));
    platform.run(&world, &["session", "delete", "mine"]).ok().says(&gone("mine"));
    // Also if it ended by itself, alone or in a pool.
    let id = platform.create(&world, &[]);
    platform.run(&world, &["session", "setup"]).ok();
    assert_eq!(platform.ask("DELETE", &format!("/browsers/{id}"), &Value::Null).0, 204);
    platform.run(&world, &["session", "delete"]).ok().says(&gone(&id));
    platform.run(&world, &["session", "delete"]).fails(1);
    assert_eq!(platform.ask("POST", "/browser_pools", &json!({ "size": 1, "name": "swimmers" })).0, 201);
    let id = platform.create(&world, &["--pool", "swimmers"]);
    platform.run(&world, &["session", "setup"]).ok();
    assert_eq!(platform.ask("DELETE", &format!("/browsers/{id}"), &Value::Null).0, 204);
    platform.run(&world, &["session", "delete"]).ok().says(&gone(&id));
    // Nothing is left to clean up either.
    let run = platform.run(&world, &["session", "cleanup", &id]).ok();
    run.says(&format!("ksync: there is no session {id} any more: nothing was left to clean up\n"));
}
