//! `--files-from`, beside rsync: the same trees and lists have the same end.
//!
//! Each case follows from its seed. `KSYNC_FILES_SEEDS` sets the number of seeds.
//!
//! ksync differs from rsync on purpose in these points, which no case contains:
//!
//! - A path with `/./` inside, which cuts it in rsync: ksync refuses it.
//! - `..` that leads out of SOURCE: rsync drops it, ksync refuses the list.
//! - `--delete` without `-r` and a listed `directory/`: rsync deletes what SOURCE does not have in
//!   it; ksync deletes nothing, since only a part of the tree is copied.
//! - `.` with `-r`: ksync copies all of SOURCE, and reports no other path that is missing.
//! - `--delete` with a listed path that is missing: ksync deletes nothing. The test passes such
//!   cases over.
//! - A path through a link to a directory: rsync follows the link, ksync does not.
//! - A directory of DEST that has the place of a listed file: ksync keeps it without `--delete`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::plan::Rng;
use crate::world::skip::{needs_programs, program};
use crate::world::{Run, Tree, World};

const NAMES: &[&str] = &["a", "b", "c d", "e"];

fn grow(rng: &mut Rng, mut tree: Tree, prefix: &str, depth: u64) -> Tree {
    for name in NAMES {
        let path = format!("{prefix}{name}");
        tree = match rng.below(6) {
            0..=1 => tree.file(&path, ["", "x", "yy"][rng.below(3) as usize]),
            2..=4 if depth > 0 => grow(rng, tree.dir(&path), &format!("{path}/"), depth - 1),
            2 => tree.dir(&path),
            3 => tree.link(&path, "nowhere"),
            _ => continue,
        };
        tree = tree.time(&path, 1_000_000 + rng.below(1000) as i64, 0);
    }
    tree
}

/// Kind, content and time of each entry below the root.
fn seen(root: &Path) -> BTreeMap<PathBuf, String> {
    let walk = walkdir::WalkDir::new(root).min_depth(1).into_iter();
    let walk = walk.filter_entry(|entry| entry.file_name() != ".ksync").filter_map(Result::ok);
    let shown = walk.map(|entry| {
        let meta = entry.path().symlink_metadata().unwrap();
        let what = if meta.is_dir() {
            "a directory".to_owned()
        } else if meta.is_symlink() {
            format!("a link to {:?}", fs::read_link(entry.path()).unwrap())
        } else {
            format!("{:?}", fs::read_to_string(entry.path()).unwrap())
        };
        (entry.path().strip_prefix(root).unwrap().to_owned(), format!("{what} {}", meta.mtime()))
    });
    shown.collect()
}

/// A list of paths, some of which exist, and as many as a tree of these names has.
fn list(rng: &mut Rng, end: &str) -> String {
    let line = |rng: &mut Rng| {
        let depth = 1 + rng.below(3);
        let names: Vec<_> = (0..depth).map(|_| NAMES[rng.below(NAMES.len() as u64) as usize]).collect();
        let path = names.join("/");
        match rng.below(12) {
            0 => format!("/{path}"),
            1 => format!("./{path}"),
            2..=3 => format!("{path}/"),
            4 => format!("{path}/."),
            5 => format!("{path}/../a"),
            6 => format!("{path}//b"),
            7 if rng.below(4) == 0 => ".".to_owned(),
            8 => format!("#{path}"),
            _ => path,
        }
    };
    (0..=rng.below(5)).map(|_| line(rng) + end).collect()
}

fn check(world: &World, seed: u64) {
    let mut rng = Rng::new(seed + 1);
    let [source, ours, theirs] = ["src", "ours", "theirs"].map(|name| format!("{seed}/{name}"));
    grow(&mut rng, world.tree(&source), "", 2);
    let mut there = rng.clone();
    for destination in [&ours, &theirs] {
        there = rng.clone();
        grow(&mut there, world.tree(destination), "", 2);
    }
    let mut rng = there;
    for (path, _) in seen(&world.path(&source)) {
        let is_directory = |path: PathBuf| path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
        if !is_directory(world.path(&source).join(&path)) {
            for destination in [&ours, &theirs] {
                let old = world.path(destination).join(&path);
                if is_directory(old.clone()) {
                    fs::remove_dir_all(old).unwrap();
                }
            }
        }
    }
    // The removals touched directories.
    for destination in [&ours, &theirs] {
        for (path, _) in seen(&world.path(destination)) {
            if world.path(destination).join(&path).is_dir() {
                world.tree(destination).time(path.to_str().unwrap(), 2_000_000, 0);
            }
        }
    }
    let mut options = vec![["-a", "-ar"][rng.below(2) as usize]];
    let nul_ended = rng.below(3) == 0;
    options.extend(nul_ended.then_some("-0"));
    options.extend((rng.below(3) == 0).then_some("--exclude=b"));
    options.extend((rng.below(3) == 0 && options[0] == "-ar").then_some("--delete"));
    let text = list(&mut rng, if nul_ended { "\0" } else { "\n" });
    if options[0] == "-ar" && text.split(['\n', '\0']).any(|line| line == ".") {
        return;
    }
    let file = world.path(format!("{seed}/list"));
    fs::write(&file, &text).unwrap();
    let from = format!("--files-from={}", file.display());
    let mut rsync = Command::new(program("rsync").unwrap());
    rsync.args(&options).arg(&from).arg(world.path(&source)).arg(world.path(&theirs));
    let theirs_ran = Run::of(rsync);
    let mut ksync = world.ksync(["--yes", "--links"]);
    ksync.args(&options).arg(&from);
    match seed % 4 {
        0 => ksync.arg(&source).arg(world.far(&ours)),
        1 => ksync.arg(world.far(&source)).arg(&ours),
        _ => ksync.arg(&source).arg(&ours),
    };
    let ours_ran = Run::of(ksync);
    let is_missing = ours_ran.stderr.contains(": it does not exist");
    if options.contains(&"--delete") && is_missing && ours_ran.status.code() == Some(23) {
        return;
    }
    let (ours_seen, theirs_seen) = (seen(&world.path(&ours)), seen(&world.path(&theirs)));
    let paths: BTreeSet<_> = ours_seen.keys().chain(theirs_seen.keys()).collect();
    let differing: Vec<_> = paths
        .into_iter()
        .filter(|path| ours_seen.get(*path) != theirs_seen.get(*path))
        .map(|path| format!("{path:?}: {:?}, rsync {:?}", ours_seen.get(path), theirs_seen.get(path)))
        .collect();
    let ends = (ours_ran.status.code(), theirs_ran.status.code());
    assert!(
        differing.is_empty() && ends.0 == ends.1,
        "seed {seed}: {options:?} {text:?} {ends:?}\n{}\n{}\n{}\nsource {:#?}",
        differing.join("\n"),
        ours_ran.stderr,
        theirs_ran.stderr,
        seen(&world.path(&source))
    );
    fs::remove_dir_all(world.path(seed.to_string())).unwrap();
}

#[test]
fn listed_files_arrive_as_with_rsync() {
    if !needs_programs(&["rsync"]) {
        return;
    }
    let world = World::new();
    let seeds = std::env::var("KSYNC_FILES_SEEDS").map_or(60, |text| text.parse::<u64>().unwrap());
    for seed in 0..seeds {
        check(&world, seed);
    }
}

#[test]
fn relative_sources_arrive_as_with_rsync() {
    if !needs_programs(&["rsync"]) {
        return;
    }
    let world = World::new();
    let seeds = std::env::var("KSYNC_FILES_SEEDS").map_or(30, |text| text.parse::<u64>().unwrap());
    for seed in 0..seeds {
        let mut rng = Rng::new(seed + 1);
        let [top, ours, theirs] = ["top", "ours", "theirs"].map(|name| format!("{seed}/{name}"));
        grow(&mut rng, world.tree(format!("{top}/s")), "", 2);
        for destination in [&ours, &theirs] {
            world.tree(destination).file("extra", "x").file("s/extra", "x");
            for name in NAMES {
                for (prefix, source) in [("", "s/"), ("s/", "s/")] {
                    let is_dir = world.path(format!("{top}/{source}{name}")).is_dir();
                    let kept =
                        if is_dir { format!("{prefix}{name}/extra") } else { format!("{prefix}x-{name}") };
                    world.tree(destination).file(kept, "x");
                }
            }
        }
        let source = |rng: &mut Rng| {
            let names: Vec<_> =
                (0..1 + rng.below(2)).map(|_| NAMES[rng.below(NAMES.len() as u64) as usize]).collect();
            let rest = names.join("/");
            match rng.below(4) {
                0 => format!("s/{rest}"),
                1 => format!("./s//{rest}/"),
                2 => format!("s/./{rest}"),
                _ => format!("s/../s/./{rest}/."),
            }
        };
        let sources: BTreeSet<String> = (0..=rng.below(3)).map(|_| source(&mut rng)).collect();
        let is_there = |source: &&String| world.path(format!("{top}/{source}")).symlink_metadata().is_ok();
        let sources: Vec<&String> = sources.iter().filter(is_there).collect();
        // rsync follows a link whose name ends in a slash.
        let is_link = |source: &&String| {
            let plain = source.trim_end_matches('.').trim_end_matches('/');
            world.path(format!("{top}/{plain}")).is_symlink()
        };
        if sources.is_empty() || sources.iter().any(is_link) {
            continue;
        }
        let delete = (rng.below(2) == 0).then_some("--delete");
        let mut rsync = Command::new(program("rsync").unwrap());
        rsync.arg("-aR").args(delete).args(&sources).arg("../theirs").current_dir(world.path(&top));
        Run::of(rsync).ok();
        let mut ksync = world.ksync(["--yes", "--links", "-aR"]);
        ksync.args(delete).current_dir(world.path(&top)).args(&sources);
        Run::of(if seed % 3 == 0 {
            ksync.arg(world.far(&ours));
            ksync
        } else {
            ksync.arg("../ours");
            ksync
        })
        .ok();
        let kinds = |name: &str| {
            let seen = seen(&world.path(name)).into_iter();
            seen.map(|(path, what)| (path, what.rsplit_once(' ').unwrap().0.to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(kinds(&ours), kinds(&theirs), "seed {seed}: {sources:?} {delete:?}");
    }
}

#[test]
fn relative_sources_come_from_several_directories_and_from_afar() {
    let world = World::new();
    world.tree("src").file("a/b/f", "1").file("a/other", "2").file("c/g", "3");
    world.tree("more").file("x/y", "4");
    world.run(["-R", "src/./a/b", "src/./c", "more/x/y", "dst"]).ok();
    let run = world.run(["-R", "src/a", "src/a/in"]).fails(1);
    assert!(run.stderr.contains("one lies in the other"), "{}", run.stderr);
    let there = |name: &str| world.path("dst").join(name).exists();
    assert!(there("a/b/f") && there("c/g") && there("more/x/y") && !there("a/other"));
    let far = |path: &str| {
        let mut far = world.far("src");
        far.push(path);
        far
    };
    world.run(["-R".into(), far("/./a/b"), far("/./c/g"), "down".into()]).ok();
    assert!(world.path("down/a/b/f").exists() && world.path("down/c/g").exists());
    assert!(!world.path("down/a/other").exists());
}

#[test]
fn listed_files_that_cannot_be_copied_are_told_by_name() {
    let world = World::new();
    world.tree("src").file("a", "x").file("d/b", "y");
    world.tree(".").file("list", "a\nmissing\nd/b/c\n");
    world.tree("dst").file("missing", "old");
    for way in [["src".into(), world.far("dst")], [world.far("src"), "dst".into()]] {
        let mut ksync = world.ksync(["--files-from=list", "-r", "--delete", "--yes"]);
        ksync.args(way);
        let run = Run::of(ksync);
        assert_eq!(run.status.code(), Some(23), "{}", run.stderr);
        assert!(run.stderr.contains("missing: it does not exist"), "{}", run.stderr);
        assert!(run.stderr.contains("d/b/c"), "{}", run.stderr);
        assert!(world.path("dst/a").exists() && world.path("dst/missing").exists());
        assert!(!world.path("dst/d/b").exists(), "only what is listed");
    }
}

#[test]
fn lists_that_ksync_does_not_read_are_refused() {
    let world = World::new();
    world.tree("src").file("a", "x");
    world.tree(".").file("list", "a\n").file("out", "a\n../b\n");
    for (arguments, said) in [
        (
            &["--files-from=host:list", "src", "dst"][..],
            "--files-from host:list names a file on another machine",
        ),
        (&["--files-from=out", "src", "dst"], "out: line 2: ../b leads out of SOURCE"),
        (
            &["--files-from=list", "src/a", "dst"],
            "src/a is a file, and --files-from lists entries of a directory",
        ),
        (&["--files-from=list", "-w", "src", "dst"], "--watch and --files-from exclude each other"),
        (&["--files-from=list", "src", "other", "dst"], "--files-from takes one SOURCE"),
        (&["-R", "-w", "src", "dst"], "--watch and --relative exclude each other"),
        (&["-R", "../src", "dst"], "../src leads out of the directory that it is relative to"),
    ] {
        let run = world.run(arguments).fails(1);
        assert!(run.stderr.starts_with(&format!("ksync: {said}")), "{}", run.stderr);
    }
    assert!(!world.path("dst").exists());
    let run = world.run(["--files-from=missing", "src", "dst"]).fails(1);
    assert_eq!(run.stderr, "ksync: cannot read missing: no such file or directory\n");
}
