//! One endpoint alone lists it, in the lines of rsync. The size of a directory is none there.

use std::ffi::OsString;

use crate::world::skip::needs_programs;
use crate::world::{Run, World};

fn world() -> World {
    let world = World::new();
    let tree = world.tree("src").file("a", "text").file("zz", vec![0; 1_234_567]).file("b/c/d", "x");
    tree.file("b.d/e", "y").file("b/a", "z").file("odd\nname", "").link("l", "b/a").time(
        "a",
        1_767_323_045,
        7,
    );
    world
}

fn rsync(world: &World, args: &[&str]) -> String {
    let mut command = world.command("rsync");
    command.args(args).env("TZ", "UTC");
    Run::of(command).ok().stdout
}

/// The lines with `-` in place of a directory's size.
fn without_sizes(text: &str) -> Vec<String> {
    let of = |line: &str| match line.strip_prefix('d') {
        Some(_) => format!("{} {:>14} {}", &line[..10], "-", &line[26..]),
        None => line.to_owned(),
    };
    text.lines().map(of).collect()
}

#[test]
fn a_listing_has_the_lines_of_rsync() {
    if !needs_programs(&["rsync"]) {
        return;
    }
    let world = world();
    std::fs::rename(world.path("src/odd\nname"), world.path("src/odd name")).unwrap();
    let far = |path: &str| {
        world.far(path.trim_end_matches('/')).into_string().unwrap()
            + if path.ends_with('/') { "/" } else { "" }
    };
    for options in [
        &[][..],
        &["-l"],
        &["-r", "--no-inc-recursive"],
        &["-a", "--no-inc-recursive"],
        &["-h"],
        &["--exclude=b"],
    ] {
        for path in ["src/", "src", "src/a", "src/."] {
            let theirs = without_sizes(&rsync(&world, &[options, &[path]].concat()));
            assert!(!theirs.is_empty());
            for from in [path.to_owned(), far(path)] {
                let args = [options, &[&*from]].concat();
                let run = world.run(&args).ok();
                let mine: Vec<String> = run.stdout.lines().map(str::to_owned).collect();
                assert_eq!(mine, theirs, "{args:?}");
                assert_eq!(run.stderr, "", "{args:?}");
            }
        }
    }
}

#[test]
fn a_listing_changes_nothing_and_escapes_names() {
    let world = world();
    let before = world.snapshot("src");
    let run = world.run(["--list-only", "src/", "dst"]).ok();
    assert!(run.stdout.contains(" odd\\nname\n"), "{}", run.stdout);
    assert!(!world.path("dst").exists());
    assert_eq!(world.snapshot("src"), before);
}

#[test]
fn a_listing_of_what_is_missing_or_unreadable_fails() {
    let world = world();
    for from in ["nowhere".into(), world.far("nowhere")] {
        let run = Run::of(world.ksync([from])).fails(3);
        assert!(run.stderr.contains("nowhere does not exist"), "{}", run.stderr);
        assert_eq!(run.stdout, "");
    }
    for options in [["--list-only", "--json"], ["--list-only", "--delete"]] {
        let run =
            Run::of(world.ksync(options.map(OsString::from).into_iter().chain(["src".into()]))).fails(1);
        assert!(run.stderr.starts_with("ksync: --list-only goes neither with"), "{}", run.stderr);
    }
    let said = world.run(["--delete", "src"]).fails(1).stderr;
    assert!(said.starts_with("ksync: there is no DEST\n"), "{said}");
}
