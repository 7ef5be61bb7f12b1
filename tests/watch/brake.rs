//! Deletions in a watch: deletions that the watch saw pass, and those that only a full round finds
//! wait for consent.

use std::fs;

use crate::watcher::{Direction, Watcher};
use crate::world::{Run, World, wait_for};

fn flush(world: &World, direction: Direction) -> Run {
    Run::of(world.ksync(["flush", direction.near()]))
}

#[test]
fn deletions_of_the_first_round_wait_and_seen_ones_pass() {
    for direction in Direction::ALL {
        let world = World::new();
        world.tree("src").file("a", "a").file("b", "b").file("d/x", "x");
        world.tree("dst").file("mine", "x").file("d/theirs", "x");
        let watcher = Watcher::ready(&world, direction, &["--delete"]);
        let waits = flush(&world, direction).fails(25);
        assert!(waits.stderr.contains("deletions wait for consent"), "{}", waits.stderr);
        // The watch continues.
        world.tree("src").file("c", "c");
        fs::remove_file(world.path("src/a")).unwrap();
        fs::remove_dir_all(world.path("src/d")).unwrap();
        wait_for("what was seen", || {
            let is_there = |name: &str| world.path("dst").join(name).exists();
            (is_there("c") && !is_there("a") && !is_there("d/x")).then_some(())
        });
        assert!(world.path("dst/mine").exists() && world.path("dst/d/theirs").exists());
        flush(&world, direction).fails(25);
        // The user consents in another run, beside the watch.
        let mut command = world.ksync(["--delete", "--yes"]);
        command.args(direction.endpoints(&world));
        Run::of(command).ok();
        flush(&world, direction).ok();
        assert!(!world.path("dst/mine").exists() && !world.path("dst/d").exists());
        drop(watcher);
    }
}

#[test]
fn a_watched_source_that_is_emptied_empties_its_copy() {
    for direction in Direction::ALL {
        let world = World::new();
        (0..40).fold(world.tree("src"), |tree, number| tree.file(format!("f{number}"), "text"));
        let watcher = Watcher::ready(&world, direction, &["--delete"]);
        for entry in fs::read_dir(world.path("src")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        // At once: the changes that were seen by then come before the full round.
        flush(&world, direction).ok();
        assert_eq!(fs::read_dir(world.path("dst")).unwrap().count(), 0, "{direction:?}");
        drop(watcher);
    }
}
