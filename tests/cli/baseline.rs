//! The client and the agent keep a baseline of the last sync, so a run with nothing to do transfers
//! almost nothing.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::world::{Stats, World};

const FILES: usize = 2000;

/// More bytes than a run without changes transfers.
const NOTHING_BYTES: u64 = 400;

fn world() -> World {
    let world = World::new();
    let mut tree = world.tree("src");
    for number in 0..FILES {
        tree = tree.file(format!("{}/{number}", number % 20), "");
    }
    world
}

/// The directory of the agent's baselines.
fn far_baselines(world: &World) -> PathBuf {
    world.far_home().join(".cache/ksync/offers")
}

fn baselines(world: &World) -> PathBuf {
    world.path("state/ksync/offers")
}

fn count(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

/// Runs an upload or a download, after which the trees are equal.
fn sync(world: &World, download: bool) -> Stats {
    let (source, destination): (OsString, OsString) =
        if download { (world.far("src"), "dst".into()) } else { ("src".into(), world.far("dst")) };
    let stats = world.sync_with(&["--delete"], source, destination);
    world.assert_same("src", "dst");
    stats
}

#[test]
fn a_second_run_transfers_next_to_nothing_either_way() {
    for download in [false, true] {
        let world = world();
        let first = sync(&world, download);
        for _ in 0..2 {
            let again = sync(&world, download);
            assert!(again.wire_bytes() < NOTHING_BYTES, "{again:?} after {first:?}");
        }
        assert_eq!((count(&baselines(&world)), count(&far_baselines(&world))), (1, 1));
        let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(baselines(&world)), mode(far_baselines(&world))), (0o700, 0o700));

        fs::rename(world.path("src/7/7"), world.path("src/8/renamed")).unwrap();
        let changed = sync(&world, download);
        assert!(changed.wire_bytes() < 2 * NOTHING_BYTES && changed.sent_bytes == 0, "{changed:?}");
        let again = sync(&world, download);
        assert!(again.wire_bytes() < NOTHING_BYTES, "{again:?}");
    }
}

#[test]
fn a_side_that_lost_its_baseline_gets_everything_once() {
    for download in [false, true] {
        let world = world();
        sync(&world, download);
        for folder in [baselines(&world), far_baselines(&world)] {
            fs::remove_dir_all(folder).unwrap();
            let forgotten = sync(&world, download);
            assert!(forgotten.wire_bytes() > FILES as u64 * 2, "{forgotten:?}");
            let again = sync(&world, download);
            assert!(again.wire_bytes() < NOTHING_BYTES, "{again:?}");
        }
    }
}

#[test]
fn each_client_and_each_selection_has_its_own_baseline() {
    let world = world();
    sync(&world, false);
    world.sync_with(&["--exclude", "/3"], "src", world.far("dst"));
    world.sync_with(&["--checksum"], "src", world.far("dst"));
    world.sync("src/5", world.far("dst/5"));
    assert_eq!((count(&baselines(&world)), count(&far_baselines(&world))), (4, 4));
    for options in [&["--exclude", "/3"][..], &["--checksum"], &["--delete"]] {
        let again = world.sync_with(options, "src", world.far("dst"));
        assert!(again.wire_bytes() < NOTHING_BYTES, "{options:?}: {again:?}");
    }
    // Another client has the same paths, but another id.
    fs::rename(world.path("state/ksync/id"), world.path("id")).unwrap();
    sync(&world, false);
    assert_eq!((count(&baselines(&world)), count(&far_baselines(&world))), (5, 5));
    fs::rename(world.path("id"), world.path("state/ksync/id")).unwrap();
    let again = sync(&world, false);
    assert!(again.wire_bytes() < NOTHING_BYTES, "{again:?}");
}

#[test]
fn a_sync_works_without_a_place_for_baselines() {
    let world = world();
    fs::remove_dir(world.path("state")).unwrap();
    fs::write(world.path("state"), "in the way").unwrap();
    for download in [false, true] {
        for _ in 0..2 {
            let stats = sync(&world, download);
            assert!(stats.wire_bytes() > FILES as u64 * 2, "{stats:?}");
        }
    }
    assert!(!far_baselines(&world).exists(), "nobody asked the agent to remember");
}

#[test]
fn a_local_copy_stores_only_its_pair() {
    let world = world();
    world.sync("src", "dst");
    world.assert_same("src", "dst");
    let names = fs::read_dir(world.path("state/ksync")).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["copies"]);
}
