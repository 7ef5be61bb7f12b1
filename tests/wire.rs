//! The wire: golden bytes, limits, and robustness of the decoders.
//!
//! With `KSYNC_WRITE_FIXTURES=1` the tests rewrite the golden bytes in `fixtures/wire/`, for an
//! intended change of the protocol.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;

use ksync::content::blocks::{BLOCKS_MAX, BlockId};
use ksync::content::chunk::{CHUNKS_MAX, Chunk, ChunkId};
use ksync::content::hash::Hash;
use ksync::content::sample::{SAMPLED_BYTES_MIN, Samples};
use ksync::monitor::{
    Action, Braked, Differs, Doomed, Event, HEAD_MAX, Problem, ProblemKind, Reason, What, Written,
};
use ksync::tree::accounts::{OWNERS_MAX, Owners};
use ksync::tree::attributes::{Attributes, Special};
use ksync::tree::change::{Change, EDITS_MAX, Edit};
use ksync::tree::entry::Time;
use ksync::tree::filter::{IgnoreFile, RULES_MAX, Rule};
use ksync::tree::metadata::{IdRule, LIST_MAX, MetadataOptions, ModeChange};
use ksync::tree::subtrees::Subtree;
use ksync::tree::tree_id::{Pair, TreeId};
use ksync::wire::frame::{FRAME_BYTES_MAX, FrameReader, FrameWriter, Next};
use ksync::wire::hello::{
    self, Consent, FORCED_MAX, History, InSession, Options, Request, Role, WatchOptions,
};
use ksync::wire::lanes::{Announcement, SEGMENT_BYTES_MAX, Token, encode_segment, read_segment};
use ksync::wire::message::{
    AbortKind, Answer, BasisReport, Blocks, Common, FromReceiver, FromSender, HOLES_MAX, Holes, Message,
    MessageError, Op, Reply, SAMPLED_MAX, Stretch, Subject, TEXT_BYTES_MAX, Tally, WANTS_MAX, WINDOWS_MAX,
    Want, Window,
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_bytes::ByteBuf;

fn data(bytes: &[u8]) -> ByteBuf {
    ByteBuf::from(bytes)
}

fn window(offset: u64, length: u32) -> Window {
    Window { offset, length }
}

fn blocks(length: u64, count: u64) -> Blocks {
    Blocks { length, ids: vec![BlockId::of(0, b"block"); usize::try_from(count).unwrap()] }
}

fn chunks(count: usize) -> Either {
    let chunks = vec![Chunk { length: 300_000, id: ChunkId::of(b"chunk") }; count];
    Either::Receiver(FromReceiver::Replies(vec![(1, Reply::Chunks(chunks))]))
}

fn owners() -> Owners {
    Owners { users: vec![(1000, data(b"me"))], groups: vec![(0, data(b"root")), (70_000, data(b"web"))] }
}

fn attributes() -> Attributes {
    Attributes {
        user: Some(1000),
        group: Some(70_000),
        link: Some((2049, 1 << 33)),
        special: Some(Special::Character(0x103)),
        xattrs: vec![(data(b"system.posix_acl_access"), data(b"\x02\0\0\0")), (data(b"user.a"), data(b"1"))],
    }
}

fn metadata() -> MetadataOptions {
    MetadataOptions {
        owner: true,
        group: true,
        numeric_ids: false,
        users: IdRule::parse_list("0-99:nobody,m*:7").unwrap(),
        groups: IdRule::parse_list(":70000").unwrap(),
        chmod: ModeChange::parse_list("D755,Fgo=u,a+X", 0o022).unwrap(),
        no_perms: true,
        executability: true,
        hard_links: true,
        xattrs: true,
        acls: true,
        devices: true,
        specials: true,
    }
}

fn answer(answer: Answer) -> Either {
    Either::Sender(FromSender::Answers(vec![(1, answer)]))
}

/// A message of either side.
#[derive(Debug, Clone, PartialEq)]
enum Either {
    Sender(FromSender),
    Receiver(FromReceiver),
}

impl Either {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Sender(message) => message.encode(),
            Self::Receiver(message) => message.encode(),
        }
    }

    /// Decodes a message of the same side.
    fn decode(&self, bytes: &[u8]) -> Result<Self, MessageError> {
        match self {
            Self::Sender(_) => FromSender::decode(bytes).map(Self::Sender),
            Self::Receiver(_) => FromReceiver::decode(bytes).map(Self::Receiver),
        }
    }
}

fn change(count: usize) -> Change {
    Change { edits: vec![Edit { keep: 300, drop: 1, add: 2 }; count], entries: b"block".to_vec() }
}

const TREE_ID: TreeId = TreeId { filesystem: 1 << 30, directory: 300, boot: 2 };

const PAIR: Pair = Pair { source: TREE_ID, destination: TREE_ID, was_empty: false, is_own: true };

fn braked(head: usize, path: usize) -> Event {
    let doomed = Doomed { what: What::Directory, path: vec![b'x'; path] };
    Event::Braked(Braked {
        reason: Reason::Limit { limit: 5 },
        going: 300,
        held: 301,
        head: vec![doomed; head],
    })
}

fn event(name: &str) -> Event {
    let path = b"d/\xff".to_vec();
    match name {
        "resolved" => Event::Resolved { path },
        "scanned" => Event::Scanned { entries: 300, bytes: 1 << 40 },
        "excluded" => Event::Excluded { entries: 2 },
        "planned" => Event::Planned { files: 3, bytes: 4 },
        "change" => {
            let differs = Differs { time: true, ..Differs::default() };
            Event::Change {
                action: Action::Adjust,
                what: What::Symlink,
                differs,
                path,
                target: b"t".to_vec(),
            }
        }
        "braked" => braked(2, 3),
        "paired" => Event::Paired(PAIR),
        "began" => Event::Began { path },
        "moved" => Event::Moved { bytes: 5 },
        "matched" => Event::Matched { bytes: 6 },
        "state-excluded" => Event::StateExcluded { directories: 2 },
        "grew" => Event::Grew { path },
        "basis-missing" => Event::BasisMissing { path: b"../old\xff".to_vec() },
        "devices-passed-over" => Event::DevicesPassedOver { devices: 300, first: b"dev/\xff".to_vec() },
        "non-regular-skipped" => Event::NonRegularSkipped { entries: 300, first: b"dev/\xff".to_vec() },
        "source-removed" => Event::SourceRemoved { path },
        "links-excluded" => Event::LinksExcluded { links: 3, first: path },
        "renamed" => Event::Renamed { from: b"old".to_vec(), path: b"d/new".to_vec() },
        "written" => Event::Written(Written { files: 1, total_files: 300, bytes: 2, total_bytes: 1 << 40 }),
        "left" => Event::Left { what: What::File, path },
        "polling" => Event::Polling { cause: "cause".to_owned() },
        _ => Event::Problem(Problem { kind: ProblemKind::NotDeleted, path, cause: "cause".to_owned() }),
    }
}

fn samples() -> Samples {
    let read_at = |buffer: &mut [u8], offset: u64| {
        buffer.fill((offset >> 20) as u8);
        Ok(())
    };
    Samples::of(SAMPLED_BYTES_MIN, &read_at).unwrap()
}

/// At least one message of each variant, by the name of its fixture.
fn messages() -> Vec<(String, Either)> {
    let hash = Hash::of(b"content");
    let want =
        Want { id: 300, staged: Some(blocks(5, 1)), basis: Some(BasisReport::Blocks(blocks(70_000, 2))) };
    let range_removed = BasisReport::RangeRemoved { blocks: blocks(70_000, 2), split: 16_384 };
    let range_removed = Want { id: 302, staged: None, basis: Some(range_removed) };
    let signed = BasisReport::Signed { length: 20_000, signature: data(b"signature") };
    let signed = Want { id: 301, staged: None, basis: Some(signed) };
    let tally = Tally {
        entries: 1,
        total_bytes: 2,
        created: 3,
        updated: 4,
        adjusted: 5,
        deleted: 6,
        files: 7,
        sent_bytes: 8,
        matched_bytes: 300,
        moved: 9,
        copied: 10,
    };
    let ops = vec![
        Op::Keep { length: 1 << 20 },
        Op::Copy { offset: 70_000, length: 5 },
        Op::Data(data(b"data")),
        Op::Zeros { length: 1 << 40 },
        Op::Delta { window: window(1, 2), length: 3, delta: data(b"delta") },
    ];
    let whole = Answer::Steps { ops: vec![Op::Data(data(b"content"))], end: Some(hash) };
    let answers =
        vec![(0, whole), (2, Answer::Sign(vec![window(300, 1 << 20)])), (u32::MAX, Answer::Skipped)];
    let ignore = IgnoreFile { directory: b"d".to_vec(), text: b"*.o\n".to_vec() };
    let time = Time::new(-1, 999_999_999).unwrap();
    let mut messages = vec![
        ("subject-directory", Either::Sender(FromSender::Subject(Subject::directory(0o755, time, TREE_ID)))),
        ("subject-several", Either::Sender(FromSender::Subject(Subject::Several))),
        ("subject-file", Either::Sender(FromSender::Subject(Subject::File { name: b"n\xff".to_vec() }))),
        ("ignores", Either::Sender(FromSender::Ignores(vec![ignore]))),
        ("entries", Either::Sender(FromSender::Entries(data(b"block")))),
        ("offered", Either::Sender(FromSender::Offered { complete: true })),
        ("wants", Either::Receiver(FromReceiver::Wants(vec![Want::whole(1), want, signed, range_removed]))),
        ("answers", Either::Sender(FromSender::Answers(answers))),
        ("same", Either::Sender(FromSender::same(&[(1, hash), (300, hash)]))),
        (
            "signatures",
            Either::Receiver(FromReceiver::Replies(vec![(1, Reply::Signatures(vec![data(b"signature")]))])),
        ),
        ("cut", answer(Answer::Cut(Stretch { offset: 300, length: 1 << 30 }))),
        ("chunks", chunks(2)),
        ("steps", answer(Answer::Steps { ops, end: None })),
        ("steps-end", answer(Answer::Steps { ops: Vec::new(), end: Some(hash) })),
        ("finished", Either::Receiver(FromReceiver::Finished(tally))),
        (
            "abort",
            Either::Sender(Common::Abort { kind: AbortKind::Connection, text: "gone".to_owned() }.into()),
        ),
        ("base", Either::Sender(FromSender::Baseline { digest: hash })),
        ("changes", Either::Sender(FromSender::Changes(change(1)))),
        ("changed", Either::Sender(FromSender::Changed { complete: true, digest: hash })),
        ("forgotten", Either::Receiver(FromReceiver::BaselineMissing)),
        (
            "scope",
            Either::Sender(FromSender::Scope(vec![Subtree { path: b"d/\xff".to_vec(), recursive: true }])),
        ),
        ("pushed", Either::Sender(FromSender::Pushed(vec![(300, hash, data(b"content"))]))),
        ("rescan", Either::Receiver(FromReceiver::Rescan)),
        (
            "removable",
            Either::Receiver(FromReceiver::Removable { entries: vec![(300, 1 << 60)], is_last: true }),
        ),
        ("removed", Either::Sender(FromSender::Removed)),
        ("heartbeat", Either::Sender(Common::Heartbeat { is_active: true }.into())),
        ("sampled", Either::Sender(FromSender::Sampled(vec![(300, samples())]))),
        ("owners", Either::Sender(FromSender::Owners(owners()))),
        ("root", Either::Sender(FromSender::Root(attributes()))),
        (
            "holes",
            Either::Sender(FromSender::Holes(Holes { files: vec![(300, 1 << 40)], others_bytes: 70_000 })),
        ),
    ]
    .into_iter()
    .map(|(name, message)| (name.to_owned(), message))
    .collect::<Vec<_>>();
    for name in [
        "resolved",
        "scanned",
        "excluded",
        "planned",
        "change",
        "began",
        "moved",
        "matched",
        "left",
        "polling",
        "problem",
        "braked",
        "paired",
        "state-excluded",
        "grew",
        "links-excluded",
        "renamed",
        "written",
        "devices-passed-over",
        "basis-missing",
        "non-regular-skipped",
        "source-removed",
    ] {
        messages.push((format!("note-{name}"), Either::Sender(Common::Note(event(name)).into())));
    }
    messages
}

fn assert_golden(name: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/wire").join(format!("{name}.bin"));
    if std::env::var_os("KSYNC_WRITE_FIXTURES").is_some() {
        fs::write(&path, bytes).unwrap();
    }
    let golden = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(golden, bytes, "{name} has other bytes on the wire than it had");
}

#[test]
fn every_message_has_its_golden_bytes_and_comes_back() {
    for (name, message) in messages() {
        let bytes = message.encode();
        assert_golden(&name, &bytes);
        assert_eq!(message.decode(&bytes), Ok(message), "{name}");
    }
}

#[test]
fn every_golden_file_belongs_to_a_message() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/wire");
    let mut names: Vec<String> = messages().into_iter().map(|(name, _)| format!("{name}.bin")).collect();
    names.extend(["hello.bin", "hello-metadata.bin", "lanes.bin", "segment.bin"].map(str::to_owned));
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(names.contains(&name), "{name}");
    }
}

fn request() -> Request {
    let rule = Rule::new(true, b"*.rs".to_vec());
    let consent =
        Consent { yes: true, agreed: Some(5), max_delete: Some(300), force_in: vec![data(b"/\xff")] };
    let session = Some(InSession { is_source: true, is_other: false });
    let history = History { pair: Some(PAIR), session };
    let rules = vec![rule];
    let options = Options { delete: true, checksum: true, rules, consent, history, ..Options::default() };
    Request {
        role: Role::Receiver,
        path: b"~/\xff".to_vec(),
        further: vec![b"/tmp/b".to_vec().into()],
        options,
        baseline_key: Some([7; 16]),
        watch: Some(WatchOptions { quiet_ms: 300, poll: true }),
        timeout_ms: 60_000,
    }
}

#[test]
fn the_hello_has_its_golden_bytes_and_comes_back() {
    let mut bytes = Vec::new();
    hello::write(&mut bytes, Some(request())).unwrap();
    assert_golden("hello", &bytes);
    assert_eq!(hello::read(&mut bytes.as_slice()).unwrap().request, Some(request()));
}

fn with_metadata(metadata: MetadataOptions) -> Request {
    let options = Options { metadata: Some(Box::new(metadata)), ..Options::default() };
    Request { options, ..request() }
}

#[test]
fn the_hello_with_metadata_has_its_golden_bytes_and_comes_back() {
    let read = |request: Request| {
        let mut bytes = Vec::new();
        hello::write(&mut bytes, Some(request)).unwrap();
        (hello::read(&mut bytes.as_slice()).map(|hello| hello.request), bytes)
    };
    let (request, bytes) = read(with_metadata(metadata()));
    assert_golden("hello-metadata", &bytes);
    assert_eq!(request.unwrap(), Some(with_metadata(metadata())));
    for (count, is_valid) in [(LIST_MAX, true), (LIST_MAX + 1, false)] {
        let chmod = vec![ModeChange::default(); count];
        let request = with_metadata(MetadataOptions { chmod, ..MetadataOptions::default() });
        assert_eq!(read(request).0.is_ok(), is_valid, "{count}");
    }
}

#[test]
fn owners_and_attributes_beyond_a_limit_are_refused() {
    let owners = |count, length| {
        let users = vec![(1, data(&vec![b'u'; length])); count];
        FromSender::Owners(Owners { users, groups: Vec::new() })
    };
    let root = |user| FromSender::Root(Attributes { user: Some(user), ..attributes() });
    for (message, is_valid) in [
        (owners(OWNERS_MAX, 255), true),
        (owners(OWNERS_MAX + 1, 1), false),
        (owners(1, 256), false),
        (root(u32::MAX - 1), true),
        (root(u32::MAX), false),
    ] {
        assert_eq!(FromSender::decode(&message.encode()).is_ok(), is_valid);
    }
}

#[test]
fn lanes_have_their_golden_bytes_and_come_back() {
    let announcement = Announcement { token: Token::new(*b"16 random bytes."), lanes: 8 };
    let bytes = announcement.encode();
    assert_golden("lanes", &bytes);
    assert_eq!(FrameReader::new(bytes.as_slice()).read_next().unwrap(), Next::Lanes(announcement));
    let bytes = encode_segment(300, b"bytes");
    assert_golden("segment", &bytes);
    assert_eq!(read_segment(&mut bytes.as_slice()).unwrap(), Some((300, b"bytes".to_vec())));
}

#[test]
fn values_at_a_limit_are_accepted_and_beyond_it_refused() {
    let wants = |count| Either::Receiver(FromReceiver::Wants(vec![Want::whole(0); count]));
    let want = |staged, basis| Either::Receiver(FromReceiver::Wants(vec![Want { id: 0, staged, basis }]));
    let staged = |length, count| want(Some(blocks(length, count)), None);
    let basis = |length, count| want(None, Some(BasisReport::Blocks(blocks(length, count))));
    let range_removed = |length, count| {
        want(None, Some(BasisReport::RangeRemoved { blocks: blocks(length, count), split: 0 }))
    };
    let cut = |offset, length| answer(Answer::Cut(Stretch { offset, length }));
    let same = |count| Either::Sender(FromSender::Same { ids: vec![0; count], digest: Hash::of(b"") });
    let replies =
        |count| Either::Receiver(FromReceiver::Replies(vec![(0, Reply::Signatures(Vec::new())); count]));
    let answers = |count| Either::Sender(FromSender::Answers(vec![(0, Answer::Skipped); count]));
    let windows = |count| answer(Answer::Sign(vec![window(0, 0); count]));
    let request = |offset, length| answer(Answer::Sign(vec![window(offset, length)]));
    let signatures =
        |count| Either::Receiver(FromReceiver::Replies(vec![(0, Reply::Signatures(vec![data(b""); count]))]));
    let steps = |ops| answer(Answer::Steps { ops, end: None });
    let delta = |window, length| steps(vec![Op::Delta { window, length, delta: data(b"") }]);
    let copy = |offset, length| steps(vec![Op::Copy { offset, length }]);
    let ops = |count| steps(vec![Op::Keep { length: 0 }; count]);
    let directory = |mode, seconds, nanos| {
        Either::Sender(FromSender::Subject(Subject::Directory { mode, seconds, nanos, tree_id: TREE_ID }))
    };
    let waiting = |head, path| Either::Sender(Common::Note(braked(head, path)).into());
    let file = |name: &[u8]| Either::Sender(FromSender::Subject(Subject::File { name: name.to_vec() }));
    let text = |count| "x".repeat(count);
    let abort = |count| Either::Sender(Common::Abort { kind: AbortKind::Busy, text: text(count) }.into());
    let problem = |path, cause| {
        let problem = Problem { kind: ProblemKind::Changed, path: vec![b'x'; path], cause: text(cause) };
        Either::Sender(Common::Note(Event::Problem(problem)).into())
    };
    let resolved = |count| Either::Sender(Common::Note(Event::Resolved { path: vec![b'x'; count] }).into());
    let changes = |count| Either::Sender(FromSender::Changes(change(count)));
    let sampled = |count| Either::Sender(FromSender::Sampled(vec![(0, samples()); count]));
    let holes = |count| {
        let files = (0..u32::try_from(count).unwrap()).map(|id| (id, 1)).collect();
        Either::Sender(FromSender::Holes(Holes { files, others_bytes: 1 }))
    };
    let unsorted = |ids: [u32; 2]| {
        Either::Sender(FromSender::Holes(Holes { files: ids.map(|id| (id, 1)).to_vec(), others_bytes: 0 }))
    };
    let i64_max = i64::MAX as u64;
    for (allowed, refused) in [
        (wants(WANTS_MAX), wants(WANTS_MAX + 1)),
        (chunks(CHUNKS_MAX), chunks(CHUNKS_MAX + 1)),
        (holes(HOLES_MAX), holes(HOLES_MAX + 1)),
        (unsorted([1, 2]), unsorted([2, 1])),
        (unsorted([1, 2]), unsorted([1, 1])),
        (staged(0, 2 * BLOCKS_MAX), staged(0, 2 * BLOCKS_MAX + 1)),
        (basis(0, 2 * BLOCKS_MAX), basis(0, 2 * BLOCKS_MAX + 1)),
        (staged(i64_max, 0), staged(i64_max + 1, 0)),
        (basis(i64_max, 0), basis(i64_max + 1, 0)),
        (range_removed(i64_max, 2 * BLOCKS_MAX), range_removed(i64_max, 2 * BLOCKS_MAX + 1)),
        (range_removed(i64_max, 0), range_removed(i64_max + 1, 0)),
        (cut(0, 1 << 37), cut(0, (1 << 37) + (1 << 15))),
        (cut(i64_max - 9, 9), cut(i64_max - 8, 9)),
        (same(8192), same(8193)),
        (replies(8192), replies(8193)),
        (answers(8192), answers(8193)),
        (windows(WINDOWS_MAX), windows(WINDOWS_MAX + 1)),
        (windows(1), windows(0)),
        (request(0, 2 << 20), request(0, (2 << 20) + 1)),
        (request(i64_max - 9, 9), request(i64_max - 8, 9)),
        (request(0, 9), request(u64::MAX, 9)),
        (signatures(WINDOWS_MAX), signatures(WINDOWS_MAX + 1)),
        (ops(8192), ops(8193)),
        (copy(i64_max - 9, 9), copy(i64_max - 8, 9)),
        (copy(0, i64_max), copy(u64::MAX, u64::MAX)),
        (delta(window(0, 2 << 20), 512 << 10), delta(window(0, (2 << 20) + 1), 0)),
        (delta(window(0, 0), 0), delta(window(0, 0), (512 << 10) + 1)),
        (delta(window(i64_max, 0), 0), delta(window(i64_max, 1), 0)),
        (directory(0o7777, 0, 0), directory(0o10000, 0, 0)),
        (directory(0, 1 << 40, 999_999_999), directory(0, (1 << 40) + 1, 0)),
        (directory(0, -(1 << 40), 0), directory(0, i64::MIN, 0)),
        (directory(0, 0, 0), directory(0, 0, 1_000_000_000)),
        (file(b"n"), file(b"")),
        (file(&[b'n'; 255]), file(&[b'n'; 256])),
        (file(b"..."), file(b"..")),
        (file(b"a"), file(b"a/b")),
        (file(b"a"), file(b"/a")),
        (file(b"a"), file(b"a\0")),
        (file(b"ksync"), file(b".KSYNC")),
        (changes(1), changes(0)),
        (waiting(HEAD_MAX, 1), waiting(HEAD_MAX + 1, 1)),
        (waiting(1, TEXT_BYTES_MAX), waiting(1, TEXT_BYTES_MAX + 1)),
        (sampled(SAMPLED_MAX), sampled(SAMPLED_MAX + 1)),
        (changes(EDITS_MAX), changes(EDITS_MAX + 1)),
        (abort(TEXT_BYTES_MAX), abort(TEXT_BYTES_MAX + 1)),
        (problem(TEXT_BYTES_MAX, TEXT_BYTES_MAX), problem(TEXT_BYTES_MAX + 1, 0)),
        (problem(0, 0), problem(0, TEXT_BYTES_MAX + 1)),
        (resolved(TEXT_BYTES_MAX), resolved(TEXT_BYTES_MAX + 1)),
    ] {
        assert_eq!(allowed.decode(&allowed.encode()).as_ref(), Ok(&allowed));
        let shown = format!("{refused:?}").chars().take(200).collect::<String>();
        assert_eq!(refused.decode(&refused.encode()), Err(MessageError::Limit), "{shown}");
    }
}

#[test]
fn extra_or_missing_bytes_make_a_message_malformed() {
    for (name, message) in messages() {
        let mut bytes = message.encode();
        bytes.push(0);
        assert_eq!(message.decode(&bytes), Err(MessageError::Malformed), "{name}");
        for end in 0..bytes.len() - 1 {
            assert!(message.decode(&bytes[..end]).is_err(), "{name} cut at {end}");
        }
    }
}

#[test]
fn an_overlong_list_length_allocates_no_memory() {
    // A variant, then a length of 2^32-1: decoding must fail at once.
    for variant in 0..16 {
        let bytes = [variant, 0xff, 0xff, 0xff, 0xff, 0x0f, 0xff, 0xff, 0xff, 0xff, 0x0f];
        let _ = (FromSender::decode(&bytes), FromReceiver::decode(&bytes));
    }
}

#[test]
fn a_hello_with_too_many_rules_or_forced_endpoints_is_malformed() {
    let mut many_rules = request();
    many_rules.options.rules = vec![Rule::new(false, Vec::new()); RULES_MAX + 1];
    let mut many_places = request();
    many_places.options.consent.force_in = vec![data(b"/"); FORCED_MAX + 1];
    for request in [many_rules, many_places] {
        let mut bytes = Vec::new();
        hello::write(&mut bytes, Some(request)).unwrap();
        assert!(matches!(hello::read(&mut bytes.as_slice()), Err(hello::HelloError::Malformed)));
    }
}

/// Reads frames up to the first error, like a peer.
fn read_all(bytes: &[u8]) {
    let mut frames = FrameReader::new(bytes);
    while let Ok(frame) = frames.read() {
        assert!(frame.len() <= FRAME_BYTES_MAX);
        let _ = (FromSender::decode(&frame), FromReceiver::decode(&frame));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_a_message_or_an_error(variant in 0_u8..18, rest in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = vec![variant];
        bytes.extend(&rest);
        if let Ok(message) = FromSender::decode(&bytes) {
            prop_assert_eq!(FromSender::decode(&message.encode()), Ok(message));
        }
        if let Ok(message) = FromReceiver::decode(&bytes) {
            prop_assert_eq!(FromReceiver::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn any_damage_to_a_message_is_a_message_or_an_error(
        index in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let messages = messages();
        let message = &index.get(&messages).1;
        let mut bytes = message.encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = message.decode(&bytes);
    }

    #[test]
    fn any_bytes_are_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        read_all(&bytes);
    }

    #[test]
    fn any_damage_to_a_frame_is_a_frame_or_an_error(
        length in 0_usize..2000, at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = Vec::new();
        FrameWriter::new(&mut bytes, true).write(&b"text ".repeat(length / 5)).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        read_all(&bytes);
    }

    #[test]
    fn any_bytes_are_segments_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut lane = bytes.as_slice();
        while let Ok(Some((_, segment))) = read_segment(&mut lane) {
            prop_assert!((1..=SEGMENT_BYTES_MAX).contains(&segment.len()));
        }
    }

    #[test]
    fn any_bytes_are_a_hello_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..100), good in 0..3) {
        let mut stream = Vec::new();
        match good {
            0 => {}
            1 => stream.extend(hello::MAGIC),
            _ => {
                stream.extend(hello::MAGIC);
                let mut frame = vec![1];
                frame.extend(&bytes);
                FrameWriter::new(&mut stream, false).write(&frame).unwrap();
            }
        }
        stream.extend(&bytes);
        let _ = hello::read(&mut stream.as_slice());
    }
}
