//! Random trees and changes, and a checker that shares no code with ksync.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::RngSeed;

use crate::world::{World, noise, set_mode, set_time};

/// A change of a tree. A change that does not apply does nothing.
#[derive(Debug, Clone)]
enum Change {
    /// Creates a file, in place of anything.
    File {
        name: String,
        seed: u64,
        length: usize,
    },
    /// Creates a directory, in place of anything.
    Directory {
        name: String,
    },
    /// Creates a link, in place of anything.
    Link {
        name: String,
        target: String,
    },
    /// Removes an entry.
    Remove {
        entry: Index,
    },
    /// Inserts, overwrites or cuts bytes of a file.
    Edit {
        entry: Index,
        at: Index,
        how: u8,
    },
    /// Renames an entry.
    Move {
        entry: Index,
        name: String,
    },
    Mode {
        entry: Index,
        mode: u32,
    },
    Time {
        entry: Index,
        seconds: i64,
        nanos: u32,
    },
}

/// Lengths around every threshold of the engine.
fn length() -> impl Strategy<Value = usize> {
    let kib = |n: usize| (n << 10) - 1..=(n << 10) + 1;
    prop_oneof![
        3 => 0_usize..2,
        3 => 2_usize..5000,
        3 => kib(16),
        3 => kib(128),
        2 => Just(300 << 10),
        1 => Just(3 << 20),
    ]
}

fn name() -> impl Strategy<Value = String> {
    vec(select(vec!["a", "b", "b.c", "ü", "-"]), 1..4).prop_map(|components| components.join("/"))
}

fn change() -> impl Strategy<Value = Change> {
    let entry = any::<Index>;
    let mode = select(vec![0o755, 0o700, 0o555, 0o644, 0o600, 0o444, 0o000, 0o1777]);
    let seconds = prop_oneof![-(1_i64 << 33)..(1 << 33), Just(0), Just(-1)];
    prop_oneof![
        6 => (name(), any::<u64>(), length())
            .prop_map(|(name, seed, length)| Change::File { name, seed, length }),
        2 => name().prop_map(|name| Change::Directory { name }),
        2 => (name(), name()).prop_map(|(name, target)| Change::Link { name, target }),
        2 => entry().prop_map(|entry| Change::Remove { entry }),
        4 => (entry(), any::<Index>(), any::<u8>())
            .prop_map(|(entry, at, how)| Change::Edit { entry, at, how }),
        2 => (entry(), name()).prop_map(|(entry, name)| Change::Move { entry, name }),
        2 => (entry(), mode).prop_map(|(entry, mode)| Change::Mode { entry, mode }),
        3 => (entry(), seconds, 0_u32..1_000_000_000)
            .prop_map(|(entry, seconds, nanos)| Change::Time { entry, seconds, nanos }),
    ]
}

fn remove(path: &Path) {
    let Ok(metadata) = path.symlink_metadata() else { return };
    if metadata.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
}

/// Makes room for `name`: directories above it, nothing at it.
fn make_room(root: &Path, name: &str) -> PathBuf {
    let path = root.join(name);
    let mut above: Vec<&Path> = path.ancestors().skip(1).take_while(|above| *above != root).collect();
    above.reverse();
    for directory in above {
        if !directory.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            remove(directory);
            fs::create_dir(directory).unwrap();
        }
    }
    remove(&path);
    path
}

fn pick(root: &Path, entry: &Index) -> Option<PathBuf> {
    let mut paths: Vec<PathBuf> = walkdir::WalkDir::new(root)
        .min_depth(1)
        .into_iter()
        .map(|entry| entry.unwrap().into_path())
        .collect();
    paths.sort();
    (!paths.is_empty()).then(|| entry.get(&paths).clone())
}

fn apply(root: &Path, change: &Change) {
    match change {
        Change::File { name, seed, length } => {
            fs::write(make_room(root, name), noise(*seed, *length)).unwrap();
        }
        Change::Directory { name } => fs::create_dir(make_room(root, name)).unwrap(),
        Change::Link { name, target } => symlink(target, make_room(root, name)).unwrap(),
        Change::Remove { entry } => drop(pick(root, entry).map(|path| remove(&path))),
        Change::Edit { entry, at, how } => {
            let Some(path) = pick(root, entry).filter(|path| path.symlink_metadata().unwrap().is_file())
            else {
                return;
            };
            let mut content = fs::read(&path).unwrap();
            let at = at.index(content.len() + 1);
            match how % 4 {
                0 => drop(content.splice(at..at, noise(1, 700))),
                1 => content.truncate(at),
                2 => content.extend(noise(2, 40_000)),
                _ => content[at..].iter_mut().take(900).for_each(|byte| *byte ^= 5),
            }
            let before = path.metadata().unwrap();
            fs::write(&path, content).unwrap();
            // Two writes in one tick of the clock have the same time, so no scan could tell them
            // apart.
            if path.metadata().unwrap().modified().unwrap() == before.modified().unwrap() {
                set_time(&path, before.mtime() + 1, 0);
            }
        }
        Change::Move { entry, name } => {
            let Some(path) = pick(root, entry) else { return };
            let to = root.join(name);
            if !to.starts_with(&path) && !path.starts_with(&to) {
                let aside = root.join("aside");
                fs::rename(&path, &aside).unwrap();
                let to = make_room(root, name);
                fs::rename(&aside, to).unwrap();
            }
        }
        Change::Mode { entry, mode } => {
            if let Some(path) = pick(root, entry).filter(|path| !path.is_symlink()) {
                set_mode(&path, *mode);
            }
        }
        Change::Time { entry, seconds, nanos } => {
            if let Some(path) = pick(root, entry) {
                set_time(&path, *seconds, *nanos);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100, max_shrink_iters: 200, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default()
    })]

    #[test]
    fn the_target_follows_random_changes(
        rounds in vec(vec(change(), 0..12), 1..5), there in vec(change(), 0..6),
        download in any::<bool>(), compress in any::<bool>(), checksum in any::<bool>(),
    ) {
        let mut world = World::deleting();
        world.download = download;
        (world.options.compress, world.options.checksum) = (compress, checksum);
        fs::create_dir(&world.target).unwrap();
        there.iter().for_each(|change| apply(&world.target, change));
        for round in rounds {
            round.iter().for_each(|change| apply(&world.source, change));
            world.run_and_check();
        }
    }

    #[test]
    fn the_next_run_repairs_random_cuts(
        first in vec(change(), 1..10), second in vec(change(), 1..10), cuts in vec(0_u64..1 << 20, 1..4),
    ) {
        let mut world = World::deleting();
        first.iter().for_each(|change| apply(&world.source, change));
        world.run_and_check();
        second.iter().for_each(|change| apply(&world.source, change));
        for cut in cuts {
            world.cut_after = Some(cut);
            let _ = world.run();
        }
        world.cut_after = None;
        prop_assert_eq!(world.run().problems(), []);
        world.assert_same();
    }
}
