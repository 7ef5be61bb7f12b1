//! Messages for the user: each names the path, the cause and the next step.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;

use crate::world::skip::needs_superuser;
use crate::world::{Run, World};

fn world() -> World {
    let world = World::new();
    world.tree("src").file("a", "x").file("css/b", "y");
    world.tree(".").file("afile", "precious");
    symlink("nowhere", world.path("dangling")).unwrap();
    world
}

/// Runs `ksync` as another user.
fn as_nobody(world: &World, args: &[&str]) -> Run {
    for open in ["", "home", "tmp", "state", "cache", "config"] {
        let mode = if open.is_empty() { 0o755 } else { 0o777 };
        fs::set_permissions(world.path(open), PermissionsExt::from_mode(mode)).unwrap();
    }
    let mut ksync = world.ksync(args);
    ksync.uid(65534).gid(65534);
    Run::of(ksync)
}

const DEST: &str = "hint: Name another DEST, or remove what is there.\n";

#[test]
fn a_destination_that_cannot_be_one_is_named_with_its_kind() {
    let world = world();
    let root = world.path("").display().to_string();
    let root = root.trim_end_matches('/');
    for (destination, text) in [
        ("afile", format!("afile is a file, and the source is a directory\n  {DEST}")),
        ("afile/below", format!("afile is a file, not a directory\n  {DEST}")),
        (
            "dangling",
            "dangling is a link to nowhere, which does not exist\n  \
             hint: Name another DEST, make what the link leads to, or remove the link.\n"
                .to_owned(),
        ),
    ] {
        for options in [&[][..], &["-n"]] {
            let run = world.run([options, &["src", destination]].concat()).fails(11);
            assert_eq!(run.stderr, format!("ksync: {text}"), "{options:?}");
        }
        let far = world.far(destination);
        let run = Run::of(world.ksync(["src".into(), far])).fails(11);
        assert_eq!(run.stderr, format!("ksync: sandbox:{root}/{text}"));
    }
    assert_eq!(fs::read(world.path("afile")).unwrap(), b"precious");
    // Nobody is told to remove a device.
    let told = "ksync: /dev/null is a device, and the source is a directory\n  hint: Name another DEST.\n";
    world.run(["src", "/dev/null"]).fails(11).says(told);
}

#[test]
fn a_source_that_cannot_be_read_is_named_as_it_was_typed() {
    let world = world();
    for (source, text) in [
        ("afile/", "afile/ is a file, not a directory\n"),
        ("dangling", "dangling is a link to nowhere\n"),
        ("./scr", "./scr does not exist\n  hint: Check how it is spelled; there is ./src.\n"),
        ("src/css/x", "src/css/x does not exist\n"),
        ("me@host", "me@host does not exist\n  hint: A path on another machine has a colon: me@host:path.\n"),
    ] {
        for watch in [&[][..], &["--watch"]] {
            let run = world.run([watch, &[source, "dst"]].concat()).fails(3);
            assert!(run.stderr.starts_with(&format!("ksync: {text}")), "{source}: {}", run.stderr);
        }
    }
    // A relative path is below the home there.
    let run = world.run(["sandbox:rel", "dst"]).fails(3);
    let there = world.far_home().join("rel");
    let expected =
        format!("ksync: sandbox:{} does not exist\n  hint: Check how it is spelled.\n", there.display());
    assert_eq!(run.stderr, expected);
    assert!(!world.path("dst").exists());
}

#[test]
fn a_destination_that_is_not_writable_is_one_line() {
    if !needs_superuser() {
        return;
    }
    let world = world();
    for number in 0..30 {
        world.tree("src").file(format!("more/{number}"), "z");
    }
    world.tree("pro").dir(".");
    let hint = "hint: Name another DEST, or another login, or change its owner or mode.";
    for destination in ["pro", "pro/new/below"] {
        let run = as_nobody(&world, &["src", destination]).fails(11);
        let lines: Vec<_> = run.stderr.lines().filter(|line| !line.contains('→')).collect();
        assert_eq!(lines, ["ksync: pro is not writable for nobody (uid 65534)", &format!("  {hint}")]);
    }
    // Entries below that are writable still arrive.
    world.tree("pro").file("a", "old").file("css/b", "y").dir("more");
    fs::set_permissions(world.path("pro/css"), PermissionsExt::from_mode(0o777)).unwrap();
    assert_eq!(fs::read(world.path("pro/a")).unwrap(), b"old");
}

#[test]
fn an_unreadable_part_of_the_source_is_named_once() {
    if !needs_superuser() {
        return;
    }
    let world = world();
    world.tree("src").file("sub/hidden", "h").mode("sub", 0o700).mode("", 0o755);
    world.tree("dst").file("sub/kept", "k");
    fs::set_permissions(world.path("dst"), PermissionsExt::from_mode(0o777)).unwrap();
    fs::set_permissions(world.path("dst/sub"), PermissionsExt::from_mode(0o777)).unwrap();
    let run = as_nobody(&world, &["--delete", "--yes", "src", "dst"]).fails(23);
    assert!(run.stderr.contains("ksync: cannot read src/sub: permission denied\n"), "{}", run.stderr);
    assert!(run.stderr.contains("nothing was deleted: sub could not be read"), "{}", run.stderr);
    assert!(!run.stderr.contains("os error"), "{}", run.stderr);
    assert!(world.path("dst/sub/kept").exists());
}

#[test]
fn a_key_that_cannot_be_used_is_named_with_the_remedy() {
    let world = world();
    let (mut emulator, port) = {
        let emulator = crate::world::Emulator::new(&world);
        let command = emulator.told["setup"]["proxy_command"].as_str().unwrap().to_owned();
        let url = command.split(['"', '\'', ' ']).find(|word| word.starts_with("ws://")).unwrap().to_owned();
        (emulator, url)
    };
    let run = world.run(["--identity", "/no/key", "src", &format!("{port}/x")]).fails(40);
    assert!(
        run.stderr.contains("/no/key") && run.stderr.contains("hint: Check the path of the key.\n"),
        "{}",
        run.stderr
    );
    assert!(!run.stderr.contains("os error"), "{}", run.stderr);
    emulator.end();
}

#[test]
fn a_state_directory_that_cannot_be_written_is_no_question_of_trust() {
    if !needs_superuser() {
        return;
    }
    let world = world();
    let mut emulator = crate::world::Emulator::new(&world);
    let command = emulator.told["setup"]["proxy_command"].as_str().unwrap().to_owned();
    let url = command.split(['"', '\'', ' ']).find(|word| word.starts_with("ws://")).unwrap().to_owned();
    let mut ksync = world.ksync(["src", &format!("{url}/x")]);
    ksync.env("XDG_STATE_HOME", "/proc/nothing");
    let run = Run::of(ksync).fails(5);
    assert!(
        run.stderr.starts_with("ksync: cannot write /proc/nothing/ksync/known_hosts: "),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("\n  hint: ") && run.stderr.contains("XDG_STATE_HOME"), "{}", run.stderr);
    emulator.end();
}
