//! The kinds of entries in a tree.

use std::os::unix::net::UnixListener;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::world::skip::{needs, needs_programs};
use crate::world::{Run, World, noise};

/// Uploads, downloads, and compares both copies with the source.
#[track_caller]
fn goes_both_ways(world: &World) {
    world.sync("src", world.far("up"));
    world.assert_same("src", "up");
    world.sync(world.far("up"), "down");
    world.assert_same("src", "down");
}

#[test]
fn links_are_copied_as_they_are_and_never_followed() {
    let world = World::new();
    world
        .tree("src")
        .file("dir/file", "text")
        .link("to-file", "dir/file")
        .link("to-dir", "dir")
        .link("dir/up", "../to-file")
        .link("dangling", "not/there")
        .link("itself", "itself")
        .link(b"raw", b"\xff\xfe");
    goes_both_ways(&world);
    assert!(world.path("down/to-dir").symlink_metadata().unwrap().is_symlink());
}

#[test]
fn links_out_of_the_tree_are_uploaded_and_not_downloaded() {
    let world = World::new();
    world.tree("src").file("a", "text").link("abs", "/etc/passwd").link("up", "../../x").link("in", "a");
    world.sync("src", world.far("up"));
    world.assert_same("src", "up");
    let run = world.run([world.far("up"), "down".into()]);
    let told =
        "ksync: 2 links not copied, absolute or out of the tree, the first is abs (--links copies them)";
    assert_eq!(run.stderr.lines().filter(|line| *line == told).count(), 1, "{}", run.stderr);
    for name in ["abs", "up"] {
        assert!(world.path("down").join(name).symlink_metadata().is_err());
    }
    assert!(world.path("down/in").symlink_metadata().is_ok());
    world.run(["--links".into(), world.far("up"), "down".into()]);
    world.assert_same("src", "down");
    world.run(["--safe-links".into(), "src".into(), world.far("safe")]);
    assert!(world.path("safe/abs").symlink_metadata().is_err());
}

#[test]
fn content_arrives_where_modes_or_times_are_refused() {
    for call in ["utimensat", "fchmod"] {
        for to in ["dst", "sandbox:"] {
            let world = World::new();
            world.tree("src").file("a", "one").file("d/b", "two").file("large", noise(1, 3 << 20));
            let to = if to == "dst" { "dst".into() } else { world.far("dst") };
            let run = |expected: i32| {
                let plain = world.ksync(["src".into(), to.clone()]);
                let mut command = world.command("strace");
                let inject = format!("inject={call}:error=EPERM");
                command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject]);
                command.arg(plain.get_program()).args(plain.get_args());
                Run::of(command).fails(expected)
            };
            let can_inject = world.command("strace").args(["-o", "/dev/null", "true"]).status();
            if !needs(can_inject.is_ok_and(|status| status.success()), "strace cannot be used here") {
                return;
            }
            let first = run(23);
            assert!(first.stderr.contains("cannot keep the metadata of "), "{call}: {}", first.stderr);
            assert!(first.summary().contains("3.1 MB"), "{call}: {}", first.summary());
            let read = |name: &str| std::fs::read(world.path("dst").join(name)).unwrap();
            assert_eq!(
                (read("a"), read("d/b"), read("large")),
                ("one".into(), "two".into(), noise(1, 3 << 20))
            );
            let second = run(23);
            assert!(second.summary().contains(" 0 B in "), "{call}: {}", second.summary());
        }
    }
}

#[test]
fn names_are_bytes() {
    let world = World::new();
    let mut tree = world.tree("src");
    for name in [
        &b"\xff"[..],
        b"latin \xe9",
        "grüße".as_bytes(),
        b"new\nline",
        b"-n",
        b"*",
        b"\\",
        b"\x1b[2J",
        b" ",
        &[b'n'; 255],
        b"d\xfe/\xfd/\xfc",
    ] {
        tree = tree.file(name, name);
    }
    goes_both_ways(&world);
}

#[test]
fn names_that_could_steer_a_terminal_are_shown_escaped() {
    let world = World::new();
    world.tree("src").file(b"a\x1b[2J\xff", "").file("b\u{202e}", "");
    let run = Run::of(world.ksync(["-v".into(), "src".into(), world.far("dst")])).ok();
    assert!(run.stdout.contains("create  a\\u{1b}[2J\\xff\n"), "{}", run.stdout);
    assert!(run.stdout.contains("create  b\\u{202e}\n"), "{}", run.stdout);
}

#[test]
fn empty_directories_and_empty_trees_are_copied() {
    let world = World::new();
    world.tree("src").dir("a/b/c").dir("d").time("a/b", 1, 1);
    goes_both_ways(&world);
    world.tree("nothing");
    world.sync("nothing", world.far("empty"));
    world.assert_same("nothing", "empty");
}

#[test]
fn modes_are_copied_and_updated() {
    let world = World::new();
    let mut tree = world.tree("src").dir("dir/locked").file("dir/locked/f", "x");
    for mode in [0o400, 0o444, 0o600, 0o644, 0o755, 0o777, 0o000] {
        tree = tree.file(format!("{mode:03o}"), "x").mode(format!("{mode:03o}"), mode);
    }
    tree.mode("dir/locked", 0o555).mode("dir", 0o711);
    goes_both_ways(&world);
    world.tree("src").mode("600", 0o640).mode("dir/locked", 0o500);
    goes_both_ways(&world);
    // Users other than root must be able to remove the folder.
    for name in ["src", "up", "down"] {
        world.tree(name).mode("dir/locked", 0o755);
    }
}

#[test]
fn times_are_kept_to_the_nanosecond() {
    let world = World::new();
    world
        .tree("src")
        .file("now", "x")
        .file("nano", "x")
        .file("old", "x")
        .file("before", "x")
        .file("late", "x")
        .link("link", "now")
        .dir("dir")
        .time("nano", 1_700_000_000, 999_999_999)
        .time("old", 0, 1)
        .time("before", -86_400, 500)
        .time("late", 4_102_444_800, 123_456_789)
        .time("link", 1_600_000_000, 987_654_321)
        .time("dir", 1_650_000_000, 1);
    goes_both_ways(&world);
}

/// A source with special files, and a destination with other entries under their names.
fn plant_special(world: &World, destination: &str) {
    let mode = Mode::from_raw_mode(0o644);
    for name in ["fifo", "pipe", "q/r"] {
        let at = world.path("src").join(name);
        if at.symlink_metadata().is_err() {
            std::fs::create_dir_all(at.parent().unwrap()).unwrap();
            mknodat(CWD, &at, FileType::Fifo, mode, 0).unwrap();
        }
    }
    world.tree(destination).file("fifo", "kept").file("pipe/f", "kept").file("old", "gone");
}

#[test]
fn special_files_are_skipped_as_rsync_skips_them() {
    let world = World::new();
    world.tree("src").file("a", "text").file("z", "text");
    let _socket = UnixListener::bind(world.path("src/socket")).unwrap();
    for (source, destination, name) in [
        ("src".into(), world.far("up"), "up"),
        (world.far("src"), "down".into(), "down"),
        ("src".into(), "dst".into(), "dst"),
    ] {
        plant_special(&world, name);
        for is_again in [false, true] {
            let mut ksync = world.ksync(["--delete", "--yes"]);
            ksync.args([&source, &destination]);
            let run = Run::of(ksync).ok();
            let told = "ksync: skipping non-regular 4 files, the first is \"fifo\"\n";
            assert_eq!(run.stderr.matches(told).count(), 1, "{}", run.stderr);
            assert_eq!(is_again, run.summary().contains("nothing to do"), "{}", run.stderr);
        }
    }
    if needs_programs(&["rsync"]) {
        plant_special(&world, "rsynced");
        let mut rsync = world.command("rsync");
        let run = Run::of({
            rsync.args(["-rlpt", "--delete", "src/", "rsynced"]);
            rsync
        });
        assert_eq!(run.ok().stdout.matches("skipping non-regular file").count(), 4);
        for name in ["up", "down", "dst"] {
            let names = |name: &str| world.snapshot(name).into_keys().collect::<Vec<_>>();
            assert_eq!(names(name), names("rsynced"), "{name}");
        }
    }
}

#[test]
fn a_special_file_as_source_is_skipped_with_a_warning_event() {
    let world = World::new();
    world.tree("src");
    mknodat(CWD, world.path("src/fifo"), FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
    let run = world.run(["--json", "src/fifo", "dst/"]).ok();
    let warning = run.stdout.lines().find(|line| line.contains("\"event\":\"warning\"")).unwrap();
    assert!(
        warning.contains("\"kind\":\"non-regular\"") && warning.contains("\"path\":\"fifo\""),
        "{warning}"
    );
    assert!(world.path("dst/fifo").symlink_metadata().is_err());
}

#[test]
fn an_entry_of_another_kind_is_replaced() {
    let world = World::new();
    world.tree("src").file("a", "file").dir("b").link("c", "a").file("d/inner", "x");
    world.sync("src", world.far("dst"));
    std::fs::remove_dir_all(world.path("src")).unwrap();
    world.tree("src").link("a", "b").file("b", "file").dir("c").file("d", "file");
    world.sync_with(&["--delete"], "src", world.far("dst"));
    world.assert_same("src", "dst");
}
