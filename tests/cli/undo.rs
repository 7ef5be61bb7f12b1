//! `--undoable` and `ksync undo`: the tree of before comes back, and later edits stay.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;

use crate::plan::{Rng, grow};
use crate::world::skip::needs_programs;
use crate::world::{Run, World};

/// SOURCE, and a DEST that differs from it in all ways.
fn plant(world: &World) {
    world.tree("src").file("d/changed", "new content").file("same", "same").file("new/file", "x");
    world.tree("src").file("mode", "x").link("l", "a").file("kind", "a file").dir("flip").file("flip/x", "x");
    world.tree("dst").file("d/changed", "old").file("d/gone", "gone").file("same", "same");
    world
        .tree("dst")
        .file("mode", "x")
        .mode("mode", 0o600)
        .link("l", "b")
        .file("kind/below/f", "in a directory");
    world.tree("dst").file("flip", "was a file").time("same", 5, 0).time("", 77, 5);
}

fn ends(world: &World, is_up: bool) -> [OsString; 2] {
    ["src".into(), if is_up { world.far("dst") } else { "dst".into() }]
}

fn sync(world: &World, options: &[&str], is_up: bool) -> Run {
    let mut ksync = world.ksync(["--undoable", "--delete", "--yes"]);
    ksync.args(options).args(ends(world, is_up));
    Run::of(ksync)
}

/// The stored runs, the last one first.
fn runs(world: &World) -> Vec<String> {
    let run = world.run(["undo", "--list"]).ok();
    run.stdout.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn undo_makes_the_tree_of_before_again() {
    for is_up in [false, true] {
        let world = World::new();
        plant(&world);
        let before = world.snapshot("dst");
        let inode = fs::metadata(world.path("dst/d/gone")).unwrap().ino();
        let run = sync(&world, &[], is_up).ok();
        assert!(run.stderr.contains("ksync undo takes this run back"), "{}", run.stderr);
        world.assert_same("src", "dst");
        let listed = world.run(["undo", "--list", "--json"]).ok();
        let told: Value =
            serde_json::from_str(listed.stdout.lines().find(|line| line.contains("undo-run")).unwrap())
                .unwrap();
        assert_eq!((&told["files"], &told["bytes"]), (&4.into(), &(3 + 4 + 14 + 10).into()), "{told}");
        // A dry run shows it and changes nothing.
        let dry = world.run(["undo", "-ni"]).ok();
        assert!(dry.stdout.contains("*deleting   new/file"), "{}", dry.stdout);
        world.assert_same("src", "dst");
        let run = world.run(["undo", "-i"]).ok();
        assert_eq!(run.stdout.lines().count(), dry.stdout.lines().count(), "{}{}", run.stdout, dry.stdout);
        assert_eq!(world.snapshot("dst"), before, "{}", run.stdout);
        assert_eq!(fs::metadata(world.path("dst/d/gone")).unwrap().ino(), inode);
        assert!(!world.path("dst/.ksync").exists());
        assert!(runs(&world).is_empty());
        let run = world.run(["undo"]).fails(3);
        assert!(run.stderr.contains("keeps no run that can be undone"), "{}", run.stderr);
        // The next run does all of it again.
        sync(&world, &[], is_up).ok();
        world.assert_same("src", "dst");
    }
}

#[test]
fn undo_restores_what_was_written_over_in_place() {
    for is_up in [false, true] {
        let world = World::new();
        plant(&world);
        let before = world.snapshot("dst");
        let inode = || fs::metadata(world.path("dst/d/changed")).unwrap().ino();
        let old = inode();
        sync(&world, &["--inplace"], is_up).ok();
        assert_eq!(inode(), old, "the file was written in place");
        world.assert_same("src", "dst");
        world.run(["undo"]).ok();
        assert_eq!(world.snapshot("dst"), before);
    }
}

#[test]
fn undo_of_random_runs_restores_what_was() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let world = World::new();
        let names = &["a", "b", "c"];
        grow(&mut rng, names, world.tree("src"), "", 2);
        grow(&mut rng, names, world.tree("dst"), "", 2);
        world.tree("src").time("", 5_000_000, 0);
        let before = world.snapshot("dst");
        let options: &[&str] = match seed % 4 {
            0 => &[],
            1 => &["-c"],
            2 => &["--backup", "--backup-dir=../old"],
            _ => &["--no-delete"],
        };
        let run = sync(&world, options, seed % 5 == 0);
        assert!(matches!(run.status.code(), Some(0 | 23)), "seed {seed} {}", run.stderr);
        let had_changes = !run.stdout.contains("nothing ");
        world.run(["undo"]).fails(if had_changes { 0 } else { 3 });
        assert_eq!(world.snapshot("dst"), before, "seed {seed}");
    }
}

#[test]
fn later_edits_stay_and_are_reported() {
    for is_up in [false, true] {
        let world = World::new();
        plant(&world);
        sync(&world, &[], is_up).ok();
        world.tree("dst").file("new/file", "edited since").file("d/changed", "edited, too").file("own", "x");
        let run = world.run(["undo"]).fails(23);
        for name in ["new/file", "d/changed"] {
            let line = format!("dst/{name}, which changed in the meantime");
            assert!(run.stderr.contains(&line), "{}", run.stderr);
        }
        let read = |name: &str| fs::read_to_string(world.path("dst").join(name)).unwrap();
        assert_eq!((read("new/file"), read("d/changed")), ("edited since".into(), "edited, too".into()));
        assert_eq!(
            (read("d/gone"), read("own"), read("flip")),
            ("gone".into(), "x".into(), "was a file".into())
        );
        // The earlier content is still kept.
        assert_eq!(runs(&world).len(), 1);
    }
}

#[test]
fn stored_file_that_was_altered_is_not_restored() {
    let world = World::new();
    plant(&world);
    sync(&world, &[], false).ok();
    let store = world.path("dst/.ksync/undo").join(&runs(&world)[0]);
    assert_eq!(fs::metadata(&store).unwrap().mode() & 0o777, 0o700);
    let stored = fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path());
    let altered = stored.filter(|path| fs::read(path).is_ok_and(|content| content == b"gone"));
    for path in altered {
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, "gonE").unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    }
    let run = world.run(["undo"]).fails(23);
    assert!(run.stderr.contains("dst/d/gone"), "{}", run.stderr);
    assert!(!world.path("dst/d/gone").exists());
    assert_eq!(fs::read_to_string(world.path("dst/d/changed")).unwrap(), "old");
}

#[test]
fn undo_keeps_the_last_runs_and_takes_back_a_named_one() {
    let world = World::new();
    world.tree("src").file("a", "0");
    for number in 0..5 {
        world.tree("src").file("a", number.to_string()).time("a", number, 0);
        sync(&world, &["--undo-keep=3"], false).ok();
    }
    let kept = runs(&world);
    assert_eq!(kept.len(), 3);
    // A run that changes nothing is none.
    sync(&world, &[], false).ok();
    assert_eq!(runs(&world), kept);
    let read = || fs::read_to_string(world.path("dst/a")).unwrap();
    // An older run is not what is there now.
    world.run(["undo", &kept[1]]).fails(23);
    assert_eq!(read(), "4");
    world.run(["undo", "dst", &kept[0]]).ok();
    assert_eq!(read(), "3");
    world.run(["undo", &kept[1]]).ok();
    world.run(["undo", "dst"]).ok();
    assert_eq!((read().as_str(), runs(&world).len()), ("1", 0));
    for (args, exit) in
        [(&["undo", "dst", "7"][..], 3), (&["undo", "dst", "x"], 1), (&["undo", "nowhere"], 3)]
    {
        assert!(world.run(args).fails(exit).stderr.starts_with("ksync: "));
    }
    assert!(!world.path("nowhere").exists());
}

#[test]
fn stores_are_no_part_of_a_copy_and_not_followed_through_links() {
    let world = World::new();
    plant(&world);
    world.tree("out").file("canary", "untouched");
    sync(&world, &[], false).ok();
    world.run(["dst", "third"]).ok();
    assert!(!world.path("third/.ksync").exists());
    let store = world.path("dst/.ksync/undo");
    fs::rename(&store, world.path("moved")).unwrap();
    std::os::unix::fs::symlink(world.path("out"), &store).unwrap();
    world.tree("src").file("d/changed", "once more");
    let run = sync(&world, &[], false).fails(11);
    assert!(run.stderr.contains("undo"), "{}", run.stderr);
    world.run(["undo"]).fails(11);
    assert_eq!(fs::read_to_string(world.path("dst/d/changed")).unwrap(), "new content");
    assert_eq!(fs::read_dir(world.path("out")).unwrap().count(), 1);
}

#[test]
fn killed_run_can_be_undone_wherever_it_was_killed() {
    if !needs_programs(&["strace"]) {
        return;
    }
    const CALLS: [&str; 7] =
        ["renameat", "renameat2", "linkat", "unlinkat", "mkdirat", "utimensat", "fchmod"];
    let mut killed = 0;
    for call in CALLS {
        // strace counts the calls of each thread for itself.
        killed += (1..).take_while(|step| !survives(call, *step)).count();
    }
    assert!(killed > 15, "{killed}");
}

/// Kills a run at a system call, and undoes it. True if the run made fewer such calls.
fn survives(call: &str, step: usize) -> bool {
    let world = World::new();
    plant(&world);
    let mut before = world.snapshot("dst");
    let mut ksync = world.command("strace");
    ksync.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
    ksync.args(["-e", &format!("inject={call}:signal=KILL:when={step}")]);
    let plain = world.ksync(["--undoable", "--delete", "--yes", "src", "dst"]);
    ksync.arg(plain.get_program()).args(plain.get_args());
    let run = Run::of(ksync);
    if run.status.code() == Some(0) {
        return true;
    }
    let undo = world.run(["undo", "dst"]);
    let mut after = world.snapshot("dst");
    match undo.status.code() {
        Some(0) => {}
        // It was killed before its first change to an entry.
        Some(3) => [&mut before, &mut after].into_iter().for_each(|tree| drop(tree.remove(Path::new("")))),
        _ => panic!("{call} {step}: {}{}", undo.stdout, undo.stderr),
    }
    assert_eq!(after, before, "{call} {step}: {}", undo.stdout);
    false
}
