//! Work: what an engine asks to be done on disk and content, as values.

use std::sync::Arc;

use crate::content::chunk::Chunk;
use crate::content::hash::Hash;
use crate::content::sample::Samples;
use crate::monitor::{Problem, Trouble};
use crate::tree::change::Change;
use crate::tree::doubt::Doubts;
use crate::tree::entry::Time;
use crate::tree::filter::IgnoreFile;
use crate::tree::kept::Kept;
use crate::tree::manifest::Manifest;
use crate::tree::path::TreePath;
use crate::tree::place::{Pair, Place};
use crate::tree::record::Record;
use crate::tree::scope::Scope;
use crate::tree::spelling::{Answers, Questions, Spelling};
use crate::wire::hello::Baseline;
use crate::wire::message::{AbortKind, Holes, Op, Stretch, Subject, Want, Window};

/// Something to be done. Each brings back the [`Outcome`] of the same name.
#[derive(Debug)]
pub enum Work {
    /// Sender: find out what the source is.
    Find,
    /// Sender: list the source.
    Scan,
    /// Sender: read small files to their end; for each want decide between its content and "the same".
    Read(Vec<ReadOrder>),
    /// Sender: find what makes small files out of their old versions.
    Diff(Vec<SignedFile>),
    /// Sender: one step in sending a larger file.
    Source {
        /// Which file.
        id: u32,
        /// The step.
        step: SourceStep,
    },
    /// Receiver: find or make the destination, lock and list it.
    Open {
        /// What is offered.
        subject: Subject,
        /// The parts to be listed; `None`: everything.
        scope: Option<Scope>,
    },
    /// Receiver, before the plan: ask the filesystem which names it takes for one.
    Resolve(Questions),
    /// Receiver, once, before all other works on the tree: both manifests are known now.
    Plan {
        /// The tree as it shall be.
        wanted: Arc<Manifest>,
        /// The tree as it is, under the wanted names.
        present: Arc<Manifest>,
        /// What of it has other names as yet.
        spelling: Arc<Spelling>,
        /// Whether anything is going to be changed.
        changes: bool,
        /// Whether files are going to be put in place.
        writes: bool,
        /// What would go and waits for consent, the uppermost of it.
        withheld: Vec<TreePath>,
        /// What is known of both from now on, if that is new.
        pair: Option<Pair>,
    },
    /// Receiver: say what is there of files.
    Sign(Vec<SignOrder>),
    /// Receiver: sign stretches of the basis.
    SignWindows {
        /// Of which file.
        id: u32,
        /// The basis.
        at: u32,
        /// The stretches.
        windows: Vec<Window>,
    },
    /// Receiver: sign the bases of small files as a whole.
    SignFiles(Vec<(u32, u32)>),
    /// Receiver: cut a stretch of the basis.
    Cut {
        /// Of which file.
        id: u32,
        /// The basis.
        at: u32,
        /// The stretch.
        stretch: Stretch,
    },
    /// Receiver: put small files in place. A directory in the place of one goes first, with what was listed
    /// in it: so too with [`Work::Sink`].
    Store(Vec<SmallFile>),
    /// Receiver: the next steps in making a larger file.
    Sink {
        /// Which file.
        id: u32,
        /// Its basis.
        at: Option<u32>,
        /// The steps.
        ops: Vec<Op>,
        /// With the last ones: the hash that must come out. Then the file is put in place.
        end: Option<Hash>,
    },
    /// Receiver: put copies of their bases in place, which have the same content.
    Copy(Vec<CopiedFile>),
    /// Receiver: change names, modes and times, in this order.
    Apply(Vec<Step>),
    /// Receiver: remove what is no longer needed.
    Close {
        /// The root's own mode and time, as far as they are to be set.
        metadata: Option<(Option<u16>, Time)>,
        /// What is known of both from now on, if that is new.
        pair: Option<Pair>,
    },
    /// Receiver: find the record with this digest.
    Recall(Hash),
    /// Either: keep a record of what is offered, for the next run. What cannot be kept is forgotten.
    Remember {
        /// The tree that was offered.
        manifest: Arc<Manifest>,
        /// Its ignore files.
        ignores: Vec<IgnoreFile>,
    },
}

/// One step in sending a larger file.
#[derive(Debug)]
pub enum SourceStep {
    /// Open it and find out how much of it the receiver has.
    Begin(Want),
    /// Go on with these signatures.
    Signatures(Vec<Vec<u8>>),
    /// Cut what the receiver cuts of its old version meanwhile.
    Cut,
    /// Go on with these chunks of the old version.
    Chunks(Vec<Chunk>),
    /// Go on.
    More,
}

/// What a larger file needs next.
#[derive(Debug, PartialEq, Eq)]
pub enum SourceNext {
    /// Another step.
    More,
    /// Signatures of these stretches of the old version.
    Sign(Vec<Window>),
    /// The chunks of this stretch of the old version, and [`SourceStep::Cut`] at the same time.
    Cut(Stretch),
    /// Chunks, which were asked for: its own are there.
    Chunks,
    /// Nothing: this is its hash.
    End(Hash),
    /// Nothing: it is the old version, with this hash.
    Same(Hash),
}

/// A small file to be read.
#[derive(Debug)]
pub struct ReadOrder {
    /// Which, and what the receiver has.
    pub want: Want,
    /// Where the old version differs, its signature is worth a round trip.
    pub may_ask: bool,
}

/// A file of which it is to be said what is there.
#[derive(Debug, Clone)]
pub struct SignOrder {
    /// Which.
    pub id: u32,
    /// Its basis, a position in the present manifest: the old version, or a file elsewhere that may have the same
    /// content.
    pub at: Option<u32>,
    /// Whether an earlier run left something staged, of this file or another.
    pub may_be_staged: bool,
    /// Whether the basis is probably the same: then a copy of it would be made in vain.
    pub is_doubted: bool,
    /// Samples of the new content, if they came with the offer.
    pub samples: Option<Samples>,
}

/// What is there of a file.
#[derive(Debug)]
pub struct Told {
    /// That, as it is told to the sender.
    pub want: Want,
    /// The hash of what is told of its old version, if the answer may be that the file is the same.
    pub hash: Option<Hash>,
    /// Whether that is not the old version as it is, but as it was [widened](crate::content::fitted): what is the
    /// same has to be put in place, then.
    pub is_widened: bool,
}

/// A small file whose old version was signed.
#[derive(Debug)]
pub struct SignedFile {
    /// Which.
    pub id: u32,
    /// The length of the old version, in bytes.
    pub old_length: u64,
    /// The signature; empty where it cannot be had.
    pub signature: Vec<u8>,
}

/// A small file that was read.
#[derive(Debug)]
pub struct ReadFile {
    /// What of it has to travel.
    pub content: ReadContent,
    /// Its hash.
    pub hash: Hash,
}

/// What of a small file has to travel.
#[derive(Debug)]
pub enum ReadContent {
    /// Nothing: the receiver's old version is the same.
    Same,
    /// All.
    Whole(Vec<u8>),
    /// What makes it out of the old version.
    Delta(Vec<u8>),
    /// That shows with the signature of the old version.
    Differs {
        /// The length of the old version, in bytes.
        old_length: u64,
    },
}

/// A small file that arrived.
#[derive(Debug)]
pub struct SmallFile {
    /// Which.
    pub id: u32,
    /// The hash that was announced.
    pub hash: Hash,
    /// The content.
    pub content: SmallContent,
}

/// The content of a small file that arrived.
#[derive(Debug)]
pub enum SmallContent {
    /// All of it.
    Whole(Vec<u8>),
    /// What makes it out of its basis.
    Delta {
        /// The basis.
        at: u32,
        /// The delta.
        delta: Vec<u8>,
    },
}

/// A file whose content lies elsewhere in the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopiedFile {
    /// Which.
    pub id: u32,
    /// Where its content lies.
    pub at: u32,
    /// The hash that must come out.
    pub hash: Hash,
}

/// A change of names, modes or times. `id` is an index into the wanted manifest, `at` into the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Remove a file, link or directory that is to be replaced, with everything that was listed in it.
    Clear {
        /// What.
        at: u32,
    },
    /// Make a directory that is there writable, for now; where that fails, what needs it fails too and says so.
    Unlock {
        /// Which.
        at: u32,
    },
    /// Make a directory, writable for now.
    MakeDirectory {
        /// Which.
        id: u32,
    },
    /// Make a link, in place of what is there.
    MakeLink {
        /// Which.
        id: u32,
    },
    /// Set mode and time.
    Adjust {
        /// Of what.
        id: u32,
    },
    /// Give an entry its name in the wanted spelling: to the filesystem the two are one name.
    Respell {
        /// Which.
        id: u32,
    },
    /// Move a file to where nothing is.
    Move {
        /// What it becomes.
        id: u32,
        /// What it is.
        at: u32,
        /// The hash of its content.
        hash: Hash,
    },
    /// Remove a file, a link or an empty directory.
    Remove {
        /// What.
        at: u32,
    },
    /// Give a directory that is not wanted, and stays, the mode and time back that it had.
    Restore {
        /// Which.
        at: u32,
    },
}

/// How a work ended.
#[derive(Debug)]
pub enum Outcome {
    /// What the source is.
    Find(Result<Found, Fault>),
    /// What is in the source.
    Scan(Result<Scanned, Fault>),
    /// What was read.
    Read(Vec<(u32, Result<ReadFile, Fault>)>),
    /// What a step gave, and what comes next.
    Source(u32, Result<(Vec<Op>, SourceNext), Fault>),
    /// The destination.
    Open(Result<Opened, Fault>),
    /// Which names the filesystem takes for one.
    Resolve(Answers),
    /// The manifests are in place, and the destination is this run's alone, if it is to be changed.
    Plan(Result<(), Fault>),
    /// What is there of a file; the hash of the old version.
    Sign(Vec<(u32, Result<Told, Fault>)>),
    /// Signatures, in the order of the windows.
    SignWindows(u32, Result<Vec<Vec<u8>>, Fault>),
    /// The signatures.
    SignFiles(Vec<(u32, Result<Vec<u8>, Fault>)>),
    /// The chunks of a stretch.
    Cut(u32, Result<Vec<Chunk>, Fault>),
    /// Whether each was put in place.
    Store(Vec<(u32, Result<(), Fault>)>),
    /// Whether each was put in place.
    Copy(Vec<(u32, Result<(), Fault>)>),
    /// Whether the steps could be done.
    Sink(u32, Result<(), Fault>),
    /// For each step whether it was done.
    Apply(Vec<(Step, Result<(), Fault>)>),
    /// Whether the destination is in order.
    Close(Result<(), Fault>),
    /// The record, if it is there.
    Recall(Option<Record>),
    /// It is kept, or not.
    Remember,
}

/// A source that was found.
#[derive(Debug)]
pub struct Found {
    /// What it is.
    pub subject: Subject,
    /// The digest of the record of what was offered of it last, if that is remembered.
    pub base: Option<Hash>,
    /// Whether only parts of it are going to be listed.
    pub is_partial: bool,
}

/// A source that was listed.
#[derive(Debug)]
pub struct Scanned {
    /// Everything in it.
    pub manifest: Arc<Manifest>,
    /// Its ignore files.
    pub ignores: Vec<IgnoreFile>,
    /// What could not be listed.
    pub problems: Vec<Problem>,
    /// Whether everything could be listed.
    pub complete: bool,
    /// Entries that were left out by rules.
    pub excluded: u64,
    /// What differs from the base that was found; `None` where everything is to be offered.
    pub changed: Option<Changed>,
    /// Whether it can be remembered, and is not yet.
    pub is_new: bool,
    /// The parts of the tree that were listed, if that is not everything.
    pub scope: Option<Scope>,
    /// Contents of small files that go along with the offer.
    pub pushed: Vec<PushedFile>,
    /// Samples of large files that do.
    pub sampled: Vec<(u32, Samples)>,
    /// What of its files takes no room.
    pub holes: Holes,
}

/// A small file whose content goes along with the offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushedFile {
    /// Which.
    pub id: u32,
    /// Its hash.
    pub hash: Hash,
    /// Its content.
    pub data: Vec<u8>,
}

/// What differs from an earlier offer.
#[derive(Debug)]
pub struct Changed {
    /// The changes of the manifest.
    pub changes: Vec<Change>,
    /// Whether the ignore files are others.
    pub ignores: bool,
    /// The digest of the record of what is offered now.
    pub digest: Hash,
}

/// A destination that was opened.
#[derive(Debug)]
pub struct Opened {
    /// Everything in it.
    pub manifest: Arc<Manifest>,
    /// Files in it that a power cut may have damaged.
    pub doubts: Doubts,
    /// The absolute path, for eyes.
    pub path: Vec<u8>,
    /// What could not be listed.
    pub problems: Vec<Problem>,
    /// Whether it is known of everything that it can be listed, or stays.
    pub complete: bool,
    /// What stays, whatever is wanted.
    pub kept: Kept,
    /// Names in the scope that lead to entries with other names, outside of it.
    pub unclear: Arc<Vec<TreePath>>,
    /// Whether an earlier run left something staged.
    pub has_staged: bool,
    /// What its filesystem has left; `None` where that is not known well enough to go by.
    pub room: Option<Room>,
    /// What it is, besides what is in it.
    pub destination: Destination,
}

/// What a destination's filesystem has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub bytes: u64,
    /// Bytes of these that stay free.
    pub reserve_bytes: u64,
    /// Files and directories; `u64::MAX` where the filesystem does not count them.
    pub inodes: u64,
    /// Bytes that a file's content is rounded up to.
    pub block_bytes: u64,
    /// Whether copies within the filesystem may take nothing.
    pub shares_extents: bool,
    /// Bytes that earlier runs left staged, and that this one uses or gives back.
    pub staged_bytes: u64,
    /// The files that these bytes lie in.
    pub staged_files: u64,
    /// Directories at which other filesystems are mounted: what goes below needs room there.
    pub mounts: Vec<TreePath>,
}

/// What a destination is, besides what is in it.
#[derive(Debug, Clone, Default)]
pub struct Destination {
    /// Whether this run made it, or would make it.
    pub is_new: bool,
    /// Its own mode and time; `None` where it is not there.
    pub metadata: Option<(u16, Time)>,
    /// Which directory it is.
    pub place: Place,
    /// Whether its mode and time are ours to set.
    pub is_ours: bool,
    /// Whether a machine cannot do without it.
    pub is_protected: bool,
    /// Whether deletions in it were allowed by its name.
    pub is_forced: bool,
    /// What was known of it and of its source.
    pub baseline: Baseline,
    /// What an earlier round of the same watch wanted to delete, and may not: in order.
    pub withheld: Arc<Vec<TreePath>>,
    /// Whether this is a round of a watch.
    pub is_round: bool,
}

/// Why a work failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// One entry could not be done; the run goes on.
    Entry(Trouble, String),
    /// The run cannot go on.
    Fatal(AbortKind, String),
}
