//! `--backup`: what a run replaces or deletes stays.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::world::{Run, World};

/// SOURCE with one changed and one missing file, and DEST with the old ones.
fn plant(world: &World) {
    world.tree("src").file("d/changed", "new content").file("same", "same");
    world.tree("dst").file("d/changed", "old").file("d/gone", "gone").file("same", "same");
}

fn sync(world: &World, options: &[&str], is_up: bool) -> Run {
    let mut ksync = world.ksync(["-a", "--delete", "--yes"]);
    ksync.args(options).arg("src").arg(if is_up { world.far("dst") } else { "dst".into() });
    Run::of(ksync)
}

#[test]
fn backup_directory_may_be_anywhere() {
    for is_up in [false, true] {
        let world = World::new();
        plant(&world);
        let absolute = format!("--backup-dir={}", world.path("absolute/here").display());
        for (option, place) in [("--backup-dir=../beside/it", "beside/it"), (&*absolute, "absolute/here")] {
            sync(&world, &[option], is_up).ok();
            let read = |name: &str| fs::read_to_string(world.path(place).join(name)).unwrap();
            assert_eq!((read("d/changed"), read("d/gone")), ("old".to_owned(), "gone".to_owned()));
            assert!(!world.path(place).join("same").exists());
            assert!(!world.path(place).join(".ksync").exists());
            world.assert_same("src", "dst");
            plant(&world);
        }
    }
}

#[test]
fn backup_is_the_old_file_itself() {
    let world = World::new();
    plant(&world);
    let before = fs::metadata(world.path("dst/d/changed")).unwrap();
    sync(&world, &["-b", "--suffix=.old"], false).ok();
    let after = fs::metadata(world.path("dst/d/changed.old")).unwrap();
    assert_eq!((before.ino(), before.mtime(), 1), (after.ino(), after.mtime(), after.nlink()));
}

#[test]
fn backup_takes_no_name_that_the_source_has() {
    for (option, place, other) in [("-b", "a~", "a.old"), ("--backup-dir=bk", "bk/a", "a")] {
        let world = World::new();
        world.tree("src").file("a", "new").file(place, "of the source");
        world.tree("dst").file("a", "old content");
        let told = format!("its backup would replace {place}, which SOURCE has too");
        let inside = format!("--backup-dir={}", world.path("dst/bk").display());
        let ways = if option == "-b" { vec![option] } else { vec![option, &inside, "--backup-dir=x/../bk"] };
        for way in ways {
            let run = world.run([way, "src", "dst"]).fails(23);
            assert!(run.stderr.contains(&told), "{way}: {}", run.stderr);
        }
        let read = |path: String| fs::read_to_string(world.path(path)).unwrap();
        assert_eq!(read("dst/a".to_owned()), "old content");
        assert_eq!(read(format!("dst/{place}")), "of the source");
        let elsewhere = world.path("elsewhere").display().to_string();
        let options =
            if option == "-b" { "--suffix=.old".to_owned() } else { format!("--backup-dir={elsewhere}") };
        world.run(["-b", &options, "src", "dst"]).ok();
        let kept = if option == "-b" { format!("dst/{other}") } else { format!("elsewhere/{other}") };
        assert_eq!((read("dst/a".to_owned()), read(kept)), ("new".to_owned(), "old content".to_owned()));
    }
}

#[test]
fn second_run_neither_deletes_backups_nor_backs_them_up() {
    let world = World::new();
    plant(&world);
    sync(&world, &["-b"], true).ok();
    assert!(sync(&world, &["-b"], true).ok().summary().contains("nothing to do"));
    assert_eq!(fs::read_to_string(world.path("dst/d/gone~")).unwrap(), "gone");
    assert!(!world.path("dst/d/gone~~").exists());
    // A directory of backups inside DEST is never deleted either.
    world.tree("dst").file("d/changed", "edited");
    sync(&world, &["--backup-dir=old"], true).ok();
    sync(&world, &["--backup-dir=old"], true).ok();
    assert_eq!(fs::read_to_string(world.path("dst/old/d/changed")).unwrap(), "edited");
}

#[test]
fn nothing_is_replaced_or_deleted_that_cannot_be_backed_up() {
    let world = World::new();
    plant(&world);
    world.tree("dst").file("old", "a file where the directory should be");
    for is_up in [false, true] {
        let run = sync(&world, &["--backup-dir=old"], is_up).fails(23);
        assert!(run.stderr.contains("old"), "{}", run.stderr);
        assert_eq!(fs::read_to_string(world.path("dst/d/changed")).unwrap(), "old");
        assert_eq!(fs::read_to_string(world.path("dst/d/gone")).unwrap(), "gone");
    }
}

#[test]
fn link_in_place_of_a_backup_directory_inside_dest_is_not_followed() {
    for is_up in [false, true] {
        let world = World::new();
        plant(&world);
        world.tree("out").file("canary", "untouched");
        world.tree("dst").link("old", "../out");
        let absolute = world.path("dst/old/below").display().to_string();
        for directory in ["old", "./old/", "old/below", "old/../old/x", absolute.as_str()] {
            sync(&world, &[&format!("--backup-dir={directory}")], is_up).fails(23);
            assert_eq!(fs::read_to_string(world.path("dst/d/changed")).unwrap(), "old");
            assert_eq!(fs::read_dir(world.path("out")).unwrap().count(), 1);
        }
    }
}

#[test]
fn names_that_are_no_endings_are_refused() {
    let world = World::new();
    plant(&world);
    for options in
        [["-b", "--suffix="], ["-b", "--suffix=/x"], ["-b", "--backup-dir="], ["-b", "--backup-dir=./"]]
    {
        let run = sync(&world, &options, false).fails(1);
        assert!(run.stderr.contains("For example --suffix=.old"), "{}", run.stderr);
    }
}
