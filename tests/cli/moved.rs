//! Moved and copied files are found in the destination, and their content is not sent again.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::world::{World, noise};

/// Trees with small and large files, equal on both sides.
fn synced() -> World {
    let world = World::new();
    let mut tree = world.tree("src").file("top/large", noise(1, 3_000_000)).dir("top/empty");
    for number in 0..200_u64 {
        tree = tree.file(format!("top/{}/{number}", number % 7), noise(number, 3000 + number as usize));
    }
    world.sync("src", world.far("dst"));
    world
}

#[test]
fn a_renamed_directory_sends_no_content_either_way() {
    let world = synced();
    let inode = |name: &str| fs::metadata(world.path(name)).unwrap().ino();
    let before = inode("dst/top/large");
    fs::rename(world.path("src/top"), world.path("src/renamed")).unwrap();
    let up = world.sync_with(&["--delete"], "src", world.far("dst"));
    world.assert_same("src", "dst");
    assert_eq!(up.sent_bytes, 0, "{up:?}");
    assert!(up.wire_bytes() < up.total_bytes / 100, "{up:?}");
    assert_eq!(inode("dst/renamed/large"), before, "it was copied");

    fs::rename(world.path("src/renamed"), world.path("src/again")).unwrap();
    // A copy by upload is no known copy of a download, so deletions need consent.
    let down = world.sync_with(&["--delete", "--yes"], world.far("src"), "dst");
    world.assert_same("src", "dst");
    assert_eq!(down.sent_bytes, 0, "{down:?}");
}

#[test]
fn a_moved_file_with_other_hard_links_is_copied() {
    let world = synced();
    fs::hard_link(world.path("dst/top/large"), world.path("outside")).unwrap();
    fs::rename(world.path("src/top/large"), world.path("src/large")).unwrap();
    fs::set_permissions(world.path("src/large"), fs::Permissions::from_mode(0o640)).unwrap();
    let before = fs::metadata(world.path("outside")).unwrap();
    let stats = world.sync_with(&["--delete"], "src", world.far("dst"));
    world.assert_same("src", "dst");
    assert_eq!(stats.sent_bytes, 0, "{stats:?}");
    let after = fs::metadata(world.path("outside")).unwrap();
    assert_eq!((after.nlink(), after.mode(), after.mtime()), (1, before.mode(), before.mtime()));
}

#[test]
fn a_moved_file_also_stays_in_its_old_place_without_delete() {
    let world = synced();
    fs::rename(world.path("src/top/large"), world.path("src/large")).unwrap();
    let stats = world.sync("src", world.far("dst"));
    assert_eq!(stats.sent_bytes, 0, "{stats:?}");
    for name in ["dst/top/large", "dst/large"] {
        assert_eq!(fs::read(world.path(name)).unwrap(), fs::read(world.path("src/large")).unwrap());
    }
}

#[test]
fn a_copied_file_sends_no_content() {
    let world = synced();
    fs::copy(world.path("src/top/large"), world.path("src/copy")).unwrap();
    let stats = world.sync("src", world.far("dst"));
    world.assert_same("src", "dst");
    assert_eq!(stats.sent_bytes, 0, "{stats:?}");
}

#[test]
fn a_file_that_only_looks_moved_is_sent_whole() {
    let world = synced();
    // Another content under the same name, with the same size and time, in another directory.
    let content = fs::read(world.path("src/top/1/1")).unwrap();
    let mtime = fs::metadata(world.path("src/top/1/1")).unwrap().modified().unwrap();
    world.tree("src").file("other/1", noise(999, content.len()));
    fs::File::options().write(true).open(world.path("src/other/1")).unwrap().set_modified(mtime).unwrap();
    let stats = world.sync("src", world.far("dst"));
    world.assert_same("src", "dst");
    assert_eq!(stats.sent_bytes, content.len() as u64, "{stats:?}");
}

#[test]
fn files_that_swapped_names_end_under_their_new_names() {
    let world = synced();
    let [one, other] = ["src/top/large", "src/top/0/0"].map(|name| world.path(name));
    world.tree("src").file("top/twin", noise(2, 3_000_000));
    world.sync("src", world.far("dst"));
    let aside = world.path("src/aside");
    fs::rename(&one, &aside).unwrap();
    fs::rename(world.path("src/top/twin"), &one).unwrap();
    fs::rename(&aside, world.path("src/top/twin")).unwrap();
    fs::remove_file(&other).unwrap();
    world.sync_with(&["--delete"], "src", world.far("dst"));
    world.assert_same("src", "dst");
}
