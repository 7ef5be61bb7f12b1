//! The output of a watch, the waiting of a flush, and the handling of deletions.

use std::fs;

use crate::vm::Vm;
use crate::watcher::{Direction, Watcher};
use crate::world::World;

/// `ksync --watch` with its output for people.
fn for_eyes<'w>(world: &'w World, direction: Direction, options: &[&str]) -> Watcher<'w> {
    let mut command = world.ksync(["--watch"]);
    command.args(options).args(direction.endpoints(world));
    let watcher = Watcher::of(world, direction.near(), command);
    watcher.note("that it watches", |line| (line == "watching; Ctrl-C ends it").then_some(()));
    watcher
}

/// True if a line is `what`, followed by the elapsed time.
fn is_round(line: &str, what: &str) -> bool {
    let time = line.strip_prefix(what).unwrap_or_default().trim_end_matches(" ms").trim_end_matches(" s");
    line.starts_with(what) && time.parse::<f64>().is_ok()
}

#[test]
fn a_round_prints_one_line() {
    for direction in Direction::ALL {
        let world = World::new();
        world.tree("src").file("a", "first");
        let watcher = for_eyes(&world, direction, &["--delete", "--debounce", "100"]);
        let is_first = |line: &str| line.starts_with("1 entry, ") && line.contains(": 1 new; ");
        watcher.line("the first sync", 0, |line| is_first(line).then_some(()));
        let round = |what: &str| watcher.line(what, 0, |line| is_round(line, what).then_some(()));
        fs::write(world.path("src/a"), "a later text").unwrap();
        round("1 file, 12 B, ");
        fs::remove_file(world.path("src/a")).unwrap();
        round("1 deleted, ");
        fs::create_dir(world.path("src/directory")).unwrap();
        // The directory itself, and the time of its parent.
        round("2 entries, ");
        world.tree("outside/new").file("b", "1").file("c", "22").file("d", "333");
        fs::rename(world.path("outside/new"), world.path("src/new")).unwrap();
        round("3 files, 6 B, ");
    }
}

#[test]
fn verbose_lists_changes_and_quiet_prints_nothing() {
    let world = World::new();
    world.tree("src").file("a", "first");
    let watcher = for_eyes(&world, Direction::Up, &["--delete", "-v"]);
    world.tree("src").file("b", "1");
    watcher.line("b", 0, |line| (line == "create  b").then_some(()));
    fs::remove_file(world.path("src/a")).unwrap();
    // The deletion is listed before it is done.
    watcher.line("a", 0, |line| (line == "delete  a").then_some(()));
    watcher.line("the round", 0, |line| line.starts_with("1 deleted, ").then_some(()));
    drop(watcher);
    let mut command = world.ksync(["--watch", "-q"]);
    command.args(Direction::Up.endpoints(&world));
    let quiet = Watcher::of(&world, "src", command);
    // A quiet watch reports no start; a flush is refused until then.
    crate::world::wait_for("a flush", || world.run(["flush", "src"]).status.success().then_some(()));
    world.tree("src").file("c", "1");
    quiet.is_there();
    assert_eq!(quiet.mark(), 0);
}

#[test]
fn the_output_of_a_command_has_a_prefix() {
    for (direction, option) in [(Direction::Up, "--exec"), (Direction::Down, "--on-change")] {
        let world = World::new();
        world.tree("src").file("a", "first");
        let watcher = for_eyes(&world, direction, &[option, "echo built; exit 4"]);
        watcher.line("the output", 0, |line| (line == "| built").then_some(()));
        let code = "ksync: the command ended with exit code 4";
        watcher.note("the exit code", |line| (line == code).then_some(()));
    }
}

#[test]
fn a_lost_link_prints_one_line() {
    let world = World::new();
    world.tree("src").file("a", "first");
    let vm = Vm::start(&world);
    let there = format!(":{}", world.path("dst").display());
    let command = world.ksync(["--watch", "--setup", "vm.json", "src", &there]);
    let watcher = Watcher::of(&world, "src", command);
    watcher.note("that it watches", |line| (line == "watching; Ctrl-C ends it").then_some(()));
    let before = watcher.notes().len();
    vm.link.cut();
    watcher.note("that the link is lost", |line| line.contains("; trying again in 0.").then_some(()));
    world.tree("src").file("b", "second");
    watcher.is_there();
    assert_eq!(watcher.notes().len(), before + 1, "{:?}", watcher.notes());
}

#[test]
fn a_flush_ends_after_each_of_a_hundred_saves_has_arrived() {
    for direction in [Direction::Up, Direction::Down] {
        let world = World::new();
        world.tree("src").file("note", "").file("other", "x");
        let watcher = Watcher::ready(&world, direction, &[]);
        for number in 0..100 {
            let text = format!("saved {number} times");
            fs::write(world.path("src/note"), &text).unwrap();
            watcher.flush();
            assert_eq!(fs::read_to_string(world.path("dst/note")).unwrap(), text, "{direction:?}");
        }
        world.assert_same("src", "dst");
    }
}

#[test]
fn a_flush_of_an_unwatched_tree_is_an_error() {
    let world = World::new();
    world.tree("src").file("a", "x");
    world.tree("other");
    let expected = |name: &str| {
        format!(
            "ksync: no ksync --watch keeps {name} in sync\n  \
             hint: Begin with ksync --watch, and name its local side here.\n"
        )
    };
    world.run(["flush", "src"]).fails(1).says(&expected("src"));
    let watcher = Watcher::ready(&world, Direction::Up, &[]);
    world.run(["flush", "src"]).ok().says("");
    world.run(["flush", "src/."]).ok().says("");
    world.run(["flush", "other"]).fails(1).says(&expected("other"));
    drop(watcher);
    world.run(["flush", "src"]).fails(1).says(&expected("src"));
}

#[test]
fn a_flush_times_out() {
    let world = World::new();
    world.tree("src").file("a", "x");
    let vm = Vm::start(&world);
    let _watcher = vm.watch(Direction::Up, &[]);
    vm.link.set_down(true);
    world.run(["flush", "--timeout", "1", "src"]).fails(30).says(
        "ksync: not everything was there in time\n  \
         hint: Look at what the ksync that watches says, or give it more with --timeout.\n",
    );
}

#[test]
fn kept_entries_are_listed_without_delete() {
    for direction in Direction::ALL {
        let world = World::new();
        world.tree("src").file("gone", "x").file("dir/inner", "y").file("stays", "z");
        world.tree("dst").file("foreign", "was there before");
        let watcher = for_eyes(&world, direction, &[]);
        fs::remove_file(world.path("src/gone")).unwrap();
        watcher.line("what is left", 0, |line| {
            (line == "left    gone (--delete would remove it)").then_some(())
        });
        fs::remove_dir_all(world.path("src/dir")).unwrap();
        watcher.line("what is left", 0, |line| {
            (line == "left    dir/ (--delete would remove it)").then_some(())
        });
        watcher.flush();
        for name in ["gone", "dir/inner", "stays", "foreign"] {
            assert!(world.path("dst").join(name).exists(), "{direction:?}: {name}");
        }
        drop(watcher);

        let watcher = for_eyes(&world, direction, &["--delete", "--yes"]);
        world.assert_same("src", "dst");
        fs::remove_file(world.path("src/stays")).unwrap();
        watcher.is_there();
    }
}
