//! Lies about bases: their blocks, signatures and chunks, and contents made from them.

use serde_bytes::ByteBuf;

use super::JarSender;
use super::byzantine::{
    LARGE, SMALL, Stage, UPDATED, UPDATED_BYTES, Victim, asks_to_sign, blocks, chunks, offend, sender_at,
    signatures, want_with_basis,
};
use crate::content::blocks::BlockSize;
use crate::content::delta::signature_bytes;
use crate::wire::message::{Answer, BasisReport, Blocks, FromReceiver, FromSender, Reply, Want};

#[test]
fn signatures_are_taken_once_and_in_the_requested_number() {
    for (claim, messages) in [
        ("of another file", vec![signatures(SMALL, 1)]),
        ("of no file", vec![signatures(99, 1)]),
        ("too many", vec![signatures(UPDATED, 2)]),
        ("twice", vec![signatures(UPDATED, 1), signatures(UPDATED, 1)]),
    ] {
        offend(sender_at(Stage::Late), claim, messages);
    }
}

/// A sender that waits for the chunks of a large basis; `cuts` tells whether it still cuts its own.
fn cutting(cuts: bool) -> Victim<JarSender> {
    let mut victim = sender_at(Stage::Offered);
    let basis = blocks(200_000, 13);
    victim.hear(FromReceiver::Wants(vec![Want {
        id: LARGE,
        staged: None,
        basis: Some(BasisReport::Blocks(basis)),
    }]));
    victim.end_one();
    let Some(FromSender::Answers(answers)) = victim.said.last() else { panic!("{:?}", victim.said) };
    assert!(matches!(answers[..], [(LARGE, Answer::Cut(_))]), "{answers:?}");
    if !cuts {
        victim.end_all();
    }
    victim
}

#[test]
fn chunks_are_taken_once_before_or_after_the_senders_own() {
    for cuts in [true, false] {
        let mut victim = cutting(cuts);
        victim.hear(chunks(LARGE, 200_000));
        victim.end_all();
        assert!(asks_to_sign(&victim.said, LARGE), "{cuts}");

        for (claim, second) in [("twice", chunks(LARGE, 200_000)), ("of no file", chunks(99, 1))] {
            let mut victim = cutting(cuts);
            victim.hear(chunks(LARGE, 200_000));
            assert!(victim.side.done.is_none());
            victim.hear(second);
            assert!(victim.is_offended(), "{claim}");
        }
        let mut victim = cutting(cuts);
        victim.hear(chunks(LARGE, 199_999));
        victim.end_all();
        assert!(victim.is_offended(), "of another range");
        let mut victim = cutting(cuts);
        victim.hear(signatures(LARGE, 0));
        assert!(victim.is_offended(), "signatures instead");
    }
}

/// A sender that waits for the signature of a small basis of 1,000 bytes.
fn asking() -> Victim<JarSender> {
    let mut victim = sender_at(Stage::Offered);
    victim.hear(FromReceiver::Wants(vec![want_with_basis(UPDATED)]));
    victim.end_all();
    assert!(asks_to_sign(&victim.said, UPDATED));
    victim
}

#[test]
fn file_signature_is_taken_once_and_in_the_due_length() {
    let signature = |id, length: usize| {
        let signatures = if length == 0 { Vec::new() } else { vec![ByteBuf::from(vec![0; length])] };
        FromReceiver::Replies(vec![(id, Reply::Signatures(signatures))])
    };
    for due in [0, signature_bytes(1000)] {
        let mut victim = asking();
        victim.hear(signature(UPDATED, due));
        victim.end_all();
        assert!(matches!(victim.said.last(), Some(FromSender::Answers(files)) if files[0].0 == UPDATED));
        victim.hear(signature(UPDATED, due));
        assert!(victim.is_offended(), "twice");
    }
    for (claim, lie) in [
        ("shorter", signature(UPDATED, signature_bytes(1000) - 1)),
        ("longer", signature(UPDATED, signature_bytes(1000) + 1)),
        ("of another file", signature(SMALL, 0)),
        ("of no file", signature(99, 0)),
        ("asked for again", FromReceiver::Wants(vec![want_with_basis(UPDATED)])),
    ] {
        let mut victim = asking();
        victim.hear(lie);
        victim.end_all();
        assert!(victim.is_offended(), "{claim}");
    }
}

#[test]
fn want_must_name_exactly_the_blocks_of_the_file() {
    let want = |staged, basis: Option<Blocks>| {
        FromReceiver::Wants(vec![Want { id: UPDATED, staged, basis: basis.map(BasisReport::Blocks) }])
    };
    for (length, count, basis_count) in
        [(0, 0, 0), (1, 1, 1), (16 << 10, 1, 1), ((16 << 10) + 1, 2, 2), (u64::MAX >> 1, 2, 3)]
    {
        let mut victim = sender_at(Stage::Offered);
        victim.hear(want(Some(blocks(length, count)), Some(blocks(length, basis_count))));
        assert!(victim.side.done.is_none(), "{length}");
        for more in [true, false] {
            if count == 0 && !more {
                continue;
            }
            let wrong_count = |count: usize| if more { count + 1 } else { count - 1 };
            let wrong = || Some(blocks(length, wrong_count(count)));
            let wrong_basis = || Some(blocks(length, wrong_count(basis_count)));
            offend(sender_at(Stage::Offered), "of what is staged", vec![want(wrong(), None)]);
            offend(sender_at(Stage::Offered), "of the old version", vec![want(None, wrong_basis())]);
        }
    }
}

#[test]
fn want_without_a_range_must_name_the_blocks_of_all_the_rest() {
    let size = UPDATED_BYTES as u64;
    let count = BlockSize::for_size(size).count(size) as usize;
    let range_removed = |staged, length, count, split| {
        let basis = BasisReport::RangeRemoved { blocks: blocks(length, count), split };
        FromReceiver::Wants(vec![Want { id: UPDATED, staged, basis: Some(basis) }])
    };
    for split in [0, size] {
        let mut victim = sender_at(Stage::Offered);
        victim.hear(range_removed(None, size + 1, count, split));
        victim.end_all();
        assert!(victim.side.done.is_none());
    }
    for (claim, lie) in [
        ("fewer", range_removed(None, size + 1, count - 1, 0)),
        ("more", range_removed(None, size + 1, count + 1, 0)),
        ("without nothing", range_removed(None, size, count, 0)),
        ("behind the end", range_removed(None, size + 1, count, size + 1)),
        ("beside what is staged", range_removed(Some(blocks(5, 1)), size + 1, count, 0)),
    ] {
        offend(sender_at(Stage::Offered), claim, vec![lie]);
    }
}

#[test]
fn signature_with_a_want_must_fit_the_basis() {
    let signed = |staged, length: u64, signature| {
        let basis = BasisReport::Signed { length, signature: ByteBuf::from(vec![0; signature]) };
        FromReceiver::Wants(vec![Want { id: UPDATED, staged, basis: Some(basis) }])
    };
    let due = signature_bytes(1000);
    let mut victim = sender_at(Stage::Offered);
    victim.hear(signed(None, 1000, due));
    victim.end_all();
    assert!(matches!(victim.said.last(), Some(FromSender::Answers(files)) if files[0].0 == UPDATED));

    let same_length = UPDATED_BYTES as u64;
    for (claim, lie) in [
        ("shorter", signed(None, 1000, due - 1)),
        ("longer", signed(None, 1000, due + 1)),
        ("none", signed(None, 1000, 0)),
        ("of nothing", signed(None, 0, 0)),
        ("of what may be the same", signed(None, same_length, signature_bytes(UPDATED_BYTES))),
        ("of what is too long", signed(None, u64::MAX, due)),
        ("beside what is staged", signed(Some(blocks(5, 1)), 1000, due)),
    ] {
        offend(sender_at(Stage::Offered), claim, vec![lie]);
    }
    let asked_again = signatures(UPDATED, 1);
    offend(sender_at(Stage::Offered), "twice", vec![signed(None, 1000, due), asked_again]);
}
