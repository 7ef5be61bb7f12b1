//! Deletions that need consent: without it the receiver does everything else, in any order.

use std::sync::Arc;

use super::disk::ReceiverDisk;
use super::properties::{assert_same, delete, problem_kinds, run};
use super::source::SenderDisk;
use super::tree::{Tree, directory, file, link, path, tree};
use super::{Ended, ORDERS, Order};
use crate::engine::work::Destination;
use crate::monitor::{Action, Event, Reason};
use crate::tree::subtrees::SubtreeSet;
use crate::tree::tree_id::Pair;
use crate::wire::hello::{Consent, History, Options};

/// A destination with this pair.
pub(super) fn known(pair: Pair) -> Destination {
    let history = History { pair: Some(pair), session: None };
    Destination { history, ..Destination::default() }
}

/// `--delete` without any consent.
fn unasked() -> Options {
    Options { consent: Consent::default(), list_changes: true, ..delete() }
}

/// A target that was never a copy of anything.
fn foreign(tree: Tree) -> ReceiverDisk {
    target(tree, Destination::default())
}

fn target(tree: Tree, destination: Destination) -> ReceiverDisk {
    let mut target = ReceiverDisk::new(tree);
    target.destination = destination;
    target
}

fn reason(ended: &Ended) -> Option<Reason> {
    let reasons = [&ended.sender, &ended.receiver]
        .map(|side| side.as_ref().unwrap().braked.as_ref().map(|braked| braked.reason));
    assert_eq!(reasons[0], reasons[1], "both sides know");
    reasons[0]
}

fn is_paired(ended: &Ended) -> bool {
    ended.events.iter().any(|event| matches!(event, Event::Paired(_)))
}

fn deleted(ended: &Ended) -> usize {
    let is_deletion = |event: &&Event| matches!(event, Event::Change { action: Action::Delete, .. });
    ended.events.iter().filter(is_deletion).count()
}

fn wanted() -> Tree {
    tree([("file", file(b"in a directory's place")), ("link", link("file")), ("new", file(&[7; 9000]))])
}

/// A tree with a non-empty directory in place of a file and of a link, and a file that would be
/// moved.
fn in_the_way() -> Tree {
    tree([
        ("file", directory()),
        ("file/k", file(b"k")),
        ("link", directory()),
        ("link/k", file(b"k")),
        ("old", file(&[7; 9000])),
    ])
}

#[test]
fn braked_run_does_everything_but_deletions() {
    for order in ORDERS {
        let ended = run(SenderDisk::new(wanted()), foreign(in_the_way()), &unasked(), order, 1);
        let mut expected = in_the_way();
        expected.insert(path("new"), file(&[7; 9000]));
        assert_same(&expected, &ended.target.tree);
        assert_eq!((reason(&ended), deleted(&ended)), (Some(Reason::Foreign), 0));
        assert!(problem_kinds(&ended).is_empty() && !is_paired(&ended));
        let braked = ended.receiver.unwrap().braked.unwrap();
        assert_eq!((braked.going, braked.held, braked.head.len()), (3, 5, 3));

        let ended = run(SenderDisk::new(wanted()), foreign(in_the_way()), &delete(), order, 1);
        assert_same(&wanted(), &ended.target.tree);
        assert!(reason(&ended).is_none() && is_paired(&ended), "it is a copy from now on");
        assert_eq!(ended.receiver.unwrap().tally.deleted, 3);
    }
}

#[test]
fn dry_run_lists_the_braked_deletions() {
    let options = Options { dry_run: true, ..unasked() };
    let ended = run(SenderDisk::new(wanted()), foreign(in_the_way()), &options, Order::Random, 1);
    assert_same(&in_the_way(), &ended.target.tree);
    assert_eq!((reason(&ended), deleted(&ended)), (Some(Reason::Foreign), 3));
    assert!(!is_paired(&ended));
}

#[test]
fn exact_copy_is_paired_afterwards_and_a_copy_with_more_is_not() {
    let more = tree([("new", file(b"old")), ("more", file(b""))]);
    let same = tree([("new", file(b"old"))]);
    for (before, options, expected) in [
        (same.clone(), Options::default(), true),
        (more.clone(), Options::default(), false),
        (more.clone(), unasked(), false),
        (more, delete(), true),
        (Tree::new(), Options::default(), true),
    ] {
        let ended = run(SenderDisk::new(wanted()), foreign(before), &options, Order::Random, 1);
        assert_eq!(is_paired(&ended), expected, "{options:?}");
    }
    let emptied = target(same, known(Pair::default()));
    let ended = run(SenderDisk::new(Tree::new()), emptied, &unasked(), Order::Random, 1);
    assert_eq!((reason(&ended), is_paired(&ended)), (Some(Reason::Emptied), false));
}

#[test]
fn incremental_round_deletes_what_it_saw_go_and_nothing_that_waits() {
    for order in ORDERS {
        let before = tree([
            ("d", directory()),
            ("d/gone", file(b"")),
            ("d/waits", file(b"")),
            ("gone", file(b"")),
            ("waits", file(b"")),
        ]);
        let waits = Arc::new(vec![path("d/waits"), path("waits")]);
        let destination = Destination { withheld: waits, is_round: true, ..Destination::default() };
        let mut source = SenderDisk::new(Tree::new());
        source.scope = Some(SubtreeSet::new(["d", "gone", "waits"].map(|name| (path(name), true))));
        let ended = run(source, target(before, destination), &unasked(), order, 1);
        let expected = tree([("d", directory()), ("d/waits", file(b"")), ("waits", file(b""))]);
        assert_same(&expected, &ended.target.tree);
        assert_eq!(reason(&ended), None);
    }
}
