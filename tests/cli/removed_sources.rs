//! `--remove-source-files`, beside rsync: the same start has the same end on both sides.
//!
//! ksync differs from rsync on purpose in these points, which no case contains:
//!
//! - rsync removes a file as soon as its copy is there. ksync removes all at the end, when DEST is
//!   complete and on the disk (`--fsync`), and each copy was looked at once more.
//! - Special files with `-D`: ksync leaves them in SOURCE.
//! - A copy whose mode, time or owner was refused: ksync keeps the original.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::world::skip::needs_programs;
use crate::world::{Run, World};

/// The paths below a directory.
fn names(root: &Path) -> BTreeSet<PathBuf> {
    let walk = walkdir::WalkDir::new(root).min_depth(1).into_iter();
    let walk = walk.filter_entry(|entry| entry.file_name() != ".ksync").filter_map(Result::ok);
    walk.map(|entry| entry.path().strip_prefix(root).unwrap().to_owned()).collect()
}

/// A source with entries that are new, the same, older, newer and too long in the destination.
fn plant(world: &World, source: &str, destination: &str) {
    let tree = world.tree(source).file("new", "n").file("d/e/deep", "deep").link("link", "new").dir("empty");
    let tree = tree.file("same", "s").file("older", "1").file("changed", "after").file("long", "0123456789");
    let tree = tree.file("obj/x.o", "x").time("same", 1_000_000, 0).time("older", 1_000_000, 0);
    fs::hard_link(world.path(format!("{source}/new")), world.path(format!("{source}/new-2"))).unwrap();
    drop(tree.time("changed", 2_000_000, 0));
    let tree = world.tree(destination).file("same", "s").file("older", "22").file("changed", "before");
    tree.time("same", 1_000_000, 0).time("older", 3_000_000, 0).time("changed", 1_000_000, 0);
}

#[test]
fn sources_are_removed_as_rsync_removes_them() {
    if !needs_programs(&["rsync"]) {
        return;
    }
    for options in [
        &[][..],
        &["-u"],
        &["--existing"],
        &["--ignore-existing"],
        &["--max-size=5", "--exclude=*.o"],
        &["-H", "--delete", "--yes"],
        &["--no-links"],
        &["-c"],
        &["-n"],
    ] {
        let world = World::new();
        plant(&world, "rs", "rd");
        let mut rsync = world.command("rsync");
        rsync.args(["-a", "--remove-source-files"]);
        rsync.args(options.iter().filter(|option| **option != "--yes")).args(["rs/", "rd"]);
        Run::of(rsync).ok();
        for (way, [source, destination]) in [
            ("up", ["src".into(), world.far("up")]),
            ("down", [world.far("src"), "down".into()]),
            ("dst", ["src".into(), "dst".into()]),
        ] {
            let _ = fs::remove_dir_all(world.path("src"));
            plant(&world, "src", way);
            let mut ksync = world.ksync(["--remove-source-files", "--links"]);
            ksync.args(options).args([source, destination]);
            let run = Run::of(ksync).ok();
            assert_eq!(names(&world.path("src")), names(&world.path("rs")), "{options:?} {}", run.stderr);
            assert_eq!(names(&world.path(way)), names(&world.path("rd")), "{options:?} {}", run.stderr);
        }
    }
}

#[test]
fn several_sources_and_a_single_file_are_removed_by_their_names() {
    let world = World::new();
    world.tree("a").file("f", "1");
    world.tree("b").file("g", "2");
    world.tree(".").file("one", "3").file("two", "4");
    world.run(["--remove-source-files", "a", "b", "one", "dst"]).ok();
    assert!(names(&world.path("a")).is_empty() && names(&world.path("b")).is_empty());
    assert!(!world.path("one").exists() && world.path("dst/one").exists() && world.path("dst/a/f").exists());
    world.run(["--remove-source-files", "two", "dst/"]).ok();
    assert!(!world.path("two").exists() && world.path("dst/two").exists());
}

#[test]
fn removed_sources_are_listed_in_words_and_in_json_and_not_itemized() {
    let world = World::new();
    let run = |args: &[&str]| {
        world.tree("src").file("a", "x");
        world.run([&["--remove-source-files"], args, &["src", "dst"]].concat()).ok().stdout
    };
    assert!(run(&["-v"]).contains("remove   a from SOURCE\n"));
    assert!(!run(&["-i"]).contains("SOURCE"));
    assert!(
        run(&["--json"]).contains("\"event\":\"source-removed\",\"path\":\"a\"")
            || run(&["--json"]).contains("source-removed")
    );
    let shown = run(&["-n", "-v"]);
    assert!(world.path("src/a").exists() && shown.contains("remove   a from SOURCE\n"), "{shown}");
}

#[test]
fn a_file_that_is_its_own_copy_stays() {
    let world = World::new();
    world.tree("dst").file("d/f", "precious");
    world.tree("src").file("g", "x").link("d", "../dst/d");
    let run = world.run(["-k", "--remove-source-files", "src", "dst"]).fails(23);
    let told = "ksync: cannot remove src/d/f, which stays: DEST has this very file, and no copy of it\n";
    assert!(run.stderr.contains(told), "{}", run.stderr);
    assert_eq!(fs::read(world.path("dst/d/f")).unwrap(), b"precious");
    assert!(!world.path("src/g").exists() && world.path("dst/g").exists());
}

#[test]
fn a_link_in_the_place_of_a_source_directory_is_not_followed_to_remove() {
    let world = World::new();
    world.tree("outside").file("f", "x").time("f", 1_000_000, 0);
    world.tree("src").file("a", "y");
    symlink("../outside", world.path("src/d")).unwrap();
    world.run(["--remove-source-files", "src", "dst"]).ok();
    assert!(world.path("outside/f").exists() && names(&world.path("src")).is_empty());
}

#[test]
fn a_watch_removes_no_sources() {
    let world = World::new();
    world.tree("src").file("a", "x");
    let run = world.run(["-w", "--remove-source-files", "src", "dst"]).fails(1);
    assert!(
        run.stderr.starts_with("ksync: --watch and --remove-source-files exclude each other"),
        "{}",
        run.stderr
    );
    assert!(world.path("src/a").exists());
}
