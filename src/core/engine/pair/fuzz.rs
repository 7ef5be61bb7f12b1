//! Fuzz: a peer that sends anything causes no panic, no two works on one file, and no unbounded
//! queue.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::Union;
use proptest::test_runner::RngSeed;
use serde_bytes::ByteBuf;

use super::byzantine::{STAGES, Victim, offered, samples, subject};
use super::tree::manifest;
use super::{RECEIVER, SENDER, content_of_work};
use crate::content::blocks::{BlockId, BlockSize};
use crate::content::chunk::{Chunk, ChunkId};
use crate::content::hash::Hash;
use crate::monitor::{Event, Problem, ProblemKind};
use crate::tree::change::{Change, Edit};
use crate::tree::filter::IgnoreFile;
use crate::tree::record;
use crate::tree::subtrees::Subtree;
use crate::wire::message::{
    AbortKind, BasisReport, Blocks, Body, Holes, Message, Op, Stretch, Tally, Want, Window,
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

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        (hash(), bytes()).prop_map(|(hash, data)| Body::Whole { hash, data }),
        Just(Body::Skipped),
        Just(Body::Differs),
        (hash(), bytes()).prop_map(|(hash, delta)| Body::Delta { hash, delta }),
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    (id(), id(), id()).prop_map(|(keep, drop, add)| Edit { keep, drop, add })
}

fn message() -> Union<BoxedStrategy<Message>> {
    let block = manifest(&offered()).blocks().next().unwrap();
    let problem = Problem { kind: ProblemKind::Unreadable, path: b"p".to_vec(), cause: "c".to_owned() };
    Union::new([
        Just(subject()).boxed(),
        Just(Message::Ignores(vec![IgnoreFile { directory: Vec::new(), text: b"x".to_vec() }])).boxed(),
        Just(Message::Entries(ByteBuf::from(block))).boxed(),
        vec(any::<u8>(), 0..20).prop_map(|bytes| Message::Entries(ByteBuf::from(bytes))).boxed(),
        any::<bool>().prop_map(|complete| Message::Offered { complete }).boxed(),
        vec(want(), 0..4).prop_map(Message::Wants).boxed(),
        vec((id(), body()), 0..4).prop_map(Message::Files).boxed(),
        vec((id(), hash()), 0..4).prop_map(|files| Message::same(&files)).boxed(),
        (id(), vec(window(), 0..4)).prop_map(|(id, windows)| Message::SignRequest { id, windows }).boxed(),
        (id(), vec(bytes(), 0..3))
            .prop_map(|(id, signatures)| Message::Signatures { id, signatures })
            .boxed(),
        vec((id(), bytes()), 0..3).prop_map(Message::FileSignatures).boxed(),
        (id(), number(), number())
            .prop_map(|(id, offset, length)| Message::CutRequest { id, stretch: Stretch { offset, length } })
            .boxed(),
        (id(), vec(chunk(), 0..4)).prop_map(|(id, chunks)| Message::Chunks { id, chunks }).boxed(),
        (id(), vec(op(), 0..4), proptest::option::of(hash()))
            .prop_map(|(id, ops, end)| Message::Pieces { id, ops, end })
            .boxed(),
        Just(Message::Baseline { digest: record::digest(&manifest(&offered()), &[]) }).boxed(),
        (vec(edit(), 1..4), vec(any::<u8>(), 0..20))
            .prop_map(|(edits, entries)| Message::Changes(Change { edits, entries }))
            .boxed(),
        (any::<bool>(), prop_oneof![hash(), Just(record::digest(&manifest(&offered()), &[]))])
            .prop_map(|(complete, digest)| Message::Changed { complete, digest })
            .boxed(),
        Just(Message::BaselineMissing).boxed(),
        Just(Message::Rescan).boxed(),
        any::<bool>().prop_map(|is_active| Message::Heartbeat { is_active }).boxed(),
        vec((vec(any::<u8>(), 0..4), any::<bool>()), 0..4)
            .prop_map(|subtrees| {
                subtrees.into_iter().map(|(path, recursive)| Subtree { path, recursive }).collect()
            })
            .prop_map(Message::Scope)
            .boxed(),
        vec((id(), hash(), bytes()), 0..3).prop_map(Message::Pushed).boxed(),
        vec((id(), Just(samples())), 0..3).prop_map(Message::Sampled).boxed(),
        (vec((id(), any::<u64>()), 0..3), any::<u64>())
            .prop_map(|(files, others_bytes)| Message::Holes(Holes { files, others_bytes }))
            .boxed(),
        Just(Message::Finished(Tally::default())).boxed(),
        Just(Message::Note(Event::Problem(problem))).boxed(),
        Just(Message::Abort { kind: AbortKind::Busy, text: String::new() }).boxed(),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn any_messages_at_any_stage_end_in_an_error_or_are_borne(
        which in prop_oneof![Just(SENDER), Just(RECEIVER)],
        stage in 0..STAGES.len(),
        messages in vec((message(), any::<bool>(), any::<prop::sample::Index>()), 1..40),
    ) {
        let mut victim = Victim::at(which, STAGES[stage]);
        for (message, ends_work, index) in messages {
            // A peer can send only messages that decode; the decoder refuses all others.
            if let (Ok(message), false) = (Message::decode(&message.encode()), victim.side.only_outcomes) {
                victim.hear(message);
            }
            if victim.side.done.is_some() {
                break;
            }
            let works = &victim.side.works;
            prop_assert!(works.len() <= 40, "{works:?}");
            prop_assert!(works.iter().map(content_of_work).sum::<usize>() <= 24 << 20);
            if (ends_work || victim.side.only_outcomes) && !works.is_empty() {
                let index = index.index(works.len());
                victim.end(index);
            }
        }
    }
}
