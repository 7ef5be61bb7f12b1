//! Works: operations on disk and content that an engine asks for, as values.

use std::sync::Arc;

use crate::content::hash::Hash;
use crate::content::sample::Samples;
use crate::engine::error::WorkError;
use crate::engine::transfer::receive::{
    Basis, Facts, Looked, Query, ReceiveInput, ReceiveTransfer, Returned, Strategy,
};
use crate::engine::transfer::send::{SendInput, SendNext, SendTransfer};
use crate::engine::transfer::{Source, Target};
use crate::monitor::Problem;
use crate::tree::accounts::{Accounts, Owners};
use crate::tree::attributes::Attributes;
use crate::tree::basis_trees::BasisTrees;
use crate::tree::change::{Change, Rebuild};
use crate::tree::doubt::Doubts;
use crate::tree::entry::{EntryRef, Time};
use crate::tree::filter::{Filter, IgnoreFile};
use crate::tree::kept::Kept;
use crate::tree::manifest::Manifest;
use crate::tree::path::TreePath;
use crate::tree::spelling::{Answers, Questions, Spelling};
use crate::tree::subtrees::SubtreeSet;
use crate::tree::time_rule::TimeRule;
use crate::tree::tree_id::{Pair, TreeId};
use crate::wire::hello::History;
use crate::wire::message::{Holes, Op, Reply, Subject, Want};

/// An operation of the sender. Each variant brings back the [`SenderOutcome`] of the same name.
#[derive(Debug)]
pub enum SenderWork<S: Source> {
    /// Identify the source.
    Find,
    /// List the source.
    Scan(S::Found),
    /// Perform a step on each of these files.
    Step {
        /// The listed source.
        source: S,
        /// The files, each with its input.
        steps: Vec<(Box<SendTransfer<S::File>>, SendInput)>,
    },
    /// Store the offer as the baseline of the next run. If that fails, the run goes on without one.
    StoreBaseline {
        /// The offered tree.
        manifest: Arc<Manifest>,
        /// The tree's ignore files.
        ignores: Vec<IgnoreFile>,
    },
    /// Remove these files and links, if they are still the listed ones. Each comes with the
    /// fingerprint of its copy's identity.
    Remove {
        /// The listed source.
        source: S,
        /// The entries.
        entries: Vec<(u32, u64)>,
    },
}

/// Result of a work of the sender.
#[derive(Debug)]
pub enum SenderOutcome<S: Source> {
    /// The identified source.
    Find(Result<(Found, S::Found), WorkError>),
    /// The listed source.
    Scan(Result<(Scanned, S), WorkError>),
    /// The files, each with the steps for the receiver and its next need.
    Step(Vec<Sent<S::File>>),
    /// The baseline is stored, or storing it failed.
    StoreBaseline,
    /// The entries: `true` if it was removed now.
    Remove(Vec<(u32, Result<bool, WorkError>)>),
}

/// A file of the sender after a step.
pub type Sent<F> = (Box<SendTransfer<F>>, Result<(Vec<Op>, SendNext), WorkError>);

/// An operation of the receiver. Each variant brings back the [`ReceiverOutcome`] of the same name.
#[derive(Debug)]
pub enum ReceiverWork<T: Target> {
    /// Find or make the destination, lock and list it.
    Open {
        /// The offered object.
        subject: Subject,
        /// The parts to list; `None` means everything.
        scope: Option<SubtreeSet>,
        /// Directories to open to their owner first: a listing found them inaccessible.
        inaccessible: Vec<TreePath>,
    },
    /// Before the plan: ask the filesystem which names it folds into one.
    Resolve(T::Opened, Questions),
    /// Once, before all other works on the tree: hand over both manifests.
    Plan(T::Opened, Planned),
    /// Find the record with this digest.
    LoadBaseline(Hash),
    /// As [`SenderWork::StoreBaseline`].
    StoreBaseline {
        /// The offered tree.
        manifest: Arc<Manifest>,
        /// The tree's ignore files.
        ignores: Vec<IgnoreFile>,
    },
    /// Look at a large file's basis before its strategy is chosen.
    Look {
        /// The destination.
        target: T,
        /// The file's id.
        id: u32,
        /// The basis.
        at: u32,
        /// Facts about the file.
        facts: Facts,
        /// Samples of the new content, if the offer brought them.
        samples: Option<Samples>,
    },
    /// Make the basis reports of these files.
    Report(T, Vec<ReportOrder<T>>),
    /// Look at bases for the sender.
    Query(T, Vec<(u32, Basis, Query)>),
    /// Perform a step on each of these files.
    Step(T, Vec<(Box<ReceiveTransfer<T>>, ReceiveInput)>),
    /// Change names, modes and times, in this order.
    Apply(T, Vec<Step>),
    /// Finish the destination: remove the run's leftovers and set the root's metadata.
    Close {
        /// The destination.
        target: T,
        /// The root's own metadata, as far as it must be set.
        metadata: Option<RootMetadata>,
        /// The new pair of source and destination, if it changed.
        pair: Option<Pair>,
    },
    /// After the last change: look at these files and links once more.
    Confirm(T, Vec<u32>),
}

/// Result of a work of the receiver.
#[derive(Debug)]
pub enum ReceiverOutcome<T: Target> {
    /// The destination.
    Open(Result<(Opened, T::Opened), WorkError>),
    /// The names that the filesystem folds into one.
    Resolve(Answers),
    /// The destination, for all works that follow. If it will change, this run holds its lock.
    Plan(Result<T, WorkError>),
    /// The record, if it exists.
    LoadBaseline(Option<Rebuild>),
    /// The baseline is stored, or storing it failed.
    StoreBaseline,
    /// Facts about the basis.
    Look(u32, Looked),
    /// The files, each with the want to send and the strategy that was followed.
    Report(Vec<Returned<T, (Want, Strategy)>>),
    /// The replies to send.
    Query(Vec<(u32, Result<Reply, WorkError>)>),
    /// The files; each is in place if these were its last steps.
    Step(Vec<Returned<T, ()>>),
    /// Result of each step.
    Apply(Vec<(Step, Result<(), WorkError>)>),
    /// Success if the destination is complete. [`WorkError::Entry`]: only the root's own metadata
    /// was refused.
    Close(Result<(), WorkError>),
    /// The entries that are in place, each with the fingerprint of its identity; and the others.
    Confirm {
        /// Those that are in place.
        removable: Vec<(u32, u64)>,
        /// Those that are not.
        missing: Vec<u32>,
    },
}

/// The plan, as far as the performer of works needs it.
#[derive(Debug)]
pub struct Planned {
    /// The tree after the run.
    pub wanted: Arc<Manifest>,
    /// The tree before the run, under the wanted names.
    pub present: Arc<Manifest>,
    /// The entries of `present` whose names on disk still differ.
    pub spelling: Arc<Spelling>,
    /// True if the run will change anything.
    pub changes: bool,
    /// True if the run will put files in place.
    pub writes: bool,
    /// Entries whose deletion waits for consent; only the topmost of each subtree.
    pub withheld: Vec<TreePath>,
    /// The new pair of source and destination, if it changed.
    pub pair: Option<Pair>,
    /// The whole tree after the run, if the run can be undone.
    pub after: Option<Manifest>,
}

/// A file whose basis report is wanted.
#[derive(Debug)]
pub struct ReportOrder<T: Target> {
    /// The file.
    pub transfer: Box<ReceiveTransfer<T>>,
    /// The strategy.
    pub strategy: Strategy,
    /// True if an earlier run left something staged, of this file or another.
    pub may_be_staged: bool,
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
    /// Make an entry a further name of another one, in place of the present entry.
    HardLink {
        /// The id of the further name.
        id: u32,
        /// The id of the entry that has the content.
        to: u32,
    },
    /// Make an entry a further name of a basis tree's, or a copy where that cannot be.
    LinkBasis {
        /// The entry's id.
        id: u32,
        /// Position of the basis tree's entry.
        at: u32,
    },
    /// Make a file a copy of a basis tree's, with the wanted metadata.
    CopyBasis {
        /// The file's id.
        id: u32,
        /// Position of the basis tree's file.
        at: u32,
    },
    /// Put a file back that an earlier run replaced or deleted, or set its mode and time.
    Recall {
        /// The file's id.
        id: u32,
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
    /// Number of directories that have the name of ksync's state directories.
    pub state_directories: u64,
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
    /// Names of its users and groups, if the options ask for them.
    pub owners: Option<Box<Owners>>,
    /// Attributes of the directory itself, if it has any.
    pub root: Option<Arc<Attributes>>,
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
    /// Directories among the problems that this user owns and could open.
    pub inaccessible: Vec<TreePath>,
    /// Entries that stay, whatever the source has.
    pub kept: Kept,
    /// The rules and merge files that protect entries; `None` keeps those of the options.
    pub filter: Option<Filter>,
    /// Names in the scope that lead to entries with other names outside the scope.
    pub unclear: Arc<Vec<TreePath>>,
    /// True if an earlier run left something staged.
    pub has_staged: bool,
    /// The rule for times on its filesystem.
    pub time_rule: TimeRule,
    /// Free room of the filesystem; `None` where the figures are not reliable.
    pub room: Option<Room>,
    /// Facts about the destination besides its entries.
    pub destination: Destination,
    /// Users and groups of the machine, if the options ask for metadata besides modes and times.
    pub accounts: Option<Arc<Accounts>>,
    /// The basis trees, if the options name any.
    pub bases: Option<Arc<BasisTrees>>,
    /// The run to undo, if the options ask for it.
    pub undoing: Option<Undoing>,
}

impl Opened {
    /// The entry at a position: of the destination, or of a basis tree.
    #[must_use]
    pub fn entry(&self, at: u32) -> Option<EntryRef<'_>> {
        self.manifest.get(at).or_else(|| self.bases.as_ref()?.get(at))
    }
}

/// The undo of an opened destination.
#[derive(Debug, Default)]
pub struct Undoing {
    /// The tree to make; `None` if runs are only listed.
    pub wanted: Option<Arc<Manifest>>,
    /// Entries that changed after the run, and stay.
    pub conflicts: Vec<TreePath>,
    /// The modification time of the root before the run.
    pub root_time: Option<Time>,
    /// The stored runs: number, files and bytes.
    pub runs: Vec<(u64, u64, u64)>,
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

/// Metadata of a root, as far as it must be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootMetadata {
    /// The mode. Without one, the root keeps its mode and attributes.
    pub mode: Option<u16>,
    /// Modification time.
    pub mtime: Time,
    /// Attributes.
    pub attributes: Option<Arc<Attributes>>,
}

/// Facts about a destination besides its entries.
#[derive(Debug, Clone, Default)]
pub struct Destination {
    /// True if this run made it, or would make it.
    pub is_new: bool,
    /// Mode and time of the directory itself; `None` where it does not exist.
    pub metadata: Option<(u16, Time)>,
    /// Attributes of the directory itself, if the options ask for any.
    pub attributes: Option<Arc<Attributes>>,
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
