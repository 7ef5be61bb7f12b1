//! The plan is the run: the listed changes are the differences between two snapshots of the
//! destination, before and after.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use crate::world::{Run, Snapshot, Tree, World};

const NAMES: &[&str] = &["a", "b", "c", "d", "skip"];

/// Pseudo-random numbers from a seed.
#[derive(Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % bound
    }
}

/// A tree with few names, so that two such trees share many paths and often conflict.
pub(crate) fn grow(rng: &mut Rng, names: &[&str], mut tree: Tree, prefix: &str, depth: u64) -> Tree {
    for name in names {
        let path = format!("{prefix}{name}");
        tree = match rng.below(8) {
            0 | 1 => tree.file(&path, "x".repeat(rng.below(3) as usize)).mode(&path, mode(rng, 0o644)),
            2 => tree.link(&path, if rng.below(2) == 0 { "a" } else { "b" }),
            3 | 4 if depth > 0 => {
                let tree = grow(rng, names, tree.dir(&path), &format!("{path}/"), depth - 1);
                tree.mode(&path, mode(rng, 0o755))
            }
            3 => tree.dir(&path),
            _ => continue,
        };
        tree = tree.time(&path, 1_000_000 + rng.below(2) as i64, 0);
    }
    tree
}

fn mode(rng: &mut Rng, usual: u32) -> u32 {
    if rng.below(4) == 0 { usual & 0o555 } else { usual }
}

/// The listed letters of each path.
fn listed(run: &Run) -> Vec<(String, PathBuf)> {
    let lines = run.stdout.lines().filter_map(|line| {
        let (letters, path) = line.split_at_checked(12)?;
        let is_letters = letters.ends_with(' ') && "<>c.*".contains(letters.chars().next()?);
        let path = path.split(" -> ").next()?.trim_end_matches('/');
        let path = if path == "." { "" } else { path };
        is_letters.then(|| (letters.trim().to_owned(), PathBuf::from(path)))
    });
    lines.collect()
}

fn changed(before: &Snapshot, after: &Snapshot) -> BTreeSet<PathBuf> {
    let paths = before.keys().chain(after.keys());
    paths.filter(|path| before.get(*path) != after.get(*path)).cloned().collect()
}

/// The numbers of the summary line: in brackets in a dry run, else behind the colon.
fn counts(run: &Run) -> BTreeMap<String, u64> {
    let line = run.summary();
    let between = |begin: &str, end| Some(line.split_once(begin)?.1.split_once(end)?.0);
    let inside = between("(", ")").or_else(|| between("B: ", "; "));
    let inside = inside.unwrap_or_default();
    let pairs = inside.split(", ").filter_map(|part| {
        let (number, kind) = part.split_once(' ')?;
        Some((kind.to_owned(), number.parse().ok()?))
    });
    pairs.collect()
}

/// Asserts that the summary counts the listed changes.
#[track_caller]
fn assert_counted(run: &Run) {
    let lines = listed(run);
    let number = |kind: &str| counts(run).get(kind).copied().unwrap_or(0);
    let of = |test: &dyn Fn(&str) -> bool| lines.iter().filter(|(letters, _)| test(letters)).count() as u64;
    let shown = &run.stdout;
    assert_eq!(of(&|letters| letters.ends_with("+++")), number("new") + number("moved"), "{shown}");
    assert_eq!(of(&|letters| letters == "*deleting"), number("deleted") + number("moved"), "{shown}");
    assert_eq!(lines.len() as u64, counts(run).values().sum::<u64>() + number("moved"), "{shown}");
}

fn check(seed: u64, options: &[&str], is_far: bool) {
    let mut rng = Rng::new(seed);
    let world = World::new();
    grow(&mut rng, NAMES, world.tree("src"), "", 2);
    grow(&mut rng, NAMES, world.tree("dst"), "", 2);
    world.tree("src").time("", 5_000_000, rng.below(2) as i64);
    let destination: OsString = if is_far { world.far("dst") } else { "dst".into() };
    let run = |more: &[&str]| {
        let mut command = world.ksync(options);
        command.args(["-i", "--yes"]).args(more).arg("src").arg(&destination);
        Run::of(command)
    };
    let before = world.snapshot("dst");
    let planned = run(&["-n"]);
    assert_eq!(world.snapshot("dst"), before);
    let ran = run(&[]);
    let about = format!("seed {seed} {options:?} far: {is_far}\n{}{}", ran.stdout, ran.stderr);
    assert!(matches!(ran.status.code(), Some(0 | 23)), "{about}");
    assert_eq!(listed(&planned), listed(&ran), "{about}");
    let paths: BTreeSet<PathBuf> = listed(&ran).into_iter().map(|(_, path)| path).collect();
    assert_eq!(paths, changed(&before, &world.snapshot("dst")), "{about}");
    assert_counted(&planned);
    assert_counted(&ran);
    // The next run has nothing to do.
    assert_eq!(listed(&run(&[])), [], "{about}");
}

#[test]
fn the_listed_changes_are_the_differences_afterwards() {
    for seed in 0..60 {
        let options: &[&str] = match seed % 4 {
            0 => &[],
            1 => &["--delete"],
            2 => &["--delete", "--exclude=skip"],
            _ => &["--delete", "--checksum"],
        };
        check(seed, options, seed % 5 == 4);
    }
}

#[test]
fn the_content_of_a_deleted_directory_is_listed_children_first() {
    let world = World::new();
    world.tree("src").file("a", "file");
    world.tree("dst").file("a/b/k", "").file("c/d/e", "");
    for options in [&["-n"][..], &[]] {
        let mut command = world.ksync(["-i", "--delete", "--yes"]);
        command.args(options).args(["src", "dst"]);
        let run = Run::of(command).ok();
        let is_deletion = |line: &&str| line.starts_with('*');
        let deletions: Vec<_> = run.stdout.lines().filter(is_deletion).collect();
        let expected = [
            "*deleting   c/d/e",
            "*deleting   c/d/",
            "*deleting   c/",
            "*deleting   a/b/k",
            "*deleting   a/b/",
        ];
        assert_eq!(deletions, expected, "{}", run.stdout);
        assert!(run.summary().contains("1 new"), "{}", run.summary());
        assert!(run.summary().contains("5 deleted"), "{}", run.summary());
    }
    assert!(fs::metadata(world.path("dst/a")).unwrap().is_file());
}
