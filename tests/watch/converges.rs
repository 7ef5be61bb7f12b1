//! Convergence: whatever happens in the source, the destination finally equals it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::watcher::{Direction, Watcher, is_there, run};
use crate::world::{World, noise, wait_for};

/// Runs `story` for each direction, with a watch with `--delete` that is ready.
fn each_direction(story: impl Fn(&World, &Watcher<'_>)) {
    for direction in Direction::ALL {
        let world = World::new();
        world.tree("src").with_everything();
        let watcher = Watcher::ready(&world, direction, &["--delete"]);
        story(&world, &watcher);
        watcher.is_there();
    }
}

/// Waits without a flush until the destination equals the source: by events alone.
#[track_caller]
fn follows(world: &World) {
    let listing = |name: &str| listing(&world.path(name));
    wait_for("the destination to follow", || (listing("src")? == listing("dst")?).then_some(()));
    // A listing takes a while. It may have read a directory's time before a file in it was
    // replaced, and the file afterwards.
    wait_for("the round to end", || (listing("src")? == listing("dst")?).then_some(()));
    world.assert_same("src", "dst");
}

/// Names, kinds, sizes, modes and times; `None` if an entry vanishes meanwhile.
fn listing(root: &Path) -> Option<BTreeMap<PathBuf, (u32, u64, i64, i64)>> {
    let walk = walkdir::WalkDir::new(root).into_iter().filter_entry(|entry| entry.file_name() != ".ksync");
    walk.map(|entry| {
        let entry = entry.ok()?;
        let meta = entry.path().symlink_metadata().ok()?;
        let size = if meta.is_dir() { 0 } else { meta.len() };
        let path = entry.path().strip_prefix(root).ok()?.to_owned();
        Some((path, (meta.mode(), size, meta.mtime(), meta.mtime_nsec())))
    })
    .collect()
}

#[test]
fn directories_filled_at_once_arrive() {
    each_direction(|world, _| {
        for number in 0..20 {
            let name = format!("new-{number}/a/b/c/d");
            world.tree("src").file(format!("{name}/deep"), "x").file(format!("new-{number}/a/file"), "y");
        }
        follows(world);
        // All new directories are watched by now, the deepest too.
        for number in 0..20 {
            fs::write(world.path(format!("src/new-{number}/a/b/c/d/deep")), format!("again {number}"))
                .unwrap();
        }
        follows(world);
    });
}

#[test]
fn directories_that_come_go_and_are_renamed_converge() {
    each_direction(|world, _| {
        world.tree("outside/in").file("sub/file", "came").link("sub/link", "file");
        fs::rename(world.path("outside/in"), world.path("src/in")).unwrap();
        follows(world);
        fs::write(world.path("src/in/sub/file"), "came, then changed").unwrap();
        follows(world);
        fs::rename(world.path("src/in"), world.path("src/nothing/moved")).unwrap();
        follows(world);
        fs::write(world.path("src/nothing/moved/sub/file"), "changed under another name").unwrap();
        follows(world);
        fs::rename(world.path("src/nothing/moved"), world.path("outside/out")).unwrap();
        follows(world);
        // Changes in the moved directory no longer matter; entries that take its old path do.
        fs::write(world.path("outside/out/sub/file"), "far away").unwrap();
        world.tree("src/nothing/moved").file("sub/file", "another");
        follows(world);
        fs::remove_dir_all(world.path("src/nothing/moved")).unwrap();
        world.tree("src").file("nothing/moved", "a file now");
        follows(world);
        // Two directories swap names.
        for (from, to) in [("src", "swap"), ("nothing", "src"), ("swap", "nothing")] {
            fs::rename(world.path(format!("src/{from}")), world.path(format!("src/{to}"))).unwrap();
        }
        world.tree("src").file("nothing/main.rs", "// after the change").file("src/x", "x");
        follows(world);
    });
}

#[test]
fn saves_of_common_editors_arrive() {
    each_direction(|world, watcher| {
        let path = |name: &str| world.path(format!("src/src/{name}"));
        for round in 0..5 {
            let text = format!("fn main() {{ {round} }}\n");
            // Vim: a swap file comes and goes, the old file becomes a backup, a new file appears.
            fs::write(path(".main.rs.swp"), "swap").unwrap();
            fs::write(path("4913"), "").unwrap();
            fs::remove_file(path("4913")).unwrap();
            fs::rename(path("main.rs"), path("main.rs~")).unwrap();
            fs::write(path("main.rs"), &text).unwrap();
            fs::remove_file(path("main.rs~")).unwrap();
            fs::remove_file(path(".main.rs.swp")).unwrap();
            // Other editors rename a temporary file over the old one.
            fs::write(path("other.tmp"), &text).unwrap();
            fs::rename(path("other.tmp"), path("other.rs")).unwrap();
            // Others truncate and write the file.
            fs::write(path("third.rs"), &text).unwrap();
            follows(world);
            assert_eq!(fs::read_to_string(world.path("dst/src/main.rs")).unwrap(), text);
        }
        assert_eq!(watcher.events("warning"), [0; 0], "passing trouble is not told");
    });
}

#[test]
fn changes_of_metadata_links_and_kinds_arrive() {
    each_direction(|world, _| {
        let path = |name: &str| world.path(format!("src/{name}"));
        world
            .tree("src")
            .mode("src/main.rs", 0o640)
            .time("read me.txt", 1_100_000_000, 5)
            .mode("nothing", 0o711);
        follows(world);
        fs::remove_file(path("link")).unwrap();
        symlink("read me.txt", path("link")).unwrap();
        fs::remove_file(path("dangling")).unwrap();
        world.tree("src").file("dangling/now/a", "directory");
        fs::remove_file(path("empty")).unwrap();
        symlink("nothing", path("empty")).unwrap();
        follows(world);
        world.tree("src").mode(".", 0o700);
        follows(world);
    });
}

#[test]
fn files_of_equal_size_and_time_that_swap_names_converge() {
    each_direction(|world, _| {
        // As after a checkout, which writes many files within one tick of the clock.
        for (name, text) in [("one", "a text"), ("two", "b text"), ("three", "c text")] {
            world.tree("src").file(format!("alike/{name}"), text).time(
                format!("alike/{name}"),
                1_700_000_000,
                5,
            );
        }
        follows(world);
        let path = |name: &str| world.path(format!("src/alike/{name}"));
        for (from, to) in [("one", "aside"), ("two", "one"), ("three", "two"), ("aside", "three")] {
            fs::rename(path(from), path(to)).unwrap();
        }
        let is_there = |name: &str, text: &str| {
            fs::read_to_string(world.path(format!("dst/alike/{name}"))).is_ok_and(|is| is == text)
        };
        let are_there =
            || is_there("one", "b text") && is_there("two", "c text") && is_there("three", "a text");
        wait_for("the contents", || are_there().then_some(()));
    });
}

#[test]
fn a_change_of_ignore_rules_takes_effect() {
    for direction in Direction::ALL {
        let world = World::new();
        world.tree("src").file("a.log", "a").file("b.txt", "b").file("sub/c.log", "c");
        let watcher = Watcher::ready(&world, direction, &["--delete"]);
        world.assert_same("src", "dst");
        world.tree("src").file(".ksyncignore", "*.log\n");
        watcher.flush();
        fs::write(world.path("src/a.log"), "left out").unwrap();
        fs::write(world.path("src/sub/new.log"), "left out").unwrap();
        watcher.flush();
        assert!(!world.path("dst/sub/new.log").exists(), "{direction:?}");
        assert_ne!(fs::read(world.path("dst/a.log")).unwrap_or_default(), b"left out", "{direction:?}");
        fs::write(world.path("src/.ksyncignore"), "nothing\n").unwrap();
        wait_for("what was left out", || world.path("dst/sub/new.log").exists().then_some(()));
        watcher.is_there();
        fs::remove_file(world.path("src/.ksyncignore")).unwrap();
        watcher.is_there();
    }
}

#[test]
fn a_change_of_merge_files_takes_effect() {
    for direction in Direction::ALL {
        let world = World::new();
        world.tree("src").file("sub/.rules", "- *.log\n").file("sub/a.log", "a").file("b.log", "b");
        let watcher = Watcher::ready(&world, direction, &["--filter=: .rules", "--delete"]);
        fs::write(world.path("src/sub/new.log"), "left out").unwrap();
        watcher.flush();
        assert!(!world.path("dst/sub/new.log").exists(), "{direction:?}");
        assert!(world.path("dst/b.log").exists(), "{direction:?}");
        fs::write(world.path("src/sub/.rules"), "- *.txt\n").unwrap();
        wait_for("what was left out", || world.path("dst/sub/new.log").exists().then_some(()));
        fs::write(world.path("src/sub/new.txt"), "left out").unwrap();
        watcher.flush();
        assert!(!world.path("dst/sub/new.txt").exists(), "{direction:?}");
        fs::remove_file(world.path("src/sub/.rules")).unwrap();
        watcher.is_there();
    }
}

#[test]
fn thousands_of_files_that_come_and_go_at_once_converge() {
    for direction in Direction::ALL {
        let world = World::new();
        world.tree("src").file("first", "x");
        let watcher = Watcher::ready(&world, direction, &["--delete"]);
        let tree = |name: &str| {
            for number in 0..3000 {
                let path = format!("{name}/{}/{}/file-{number}", number % 13, number % 5);
                world.tree("src").file(path, format!("content of {number}"));
            }
        };
        tree("many");
        watcher.is_there();
        fs::remove_dir_all(world.path("src/many")).unwrap();
        watcher.is_there();
        tree("many");
        fs::rename(world.path("src/many"), world.path("src/others")).unwrap();
        watcher.is_there();
    }
}

#[test]
fn a_checkout_of_another_revision_converges() {
    if !is_there("git", &["--version"]) {
        return;
    }
    for direction in Direction::ALL {
        let world = World::new();
        let git = |args: &[&str]| run(&world, "git", &[&["-C", "src"], args].concat());
        let commit = |message: &str| {
            git(&["add", "-A"]);
            let author = ["-c", "user.name=x", "-c", "user.email=x@example.com"];
            git(&[&author[..], &["commit", "-qm", message]].concat());
        };
        world.tree("src");
        git(&["init", "-q", "-b", "main"]);
        git(&["config", "gc.auto", "0"]);
        for number in 0..1500 {
            let path = format!("{}/file-{number}", number % 37);
            world.tree("src").file(path, noise(number, 200));
        }
        commit("one");
        git(&["checkout", "-q", "-b", "other"]);
        for number in (0..1500).step_by(3) {
            fs::remove_file(world.path(format!("src/{}/file-{number}", number % 37))).unwrap();
            world.tree("src").file(format!("new/{}/file-{number}", number % 11), noise(number, 100));
        }
        for number in (1..1500).step_by(3) {
            world.tree("src").file(format!("{}/file-{number}", number % 37), noise(number + 9999, 300));
        }
        commit("two");
        let watcher = Watcher::ready(&world, direction, &["--delete"]);
        let (whole, mark) = (watcher.events("round").len(), watcher.mark());
        for branch in ["main", "other", "main"] {
            git(&["checkout", "-q", branch]);
            follows(&world);
        }
        let rounds = watcher.events("round").split_off(whole);
        assert!(!rounds.is_empty(), "{direction:?}");
        assert!(rounds.iter().all(|round| round["whole"] == false), "{direction:?} from {mark}: {rounds:#?}");
        watcher.is_there();
    }
}

#[test]
fn a_watch_passes_over_what_its_options_say() {
    const OPTIONS: &[&str] = &["-u", "--existing", "--delete-excluded", "--exclude=*.o", "--yes"];
    for direction in Direction::ALL {
        let world = World::new();
        world.tree("src").file("kept", "source").time("kept", 1_000_000, 0).file("new", "").file("old", "1");
        let target = world.tree("dst").file("kept", "newer").time("kept", 2_000_000, 0);
        target.file("old", "0").time("old", 1_000_000, 0).file("x.o", "");
        let _watcher = Watcher::ready(&world, direction, OPTIONS);
        let read = |name: &str| fs::read_to_string(world.path("dst").join(name)).ok();
        let found = ["kept", "new", "old", "x.o"].map(read);
        assert_eq!(found, [Some("newer".into()), None, Some("1".into()), None], "{direction:?}");
        world.tree("src").file("late", "").file("kept", "saved now");
        wait_for("a save", || read("kept").filter(|text| text == "saved now"));
        assert_eq!(read("late"), None, "{direction:?}");
    }
}
