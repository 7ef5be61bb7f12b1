//! Large files that changed: the receiver makes a pre-copy, guided by samples of the changes,
//! before the differences are known.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ksync::engine::{Engine, ReceiveInput, ReceiverOutcome, ReceiverWork};
use ksync::exchange::{FileReceiver, Perform, Receiving, Sending};
use ksync::wire::message::BasisReport;

use crate::world::{World, noise, set_time, staged_bytes};

const MB: usize = 1 << 20;

#[test]
fn a_large_file_with_only_another_time_leaves_nothing_staged() {
    for is_prehashing in [false, true] {
        let world = World::new();
        let content = noise(1, 33 * MB);
        world.write("f", &content);
        world.write_target("f", &content);
        set_time(&world.target.join("f"), 1_000_000_000, 0);
        let receiving = if is_prehashing {
            world.prehashing(Duration::from_millis(300))
        } else {
            Receiving::new(world.target.clone(), world.options.clone())
        };
        let ran = world.run_with(Sending::new(world.source.clone(), world.options.clone()), receiving);
        world.assert_same();
        assert!(ran.bytes < 50_000, "{}", ran.bytes);
        // The file's own time, and that of the root.
        assert_eq!((ran.summary().tally.updated, ran.summary().tally.adjusted), (0, 2));
        assert_eq!(world.staged_bytes(), 0);
    }
}

#[test]
fn large_files_edited_in_place_cost_only_their_edits() {
    let world = World::new();
    // More files than are pre-copied at a time.
    let names = ["a", "b", "c", "d"];
    for (seed, name) in (1..).zip(names) {
        let mut content = noise(seed, 33 * MB);
        world.write_target(name, &content);
        content[20 * MB - 5..][..10].fill(7);
        content[5 * MB..][..MB / 2].fill(0);
        // A block that moved within the file is found in the basis, not in the patched pre-copy.
        content[10 * MB..12 * MB].rotate_left(MB);
        world.write(name, &content);
    }
    let ran = world.run_and_check();
    assert!(ran.bytes < 20 * MB as u64, "{}", ran.bytes);
    assert_eq!(ran.summary().tally.updated, 4);
    assert_eq!(world.staged_bytes(), 0);
}

#[test]
fn zeros_of_a_large_file_take_no_space() {
    let world = World::new();
    let mut content = vec![0; 40 * MB];
    content[13 * MB] = 1;
    world.write_target("f", &content);
    content[26 * MB] = 2;
    world.write("f", &content);
    world.run_and_check();
    let allocated_bytes = world.target.join("f").metadata().unwrap().blocks() * 512;
    assert!(allocated_bytes <= MB as u64, "{allocated_bytes}");
}

/// The receiver's state after it had sent the basis report of a large file.
#[derive(Default)]
struct Observed {
    staged_bytes: AtomicU64,
    /// The length of the basis, if it was advertised without a shift.
    advertised_bytes: AtomicU64,
}

/// An observed receiver, and its target.
struct Observing(Receiving, PathBuf, Arc<Observed>);

impl Perform<FileReceiver> for Observing {
    fn perform(&self, work: <FileReceiver as Engine>::Work) -> <FileReceiver as Engine>::Outcome {
        let Self(inner, target, observed) = self;
        let is_pre_copy = |(_, input): &(_, ReceiveInput)| matches!(input, ReceiveInput::PreCopy(..));
        let makes_pre_copy = matches!(&work, ReceiverWork::Step(_, steps) if steps.iter().any(is_pre_copy));
        let outcome = inner.perform(work);
        if makes_pre_copy || matches!(outcome, ReceiverOutcome::Report(_)) {
            observed.staged_bytes.fetch_max(staged_bytes(target), Ordering::Relaxed);
        }
        if let ReceiverOutcome::Report(reported) = &outcome {
            for (_, reported) in reported {
                // A report with a range removed does not count.
                if let Some(BasisReport::Blocks(old)) = &reported.as_ref().unwrap().0.basis {
                    observed.advertised_bytes.store(old.length, Ordering::Relaxed);
                }
            }
        }
        outcome
    }
}

const LARGE_BYTES: usize = 40 * MB;

/// New versions of a large file, each with its approximate minimum cost in bytes.
fn changed(old: &[u8]) -> Vec<(&'static str, Vec<u8>, usize)> {
    let insert = |at: usize, inserted: &[u8]| [&old[..at], inserted, &old[at..]].concat();
    let without = |from: usize, to: usize| [&old[..from], &old[to..]].concat();
    let edited = |mut content: Vec<u8>| {
        content.chunks_mut(9 * MB).for_each(|chunk| chunk[77] ^= 1);
        content
    };
    let twice = [&old[..7 * MB], &noise(2, 5000), &old[7 * MB..8 * MB], b"and", &old[8 * MB..]].concat();
    vec![
        ("inserted", insert(13 * MB + 5, &noise(2, MB)), MB),
        ("at the front", insert(0, b"at the very front"), 0),
        ("near the end", insert(old.len() - 5, &noise(2, 3 * MB)), 3 * MB),
        ("appended", insert(old.len(), &noise(2, 3 * MB)), 3 * MB),
        ("zeros", insert(old.len(), &vec![0; 3 * MB]), 3 * MB),
        ("inserted and edited", edited(insert(20 * MB, &noise(2, MB))), MB + 50_000),
        ("in two places", twice, 5000),
        ("taken out", without(13 * MB + 5, 14 * MB + 5), 0),
        ("taken out at the front", without(0, MB), 0),
        ("a few bytes taken out", without(30 * MB, 30 * MB + 7), 0),
        ("much taken out", without(5 * MB, 12 * MB), 0),
        ("cut off", without(35 * MB, old.len()), 0),
        ("taken out and edited", edited(without(20 * MB, 21 * MB)), 50_000),
    ]
}

/// Changes a large file, syncs it to a receiver that prehashed for `prehash_time`, if at all, and
/// checks the cost.
fn change_large(
    old: &[u8],
    what: &str,
    new: &[u8],
    most: usize,
    prehash_time: Option<Duration>,
) -> Arc<Observed> {
    let world = World::new();
    world.write_target("f", old);
    world.write("f", new);
    let observed = Arc::new(Observed::default());
    let sending = Sending::new(world.source.clone(), world.options.clone());
    let receiving = match prehash_time {
        Some(time) => world.prehashing(time),
        None => Receiving::new(world.target.clone(), world.options.clone()),
    };
    let receiving = Observing(receiving, world.target.clone(), Arc::clone(&observed));
    let ran = world.run_with(sending, receiving);
    world.assert_same();
    assert_eq!(ran.problems(), vec![], "{what}");
    let tally = ran.summary().tally;
    assert_eq!((tally.updated, tally.sent_bytes + tally.matched_bytes), (1, new.len() as u64), "{what}");
    assert!(ran.bytes < most as u64 + 60_000, "{what}: {}", ran.bytes);
    assert_eq!(world.staged_bytes(), 0, "{what}");
    observed
}

#[test]
fn insertions_and_removals_in_a_large_file_cost_only_themselves() {
    let old = noise(1, LARGE_BYTES);
    for (what, new, most) in changed(&old) {
        let observed = change_large(&old, what, &new, most, None);
        // The pre-copy is made before the differences are known.
        assert_eq!(observed.staged_bytes.load(Ordering::Relaxed), new.len() as u64, "{what}");
    }
}

#[test]
fn a_prehashed_large_file_is_advertised_without_a_shift() {
    let old = noise(1, LARGE_BYTES);
    for (what, new, most) in changed(&old) {
        // The prehash yields to all other work of this machine, so several durations are tried.
        let is_advertised_unchanged = [20, 500, 2000, 10_000].into_iter().any(|time| {
            let observed = change_large(&old, what, &new, most, Some(Duration::from_millis(time)));
            observed.advertised_bytes.load(Ordering::Relaxed) == LARGE_BYTES as u64
        });
        assert!(is_advertised_unchanged, "{what}");
    }
}

#[test]
fn an_append_to_a_large_file_continues_after_a_cut() {
    let mut world = World::new();
    let old = noise(1, 40 * MB);
    world.write_target("f", &old);
    world.write("f", &[&old[..], &noise(2, 20 * MB)].concat());
    world.cut_after = Some(12 * MB as u64);
    let cut = world.run();
    assert!(cut.client.is_err() && world.read_target("f") == old);
    world.cut_after = None;
    let ran = world.run_and_check();
    assert!(ran.bytes < 11 * MB as u64, "{}", ran.bytes);
}
