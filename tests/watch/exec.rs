//! `--exec` on the VM and `--on-change` here: a command runs after rounds with changes, one at a
//! time, and the newest round wins.

use std::fs;

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
        .says("ksync: --watch and --dry-run exclude each other\n  hint: leave one of them out\n");
}
