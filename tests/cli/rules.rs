//! Filters: which entries are synced, also while others are deleted.

use std::ffi::OsString;

use crate::world::{Run, World};

/// Asserts which of these entries exist in `dst`.
#[track_caller]
fn assert_there(world: &World, expected: &[(&str, bool)]) {
    for &(name, is_there) in expected {
        assert_eq!(world.path("dst").join(name).symlink_metadata().is_ok(), is_there, "{name}");
    }
}

/// A sync from `src` to `dst`, in either direction.
fn run(world: &World, up: bool, options: &[&str]) -> Run {
    let (source, destination): (OsString, OsString) =
        if up { ("src".into(), world.far("dst")) } else { (world.far("src"), "dst".into()) };
    let mut command = world.ksync(options);
    command.arg(source).arg(destination);
    Run::of(command).ok()
}

#[test]
fn excluded_entries_are_not_sent_and_are_counted() {
    for up in [true, false] {
        let world = World::new();
        world.tree("src").file("a.log", "").file("b.txt", "").file("target/x", "").file("d/c.log", "");
        let told = run(&world, up, &["--exclude", "*.log", "--exclude=/target"]);
        assert_there(&world, &[("b.txt", true), ("d", true), ("a.log", false), ("target", false)]);
        assert_there(&world, &[("d/c.log", false)]);
        assert!(told.stderr.contains("3 entries excluded by rules\n"), "{}", told.stderr);
    }
}

#[test]
fn excluded_entries_survive_delete_on_both_sides() {
    for up in [true, false] {
        let world = World::new();
        world.tree("src").file("keep", "").file("mine.log", "");
        world.tree("dst").file("old", "").file("theirs.log", "log").file("cache/x", "x").file("d/e.log", "");
        run(&world, up, &["--delete", "--yes", "--exclude=*.log", "--exclude=cache/"]);
        assert_there(&world, &[("keep", true), ("theirs.log", true), ("cache/x", true), ("d/e.log", true)]);
        assert_there(&world, &[("old", false), ("mine.log", false)]);
    }
}

#[test]
fn the_first_rule_that_matches_wins() {
    let world = World::new();
    world.tree("src").file("a.log", "").file("b.log", "").file("c", "");
    run(&world, true, &["--include=a.log", "--exclude=*.log", "--include=b.log"]);
    assert_there(&world, &[("a.log", true), ("b.log", false), ("c", true)]);
}

#[test]
fn rules_are_read_from_files() {
    let world = World::new();
    world.tree("src").file("a", "").file("b", "").file("c", "");
    world.tree(".").file("rules", "# no comment\n\na\n+ b\n").file("more", "b\nc\n");
    run(&world, true, &["--exclude-from=rules", "--exclude-from", "more"]);
    assert_there(&world, &[("a", false), ("b", true), ("c", false)]);
}

#[test]
fn nested_ksyncignore_files_with_exceptions_are_honoured() {
    for up in [true, false] {
        let world = World::new();
        world
            .tree("src")
            .file(".ksyncignore", "*.log\nbuild/\n!good.log\n")
            .file("a.log", "")
            .file("good.log", "")
            .file("build/x", "")
            .file("d/.ksyncignore", "!kept.log\n/only-here\n")
            .file("d/kept.log", "")
            .file("d/only-here", "")
            .file("d/e/only-here", "");
        world.tree("dst").file("old.log", "").file("build/y", "").file("gone", "").file("d/only-here", "x");
        run(&world, up, &["--delete", "--yes"]);
        assert_there(&world, &[(".ksyncignore", true), ("a.log", false), ("good.log", true)]);
        assert_there(&world, &[("build/x", false), ("build/y", true), ("d/kept.log", true)]);
        assert_there(&world, &[("d/e/only-here", true), ("old.log", true), ("gone", false)]);
        assert_eq!(std::fs::read(world.path("dst/d/only-here")).unwrap(), b"x");
    }
}

#[test]
fn a_rule_of_the_command_line_overrides_ksyncignore() {
    let world = World::new();
    world.tree("src").file(".ksyncignore", "*.log\n").file("a.log", "").file("b.log", "");
    run(&world, true, &["--include=a.log"]);
    assert_there(&world, &[("a.log", true), ("b.log", false)]);
}

#[test]
fn a_leading_double_star_protects_at_the_top_too() {
    for up in [true, false] {
        let world = World::new();
        world.tree("src").file("node_modules/s", "").file("a/node_modules/s", "").file("f", "");
        world.tree("dst").file("node_modules/precious", "").file("old", "");
        run(&world, up, &["--delete", "--yes", "--exclude=**/node_modules"]);
        assert_there(&world, &[("node_modules/precious", true), ("node_modules/s", false), ("old", false)]);
        assert_there(&world, &[("a/node_modules", false), ("f", true)]);
    }
}

#[test]
fn rules_for_several_sources_are_anchored_at_the_destination() {
    for up in [true, false] {
        let world = World::new();
        world.tree("a").file("foo", "").file("x", "").file("b", "");
        world.tree("b").file("foo", "");
        world.tree("c").file("foo", "");
        world.tree(".").file("f", "").file("g", "");
        let at = |name: &str| if up { name.into() } else { world.far(name) };
        let mut command = world.ksync(["--exclude=/a/foo", "--exclude=/x", "--exclude=c", "--exclude=g"]);
        command.args(["a", "b", "c", "f", "g"].map(at));
        command.arg(if up { world.far("dst") } else { OsString::from("dst") });
        Run::of(command).ok();
        assert_there(&world, &[("a/foo", false), ("a/x", true), ("a/b", true), ("b/foo", true)]);
        assert_there(&world, &[("c", false), ("f", true), ("g", false)]);
    }
}

#[test]
fn rules_apply_to_a_source_that_is_a_file() {
    for up in [true, false] {
        let world = World::new();
        world.tree("src").file("f.log", "new").file("g", "new");
        world.tree("dst").file("there", "old").file("g", "old");
        let sync = |options: &[&str], name: &str, target: &str| {
            let (source, target) = (format!("src/{name}"), format!("dst/{target}"));
            let mut command = world.ksync(options);
            if up {
                command.arg(source).arg(world.far(target))
            } else {
                command.arg(world.far(source)).arg(target)
            };
            Run::of(command).ok();
        };
        sync(&["--exclude=*.log", "--delete"], "f.log", "there");
        sync(&["--exclude=/f.log"], "f.log", "");
        sync(&["--exclude=f.log/"], "g", "");
        assert_there(&world, &[("f.log", false)]);
        let read = |name: &str| std::fs::read_to_string(world.path("dst").join(name)).unwrap();
        assert_eq!([read("there"), read("g")], ["old", "new"]);
    }
}

#[test]
fn a_rule_with_a_prefix_and_no_pattern_is_an_error() {
    let world = World::new();
    world.tree("src").file("a", "");
    world.tree(".").file("rules", "b\n- \n");
    let run = Run::of(world.ksync(["--delete", "--exclude-from=rules", "src", "dst"])).fails(1);
    assert!(run.stderr.contains("rules: line 2: the rule \"- \" has no pattern"), "{}", run.stderr);
    assert!(!world.path("dst").exists());
}
