//! Incremental rounds: they give the same result as a full round, and touch nothing else.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::disk::ReceiverDisk;
use super::properties::{assert_same, delete, problem_kinds, run};
use super::source::SenderDisk;
use super::tree::{Rng, Tree, change, directory, expected, file, grow, path, tree};
use super::{ORDERS, Order};
use crate::monitor::ProblemKind;
use crate::tree::path::TreePath;
use crate::tree::subtrees::{Coverage, SubtreeSet};
use crate::wire::hello::Options;
use crate::wire::message::Tally;

/// The scope that a watcher would report.
fn touched(before: &Tree, after: &Tree) -> SubtreeSet {
    let paths: BTreeSet<&TreePath> = before.keys().chain(after.keys()).collect();
    let changed = paths.into_iter().filter(|path| before.get(path) != after.get(path));
    let is_directory = |tree: &Tree, path: &TreePath| tree.get(path).is_some_and(|node| node.is_directory());
    SubtreeSet::new(
        changed.map(|path| (path.clone(), is_directory(after, path) && !is_directory(before, path))),
    )
}

fn source(tree: Tree, scope: SubtreeSet, pushed_bytes_max: usize) -> SenderDisk {
    let mut source = SenderDisk::new(tree);
    (source.scope, source.pushed_bytes_max) = (Some(scope), pushed_bytes_max);
    source
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn incremental_round_makes_the_same_as_a_full_one(
        seed in any::<u64>(), order in 0..ORDERS.len(), delete in any::<bool>(),
        pushed in prop_oneof![Just(0_usize), Just(1000), Just(20_000)],
    ) {
        let mut rng = Rng::new(seed);
        let before = grow(&mut rng);
        let mut after = before.clone();
        change(&mut rng, &mut after);
        let scope = touched(&before, &after);
        let options = Options { delete, ..super::properties::delete() };
        let expected = expected(&after, &before, delete);

        let ended = run(source(after, scope, pushed), ReceiverDisk::new(before), &options, ORDERS[order], seed);
        assert_same(&expected, &ended.target.tree);
        prop_assert_eq!(ended.target.root, ended.source.root);
        prop_assert!(problem_kinds(&ended).iter().all(|(kind, _)| *kind == ProblemKind::Obstacle));
    }

    #[test]
    fn entries_outside_the_scope_stay_whatever_they_are(
        seed in any::<u64>(), order in 0..ORDERS.len(), options in prop_oneof![Just(Options::default()), Just(delete())],
    ) {
        let mut rng = Rng::new(seed);
        let before = grow(&mut rng);
        let (mut after, mut target) = (before.clone(), before.clone());
        change(&mut rng, &mut after);
        change(&mut rng, &mut target);
        let scope = touched(&before, &after);

        let ended = run(source(after, scope, 20_000), ReceiverDisk::new(target.clone()), &options, ORDERS[order], seed);
        let effective = touched(&before, &ended.source.tree).as_found(&super::tree::manifest(&ended.source.tree));
        let outside = |tree: &Tree| -> Tree {
            let is_outside = |path: &&TreePath| effective.coverage(path) == Coverage::Outside;
            tree.iter().filter(|(path, _)| is_outside(path)).map(|(path, node)| (path.clone(), node.clone())).collect()
        };
        assert_same(&outside(&target), &outside(&ended.target.tree));
    }
}

#[test]
fn pushed_file_needs_no_answer_and_a_damaged_one_is_requested() {
    let before = || tree([("d", directory()), ("d/old", file(b"old"))]);
    let after = tree([("d", directory()), ("d/old", file(b"new!"))]);
    let scope = || SubtreeSet::new([(path("d/old"), false)]);

    let ended =
        run(source(after.clone(), scope(), 100), ReceiverDisk::new(before()), &delete(), Order::Random, 1);
    assert_same(&after, &ended.target.tree);
    assert_eq!((ended.log.wants, ended.log.contents, ended.log.sent_bytes), (0, 0, 4));
    let Tally { updated, files, sent_bytes, entries, .. } = ended.sender.unwrap().tally;
    assert_eq!((updated, files, sent_bytes, entries), (1, 1, 4, 2));

    let mut liar = source(after.clone(), scope(), 100);
    liar.pushes_lies = true;
    let ended = run(liar, ReceiverDisk::new(before()), &delete(), Order::Random, 1);
    assert_same(&after, &ended.target.tree);
    assert_eq!((ended.log.wants, ended.log.contents), (1, 1));
}

#[test]
fn pushed_file_that_is_not_needed_is_skipped() {
    let same = || tree([("d", directory()), ("d/f", file(b"content"))]);
    let scope = SubtreeSet::new([(path("d/f"), false)]);
    let ended = run(source(same(), scope, 100), ReceiverDisk::new(same()), &delete(), Order::Random, 1);
    assert_same(&same(), &ended.target.tree);
    assert_eq!(
        (ended.log.writes, ended.sender.unwrap().tally.files),
        (1, 0),
        "the root's own time, and no file"
    );
}
