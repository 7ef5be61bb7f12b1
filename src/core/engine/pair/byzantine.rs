//! A byzantine peer against one engine: its lies end in a protocol error and nothing else.

use serde_bytes::ByteBuf;

use super::baseline::Baseline;
use super::disk::ReceiverDisk;
use super::source::SenderDisk;
use super::tree::{Node, Rng, Tree, directory, file, link, manifest, path, time, tree};
use super::{JarReceiver, JarSender, JarWork, LIMITS, Side};
use crate::content::blocks::BlockId;
use crate::content::chunk::{Chunk, ChunkId};
use crate::content::hash::Hash;
use crate::content::sample::{SAMPLED_BYTES_MIN, Samples};
use crate::engine::{Config, Engine, Input, Receiver, ReceiverWork, Sender};
use crate::monitor::Event;
use crate::tree::change::{Change, Edit};
use crate::tree::filter::IgnoreFile;
use crate::tree::subtrees::Subtree;
use crate::tree::tree_id::TreeId;
use crate::wire::message::{
    AbortKind, Answer, BasisReport, Blocks, Common, FromReceiver, FromSender, Holes, Message, Op, Reply,
    SAMPLED_MAX, STREAMS_MAX, Stretch, Subject, Tally, WANTS_MAX, Want, Window,
};

// Ids of the files of `offered`.
pub(super) const DIRECTORY: u32 = 0;
pub(super) const SMALL: u32 = 1;
pub(super) const LARGE: u32 = 2;
pub(super) const LINK: u32 = 3;
pub(super) const UPDATED: u32 = 4;
pub(super) const SAME: u32 = 5;

const LARGE_BYTES: usize = 300_000;
pub(super) const UPDATED_BYTES: usize = 20_000;

/// The offered tree: one entry of every kind.
pub(super) fn offered() -> Tree {
    let mut rng = Rng::new(1);
    tree([
        ("dir", directory()),
        ("dir/small", file(b"small")),
        ("large", file(&rng.bytes(LARGE_BYTES))),
        ("link", link("dir")),
        ("updated", file(&rng.bytes(UPDATED_BYTES))),
        ("zsame", file(b"same")),
    ])
}

fn present() -> Tree {
    let older = Node { mtime: time(0), ..file(&[2; UPDATED_BYTES]) };
    tree([("updated", older), ("zsame", file(b"same"))])
}

/// Progress of an honest exchange at the time of the lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Fresh,
    /// S: the source is being listed. R: the destination is being listed.
    Listing,
    /// S: the full offer is sent. R: the same, and wants are out while directories are made.
    Offered,
    /// S: wants are being answered. R: the directories exist.
    Content,
    /// A large file is in flight.
    Streaming,
    /// S: signatures are awaited. R: all content has arrived, and steps are under way.
    Late,
}

pub(super) const STAGES: [Stage; 6] =
    [Stage::Fresh, Stage::Listing, Stage::Offered, Stage::Content, Stage::Streaming, Stage::Late];

/// An engine and its disk.
pub(super) struct Victim<E: Engine> {
    pub(super) side: Side<E>,
    disk: Box<dyn FnMut(E::Work) -> E::Outcome>,
    pub(super) said: Vec<E::Outgoing>,
}

/// Makes a sender, as the victim of a byzantine receiver.
pub(super) fn sender(config: &Config, source: Tree) -> Victim<JarSender> {
    sender_on(config, SenderDisk::new(source))
}

pub(super) fn sender_on(config: &Config, mut source: SenderDisk) -> Victim<JarSender> {
    Victim::new(Side::new(Sender::new(config)), move |work| source.perform(work))
}

/// Makes a receiver, as the victim of a byzantine sender.
pub(super) fn receiver(config: &Config, target: Tree) -> Victim<JarReceiver> {
    receiver_on(config, ReceiverDisk::new(target))
}

pub(super) fn receiver_on(config: &Config, mut target: ReceiverDisk) -> Victim<JarReceiver> {
    Victim::new(Side::new(Receiver::new(config)), move |work| target.perform(work))
}

impl<E: Engine> Victim<E>
where
    E::Work: JarWork,
{
    fn new(mut side: Side<E>, disk: impl FnMut(E::Work) -> E::Outcome + 'static) -> Self {
        let said = side.drain();
        Self { side, disk: Box::new(disk), said }
    }

    pub(super) fn hear(&mut self, message: E::Incoming) {
        if self.side.done.is_none() {
            self.side.engine.input(Input::Message(message));
            self.said.extend(self.side.drain());
        }
    }

    pub(super) fn end_one(&mut self) {
        self.end(0);
    }

    pub(super) fn end(&mut self, index: usize) {
        let outcome = (self.disk)(self.side.works.remove(index));
        self.side.engine.input(Input::Outcome(outcome));
        self.said.extend(self.side.drain());
    }

    pub(super) fn end_all(&mut self) {
        self.end_where(|_| true);
    }

    fn end_where(&mut self, which: impl Fn(&E::Work) -> bool) {
        while let Some(index) = self.side.works.iter().position(&which) {
            self.end(index);
        }
    }

    /// True if the run ended because the peer broke the protocol, and the peer was told so.
    pub(super) fn is_offended(&self) -> bool {
        let Some(Err(error)) = &self.side.done else { return false };
        let has_aborted = matches!(
            self.said.last().and_then(Message::as_common),
            Some(Common::Abort { kind: AbortKind::Protocol, .. })
        );
        error.kind == AbortKind::Protocol && !error.by_peer && has_aborted
    }
}

/// The default options, with the limits of the jar.
pub(super) fn config() -> Config {
    Config { limits: LIMITS, ..Config::default() }
}

/// A sender whose honest peer played up to this stage.
pub(super) fn sender_at(stage: Stage) -> Victim<JarSender> {
    let mut victim = sender(&config(), offered());
    if stage == Stage::Fresh {
        return victim;
    }
    victim.end_one();
    if stage == Stage::Listing {
        return victim;
    }
    victim.end_one();
    if stage == Stage::Offered {
        return victim;
    }
    victim.hear(FromReceiver::Wants(vec![Want::whole(SMALL)]));
    if stage == Stage::Content {
        return victim;
    }
    victim.end_one();
    victim.hear(FromReceiver::Wants(vec![Want::whole(LARGE)]));
    victim.end_one();
    if stage == Stage::Streaming {
        return victim;
    }
    victim.end_all();
    let staged = Some(blocks(1, 1));
    victim.hear(FromReceiver::Wants(vec![Want { staged, ..want_with_basis(UPDATED) }]));
    victim.end_all();
    assert!(asks_to_sign(&victim.said, UPDATED));
    victim
}

/// A receiver whose honest peer played up to this stage.
pub(super) fn receiver_at(stage: Stage) -> Victim<JarReceiver> {
    let mut target = ReceiverDisk::new(present());
    target.baseline = Baseline::of(&offered());
    let mut victim = receiver_on(&config(), target);
    if stage == Stage::Fresh {
        return victim;
    }
    victim.hear(subject());
    if stage == Stage::Listing {
        return victim;
    }
    victim.end_all();
    for block in manifest(&offered()).blocks() {
        victim.hear(FromSender::Entries(ByteBuf::from(block)));
    }
    victim.hear(FromSender::Offered { complete: true });
    victim.end_one();
    if stage == Stage::Offered {
        victim.end_where(|work| matches!(work, ReceiverWork::Report(..)));
        assert!(matches!(victim.said.last(), Some(FromReceiver::Wants(_))), "{:?}", victim.said);
        return victim;
    }
    victim.end_all();
    if stage == Stage::Content {
        return victim;
    }
    victim.hear(pieces(LARGE, 1000, false));
    if stage == Stage::Streaming {
        return victim;
    }
    let tree = offered();
    let content = |name: &str| match &tree[&path(name)].what {
        super::tree::What::File(content) => content.to_vec(),
        _ => unreachable!(),
    };
    victim.end_all();
    let large = content("large");
    let ops = vec![Op::Data(ByteBuf::from(&large[1000..]))];
    // The first thousand bytes were wrong, so the file is sent once more.
    victim.hear(steps(LARGE, ops, Some(Hash::of(&large))));
    victim.end_all();
    let ops = vec![Op::Data(ByteBuf::from(large.clone()))];
    victim.hear(steps(LARGE, ops, Some(Hash::of(&large))));
    victim.hear(FromSender::Answers(vec![
        (SMALL, whole(&content("dir/small"))),
        (UPDATED, whole(&content("updated"))),
    ]));
    victim.end_where(|work| matches!(work, ReceiverWork::Step(..)));
    assert!(matches!(victim.side.works[..], [ReceiverWork::Apply(..)]), "{:?}", victim.side.works);
    victim
}

pub(super) fn subject() -> FromSender {
    FromSender::Subject(Subject::directory(0o755, time(3), TreeId::default()))
}

pub(super) fn whole(content: &[u8]) -> Answer {
    let ops = vec![Op::Data(ByteBuf::from(content))];
    Answer::Steps { ops, end: Some(Hash::of(content)) }
}

pub(super) fn pieces(id: u32, length: usize, end: bool) -> FromSender {
    let data = vec![7; length];
    let end = end.then(|| Hash::of(&data));
    steps(id, vec![Op::Data(ByteBuf::from(data))], end)
}

pub(super) fn blocks(length: u64, count: usize) -> Blocks {
    Blocks { length, ids: vec![BlockId::of(0, b"block"); count] }
}

pub(super) fn want_with_basis(id: u32) -> Want {
    Want { id, staged: None, basis: Some(BasisReport::Blocks(blocks(1000, 1))) }
}

pub(super) fn steps(id: u32, ops: Vec<Op>, end: Option<Hash>) -> FromSender {
    FromSender::Answers(vec![(id, Answer::Steps { ops, end })])
}

fn cut_request(id: u32) -> FromSender {
    FromSender::Answers(vec![(id, Answer::Cut(Stretch { offset: 0, length: 10 }))])
}

/// One chunk of this length.
pub(super) fn chunks(id: u32, length: u32) -> FromReceiver {
    let chunk = Chunk { length, id: ChunkId::of(b"chunk") };
    FromReceiver::Replies(vec![(id, Reply::Chunks(vec![chunk]))])
}

pub(super) fn sign_request(id: u32) -> FromSender {
    FromSender::Answers(vec![(id, Answer::Sign(vec![Window { offset: 0, length: 10 }]))])
}

/// This many signatures of one block.
pub(super) fn signatures(id: u32, count: usize) -> FromReceiver {
    FromReceiver::Replies(vec![(id, Reply::Signatures(vec![ByteBuf::from(vec![0; 48]); count]))])
}

/// Samples of a large file of equal bytes.
pub(super) fn samples() -> Samples {
    let read_at = |buffer: &mut [u8], _: u64| {
        buffer.fill(3);
        Ok(())
    };
    Samples::of(SAMPLED_BYTES_MIN, &read_at).unwrap()
}

/// True if the last message asks for signatures of this file.
pub(super) fn asks_to_sign(said: &[FromSender], id: u32) -> bool {
    let Some(FromSender::Answers(answers)) = said.last() else { return false };
    matches!(answers[..], [.., (last, Answer::Sign(_))] if last == id)
}

/// One message of every kind of the sender, each valid at some time.
fn every_kind_of_sender() -> Vec<(&'static str, FromSender)> {
    let block = manifest(&offered()).blocks().next().unwrap();
    let ignore_file = IgnoreFile { directory: Vec::new(), text: b"x".to_vec() };
    vec![
        ("Subject", subject()),
        ("Ignores", FromSender::Ignores(vec![ignore_file])),
        ("Entries", FromSender::Entries(ByteBuf::from(block))),
        ("Offered", FromSender::Offered { complete: true }),
        ("Whole", FromSender::Answers(vec![(SMALL, whole(b"small"))])),
        ("Same", FromSender::same(&[(UPDATED, Hash::of(b"same"))])),
        ("Sign", sign_request(UPDATED)),
        ("Cut", cut_request(UPDATED)),
        ("Steps", pieces(LARGE, 1000, false)),
        ("Note", Common::Note(Event::Excluded { entries: 1 }).into()),
        ("Heartbeat", Common::Heartbeat { is_active: true }.into()),
        ("Baseline", FromSender::Baseline { digest: Hash::of(b"baseline") }),
        ("Changes", FromSender::Changes(Change { edits: vec![Edit::default()], entries: Vec::new() })),
        ("Changed", FromSender::Changed { complete: true, digest: Hash::of(b"baseline") }),
        ("Sampled", FromSender::Sampled(vec![(LARGE, samples())])),
        ("Holes", FromSender::Holes(Holes { files: vec![(LARGE, 1)], others_bytes: 1 })),
        ("Removed", FromSender::Removed),
    ]
}

/// One message of every kind of the receiver, each valid at some time.
fn every_kind_of_receiver() -> Vec<(&'static str, FromReceiver)> {
    vec![
        ("Wants", FromReceiver::Wants(vec![Want::whole(UPDATED)])),
        ("Signatures", signatures(UPDATED, 1)),
        ("Chunks", chunks(UPDATED, 10)),
        ("Finished", FromReceiver::Finished(Tally::default())),
        ("Note", Common::Note(Event::Excluded { entries: 1 }).into()),
        ("Heartbeat", Common::Heartbeat { is_active: true }.into()),
        ("BaselineMissing", FromReceiver::BaselineMissing),
        ("Rescan", FromReceiver::Rescan),
        ("Removable", FromReceiver::Removable { entries: vec![(SMALL, 1)], is_last: true }),
    ]
}

#[test]
fn every_message_out_of_turn_breaks_the_protocol() {
    let senders = [
        (Stage::Fresh, &["Note"][..]),
        (Stage::Listing, &["Note"]),
        (Stage::Offered, &["Note", "Wants", "Finished"]),
        (Stage::Content, &["Note", "Wants"]),
        (Stage::Streaming, &["Note", "Wants"]),
        (Stage::Late, &["Note", "Signatures"]),
    ];
    let receivers = [
        (Stage::Fresh, &["Note", "Subject", "Ignores", "Entries"][..]),
        (Stage::Listing, &["Note", "Ignores", "Entries", "Offered", "Baseline", "Sampled", "Holes"]),
        (Stage::Offered, &["Note", "Whole", "Same", "Sign", "Cut", "Steps"]),
        (Stage::Content, &["Note", "Whole", "Same", "Sign", "Cut", "Steps"]),
        (Stage::Streaming, &["Note", "Whole", "Same", "Sign", "Cut", "Steps"]),
        (Stage::Late, &["Note"]),
    ];
    fn assert_offended<E: Engine>(mut victim: Victim<E>, message: E::Incoming, is_allowed: bool, claim: &str)
    where
        E::Work: JarWork,
    {
        victim.hear(message);
        assert_eq!(victim.is_offended(), !is_allowed, "{claim}: {:?}", victim.side.done);
    }
    for (stage, allowed) in senders {
        for (name, message) in every_kind_of_receiver() {
            let claim = format!("{name} at a sender, {stage:?}");
            assert_offended(sender_at(stage), message, allowed.contains(&name), &claim);
        }
    }
    for (stage, allowed) in receivers {
        for (name, message) in every_kind_of_sender() {
            let claim = format!("{name} at a receiver, {stage:?}");
            assert_offended(receiver_at(stage), message, allowed.contains(&name), &claim);
        }
    }
}

#[test]
fn abort_ends_the_run_at_any_time_and_is_not_answered() {
    fn assert_aborted<E: Engine>(mut victim: Victim<E>)
    where
        E::Work: JarWork,
    {
        let said = victim.said.len();
        victim.hear(Common::Abort { kind: AbortKind::Busy, text: "busy".to_owned() }.into());
        let error = victim.side.done.unwrap().unwrap_err();
        assert!(error.by_peer && error.kind == AbortKind::Busy, "{error:?}");
        assert_eq!(victim.said.len(), said);
    }
    for stage in STAGES {
        assert_aborted(sender_at(stage));
        assert_aborted(receiver_at(stage));
    }
}

/// Sends these messages to a victim; only the last one breaks the protocol.
pub(super) fn offend<E: Engine>(mut victim: Victim<E>, claim: &str, messages: Vec<E::Incoming>)
where
    E::Work: JarWork,
{
    let last = messages.len() - 1;
    for (index, message) in messages.into_iter().enumerate() {
        assert!(victim.side.done.is_none(), "{claim}: ended before the lie: {:?}", victim.side.done);
        victim.hear(message);
        assert_eq!(victim.is_offended(), index == last, "{claim}: {:?}", victim.side.done);
    }
}

#[test]
fn sender_cannot_make_a_receiver_take_unrequested_content() {
    let files = |files: &[(u32, Answer)]| FromSender::Answers(files.to_vec());
    let small = || (SMALL, whole(b"small"));
    let same = |ids: &[u32]| {
        let hash = Hash::of(b"same");
        FromSender::same(&ids.iter().map(|&id| (id, hash)).collect::<Vec<_>>())
    };
    let updated = || Op::Data(ByteBuf::from(vec![1; UPDATED_BYTES]));
    let copy = |offset, length| Op::Copy { offset, length };
    let of_small = |ops| steps(SMALL, ops, None);
    for stage in [Stage::Offered, Stage::Content, Stage::Streaming] {
        let lies: Vec<(&str, Vec<FromSender>)> = vec![
            ("a file that is there already", vec![files(&[(SAME, whole(b"same"))])]),
            ("a directory", vec![files(&[(DIRECTORY, whole(b""))])]),
            ("a link", vec![files(&[(LINK, Answer::Skipped)])]),
            ("an id beyond the manifest", vec![files(&[(6, whole(b""))])]),
            ("the largest id", vec![files(&[(u32::MAX, Answer::Skipped)])]),
            ("another size", vec![files(&[(SMALL, whole(b"smaller"))])]),
            ("an empty one", vec![files(&[(SMALL, whole(b""))])]),
            ("twice in one message", vec![files(&[small(), small()])]),
            ("twice in two messages", vec![files(&[small()]), files(&[small()])]),
            ("given, then skipped", vec![files(&[small()]), files(&[(SMALL, Answer::Skipped)])]),
            ("given, then in pieces", vec![files(&[small()]), pieces(SMALL, 5, true)]),
            ("in pieces, then given", vec![pieces(SMALL, 1, false), files(&[small()])]),
            ("the same, of what is there already", vec![same(&[SAME])]),
            ("the same twice in one message", vec![same(&[UPDATED, UPDATED])]),
            ("given, then the same", vec![files(&[small()]), same(&[SMALL])]),
            ("in pieces, then the same", vec![pieces(SMALL, 1, false), same(&[SMALL])]),
            ("skipped twice", vec![files(&[(SMALL, Answer::Skipped)]), files(&[(SMALL, Answer::Skipped)])]),
            (
                "skipped on the way, twice",
                vec![
                    pieces(LARGE, 1, false),
                    files(&[(LARGE, Answer::Skipped)]),
                    files(&[(LARGE, Answer::Skipped)]),
                ],
            ),
            ("skipped, then in pieces", vec![files(&[(LARGE, Answer::Skipped)]), pieces(LARGE, 1, false)]),
            ("pieces that nobody asked for", vec![pieces(SAME, 1, false)]),
            ("pieces of a directory", vec![pieces(DIRECTORY, 1, false)]),
            ("longer pieces", vec![pieces(SMALL, 6, false)]),
            ("longer pieces, one by one", vec![pieces(SMALL, 5, false), pieces(SMALL, 1, false)]),
            ("shorter pieces", vec![pieces(SMALL, 4, true)]),
            (
                "pieces after the end",
                vec![
                    steps(UPDATED, vec![updated()], Some(Hash::of(b"wrong"))),
                    steps(UPDATED, Vec::new(), None),
                ],
            ),
            ("a copy of everything there can be", vec![of_small(vec![copy(0, u64::MAX)])]),
            ("copies that add up beyond 64 bits", vec![of_small(vec![copy(0, u64::MAX), copy(0, 2)])]),
            ("more kept than there is to be", vec![of_small(vec![Op::Keep { length: 6 }])]),
            ("signatures of what has no old version", vec![sign_request(SMALL)]),
            ("signatures of what is there", vec![sign_request(SAME)]),
            ("chunks of what has no old version", vec![cut_request(SMALL)]),
            ("chunks of what is there", vec![cut_request(SAME)]),
            ("chunks twice", vec![cut_request(UPDATED), cut_request(UPDATED)]),
            (
                "signatures of what is given",
                vec![files(&[(UPDATED, whole(&[1; UPDATED_BYTES]))]), sign_request(UPDATED)],
            ),
            ("another offer", vec![subject()]),
        ];
        for (claim, messages) in lies {
            offend(receiver_at(stage), &format!("{claim} ({stage:?})"), messages);
        }
    }
}

#[test]
fn sender_cannot_have_signatures_made_without_end() {
    let mut victim = receiver_at(Stage::Content);
    for count in 0.. {
        victim.hear(sign_request(UPDATED));
        if victim.is_offended() {
            break;
        }
        assert!(count < 2 * STREAMS_MAX);
    }
}

#[test]
fn sender_cannot_send_more_files_at_once_than_allowed() {
    let source: Tree = (0..=STREAMS_MAX).map(|n| (path(&format!("{n}")), file(&[1; 200_000]))).collect();
    let mut victim = receiver(&config(), Tree::new());
    victim.hear(subject());
    victim.hear(FromSender::Entries(ByteBuf::from(manifest(&source).blocks().next().unwrap())));
    victim.hear(FromSender::Offered { complete: true });
    victim.end_all();
    for id in 0..=STREAMS_MAX {
        assert!(victim.side.done.is_none());
        victim.hear(pieces(id as u32, 1, false));
    }
    assert!(victim.is_offended());
}

#[test]
fn pieces_without_content_do_not_pile_up() {
    for ops in [Vec::new(), vec![Op::Copy { offset: 0, length: 0 }; 8000]] {
        let mut victim = receiver_at(Stage::Streaming);
        let mut waiting = 0;
        while !victim.side.only_outcomes {
            let message = steps(LARGE, ops.clone(), None);
            waiting += message.encode().len();
            victim.hear(message);
            assert!(victim.side.done.is_none() && waiting < 16 << 20, "{waiting} bytes wait");
        }
        victim.end_where(|work| matches!(work, ReceiverWork::Step(..)));
        assert!(!victim.side.only_outcomes, "and then it goes on");
    }
}

#[test]
fn several_entries_are_those_that_were_asked_for() {
    let scope = |names: &[&str]| {
        names.iter().map(|name| Subtree { path: name.as_bytes().to_vec(), recursive: true }).collect()
    };
    for (names, is_offence) in
        [(&["a", "b"][..], false), (&["a"], false), (&[".bashrc"], true), (&["a", "b/c"], true), (&[], true)]
    {
        let asked = ["a", "b"].map(path).to_vec();
        let mut victim = receiver(&Config { asked, ..config() }, Tree::new());
        if !names.is_empty() {
            victim.hear(FromSender::Scope(scope(names)));
        }
        victim.hear(FromSender::Subject(Subject::Several));
        assert_eq!(victim.is_offended(), is_offence, "{names:?}");
    }
}

#[test]
fn single_file_is_offered_under_the_announced_name_or_not_at_all() {
    let single = |entries: Tree| {
        let mut victim = receiver(&config(), Tree::new());
        victim.hear(FromSender::Subject(Subject::File { name: b"f".to_vec() }));
        for block in manifest(&entries).blocks() {
            victim.hear(FromSender::Entries(ByteBuf::from(block)));
        }
        victim.hear(FromSender::Offered { complete: true });
        victim.end_all();
        victim
    };
    for lie in [
        tree([("g", file(b"1"))]),
        tree([("f", directory())]),
        tree([("d", directory()), ("d/f", file(b"1"))]),
        tree([("f", file(b"1")), ("g", file(b"2"))]),
    ] {
        assert!(single(lie).is_offended());
    }
    for truth in [tree([("f", file(b"1"))]), tree([("f", link("x"))]), Tree::new()] {
        assert!(!single(truth).is_offended());
    }
}

#[test]
fn malformed_manifest_breaks_the_protocol() {
    let block = manifest(&offered()).blocks().next().unwrap();
    let garbage = FromSender::Entries(ByteBuf::from(vec![0xff; 30]));
    offend(receiver_at(Stage::Listing), "garbage", vec![garbage]);
    let again = FromSender::Entries(ByteBuf::from(block));
    offend(receiver_at(Stage::Listing), "a block twice", vec![again.clone(), again]);
    let long = IgnoreFile { directory: Vec::new(), text: vec![b'a'; 100_000] };
    offend(receiver_at(Stage::Listing), "a long ignore file", vec![FromSender::Ignores(vec![long])]);
}

#[test]
fn sender_cannot_make_a_receiver_keep_samples_without_end() {
    let sampled = |id| FromSender::Sampled(vec![(id, samples())]);
    let claim = "samples of too many files";
    offend(receiver_at(Stage::Listing), claim, (0..=SAMPLED_MAX as u32).map(sampled).collect());
    // Samples of an unknown file are useless, but allowed.
    let mut victim = receiver_at(Stage::Listing);
    victim.hear(sampled(99));
    victim.hear(FromSender::Offered { complete: true });
    assert!(!victim.is_offended());
}

#[test]
fn receiver_cannot_ask_for_what_was_not_offered_as_a_file() {
    let wants = |ids: &[u32]| FromReceiver::Wants(ids.iter().map(|&id| Want::whole(id)).collect());
    for (claim, messages) in [
        ("a directory", vec![wants(&[DIRECTORY])]),
        ("a link", vec![wants(&[LINK])]),
        ("an id beyond the manifest", vec![wants(&[6])]),
        ("the largest id", vec![wants(&[u32::MAX])]),
        ("twice in one message", vec![wants(&[SMALL, SMALL])]),
        ("twice in two messages", vec![wants(&[SMALL]), wants(&[SMALL])]),
        ("finished before it was answered", vec![wants(&[SMALL]), FromReceiver::Finished(Tally::default())]),
    ] {
        offend(sender_at(Stage::Offered), claim, messages);
    }
}

#[test]
fn file_may_be_requested_twice_and_not_more() {
    let mut victim = sender_at(Stage::Offered);
    for _ in 0..2 {
        victim.hear(FromReceiver::Wants(vec![Want::whole(SMALL)]));
        victim.end_all();
        assert!(victim.side.done.is_none());
    }
    victim.hear(FromReceiver::Wants(vec![Want::whole(SMALL)]));
    assert!(victim.is_offended());
}

#[test]
fn receiver_cannot_leave_more_wants_open_than_allowed() {
    let source: Tree = (0..=WANTS_MAX).map(|n| (path(&format!("{n:05}")), file(b""))).collect();
    let mut victim = sender(&config(), source);
    victim.end_one();
    victim.end_one();
    victim.hear(FromReceiver::Wants((0..WANTS_MAX as u32).map(Want::whole).collect()));
    assert!(victim.side.done.is_none());
    victim.hear(FromReceiver::Wants(vec![Want::whole(WANTS_MAX as u32)]));
    assert!(victim.is_offended());
}

#[test]
fn receiver_cannot_make_a_sender_hold_block_names_without_end() {
    let megabyte = file(&vec![1; 1 << 20]);
    let source: Tree = (0..WANTS_MAX).map(|n| (path(&format!("{n:05}")), megabyte.clone())).collect();
    let mut victim = sender(&config(), source);
    victim.end_one();
    victim.end_one();
    let mut held = 0;
    for id in 0..WANTS_MAX as u32 {
        let all = || Some(blocks(1 << 20, 64));
        let want = Want { id, staged: all(), basis: all().map(BasisReport::Blocks) };
        held += want.weight();
        victim.hear(FromReceiver::Wants(vec![want]));
        if victim.is_offended() {
            break;
        }
        assert!(held < 16 << 20, "{held} bytes are held");
    }
    assert!(victim.is_offended());
}

#[test]
fn agent_accepts_no_notes() {
    let config = Config { relay: true, ..config() };
    let note = || Common::Note(Event::Moved { bytes: 1 });
    offend(sender(&config, Tree::new()), "a sender", vec![note().into()]);
    offend(receiver(&config, Tree::new()), "a receiver", vec![note().into()]);
}
