//! A destination on which `a` and `A` are one name.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::disk::{DiskState, Done, ReceiverDisk};
use super::properties::{assert_same, delete, problem_kinds, run};
use super::source::SenderDisk;
use super::tree::{Rng, Tree, directory, file, grow, link, path, tree};
use super::{Ended, ORDERS, Order};
use crate::monitor::ProblemKind;
use crate::tree::manifest::Manifest;
use crate::tree::path::TreePath;
use crate::tree::spelling::{Answers, Questions, Respelled, Spelling, Suspects};

impl DiskState {
    pub(super) fn resolve(&self, questions: &Questions) -> Answers {
        let mut answers = Answers::default();
        if !self.folds {
            return answers;
        }
        let is_one = |one: &TreePath, other: &TreePath| one.as_bytes().eq_ignore_ascii_case(other.as_bytes());
        for Suspects { wanted, candidates } in &questions.suspects {
            for &(id, ref path) in wanted {
                let found = candidates.iter().find(|(_, candidate)| is_one(path, candidate));
                answers.respelled.extend(found.map(|&(at, _)| Respelled { id, at, is_shown: true }));
            }
        }
        for group in &questions.groups {
            for (index, (id, path)) in group.iter().enumerate() {
                let first = group[..index].iter().find(|(_, earlier)| is_one(path, earlier));
                answers.twins.extend(first.map(|&(first, _)| (*id, first)));
            }
        }
        answers
    }

    /// From here on the tree is addressed by the wanted names, whatever the disk shows.
    pub(super) fn take_names(&mut self, present: &Arc<Manifest>, spelling: &Spelling) {
        let before = std::mem::replace(&mut self.present, Arc::clone(present));
        for (entry, &listed) in present.entries().zip(spelling.order()) {
            let (old, new) = (before.path(listed).unwrap().to_path(), entry.path.to_path());
            if old != new {
                let node = self.listed[&old].clone();
                self.tree.remove(&old);
                self.listed.remove(&old);
                self.tree.insert(new.clone(), node.clone());
                self.listed.insert(new.clone(), node);
                if old.name() != new.name() {
                    self.spelled.insert(new, old);
                }
            }
        }
    }

    pub(super) fn respell(&mut self, path: &TreePath) -> Done {
        assert!(self.may_change(path), "{path} is in a locked directory");
        assert!(self.spelled.remove(path).is_some(), "{path} has its name already");
        self.touch(path);
        Ok(())
    }
}

fn folding(tree: Tree) -> ReceiverDisk {
    let mut target = ReceiverDisk::new(tree);
    target.folds = true;
    target
}

fn once(source: &Tree, target: ReceiverDisk, order: Order, seed: u64) -> Ended {
    run(SenderDisk::new(source.clone()), target, &delete(), order, seed)
}

/// The same tree with some names in another case.
fn respelled(rng: &mut Rng, source: &Tree) -> Tree {
    let shift = rng.below(3);
    let other = |path: &TreePath| {
        let components = path.components().enumerate().map(|(depth, name)| {
            if (depth + name.len() + shift).is_multiple_of(3) {
                name.to_vec()
            } else {
                name.to_ascii_uppercase()
            }
        });
        TreePath::new(components.collect::<Vec<_>>().join(&b"/"[..])).unwrap()
    };
    source.iter().map(|(path, node)| (other(path), node.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn change_of_case_in_names_changes_nothing_else(seed in any::<u64>(), order in 0..ORDERS.len()) {
        let mut rng = Rng::new(seed);
        let source = grow(&mut rng);
        let target = respelled(&mut rng, &source);

        let ended = once(&source, folding(target), ORDERS[order], seed);
        assert_same(&source, &ended.target.tree);
        prop_assert!(ended.target.spelled.is_empty(), "{:?}", ended.target.spelled);
        prop_assert_eq!((ended.log.sent_bytes, ended.log.wants), (0, 0));
        prop_assert_eq!(problem_kinds(&ended), []);
        let tally = ended.receiver.unwrap().tally;
        prop_assert_eq!((tally.created, tally.updated, tally.deleted), (0, 0, 0));
        let again = once(&source, ended.target.again(), ORDERS[order], seed);
        prop_assert!(!again.receiver.unwrap().tally.has_changed());
    }
}

#[test]
fn first_of_two_twins_exists_and_the_other_is_reported_in_every_run() {
    let source = tree([
        ("A", file(b"first")),
        ("D", directory()),
        ("D/x", file(b"x")),
        ("a", file(b"second")),
        ("d", directory()),
        ("d/y", file(b"y")),
        ("d/z", link("y")),
    ]);
    let mut expected = source.clone();
    expected.retain(|path, _| !path.as_bytes().starts_with(b"a") && !path.as_bytes().starts_with(b"d"));
    for order in ORDERS {
        let mut target = folding(Tree::new());
        for run in 0..3 {
            let ended = once(&source, target, order, 1);
            assert_same(&expected, &ended.target.tree);
            let told = ["a", "d"].map(|name| (ProblemKind::Obstacle, name.to_owned()));
            assert_eq!(problem_kinds(&ended), told, "{order:?} {run}");
            assert_eq!(ended.receiver.unwrap().tally.has_changed(), run == 0, "{order:?} {run}");
            target = ended.target.again();
        }
    }
    // The existing one stays, though it is not the first.
    let there = tree([("a", file(b"second")), ("gone", file(b"g"))]);
    let ended = once(&source, folding(there), Order::Random, 1);
    assert!(ended.target.tree.contains_key(&path("a")) && !ended.target.tree.contains_key(&path("A")));
    assert!(!ended.target.tree.contains_key(&path("gone")));
}

#[test]
fn both_twins_exist_where_the_filesystem_folds_nothing() {
    let source =
        tree([("A", file(b"first")), ("a", file(b"second")), ("D", directory()), ("d", directory())]);
    for before in [Tree::new(), tree([("A", file(b"first")), ("d", directory())])] {
        let ended = once(&source, ReceiverDisk::new(before), Order::Random, 1);
        assert_same(&source, &ended.target.tree);
        assert_eq!(problem_kinds(&ended), []);
    }
}
