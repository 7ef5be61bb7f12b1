//! Destinations that fold names: names that differ in case, as on APFS, or in their Unicode form,
//! as on HFS+.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::fuse::{Quirks, Quirky};
use crate::watcher::{Direction, Watcher};
use crate::world::{Run, World, noise, wait_for};

const CASE: Quirks = Quirks { folds_case: true, cuts: false, decomposes: false };
const FORM: Quirks = Quirks { decomposes: true, cuts: false, folds_case: false };
const BOTH: Quirks = Quirks { folds_case: true, decomposes: true, cuts: false };
const NONE: Quirks = Quirks { folds_case: false, decomposes: false, cuts: false };

const NFC: &str = "caf\u{e9}";
const NFD: &str = "cafe\u{301}";

/// A world whose directory `m` is a filesystem with quirks.
fn world(quirks: Quirks) -> Option<(World, Quirky)> {
    let world = World::new();
    fs::create_dir(world.path("m")).unwrap();
    let mounted = Quirky::mounted(&world.path("m"), quirks)?;
    Some((world, mounted))
}

fn sync(world: &World) -> Run {
    world.run(["--delete", "src", "m/dst"])
}

/// The listed names of a directory, in order.
fn names(path: &Path) -> Vec<String> {
    let names = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let names = names.filter(|name| name.as_bytes() != b".ksync").map(|name| name.into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn rename(world: &World, from: &str, to: &str) {
    fs::rename(world.path(format!("src/{from}")), world.path(format!("src/{to}"))).unwrap();
}

fn fill(world: &World) {
    let tree = world.tree("src").file("readme", noise(1, 9000)).file("other", "x").link("link", "readme");
    tree.file("dir/sub/file", noise(2, 200_000)).file("dir/z", "z").dir("dir/empty").file("plain/f", "f");
}

/// Renames entries of every kind in case only, and gives a file another content.
fn rename_all(world: &World) {
    rename(world, "readme", "README");
    rename(world, "link", "Link");
    rename(world, "dir/sub/file", "dir/sub/File");
    rename(world, "dir/sub", "dir/SUB");
    rename(world, "dir", "Dir");
    fs::write(world.path("src/Dir/SUB/File"), noise(3, 200_100)).unwrap();
}

#[test]
fn a_change_of_case_reaches_the_destination() {
    for delete in [true, false] {
        for quirks in [CASE, NONE] {
            if quirks == NONE && !delete {
                continue;
            }
            let Some((world, _mounted)) = world(quirks) else { return };
            let run = |options: &[&str]| {
                let delete: &[&str] = if delete { &["--delete"] } else { &[] };
                world.run([delete, options, &["src", "m/dst"]].concat()).ok()
            };
            fill(&world);
            run(&[]);
            world.assert_same("src", "m/dst");
            rename_all(&world);
            if quirks == CASE {
                let listed = run(&["-n"]).stdout;
                assert!(listed.contains("adjust  README\n") && !listed.contains("delete"), "{listed}");
            }
            run(&[]);
            world.assert_same("src", "m/dst");
            assert_eq!(run(&[]).summary(), "nothing to do: 10 entries are in place");
        }
    }
}

#[test]
fn a_watch_follows_changes_of_case() {
    for direction in Direction::ALL {
        let Some((world, _mounted)) = world(CASE) else { return };
        fill(&world);
        let (near, endpoints) = match direction {
            Direction::Local => ("src", [OsString::from("src"), "m/dst".into()]),
            Direction::Up => ("src", ["src".into(), world.far("m/dst")]),
            Direction::Down => ("m/dst", [world.far("src"), "m/dst".into()]),
        };
        let mut command = world.ksync(["--watch", "--json", "--delete"]);
        command.args(endpoints);
        let watcher = Watcher::of(&world, near, command);
        watcher.event("ready");
        let follows = |path: &str, content: &[u8]| {
            let (directory, name) = path.rsplit_once('/').unwrap_or((".", path));
            let is_there = || {
                let directory = world.path("m/dst").join(directory);
                let is_shown = names(&directory).contains(&name.to_owned());
                let is_same = fs::read(directory.join(name)).is_ok_and(|is| is == content);
                (is_shown && is_same).then_some(())
            };
            wait_for(path, is_there);
        };
        rename(&world, "readme", "README");
        follows("README", &noise(1, 9000));
        assert_eq!(names(&world.path("m/dst")), ["README", "dir", "link", "other", "plain"]);
        fs::write(world.path("src/README"), "saved").unwrap();
        follows("README", b"saved");
        rename(&world, "plain", "PLAIN");
        follows("PLAIN/f", b"f");
        fs::write(world.path("src/PLAIN/f"), "in it").unwrap();
        follows("PLAIN/f", b"in it");
        fs::remove_file(world.path("src/other")).unwrap();
        fs::write(world.path("src/Other"), "made anew").unwrap();
        follows("Other", b"made anew");
        rename(&world, "dir/z", "dir/Z");
        follows("dir/Z", b"z");
        fs::remove_file(world.path("src/link")).unwrap();
        symlink("README", world.path("src/LINK")).unwrap();
        wait_for("the link", || names(&world.path("m/dst")).contains(&"LINK".to_owned()).then_some(()));
        // All these rounds are incremental.
        let rounds = watcher.events("round");
        assert!(rounds.len() >= 5 && rounds.iter().all(|round| round["whole"] == false), "{rounds:#?}");
        rename_all_but(&world);
        watcher.flush();
        world.assert_same("src", "m/dst");
        assert_eq!(watcher.events("warning"), [0; 0]);
    }
}

/// Renames the remaining entries.
fn rename_all_but(world: &World) {
    rename(world, "dir/sub/file", "dir/sub/File");
    rename(world, "dir", "DIR");
    rename(world, "DIR/sub", "DIR/Sub");
}

#[test]
fn one_of_two_twins_arrives_and_the_other_is_reported() {
    for (quirks, one, other) in [(CASE, "A", "a"), (FORM, NFD, NFC), (BOTH, "CAFE\u{301}", NFC)] {
        let Some((world, _mounted)) = world(quirks) else { return };
        let tree = world.tree("src").file(one, "first").file(other, "second").file("z", "z");
        tree.file(format!("d/{one}/x"), "x")
            .file(format!("d/{other}/y"), "y")
            .file(format!("d/{other}/x"), "2");
        let told = |run: Run| {
            let run = run.fails(23);
            let lines: Vec<_> = run.stderr.lines().filter(|line| line.contains("for one")).collect();
            assert_eq!(lines.len(), 2, "{}", run.stderr);
            run
        };
        let is_right = || {
            assert_eq!(fs::read(world.path("m/dst").join(one)).unwrap(), b"first");
            assert_eq!(names(&world.path("m/dst")), [one, "d", "z"]);
            assert_eq!(names(&world.path("m/dst/d")), [one]);
            assert_eq!(names(&world.path("m/dst/d").join(one)), ["x"]);
            assert_eq!(fs::read(world.path("m/dst/d").join(one).join("x")).unwrap(), b"x");
        };
        told(sync(&world));
        is_right();
        for _ in 0..2 {
            let run = told(world.run(["--delete", "--stats", "src", "m/dst"]));
            assert_eq!(run.stats().sent_bytes, 0);
            assert!(run.summary().starts_with("nothing changed"), "{}", run.stdout);
            is_right();
        }
        // A watch gets a save of a twin.
        let mut command = world.ksync(["--watch", "--json", "--delete"]);
        command.args(["src", "m/dst"]);
        let watcher = Watcher::of(&world, "src", command);
        watcher.event("ready");
        for round in 0..3 {
            fs::write(world.path("src").join(other), format!("second, {round}")).unwrap();
            fs::write(world.path("src/z"), format!("z {round}")).unwrap();
            let is_there =
                || fs::read(world.path("m/dst/z")).is_ok_and(|is| is == format!("z {round}").as_bytes());
            wait_for("the file beside it", || is_there().then_some(()));
            is_right();
        }
        watcher.flush();
        is_right();
        // When one twin is deleted, the other one arrives.
        fs::remove_file(world.path("src").join(one)).unwrap();
        watcher.flush();
        assert_eq!(fs::read(world.path("m/dst").join(other)).unwrap(), b"second, 2");
    }
}

#[test]
fn decomposed_names_at_the_destination_stay() {
    for quirks in [FORM, BOTH] {
        let Some((world, _mounted)) = world(quirks) else { return };
        let big = noise(5, 300_000);
        let tree = world.tree("src").file(NFC, "1").file(format!("{NFC}s/{NFC}"), &big).file("plain", "p");
        tree.link(format!("{NFC}-link"), NFC);
        sync(&world).ok();
        assert_eq!(names(&world.path("m/dst")), [NFD, &format!("{NFD}-link"), &format!("{NFD}s"), "plain"]);
        for _ in 0..2 {
            assert_eq!(sync(&world).ok().summary(), "nothing to do: 5 entries are in place");
        }
        let mut command = world.ksync(["--watch", "--json", "--delete"]);
        command.args(["src", "m/dst"]);
        let watcher = Watcher::of(&world, "src", command);
        watcher.event("ready");
        let follows = |name: String, content: Option<&[u8]>| {
            let path = world.path("m/dst").join(&name);
            wait_for(&name, || (fs::read(&path).ok().as_deref() == content).then_some(()));
        };
        for text in ["saved", "saved again"] {
            fs::write(world.path("src").join(NFC), text).unwrap();
            follows(NFC.to_owned(), Some(text.as_bytes()));
            fs::write(world.path(format!("src/{NFC}s/{NFC}")), text).unwrap();
            follows(format!("{NFC}s/{NFC}"), Some(text.as_bytes()));
        }
        // One full round learns a new name. The other rounds are incremental.
        fs::write(world.path("src").join(NFC), "known").unwrap();
        follows(NFC.to_owned(), Some(b"known"));
        let rounds = watcher.events("round");
        assert!(!rounds.is_empty() && rounds.iter().all(|round| round["whole"] == false), "{rounds:#?}");
        fs::remove_file(world.path("src").join(NFC)).unwrap();
        follows(NFC.to_owned(), None);
        watcher.flush();
        assert_eq!(
            names(&world.path("m/dst")),
            [format!("{NFD}-link"), format!("{NFD}s"), "plain".to_owned()]
        );
        drop(watcher);
        assert_eq!(sync(&world).ok().summary(), "nothing to do: 4 entries are in place");
    }
}

#[test]
fn twins_all_arrive_where_nothing_is_folded() {
    let Some((world, _mounted)) = world(NONE) else { return };
    world
        .tree("src")
        .file("A", "1")
        .file("a", "2")
        .file(NFC, "3")
        .file(NFD, "4")
        .file("D/x", "5")
        .file("d/x", "6");
    sync(&world).ok();
    world.assert_same("src", "m/dst");
    assert_eq!(sync(&world).ok().summary(), "nothing to do: 8 entries are in place");
}

#[test]
fn changes_of_case_with_swapped_names_or_kinds_converge() {
    let Some((world, _mounted)) = world(CASE) else { return };
    world.tree("src").file("one", "1").file("TWO", "2").file("was-file", "f").file("was-dir/x", "x");
    let mut command = world.ksync(["--watch", "--json", "--delete"]);
    command.args(["src", "m/dst"]);
    let watcher = Watcher::of(&world, "src", command);
    watcher.event("ready");
    let settled = || {
        let shown = || (names(&world.path("src")) == names(&world.path("m/dst"))).then_some(());
        wait_for("the names", shown);
        watcher.flush();
        world.assert_same("src", "m/dst");
    };
    // The entries swap their names, and each gets the other's case.
    for (from, to) in [("one", "aside"), ("TWO", "ONE"), ("aside", "two")] {
        rename(&world, from, to);
    }
    settled();
    fs::remove_file(world.path("src/was-file")).unwrap();
    world.tree("src").file("Was-File/in", "a directory now");
    fs::remove_dir_all(world.path("src/was-dir")).unwrap();
    world.tree("src").file("WAS-DIR", "a file now");
    settled();
    assert_eq!(watcher.events("warning"), [0; 0]);
}

#[test]
fn entries_that_rules_protect_are_not_renamed() {
    let Some((world, _mounted)) = world(CASE) else { return };
    world.tree("src").file("README", "wanted").file("Dir/f", "f");
    world.tree("m/dst").file("readme", "protected").file("dir/f", "f").file("dir/kept", "protected");
    let sync =
        || world.run(["--delete", "--yes", "--exclude", "/readme", "--exclude", "/dir/kept", "src", "m/dst"]);
    let run = sync().fails(23);
    assert_eq!(run.stderr.lines().filter(|line| line.contains("for one")).count(), 2, "{}", run.stderr);
    for (name, content) in [("readme", "protected"), ("dir/kept", "protected"), ("dir/f", "f")] {
        assert_eq!(fs::read_to_string(world.path("m/dst").join(name)).unwrap(), content);
    }
    sync().fails(23);
}

#[test]
fn a_folding_source_is_copied_with_its_listed_names() {
    let Some((world, _mounted)) = world(CASE) else { return };
    world.tree("m/src").file("readme", "1").file("dir/f", "2");
    let mut command = world.ksync(["--watch", "--json", "--delete"]);
    command.args(["m/src", "dst"]);
    let watcher = Watcher::of(&world, "m/src", command);
    watcher.event("ready");
    // The kernel does not rename between two names of one inode.
    for (from, to) in [("readme", "aside"), ("aside", "README"), ("dir", "aside"), ("aside", "DIR")] {
        fs::rename(world.path("m/src").join(from), world.path("m/src").join(to)).unwrap();
    }
    wait_for("the names", || (names(&world.path("dst")) == ["DIR", "README"]).then_some(()));
    fs::write(world.path("m/src/DIR/f"), "saved").unwrap();
    wait_for("a save", || (fs::read(world.path("dst/DIR/f")).ok()? == b"saved").then_some(()));
    watcher.flush();
    world.assert_same("m/src", "dst");
}
