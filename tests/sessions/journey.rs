//! The whole procedure with ksync alone: create a session, upload, download, delete.

use std::fs;

use serde_json::{Value, json};

use crate::platform::{Platform, endpoint};
use crate::world::{World, noise};

#[test]
fn create_upload_download_delete() {
    let world = World::new();
    let platform = Platform::isolated(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &["--timeout", "300", "--name", "mine"]);
    assert_eq!(platform.ask("GET", "/browsers/mine", &Value::Null).1["session_id"], json!(id));

    platform.run(&world, &["src", &endpoint(&world, "session", "there")]).ok();
    world.assert_same("src", platform.path(&world, &id, "there"));
    assert!(!world.path("there").exists(), "on this machine");
    for name in [id.as_str(), "mine"] {
        platform.run(&world, &[&endpoint(&world, name, "there"), &format!("back-{name}")]).ok();
        world.assert_same("src", format!("back-{name}"));
    }
    platform.run(&world, &["session", "delete"]).ok();
    assert_eq!(platform.status(&id), 404);
    let run = platform.run(&world, &["src", &endpoint(&world, &id, "there")]);
    assert_eq!(run.status.code().unwrap_or(-1), 41, "{}", run.stderr);
}

#[test]
fn one_file_is_copied_both_ways_as_with_scp() {
    let world = World::new();
    let platform = Platform::isolated(&world);
    fs::write(world.path("file.bin"), noise(1, 3_000_000)).unwrap();
    let id = platform.create(&world, &[]);
    platform.run(&world, &["file.bin", &endpoint(&world, &id, "there.bin")]).ok();
    platform.run(&world, &[&endpoint(&world, &id, "there.bin"), "back.bin"]).ok();
    assert_eq!(fs::read(world.path("back.bin")).unwrap(), noise(1, 3_000_000));
}

#[test]
fn a_session_that_was_used_before_needs_no_api() {
    let world = World::new();
    let platform = Platform::isolated(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &[]);
    platform.calls();
    let there = endpoint(&world, &id, "there");
    let run = platform.run(&world, &["src", &there]).ok();
    assert!(run.stderr.starts_with("asking for the session\nsetting its VM up"), "{}", run.stderr);
    let calls = platform.calls();
    assert_eq!(
        (&calls["get"], &calls["exec"]),
        (&json!(1), &json!(1)),
        "once to look it up, once to set it up"
    );
    let run = platform.run(&world, &["src", &endpoint(&world, &id, "told")]).ok();
    assert!(!run.stderr.contains("asking"), "nothing has to be done first: {}", run.stderr);
    platform.calls();
    let asked = || {
        let mut calls = platform.calls();
        // The keep-alive socket is not a request.
        calls.as_object_mut().unwrap().remove("cdp");
        calls
    };
    platform.run(&world, &["src", &there]).ok();
    assert_eq!(asked(), json!({}));
    // Nor does ksync need a key for it.
    let mut without = platform.ksync(&world, &["src", &there]);
    crate::world::Run::of({
        without.env_remove("KERNEL_API_KEY").env_remove("KERNEL_BASE_URL");
        without
    })
    .ok();
}

#[test]
fn the_key_is_added_once_and_removed_by_a_cleanup() {
    let world = World::new();
    let platform = Platform::isolated(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &[]);
    platform.run(&world, &["src", &endpoint(&world, &id, "there")]).ok();
    let root = platform.root(&id);
    let authorized = || fs::read_to_string(root.join("root/.ssh/authorized_keys")).unwrap_or_default();
    assert!(authorized().ends_with(" ksync\n"), "{}", authorized());
    platform.run(&world, &["session", "setup"]).ok();
    assert_eq!(authorized().lines().count(), 1, "set up twice, one key");
    platform.run(&world, &["session", "cleanup", &id]).ok();
    assert_eq!(authorized(), "");
    assert!(!root.join("root/.cache/ksync").exists());
    assert!(!world.path(format!("state/ksync/keys/{id}")).exists());
}

#[test]
fn setup_prints_the_fields_of_the_official_client() {
    let world = World::new();
    let platform = Platform::isolated(&world);
    let id = platform.create(&world, &[]);
    let run = platform.run(&world, &["session", "setup", &id, "--json"]).ok();
    let told: Value = serde_json::from_str(&run.stdout).unwrap();
    let names: Vec<_> = told.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names.len(), 5, "{told}");
    for name in ["vm_domain", "session_id", "ssh_key_file", "proxy_command", "ssh_command"] {
        assert!(told[name].is_string(), "{name} in {told}");
    }
    assert_eq!(told["session_id"], json!(id));
    // The output also works as a file for `--setup`.
    world.tree("src").with_everything();
    fs::write(world.path("vm.json"), &run.stdout).unwrap();
    let there = format!(":{}", world.path("there").display());
    platform.run(&world, &["src", &there, "--setup", "vm.json"]).ok();
    world.assert_same("src", platform.path(&world, told["session_id"].as_str().unwrap(), "there"));
}

#[test]
fn a_command_runs_on_the_vm_and_its_exit_code_is_returned() {
    let world = World::new();
    let platform = Platform::isolated(&world);
    let id = platform.create(&world, &[]);
    platform.run(&world, &["session", "setup", &id]).ok();
    let run = platform.run(&world, &["ssh", &id, "echo", "$((6*7))", ";", "echo", "no", ">&2"]);
    assert_eq!(
        (run.status.code().unwrap_or(-1), run.stdout.as_str(), run.stderr.as_str()),
        (0, "42\n", "no\n")
    );
    assert_eq!(platform.run(&world, &["ssh", &id, "exit", "7"]).status.code().unwrap_or(-1), 7);
}

#[test]
fn a_pool_session_is_not_reused_after_its_deletion() {
    let world = World::new();
    let platform = Platform::isolated(&world);
    let pool = json!({ "size": 1, "name": "swimmers" });
    assert_eq!(platform.ask("POST", "/browser_pools", &pool).0, 201);
    let id = platform.create(&world, &["--pool", "swimmers"]);
    world.tree("src").with_everything();
    platform.run(&world, &["src", &endpoint(&world, "session", "there")]).ok();
    platform.run(&world, &["session", "delete", &id]).ok();
    assert_eq!(platform.status(&id), 404);
}
