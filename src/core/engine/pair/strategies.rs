//! Every strategy of a transfer, in every order, with cuts and lies.

use serde_bytes::ByteBuf;

use super::byzantine::{config, receiver_on, subject};
use super::disk::{JarTarget, Prehash, ReceiverDisk};
use super::properties::{assert_same, delete, problem_kinds, run, tally};
use super::source::{JarSource, Lie, SenderDisk};
use super::tree::{Node, Rng, Tree, file, manifest, path, time, tree};
use super::{Ended, LIMITS, ORDERS, Order, Pair};
use crate::content::blocks::{BlockSize, outline_of};
use crate::content::hash::Hash;
use crate::engine::transfer::Difference;
use crate::engine::{ReceiveInput, ReceiverWork, SendInput, SendNext, SendTransfer, WorkError};
use crate::monitor::ProblemKind;
use crate::wire::message::{BasisReport, Blocks, FromSender, Op, Tally, Want};

/// A file that changed, and what its transfer must look like.
struct Case {
    name: &'static str,
    old: Option<Vec<u8>>,
    new: Vec<u8>,
    samples: bool,
    prehash: Option<Prehash>,
    /// The strategy of the receiver.
    strategy: &'static str,
    /// True if the sender asks for chunks of the basis.
    cuts: bool,
    /// Most bytes of content that travel.
    sent_bytes_max: usize,
}

const SIZE: usize = 400_000;

fn cases() -> Vec<Case> {
    let mut rng = Rng::new(3);
    let old = rng.bytes(SIZE);
    let (small, extra) = (rng.bytes(40_000), rng.bytes(30_000));
    let edited = |content: &[u8]| {
        let mut new = content.to_vec();
        new[content.len() / 3] ^= 1;
        new
    };
    let inserted = [&old[..150_000], &extra, &old[150_000..]].concat();
    let removed = [&old[..150_000], &old[180_000..]].concat();
    let appended = [&old[..], &extra].concat();
    let two_insertions = [&old[..100_000], &extra[..9_000], &old[100_000..300_000], &extra, &old[300_000..]];
    let case = |name, old: Option<&Vec<u8>>, new: &[u8], strategy, sent_bytes_max| Case {
        name,
        old: old.cloned(),
        new: new.to_vec(),
        samples: false,
        prehash: None,
        strategy,
        cuts: false,
        sent_bytes_max,
    };
    let sampled = |case: Case| Case { samples: true, ..case };
    let cut = |case: Case| Case { cuts: true, ..case };
    let prehashed = |case: Case| Case { prehash: Some(Prehash::Done), ..case };
    vec![
        case("a new file", None, &old, "whole", SIZE),
        case("a small file with another length", Some(&small), &small[1..], "signed", 5_000),
        case("a small edited file", Some(&small), &edited(&small), "blocks", 5_000),
        case("edited in place", Some(&old), &edited(&old), "pre-copy", 5_000),
        prehashed(case("edited in place, prehashed", Some(&old), &edited(&old), "pre-copy beside", 5_000)),
        case("appended to", Some(&old), &appended, "blocks", 35_000),
        sampled(case("appended to, with samples", Some(&old), &appended, "pre-copy", 35_000)),
        case("a range inserted", Some(&old), &inserted, "blocks", 100_000),
        sampled(case("a range inserted, with samples", Some(&old), &inserted, "pre-copy", 100_000)),
        case("a range removed", Some(&old), &removed, "blocks", 70_000),
        sampled(case("a range removed, with samples", Some(&old), &removed, "pre-copy", 70_000)),
        cut(case("two ranges inserted", Some(&old), &two_insertions.concat(), "blocks", SIZE + 40_000)),
        cut(case("nothing in common", Some(&old), &rng.bytes(SIZE + 1), "blocks", SIZE + 1)),
    ]
}

fn disks(case: &Case) -> (SenderDisk, ReceiverDisk) {
    let mut source = SenderDisk::new(tree([("f", file(&case.new))]));
    source.samples = case.samples;
    let old = case.old.as_ref().map(|old| ("f", Node { mtime: time(0), ..file(old) }));
    let mut target =
        ReceiverDisk::new(old.into_iter().map(|(name, node)| (path(name), node)).collect::<Tree>());
    (source.is_prehashed, target.prehash) = (case.prehash.is_some(), case.prehash);
    (source, target)
}

fn assert_arrived(case: &Case, ended: &Ended, claim: &str) {
    assert_same(&ended.source.tree, &ended.target.tree);
    assert!(problem_kinds(ended).is_empty(), "{}, {claim}", case.name);
}

#[test]
fn every_strategy_makes_the_file_in_every_order() {
    for case in cases() {
        for (order, seed) in ORDERS.into_iter().zip(1..).chain((10..14).map(|seed| (Order::Random, seed))) {
            let (source, target) = disks(&case);
            let ended = run(source, target, &delete(), order, seed);
            let claim = format!("{order:?}");
            assert_arrived(&case, &ended, &claim);
            let name = case.name;
            assert_eq!(
                ended.log.strategies,
                case.old.as_ref().map_or(vec![], |_| vec![case.strategy]),
                "{name}"
            );
            assert_eq!(ended.log.cut_requests, usize::from(case.cuts), "{name} {claim}");
            let Tally { sent_bytes, matched_bytes, .. } = tally(&ended.sender);
            assert_eq!((sent_bytes + matched_bytes) as usize, case.new.len(), "{name} {claim}");
            assert!(sent_bytes as usize <= case.sent_bytes_max, "{name} {claim}: {sent_bytes}");
        }
    }
}

#[test]
fn every_strategy_survives_a_cut_anywhere() {
    for case in cases() {
        for order in ORDERS {
            let (source, target) = disks(&case);
            let messages = run(source, target, &delete(), order, 5).log.delivered;
            for at in 0..messages {
                let (source, target) = disks(&case);
                let cut = Pair::new(source, target, &delete(), order, 5).run(Some(at));
                let old = cut.target.tree.get(&path("f"));
                let is_old_or_new = [case.old.as_ref(), Some(&case.new)].iter().any(|content| {
                    old.map(|node| &node.what) == content.map(|content| file(content).what).as_ref()
                });
                assert!(is_old_or_new, "{} cut after {at}, {order:?}", case.name);
                let (mut source, mut target) = (cut.source, cut.target.again());
                source.samples = case.samples;
                target.prehash = case.prehash;
                let again = run(source, target, &delete(), order, 6);
                assert_arrived(&case, &again, &format!("after a cut at {at}, {order:?}"));
            }
        }
    }
}

#[test]
fn every_strategy_is_followed_by_the_whole_content_if_the_hash_is_wrong() {
    for case in cases() {
        for order in ORDERS {
            let (mut source, target) = disks(&case);
            source.lies = [(path("f"), (Lie::Hash, 1))].into();
            let ended = run(source, target, &delete(), order, 9);
            assert_arrived(&case, &ended, "after a wrong hash");
            assert!(tally(&ended.sender).sent_bytes as usize >= case.new.len(), "{}", case.name);
        }
    }
}

#[test]
fn file_whose_time_alone_changed_leaves_no_pre_copy() {
    let content = Rng::new(4).bytes(SIZE);
    for prehash in [None, Some(Prehash::Done), Some(Prehash::UnderWay)] {
        for (order, seed) in ORDERS.into_iter().zip(1..) {
            let source = SenderDisk::new(tree([("f", file(&content))]));
            let old = Node { mtime: time(0), ..file(&content) };
            let mut target = ReceiverDisk::new(tree([("f", old)]));
            target.prehash = prehash;
            let mut ended = run(source, target, &delete(), order, seed);
            assert_same(&ended.source.tree, &ended.target.tree);
            assert_eq!(tally(&ended.sender).sent_bytes, 0);
            assert_eq!(ended.target.discarded, 1, "{prehash:?} {order:?}");
            ended.target.staged.clear();
        }
    }
}

#[test]
fn pre_copy_of_a_file_that_is_the_same_is_cancelled_while_it_is_made() {
    let content = Rng::new(4).bytes(SIZE);
    let mut target = ReceiverDisk::new(tree([("f", Node { mtime: time(0), ..file(&content) })]));
    target.prehash = Some(Prehash::Done);
    let mut victim = receiver_on(&config(), target);
    victim.hear(subject());
    for block in manifest(&tree([("f", file(&content))])).blocks() {
        victim.hear(FromSender::Entries(ByteBuf::from(block)));
    }
    victim.hear(FromSender::Offered { complete: true });
    let is_pre_copy = |work: &ReceiverWork<JarTarget>| match work {
        ReceiverWork::Step(_, steps) => matches!(steps[..], [(_, ReceiveInput::PreCopy(..))]),
        _ => false,
    };
    while !victim.side.works.iter().any(is_pre_copy) {
        victim.end_one();
    }
    victim.hear(FromSender::same(&[(0, Hash::of(&content))]));
    let work = victim.side.works.iter().find(|work| is_pre_copy(work)).unwrap();
    let ReceiverWork::Step(_, steps) = work else { unreachable!() };
    let ReceiveInput::PreCopy(_, cancelled) = &steps[0].1 else { unreachable!() };
    assert!(cancelled.is_set());
}

/// A run over large files that are edited in place. The latest work ends first.
fn run_edited(set: impl Fn(&mut ReceiverDisk)) -> Ended {
    let content = |name: &str| Rng::new(name.len() as u64).bytes(SIZE);
    let names = ["f", "ff", "fff", "ffff", "fffff"];
    let source = SenderDisk::new(tree(names.map(|name| {
        let mut new = content(name);
        new[SIZE / 3] ^= 1;
        (name, file(&new))
    })));
    let old = |name| (name, Node { mtime: time(0), ..file(&content(name)) });
    let mut target = ReceiverDisk::new(tree(names.map(old)));
    set(&mut target);
    run(source, target, &delete(), Order::WorksLast, 1)
}

#[test]
fn few_pre_copies_are_made_and_a_failed_one_takes_no_slot() {
    for (prehash, strategy) in [(None, "pre-copy"), (Some(Prehash::Done), "pre-copy beside")] {
        let ended = run_edited(|target| target.prehash = prehash);
        assert_same(&ended.source.tree, &ended.target.tree);
        assert_eq!(ended.log.strategies, [strategy, strategy, "blocks", "blocks", "blocks"]);
        assert_eq!(ended.target.discarded, 0, "{strategy}");
        // Each of them fails before the next is considered.
        let ended = run_edited(|target| (target.prehash, target.is_cramped) = (prehash, true));
        assert_same(&ended.source.tree, &ended.target.tree);
        assert_eq!((ended.log.strategies, ended.target.discarded), (vec![strategy; 5], 5));
    }
}

/// Sends a file of which `size` bytes were offered, to a receiver that has half of them. Returns
/// the bytes that the receiver makes, and true if the file has grown.
fn send(content: Vec<u8>, size: usize, difference: Difference) -> Result<(u64, bool), WorkError> {
    let ids = outline_of(&content[..size / 2], BlockSize::for_size(size as u64)).ids;
    let basis = BasisReport::Blocks(Blocks { length: size as u64 / 2, ids });
    let want = Want { id: 0, staged: None, basis: Some(basis) };
    let mut transfer = SendTransfer::new(want, size as u64, false, LIMITS);
    let source = JarSource::file(content, difference);
    let (mut made, mut input) = (0, SendInput::Begin);
    loop {
        let (ops, next) = transfer.step(&source, input)?;
        made += ops.iter().map(Op::made_bytes).sum::<u64>();
        input = match next {
            SendNext::More => SendInput::More,
            SendNext::Sign(_) => SendInput::Signatures(Vec::new()),
            SendNext::Cut(_) => SendInput::Cut,
            SendNext::Chunks => SendInput::Chunks(Vec::new()),
            SendNext::End(_) | SendNext::Same(_) => return Ok((made, transfer.has_grown())),
        };
    }
}

#[test]
fn file_that_grows_gives_what_was_offered() {
    let size = 3_000_000;
    let mut content = vec![7; size];
    assert_eq!(send(content.clone(), size, Difference::Touched).unwrap(), (size as u64, false));
    content.extend(vec![8; size]);
    assert_eq!(send(content, size, Difference::Longer).unwrap(), (size as u64, true));
}

#[test]
fn file_that_was_replaced_is_not_sent() {
    let error = send(vec![7; 3_000_000], 3_000_000, Difference::Other).unwrap_err();
    assert!(matches!(error, WorkError::Entry(ProblemKind::Changed, _)), "{error:?}");
}
