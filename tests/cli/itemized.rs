//! `-i` beside rsync: the same lines for the same two trees.
//!
//! Both lists are compared line by line, the deletions and the other lines each in order. How the
//! two interleave depends on rsync's buffers. ksync compares times to the nanosecond and rsync to
//! the second, and a DEST that was there keeps its mode with ksync, so the trees have whole seconds
//! and roots of one mode.

use std::ffi::OsString;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::plan::{Rng, grow};
use crate::world::skip::{needs_programs, program};
use crate::world::{Run, World};

const TREES: u64 = 1000;

/// Each n-th pair of trees is really synced. The others are only listed.
const REAL: u64 = 8;

/// A directory's name is compared with a slash at its end: `a-b/` comes before `a/`.
const NAMES: &[&str] = &["a", "a-b", "b", "c.x", "d"];

/// The lines of changes: the deletions, and the others.
fn lines(stdout: &str) -> [Vec<String>; 2] {
    let is_line = |line: &&str| {
        line.as_bytes().get(11) == Some(&b' ')
            && matches!(line.as_bytes().first(), Some(b'<' | b'>' | b'c' | b'.' | b'*'))
    };
    let lines = stdout.lines().filter(is_line).map(str::to_owned);
    let (deletions, others) = lines.partition(|line| line.starts_with("*deleting"));
    [deletions, others]
}

/// Makes a tree, or in one of ten cases none.
fn plant(mut rng: Rng, world: &World, name: &str) {
    if rng.below(10) > 0 {
        grow(&mut rng, NAMES, world.tree(name), "", 2);
        world.tree(name).time("", 1_000_000, 0);
    }
}

fn check(world: &World, seed: u64) {
    let [source, ours, theirs] = ["src", "ours", "theirs"].map(|name| format!("{seed}/{name}"));
    let mut rng = Rng::new(seed);
    grow(&mut rng, NAMES, world.tree(&source), "", 2);
    world.tree(&source).time("", 1_000_000 + rng.below(2) as i64, 0);
    for destination in [&ours, &theirs] {
        plant(rng.clone(), world, destination);
    }
    let mut options = vec!["-ai"];
    options.extend((!seed.is_multiple_of(REAL)).then_some("-n"));
    options.extend((rng.below(4) > 0).then_some("--delete"));
    options.extend((rng.below(4) == 0).then_some("--checksum"));
    let mut rsync = Command::new(program("rsync").unwrap());
    rsync.args(&options).arg(world.path(&source).join("")).arg(world.path(&theirs).join(""));
    let mut ksync = world.ksync(&options);
    // ksync takes a directory for the named one, with a slash or without.
    let slash = if rng.below(2) == 0 { "/" } else { "" };
    ksync.args(["--yes"].map(OsString::from)).arg(format!("{source}{slash}")).arg(format!("{ours}{slash}"));
    let (expected, ran) = (Run::of(rsync), Run::of(ksync));
    assert!(matches!(ran.status.code(), Some(0 | 23)), "{}", ran.stderr);
    assert_eq!(lines(&ran.stdout), lines(&expected.stdout), "seed {seed} {options:?}");
    fs::remove_dir_all(world.path(seed.to_string())).unwrap();
}

#[test]
fn itemized_lines_are_those_of_rsync() {
    if !needs_programs(&["rsync"]) {
        return;
    }
    let (world, next) = (World::new(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    match next.fetch_add(1, Ordering::Relaxed) {
                        TREES.. => break,
                        seed => check(&world, seed),
                    }
                }
            });
        }
    });
}

#[test]
fn a_further_name_of_a_file_is_itemized_with_that_file() {
    let world = World::new();
    world.tree("src").file("a", "x").file("d/z", "y");
    std::fs::hard_link(world.path("src/a"), world.path("src/b")).unwrap();
    for dry in ["-n", "-i"] {
        let run = world.run(["-Hi", dry, "src", "dst"]).ok();
        assert!(run.stdout.contains(">f+++++++++ a\nhf+++++++++ b => a\n"), "{}", run.stdout);
    }
    std::fs::remove_file(world.path("dst/b")).unwrap();
    world.tree("dst").file("b", "longer");
    let run = world.run(["-H", "--out-format=%i %n%L", "src", "dst"]).ok();
    assert!(run.stdout.contains("hf.s") && run.stdout.contains(" b => a\n"), "{}", run.stdout);
}
