//! Links that are followed, excluded or copied, beside rsync: the same start has the same end.
//!
//! Each case follows from its seed and its options, and a failure prints both. `KSYNC_LINKS_SEEDS`
//! sets the number of seeds for each set of options.
//!
//! ksync differs from rsync on purpose in these points, which no case contains:
//!
//! - A link to a directory above itself. rsync copies the tree into itself, forty levels deep,
//!   until the system refuses; ksync reports the link (23) and does not enter it.
//! - `--delete` where an entry cannot be read. rsync deletes in directories that it listed before
//!   it met the entry; ksync deletes nothing. No case with `--delete` has a link to nowhere.
//! - `--watch`, which rsync has not: a watch that follows links polls.
//! - A safe target that ends in `/..`, as in `../..`: rsync takes it for unsafe, ksync counts.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::plan::Rng;
use crate::world::skip::{needs_programs, program};
use crate::world::{Run, Tree, World};

const NAMES: &[&str] = &["a", "b", "c.x", "d", "e"];

const OPTIONS: &[&[&str]] = &[
    &["-L"],
    &["-L", "--delete"],
    &["-L", "--exclude=b"],
    &["-L", "--exclude=b/", "--delete"],
    &["-L", "--no-links"],
    &["-L", "--safe-links"],
    &["-L", "-c"],
    &["-k"],
    &["-k", "--delete", "--exclude=/a/"],
    &["-k", "--safe-links"],
    &["-k", "--no-links", "--delete"],
    &["--copy-unsafe-links"],
    &["--copy-unsafe-links", "--safe-links", "--delete"],
    &["--copy-unsafe-links", "-k"],
    &["--copy-unsafe-links", "--no-links"],
    &["--safe-links", "--delete"],
    &["--no-links"],
    &["--no-l", "--delete"],
];

/// A tree of files, directories and links: into the tree, out of it, to nowhere, never upwards.
fn grow(rng: &mut Rng, mut tree: Tree, prefix: &str, depth: u64, dangles: bool) -> Tree {
    for (at, name) in NAMES.iter().enumerate() {
        let path = format!("{prefix}{name}");
        let up = "../".repeat(prefix.matches('/').count());
        tree = match rng.below(9) {
            0..=2 => tree.file(&path, ["", "x", "yy"][rng.below(3) as usize]),
            3 | 4 if depth > 0 => grow(rng, tree.dir(&path), &format!("{path}/"), depth - 1, dangles),
            3 => tree.dir(&path),
            5..=7 => {
                // Only to later names, so that no link leads to a directory above itself.
                let later = NAMES.get(at + 1 + rng.below(2) as usize).filter(|_| dangles);
                let later = later.copied().unwrap_or("zero");
                let target = match rng.below(7) {
                    0 if dangles => "nowhere".to_owned(),
                    1 if dangles => "/no/such/place".to_owned(),
                    0..=2 => format!("{up}../out/file"),
                    3 => format!("{up}../out/dir"),
                    4 => "/etc/passwd".to_owned(),
                    5 => format!("./{later}"),
                    _ => later.to_owned(),
                };
                tree.link(&path, target)
            }
            _ => continue,
        };
        tree = tree.time(&path, 1_000_000 + rng.below(4) as i64, 0);
    }
    // Referent of links without another target.
    tree.file(format!("{prefix}zero"), "0").time(format!("{prefix}zero"), 1_000_000, 0)
}

/// Kind, content, mode and time of each entry.
fn seen(root: &Path) -> BTreeMap<PathBuf, String> {
    let walk = walkdir::WalkDir::new(root).min_depth(1).into_iter();
    let walk = walk.filter_entry(|entry| entry.file_name() != ".ksync").filter_map(Result::ok);
    let shown = walk.map(|entry| {
        let meta = entry.path().symlink_metadata().unwrap();
        let kind = if meta.is_dir() {
            "directory".to_owned()
        } else if meta.is_symlink() {
            format!("link to {:?}", fs::read_link(entry.path()).unwrap())
        } else {
            format!("file {:?}", fs::read_to_string(entry.path()).unwrap())
        };
        let path = entry.path().strip_prefix(root).unwrap().to_owned();
        (path, format!("{kind} {:o} {}", meta.mode(), meta.mtime()))
    });
    shown.collect()
}

/// Removes what of a destination has another shape than SOURCE in a way that needs `--force`.
fn flatten(world: &World, name: &str) {
    for (path, _) in seen(&world.path(name)) {
        let path = world.path(name).join(path);
        if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            fs::remove_dir_all(path).unwrap();
        }
    }
}

fn check(world: &World, seed: u64, options: &[&str]) {
    let [source, ours, theirs] = ["src", "ours", "theirs"].map(|name| format!("{seed}/{name}"));
    let mut rng = Rng::new(seed + 1);
    let outside = world.tree(format!("{seed}/out"));
    outside.file("file", "outside").file("dir/f", "deep").file("dir/sub/g", "z").link("dir/l", "f");
    let dangles = !options.contains(&"--delete");
    grow(&mut rng, world.tree(&source), "", 2, dangles).time("", 1_000_000, 0);
    for destination in [&ours, &theirs] {
        grow(&mut rng.clone(), world.tree(destination), "", 1, true);
        flatten(world, destination);
        world.tree(destination).time("", 1_000_000, 0);
    }
    let mut rsync = Command::new(program("rsync").unwrap());
    rsync.arg("-a").args(options).arg(world.path(format!("{source}/"))).arg(world.path(&theirs));
    let theirs_ran = Run::of(rsync);
    let mut ksync = world.ksync(["--yes", "-a", "--links"]);
    ksync.args(options);
    match seed % 4 {
        0 => ksync.arg(&source).arg(world.far(&ours)),
        1 => ksync.arg(world.far(&source)).arg(&ours),
        _ => ksync.arg(&source).arg(&ours),
    };
    let ours_ran = Run::of(ksync);
    let (ours_seen, theirs_seen) = (seen(&world.path(&ours)), seen(&world.path(&theirs)));
    let paths: std::collections::BTreeSet<_> = ours_seen.keys().chain(theirs_seen.keys()).collect();
    let differing: Vec<_> = paths
        .into_iter()
        .filter(|path| ours_seen.get(*path) != theirs_seen.get(*path))
        .map(|path| format!("{path:?}: {:?}, rsync {:?}", ours_seen.get(path), theirs_seen.get(path)))
        .collect();
    let ends = (ours_ran.status.code(), theirs_ran.status.code());
    assert!(
        differing.is_empty() && ends.0 == ends.1,
        "seed {seed}: {options:?} {ends:?}\n{}\n{}\n{}\nsource {:#?}",
        differing.join("\n"),
        ours_ran.stderr,
        theirs_ran.stderr,
        seen(&world.path(&source))
    );
    fs::remove_dir_all(world.path(seed.to_string())).unwrap();
}

#[test]
fn followed_and_excluded_links_end_as_with_rsync() {
    if !needs_programs(&["rsync"]) {
        return;
    }
    let world = World::new();
    let seeds = std::env::var("KSYNC_LINKS_SEEDS").map_or(4, |text| text.parse::<u64>().unwrap());
    for (set, options) in (0..).zip(OPTIONS) {
        for seed in 0..seeds {
            check(&world, set * 1_000_000 + seed, options);
        }
    }
}

/// A source with a link of each kind.
fn plant(world: &World) {
    world.tree("out").file("file", "outside").file("dir/f", "deep");
    let tree = world.tree("src").file("f", "text").file("d/g", "g");
    tree.link("file", "f").link("dir", "d").link("file-out", "../out/file").link("dir-out", "../out/dir");
}

#[test]
fn a_second_run_with_followed_links_finds_nothing_to_do() {
    let world = World::new();
    plant(&world);
    for options in ["-L", "-k", "--copy-unsafe-links"] {
        for (source, destination) in [("src".into(), world.far("up")), (world.far("src"), "down".into())] {
            let options = [options, "--delete", "--yes", "--links"];
            let run = |world: &World| {
                let mut ksync = world.ksync(options);
                ksync.args([&source, &destination]);
                Run::of(ksync).ok()
            };
            run(&world);
            let again = run(&world);
            assert!(again.summary().contains("nothing to do"), "{options:?}: {}", again.stderr);
        }
    }
    assert!(world.path("out/dir/f").exists() && world.path("src/dir").is_symlink());
}

#[test]
fn a_link_to_a_directory_above_itself_is_reported_and_not_entered() {
    let world = World::new();
    world.tree("src").file("d/f", "x").link("d/up", "..").link("d/self", "self").link("around", "../src");
    world.tree("dst").file("old", "kept");
    let run = world.run(["-L", "--delete", "--yes", "src", "dst"]).fails(23);
    for name in ["d/up", "d/self", "around"] {
        let told =
            format!("ksync: cannot read src/{name}: it leads back to itself or to a directory above it\n");
        assert_eq!(run.stderr.matches(&told).count(), 1, "{}", run.stderr);
        assert!(world.path("dst").join(name).symlink_metadata().is_err());
    }
    assert!(world.path("dst/d/f").exists() && world.path("dst/old").exists(), "{}", run.stderr);
}

#[test]
fn a_link_to_nowhere_is_told_once_and_stops_only_itself_and_deletions() {
    let world = World::new();
    world.tree("src").file("a", "x").link("gone", "nowhere").link("z", "a");
    world.tree("dst").file("gone", "kept").file("old", "kept");
    let run = world.run(["-L", "--delete", "--yes", "src", "dst"]).fails(23);
    let told = "ksync: cannot read src/gone: it is a link to nowhere\n";
    assert_eq!(run.stderr.matches(told).count(), 1, "{}", run.stderr);
    assert_eq!(fs::read(world.path("dst/z")).unwrap(), b"x");
    assert!(world.path("dst/gone").exists() && world.path("dst/old").exists());
}

#[test]
fn links_are_followed_only_where_the_command_line_says_so() {
    let world = World::new();
    plant(&world);
    world.tree("here").file(".ksync.toml", "copy-links = true\n").link("out", "../out/file");
    let mut ksync = world.ksync([".", "../dst"]);
    ksync.current_dir(world.path("here"));
    let run = Run::of(ksync).fails(1);
    assert!(run.stderr.contains("copy-links"), "{}", run.stderr);
    world.run(["src", "plain"]).ok();
    world.assert_same("src", "plain");
}

#[test]
fn a_link_that_is_not_copied_keeps_what_dest_has_under_its_name() {
    let world = World::new();
    world.tree("src").file("a", "x").link("l", "a").link("m", "a");
    world.tree("dst").file("l", "kept");
    for destination in ["dst".into(), world.far("dst")] {
        let run =
            world.run(["--no-links".into(), "--delete".into(), "--yes".into(), "src".into(), destination]);
        assert!(
            run.stderr.contains("ksync: skipping non-regular 2 files, the first is \"l\"\n"),
            "{}",
            run.stderr
        );
        assert_eq!(fs::read(world.path("dst/l")).unwrap(), b"kept");
        assert!(world.path("dst/m").symlink_metadata().is_err());
    }
}
