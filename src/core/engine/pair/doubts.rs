//! The receiver's machine lost its power once: some files differ from what their size and time say.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::disk::ReceiverDisk;
use super::properties::{assert_same, run};
use super::source::SenderDisk;
use super::tree::{Rng, Tree, What, file, grow, path, tree};
use super::{ORDERS, Order};
use crate::monitor::{Action, Event};
use crate::tree::doubt::Doubt;
use crate::tree::path::TreePath;
use crate::wire::hello::Options;
use crate::wire::message::Tally;

/// Damages some files without changing size or time. Every damaged file is doubted, and some whole
/// ones are too.
fn lose_power(rng: &mut Rng, tree: &mut Tree) -> BTreeMap<TreePath, Doubt> {
    let mut doubted = BTreeMap::new();
    for (path, node) in tree.iter_mut() {
        let What::File(content) = &mut node.what else { continue };
        let doubt = if rng.below(2) == 0 { Doubt::Unverified } else { Doubt::Lost };
        match rng.below(3) {
            0 => {
                let content = Arc::make_mut(content);
                let from = rng.below(content.len() + 1);
                content[from..].fill(0);
                doubted.insert(path.clone(), doubt);
            }
            1 => drop(doubted.insert(path.clone(), doubt)),
            _ => {}
        }
    }
    doubted
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn power_cut_damage_is_found_and_repaired(
        seed in any::<u64>(), order in 0..ORDERS.len(), delete in any::<bool>(), pushes in any::<bool>(),
    ) {
        let mut rng = Rng::new(seed);
        let tree = grow(&mut rng);
        let (mut source, mut target) = (SenderDisk::new(tree.clone()), ReceiverDisk::new(tree.clone()));
        source.pushed_bytes_max = if pushes { 2000 } else { 0 };
        target.doubted = lose_power(&mut rng, &mut target.tree);
        let options = Options { delete, ..super::properties::delete() };
        let ended = run(source, target, &options, ORDERS[order], seed);
        assert_same(&tree, &ended.target.tree);
    }
}

#[test]
fn doubted_file_that_is_whole_is_no_change_and_does_not_travel() {
    let content = vec![7; 300_000];
    let whole = tree([("large", file(&content)), ("small", file(b"1")), ("torn", file(b"22"))]);
    let mut damaged = whole.clone();
    damaged.get_mut(&path("torn")).unwrap().what = What::File(Arc::new(vec![0, 0]));
    for order in ORDERS {
        let (source, mut target) = (SenderDisk::new(whole.clone()), ReceiverDisk::new(damaged.clone()));
        target.root = source.root;
        target.doubted = ["large", "small", "torn"].map(|name| (path(name), Doubt::Unverified)).into();
        let options = Options { list_changes: true, ..Options::default() };
        let ended = run(source, target, &options, order, 1);
        assert_same(&whole, &ended.target.tree);
        let Tally { created, updated, adjusted, deleted, .. } = ended.sender.unwrap().tally;
        assert_eq!((created, updated, adjusted, deleted), (0, 1, 0, 0), "{order:?}");
        assert!(ended.log.sent_bytes < 100, "{} bytes", ended.log.sent_bytes);
        let changes = ended.events.iter().filter_map(|event| match event {
            Event::Change { action, path, .. } => Some((*action, path.as_slice())),
            _ => None,
        });
        assert_eq!(changes.collect::<Vec<_>>(), [(Action::Update, &b"torn"[..])]);
    }
}

#[test]
fn lost_file_is_no_basis_and_is_not_moved() {
    let content = vec![7; 300_000];
    let before = tree([("lost", file(&content)), ("old name", file(&content))]);
    let after = tree([("lost", file(&content)), ("new name", file(&content))]);
    let mut target = ReceiverDisk::new(before);
    target.doubted = ["lost", "old name"].map(|name| (path(name), Doubt::Lost)).into();
    let options = super::properties::delete();
    let ended = run(SenderDisk::new(after.clone()), target, &options, Order::Random, 1);
    assert_same(&after, &ended.target.tree);
    assert_eq!(ended.log.sent_bytes, 600_000, "both come whole");
}
