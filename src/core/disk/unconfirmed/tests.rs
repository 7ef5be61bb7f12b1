use std::fs;
use std::time::Duration;

use super::*;
use crate::disk::scan::{Away, ScanOptions, Scanned, Subject, scan};
use crate::disk::testing::{Fixture, metadata, path};
use crate::disk::writable::WritableRoot;

/// A fixture on a filesystem that keeps files.
fn lasting_place() -> Option<Fixture> {
    Fixture::able("all files are in memory", |fixture| nature(fixture.root.descriptor()) == Nature::Lasting)
}

fn scanned(root: &WritableRoot) -> Scanned {
    let options = ScanOptions { doubts: true, cross_mounts: true, ..ScanOptions::default() };
    let mut scanned = scan(root, &Subject::Whole, &options, None, &mut Away).unwrap();
    root.seen_markers(std::mem::take(&mut scanned.markers));
    scanned
}

/// The doubted files of a root that is opened again.
fn doubted(fixture: &Fixture, below: &str) -> Vec<(String, Doubt)> {
    let scanned = scanned(&WritableRoot::open(&fixture.at(below)).unwrap());
    let name = |at: u32| scanned.manifest.path(at).unwrap().to_string();
    scanned.doubts.positions().map(|at| (name(at), scanned.doubts.of(at).unwrap())).collect()
}

fn unverified(names: &[&str]) -> Vec<(String, Doubt)> {
    names.iter().map(|name| ((*name).to_owned(), Doubt::Unverified)).collect()
}

/// Puts a new file in place, as a run does.
fn put(root: &WritableRoot, name: &str) {
    let path = path(name);
    if !root.put_new(&path, b"new", &metadata()).unwrap() {
        let (mut staging, _) = crate::disk::stage::Staging::open(root, &path).unwrap();
        staging.append(b"new").unwrap();
        let durability = crate::disk::stage::Durability::Eventually;
        staging.finish(root, &metadata(), None, durability).unwrap();
    }
}

/// Simulates a power cut: the marker gets another boot id.
fn lose_power(directory: &std::path::Path) {
    let directory = OwnedFd::from(File::open(directory).unwrap());
    let mut marker = read(&directory).unwrap();
    for epoch in [&mut marker.own, &mut marker.failed].into_iter().flatten() {
        epoch.mount.as_mut().unwrap().boot[0] ^= 1;
    }
    write(&directory, &marker).unwrap();
}

/// Waits until the clock of file times has advanced.
fn wait_a_tick() {
    thread::sleep(Duration::from_millis(20));
}

#[test]
fn new_files_are_doubted_after_a_power_cut_until_verified() {
    let Some(fixture) = lasting_place() else { return };
    fs::write(fixture.at("old"), "old").unwrap();
    wait_a_tick();
    let root = &fixture.root;
    root.begin_writing(true, false);
    put(root, "f");
    assert_eq!(doubted(&fixture, "."), [], "this mount has it in memory");
    lose_power(&fixture.at("."));
    assert_eq!(doubted(&fixture, "."), unverified(&["f"]));

    let again = WritableRoot::open(&fixture.at(".")).unwrap();
    again.begin_writing(true, false);
    let seen = scanned(&again);
    wait_a_tick();
    wait_a_second_if_whole(&again);
    let at = seen.manifest.position(&path("f")).unwrap();
    again.vouch_for(&path("f"), &seen.identities.get(&seen.manifest, at).unwrap()).unwrap();
    assert_eq!(doubted(&fixture, "."), []);
    again.settle(true, false).unwrap();
    let marker = read(again.descriptor()).unwrap();
    assert!(marker.stale.is_none() && marker.own.is_some(), "{marker:?}");
    // A file that is on the disk needs no marker.
    again.settle(true, true).unwrap();
    assert_eq!(read(again.descriptor()), None);
    assert!(!fixture.at(".ksync").exists());
}

/// Waits until a doubted file is old enough. A change of metadata is marked from the beginning of
/// its second on, so doubted files must be older.
fn wait_a_second_if_whole(_root: &WritableRoot) {
    thread::sleep(Duration::from_millis(1100));
}

#[test]
fn a_failed_flush_makes_the_next_run_write_again() {
    let Some(fixture) = lasting_place() else { return };
    fixture.root.begin_writing(true, false);
    put(&fixture.root, "f");
    fixture.root.mark_lost();
    assert_eq!(doubted(&fixture, "."), [("f".to_owned(), Doubt::Lost)]);
    lose_power(&fixture.at("."));
    assert_eq!(doubted(&fixture, "."), unverified(&["f"]), "what can be read now is what the disk has");
}

#[test]
fn markers_above_and_below_the_root_count() {
    let Some(fixture) = lasting_place() else { return };
    fs::create_dir_all(fixture.at("d/deep")).unwrap();
    fs::write(fixture.at("f"), "").unwrap();
    fs::write(fixture.at("d/deep/f"), "").unwrap();
    let marker = |recursive| Marker { stale: Some(Stamp::EVER), recursive, ..Marker::default() };
    let set = |at: &str, marker: &Marker| {
        write(&OwnedFd::from(File::open(fixture.at(at)).unwrap()), marker).unwrap();
    };
    set("d", &marker(true));
    assert_eq!(doubted(&fixture, "."), unverified(&["d/deep/f"]), "an earlier run was about d alone");
    assert_eq!(doubted(&fixture, "d/deep"), unverified(&["f"]), "an earlier run was about more");
    set("d", &marker(false));
    assert_eq!(doubted(&fixture, "."), [], "it put single files into d");
    fs::write(fixture.at("d/single"), "").unwrap();
    assert_eq!(doubted(&fixture, "."), unverified(&["d/single"]));
    rustix::fs::setxattr(fixture.at("."), ATTRIBUTE, b"garbage", XattrFlags::empty()).unwrap();
    assert_eq!(doubted(&fixture, ".").len(), 3, "nothing is trusted");
}

#[test]
fn a_file_holds_the_marker_without_extended_attributes() {
    let fixture = Fixture::new();
    let directory = OwnedFd::from(File::open(fixture.at(".")).unwrap());
    let marker = Marker { recursive: true, ..Marker::default() }.covering(None, Stamp(7, 8), None);
    write_file(&directory, &marker.encode()).unwrap();
    assert_eq!(read(&directory), Some(marker));
    write_file(&directory, &[]).unwrap();
    assert_eq!(read(&directory), Some(Marker::DISTRUST));
    remove(&directory);
    assert_eq!(read(&directory), None);
    assert!(!fixture.at(".ksync").exists());
}

#[test]
fn a_run_of_a_single_file_leaves_a_shallow_marker() {
    let Some(fixture) = lasting_place() else { return };
    fs::create_dir(fixture.at("d")).unwrap();
    fixture.root.begin_writing(false, true);
    put(&fixture.root, "f");
    assert!(!read(fixture.root.descriptor()).unwrap().recursive);
    // A run of the whole tree extends the marker.
    let again = WritableRoot::open(&fixture.at(".")).unwrap();
    again.begin_writing(true, false);
    put(&again, "d/f");
    assert!(read(fixture.root.descriptor()).unwrap().recursive);
}
