//! The mapping of a source to its destination path.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::world::{Emulator, Run, World, noise};

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

/// The endpoints of an upload, a download and a local copy: of `names` in `src` to `dst`.
fn three_ways(world: &World, names: &[&str]) -> Vec<(Vec<OsString>, OsString)> {
    let sources = |far: bool| {
        let source = |name: &&str| {
            let path = format!("src/{name}");
            if far { world.far(path) } else { path.into() }
        };
        names.iter().map(source).collect::<Vec<_>>()
    };
    let ways =
        [(sources(false), "dst".into()), (sources(false), world.far("dst")), (sources(true), "dst".into())];
    ways.into()
}

#[test]
fn several_sources_are_one_exchange_with_one_summary() {
    let names = ["a.txt", "b", "b.d", "l", "z"];
    for way in 0..3 {
        let world = World::new();
        world.tree("src").file("a.txt", "1").file("z", noise(1, 300_000)).link("l", "z").file("skipped", "x");
        world.tree("src/b").with_everything().file(".ksyncignore", "*.tmp\n/top\n");
        world.tree("src/b").file("x.tmp", "no").file("top", "no").file("d/top", "yes");
        world.tree("src/b.d").file("f", "2");
        world.tree("dst").file("other", "stays").file("b/extra", "stays");
        let (sources, destination) = three_ways(&world, &names).swap_remove(way);
        let run = world.run(sources.iter().chain([&destination])).ok();
        assert_eq!(
            run.stdout.lines().filter(|line| line.contains(" entries, ")).count(),
            1,
            "{}",
            run.stdout
        );
        assert_eq!(run.stderr.matches(" → ").count(), 1, "{}", run.stderr);
        for (name, content) in
            [("a.txt", "1"), ("other", "stays"), ("b/extra", "stays"), ("b/d/top", "yes"), ("b.d/f", "2")]
        {
            assert_eq!(read(&world, &format!("dst/{name}")), content, "{way} {name}");
        }
        assert_eq!(fs::read(world.path("dst/l")).unwrap(), noise(1, 300_000));
        assert!(!world.path("dst/b/x.tmp").exists() && !world.path("dst/b/top").exists(), "{way}");
        assert!(!world.path("dst/skipped").exists(), "{way}");
        let again = world.run(sources.iter().chain([&destination])).ok();
        assert!(again.summary().starts_with("nothing to do"), "{way}: {}", again.stdout);
        // A change deep in one of them.
        world.tree("src").file("z", noise(2, 300_000)).file("b/d/top", "more");
        world.run(sources.iter().chain([&destination])).ok();
        assert_eq!(read(&world, "dst/b/d/top"), "more");
        assert_eq!(fs::read(world.path("dst/z")).unwrap(), noise(2, 300_000));
    }
}

#[test]
fn missing_source_does_not_stop_the_others() {
    for delete in [false, true] {
        for way in 0..3 {
            let world = World::new();
            world.tree("src").file("a", "1").file("d/f", "2");
            world.tree("dst").file("gone", "stays");
            let (sources, destination) = three_ways(&world, &["a", "gone", "d"]).swap_remove(way);
            let mut args: Vec<OsString> = sources;
            args.push(destination);
            args.extend(delete.then(|| "--delete".into()));
            let run = Run::of(world.ksync(args)).fails(23);
            assert_eq!((read(&world, "dst/a"), read(&world, "dst/d/f")), ("1".into(), "2".into()), "{way}");
            assert_eq!(read(&world, "dst/gone"), "stays");
            let told = run.stderr.lines().filter(|line| line.contains("src/gone")).count();
            assert!(told >= 1, "{way}: {}", run.stderr);
        }
    }
}

#[test]
fn several_sources_share_a_connection_also_with_delete() {
    let world = World::new();
    world.tree("a").file("f", "1");
    world.tree("b").file("f", "2");
    world.tree("c").file("f", "3");
    let emulator = Emulator::new(&world);
    let link = emulator.behind_link(&world);
    let vm = |name: &str| format!(":{}", world.path(name).display());
    for delete in [&[][..], &["--delete"]] {
        for (sources, destination) in [
            (["a", "b", "missing", "c"].map(str::to_owned), vm("up")),
            (["up/a", "up/b", "missing", "up/c"].map(vm), "down".to_owned()),
        ] {
            link.reset();
            let args = delete.iter().copied().chain(["--setup=vm.json"]);
            let args = args.chain(sources.iter().map(String::as_str)).chain([destination.as_str()]);
            Run::of(world.ksync(args)).fails(23);
            assert_eq!(link.carried().connections, 1, "{delete:?} {destination}");
            let copy = destination.rsplit('/').next().unwrap().to_owned();
            for (name, content) in [("a", "1"), ("b", "2"), ("c", "3")] {
                assert_eq!(read(&world, &format!("{copy}/{name}/f")), content);
            }
        }
    }
}

#[test]
fn rules_of_several_sources_are_anchored_at_their_common_root() {
    for way in 0..3 {
        let world = World::new();
        world.tree("src").file("a/x", "1").file("a/y", "2").file("b/x", "3").file("c", "4");
        let (sources, destination) = three_ways(&world, &["a", "b", "c"]).swap_remove(way);
        let rules = ["--exclude=/a/x", "--exclude=c"].map(OsString::from);
        world.run(rules.iter().chain(&sources).chain([&destination])).ok();
        assert!(!world.path("dst/a/x").exists() && !world.path("dst/c").exists(), "{way}");
        assert_eq!((read(&world, "dst/a/y"), read(&world, "dst/b/x")), ("2".into(), "3".into()));
    }
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
