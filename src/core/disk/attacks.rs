//! Attacks on the primitives themselves: whatever is in the tree, nothing outside it is touched.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::disk::error::DiskError;
use crate::disk::scan::{Away, ScanOptions, Scanned, Subject, scan};
use crate::disk::stage::{Durability, Metadata, Staging};
use crate::disk::stat::Inode;
use crate::disk::testing::{Fixture, directory, metadata, path, time};
use crate::disk::writable::WritableRoot;
use crate::tree::path::TreePath;

fn write(root: &WritableRoot, at: &TreePath) -> Result<(), DiskError> {
    let (mut staging, _) = Staging::open(root, at)?;
    staging.keep(0)?;
    staging.append(b"attack")?;
    let seen = root.stat(at)?.map(|stat| stat.identity);
    staging.finish(root, &metadata(), seen.as_ref(), Durability::Immediately)
}

/// Every operation on one path, with its result.
fn everything(root: &WritableRoot, at: &TreePath) -> Vec<(&'static str, Result<(), DiskError>)> {
    let seen = root.stat(at).ok().flatten().map(|stat| stat.identity);
    let nothing = Inode { dev: 0, ino: 0 };
    vec![
        ("open_directory", root.open_directory(Some(at)).map(drop)),
        ("open_file", root.open_file(at).map(drop)),
        ("read_link", root.read_link(at).map(drop)),
        (
            "set_directory",
            root.set_directory(at, &directory(0o700, time(1)), seen.as_ref().map_or(nothing, Inode::from)),
        ),
        ("set_link_time", seen.map_or(Ok(()), |seen| root.set_link_time(at, b"f", time(1), &seen))),
        (
            "set_file",
            seen.map_or(Ok(()), |seen| root.set_file(at, &directory(0o600, time(1)), &seen).map(drop)),
        ),
        ("write", write(root, at)),
        // These paths may not exist, or may exist already.
        ("put_new", root.put_new(at, b"attack", &metadata()).map(drop)),
        ("make_symlink", root.make_symlink(at, b"/etc/passwd", time(1), None, seen.as_ref())),
        ("remove_file", root.remove_file(at, None)),
        ("make_directory", root.make_directory(at, 0o755).map(drop)),
        ("remove_directory", root.remove_directory(at)),
    ]
}

fn whole(root: &WritableRoot) -> Scanned {
    let options = ScanOptions { hash: true, ..ScanOptions::default() };
    scan(root, &Subject::Whole, &options, None, &mut Away).unwrap()
}

#[test]
fn a_link_on_the_way_stops_every_operation() {
    for fixture in [Fixture::new(), Fixture::walking()] {
        fs::create_dir_all(fixture.at("a/b")).unwrap();
        // Absolute, relative, through another link, and through two.
        symlink(fixture.outside(), fixture.at("link")).unwrap();
        symlink("../../../outside", fixture.at("a/b/link")).unwrap();
        symlink("link", fixture.at("second")).unwrap();
        symlink("second", fixture.at("third")).unwrap();
        symlink("/proc/self/root", fixture.at("magic")).unwrap();
        symlink(".", fixture.at("self")).unwrap();
        let magic = format!("magic{}/f", fixture.outside().display());
        for at in ["link/f", "link/d/f", "a/b/link/f", "a/b/link/d/f", "second/f", "third/d/f", &magic] {
            let at = path(at);
            assert!(root_stat_fails(&fixture.root, &at), "stat {at}");
            for (verb, result) in everything(&fixture.root, &at) {
                // Without an identity, this operation was not tried.
                if !matches!(verb, "set_file" | "set_link_time") {
                    assert!(result.is_err_and(|error| error.is_in_the_way()), "{verb} {at}");
                }
            }
        }
        assert!(fixture.root.open_file(&path("self/a")).unwrap_err().is_in_the_way());
        fixture.assert_canary_untouched();
    }
}

fn root_stat_fails(root: &WritableRoot, at: &TreePath) -> bool {
    root.stat(at).is_err_and(|error| error.is_in_the_way())
}

#[test]
fn operations_on_a_link_act_on_the_link_itself() {
    for fixture in [Fixture::new(), Fixture::walking()] {
        for target in ["f", "d"] {
            let leaf = path("leaf");
            let plant = || symlink(fixture.outside().join(target), fixture.at("leaf")).unwrap();
            plant();
            assert!(fixture.root.open_file(&leaf).unwrap_err().is_in_the_way());
            assert!(fixture.root.open_directory(Some(&leaf)).unwrap_err().is_in_the_way());
            let seen = fixture.root.stat(&leaf).unwrap().unwrap().identity;
            let inode = Inode::from(&seen);
            assert!(
                fixture
                    .root
                    .set_directory(&leaf, &directory(0o777, time(1)), inode)
                    .unwrap_err()
                    .is_in_the_way()
            );
            assert!(fixture.root.make_directory(&leaf, 0o777).unwrap_err().is_in_the_way());
            fixture.root.set_link_time(&leaf, b"elsewhere", time(1), &seen).unwrap();
            write(&fixture.root, &leaf).unwrap();
            assert!(fixture.at("leaf").symlink_metadata().unwrap().is_file());
            fs::remove_file(fixture.at("leaf")).unwrap();
            plant();
            let seen = fixture.root.stat(&leaf).unwrap().unwrap().identity;
            fixture.root.make_symlink(&leaf, b"elsewhere", time(1), None, Some(&seen)).unwrap();
            fixture.root.remove_file(&leaf, None).unwrap();
        }
        fixture.assert_canary_untouched();
    }
}

/// Stops the other thread when the test ends, also when it fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `attempt` many times while `d` alternates between a directory and a link to one outside.
fn while_flipping(fixture: &Fixture, mut attempt: impl FnMut()) {
    fs::create_dir(fixture.at("d")).unwrap();
    symlink(fixture.outside().join("d"), fixture.at("other")).unwrap();
    let (one, other, stop) = (fixture.at("d"), fixture.at("other"), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let _stop = Stop(&stop);
        for _ in 0..1000 {
            attempt();
        }
    });
}

#[test]
fn a_directory_flipped_with_a_link_leads_nowhere() {
    for fixture in [Fixture::new(), Fixture::walking()] {
        let (mut done, mut refused) = (0, 0);
        while_flipping(&fixture, || {
            for (_, result) in everything(&fixture.root, &path("d/f")) {
                *if result.is_ok() { &mut done } else { &mut refused } += 1;
            }
            if let Ok((file, _)) = fixture.root.open_file(&path("d/f")) {
                assert_ne!(std::io::read_to_string(file).unwrap(), "canary");
            }
        });
        assert!(done + refused > 10_000 && done > 100 && refused > 100, "{done} done, {refused} refused");
        fixture.assert_canary_untouched();
    }
}

#[test]
fn a_scan_of_flipped_directories_sees_nothing_from_outside() {
    let fixture = Fixture::new();
    while_flipping(&fixture, || {
        assert!(whole(&fixture.root).manifest.entries().all(|entry| entry.path.name() != b"f"));
    });
}

fn plant_fifo(at: &Path) {
    assert!(Command::new("mkfifo").arg(at).status().unwrap().success());
}

#[test]
fn fifos_hang_no_operation() {
    for fixture in [Fixture::new(), Fixture::walking()] {
        plant_fifo(&fixture.at("fifo"));
        assert!(fixture.root.open_file(&path("fifo")).unwrap_err().is_not_regular());
        assert!(fixture.root.open_directory(Some(&path("fifo/f"))).is_err());
        let scanned = whole(&fixture.root);
        assert!(scanned.manifest.len() == 1 && scanned.manifest.get(0).unwrap().special().is_some());
        // A FIFO in the place of a staged file.
        let name = Staging::name(&path("x"));
        write(&fixture.root, &path("y")).unwrap();
        plant_fifo(&fixture.at(".ksync").join(name));
        write(&fixture.root, &path("x")).unwrap();
        assert_eq!(fs::read(fixture.at("x")).unwrap(), b"attack");
    }
}

#[test]
fn a_planted_part_is_never_written_through() {
    let fixture = Fixture::new();
    write(&fixture.root, &path("y")).unwrap();
    let part = fixture.at(".ksync").join(Staging::name(&path("x")));
    symlink(fixture.outside().join("f"), &part).unwrap();
    write(&fixture.root, &path("x")).unwrap();
    fs::create_dir(&part).unwrap();
    write(&fixture.root, &path("x")).unwrap();
    fixture.assert_canary_untouched();
    // A hard link changes the canary's metadata, so only its content is compared.
    fs::hard_link(fixture.outside().join("f"), &part).unwrap();
    let (staging, have) = Staging::open(&fixture.root, &path("x")).unwrap();
    assert_eq!((have, staging.len()), (0, 0));
    drop(staging);
    write(&fixture.root, &path("x")).unwrap();
    assert_eq!(fs::read(fixture.outside().join("f")).unwrap(), b"canary");
    assert_eq!(fixture.outside().join("f").metadata().unwrap().nlink(), 1);
}

#[test]
fn a_staged_file_is_locked_against_other_runs() {
    let fixture = Fixture::new();
    let (mut first, _) = Staging::open(&fixture.root, &path("x")).unwrap();
    first.append(b"one").unwrap();
    assert!(Staging::open(&fixture.root, &path("x")).unwrap_err().is_busy());
    drop(first);
    assert_eq!(Staging::open(&fixture.root, &path("x")).unwrap().1, 3);
}

#[test]
fn a_file_with_other_hard_links_is_replaced_and_never_changed() {
    let fixture = Fixture::new();
    fs::hard_link(fixture.outside().join("f"), fixture.at("f")).unwrap();
    let seen = fixture.root.stat(&path("f")).unwrap().unwrap().identity;
    assert!(fixture.root.set_file(&path("f"), &directory(0o777, time(1)), &seen).unwrap_err().must_be_anew());
    write(&fixture.root, &path("f")).unwrap();
    let canary = fixture.outside().join("f");
    assert_eq!(fs::read(&canary).unwrap(), b"canary");
    assert_eq!(canary.metadata().unwrap().permissions().mode() & 0o777, 0o644);
}

#[test]
fn a_moved_root_is_followed_by_its_descriptor() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.at("d")).unwrap();
    assert!(fixture.root.is_still_there());
    fs::rename(fixture.at(""), fixture.outside().with_file_name("moved")).unwrap();
    symlink(fixture.outside(), fixture.at("").parent().unwrap().join("root")).unwrap();
    assert!(!fixture.root.is_still_there());
    write(&fixture.root, &path("d/f")).unwrap();
    fixture.assert_canary_untouched();
}

#[test]
fn trees_deeper_than_path_max_are_read_written_and_removed() {
    const DEPTH: usize = 60;
    for fixture in [Fixture::new(), Fixture::walking()] {
        let name = "x".repeat(100);
        let mut paths = vec![path(&name)];
        for _ in 1..DEPTH {
            paths.push(paths.last().unwrap().join(name.as_bytes()).unwrap());
        }
        for at in &paths {
            fixture.root.make_directory(at, 0o755).unwrap();
            write(&fixture.root, &at.join(b"f").unwrap()).unwrap();
        }
        assert!(paths.last().unwrap().as_bytes().len() > 4096);
        let scanned = whole(&fixture.root);
        assert_eq!((scanned.manifest.len(), scanned.problems.len()), (2 * DEPTH, 0));
        assert!(scanned.manifest.entries().is_sorted_by(|one, other| one.path < other.path));
        for at in paths.iter().rev() {
            fixture.root.remove_file(&at.join(b"f").unwrap(), None).unwrap();
            fixture.root.remove_directory(at).unwrap();
        }
        assert!(whole(&fixture.root).manifest.is_empty());
    }
}

#[test]
fn a_scan_reopens_the_closed_levels_of_a_deep_tree() {
    // Two directories per level, so that the scan comes back to every level after it was closed.
    const DEPTH: usize = 300;
    let fixture = Fixture::new();
    let mut at = path("b");
    for _ in 0..DEPTH {
        fixture.root.make_directory(&at, 0o755).unwrap();
        fixture.root.make_directory(&at.join(b"z").unwrap(), 0o755).unwrap();
        at = at.join(b"b").unwrap();
    }
    let scanned = whole(&fixture.root);
    assert_eq!((scanned.manifest.len(), scanned.problems.len()), (2 * DEPTH, 0));
    assert!(scanned.manifest.entries().is_sorted_by(|one, other| one.path < other.path));
}

// Apple's filesystems take only UTF-8.
#[cfg(target_os = "linux")]
#[test]
fn names_are_bytes() {
    for fixture in [Fixture::new(), Fixture::walking()] {
        for name in [&b"\xff\xfe"[..], b"a\nb", b"-x", b"$(touch p)", &[b'n'; 255]] {
            write(&fixture.root, &path(name)).unwrap();
        }
        let names: Vec<_> =
            whole(&fixture.root).manifest.entries().map(|entry| entry.path.to_path()).collect();
        assert_eq!(names, [&b"$(touch p)"[..], b"-x", b"a\nb", &[b'n'; 255], b"\xff\xfe"].map(path));
    }
}

#[test]
fn set_id_bits_are_set_only_where_the_policy_allows_them() {
    let fixture = Fixture::new();
    let made = fixture.root.make_directory(&path("d"), 0o6755).unwrap();
    fixture.root.set_directory(&path("d"), &directory(0o6755, time(1)), made.inode).unwrap();
    let (staging, _) = Staging::open(&fixture.root, &path("f")).unwrap();
    let metadata = Metadata { mode: 0o6755, ..metadata() };
    staging.finish(&fixture.root, &metadata, None, Durability::Eventually).unwrap();
    let stat = fixture.root.stat(&path("f")).unwrap().unwrap();
    assert_eq!(stat.mode, 0o755);
    let stat = fixture.root.set_file(&path("f"), &directory(0o4700, time(1)), &stat.identity).unwrap();
    assert_eq!(stat.mode, 0o700);
    assert_eq!(fixture.at("d").metadata().unwrap().permissions().mode() & 0o7777, 0o755);
}
