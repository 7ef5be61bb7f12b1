//! `ksync sandbox` in the foreground, with real clients.

use crate::world::skip::needs_programs;
use crate::world::{Emulator, Run, World};

#[test]
fn the_printed_ssh_command_runs_a_command() {
    if !needs_programs(&["ssh", "websocat"]) {
        return;
    }
    let world = World::new();
    let emulator = Emulator::isolated(&world, "vms");
    let line = emulator.told["ssh_command"].as_str().expect("a command");
    assert!(line.contains("ProxyCommand=websocat --binary ws://127.0.0.1:"), "{line}");
    let mut command = world.command("sh");
    command.args(["-c", &format!("{line} 'echo out; echo err >&2; pwd; exit 7'")]);
    let run = Run::of(command).fails(7);
    assert_eq!(run.stdout, "out\n/root\n");
    assert_eq!(run.stderr, "err\n");
}

#[test]
fn ksync_accepts_the_printed_setup() {
    let world = World::new();
    world.tree("src").with_everything();
    let emulator = Emulator::new(&world);
    world.tree(".").file("vm.json", emulator.told["setup"].to_string());
    let endpoint = format!(":{}", world.path("dst").display());
    world.run(["--setup", "vm.json", "src", &endpoint]).ok();
    world.assert_same("src", "dst");
}

#[test]
fn rsync_reaches_the_sandbox_through_websocat() {
    if !needs_programs(&["ssh", "websocat", "rsync"]) {
        return;
    }
    let world = World::new();
    world.tree("src").with_everything();
    let emulator = Emulator::new(&world);
    let (ssh, host) =
        emulator.told["ssh_command"].as_str().expect("a command").rsplit_once(' ').expect("a host");
    let endpoint = format!("{host}:{}/", world.path("dst").display());
    let mut command = world.command("rsync");
    command.args(["-a", "-e", ssh, "src/", &endpoint]);
    Run::of(command).ok();
    // rsync is the judge; it ignores differences of less than a second in times.
    let mut command = world.command("rsync");
    command.args(["-anic", "--delete", "src/", "dst/"]);
    assert_eq!(Run::of(command).ok().stdout, "");
}
