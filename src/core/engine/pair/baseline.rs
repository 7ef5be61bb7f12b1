//! Machines that keep a baseline, or do not.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_bytes::ByteBuf;

use super::byzantine::{
    Stage, Victim, config, offend, offered, receiver_at, receiver_on, sender_at, sender_on, subject,
};
use super::disk::ReceiverDisk;
use super::properties::{delete, run};
use super::source::SenderDisk;
use super::tree::{Rng, Tree, change, differences, directory, file, grow, manifest, path, tree};
use super::{Ended, JarReceiver, JarSender, ORDERS, Order, Pair};
use crate::content::hash::Hash;
use crate::engine::work::{Changed, ReceiverWork, SenderWork};
use crate::engine::{Config, Engine};
use crate::tree::change::testing::record_bytes;
use crate::tree::change::{Change, Edit, between};
use crate::tree::filter::{Filter, IgnoreFile};
use crate::tree::manifest::Manifest;
use crate::tree::record::{self, Record};
use crate::wire::hello::Options;
use crate::wire::message::{AbortKind, Common, FromReceiver, FromSender, Tally, Want};

/// A disk's baseline. By default the disk stores none, even if it is asked to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Baseline {
    pub(super) stores: bool,
    pub(super) record: Option<Vec<u8>>,
}

impl Baseline {
    fn empty() -> Self {
        Self { stores: true, record: None }
    }

    pub(super) fn of(tree: &Tree) -> Self {
        let mut kept = Self::empty();
        kept.store(&manifest(tree), &[]);
        kept
    }

    pub(super) fn load(&self) -> Option<Record> {
        Record::new(self.record.clone()?)
    }

    pub(super) fn digest(&self) -> Option<Hash> {
        self.load().map(|record| record.digest())
    }

    pub(super) fn changed(&self, manifest: &Manifest, ignores: &[IgnoreFile]) -> Option<Changed> {
        let (known_ignores, entries) = self.load()?.into_parts();
        let changes = between(entries, manifest)?;
        let digest = record::digest(manifest, ignores);
        Some(Changed { changes, ignores: known_ignores != ignores, digest })
    }

    pub(super) fn store(&mut self, manifest: &Manifest, ignores: &[IgnoreFile]) {
        self.record = Some(record_bytes(manifest, ignores)).filter(|_| self.stores);
    }
}

/// Random baselines of both disks at the start of a run.
fn baselines(rng: &mut Rng, source: &Tree) -> [Baseline; 2] {
    let earlier = |rng: &mut Rng| {
        let mut tree = source.clone();
        change(rng, &mut tree);
        Baseline::of(&tree)
    };
    let damaged = |mut kept: Baseline, rng: &mut Rng| {
        if let Some(bytes) = &mut kept.record {
            let at = rng.below(bytes.len());
            bytes[at] ^= 1 << rng.below(8);
        }
        kept
    };
    let same = earlier(rng);
    match rng.below(8) {
        0 => [Baseline::empty(), Baseline::empty()],
        1 => [same, Baseline::empty()],
        2 => [Baseline::empty(), same],
        3 => [same, Baseline::default()],
        4 => [same, earlier(rng)],
        5 => [damaged(same.clone(), rng), same],
        6 => [same.clone(), damaged(same, rng)],
        _ => [same.clone(), same],
    }
}

fn run_with(
    source: Tree,
    target: Tree,
    [of_source, of_target]: [Baseline; 2],
    order: Order,
    seed: u64,
) -> Ended {
    let (mut source, mut target) = (SenderDisk::new(source), ReceiverDisk::new(target));
    (source.baseline, target.baseline) = (of_source, of_target);
    run(source, target, &delete(), order, seed)
}

/// Bytes of a run without changes, and the bytes of its entries.
fn nothing_to_do(tree: &Tree, baseline: [Baseline; 2]) -> (usize, usize) {
    let ended = run_with(tree.clone(), tree.clone(), baseline, Order::Random, 1);
    assert_eq!(differences(tree, &ended.target.tree), Vec::<String>::new());
    (ended.log.wire_bytes, ended.log.entries_bytes)
}

fn large(count: usize) -> Tree {
    (0..count).map(|number| (path(&format!("{number:06}")), file(b"1"))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn any_baselines_give_the_source_and_then_both_sides_agree(
        seed in any::<u64>(), order in 0..ORDERS.len(), ignores in any::<bool>(),
    ) {
        let mut rng = Rng::new(seed);
        let source = grow(&mut rng);
        let mut target = source.clone();
        change(&mut rng, &mut target);
        let [of_source, of_target] = baselines(&mut rng, &source);
        let (mut source, mut target) = (SenderDisk::new(source), ReceiverDisk::new(target));
        (source.baseline, target.baseline) = (of_source, of_target);
        if ignores {
            source.filter = ignoring("a\n");
        }
        let ended = run(source, target, &delete(), ORDERS[order], seed);
        let mut expected = ended.source.tree.clone();
        expected.retain(|path, node| !ended.source.filter.excludes_within(path, node.is_directory()));
        let mut actual = ended.target.tree.clone();
        actual.retain(|path, node| !ended.source.filter.excludes_within(path, node.is_directory()));
        prop_assert_eq!(differences(&expected, &actual), Vec::<String>::new());
        prop_assert_eq!(ended.source.baseline.digest().is_some(), ended.source.baseline.stores);
        if ended.source.baseline.stores && ended.target.baseline.stores {
            prop_assert_eq!(&ended.source.baseline, &ended.target.baseline);
            let again = run(ended.source, ended.target.again(), &delete(), ORDERS[order], seed);
            prop_assert_eq!((again.log.entries_bytes, again.log.changes, again.log.forgotten), (0, 0, 0));
        }
    }

    #[test]
    fn cut_run_leaves_baselines_that_help_or_do_no_harm(
        seed in any::<u64>(), order in 0..ORDERS.len(), at in 0_usize..40,
    ) {
        let mut rng = Rng::new(seed);
        let source = grow(&mut rng);
        let mut target = source.clone();
        change(&mut rng, &mut target);
        let baselines = baselines(&mut rng, &source);
        let (mut from, mut to) = (SenderDisk::new(source.clone()), ReceiverDisk::new(target));
        [from.baseline, to.baseline] = baselines;
        let cut = Pair::new(from, to, &delete(), ORDERS[order], seed).run(Some(at));
        let again = run(cut.source, cut.target.again(), &delete(), ORDERS[order], seed);
        prop_assert_eq!(differences(&source, &again.target.tree), Vec::<String>::new());
    }
}

fn ignoring(text: &str) -> Filter {
    let mut filter = Filter::default();
    assert!(filter.add(IgnoreFile { directory: Vec::new(), text: text.as_bytes().to_vec() }));
    filter
}

#[test]
fn run_without_changes_costs_the_same_for_every_tree() {
    let few = large(3);
    let many = large(20_000);
    let (few_bytes, _) = nothing_to_do(&few, [Baseline::of(&few), Baseline::of(&few)]);
    let (many_bytes, entries) = nothing_to_do(&many, [Baseline::of(&many), Baseline::of(&many)]);
    assert_eq!(entries, 0);
    // Numbers in notes and tally take a byte or two more.
    assert!(many_bytes <= few_bytes + 16 && many_bytes < 200, "{few_bytes} {many_bytes}");
    let (_, all) = nothing_to_do(&many, [Baseline::empty(), Baseline::empty()]);
    assert!(all > 100_000);
}

#[test]
fn changes_travel_alone() {
    let old = large(5000);
    let mut new = old.clone();
    new.remove(&path("001000"));
    new.insert(path("002000x"), file(b"added"));
    new.insert(path("zd"), directory());
    new.insert(path("zd/f"), file(b"added"));
    new.get_mut(&path("003000")).unwrap().mode = 0o600;
    for order in ORDERS {
        let ended = run_with(new.clone(), old.clone(), [Baseline::of(&old), Baseline::of(&old)], order, 3);
        assert_eq!(differences(&new, &ended.target.tree), Vec::<String>::new());
        assert_eq!((ended.log.entries_bytes, ended.log.changes, ended.log.forgotten), (0, 1, 0));
        assert!(ended.log.wire_bytes < 1000, "{:?}", ended.log);
        assert_eq!(ended.target.baseline, Baseline::of(&new));
        assert_eq!(ended.source.baseline, Baseline::of(&new));
    }
}

#[test]
fn receiver_without_the_baseline_gets_the_full_offer_once() {
    let tree = large(100);
    let mut other = tree.clone();
    other.remove(&path("000050"));
    let mut both_ways = [false; 2];
    for order in ORDERS {
        for baseline in [Baseline::default(), Baseline::empty(), Baseline::of(&other)] {
            let ended = run_with(tree.clone(), other.clone(), [Baseline::of(&tree), baseline], order, 4);
            assert_eq!(differences(&tree, &ended.target.tree), Vec::<String>::new());
            let once: usize = manifest(&tree).blocks().map(|block| block.len()).sum();
            assert_eq!((ended.log.entries_bytes, ended.log.forgotten), (once, 1), "{order:?}");
            both_ways[usize::from(ended.log.changed > 0)] = true;
        }
    }
    assert_eq!(both_ways, [true; 2], "it says so before and after the sender has listed everything");
}

#[test]
fn outdated_target_is_found_although_the_offer_is_known() {
    let source = large(50);
    let mut target = source.clone();
    target.remove(&path("000007"));
    target.insert(path("000009"), file(b"another content"));
    let ended =
        run_with(source.clone(), target, [Baseline::of(&source), Baseline::of(&source)], Order::Random, 5);
    assert_eq!(differences(&source, &ended.target.tree), Vec::<String>::new());
    assert_eq!(ended.log.wants, 2);
}

#[test]
fn ignore_files_are_stored_in_the_baseline_and_replaced() {
    let all = tree([("keep", file(b"1")), ("x.o", file(b"2"))]);
    let run = |text: Option<&str>, baseline: [Baseline; 2]| {
        let mut source = SenderDisk::new(tree([("keep", file(b"1"))]));
        source.filter = text.map_or_else(Filter::default, ignoring);
        let mut target = ReceiverDisk::new(all.clone());
        [source.baseline, target.baseline] = baseline;
        let ended = run(source, target, &delete(), Order::Random, 6);
        assert_eq!(ended.source.baseline, ended.target.baseline);
        let stays = ended.target.tree.contains_key(&path("x.o"));
        (stays, ended.log.ignores, [ended.source.baseline, ended.target.baseline.clone()])
    };
    let (stays, sent, baseline) = run(Some("*.o"), [Baseline::empty(), Baseline::empty()]);
    assert_eq!((stays, sent), (true, 1));
    let (stays, sent, baseline) = run(Some("*.o"), baseline);
    assert_eq!((stays, sent), (true, 0), "what is stored still protects");
    let (stays, sent, baseline) = run(Some("*.a"), baseline);
    assert_eq!((stays, sent), (false, 1));
    let (stays, sent, _) = run(None, baseline);
    assert_eq!((stays, sent), (false, 1), "that there are none is told");
}

#[test]
fn dry_run_uses_the_baseline_and_leaves_it() {
    let old = large(10);
    let mut new = old.clone();
    new.remove(&path("000003"));
    let (mut source, mut target) = (SenderDisk::new(new), ReceiverDisk::new(old.clone()));
    (source.baseline, target.baseline) = (Baseline::of(&old), Baseline::of(&old));
    let ended = run(source, target, &Options { dry_run: true, ..delete() }, Order::Random, 7);
    assert_eq!((ended.log.entries_bytes, ended.log.changes), (0, 1));
    assert_eq!(ended.target.baseline, Baseline::of(&old));
}

// Lies.

/// A receiver whose baseline is `offered`, after the sender has named it.
fn victim_with_baseline() -> Victim<JarReceiver> {
    let mut target = ReceiverDisk::new(Tree::new());
    target.baseline = Baseline::of(&offered());
    let mut victim = receiver_on(&config(), target);
    victim.hear(subject());
    victim.hear(FromSender::Baseline { digest: digest() });
    assert!(victim.side.only_outcomes, "changes have to wait until it is known what is stored");
    victim.end_all();
    assert!(
        !victim.side.only_outcomes
            && victim.said.iter().all(|said| !matches!(said, FromReceiver::BaselineMissing))
    );
    victim
}

fn digest() -> Hash {
    record::digest(&manifest(&offered()), &[])
}

fn changed(digest: Hash) -> FromSender {
    FromSender::Changed { complete: true, digest }
}

fn edits(edits: &[(u32, u32, u32)]) -> FromSender {
    let edits = edits.iter().map(|&(keep, drop, add)| Edit { keep, drop, add }).collect();
    FromSender::Changes(Change { edits, entries: Vec::new() })
}

#[test]
fn sender_can_only_make_the_announced_tree_from_a_baseline() {
    let without_last = || {
        let mut tree = offered();
        tree.pop_last();
        record::digest(&manifest(&tree), &[])
    };
    let block = || FromSender::Entries(ByteBuf::from(manifest(&offered()).blocks().next().unwrap()));
    let garbage = Change { edits: vec![Edit { keep: 6, drop: 0, add: 1 }], entries: vec![0xff; 20] };
    for (claim, messages) in [
        ("another digest", vec![changed(Hash::of(b""))]),
        ("the digest of the baseline, after a change", vec![edits(&[(5, 1, 0)]), changed(digest())]),
        ("another digest after a change", vec![edits(&[(5, 1, 0)]), changed(Hash::of(b"x"))]),
        ("a digest of no ignore files, after some", vec![ignores(), changed(digest())]),
        ("a step that does nothing", vec![edits(&[(1, 0, 0)])]),
        ("a step beyond the end", vec![edits(&[(6, 1, 0)])]),
        ("steps beyond the end", vec![edits(&[(5, 1, 0)]), edits(&[(0, 1, 0)])]),
        ("the largest step", vec![edits(&[(u32::MAX, u32::MAX, u32::MAX)])]),
        ("the largest drop", vec![edits(&[(0, u32::MAX, 0)])]),
        ("entries that are not there", vec![edits(&[(0, 0, u32::MAX)])]),
        ("what is in a directory that goes", vec![edits(&[(0, 1, 0)]), changed(digest())]),
        ("garbage", vec![FromSender::Changes(garbage)]),
        ("a second baseline", vec![FromSender::Baseline { digest: digest() }]),
        ("everything after a part", vec![edits(&[(5, 1, 0)]), block()]),
        ("nothing after a part", vec![edits(&[(5, 1, 0)]), FromSender::Offered { complete: true }]),
        ("changes after everything", vec![block(), edits(&[(5, 1, 0)])]),
        ("the end of changes after everything", vec![block(), changed(digest())]),
        ("an end after the end", vec![changed(digest()), changed(digest())]),
        ("changes after the end", vec![edits(&[(5, 1, 0)]), changed(without_last()), edits(&[(0, 1, 0)])]),
    ] {
        offend(victim_with_baseline(), claim, messages);
    }
}

fn ignores() -> FromSender {
    FromSender::Ignores(vec![IgnoreFile { directory: Vec::new(), text: b"x".to_vec() }])
}

#[test]
fn changes_need_a_baseline_that_comes_first() {
    let baseline = || FromSender::Baseline { digest: digest() };
    for (claim, messages) in [
        ("changes of nothing", vec![edits(&[(0, 1, 0)])]),
        ("no changes of nothing", vec![changed(digest())]),
        ("a baseline behind ignore files", vec![ignores(), baseline()]),
        ("two baselines", vec![baseline(), baseline()]),
    ] {
        offend(receiver_at(Stage::Listing), claim, messages);
    }
    offend(receiver_at(Stage::Fresh), "a baseline of what is not announced", vec![baseline()]);
}

#[test]
fn receiver_without_the_baseline_skips_changes_only_once() {
    let without_baseline = || {
        let mut victim = receiver_at(Stage::Listing);
        victim.hear(FromSender::Baseline { digest: Hash::of(b"another") });
        victim.end_all();
        assert_eq!(victim.said.last(), Some(&FromReceiver::BaselineMissing));
        victim
    };
    let wrong = || vec![ignores(), edits(&[(u32::MAX, 1, 0)]), changed(Hash::of(b""))];
    for last in [edits(&[(0, 1, 0)]), changed(digest()), FromSender::Baseline { digest: digest() }] {
        offend(without_baseline(), "again", [wrong(), vec![last]].concat());
    }
    let mut victim = without_baseline();
    wrong().into_iter().for_each(|message| victim.hear(message));
    assert!(victim.side.done.is_none());
    for block in manifest(&offered()).blocks() {
        victim.hear(FromSender::Entries(ByteBuf::from(block)));
    }
    victim.hear(FromSender::Offered { complete: true });
    victim.end_all();
    assert!(matches!(victim.said.last(), Some(FromReceiver::Wants(_))), "{:?}", victim.said);
}

#[test]
fn baseline_that_is_damaged_inside_is_dropped_late_and_all_comes() {
    // The digest is right, so the record was stored like this; no honest run does that.
    let mut bytes = Baseline::of(&offered()).record.unwrap();
    bytes.truncate(bytes.len() - 3);
    let digest = Hash::of(&bytes);
    for changes in [vec![edits(&[(5, 1, 0)]), changed(digest)], vec![changed(digest)]] {
        let mut target = ReceiverDisk::new(Tree::new());
        target.baseline = Baseline { stores: true, record: Some(bytes.clone()) };
        let mut victim = receiver_on(&config(), target);
        victim.hear(subject());
        victim.hear(FromSender::Baseline { digest });
        victim.end_all();
        changes.into_iter().for_each(|message| victim.hear(message));
        assert_eq!(victim.said.last(), Some(&FromReceiver::BaselineMissing));
        victim.hear(FromSender::Entries(ByteBuf::from(manifest(&offered()).blocks().next().unwrap())));
        victim.hear(FromSender::Offered { complete: true });
        victim.end_all();
        assert!(matches!(victim.said.last(), Some(FromReceiver::Wants(_))), "{:?}", victim.said);
    }
}

#[test]
fn receiver_can_report_forgotten_once_and_only_before_wants() {
    let sender = |kept: Baseline| {
        let mut source = SenderDisk::new(offered());
        source.baseline = kept;
        let mut victim = sender_on(&config(), source);
        victim.end_all();
        victim
    };
    let wants = || FromReceiver::Wants(vec![Want::whole(1)]);
    offend(sender(Baseline::empty()), "forgets what was not named", vec![FromReceiver::BaselineMissing]);
    offend(
        sender(Baseline::of(&offered())),
        "twice",
        vec![FromReceiver::BaselineMissing, FromReceiver::BaselineMissing],
    );
    offend(sender(Baseline::of(&offered())), "after asking", vec![wants(), FromReceiver::BaselineMissing]);
    offend(sender_at(Stage::Fresh), "at once", vec![FromReceiver::BaselineMissing]);
}

/// A sender that has listed its source and has no baseline yet.
fn listed(relay: bool) -> Victim<JarSender> {
    let mut source = SenderDisk::new(offered());
    source.baseline = Baseline::empty();
    let mut victim = sender_on(&Config { relay, ..config() }, source);
    victim.end(0);
    victim.end(0);
    victim
}

fn is_being_stored(victim: &Victim<JarSender>) -> bool {
    victim.side.works.iter().any(|work| matches!(work, SenderWork::StoreBaseline { .. }))
}

#[test]
fn client_stores_the_baseline_once_the_receiver_took_the_offer() {
    let tally = || Tally { entries: 6, ..Tally::default() };
    let mut victim = listed(false);
    assert!(matches!(victim.said.last(), Some(FromSender::Offered { .. })) && !is_being_stored(&victim));
    victim.hear(FromReceiver::Finished(tally()));
    assert!(is_being_stored(&victim) && victim.side.only_outcomes && victim.side.done.is_none());
    // Nothing that the other side does now can undo the finished run.
    victim.hear(Common::Abort { kind: AbortKind::Busy, text: String::new() }.into());
    victim.hear(FromReceiver::BaselineMissing);
    victim.side.engine.input(super::Input::Closed("gone".to_owned()));
    victim.end_all();
    assert_eq!(victim.side.done.unwrap().unwrap().tally, tally());

    let mut victim = listed(false);
    victim.hear(FromReceiver::Wants(vec![Want::whole(1)]));
    assert!(is_being_stored(&victim));
    victim.hear(FromReceiver::Wants(vec![Want::whole(2)]));
    victim.end_all();
    victim.hear(FromReceiver::Finished(tally()));
    assert_eq!(victim.side.done.unwrap().unwrap().tally, tally());
}

#[test]
fn agent_stores_the_baseline_before_it_offers() {
    let mut victim = listed(true);
    assert!(is_being_stored(&victim));
    let offers = |victim: &Victim<JarSender>| {
        victim.said.iter().any(|said| matches!(said, FromSender::Offered { .. } | FromSender::Entries(_)))
    };
    assert!(!offers(&victim));
    victim.end_all();
    assert!(offers(&victim));
    victim.hear(FromReceiver::Finished(Tally::default()));
    assert!(victim.side.done.is_some_and(|done| done.is_ok()), "and not once more");
    offend(
        listed(true),
        "a want of what is not offered yet",
        vec![FromReceiver::Wants(vec![Want::whole(1)])],
    );
}

#[test]
fn receiver_finishes_only_after_it_stored_the_baseline() {
    let mut target = ReceiverDisk::new(Tree::new());
    target.baseline = Baseline::empty();
    let mut victim = receiver_on(&config(), target);
    victim.hear(subject());
    victim.hear(FromSender::Offered { complete: true });
    let has_finished = |victim: &Victim<JarReceiver>| {
        victim.said.iter().any(|said| matches!(said, FromReceiver::Finished(_)))
    };
    while let Some(other) =
        victim.side.works.iter().position(|work| !matches!(work, ReceiverWork::StoreBaseline { .. }))
    {
        victim.end(other);
    }
    let is_being_stored =
        victim.side.works.iter().any(|work| matches!(work, ReceiverWork::StoreBaseline { .. }));
    assert!(is_being_stored && !has_finished(&victim));
    victim.end_all();
    assert!(has_finished(&victim));
}
