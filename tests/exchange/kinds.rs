//! Every kind of entry, in place of every other kind.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use ksync::disk::set_id::owner_of_copies;
use ksync::monitor::{Event, ProblemKind};
use ksync::tree::filter::Rule;
use ksync::wire::hello::Links;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::skip::{needs, needs_superuser};
use crate::world::{NOBODY, World, differences, noise, set_mode, set_time, write};

/// Creates an entry of this kind at `f`.
fn make(kind: &str, root: &Path) {
    fs::create_dir_all(root).unwrap();
    let path = root.join("f");
    match kind {
        "nothing" => {}
        "file" => write(&path, &noise(1, 200_000)),
        "small file" => write(&path, b"small"),
        "empty file" => write(&path, b""),
        "link" => symlink("f-target", &path).unwrap(),
        "other link" => symlink("elsewhere", &path).unwrap(),
        "empty directory" => fs::create_dir(&path).unwrap(),
        _ => write(&path.join("deep/inside"), b"inside"),
    }
}

const KINDS: [&str; 8] = [
    "nothing",
    "file",
    "small file",
    "empty file",
    "link",
    "other link",
    "empty directory",
    "full directory",
];

#[test]
fn every_kind_of_entry_replaces_every_other_kind() {
    for (wanted, present) in KINDS.iter().flat_map(|wanted| KINDS.map(|present| (*wanted, present))) {
        let world = World::deleting();
        make(wanted, &world.source);
        make(present, &world.target);
        let ran = world.run();
        assert_eq!(ran.problems(), [], "{wanted} in place of {present}");
        assert_eq!(differences(&world.source, &world.target), Vec::<String>::new(), "{wanted}, {present}");
    }
}

#[test]
fn only_a_full_directory_is_an_obstacle_without_delete() {
    for (wanted, present) in KINDS.iter().flat_map(|wanted| KINDS.map(|present| (*wanted, present))) {
        let world = World::new();
        make(wanted, &world.source);
        make(present, &world.target);
        let ran = world.run();
        let is_obstacle = present == "full directory"
            && !["nothing", "empty directory", "full directory"].contains(&wanted);
        let expected = if is_obstacle { vec![(ProblemKind::Obstacle, "f".to_owned())] } else { Vec::new() };
        assert_eq!(ran.problems(), expected, "{wanted} in place of {present}");
        if present == "full directory" {
            assert_eq!(world.read_target("f/deep/inside"), b"inside");
        } else if wanted != "nothing" {
            assert_eq!(
                differences(&world.source, &world.target),
                Vec::<String>::new(),
                "{wanted}, {present}"
            );
        }
    }
}

#[test]
fn pipes_sockets_and_devices_are_counted_and_the_rest_arrives() {
    let world = World::new();
    world.write("file", b"1");
    let make = |name: &str, kind, device| {
        mknodat(CWD, world.source.join(name), kind, Mode::from_raw_mode(0o600), device)
    };
    make("pipe", FileType::Fifo, 0).unwrap();
    let _socket = UnixListener::bind(world.source.join("socket")).unwrap();
    let mut expected = Event::NonRegularSkipped { entries: 2, first: b"pipe".to_vec() };
    let made = make("device", FileType::CharacterDevice, rustix::fs::makedev(1, 3)).is_ok();
    if needs(made, "this user may not create devices") {
        expected = Event::NonRegularSkipped { entries: 3, first: b"device".to_vec() };
    }
    let ran = world.run();
    assert_eq!(ran.problems(), Vec::new());
    assert!(ran.events.contains(&expected), "{:?}", ran.events);
    assert_eq!(world.read_target("file"), b"1");
}

#[test]
fn names_are_bytes() {
    let world = World::deleting();
    for name in [
        &b"not \xff\xfe utf-8"[..],
        b"new\nline",
        b"-rf",
        b"~",
        b"a\\b",
        b" ",
        "NFC \u{e9}".as_bytes(),
        b"NFD e\xcc\x81",
    ] {
        write(&world.source.join(OsStr::from_bytes(name)), b"1");
        write(&world.source.join("d").join(OsStr::from_bytes(name)).join("f"), b"1");
    }
    symlink(OsStr::from_bytes(b"to \xff"), world.source.join("link")).unwrap();
    write(&world.source.join("n".repeat(255)), b"longest");
    world.run_and_check();
}

#[test]
fn times_before_1970_and_nanoseconds_arrive() {
    let world = World::new();
    world.write("d/f", b"1");
    symlink("d", world.source.join("l")).unwrap();
    for (name, seconds, nanos) in
        [("d/f", -1, 999_999_999), ("l", -86_400, 1), ("d", 4_000_000_000, 5), ("", -5, 7)]
    {
        set_time(&world.source.join(name), seconds, nanos);
    }
    world.run_and_check();
}

#[test]
fn a_single_file_goes_into_a_directory_to_a_new_name_or_over_a_file() {
    for (target, there, lands) in [
        ("into", Some("into/"), "into/f"),
        ("into/", None, "into/f"),
        ("new/name", None, "new/name"),
        ("over", Some("over"), "over"),
    ] {
        for length in [5, 3 << 20] {
            let mut world = World::deleting();
            let folder = world.folder.path().to_owned();
            match there {
                Some(directory) if directory.ends_with('/') => {
                    write(&folder.join(directory).join("neighbour"), b"stays");
                }
                Some(file) => write(&folder.join(file), b"old"),
                None => {}
            }
            world.write("f", &noise(1, length));
            set_mode(&world.source.join("f"), 0o640);
            set_time(&world.source.join("f"), -3, 3);
            world.source = world.source.join("f");
            world.target = folder.join(target);
            let ran = world.run();
            assert_eq!(ran.problems(), [], "{target}");
            let landed = folder.join(lands);
            assert_eq!(differences(&world.source, &landed), Vec::<String>::new(), "{target}");
            assert!(there != Some("into/") || folder.join("into/neighbour").exists());
            assert!(!landed.parent().unwrap().join(".ksync").exists());
            let again = world.run();
            assert_eq!(again.summary().tally.files, 0, "{target}");
        }
    }
}

#[test]
fn modes_arrive_and_set_id_bits_only_on_request() {
    for special_bits in [false, true] {
        let mut world = World::new();
        world.options.set_id_owner = owner_of_copies(&world.target).filter(|_| special_bits);
        for (name, mode) in [("a", 0o4755), ("b", 0o2750), ("c", 0o000), ("d", 0o444)] {
            world.write(name, b"1");
            set_mode(&world.source.join(name), mode);
        }
        let ran = world.run();
        assert_eq!(ran.problems(), []);
        let mode = |name: &str| world.target.join(name).metadata().unwrap().permissions().mode() & 0o7777;
        let expected = if special_bits { [0o4755, 0o2750, 0, 0o444] } else { [0o755, 0o750, 0, 0o444] };
        assert_eq!(["a", "b", "c", "d"].map(mode), expected);
        assert_eq!(world.run().summary().tally.adjusted, 0);
    }
}

/// A world whose directories belong to a user whom modes restrict. Skips the test if we are not the
/// superuser.
fn nobodys(world: World) -> Option<World> {
    if !needs_superuser() {
        return None;
    }
    fs::create_dir_all(&world.target).unwrap();
    set_mode(world.folder.path(), 0o755);
    for entry in walkdir::WalkDir::new(world.folder.path()) {
        std::os::unix::fs::lchown(entry.unwrap().path(), Some(NOBODY), None).unwrap();
    }
    Some(World { as_nobody: true, ..world })
}

#[test]
fn read_only_directories_are_changed_and_stay_read_only() {
    let world = World::deleting();
    world.write("d/deep/changed", b"new content");
    world.write("d/deep/new", b"1");
    world.write_target("d/deep/changed", b"old");
    world.write_target("d/deep/gone", b"goes");
    world.write_target("old/deep/gone", b"goes");
    let Some(world) = nobodys(world) else { return };
    for name in ["source/d/deep", "source/d", "target/d/deep", "target/d", "target/old/deep", "target/old"] {
        set_mode(&world.folder.path().join(name), 0o555);
    }
    world.run_and_check();
}

/// Modes that close a directory to its owner in one way or another.
const CLOSED_MODES: [u32; 5] = [0o000, 0o100, 0o300, 0o400, 0o600];

#[test]
fn closed_directories_of_the_copy_are_opened_by_their_owner() {
    for mode in CLOSED_MODES {
        let world = World::deleting();
        world.write("d/e/changed", b"new content");
        world.write("d/e/new", b"1");
        world.write_target("d/e/changed", b"old");
        world.write_target("d/e/gone", b"goes");
        world.write_target("d/gone", b"goes");
        let Some(world) = nobodys(world) else { return };
        for name in ["target/d/e", "target/d"] {
            set_mode(&world.folder.path().join(name), mode);
        }
        world.run_and_check();
        let tally = world.run().summary().tally;
        assert_eq!((tally.created, tally.updated, tally.adjusted), (0, 0, 0), "{mode:o}");
        // The destination itself, whose mode is not the source's.
        world.write("d/more", b"2");
        set_mode(&world.target, mode);
        assert_eq!(world.run().problems(), []);
        assert_eq!(world.read_target("d/more"), b"2");
    }
}

#[test]
fn closed_directory_of_the_copy_is_opened_for_no_dry_run() {
    let mut world = World::deleting();
    world.options.dry_run = true;
    world.write("d/f", b"new");
    world.write_target("d/f", b"old");
    let Some(world) = nobodys(world) else { return };
    set_mode(&world.target.join("d"), 0o000);
    world.run();
    assert_eq!(fs::metadata(world.target.join("d")).unwrap().permissions().mode() & 0o777, 0o000);
}

#[test]
fn closed_files_of_the_copy_are_replaced_or_opened() {
    for checksum in [false, true] {
        let mut world = World::deleting();
        world.options.checksum = checksum;
        for name in ["same", "other-time", "large"] {
            let content = if name == "large" { noise(1, 2 << 20) } else { name.into() };
            world.write(name, &content);
            world.write_target(name, &content);
            set_time(&world.source.join(name), 5, 0);
            set_time(&world.target.join(name), if name == "same" { 5 } else { 6 }, 0);
        }
        world.write("changed", b"new content");
        world.write_target("changed", b"old");
        let Some(world) = nobodys(world) else { return };
        for name in ["same", "other-time", "large", "changed"] {
            set_mode(&world.target.join(name), 0o000);
        }
        world.run_and_check();
    }
}

#[test]
fn unreadable_source_directories_leave_the_mode_of_their_copies() {
    for mode in CLOSED_MODES {
        let world = World::new();
        world.write("open", b"1");
        world.write("d/f", b"2");
        let Some(world) = nobodys(world) else { return };
        world.run_and_check();
        set_mode(&world.source.join("d"), mode);
        world.write("open", b"new content");
        let ran = world.run();
        assert!(ran.problems().contains(&(ProblemKind::Unreadable, "d".to_owned())), "{mode:o} {ran:?}");
        assert_eq!(fs::metadata(world.target.join("d")).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(world.read_target("open"), b"new content");
        set_mode(&world.source.join("d"), 0o755);
        world.run_and_check();
    }
}

#[test]
fn files_of_another_owner_are_replaced_to_get_their_time() {
    let world = World::deleting();
    for (name, old_name) in [("same", "same"), ("d/moved", "moved")] {
        world.write(name, name.as_bytes());
        world.write_target(old_name, name.as_bytes());
        set_time(&world.target.join(old_name), 1, 0);
    }
    let Some(world) = nobodys(world) else { return };
    for name in ["same", "moved"] {
        std::os::unix::fs::lchown(world.target.join(name), Some(0), None).unwrap();
    }
    world.run_and_check();
}

#[test]
fn an_unreadable_source_directory_prevents_all_deletions() {
    let world = World::deleting();
    world.write("open/f", b"new");
    world.write("shut/f", b"1");
    world.write_target("shut/f", b"1");
    world.write_target("extra", b"stays");
    let Some(world) = nobodys(world) else { return };
    set_mode(&world.source.join("shut"), 0o000);
    let ran = world.run();
    let problem_kinds: Vec<ProblemKind> = ran.problems().into_iter().map(|(kind, _)| kind).collect();
    assert!(
        problem_kinds.contains(&ProblemKind::Unreadable) && problem_kinds.contains(&ProblemKind::NotDeleted),
        "{ran:?}"
    );
    assert_eq!(world.read_target("extra"), b"stays");
    assert_eq!(world.read_target("shut/f"), b"1");
    assert_eq!(world.read_target("open/f"), b"new");
}

#[test]
fn an_unlistable_directory_of_the_destination_stays() {
    for is_excluded in [false, true] {
        let mut world = World::deleting();
        if is_excluded {
            world.options.rules = vec![Rule::new(false, b"lost+found".to_vec())];
        }
        world.write("open/f", b"new");
        world.write_target("open/lost+found/f", b"stays");
        world.write_target("extra", b"goes");
        world.write_target("old/f", b"goes");
        let Some(world) = nobodys(world) else { return };
        let shut = world.target.join("open/lost+found");
        set_mode(&shut, 0o000);
        let ran = world.run();
        let told = [(ProblemKind::Unlisted, "open/lost+found".to_owned())];
        assert_eq!(ran.problems(), if is_excluded { &[][..] } else { &told });
        assert_eq!(world.read_target("open/f"), b"new");
        assert!(!world.target.join("extra").exists() && !world.target.join("old").exists());
        set_mode(&shut, 0o700);
        assert_eq!(world.read_target("open/lost+found/f"), b"stays");
    }
}

#[test]
fn an_unreadable_file_is_named_and_the_rest_arrives() {
    let world = World::deleting();
    world.write("open", b"1");
    world.write("shut", b"1");
    world.write("shut-large", &noise(1, 1 << 20));
    world.write_target("shut", b"older");
    let Some(world) = nobodys(world) else { return };
    set_mode(&world.source.join("shut"), 0o000);
    set_mode(&world.source.join("shut-large"), 0o000);
    let ran = world.run();
    let shut = |name: &str| (ProblemKind::Unreadable, name.to_owned());
    let mut problems = ran.problems();
    problems.sort_by(|one, other| one.1.cmp(&other.1));
    assert_eq!(problems, [shut("shut"), shut("shut-large")]);
    assert_eq!((world.read_target("open"), world.read_target("shut")), (b"1".to_vec(), b"older".to_vec()));
}

#[test]
fn an_unwritable_target_is_named_and_the_rest_arrives() {
    let world = World::new();
    world.write("mine/f", b"1");
    world.write("theirs/f", b"1");
    world.write_target("theirs/other", b"1");
    let Some(world) = nobodys(world) else { return };
    std::os::unix::fs::chown(world.target.join("theirs"), Some(0), None).unwrap();
    let ran = world.run();
    assert!(ran.problems().contains(&(ProblemKind::Unwritable, "theirs/f".to_owned())), "{ran:?}");
    assert_eq!(world.read_target("mine/f"), b"1");
}

#[test]
fn links_out_of_the_tree_can_be_excluded() {
    let mut world = World::new();
    world.options.links = Links::Safe;
    symlink("/etc/passwd", world.source.join("absolute")).unwrap();
    symlink("../x", world.source.join("climbing")).unwrap();
    symlink("x", world.source.join("inside")).unwrap();
    let ran = world.run();
    assert_eq!(ran.problems(), []);
    let told = Event::LinksExcluded { links: 2, first: b"absolute".to_vec() };
    assert!(ran.events.contains(&told), "{:?}", ran.events);
    assert!(fs::read_link(world.target.join("inside")).is_ok());
    assert!(fs::read_link(world.target.join("absolute")).is_err());
}

#[test]
fn twenty_thousand_small_files_arrive() {
    let world = World::in_memory();
    for directory in 0..100 {
        let directory = world.source.join(format!("d{directory}"));
        fs::create_dir(&directory).unwrap();
        for n in 0_u32..200 {
            fs::write(directory.join(format!("f{n}")), n.to_le_bytes()).unwrap();
        }
    }
    let ran = world.run();
    assert_eq!((ran.problems(), ran.summary().tally.files), (Vec::new(), 20_000));
    world.assert_same();
    // All files change, so that the receiver has a basis for each.
    for directory in 0..100 {
        for n in 0_u32..200 {
            let path = world.source.join(format!("d{directory}/f{n}"));
            fs::write(path, (n + 1).to_be_bytes()).unwrap();
        }
    }
    let ran = world.run();
    assert_eq!((ran.problems(), ran.summary().tally.updated), (Vec::new(), 20_000));
    world.assert_same();
}

#[test]
fn checksum_finds_an_edit_that_kept_size_and_time() {
    let mut world = World::new();
    world.write("f", b"new");
    world.write_target("f", b"old");
    for root in [&world.source, &world.target] {
        set_time(&root.join("f"), 100, 0);
    }
    assert_eq!(world.run().summary().tally.files, 0, "as it says in the manual");
    world.options.checksum = true;
    world.run_and_check();
}

#[test]
fn a_dry_run_changes_nothing() {
    for there in [false, true] {
        let mut world = World::deleting();
        world.write("f", b"new");
        if there {
            world.write_target("extra", b"stays");
        }
        world.options.dry_run = true;
        let before = there.then(|| crate::world::facts(&world.target));
        let tally = world.run().summary().tally;
        assert_eq!((tally.created, tally.deleted), (1, u64::from(there)));
        assert_eq!(world.target.exists().then(|| crate::world::facts(&world.target)), before);
    }
}
