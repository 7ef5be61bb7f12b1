//! `--exec` on the VM and `--on-change` here: a command runs after rounds with changes, one at a
//! time, and the newest round wins.

use std::fs;
use std::process::Command;

use crate::watcher::{Direction, Watcher};
use crate::world::{Run, World, wait_for};

/// The option that takes a command, for each direction.
fn option(direction: Direction) -> &'static str {
    if direction == Direction::Up { "--exec" } else { "--on-change" }
}

fn world() -> World {
    let world = World::new();
    world.tree("src").file("a", "x");
    world
}

/// Number of runs that a command has recorded.
fn runs(world: &World) -> usize {
    fs::read_to_string(world.path("runs")).unwrap_or_default().lines().count()
}

#[test]
fn the_command_runs_after_rounds_with_changes() {
    for direction in Direction::ALL {
        let world = world();
        let command = format!("cat {}; echo no >&2; exit 3", world.path("dst/a").display());
        let watcher = Watcher::ready(&world, direction, &[option(direction), &command]);
        let ended = watcher.event("exec-end");
        assert_eq!(ended["status"], 3, "{direction:?}");
        let output = |mark: usize, text: &str| {
            watcher.event_where("exec-output", mark, |output| output["line"] == text);
        };
        output(0, "x");
        output(0, "no");
        let mark = watcher.mark();
        fs::write(world.path("src/a"), "changed\n").unwrap();
        output(mark, "changed");
        watcher.event_where("exec-end", mark, |ended| ended["status"] == 3);
        // A round with nothing to do runs no command.
        let count = watcher.events("exec").len();
        watcher.flush();
        watcher.flush();
        assert_eq!(watcher.events("exec").len(), count, "{direction:?}");
    }
}

#[test]
fn commands_never_overlap_and_the_newest_round_wins() {
    for direction in Direction::ALL {
        let world = world();
        let path = |name: &str| world.path(name).display().to_string();
        // The command reports if it overlaps with another.
        let command = format!(
            "mkdir {busy} || echo twice; cat {file}; echo; echo run >> {runs}; \
             while [ ! -e {go} ]; do sleep 0.02; done; rmdir {busy}",
            busy = path("busy"),
            file = path("dst/a"),
            runs = path("runs"),
            go = path("go"),
        );
        let watcher = Watcher::ready(&world, direction, &[option(direction), &command]);
        wait_for("the first run", || (runs(&world) == 1).then_some(()));
        for number in 0..20 {
            fs::write(world.path("src/a"), format!("save {number}")).unwrap();
            watcher.flush();
        }
        assert_eq!(runs(&world), 1, "{direction:?}");
        fs::write(world.path("go"), "").unwrap();
        watcher.event_where("exec-output", 0, |output| output["line"] == "save 19");
        let ends = || (watcher.events("exec-end").len() == 2).then_some(());
        wait_for("the end of the second run", ends);
        watcher.flush();
        assert_eq!((runs(&world), watcher.events("exec").len()), (2, 2), "{direction:?}");
        assert!(watcher.events("exec-output").iter().all(|output| output["line"] != "twice"));
    }
}

#[test]
fn the_command_of_one_sync_runs_once_and_its_failure_is_47() {
    for direction in [Direction::Up, Direction::Down] {
        let world = world();
        let run = |command: &str| {
            let mut ksync = world.ksync([option(direction), command]);
            ksync.args(direction.endpoints(&world));
            Run::of(ksync)
        };
        let failed = run("echo out; echo err >&2; exit 9").fails(47);
        assert!(failed.stdout.contains("| out\n") && failed.stdout.contains("| err\n"), "{failed:?}");
        assert!(failed.stderr.contains("ksync: the command ended with exit code 9\n"), "{failed:?}");
        world.assert_same("src", "dst");
        let idle = run("echo out").ok();
        assert!(!idle.stdout.contains('|'), "nothing has changed: {idle:?}");
        world.tree("src").file("b", "y");
        let worked = run("printf 'with\\033an escape'").ok();
        assert!(worked.stdout.contains("| with\\u{1b}an escape\n"), "{worked:?}");
    }
}

/// `ksync` for this direction, with the option that takes this command.
fn with_command(world: &World, direction: Direction, options: &[&str], command: &str) -> Command {
    let mut ksync = world.ksync(options);
    ksync.args([option(direction), command]).args(direction.endpoints(world));
    ksync
}

#[test]
fn a_command_that_failed_runs_again_until_it_succeeds() {
    for direction in Direction::ALL {
        let world = world();
        let command = format!("test -e {} || exit 9; echo worked", world.path("go").display());
        let run =
            |options: &[&str], command: &str| Run::of(with_command(&world, direction, options, command));
        let failed = run(&[], &command).fails(47);
        let hint = "ksync: the command ended with exit code 9\n  \
                    hint: The next run runs it again, even if nothing has changed.\n";
        assert!(failed.stderr.contains(hint), "{}", failed.stderr);
        let again = run(&[], &command).fails(47);
        assert!(again.stdout.contains("nothing to do: "), "{again:?}");
        assert!(
            again.stderr.contains("ksync: running the command that has not succeeded yet\n"),
            "{again:?}"
        );
        // Neither another command nor a run without one pays the debt, and a dry run runs nothing.
        assert!(!run(&[], "echo other").ok().stdout.contains("| other"), "{direction:?}");
        world.run(direction.endpoints(&world)).ok();
        fs::write(world.path("go"), "").unwrap();
        assert!(!run(&["-n"], &command).ok().stdout.contains("| worked"), "{direction:?}");
        assert!(run(&[], &command).ok().stdout.contains("| worked\n"), "{direction:?}");
        assert!(!run(&[], &command).ok().stdout.contains('|'), "{direction:?}");
    }
}

#[test]
fn a_dry_run_runs_no_command() {
    for direction in Direction::ALL {
        let world = world();
        let run = Run::of(with_command(&world, direction, &["-n"], "echo ran")).ok();
        assert!(run.stdout.contains("would change") && !run.stdout.contains("| ran"), "{run:?}");
        let run = Run::of(with_command(&world, direction, &[], "echo ran")).ok();
        assert!(run.stdout.contains("| ran\n"), "{run:?}");
    }
}

#[test]
fn a_run_that_was_killed_owes_its_command() {
    for direction in Direction::ALL {
        let world = world();
        let path = |name: &str| world.path(name).display().to_string();
        let command =
            format!("echo run >> {}; while [ ! -e {} ]; do sleep 0.02; done", path("runs"), path("go"));
        let mut killed = with_command(&world, direction, &[], &command).spawn().unwrap();
        wait_for("the command", || (runs(&world) == 1).then_some(()));
        killed.kill().unwrap();
        killed.wait().unwrap();
        fs::write(world.path("go"), "").unwrap();
        for _ in 0..2 {
            Run::of(with_command(&world, direction, &[], &command)).ok();
            assert_eq!(runs(&world), 2, "{direction:?}");
        }
    }
}

#[test]
fn a_watch_runs_the_command_that_an_earlier_process_owes() {
    for direction in Direction::ALL {
        let world = world();
        let command = format!("echo run >> {}; exit 1", world.path("runs").display());
        Run::of(with_command(&world, direction, &[], &command)).fails(47);
        for earlier in 1..3 {
            let watcher = Watcher::ready(&world, direction, &[option(direction), &command]);
            assert_eq!(watcher.event("exec")["again"], true, "{direction:?}");
            watcher.event("exec-end");
            // A later round with nothing to do does not run it once more.
            watcher.flush();
            watcher.flush();
            assert_eq!(runs(&world), earlier + 1, "{direction:?}");
        }
        let worked = command.replace("exit 1", "exit 0");
        let watcher = Watcher::ready(&world, direction, &[option(direction), &worked]);
        watcher.flush();
        assert_eq!(watcher.events("exec").len(), 0, "{direction:?}: another command");
    }
}

#[test]
fn a_command_for_the_wrong_side_is_refused() {
    let world = world();
    for (direction, option, expected) in [
        (
            Direction::Down,
            "--exec",
            "--exec runs on the VM when something has changed there, and DEST is on this machine",
        ),
        (
            Direction::Local,
            "--exec",
            "--exec runs on the VM when something has changed there, and DEST is on this machine",
        ),
        (
            Direction::Up,
            "--on-change",
            "--on-change runs on this machine when something has changed here, and DEST is on the VM",
        ),
    ] {
        for watch in [&["--watch"][..], &[]] {
            let mut ksync = world.ksync(watch);
            ksync.args([option, "true"]).args(direction.endpoints(&world));
            let run = Run::of(ksync).fails(1);
            assert!(run.stderr.starts_with(&format!("ksync: {expected}\n  hint: ")), "{}", run.stderr);
        }
    }
    let run = world.run(["--exec", "true", "--on-change", "true", "src", "dst"]).fails(1);
    assert!(run.stderr.contains("cannot be used with"), "{}", run.stderr);
    for args in [&["--poll"][..], &["--partial-downloads"]] {
        let run = world.run(args.iter().chain(&["src", "dst"])).fails(1);
        assert!(run.stderr.contains("--watch"), "{}", run.stderr);
    }
    world
        .run(["--watch", "--dry-run", "src", "dst"])
        .fails(1)
        .says("ksync: --watch and --dry-run exclude each other\n  hint: Leave one of them out.\n");
}
