//! Runs that are cut off and then repeated.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use std::sync::{Arc, Mutex};

use super::disk::ReceiverDisk;
use super::properties::{delete, problem_kinds, run};
use super::source::SenderDisk;
use super::tree::{Rng, Tree, change, differences, file, grow, path};
use super::{ORDERS, Order, Pair};
use crate::wire::message::AbortKind;

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn next_run_repairs_a_run_that_was_cut_anywhere(
        seed in any::<u64>(), order in 0..ORDERS.len(), at in 0_usize..60,
    ) {
        let mut rng = Rng::new(seed);
        let source = grow(&mut rng);
        let mut target = source.clone();
        for _ in 0..3 {
            change(&mut rng, &mut target);
        }
        let pair = Pair::new(
            SenderDisk::new(source.clone()), ReceiverDisk::new(target), &delete(), ORDERS[order], seed,
        );
        let cut = pair.run(Some(at));
        let again = run(cut.source, cut.target.again(), &delete(), ORDERS[order], seed);
        prop_assert_eq!(differences(&source, &again.target.tree), Vec::<String>::new());
        prop_assert!(problem_kinds(&again).is_empty());
    }
}

#[test]
fn staged_content_is_not_sent_again_wherever_the_run_was_cut() {
    let mut rng = Rng::new(2);
    let mut source = Tree::new();
    for n in 0..4 {
        source.insert(path(&format!("{n}")), file(&rng.bytes(200_000 + n)));
    }
    for order in ORDERS {
        let mut kept_something = false;
        for at in 0.. {
            let target = ReceiverDisk::new(Tree::new());
            let cut = Pair::new(SenderDisk::new(source.clone()), target, &delete(), order, 3).run(Some(at));
            if cut.sender.is_ok() && cut.receiver.is_ok() {
                break;
            }
            let staged: usize = cut.target.staged.values().map(|staged| staged.lock().unwrap().len()).sum();
            let missing: usize = manifest_bytes(&source) - manifest_bytes(&cut.target.tree);
            kept_something |= staged > 0;
            let installed = manifest_bytes(&cut.target.tree);
            assert_eq!(staged + installed, cut.log.received_bytes, "{order:?} cut after {at}");
            let again = run(cut.source, cut.target.again(), &delete(), order, 3);
            assert_eq!(differences(&source, &again.target.tree), Vec::<String>::new());
            assert_eq!(again.log.sent_bytes as usize, missing - staged, "{order:?} cut after {at}");
        }
        assert!(kept_something, "{order:?}");
    }
}

fn manifest_bytes(tree: &Tree) -> usize {
    super::tree::manifest(tree).content_bytes() as usize
}

#[test]
fn wrong_staged_content_is_sent_again() {
    let content = Rng::new(4).bytes(300_000);
    let source = super::tree::tree([("f", file(&content))]);
    let mut poisoned = content.clone();
    poisoned[1000] ^= 1;
    for staged in [poisoned, vec![0; 400_000], content[..200_000].to_vec(), Vec::new()] {
        let mut target = ReceiverDisk::new(Tree::new());
        let kept = if content.starts_with(&staged) { staged.len() } else { 0 };
        target.staged.insert(path("f"), Arc::new(Mutex::new(staged)));
        let ended = run(SenderDisk::new(source.clone()), target, &delete(), Order::Random, 5);
        assert_eq!(differences(&source, &ended.target.tree), Vec::<String>::new());
        assert_eq!(ended.log.sent_bytes as usize, content.len() - kept);
    }
}

#[test]
fn cut_is_reported_as_one_on_both_sides() {
    let source = SenderDisk::new(grow(&mut Rng::new(6)));
    let ended = Pair::new(source, ReceiverDisk::new(Tree::new()), &delete(), Order::Random, 7).run(Some(2));
    for result in [ended.sender, ended.receiver] {
        let error = result.unwrap_err();
        assert_eq!((error.kind, error.text.as_str()), (AbortKind::Connection, "cut"));
    }
}
