//! OpenSSH's own client in a session, by what ksync prints for it.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::platform::Platform;
use crate::world::service::make_key;
use crate::world::skip::needs_programs;
use crate::world::{Run, World};

/// A state directory whose name needs quotes in a shell, and means something to ssh.
const STATE: &str = "a state %h";

/// A program with nothing of the platform's environment.
fn bare(world: &World, program: &str, args: &[&str]) -> Command {
    let mut command = world.command(program);
    command.args(args);
    command
}

fn told(platform: &Platform, world: &World, args: &[&str]) -> String {
    let mut command = platform.ksync(world, args);
    command.env("XDG_STATE_HOME", world.path(STATE));
    Run::of(command).ok().stdout
}

#[test]
fn the_ssh_command_of_a_setup_runs_and_trusts_only_the_sessions_key() {
    if !needs_programs(&["ssh", "ssh-keygen"]) {
        return;
    }
    let world = World::new();
    let platform = Platform::start(&world);
    let id = platform.create(&world, &[]);
    let setup: Value =
        serde_json::from_str(&told(&platform, &world, &["session", "setup", &id, "--json"])).unwrap();
    let line = format!("{} 'echo $((6*7)); exit 7'", setup["ssh_command"].as_str().unwrap());
    assert!(line.contains("StrictHostKeyChecking=yes"), "{line}");
    let run = Run::of(bare(&world, "sh", &["-c", &line])).fails(7);
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("42\n", ""));
    // The two halves by themselves, as scripts use them.
    let proxy = format!("ProxyCommand={}", setup["proxy_command"].as_str().unwrap());
    let alias = format!("HostKeyAlias={id}");
    let hosts = world.path(STATE).join(format!("ksync/sessions/{id}.hosts"));
    let known = format!("UserKnownHostsFile=\"{}\"", hosts.display().to_string().replace('%', "%%"));
    let key = setup["ssh_key_file"].as_str().unwrap().replace('%', "%%");
    let key = format!("IdentityFile=\"{key}\"");
    let args = [
        "-o",
        &proxy,
        "-o",
        &alias,
        "-o",
        &known,
        "-o",
        &key,
        "-o",
        "BatchMode=yes",
        "root@localhost",
        "echo in",
    ];
    assert_eq!(Run::of(bare(&world, "ssh", &args)).ok().stdout, "in\n");

    make_key(&world, "other", "ed25519");
    let other = fs::read_to_string(world.path("other.pub")).unwrap();
    fs::write(&hosts, format!("{id} {other}")).unwrap();
    let run = Run::of(bare(&world, "sh", &["-c", &line])).fails(255);
    assert!(run.stderr.contains("Host key verification failed"), "{}", run.stderr);
}

#[test]
fn the_printed_host_block_leads_into_the_session() {
    if !needs_programs(&["ssh"]) {
        return;
    }
    let world = World::new();
    let platform = Platform::start(&world);
    for name in ["box", "my box"] {
        let id = platform.create(&world, &["--name", name]);
        let block = told(&platform, &world, &["session", "show", name, "--ssh-config"]);
        fs::write(world.path("host-block"), block).unwrap();
        // The other name is none that ssh takes for a host.
        let host = if name == "box" { name } else { &id };
        let mut ssh = bare(&world, "ssh", &["-F", "host-block", "-o", "BatchMode=yes", host, "echo in"]);
        // The proxy finds the session in the store.
        ssh.env("XDG_STATE_HOME", world.path(STATE));
        let run = Run::of(ssh).ok();
        assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("in\n", ""));
    }
}
