//! The mapping of a source to its destination path.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::world::{Run, World};

fn read(world: &World, name: &str) -> String {
    fs::read_to_string(world.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn a_file_goes_into_an_existing_directory() {
    let world = World::new();
    world.tree("src").file("a", "text");
    world.tree("up");
    world.tree("down").file("other", "stays");
    world.sync("src/a", world.far("up"));
    world.sync(world.far("src/a"), "down");
    assert_eq!([read(&world, "up/a"), read(&world, "down/a")], ["text", "text"]);
    assert_eq!(read(&world, "down/other"), "stays");
}

#[test]
fn a_file_takes_the_name_of_a_missing_destination() {
    let world = World::new();
    world.tree("src").file("a", "text").time("a", 1_000_000_000, 5).mode("a", 0o640);
    world.sync("src/a", world.far("new/up"));
    world.sync(world.far("src/a"), "new/down");
    world.assert_same("src/a", "new/up");
    world.assert_same("src/a", "new/down");
    assert_eq!(fs::read_dir(world.path("new")).unwrap().count(), 2);
}

#[test]
fn a_file_replaces_a_file() {
    let world = World::new();
    world.tree("src").file("a", "new");
    world.tree("dst").file("b", "old").file("c", "other");
    world.sync("src/a", world.far("dst/b"));
    assert_eq!([read(&world, "dst/b"), read(&world, "dst/c")], ["new", "other"]);
    assert!(world.sync("src/a", world.far("dst/b")).summary.starts_with("nothing to do"));
}

#[test]
fn a_trailing_slash_makes_a_directory_for_a_file() {
    let world = World::new();
    world.tree("src").file("a", "text");
    world.sync("src/a", world.far("up/"));
    let mut far = world.far("src/a");
    world.sync(&far, "down/");
    assert_eq!([read(&world, "up/a"), read(&world, "down/a")], ["text", "text"]);
    far.push("/");
    Run::of(world.ksync([far.as_os_str(), "other".as_ref()])).fails(3);
}

#[test]
fn a_trailing_slash_changes_nothing_for_a_directory() {
    let world = World::new();
    world.tree("src").with_everything();
    for (number, (source, slash)) in
        [("src", ""), ("src/", ""), ("src", "/"), ("src/", "/")].iter().enumerate()
    {
        let mut destination = world.far(format!("up{number}"));
        destination.push(slash);
        world.sync(source, destination);
        world.assert_same("src", format!("up{number}"));
        let mut far = world.far("src");
        far.push(slash);
        world.sync(far, format!("down{number}{slash}"));
        world.assert_same("src", format!("down{number}"));
    }
}

#[test]
fn several_sources_go_into_the_destination_by_name() {
    let world = World::new();
    world.tree("one").with_everything();
    world.tree("two").file("a", "a");
    world.tree("src").file("file", "text");
    let far = world.far("dst");
    world.run(["one".as_ref(), "two/".as_ref(), "src/file".as_ref(), far.as_os_str()]).ok();
    world.assert_same("one", "dst/one");
    world.assert_same("two", "dst/two");
    assert_eq!(read(&world, "dst/file"), "text");
    let (one, two) = (world.far("one"), world.far("two"));
    world.run([one.as_os_str(), two.as_os_str(), "back".as_ref()]).ok();
    world.assert_same("one", "back/one");
    world.assert_same("two", "back/two");
}

#[test]
fn missing_parents_are_created_with_the_umask_of_the_login() {
    let world = World::new();
    world.tree("src").with_everything();
    let mode = |path: &str| world.path(path).metadata().unwrap().mode();
    // The first run installs the agent.
    for top in ["a", "d"] {
        world.sync("src", world.far(format!("{top}/b/c")));
        world.assert_same("src", format!("{top}/b/c"));
        fs::create_dir(world.path(format!("{top}/own"))).unwrap();
        let own = mode(&format!("{top}/own"));
        assert_eq!((mode(top), mode(&format!("{top}/b"))), (own, own));
    }
}

#[test]
fn a_relative_far_path_is_below_the_far_home_and_shown_resolved() {
    let world = World::new();
    world.tree("src").file("a", "text");
    let run = world.run(["src", "sandbox:site/x"]).ok();
    world.assert_same("src", world.far_home().join("site/x"));
    assert_eq!(run.stderr, format!("src → sandbox:{}/site/x\n", world.far_home().display()));
    world.run(["sandbox:~/site/x", "back"]).ok();
    world.assert_same("src", "back");
}

#[test]
fn a_far_path_is_taken_literally() {
    let world = World::new();
    world.tree("src").file("a", "text");
    for name in ["$(touch pwned)", "-x", "it's \"so\"", "a\nb", "`id`", "*"] {
        world.sync("src", world.far(format!("dst/{name}")));
        world.assert_same("src", format!("dst/{name}"));
    }
    assert!(!world.far_home().join("pwned").exists());
    assert_eq!(fs::read_dir(world.path("dst")).unwrap().count(), 6);
}
