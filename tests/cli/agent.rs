//! The agent that ksync installs on the other side.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use crate::world::skip::needs_superuser;
use crate::world::{Run, World};

/// The one agent in the cache of the far home. Beside it are the baselines and the agent's secret.
fn installed(world: &World) -> PathBuf {
    let cache = world.far_home().join(".cache/ksync");
    let files = fs::read_dir(cache).expect("a cache").map(|entry| entry.unwrap().path());
    let mut files =
        files.filter(|path| path.file_name().is_none_or(|name| name != "offers" && name != "secret"));
    let agent = files.next().expect("an agent");
    assert_eq!(files.next(), None, "and nothing else");
    agent
}

fn installed_once() -> World {
    let world = World::new();
    world.tree("src").file("a", "text");
    world.sync("src", world.far("dst"));
    world
}

#[test]
fn the_agent_is_in_a_private_directory_under_its_hash() {
    let world = installed_once();
    let agent = installed(&world);
    let directory = agent.parent().unwrap().metadata().unwrap();
    assert_eq!(directory.mode() & 0o7777, 0o700);
    assert_eq!(agent.metadata().unwrap().mode() & 0o7777, 0o700);
    let sum = Run::of({
        let mut command = world.command("sha256sum");
        command.arg(&agent);
        command
    });
    let sum = sum.stdout.split(' ').next().unwrap();
    assert_eq!(agent.file_name().unwrap().to_str().unwrap(), format!("agent-{sum}"));
}

#[test]
fn only_a_corrupt_agent_is_installed_again() {
    let world = installed_once();
    let agent = installed(&world);
    let sound = fs::read(&agent).unwrap();
    assert_eq!(world.sync("src", world.far("dst")).agent, "was there");
    let mut flipped = sound.clone();
    flipped[sound.len() / 2] ^= 1;
    for corrupt in [&flipped[..], &sound[..sound.len() / 2], b"", b"#!/bin/sh\ntouch \"$HOME/pwned\"\n"] {
        fs::write(&agent, corrupt).unwrap();
        let stats = world.sync("src", world.far("dst"));
        assert!(stats.agent.starts_with("installed, "), "{stats:?}");
        assert_eq!(fs::read(&agent).unwrap(), sound);
    }
    assert!(!world.far_home().join("pwned").exists());
}

#[test]
fn a_planted_link_is_replaced_and_not_run() {
    let world = installed_once();
    let agent = installed(&world);
    let elsewhere = world.path("elsewhere");
    fs::rename(&agent, &elsewhere).unwrap();
    symlink(&elsewhere, &agent).unwrap();
    assert!(world.sync("src", world.far("dst")).agent.starts_with("installed"));
    assert!(agent.symlink_metadata().unwrap().is_file());
}

#[test]
fn the_agent_runs_in_an_empty_chroot() {
    if !needs_superuser() {
        return;
    }
    let world = installed_once();
    world.tree("jail");
    fs::copy(installed(&world), world.path("jail/agent")).unwrap();
    let mut command = world.command("chroot");
    command.arg(world.path("jail")).args(["/agent", "--version"]);
    assert_eq!(Run::of(command).ok().stdout, "ksync-agent\n");
}
