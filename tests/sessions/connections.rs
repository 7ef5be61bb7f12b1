//! Further connections to a session: by environment or option, after its VM lost ksync's key, and
//! with a real ssh.

use std::fs;

use serde_json::json;

use crate::platform::{Platform, endpoint};
use crate::world::skip::needs_programs;
use crate::world::{Run, World};

#[test]
fn a_vm_that_lost_the_key_is_set_up_again() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let id = platform.create(&world, &[]);
    let there = endpoint(&world, &id, "there");
    platform.run(&world, &["src", &there]).ok();
    fs::write(platform.root(&id).join("root/.ssh/authorized_keys"), "").unwrap();
    platform.calls();
    platform.run(&world, &["src", &there]).ok();
    let mut calls = platform.calls();
    calls.as_object_mut().unwrap().remove("cdp");
    assert_eq!(calls, json!({ "get": 1, "exec": 1 }));
}

#[test]
fn the_environment_or_session_use_selects_the_current_session() {
    let world = World::new();
    let platform = Platform::start(&world);
    let (one, two) = (platform.create(&world, &["--name", "one"]), platform.create(&world, &[]));
    let current = |variable: Option<&str>| {
        let mut command = platform.ksync(&world, &["session", "show", "--json"]);
        command.envs(variable.map(|name| ("KSYNC_SESSION", name)));
        let told: serde_json::Value = serde_json::from_str(&Run::of(command).ok().stdout).unwrap();
        told["session_id"].as_str().unwrap().to_owned()
    };
    let listed = || platform.run(&world, &["session", "list"]).ok().stdout;
    assert_eq!(current(None), two);
    assert_eq!(current(Some("one")), one);
    assert!(listed().lines().any(|line| line.starts_with(&format!("* {two}  headful  "))), "{}", listed());
    assert_eq!(platform.run(&world, &["session", "use", "one"]).ok().stdout, format!("{one}\n"));
    assert_eq!(current(None), one);
    assert!(listed().lines().any(|line| line.starts_with(&format!("* {one}  headful  "))), "{}", listed());
}

#[test]
fn a_named_key_is_used_for_the_login() {
    let world = World::new();
    let platform = Platform::start(&world);
    world.tree("src").with_everything();
    let (id, other) = (platform.create(&world, &[]), platform.create(&world, &[]));
    platform.run(&world, &["src", &endpoint(&world, &id, "there")]).ok();
    // A key made for one session works for any other.
    fs::copy(world.path(format!("state/ksync/keys/{id}")), world.path("mine")).unwrap();
    platform.run(&world, &["--identity", "mine", "src", &endpoint(&world, &other, "there-too")]).ok();
    let keys = |id: &str| fs::read_to_string(platform.root(id).join("root/.ssh/authorized_keys")).unwrap();
    assert_eq!(keys(&id), keys(&other));
    assert!(!world.path(format!("state/ksync/keys/{other}")).exists());
    platform.run(&world, &["session", "cleanup", &other, "--identity", "mine"]).ok();
    assert_eq!(keys(&other), "");
    assert!(world.path("mine").exists(), "it is not ours to remove");
}

#[test]
fn a_host_block_is_all_that_ssh_needs() {
    if !needs_programs(&["ssh"]) {
        return;
    }
    let world = World::new();
    let platform = Platform::start(&world);
    let id = platform.create(&world, &["--name", "mine"]);
    let block = platform.run(&world, &["session", "show", "--ssh-config"]).ok().stdout;
    fs::write(world.path("ssh-config"), &block).unwrap();
    let ssh = |line: &str| {
        let ksync = platform.ksync(&world, &[]);
        let mut command = world.command("ssh");
        command.envs(ksync.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.args(["-F", "./ssh-config", "-o", "BatchMode=yes", "mine", line]);
        Run::of(command)
    };
    let run = ssh("echo in; exit 3").fails(3);
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("in\n", ""));
    // ssh accepts only the key that the API named.
    let hosts = world.path(format!("state/ksync/sessions/{id}.hosts"));
    let other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJcS2Xc8cK2ZLxXlB2FKx2q4M4H6JqgJTc0nqvJg2aBy";
    fs::write(&hosts, format!("{id} {other}\n")).unwrap();
    assert!(ssh("true").fails(255).stderr.contains("Host key verification failed"));
}
