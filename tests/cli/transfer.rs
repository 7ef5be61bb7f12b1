//! Transfers: which content is sent, and which is not.

use std::fs;
use std::time::{Duration, Instant};

use crate::world::{Run, World, noise};

#[test]
fn an_upload_makes_the_far_tree_a_copy() {
    let world = World::new();
    world.tree("src").with_everything();
    let stats = world.sync("src", world.far("dst"));
    world.assert_same("src", "dst");
    assert!(stats.agent.starts_with("installed"), "{stats:?}");
    assert_eq!(stats.sent_bytes, stats.total_bytes);
    assert!(!world.path("dst/.ksync").exists());
}

#[test]
fn a_download_makes_the_local_tree_a_copy() {
    let world = World::new();
    world.tree("src").with_everything();
    world.sync(world.far("src"), "dst");
    world.assert_same("src", "dst");
    assert!(!world.path("dst/.ksync").exists());
}

#[test]
fn an_upload_and_a_download_restore_the_tree() {
    let world = World::new();
    world.tree("src").with_everything();
    world.sync("src", world.far("there"));
    world.sync(world.far("there"), "back");
    world.assert_same("src", "back");
}

#[test]
fn a_local_copy_needs_no_vm() {
    let world = World::new();
    world.tree("src").with_everything();
    let stats = world.sync("src", "dst");
    world.assert_same("src", "dst");
    assert_eq!((stats.wire_bytes(), stats.agent.as_str()), (0, "not needed"));
    assert!(!world.far_home().exists());
}

#[test]
fn a_second_run_sends_no_content() {
    let world = World::new();
    world.tree("src").with_everything();
    world.sync("src", world.far("dst"));
    for (source, destination) in [("src".into(), world.far("dst")), (world.far("dst"), "src".into())] {
        let stats = world.sync(source, destination);
        assert_eq!(stats.summary, format!("nothing to do: {} entries are in place", stats.entries));
        assert_eq!((stats.sent_bytes, stats.agent.as_str()), (0, "was there"));
        assert!(stats.wire_bytes() < 1000, "{stats:?}");
    }
}

#[test]
fn one_changed_block_of_a_large_file_sends_less_than_a_hundredth_of_it() {
    const SIZE: usize = 64 << 20;
    let world = World::new();
    let mut content = noise(1, SIZE);
    world.tree("src").file("image", &content);
    world.sync("src", world.far("dst"));
    content[SIZE / 2..SIZE / 2 + 4096].copy_from_slice(&noise(2, 4096));
    world.tree("src").file("image", &content);
    let up = world.sync("src", world.far("dst"));
    world.assert_same("src", "dst");
    assert!(up.wire_bytes() < SIZE as u64 / 100, "{up:?}");
    assert!(up.matched_bytes > SIZE as u64 / 100 * 99, "{up:?}");

    content[SIZE / 3..SIZE / 3 + 4096].copy_from_slice(&noise(3, 4096));
    world.tree("src").file("image", &content);
    let down = world.sync(world.far("src"), "dst");
    world.assert_same("src", "dst");
    assert!(down.wire_bytes() < SIZE as u64 / 100, "{down:?}");
}

#[test]
fn only_delete_removes_extra_entries() {
    let world = World::new();
    world.tree("src").with_everything();
    world.tree("dst").file("old/deep/file", "old").link("stale", "old").dir("gone");
    world.sync("src", world.far("dst"));
    assert!(world.path("dst/old/deep/file").exists());
    let stats = world.sync_with(&["--delete", "--yes"], "src", world.far("dst"));
    assert!(stats.summary.contains("5 deleted"), "{}", stats.summary);
    world.assert_same("src", "dst");
}

#[test]
fn a_dry_run_lists_all_changes_and_makes_none() {
    let world = World::new();
    world.tree("src").with_everything();
    world.tree("dst").file("empty", "not any more").file("old", "old");
    let before = (world.snapshot("src"), world.snapshot("dst"));
    for (source, destination, sign) in
        [("src".into(), world.far("dst"), '<'), (world.far("src"), "dst".into(), '>')]
    {
        let mut command = world.ksync(["-n", "-i", "--delete"]);
        command.arg(source).arg(destination);
        let run = Run::of(command).ok();
        for line in
            [&format!("{sign}f+++++++++ src/main.rs"), "*deleting   old", "cL+++++++++ link -> src/main.rs"]
        {
            assert!(run.stdout.lines().any(|told| told == line), "{line} in\n{}", run.stdout);
        }
        assert!(run.summary().starts_with("would change "), "{}", run.summary());
        assert_eq!((world.snapshot("src"), world.snapshot("dst")), before);
    }
    assert!(!world.path("dst/.ksync").exists());
}

#[test]
fn a_dry_run_creates_no_destination() {
    let world = World::new();
    world.tree("src").with_everything();
    world.sync_with(&["--dry-run"], "src", world.far("new/dst"));
    assert!(!world.path("new").exists());
}

#[test]
fn twenty_thousand_small_files_take_seconds() {
    const FILES: usize = 20_000;
    let world = World::new();
    let mut tree = world.tree("src");
    for number in 0..FILES {
        tree = tree.file(format!("{:02}/{number:05}.txt", number % 50), format!("file {number}\n"));
    }
    let start = Instant::now();
    let first = world.sync("src", world.far("dst"));
    let (copied, start) = (start.elapsed(), Instant::now());
    let second = world.sync("src", world.far("dst"));
    let looked = start.elapsed();
    world.assert_same("src", "dst");
    assert_eq!(first.entries, FILES as u64 + 50);
    assert_eq!(second.sent_bytes, 0);
    // With a round trip or a thread for each file, this would take far longer.
    assert!(copied < Duration::from_secs(40), "{copied:?}");
    assert!(looked < Duration::from_secs(10), "{looked:?}");
    // Even the names are compressed.
    assert!(second.wire_bytes() < 16 * FILES as u64, "{second:?}");
}

#[test]
fn files_in_pieces_may_arrive_faster_than_the_disk_takes_them() {
    let world = World::new();
    let mut tree = world.tree("src");
    for number in 0..400 {
        tree = tree.file(format!("{number}"), noise(number, 150_000));
    }
    world.sync("src", world.far("up"));
    world.assert_same("src", "up");
    world.sync(world.far("src"), "down");
    world.assert_same("src", "down");
}

#[test]
fn checksum_finds_an_edit_that_size_and_time_hide() {
    let world = World::new();
    world.tree("src").file("a", "before").file("b", "same");
    world.sync("src", world.far("dst"));
    world.tree("src").secretly("a", "after!");
    assert!(world.sync("src", world.far("dst")).summary.starts_with("nothing to do"));
    assert_eq!(fs::read(world.path("dst/a")).unwrap(), b"before");
    world.sync_with(&["-c"], "src", world.far("dst"));
    world.assert_same("src", "dst");
    world.tree("dst").secretly("b", "SAME");
    world.sync_with(&["--checksum"], world.far("src"), "dst");
    world.assert_same("src", "dst");
}

#[test]
fn a_changed_time_alone_sends_no_content() {
    let world = World::new();
    world.tree("src").file("a", noise(1, 1 << 20));
    world.sync("src", world.far("dst"));
    world.tree("src").time("a", 1_500_000_000, 7).mode("a", 0o600);
    let stats = world.sync("src", world.far("dst"));
    world.assert_same("src", "dst");
    assert_eq!(stats.sent_bytes, 0);
    assert!(stats.wire_bytes() < 2000, "{stats:?}");
}
