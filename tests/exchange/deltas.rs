//! The number of transferred bytes.

use std::time::Duration;

use ksync::exchange::Sending;

use crate::world::{World, noise, set_time};

const MB: usize = 1 << 20;

/// Copies a content, changes it, and copies again. Returns the cost of the second run and its
/// tally.
fn change(length: usize, change: impl FnOnce(&mut Vec<u8>)) -> (u64, ksync::wire::message::Tally) {
    let world = World::new();
    let mut content = noise(1, length);
    world.write("f", &content);
    world.run_and_check();
    change(&mut content);
    world.write("f", &content);
    let ran = world.run_and_check();
    (ran.bytes, ran.summary().tally)
}

#[test]
fn one_changed_block_of_64_mb_costs_less_than_a_hundredth() {
    let (bytes, tally) = change(64 * MB, |content| content[30 * MB..][..4096].fill(7));
    assert!(bytes < 64 * MB as u64 / 100, "{bytes}");
    assert_eq!((tally.updated, tally.files), (1, 1));
    assert!(tally.matched_bytes > 63 * MB as u64 && tally.sent_bytes < 100_000, "{tally:?}");
}

#[test]
fn an_insertion_at_the_front_moves_everything_and_costs_little() {
    let (bytes, _) = change(20 * MB, |content| drop(content.splice(..0, *b"at the very front")));
    assert!(bytes < 200_000, "{bytes}");
}

#[test]
fn distant_insertions_removals_and_edits_cost_only_themselves() {
    let (bytes, tally) = change(64 * MB, |content| {
        content[2 * MB] ^= 1;
        content.drain(10 * MB..10 * MB + 300_001);
        content.splice(40 * MB..40 * MB, noise(9, 1_000_000));
        content[60 * MB..][..10].fill(7);
    });
    assert!(bytes < 1_200_000, "{bytes}");
    assert!(tally.matched_bytes > 60 * MB as u64, "{tally:?}");
}

#[test]
fn swapped_halves_are_found() {
    let (bytes, _) = change(32 * MB, |content| content.rotate_left(15 * MB + 17));
    assert!(bytes < 1_500_000, "{bytes}");
}

#[test]
fn an_append_costs_only_the_new_bytes() {
    let (bytes, _) = change(20 * MB, |content| content.extend(noise(2, 300_000)));
    assert!(bytes < 500_000, "{bytes}");
}

#[test]
fn a_truncation_costs_little() {
    let (bytes, _) = change(20 * MB, |content| content.truncate(13 * MB + 5));
    assert!(bytes < 200_000, "{bytes}");
}

#[test]
fn a_small_edit_in_a_middling_file_costs_little() {
    let (bytes, _) = change(100_000, |content| content[50_000] ^= 1);
    assert!(bytes < 10_000, "{bytes}");
}

#[test]
fn many_small_edits_cost_a_little_each() {
    let world = World::new();
    let text = |n: usize| -> Vec<u8> {
        (0..200 + n % 300)
            .flat_map(|line| format!("line {line} of {n}: {}\n", line * n * 7919).into_bytes())
            .collect()
    };
    let mut total = 0;
    for n in 0..800 {
        total += text(n).len();
        world.write(&format!("d{}/{n}", n % 10), &text(n));
    }
    world.run_and_check();
    for n in 0..800 {
        let mut edited = text(n);
        let middle = edited.len() / 2;
        edited.splice(middle..middle + 3, *b"another line\n");
        world.write(&format!("d{}/{n}", n % 10), &edited);
    }
    let ran = world.run_and_check();
    let tally = ran.summary().tally;
    assert_eq!(tally.updated, 800);
    assert!(ran.bytes < total as u64 / 6, "{} of {total}", ran.bytes);
    assert!(tally.sent_bytes < total as u64 / 6, "{tally:?}");
}

#[test]
fn a_changed_time_alone_sends_no_content() {
    for length in [0, 5, 20_000, 3 * MB] {
        let world = World::new();
        world.write("f", &noise(1, length));
        world.run_and_check();
        set_time(&world.source.join("f"), -86_400, 123_456_789);
        let ran = world.run_and_check();
        let tally = ran.summary().tally;
        assert_eq!((tally.sent_bytes, tally.updated, tally.adjusted), (0, 0, 1), "{length}");
        assert!(ran.bytes < 1500 + length as u64 / 1000, "{length}: {}", ran.bytes);
    }
}

#[test]
fn unrelated_content_costs_hardly_more_than_itself() {
    let (bytes, _) = change(12 * MB, |content| *content = noise(3, 12 * MB));
    assert!(bytes < 12 * MB as u64 + 600_000, "{bytes}");
}

#[test]
fn text_shrinks_with_compression() {
    let mut world = World::new();
    world.options.compress = true;
    world.write("f", &b"the quick brown fox ".repeat(100_000));
    let ran = world.run_and_check();
    assert!(ran.bytes < 20_000, "{}", ran.bytes);
}

#[test]
fn an_unchanged_tree_costs_a_few_bytes_per_entry() {
    let world = World::new();
    for n in 0..1000 {
        world.write(&format!("d{}/file-{n}", n % 10), b"x");
    }
    world.run_and_check();
    let ran = world.run();
    assert!(ran.bytes < 40_000, "{}", ran.bytes);
}

/// Copies a content, changes it, and copies again to a receiver that has prehashed. `meddle` may
/// change the copy after the prehash.
fn change_with_a_prehash(change: impl FnOnce(&mut Vec<u8>), meddle: impl FnOnce(&World)) -> u64 {
    let world = World::new();
    let mut content = noise(1, 20 * MB);
    world.write("f", &content);
    world.run_and_check();
    change(&mut content);
    world.write("f", &content);
    let receiving = world.prehashing(Duration::from_millis(100));
    meddle(&world);
    let ran = world.run_with(Sending::new(world.source.clone(), world.options.clone()), receiving);
    assert_eq!(ran.problems(), []);
    world.assert_same();
    ran.bytes
}

#[test]
fn a_prehash_finds_the_same_differences() {
    let edit = |content: &mut Vec<u8>| content[7 * MB..][..10].fill(7);
    assert!(change_with_a_prehash(edit, |_| {}) < 100_000);
    // The new content is so long that its blocks are longer; or it is short.
    let append = |content: &mut Vec<u8>| content.extend(vec![7; 60 * MB]);
    assert!(change_with_a_prehash(append, |_| {}) < 200_000 + 60 * MB as u64);
    let cut = |content: &mut Vec<u8>| content.truncate(11 * MB);
    assert!(change_with_a_prehash(cut, |_| {}) < 100_000);
    assert!(change_with_a_prehash(|content| content.truncate(MB), |_| {}) < 100_000);
}

#[test]
fn a_change_after_the_prehash_is_found() {
    // Without this check, the changed copy would be taken for the same.
    let swap = |world: &World| {
        let mut copy = world.read_target("f");
        copy[3 * MB] ^= 1;
        world.write_target("f", &copy);
    };
    assert!(change_with_a_prehash(|_| {}, swap) < 100_000);
}
