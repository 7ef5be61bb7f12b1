//! `--sudo`: the agent by `sudo -n`, which a script stands in for.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;

use crate::world::{Run, World};

/// Runs ksync against an emulated VM with files of its own.
fn run<A: AsRef<OsStr>>(world: &World, args: impl IntoIterator<Item = A>) -> Run {
    let mut command = world.ksync(args);
    command.env_remove("KSYNC_SANDBOX_HOST_FILES");
    Run::of(command)
}

/// A world whose VM has this script as its sudo; `None` where VMs have no files of their own.
fn with_sudo(script: &str) -> Option<World> {
    let world = World::new();
    world.tree("src").file("a", "text");
    let sudo = world.path("sudo");
    std::fs::write(&sudo, script).unwrap();
    std::fs::set_permissions(&sudo, std::fs::Permissions::from_mode(0o755)).unwrap();
    let put = run(&world, ["sudo", "sandbox:/usr/local/bin/sudo"]);
    let has_own_files = !put.stderr.contains("of this machine");
    if !has_own_files {
        crate::world::skip::skip("an emulated VM has no files of its own here");
        return None;
    }
    put.ok();
    Some(world)
}

#[test]
fn the_agent_runs_by_sudo_that_asks_nothing() {
    let script = "#!/bin/sh\n[ \"$1\" = -n ] || exit 9\nshift\necho by-sudo >>/tmp/sudo.log\nexec \"$@\"\n";
    let Some(world) = with_sudo(script) else { return };
    for (option, to) in [("--sudo", "sandbox:/srv/up"), ("--rsync-path=sudo rsync", "sandbox:/srv/also")] {
        run(&world, [option, "src", to]).ok();
        run(&world, [option, to, "down"]).ok();
        world.assert_same("src", "down");
        std::fs::remove_dir_all(world.path("down")).unwrap();
    }
    // Without the option, and with rsync itself, there is no sudo.
    run(&world, ["--rsync-path=rsync", "src", "sandbox:/srv/plain"]).ok();
    run(&world, ["sandbox:/tmp/sudo.log", "log"]).ok();
    assert_eq!(std::fs::read_to_string(world.path("log")).unwrap(), "by-sudo\n".repeat(4));
}

#[test]
fn a_sudo_that_wants_a_password_is_an_error_with_a_hint() {
    let Some(world) = with_sudo("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n") else {
        return;
    };
    let run = run(&world, ["--sudo", "src", "sandbox:/srv/x"]).fails(5);
    assert!(run.stderr.contains("sudo: a password is required"), "{}", run.stderr);
    assert!(
        run.stderr.contains("\n  hint: Let sudo run commands of this user without a password"),
        "{}",
        run.stderr
    );
}

#[test]
fn sudo_with_a_relative_or_local_endpoint_is_refused() {
    let world = World::new();
    world.tree("src").file("a", "text");
    for (args, said) in [
        (["--sudo", "src", "host:x"], "ksync: with --sudo, host:x would be below the home of root\n"),
        (["--sudo", "src", "dst"], "ksync: --sudo is for the agent on another machine, and both endpoints"),
        (
            ["--rsync-path=doas rsync", "src", "host:/x"],
            "ksync: --rsync-path takes rsync or \"sudo rsync\": ",
        ),
    ] {
        let run = world.run(args).fails(1);
        assert!(run.stderr.starts_with(said) && run.stderr.contains("\n  hint: "), "{}", run.stderr);
    }
}
