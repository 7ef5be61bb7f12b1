//! Works: operations on disk and content that an engine asks for, as values.

use std::sync::Arc;

use crate::content::chunk::Chunk;
use crate::content::hash::Hash;
use crate::content::sample::Samples;
use crate::monitor::{Problem, ProblemKind};
use crate::tree::change::Change;
use crate::tree::doubt::Doubts;
use crate::tree::entry::Time;
use crate::tree::filter::IgnoreFile;
use crate::tree::kept::Kept;
use crate::tree::manifest::Manifest;
use crate::tree::path::TreePath;
use crate::tree::record::Record;
use crate::tree::spelling::{Answers, Questions, Spelling};
use crate::tree::subtrees::SubtreeSet;
use crate::tree::tree_id::{Pair, TreeId};
use crate::wire::hello::History;
use crate::wire::message::{AbortKind, Holes, Op, Stretch, Subject, Want, Window};

/// An operation. Each variant brings back the [`Outcome`] of the same name.
#[derive(Debug)]
pub enum Work {
    /// Sender: identify the source.
    Find,
    /// Sender: list the source.
    Scan,
    /// Sender: read small files to their end; for each want decide between its content and "the
    /// same".
    Read(Vec<ReadOrder>),
    /// Sender: compute deltas from the bases of small files to their contents.
    Diff(Vec<SignedFile>),
    /// Sender: one step in sending a larger file.
    Source {
        /// The file's id.
        id: u32,
        /// The step.
        step: SourceStep,
    },
    /// Receiver: find or make the destination, lock and list it.
    Open {
        /// The offered object.
        subject: Subject,
        /// The parts to list; `None` means everything.
        scope: Option<SubtreeSet>,
    },
    /// Receiver, before the plan: ask the filesystem which names it folds into one.
    Resolve(Questions),
    /// Receiver, once, before all other works on the tree: hand over both manifests.
    Plan {
        /// The tree after the run.
        wanted: Arc<Manifest>,
        /// The tree before the run, under the wanted names.
        present: Arc<Manifest>,
        /// The entries of `present` whose names on disk still differ.
        spelling: Arc<Spelling>,
        /// True if the run will change anything.
        changes: bool,
        /// True if the run will put files in place.
        writes: bool,
        /// Entries whose deletion waits for consent; only the topmost of each subtree.
        withheld: Vec<TreePath>,
        /// The new pair of source and destination, if it changed.
        pair: Option<Pair>,
    },
    /// Receiver: make the basis reports of files.
    Sign(Vec<SignOrder>),
    /// Receiver: sign ranges of the basis.
    SignWindows {
        /// The file's id.
        id: u32,
        /// The basis.
        at: u32,
        /// The ranges.
        windows: Vec<Window>,
    },
    /// Receiver: sign the bases of small files as a whole.
    SignFiles(Vec<(u32, u32)>),
    /// Receiver: cut a range of the basis into chunks.
    Cut {
        /// The file's id.
        id: u32,
        /// The basis.
        at: u32,
        /// The range.
        stretch: Stretch,
    },
    /// Receiver: put small files in place. A directory in the place of one is removed first, with
    /// its listed entries. The same holds for [`Work::Sink`].
    Store(Vec<SmallFile>),
    /// Receiver: the next steps that build a larger file.
    Sink {
        /// The file's id.
        id: u32,
        /// The file's basis.
        at: Option<u32>,
        /// The steps.
        ops: Vec<Op>,
        /// The expected hash, with the last steps. The file is then put in place.
        end: Option<Hash>,
    },
    /// Receiver: put copies of the bases in place, for files with equal content.
    Copy(Vec<CopiedFile>),
    /// Receiver: change names, modes and times, in this order.
    Apply(Vec<Step>),
    /// Receiver: finish the destination: remove the run's leftovers and set the root's metadata.
    Close {
        /// The root's own mode and time, as far as they must be set.
        metadata: Option<(Option<u16>, Time)>,
        /// The new pair of source and destination, if it changed.
        pair: Option<Pair>,
    },
    /// Receiver: find the record with this digest.
    LoadBaseline(Hash),
    /// Either side: store the offer as the baseline of the next run. If that fails, the run goes on
    /// without one.
    StoreBaseline {
        /// The offered tree.
        manifest: Arc<Manifest>,
        /// The tree's ignore files.
        ignores: Vec<IgnoreFile>,
    },
}

/// One step of sending a larger file.
#[derive(Debug)]
pub enum SourceStep {
    /// Open the file and find out how much of it the receiver has.
    Begin(Want),
    /// Continue with these signatures.
    Signatures(Vec<Vec<u8>>),
    /// Cut the file into chunks while the receiver cuts the basis.
    Cut,
    /// Continue with these chunks of the basis.
    Chunks(Vec<Chunk>),
    /// Continue.
    More,
}

/// The next need of a larger file on the sender.
#[derive(Debug, PartialEq, Eq)]
pub enum SourceNext {
    /// Another step.
    More,
    /// Signatures of these ranges of the basis.
    Sign(Vec<Window>),
    /// The chunks of this range of the basis, and [`SourceStep::Cut`] at the same time.
    Cut(Stretch),
    /// The receiver's chunks, already requested; the sender's own are cut.
    Chunks,
    /// Nothing: the file ends with this hash.
    End(Hash),
    /// Nothing: the file equals its basis, which has this hash.
    Same(Hash),
}

/// A small file to be read.
#[derive(Debug)]
pub struct ReadOrder {
    /// The file's id, and the receiver's basis report.
    pub want: Want,
    /// True if a signature is worth a round trip when the basis differs.
    pub may_ask: bool,
}

/// A file whose basis report is wanted.
#[derive(Debug, Clone)]
pub struct SignOrder {
    /// The file's id.
    pub id: u32,
    /// The basis, as a position in the present manifest: the file in its place, or a file elsewhere
    /// that may have the same content.
    pub at: Option<u32>,
    /// True if an earlier run left something staged, of this file or another.
    pub may_be_staged: bool,
    /// True if the basis is probably the same: a pre-copy of it would be made in vain.
    pub is_doubted: bool,
    /// Samples of the new content, if the offer brought them.
    pub samples: Option<Samples>,
}

/// A basis report, with facts that only the receiver needs.
#[derive(Debug)]
pub struct Advertised {
    /// The want, as the sender gets it.
    pub want: Want,
    /// The hash of the advertised basis, if the sender may answer that the file is the same.
    pub hash: Option<Hash>,
    /// True if the basis was advertised with a gap inserted ([shift
    /// map](crate::content::shift_map)). An equal file must then still be put in place.
    pub has_gap: bool,
}

/// A small file whose basis was signed.
#[derive(Debug)]
pub struct SignedFile {
    /// The file's id.
    pub id: u32,
    /// Length of the basis in bytes.
    pub basis_length: u64,
    /// The signature; empty where it is unavailable.
    pub signature: Vec<u8>,
}

/// A small file after it was read.
#[derive(Debug)]
pub struct ReadFile {
    /// The part of it that must travel.
    pub content: ReadContent,
    /// Hash of the file.
    pub hash: Hash,
}

/// The part of a small file that must travel.
#[derive(Debug)]
pub enum ReadContent {
    /// Nothing: the receiver's basis is the same.
    Same,
    /// All of it.
    Whole(Vec<u8>),
    /// A delta against the basis.
    Delta(Vec<u8>),
    /// Unknown until the signature of the basis arrives.
    Differs {
        /// Length of the basis in bytes.
        basis_length: u64,
    },
}

/// A small file that arrived.
#[derive(Debug)]
pub struct SmallFile {
    /// The file's id.
    pub id: u32,
    /// The announced hash.
    pub hash: Hash,
    /// The content.
    pub content: SmallContent,
}

/// The content of a small file that arrived.
#[derive(Debug)]
pub enum SmallContent {
    /// All of it.
    Whole(Vec<u8>),
    /// A delta against its basis.
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
    /// The file's id.
    pub id: u32,
    /// Position of the file that has its content.
    pub at: u32,
    /// The expected hash.
    pub hash: Hash,
}

/// A change of names, modes or times. `id` is an index into the wanted manifest, `at` into the
/// present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Remove a file, link or directory that is to be replaced, with everything that was listed in
    /// it.
    Clear {
        /// Position of the entry.
        at: u32,
    },
    /// Make an existing directory writable for now. If that fails, the steps that need it fail and
    /// are reported.
    Unlock {
        /// Position of the directory.
        at: u32,
    },
    /// Make a directory, writable for now.
    MakeDirectory {
        /// The directory's id.
        id: u32,
    },
    /// Make a link, in place of the present entry.
    MakeLink {
        /// The link's id.
        id: u32,
    },
    /// Set mode and time.
    Adjust {
        /// The entry's id.
        id: u32,
    },
    /// Rename an entry to its wanted spelling; the filesystem takes both names for one.
    Respell {
        /// The entry's id.
        id: u32,
    },
    /// Move a file to a free name.
    Move {
        /// The file's new entry.
        id: u32,
        /// The file's present position.
        at: u32,
        /// The hash of its content.
        hash: Hash,
    },
    /// Remove a file, a link or an empty directory.
    Remove {
        /// Position of the entry.
        at: u32,
    },
    /// Restore the original mode and time of a directory that is not wanted but stays.
    Restore {
        /// Position of the directory.
        at: u32,
    },
}

/// Result of a work.
#[derive(Debug)]
pub enum Outcome {
    /// The identified source.
    Find(Result<Found, WorkError>),
    /// The listed source.
    Scan(Result<Scanned, WorkError>),
    /// The files that were read.
    Read(Vec<(u32, Result<ReadFile, WorkError>)>),
    /// The steps of a file, and its next need.
    Source(u32, Result<(Vec<Op>, SourceNext), WorkError>),
    /// The destination.
    Open(Result<Opened, WorkError>),
    /// The names that the filesystem folds into one.
    Resolve(Answers),
    /// Both manifests are handed over. If the destination will change, this run holds its lock.
    Plan(Result<(), WorkError>),
    /// The basis reports, each with the hash of its basis.
    Sign(Vec<(u32, Result<Advertised, WorkError>)>),
    /// Signatures, in the order of the windows.
    SignWindows(u32, Result<Vec<Vec<u8>>, WorkError>),
    /// The signatures.
    SignFiles(Vec<(u32, Result<Vec<u8>, WorkError>)>),
    /// The chunks of a range.
    Cut(u32, Result<Vec<Chunk>, WorkError>),
    /// Per file: success if it is in place.
    Store(Vec<(u32, Result<(), WorkError>)>),
    /// Per file: success if it is in place.
    Copy(Vec<(u32, Result<(), WorkError>)>),
    /// Success if the steps were done.
    Sink(u32, Result<(), WorkError>),
    /// Result of each step.
    Apply(Vec<(Step, Result<(), WorkError>)>),
    /// Success if the destination is complete.
    Close(Result<(), WorkError>),
    /// The record, if it exists.
    LoadBaseline(Option<Record>),
    /// The baseline is stored, or storing it failed.
    StoreBaseline,
}

/// An identified source.
#[derive(Debug)]
pub struct Found {
    /// The source.
    pub subject: Subject,
    /// Digest of the record of the last offer, if a baseline is stored.
    pub baseline: Option<Hash>,
    /// True if only parts of it will be listed.
    pub is_partial: bool,
}

/// A listed source.
#[derive(Debug)]
pub struct Scanned {
    /// The entries of the source.
    pub manifest: Arc<Manifest>,
    /// The source's ignore files.
    pub ignores: Vec<IgnoreFile>,
    /// Entries that could not be listed.
    pub problems: Vec<Problem>,
    /// True if everything could be listed.
    pub complete: bool,
    /// Number of entries that the rules excluded.
    pub excluded: u64,
    /// Changes to the baseline that was found; `None` if the sender must offer everything.
    pub changed: Option<Changed>,
    /// True if the offer can be stored as the baseline and is not stored yet.
    pub is_new: bool,
    /// The parts of the tree that were listed; `None` means everything.
    pub scope: Option<SubtreeSet>,
    /// Contents of small files that go with the offer.
    pub pushed: Vec<PushedFile>,
    /// Samples of large files that go with the offer.
    pub sampled: Vec<(u32, Samples)>,
    /// Holes of its files.
    pub holes: Holes,
}

/// A small file whose content goes with the offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushedFile {
    /// The file's id.
    pub id: u32,
    /// Hash of the content.
    pub hash: Hash,
    /// Bytes of the content.
    pub data: Vec<u8>,
}

/// Changes to an earlier offer.
#[derive(Debug)]
pub struct Changed {
    /// Changes of the manifest.
    pub changes: Vec<Change>,
    /// True if the ignore files changed.
    pub ignores: bool,
    /// The digest of the new offer's record.
    pub digest: Hash,
}

/// An opened destination.
#[derive(Debug)]
pub struct Opened {
    /// The entries of the destination.
    pub manifest: Arc<Manifest>,
    /// Files in it that a power cut may have damaged.
    pub doubts: Doubts,
    /// The absolute path, for display.
    pub path: Vec<u8>,
    /// Entries that could not be listed.
    pub problems: Vec<Problem>,
    /// True if every directory either could be listed or is kept.
    pub complete: bool,
    /// Entries that stay, whatever the source has.
    pub kept: Kept,
    /// Names in the scope that lead to entries with other names outside the scope.
    pub unclear: Arc<Vec<TreePath>>,
    /// True if an earlier run left something staged.
    pub has_staged: bool,
    /// Free room of the filesystem; `None` where the figures are not reliable.
    pub room: Option<Room>,
    /// Facts about the destination besides its entries.
    pub destination: Destination,
}

/// Free room of a destination's filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Free bytes.
    pub bytes: u64,
    /// Bytes of these that must stay free.
    pub reserve_bytes: u64,
    /// Free inodes; `u64::MAX` where the filesystem does not count them.
    pub inodes: u64,
    /// Block size in bytes: file contents are rounded up to it.
    pub block_bytes: u64,
    /// True if copies within the filesystem may share extents and take no space.
    pub shares_extents: bool,
    /// Staged bytes of earlier runs that this run reuses or frees.
    pub staged_bytes: u64,
    /// Number of files that hold these bytes.
    pub staged_files: u64,
    /// Directories at which other filesystems are mounted: entries below them take room there.
    pub mounts: Vec<TreePath>,
}

/// Facts about a destination besides its entries.
#[derive(Debug, Clone, Default)]
pub struct Destination {
    /// True if this run made it, or would make it.
    pub is_new: bool,
    /// Mode and time of the directory itself; `None` where it does not exist.
    pub metadata: Option<(u16, Time)>,
    /// Identity of the directory.
    pub tree_id: TreeId,
    /// True if this user may set its mode and time.
    pub is_ours: bool,
    /// True if a machine cannot do without it.
    pub is_protected: bool,
    /// True if the user allowed deletions in it by name.
    pub is_forced: bool,
    /// Facts from earlier runs about this destination and its source.
    pub history: History,
    /// Deletions that an earlier round of the same watch planned and may not do, in order.
    pub withheld: Arc<Vec<TreePath>>,
    /// True if this is a round of a watch.
    pub is_round: bool,
}

/// Failure of a work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkError {
    /// Failure of one entry; the run goes on.
    Entry(ProblemKind, String),
    /// Failure that ends the run.
    Fatal(AbortKind, String),
}
