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

#[test]
fn gitignore_files_are_honoured_on_demand_beside_ksyncignore() {
    for up in [true, false] {
        let world = World::new();
        world
            .tree("src")
            .file(".gitignore", "*.log\nbuild/\n!good.log")
            .file(".ksyncignore", "secret\n!b.log\n")
            .file("a.log", "")
            .file("b.log", "")
            .file("good.log", "")
            .file("secret", "")
            .file("build/x", "")
            .file("d/.gitignore", "!c.log\n/here\n")
            .file("d/c.log", "")
            .file("d/here", "")
            .file("d/e/here", "");
        world.tree("dst").file("old.log", "").file("build/y", "").file("gone", "");
        run(&world, up, &["--gitignore", "--delete", "--yes"]);
        assert_there(&world, &[("a.log", false), ("b.log", true), ("good.log", true), ("secret", false)]);
        assert_there(&world, &[("build/x", false), ("d/c.log", true), ("d/here", false), ("d/e/here", true)]);
        assert_there(&world, &[("old.log", true), ("build/y", true), ("gone", false)]);
        run(&world, up, &["--delete", "--yes"]);
        assert_there(&world, &[("a.log", true), ("build/x", true), ("d/here", true), ("secret", false)]);
        assert_there(&world, &[("old.log", false), ("build/y", false)]);
    }
}

#[test]
fn changed_merge_files_count_in_the_next_run() {
    for up in [true, false] {
        let world = World::new();
        let mut tree =
            world.tree("src").file("sub/.rules", "- *.x\n").file("sub/a.x", "").file("sub/a.y", "");
        // So many that a kept agent would keep the scan.
        for number in 0..1200 {
            tree = tree.file(format!("many/{number}"), "");
        }
        drop(tree);
        let rules = ["--filter=: .rules", "--delete", "--yes"];
        run(&world, up, &rules);
        assert_there(&world, &[("sub/a.x", false), ("sub/a.y", true)]);
        world.tree("src").file("sub/.rules", "- *.y\n");
        world.tree("src").file("sub/b.y", "");
        run(&world, up, &rules);
        // The rules of before protect `a.y` on neither side.
        assert_there(&world, &[("sub/a.x", true), ("sub/a.y", false), ("sub/b.y", false)]);
        world.tree("dst").file("sub/c.y", "").file("sub/c.z", "");
        run(&world, up, &rules);
        assert_there(&world, &[("sub/c.y", true), ("sub/c.z", false)]);
    }
}

#[test]
fn directory_of_a_malformed_merge_file_is_neither_sent_nor_deleted() {
    for up in [true, false] {
        let world = World::new();
        world.tree("src").file("sub/.rules", "# fine\n- a\nnonsense\n").file("sub/b", "").file("c", "");
        world.tree("dst").file("sub/old", "").file("old", "");
        let (source, destination): (OsString, OsString) =
            if up { ("src".into(), world.far("dst")) } else { (world.far("src"), "dst".into()) };
        let mut ksync = world.ksync(["--filter=: .rules", "--delete", "--yes"]);
        let told = Run::of({
            ksync.args([&source, &destination]);
            ksync
        });
        assert_eq!(told.status.code(), Some(23), "{}", told.stderr);
        let said = "sub/.rules: line 3: the rule \"nonsense\" begins with none of exclude, include,";
        assert!(told.stderr.contains(said), "{}", told.stderr);
        assert_there(&world, &[("c", true), ("sub/b", false), ("sub/old", true), ("old", true)]);
        // On the receiving side it protects everything below it.
        world.tree("dst").file("sub/.rules", "nonsense\n");
        world.tree("src").file("sub/.rules", "- a\n");
        let mut ksync = world.ksync(["--filter=: .rules", "--delete", "--yes"]);
        ksync.args([&source, &destination]);
        let told = Run::of(ksync);
        let said = "sub/.rules, so what is in it stays: line 1: the rule \"nonsense\" begins with none of";
        assert!(told.stderr.contains(said), "{}", told.stderr);
        assert_there(&world, &[("sub/old", true), ("old", false)]);
    }
}

#[test]
fn links_and_lures_among_merge_files_are_not_followed() {
    let world = World::new();
    world.tree(".").file("secret", "- b\n");
    for (name, text) in
        [("outside", ". ../../secret\n"), ("absolute", ". /etc/passwd\n"), ("up", ": ../.x\n")]
    {
        world.tree("src").file(format!("{name}/.rules"), text).file(format!("{name}/b"), "");
    }
    world.tree("src").link("link/.rules", "../../secret").file("link/b", "").file("c", "");
    let run = world.run(["--filter=: .rules", "src", "dst"]).fails(23);
    for name in ["outside", "absolute", "up", "link"] {
        assert!(run.stderr.contains(&format!("{name}/.rules")), "{name}: {}", run.stderr);
        assert_there(&world, &[(&format!("{name}/b"), false)]);
    }
    assert_there(&world, &[("c", true)]);
    assert!(!run.stderr.contains("root:"), "no line of a file outside is shown: {}", run.stderr);
}

#[test]
fn rules_that_are_none_are_refused_before_anything_is_copied() {
    let world = World::new();
    world.tree("src").file("a", "");
    world.tree(".").file("rules", "# no\n+ a\nH,s b\n").file("self", ". self\n");
    for (option, said) in [
        ("--filter=x", "--filter: the rule \"x\" begins with none of exclude, include, merge,"),
        ("-f-e x", "--filter: the rule \"-e x\" has the modifier \"e\", which its kind does not take\n"),
        ("-f- ", "--filter: the rule \"- \" has no pattern\n"),
        ("--filter=! x", "--filter: the rule \"! x\" clears the list, and takes no pattern\n"),
        ("--filter=. rules", "rules: line 3: the rule \"H,s b\" has the modifier \"s\""),
        ("--filter=.s rules", "rules: line 3: the rule \"H,s b\" has the modifier \"s\""),
        (
            "--filter=. self",
            "self: line 1: the rule \". self\" merges a file into a file for the 16th time\n",
        ),
        ("--filter=. none", "cannot read none: no such file or directory\n"),
    ] {
        let run = world.run([option, "src", "dst"]).fails(1);
        assert!(run.stderr.starts_with(&format!("ksync: {said}")), "{option}: {}", run.stderr);
    }
    assert!(!world.path("dst").exists());
}
