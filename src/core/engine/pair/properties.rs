//! Two honest machines: properties that hold after a run, whatever the order.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::disk::ReceiverDisk;
use super::source::{Lie, SenderDisk};
use super::tree::{Rng, Tree, change, differences, directory, expected, file, grow, link, path, tree};
use super::{Ended, ORDERS, Order, Pair};
use crate::engine::RunError;
use crate::monitor::{Action, Event, ProblemKind, Written};
use crate::tree::filter::{Filter, Rule};
use crate::tree::path::{TreePath, escape};
use crate::wire::hello::{Consent, Options};
use crate::wire::message::{Tally, WANTS_MAX};

pub(super) fn delete() -> Options {
    let consent = Consent { yes: true, ..Consent::default() };
    Options { delete: true, consent, ..Options::default() }
}

pub(super) fn run(
    source: SenderDisk,
    target: ReceiverDisk,
    options: &Options,
    order: Order,
    seed: u64,
) -> Ended {
    let ended = Pair::new(source, target, options, order, seed).run(None);
    for result in [&ended.sender, &ended.receiver] {
        assert!(result.is_ok(), "{result:?}");
    }
    ended
}

pub(super) fn problem_kinds(ended: &Ended) -> Vec<(ProblemKind, String)> {
    let summary = ended.sender.as_ref().unwrap();
    let shown = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    summary.problems.iter().map(|problem| (problem.kind, shown(&problem.path))).collect()
}

pub(super) fn tally(result: &Result<crate::engine::Summary, RunError>) -> Tally {
    result.as_ref().unwrap().tally
}

pub(super) fn assert_same(expected: &Tree, actual: &Tree) {
    assert_eq!(differences(expected, actual), Vec::<String>::new());
}

/// Asserts that the progress never goes back, and ends when everything is written or given up.
#[track_caller]
pub(super) fn assert_progress(ended: &Ended) {
    let written = ended.events.iter().filter_map(|event| match event {
        Event::Written(written) => Some(*written),
        _ => None,
    });
    let written: Vec<_> = written.collect();
    assert!(written.is_sorted_by_key(|written| (written.files, written.bytes)), "{written:?}");
    let is_within =
        |written: &Written| written.files <= written.total_files && written.bytes <= written.total_bytes;
    assert!(written.iter().all(is_within), "{written:?}");
    if let [_, .., Written { files, total_files, bytes, total_bytes }] = written[..] {
        assert_eq!((files, bytes), (total_files, total_bytes));
        assert!(bytes <= ended.log.sent_bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn target_becomes_source_in_any_order_and_second_run_sends_nothing(
        seed in any::<u64>(), order in 0..ORDERS.len(), delete in any::<bool>(), related in any::<bool>(),
    ) {
        let mut rng = Rng::new(seed);
        let source = grow(&mut rng);
        let mut target = if related { source.clone() } else { grow(&mut rng) };
        change(&mut rng, &mut target);
        let options = Options { delete, ..super::properties::delete() };
        let expected = expected(&source, &target, delete);

        let ended = run(SenderDisk::new(source), ReceiverDisk::new(target), &options, ORDERS[order], seed);
        assert_same(&expected, &ended.target.tree);
        assert_progress(&ended);
        assert!(ended.target.staged.is_empty());
        prop_assert_eq!(ended.target.root, ended.source.root);
        prop_assert_eq!(tally(&ended.sender), tally(&ended.receiver));
        prop_assert!(problem_kinds(&ended).iter().all(|(kind, _)| *kind == ProblemKind::Obstacle));

        let again = run(ended.source, ended.target.again(), &options, ORDERS[order], seed + 1);
        assert_same(&expected, &again.target.tree);
        prop_assert_eq!((again.log.wants, again.log.contents, again.log.sent_bytes), (0, 0, 0));
        let Tally { created, updated, adjusted, deleted, .. } = tally(&again.sender);
        prop_assert_eq!((created, updated, adjusted, deleted), (0, 0, 0, 0));
    }

    #[test]
    fn dry_run_writes_nothing_and_counts_what_a_run_does(
        seed in any::<u64>(), order in 0..ORDERS.len(), delete in any::<bool>(),
    ) {
        let mut rng = Rng::new(seed);
        let source = grow(&mut rng);
        let mut target = source.clone();
        change(&mut rng, &mut target);
        let dry = Options { delete, dry_run: true, list_changes: true, ..Options::default() };
        let ended = run(SenderDisk::new(source.clone()), ReceiverDisk::new(target.clone()), &dry, ORDERS[order], seed);
        assert_same(&target, &ended.target.tree);
        prop_assert_eq!((ended.log.writes, ended.log.wants, ended.log.contents), (0, 0, 0));

        let wet = Options { dry_run: false, ..dry };
        let real = run(ended.source, ended.target.again(), &wet, ORDERS[order], seed);
        prop_assert_eq!(changes(&ended.events), changes(&real.events), "the preview is the plan");
    }
}

#[test]
fn deletions_need_the_option_and_remove_children_first() {
    let source = tree([("kept", file(b"1"))]);
    let target = tree([
        ("gone", directory()),
        ("gone/deep", directory()),
        ("gone/deep/f", file(b"2")),
        ("gone/l", link("x")),
        ("kept", file(b"1")),
    ]);
    for order in ORDERS {
        let without = run(
            SenderDisk::new(source.clone()),
            ReceiverDisk::new(target.clone()),
            &Options::default(),
            order,
            1,
        );
        assert_same(&target, &without.target.tree);
        let with =
            run(SenderDisk::new(source.clone()), ReceiverDisk::new(target.clone()), &delete(), order, 1);
        assert_same(&source, &with.target.tree);
        assert_eq!(tally(&with.sender).deleted, 4);
    }
}

#[test]
fn excluded_entries_stay_with_the_directories_around_them() {
    let rules = vec![Rule::new(false, b"*.keep".to_vec())];
    let options = Options { rules: rules.clone(), ..delete() };
    let mut source = SenderDisk::new(tree([("a.keep", file(b"not offered")), ("f", file(b"1"))]));
    source.filter = Filter::new(&rules);
    let target = tree([("d", directory()), ("d/x.keep", file(b"stays")), ("d/y", file(b"goes"))]);
    let ended = run(source, ReceiverDisk::new(target), &options, Order::Random, 3);
    let names: Vec<String> = ended.target.tree.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["d", "d/x.keep", "f"]);
}

#[test]
fn nothing_is_deleted_when_a_side_could_not_list_everything() {
    for sides in [(false, true), (true, false)] {
        let mut source = SenderDisk::new(tree([("d", file(b"now a file")), ("f", file(b"1"))]));
        let mut target = ReceiverDisk::new(tree([
            ("d", directory()),
            ("d/f", file(b"stays")),
            ("extra", file(b"stays too")),
        ]));
        (source.complete, target.complete) = sides;
        let ended = run(source, target, &delete(), Order::Random, 5);
        let names: Vec<String> = ended.target.tree.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["d", "d/f", "extra", "f"]);
        let expected = [(ProblemKind::NotDeleted, String::new()), (ProblemKind::Obstacle, "d".to_owned())];
        assert_eq!(problem_kinds(&ended), expected);
    }
}

/// Files that take every possible strategy: read whole, read whole although a basis exists,
/// streamed, streamed with a delta, and found to be the same.
fn every_way() -> (Tree, Tree) {
    let mut rng = Rng::new(9);
    let big = rng.bytes(200 << 10);
    let source = tree([
        ("delta", file(&big)),
        ("small", file(b"small")),
        ("same", file(&big[..50_000])),
        ("streamed", file(&rng.bytes(300_000))),
        ("updated", file(b"updated")),
    ]);
    let mut old = big.clone();
    old[100_000] ^= 1;
    let mut target = tree([("delta", file(&old)), ("same", file(&big[..50_000])), ("updated", file(b"old"))]);
    for node in target.values_mut() {
        node.mtime = super::tree::time(2);
    }
    (source, target)
}

#[test]
fn small_edit_in_a_large_file_travels_as_a_delta() {
    let (source, target) = every_way();
    let ended = run(SenderDisk::new(source.clone()), ReceiverDisk::new(target), &delete(), Order::Random, 7);
    assert_same(&source, &ended.target.tree);
    assert!(ended.log.sign_requests == 1 && ended.log.sent_bytes < 315_000, "{:?}", ended.log);
    assert_eq!(tally(&ended.sender).sent_bytes, ended.log.sent_bytes);
    assert!(problem_kinds(&ended).is_empty());
}

#[test]
fn lie_about_a_file_costs_one_retry_of_the_whole() {
    let (source, target) = every_way();
    for name in source.keys() {
        for lie in [Lie::Same, Lie::Hash] {
            for order in ORDERS {
                let mut lying = SenderDisk::new(source.clone());
                lying.lies.insert(name.clone(), (lie, 1));
                let ended = run(lying, ReceiverDisk::new(target.clone()), &delete(), order, 11);
                assert_same(&source, &ended.target.tree);
                assert_progress(&ended);
                // Files that one message vouched for together with a lie are sent again with it.
                let again = if lie == Lie::Same { 1..=source.len() } else { 1..=1 };
                assert!(again.contains(&(ended.log.wants - source.len())), "{name} {lie:?}");
                assert!(problem_kinds(&ended).is_empty());
            }
        }
    }
}

#[test]
fn repeated_lie_is_a_problem_and_the_basis_stays() {
    let (source, target) = every_way();
    for name in source.keys() {
        for order in ORDERS {
            let mut lying = SenderDisk::new(source.clone());
            lying.lies.insert(name.clone(), (Lie::Hash, 2));
            let ended = run(lying, ReceiverDisk::new(target.clone()), &delete(), order, 13);
            let mut expected = source.clone();
            expected.remove(name);
            expected.extend(target.get_key_value(name).map(|(name, old)| (name.clone(), old.clone())));
            assert_same(&expected, &ended.target.tree);
            assert_eq!(problem_kinds(&ended), [(ProblemKind::Corrupt, name.to_string())]);
        }
    }
}

#[test]
fn unreadable_file_is_a_problem_and_the_rest_arrives() {
    let (source, target) = every_way();
    for name in source.keys() {
        for order in ORDERS {
            let mut broken = SenderDisk::new(source.clone());
            broken.unreadable.insert(name.clone());
            let ended = run(broken, ReceiverDisk::new(target.clone()), &delete(), order, 17);
            let mut expected = source.clone();
            expected.remove(name);
            expected.extend(target.get_key_value(name).map(|(name, old)| (name.clone(), old.clone())));
            assert_same(&expected, &ended.target.tree);
            assert_eq!(problem_kinds(&ended), [(ProblemKind::Unreadable, name.to_string())]);
        }
    }
}

#[test]
fn receiver_with_a_slow_disk_holds_a_bounded_amount() {
    let mut rng = Rng::new(1);
    let mut source = Tree::new();
    for n in 0..24 {
        source.insert(path(&format!("large-{n:02}")), file(&rng.bytes(1 << 20)));
        source.insert(path(&format!("small-{n:02}")), file(&rng.bytes(128 << 10)));
    }
    for order in [Order::ReceiverStarved, Order::WorksLast] {
        let mut sender = SenderDisk::new(source.clone());
        sender.limits.piece_bytes = 512 << 10;
        let ended = run(sender, ReceiverDisk::new(Tree::new()), &delete(), order, 19);
        assert_same(&source, &ended.target.tree);
        // The bytes that may wait, the bytes in the works of the most files in flight, and one
        // message.
        let most = (8 << 20) + (8 << 20) + (1 << 20);
        assert!(ended.log.held_bytes_max <= most, "{order:?}: {}", ended.log.held_bytes_max);
    }
}

#[test]
fn unanswered_wants_never_exceed_the_limit() {
    let count = WANTS_MAX + 500;
    let mut source = Tree::new();
    let mut target = Tree::new();
    for n in 0..count {
        let name = path(&format!("{n:05}"));
        source.insert(name.clone(), file(b"new"));
        target.insert(name, file(b"older"));
    }
    for order in [Order::SenderStarved, Order::Random] {
        let ended =
            run(SenderDisk::new(source.clone()), ReceiverDisk::new(target.clone()), &delete(), order, 23);
        assert_same(&source, &ended.target.tree);
        assert!(ended.log.open_wants_max <= WANTS_MAX, "{}", ended.log.open_wants_max);
    }
}

/// The reported changes by path. A file of another time is an update in the preview, and an
/// adjustment once its content proved to be the same.
fn changes(events: &[Event]) -> Vec<(Vec<u8>, bool)> {
    let change = |event: &Event| match event {
        Event::Change { action, path, .. } => Some((path.clone(), *action == Action::Delete)),
        _ => None,
    };
    let mut changes: Vec<_> = events.iter().filter_map(change).collect();
    changes.sort_unstable();
    changes
}

/// The reported changes in order.
fn lines(events: &[Event]) -> Vec<String> {
    let line = |event: &Event| match event {
        Event::Change { action, path, .. } => Some(format!("{action:?} {}", escape(path))),
        _ => None,
    };
    events.iter().filter_map(line).collect()
}

#[test]
fn long_run_lists_changes_as_they_happen_and_others_as_rsync_does() {
    let source = |size: usize| {
        tree([
            ("a", directory()),
            ("a/f", file(&vec![1; size])),
            ("in the way", file(b"2")),
            ("kind", link("t")),
            ("l", link("new")),
            ("z", file(b"3")),
        ])
    };
    let mut target = tree([("l", link("old")), ("z", file(b"3"))]);
    for name in ["in the way", "in the way/b", "old"] {
        target.insert(path(name), directory());
    }
    for name in ["in the way/b/c", "kind", "old/x", "old/y", "old2"] {
        target.insert(path(name), file(b""));
    }
    let listed = |size, dry_run| {
        let options = Options { list_changes: true, dry_run, ..delete() };
        let (from, to) = (SenderDisk::new(source(size)), ReceiverDisk::new(target.clone()));
        lines(&run(from, to, &options, Order::Random, 29).events)
    };
    let planned = [
        "Delete old/y",
        "Delete old/x",
        "Delete old",
        "Delete old2",
        "Delete in the way/b/c",
        "Delete in the way/b",
        "Adjust ",
        "Create in the way",
        "Create kind",
        "Update l",
        "Create a",
        "Create a/f",
    ];
    for (size, dry_run) in [(1, true), (300_000, true), (1, false)] {
        assert_eq!(listed(size, dry_run), planned);
    }
    let mut happened = listed(300_000, false);
    // Contents arrive in any order.
    happened[1..5].sort();
    assert_eq!(
        happened,
        [
            "Create a",
            "Create a/f",
            "Create in the way",
            "Delete in the way/b",
            "Delete in the way/b/c",
            "Create kind",
            "Update l",
            "Delete old/y",
            "Delete old/x",
            "Delete old",
            "Delete old2",
            "Adjust ",
        ]
    );
}

#[test]
fn failed_file_is_not_listed() {
    let (source, target) = every_way();
    let options = Options { list_changes: true, ..delete() };
    for name in source.keys() {
        for order in ORDERS {
            let (mut lying, mut broken) = (SenderDisk::new(source.clone()), SenderDisk::new(source.clone()));
            lying.lies.insert(name.clone(), (Lie::Hash, 2));
            broken.unreadable.insert(name.clone());
            for disk in [lying, broken] {
                let ended = run(disk, ReceiverDisk::new(target.clone()), &options, order, 31);
                assert_progress(&ended);
                let changes = changes(&ended.events);
                let is_listed = |name: &TreePath| {
                    changes.iter().any(|(path, is_deleted)| !is_deleted && path == name.as_bytes())
                };
                let listed: Vec<_> = source.keys().filter(|name| is_listed(name)).collect();
                let others: Vec<_> = source.keys().filter(|&other| other != name).collect();
                assert_eq!(listed, others, "{order:?}");
            }
        }
    }
}
