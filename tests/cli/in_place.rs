//! `--inplace` and `--append`: files that stay the same files, beside rsync.
//!
//! Meant differences from rsync:
//! - The new content arrives aside and is verified before the first byte is written, so the
//!   transfer takes the room of a second copy. A connection that breaks leaves the old file.
//! - `--append` does not trust the part that DEST has: where it differs from SOURCE's, it becomes
//!   SOURCE's, as with `--append-verify`.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::world::noise;
use crate::world::skip::needs_programs;
use crate::world::{Run, World};

/// DEST with files that have further names outside, and SOURCE with edited, longer and shorter
/// ones.
fn plant(world: &World, dest: &str) {
    let large = noise(1, 2 << 20);
    let mut edited = large.clone();
    edited[1 << 20] ^= 1;
    world.tree("src").file("edited", &edited).file("longer", [&large[..], b"more"].concat());
    world.tree("src").file("shorter", &large[..1 << 20]).file("small", "new").file("new", "new");
    world.tree("src").file("mode", "mode").mode("mode", 0o600).time("mode", 1_000_000, 0);
    // rsync compares whole seconds.
    for name in ["edited", "longer", "shorter", "small", "new"] {
        world.tree("src").time(name, 2_000_000, 0);
    }
    world.tree("src").time("", 2_000_000, 0);
    let tree = world.tree(dest).file("edited", &large).file("longer", &large).file("shorter", &large);
    tree.file("small", "the old one").file("mode", "mode").time("mode", 1_000_000, 0);
    let others = format!("{dest}-others");
    world.tree(&others);
    for name in ["edited", "longer", "shorter", "small", "mode"] {
        fs::hard_link(world.path(dest).join(name), world.path(&others).join(name)).unwrap();
    }
    for name in ["edited", "longer", "shorter", "small"] {
        world.tree(dest).time(name, 1_500_000, 0);
    }
    world.tree(&others).time("", 1_000_000, 0);
}

#[test]
fn files_are_written_into_as_rsync_does() {
    if !needs_programs(&["rsync"]) {
        return;
    }
    for (is_up, options) in [
        (false, &["-a", "--inplace"][..]),
        (true, &["-a", "--inplace"]),
        (false, &["-a", "--append-verify"]),
        (false, &["-a", "--append"]),
        (true, &["-a", "--append", "--no-inplace"]),
        (false, &["-a", "--inplace", "--backup"]),
    ] {
        let world = World::new();
        plant(&world, "ours");
        plant(&world, "theirs");
        let inodes = |dest: &str| {
            let inode = |name: &str| fs::metadata(world.path(dest).join(name)).unwrap().ino();
            ["edited", "longer", "shorter", "small", "mode"].map(inode)
        };
        let before = inodes("ours");
        let mut rsync = world.command("rsync");
        let plain = options.iter().filter(|option| **option != "--no-inplace");
        rsync.args(plain).args(["src/", "theirs/"]);
        Run::of(rsync).ok();
        let dest = if is_up { world.far("ours") } else { "ours".into() };
        let mut ksync = world.ksync(options);
        ksync.arg("src").arg(dest);
        Run::of(ksync).ok();
        assert_eq!(inodes("ours"), before, "{options:?}");
        let [ours, theirs] = ["ours", "theirs"].map(|dest| {
            let mut seen = world.snapshot(dest);
            // With --backup, rsync omits the times of directories.
            seen.remove(std::path::Path::new(""));
            seen
        });
        assert_eq!(ours, theirs, "{options:?}");
        world.assert_same("ours-others", "theirs-others");
        assert!(!world.path("ours/.ksync").exists());
    }
}

#[test]
fn append_never_leaves_a_file_that_is_not_sources() {
    let world = World::new();
    world.tree("src").file("f", "the beginning and the end");
    world.tree("dst").file("f", "another one");
    world.run(["--append", "src", "dst"]).ok();
    world.assert_same("src", "dst");
}

#[test]
fn files_stay_whole_unless_in_place_is_asked_for() {
    let world = World::new();
    plant(&world, "dst");
    let before = world.snapshot("dst-others");
    world.run(["src", "dst"]).ok();
    world.assert_same("src", "dst");
    assert_eq!(world.snapshot("dst-others"), before, "other names keep the old content");
}

#[test]
fn broken_connection_leaves_the_old_file_in_place() {
    let world = World::new();
    plant(&world, "dst");
    let before = world.snapshot("dst");
    // The bytes that arrived wait in the state directory, and not in the file.
    fs::write(world.path("src/edited"), noise(2, 2 << 20)).unwrap();
    let mut run = world.ksync(["--inplace", "--bwlimit=100k", "src/edited", "dst/edited"]);
    let mut child = run.spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    child.kill().unwrap();
    child.wait().unwrap();
    let after = world.snapshot("dst");
    assert_eq!(before[std::path::Path::new("edited")], after[std::path::Path::new("edited")]);
}

#[test]
fn link_in_a_files_place_is_replaced_and_not_written_through() {
    for is_up in [false, true] {
        let world = World::new();
        world.tree("src").file("f", "new");
        world.tree("outside").file("f", "kept");
        world.tree("dst").link("f", "../outside/f");
        let dest = if is_up { world.far("dst") } else { "dst".into() };
        world.run(["--inplace".as_ref(), "src".as_ref(), &*dest]).ok();
        world.assert_same("src", "dst");
        assert_eq!(fs::read_to_string(world.path("outside/f")).unwrap(), "kept");
    }
}
