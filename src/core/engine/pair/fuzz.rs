//! Fuzz: a peer that sends anything causes no panic, no two works on one file, and no unbounded
//! queue.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::Union;
use proptest::test_runner::RngSeed;
use serde_bytes::ByteBuf;

use super::JarWork;
use super::byzantine::{STAGES, Victim, offered, receiver_at, samples, sender_at, subject};
use super::tree::manifest;
use crate::content::blocks::{BlockId, BlockSize};
use crate::content::chunk::{Chunk, ChunkId};
use crate::content::hash::Hash;
use crate::engine::Engine;
use crate::monitor::{Event, Problem, ProblemKind};
use crate::tree::change::{Change, Edit};
use crate::tree::filter::IgnoreFile;
use crate::tree::record;
use crate::tree::subtrees::Subtree;
use crate::wire::message::{
    AbortKind, Answer, BasisReport, Blocks, Common, FromReceiver, FromSender, Holes, Message, Op, Reply,
    Stretch, Tally, Want, Window,
};

fn id() -> impl Strategy<Value = u32> + Clone {
    prop_oneof![8 => 0_u32..7, 1 => any::<u32>()]
}

/// Numbers that fit, that nearly fit, and the largest.
fn number() -> impl Strategy<Value = u64> + Clone {
    prop_oneof![4 => 0_u64..10, 4 => 0_u64..400_000, 1 => any::<u64>(), 1 => Just(u64::MAX)]
}

fn bytes() -> impl Strategy<Value = ByteBuf> + Clone {
    let content = |length: u64| ByteBuf::from(vec![3; length.min(1 << 20) as usize]);
    prop_oneof![2 => Just(ByteBuf::from(&b"small"[..])), 1 => number().prop_map(content)]
}

fn hash() -> impl Strategy<Value = Hash> + Clone {
    bytes().prop_map(|bytes| Hash::of(&bytes))
}

fn window() -> impl Strategy<Value = Window> + Clone {
    (number(), number()).prop_map(|(offset, length)| Window { offset, length: length.min(1 << 21) as u32 })
}

fn want() -> impl Strategy<Value = Want> {
    // As many blocks as one of the files has, or any number.
    let blocks = (number(), proptest::option::weighted(0.2, 0_u64..5)).prop_map(|(length, count)| {
        let count = count.unwrap_or(BlockSize::for_size(0).count(length.min(20_000)));
        Blocks { length, ids: vec![BlockId::of(0, b"block"); count as usize] }
    });
    let signed =
        (number(), bytes()).prop_map(|(length, signature)| BasisReport::Signed { length, signature });
    let range_removed =
        (blocks.clone(), number()).prop_map(|(blocks, split)| BasisReport::RangeRemoved { blocks, split });
    let basis =
        prop_oneof![2 => blocks.clone().prop_map(BasisReport::Blocks), 1 => signed, 1 => range_removed];
    (id(), proptest::option::of(blocks), proptest::option::of(basis)).prop_map(|(id, staged, basis)| Want {
        id,
        staged,
        basis,
    })
}

fn chunk() -> impl Strategy<Value = Chunk> + Clone {
    number().prop_map(|length| Chunk { length: length as u32, id: ChunkId::of(b"chunk") })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        number().prop_map(|length| Op::Keep { length }),
        (number(), number()).prop_map(|(offset, length)| Op::Copy { offset, length }),
        bytes().prop_map(Op::Data),
        number().prop_map(|length| Op::Zeros { length }),
        (window(), number(), bytes()).prop_map(|(window, length, delta)| Op::Delta {
            window,
            length: length.min(512 << 10) as u32,
            delta,
        }),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        4 => (vec(op(), 0..4), proptest::option::of(hash())).prop_map(|(ops, end)| Answer::Steps { ops, end }),
        1 => Just(Answer::Skipped),
        1 => vec(window(), 1..4).prop_map(Answer::Sign),
        1 => (number(), number()).prop_map(|(offset, length)| Answer::Cut(Stretch { offset, length })),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![vec(bytes(), 0..3).prop_map(Reply::Signatures), vec(chunk(), 0..4).prop_map(Reply::Chunks),]
}

fn edit() -> impl Strategy<Value = Edit> {
    (id(), id(), id()).prop_map(|(keep, drop, add)| Edit { keep, drop, add })
}

fn common() -> impl Strategy<Value = Common> {
    let problem = Problem { kind: ProblemKind::Unreadable, path: b"p".to_vec(), cause: "c".to_owned() };
    prop_oneof![
        any::<bool>().prop_map(|is_active| Common::Heartbeat { is_active }),
        Just(Common::Note(Event::Problem(problem))),
        Just(Common::Abort { kind: AbortKind::Busy, text: String::new() }),
    ]
}

fn from_sender() -> Union<BoxedStrategy<FromSender>> {
    let block = manifest(&offered()).blocks().next().unwrap();
    Union::new([
        common().prop_map(FromSender::Common).boxed(),
        Just(subject()).boxed(),
        Just(FromSender::Ignores(vec![IgnoreFile { directory: Vec::new(), text: b"x".to_vec() }])).boxed(),
        Just(FromSender::Entries(ByteBuf::from(block))).boxed(),
        vec(any::<u8>(), 0..20).prop_map(|bytes| FromSender::Entries(ByteBuf::from(bytes))).boxed(),
        any::<bool>().prop_map(|complete| FromSender::Offered { complete }).boxed(),
        vec((id(), answer()), 0..4).prop_map(FromSender::Answers).boxed(),
        vec((id(), answer()), 0..4).prop_map(FromSender::Answers).boxed(),
        vec((id(), answer()), 0..4).prop_map(FromSender::Answers).boxed(),
        vec((id(), hash()), 0..4).prop_map(|files| FromSender::same(&files)).boxed(),
        Just(FromSender::Baseline { digest: record::digest(&manifest(&offered()), &[]) }).boxed(),
        (vec(edit(), 1..4), vec(any::<u8>(), 0..20))
            .prop_map(|(edits, entries)| FromSender::Changes(Change { edits, entries }))
            .boxed(),
        (any::<bool>(), prop_oneof![hash(), Just(record::digest(&manifest(&offered()), &[]))])
            .prop_map(|(complete, digest)| FromSender::Changed { complete, digest })
            .boxed(),
        vec((vec(any::<u8>(), 0..4), any::<bool>()), 0..4)
            .prop_map(|subtrees| {
                subtrees.into_iter().map(|(path, recursive)| Subtree { path, recursive }).collect()
            })
            .prop_map(FromSender::Scope)
            .boxed(),
        vec((id(), hash(), bytes()), 0..3).prop_map(FromSender::Pushed).boxed(),
        vec((id(), Just(samples())), 0..3).prop_map(FromSender::Sampled).boxed(),
        (vec((id(), any::<u64>()), 0..3), any::<u64>())
            .prop_map(|(files, others_bytes)| FromSender::Holes(Holes { files, others_bytes }))
            .boxed(),
    ])
}

fn from_receiver() -> Union<BoxedStrategy<FromReceiver>> {
    Union::new([
        common().prop_map(FromReceiver::Common).boxed(),
        vec(want(), 0..4).prop_map(FromReceiver::Wants).boxed(),
        vec(want(), 0..4).prop_map(FromReceiver::Wants).boxed(),
        vec((id(), reply()), 0..4).prop_map(FromReceiver::Replies).boxed(),
        vec((id(), reply()), 0..4).prop_map(FromReceiver::Replies).boxed(),
        Just(FromReceiver::BaselineMissing).boxed(),
        Just(FromReceiver::Rescan).boxed(),
        vec((id(), any::<u64>()), 0..4)
            .prop_map(|entries| FromReceiver::Removable { entries, is_last: true })
            .boxed(),
        Just(FromReceiver::Finished(Tally::default())).boxed(),
    ])
}

/// A message, whether a work ends after it, and an index into the works.
type Heard<M> = (M, bool, prop::sample::Index);

fn bear<E: Engine>(mut victim: Victim<E>, messages: Vec<Heard<E::Incoming>>)
where
    E::Work: JarWork,
{
    for (message, ends_work, index) in messages {
        // A peer can send only messages that decode; the decoder refuses all others.
        if let (Ok(message), false) = (E::Incoming::decode(&message.encode()), victim.side.only_outcomes) {
            victim.hear(message);
        }
        if victim.side.done.is_some() {
            break;
        }
        let works = &victim.side.works;
        assert!(works.len() <= 40, "{works:?}");
        assert!(works.iter().map(JarWork::content_bytes).sum::<usize>() <= 24 << 20);
        if (ends_work || victim.side.only_outcomes) && !works.is_empty() {
            let index = index.index(works.len());
            victim.end(index);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn sender_bears_any_messages_at_any_stage_or_ends_in_an_error(
        stage in 0..STAGES.len(),
        messages in vec((from_receiver(), any::<bool>(), any::<prop::sample::Index>()), 1..40),
    ) {
        bear(sender_at(STAGES[stage]), messages);
    }

    #[test]
    fn receiver_bears_any_messages_at_any_stage_or_ends_in_an_error(
        stage in 0..STAGES.len(),
        messages in vec((from_sender(), any::<bool>(), any::<prop::sample::Index>()), 1..40),
    ) {
        bear(receiver_at(STAGES[stage]), messages);
    }
}
