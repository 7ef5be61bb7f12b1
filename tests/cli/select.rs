//! The options that pass over entries, beside rsync: the same start has the same end.
//!
//! Each case follows from its seed and its options, and a failure prints both. `KSYNC_SELECT_SEEDS`
//! sets the number of seeds for each set of options: `KSYNC_SELECT_SEEDS=500 cargo test --test cli
//! rsync_passes_over`.
//!
//! ksync differs from rsync on purpose in these points, which no case contains:
//!
//! - Times within one second. rsync takes them for equal; ksync compares them to the nanosecond, so
//!   `-u` keeps a file that is newer by a millisecond. With `--modify-window=-1`, rsync's `-u`
//!   replaces a file that is newer by one second; ksync keeps it.
//! - `--ignore-existing` where a file or link has the place of a directory. rsync gives the file
//!   the directory's time and reports each entry of the directory as an error (23), or writes them
//!   where the link leads; ksync passes over all of them in silence.
//! - A file in the place of a directory that holds something excluded. With `--delete`, rsync
//!   removes all but that, and then fails (23); ksync fails and removes nothing. The same with `-b`
//!   for a directory that holds a file or link: its backup would keep the directory.
//! - The time of a directory that SOURCE does not have, and in which something was deleted. ksync
//!   restores it.
//! - Backups of files whose content stays: rsync makes one where the time alone differs.
//! - The times of directories with `-b`: rsync leaves them, and ksync sets them.
//! - Times that differ less than `--modify-window`, where the mode differs: ksync sets both.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::plan::Rng;
use crate::world::skip::{needs_programs, program};
use crate::world::{Run, Tree, World};

const NAMES: &[&str] = &["a", "a-b", "b", "c.x", "d"];

const OPTIONS: &[&[&str]] = &[
    &["-u"],
    &["-u", "--delete"],
    &["-u", "-c"],
    &["-u", "-I"],
    &["-u", "--modify-window=0"],
    &["--existing"],
    &["--existing", "--delete"],
    &["--ignore-non-existing", "-u"],
    &["--ignore-existing"],
    &["--ignore-existing", "--delete"],
    &["--existing", "--ignore-existing", "--delete"],
    &["--size-only"],
    &["-I"],
    &["-I", "--size-only", "--delete"],
    &["-I", "-c"],
    &["--size-only", "-c"],
    &["--max-size=1"],
    &["--max-size=2-1", "--delete"],
    &["--min-size=2b"],
    &["--max-size=2", "--min-size=0+1", "--delete"],
    &["-m"],
    &["-m", "--delete"],
    &["-m", "--delete", "--exclude=c.x", "--max-size=1"],
    &["--delete-excluded", "--exclude=c.x"],
    &["--delete-excluded", "--exclude=a", "--include=b", "--exclude=/*/", "-u"],
    &["--delete-excluded", "--exclude=a/", "-m", "--existing", "--no-whole-file"],
    &["-b"],
    &["-b", "--delete"],
    &["-b", "--suffix=.x", "--delete", "--exclude=a"],
    &["-b", "--delete-excluded", "--exclude=b"],
    &["--backup-dir=old"],
    &["--backup-dir=old", "--delete", "-u"],
    &["--backup-dir=old", "--suffix=.1", "--delete", "-c"],
];

/// A tree of few names, sizes, contents and times, so that two such trees share many of them.
fn grow(rng: &mut Rng, mut tree: Tree, prefix: &str, depth: u64) -> Tree {
    for name in NAMES {
        let path = format!("{prefix}{name}");
        let mode = |rng: &mut Rng, usual: u32| if rng.below(4) == 0 { usual & 0o555 } else { usual };
        tree = match rng.below(9) {
            0..=3 => {
                let content = ["", "x", "y", "xx", "yy"][rng.below(5) as usize];
                tree.file(&path, content).mode(&path, mode(rng, 0o644))
            }
            4 => tree.link(&path, ["a", "b"][rng.below(2) as usize]),
            5 | 6 if depth > 0 => {
                let tree = grow(rng, tree.dir(&path), &format!("{path}/"), depth - 1);
                tree.mode(&path, mode(rng, 0o755))
            }
            5 => tree.dir(&path),
            _ => continue,
        };
        tree = tree.time(&path, 1_000_000 + rng.below(4) as i64, 0);
    }
    tree
}

fn plant(seed: u64, world: &World, name: &str) {
    grow(&mut Rng::new(seed), world.tree(name), "", 2).mode("", 0o755).time("", 1_000_000, 0);
}

/// Kind, mode and time of each entry. The time of a directory counts if one is `offered`.
fn seen(root: &Path, offered: Option<&dyn Fn(&Path) -> bool>) -> BTreeMap<PathBuf, String> {
    let walk = walkdir::WalkDir::new(root).into_iter().filter_entry(|entry| entry.file_name() != ".ksync");
    let shown = walk.map(|entry| {
        let entry = entry.unwrap();
        let meta = entry.path().symlink_metadata().unwrap();
        let path = entry.path().strip_prefix(root).unwrap().to_owned();
        let kind = if meta.is_symlink() {
            format!("link to {:?}", fs::read_link(entry.path()).unwrap())
        } else if meta.is_dir() {
            "directory".to_owned()
        } else {
            format!("file {:?}", fs::read_to_string(entry.path()).unwrap())
        };
        let has_time = !meta.is_dir() || offered.is_none_or(|offered| offered(&path));
        let time = if has_time { meta.mtime() } else { 0 };
        (path, format!("{kind} {:o} {time}", meta.mode()))
    });
    shown.collect()
}

/// Removes files of the destination that have the place of directories, and directories that have
/// the place of other entries.
fn clear(source: &Path, destination: &Path, files: bool, directories: bool) {
    for entry in walkdir::WalkDir::new(source).min_depth(1).into_iter().map(Result::unwrap) {
        let path = destination.join(entry.path().strip_prefix(source).unwrap());
        let Ok(old) = path.symlink_metadata() else { continue };
        if files && entry.file_type().is_dir() && !old.is_dir() {
            fs::remove_file(path).unwrap();
        } else if directories && !entry.file_type().is_dir() && old.is_dir() {
            fs::remove_dir_all(path).unwrap();
        }
    }
}

/// True if a directory of the source is offered: it is there, and not pruned as empty.
fn is_offered(source: &Path, prunes: bool) -> bool {
    source.symlink_metadata().is_ok_and(|meta| meta.is_dir())
        && (!prunes
            || walkdir::WalkDir::new(source)
                .into_iter()
                .any(|entry| entry.is_ok_and(|entry| !entry.file_type().is_dir())))
}

/// The path whose backup a path is.
fn original(path: &Path, options: &[&str]) -> Option<PathBuf> {
    let suffix = options.iter().find_map(|option| option.strip_prefix("--suffix="));
    let is_aside = options.contains(&"--backup-dir=old");
    if !is_aside && !options.contains(&"-b") {
        return None;
    }
    let path = if is_aside { path.strip_prefix("old").ok()? } else { path };
    let suffix = suffix.unwrap_or(if is_aside { "" } else { "~" });
    path.to_str()?.strip_suffix(suffix).map(PathBuf::from)
}

/// The ways to reach DEST.
#[derive(Debug, Clone, Copy)]
enum Way {
    Local,
    Up,
    Down,
}

fn check(world: &World, seed: u64, options: &[&str], way: Way) {
    let [source, ours, theirs] = ["src", "ours", "theirs"].map(|name| format!("{seed}/{name}"));
    plant(seed.wrapping_mul(2), world, &source);
    for destination in [&ours, &theirs] {
        plant(seed.wrapping_mul(2) + 1, world, destination);
        let has = |option: &&str| options.contains(option);
        let protects = has(&"--delete") && has(&"--exclude=c.x") || has(&"-b");
        clear(&world.path(&source), &world.path(destination), has(&"--ignore-existing"), protects);
    }
    let mut rsync = Command::new(program("rsync").unwrap());
    rsync.arg("-a").args(options).arg(world.path(&source).join("")).arg(world.path(&theirs).join(""));
    let ended = Run::of(rsync);
    assert!(matches!(ended.status.code(), Some(0 | 23)), "{options:?} {}", ended.stderr);
    let case = || format!("seed {seed}, {options:?}, {way:?}");
    let run = |extra: &[&str]| {
        let mut ksync = world.ksync(["-ai", "--yes", "--links"]);
        ksync.args(options).args(extra);
        match way {
            Way::Local => ksync.arg(&source).arg(&ours),
            Way::Up => ksync.arg(&source).arg(world.far(&ours)),
            Way::Down => ksync.arg(world.far(&source)).arg(&ours),
        };
        let ran = Run::of(ksync);
        assert!(matches!(ran.status.code(), Some(0 | 23)), "{} {}", case(), ran.stderr);
        let lines = ran.stdout.lines().filter(|line| {
            line.as_bytes().get(11) == Some(&b' ') && !line.starts_with(|first: char| first.is_ascii_digit())
        });
        let mut lines: Vec<_> = lines.map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let before = seen(&world.path(&ours), None);
    let planned = run(&["-n"]);
    assert_eq!(seen(&world.path(&ours), None), before, "a dry run of {}", case());
    let listed = run(&[]);
    // Without a proof by time, the plan lists files whose content turns out the same.
    if !options.contains(&"-I") {
        assert_eq!(planned, listed, "the plan of {}", case());
    }
    let prunes = options.contains(&"-m");
    let has_times = !options.contains(&"-b");
    let offered = |path: &Path| has_times && is_offered(&world.path(&source).join(path), prunes);
    let [ours_seen, theirs_seen] = [&ours, &theirs].map(|name| seen(&world.path(name), Some(&offered)));
    let paths = ours_seen.keys().chain(theirs_seen.keys());
    let backed_up_alone = |path: &Path| {
        let content = |path: &Path| fs::read(world.path(&theirs).join(path)).ok();
        let is_same = |original: PathBuf| content(path).is_some() && content(path) == content(&original);
        !ours_seen.contains_key(path) && original(path, options).is_some_and(is_same)
    };
    let differing: Vec<_> = paths
        .filter(|path| ours_seen.get(*path) != theirs_seen.get(*path) && !backed_up_alone(path))
        .map(|path| format!("{path:?}: {:?}, rsync {:?}", ours_seen.get(path), theirs_seen.get(path)))
        .collect();
    let offer = seen(&world.path(&source), None);
    let differing = differing.join("\n");
    assert!(differing.is_empty(), "{}:\n{differing}\nbefore: {before:#?}\noffered: {offer:#?}", case());
    if !matches!(way, Way::Local) {
        // Entries that were passed over are no part of the baseline: without these options they
        // arrive.
        let [from, to] = match way {
            Way::Down => [world.far(&source), ours.clone().into()],
            Way::Up | Way::Local => [source.clone().into(), world.far(&ours)],
        };
        let mut plain = world.ksync(["-ac", "--delete", "--yes", "--links"]);
        plain.arg(from).arg(to);
        Run::of(plain).ok();
        world.assert_same(&source, &ours);
    }
    fs::remove_dir_all(world.path(seed.to_string())).unwrap();
}

#[test]
fn entries_are_passed_over_where_rsync_passes_over_them() {
    if !needs_programs(&["rsync"]) {
        return;
    }
    let world = World::new();
    let seeds = std::env::var("KSYNC_SELECT_SEEDS").map_or(4, |text| text.parse::<u64>().unwrap());
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let world = &world;
            scope.spawn(move || {
                for (number, options) in (0..).zip(OPTIONS) {
                    for seed in (0..seeds).filter(|seed| seed % 2 == thread) {
                        check(world, number * 1_000_000 + seed, options, Way::Local);
                    }
                }
            });
        }
    });
}

#[test]
fn entries_are_passed_over_on_the_way_up_and_down_too() {
    if !needs_programs(&["rsync"]) {
        return;
    }
    let world = World::new();
    for (number, options) in (0..).zip(OPTIONS) {
        let way = if number % 2 == 0 { Way::Up } else { Way::Down };
        check(&world, number, options, way);
    }
}
