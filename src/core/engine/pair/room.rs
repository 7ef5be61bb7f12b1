//! Room: a run that cannot fit is refused before anything is written, and a run that may fit is
//! not.

use super::disk::ReceiverDisk;
use super::source::SenderDisk;
use super::tree::{Tree, directory, file, path, tree};
use super::{Ended, ORDERS, Pair};
use crate::engine::work::Room;
use crate::wire::hello::Options;
use crate::wire::message::{AbortKind, Holes};

const KIB: usize = 1 << 10;

/// Content of this length; another `seed` gives another content.
fn content(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 7) as u8 ^ (at / 1009) as u8 ^ seed).collect()
}

fn room(bytes: usize, inodes: u64) -> Room {
    Room {
        bytes: bytes as u64,
        reserve_bytes: 0,
        inodes,
        block_bytes: 4096,
        shares_extents: false,
        staged_bytes: 0,
        staged_files: 0,
        mounts: Vec::new(),
    }
}

fn run(source: SenderDisk, target: Tree, room: Room, delete: bool, seed: u64) -> Ended {
    let mut target = ReceiverDisk::new(target);
    target.room = Some(room);
    let options = Options { delete, ..super::properties::delete() };
    let order = ORDERS[seed as usize % ORDERS.len()];
    Pair::new(source, target, &options, order, seed).run(None)
}

#[track_caller]
fn is_refused(source: &Tree, target: &Tree, room: Room, words: &[&str]) {
    for seed in 0..5 {
        let ended = run(SenderDisk::new(source.clone()), target.clone(), room.clone(), true, seed);
        let error = ended.receiver.unwrap_err();
        assert_eq!((error.kind, error.by_peer), (AbortKind::Storage, false), "{error}");
        assert_eq!(ended.sender.unwrap_err().text, error.text);
        words.iter().for_each(|word| assert!(error.text.contains(word), "{word}: {error}"));
        assert_eq!(ended.log.writes, 0, "{error}");
        assert!(ended.target.tree == *target, "{error}");
    }
}

#[track_caller]
fn fits(source: &Tree, target: &Tree, room: Room, delete: bool) {
    for seed in 0..5 {
        let ended = run(SenderDisk::new(source.clone()), target.clone(), room.clone(), delete, seed);
        assert!(ended.receiver.is_ok(), "{:?}", ended.receiver);
    }
}

#[test]
fn content_beyond_the_free_space_is_refused_before_any_write() {
    let source = tree([("d", directory()), ("d/f", file(&content(1, 100 * KIB)))]);
    let target = tree([("gone", file(b"kept"))]);
    is_refused(&source, &target, room(99 * KIB, 9), &["/jar", "102.4 kB", "101.3 kB", "nothing was changed"]);
    fits(&source, &target, room(100 * KIB, 9), true);
}

#[test]
fn missing_inodes_are_refused_and_links_and_directories_count() {
    let link = super::tree::link("f");
    let source = tree([("d", directory()), ("d/f", file(b"x")), ("d/l", link)]);
    is_refused(&source, &Tree::new(), room(KIB * KIB, 2), &["inodes", "3 files", "2 inodes"]);
    fits(&source, &Tree::new(), room(KIB * KIB, 3), true);
    is_refused(&source, &tree([("x", file(b""))]), room(0, 2), &["space and inodes"]);
}

#[test]
fn reserve_stays_free_and_is_named_where_it_decides() {
    let source = tree([("f", file(&content(1, 100 * KIB)))]);
    let with = |reserve_bytes| Room { reserve_bytes, ..room(100 * KIB, 9) };
    is_refused(&source, &Tree::new(), with(1000), &["1.0 kB are kept in reserve"]);
    fits(&source, &Tree::new(), with(0), false);
    // A run that writes nothing is not refused because of a reserve.
    fits(&source, &source, Room { reserve_bytes: 1000, ..room(0, 0) }, true);
}

#[test]
fn old_content_occupies_space_until_the_new_one_is_complete() {
    let (old, new) = (content(1, 90 * KIB), content(2, 100 * KIB));
    let (source, target) = (tree([("f", file(&new))]), tree([("f", file(&old))]));
    is_refused(&source, &target, room(99 * KIB, 9), &["102.4 kB"]);
    fits(&source, &target, room(100 * KIB, 0), false);
    // The run may need less if other files shrink before.
    let source = tree([("f", file(&new)), ("g", file(&content(3, 10 * KIB)))]);
    let target = tree([("f", file(&old)), ("g", file(&content(4, 60 * KIB)))]);
    fits(&source, &target, room(52 * KIB, 0), false);
}

#[test]
fn deletions_come_last_and_make_no_room() {
    let source = tree([("new", file(&content(1, 100 * KIB)))]);
    let target = tree([("old", file(&content(2, 300 * KIB)))]);
    is_refused(&source, &target, room(90 * KIB, 9), &["102.4 kB"]);
}

#[test]
fn directory_in_the_way_makes_room() {
    let source = tree([("x", file(&content(1, 100 * KIB)))]);
    let target = tree([("x", directory()), ("x/y", file(&content(2, 300 * KIB)))]);
    fits(&source, &target, room(4 * KIB, 9), true);
}

#[test]
fn content_that_may_be_the_same_or_moved_needs_no_room() {
    let new = content(1, 100 * KIB);
    let mut touched = file(&new);
    touched.mtime = super::tree::time(12345);
    fits(&tree([("f", touched)]), &tree([("f", file(&new))]), room(0, 0), false);
    let source = tree([("new", file(&new))]);
    fits(&source, &tree([("old", file(&new))]), room(0, 0), true);
    // A copy beside the original does need room.
    is_refused(
        &tree([("new", file(&new)), ("old", file(&new))]),
        &tree([("old", file(&new))]),
        room(0, 9),
        &["102.4 kB"],
    );
}

#[test]
fn holes_staged_files_shared_extents_and_mounts_count_in_favour() {
    let source = tree([("d", directory()), ("d/f", file(&content(1, 100 * KIB)))]);
    let holes = [
        Holes { files: vec![(1, 96 << 10)], others_bytes: 0 },
        Holes { files: Vec::new(), others_bytes: 96 << 10 },
    ];
    for holes in holes {
        let mut sparse = SenderDisk::new(source.clone());
        sparse.holes = holes;
        assert!(run(sparse, Tree::new(), room(4 * KIB, 9), false, 1).receiver.is_ok());
    }
    let mut lying = SenderDisk::new(source.clone());
    lying.holes = Holes { files: vec![(0, u64::MAX), (7, u64::MAX)], others_bytes: 0 };
    assert!(run(lying, Tree::new(), room(4 * KIB, 9), false, 1).receiver.is_err());

    let staged = Room { staged_bytes: 96 << 10, staged_files: 1, ..room(4 * KIB, 1) };
    fits(&source, &Tree::new(), staged, false);
    let mounted = Room { mounts: vec![path("d")], ..room(0, 0) };
    fits(&source, &tree([("d", directory())]), mounted, false);
    let target = tree([("d", directory()), ("d/f", file(&content(2, 90 * KIB)))]);
    fits(&source, &target, Room { shares_extents: true, ..room(0, 0) }, false);
}

#[test]
fn filesystem_that_counts_no_inodes_has_enough() {
    fits(&tree([("f", file(b""))]), &Tree::new(), room(0, u64::MAX), false);
}
