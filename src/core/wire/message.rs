//! Messages: everything that the two engines send each other, encoded with postcard.
//!
//! `fixtures/wire/` holds the golden bytes of each message.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::content::chunk::{Average, CHUNKS_MAX, Chunk};
use crate::content::delta::NEW_BYTES_MAX;
use crate::content::encode;
use crate::content::hash::{Hash, Hasher};
use crate::content::sample::Samples;
use crate::monitor::{Event, HEAD_MAX};
use crate::tree::accounts::Owners;
use crate::tree::attributes::Attributes;
use crate::tree::change::{Change, EDITS_MAX};
use crate::tree::entry::Time;
use crate::tree::filter::IgnoreFile;
use crate::tree::manifest;
use crate::tree::path::TreePath;
use crate::tree::subtrees::Subtree;
use crate::tree::tree_id::TreeId;
pub use crate::wire::want::{
    BasisReport, Blocks, DELTA_BYTES_MIN, Op, SMALL_BASIS_BYTES_MAX, SMALL_BYTES_MAX, Stretch,
    WHOLE_BYTES_MAX, Want, Window, basis_bytes_max, is_signed,
};
use crate::wire::want::{is_stretch, want_is_within_limits, window_is_within_limits};

/// Most unanswered wants. On the fastest link that was planned for (1 Gbit/s, 100 ms) 12 MB are in
/// flight: 3,000 files of 4 KiB. A want takes about 100 bytes on each side.
pub const WANTS_MAX: usize = 8192;

/// Most bytes of unanswered wants, by [`Want::weight`]; most of them are block names. A receiver
/// stops asking at 4 MiB. The few wants that it prepares meanwhile weigh up to 1.5 MiB each.
pub const WANTS_BYTES_MAX: usize = 11 << 20;

/// Most files whose content is in flight in pieces. Most of them wait for signatures: with 100 ms
/// between question and answer, eight would mean 80 files a second.
pub const STREAMS_MAX: usize = 32;

/// Most bytes of content in one message.
pub const CONTENT_BYTES_MAX: usize = 1 << 20;

/// Most windows of one [`Answer::Sign`]: their signatures must fit in a frame.
pub const WINDOWS_MAX: usize = 48;

/// Longest path or text in a note or an abort, in bytes. The longest path, escaped and with words
/// around it, is half as long. A side keeps up to a thousand of them.
pub const TEXT_BYTES_MAX: usize = 64 << 10;

/// Most bytes of content that a sender pushes with an offer, before the receiver asks for it. So a
/// file that was just saved arrives after half a round trip. A slow link (20 Mbit/s) carries this
/// much in 0.1 s.
pub const PUSHED_BYTES_MAX: usize = 256 << 10;

/// Most files whose samples go with an offer. They take 512 bytes each, and most of the time nobody
/// needs them.
pub const SAMPLED_MAX: usize = 2;

/// Most files whose holes are listed one by one; those of all others are one sum.
pub const HOLES_MAX: usize = 1 << 10;

/// Most elements of every other list in a message.
pub const LIST_MAX: usize = 1 << 13;

/// The offered object: a directory with everything in it, or one file or link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// A directory, with its own mode and time.
    Directory {
        /// Permission bits.
        mode: u16,
        /// Modification time: seconds since 1970.
        seconds: i64,
        /// Nanoseconds after `seconds`.
        nanos: u32,
        /// Identity of the directory on its machine.
        tree_id: TreeId,
    },
    /// A single file or link; the manifest has exactly that entry, or none if it cannot be read.
    File {
        /// The entry's name: one component.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
    /// Several entries that go into the destination directory by their names: a part of its tree.
    Several,
}

impl Subject {
    /// A directory with this mode and time.
    #[must_use]
    pub fn directory(mode: u16, mtime: Time, tree_id: TreeId) -> Self {
        Self::Directory { mode, seconds: mtime.seconds(), nanos: mtime.nanos(), tree_id }
    }
}

/// Bytes of the offered files that take no disk space. The receiver uses them to tell whether the
/// rest fits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holes {
    /// Files in ascending order, each with the bytes of its length that no block of the filesystem
    /// backs.
    pub files: Vec<(u32, u64)>,
    /// Sum of these bytes over all other files.
    pub others_bytes: u64,
}

impl Holes {
    /// Bytes of holes in this file.
    #[must_use]
    pub fn of(&self, id: u32) -> u64 {
        let found = self.files.binary_search_by_key(&id, |&(id, _)| id);
        found.ok().and_then(|at| self.files.get(at)).map_or(0, |&(_, bytes)| bytes)
    }
}

/// A sender's message about one wanted file. A small file is answered in full by its first one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The next steps.
    Steps {
        /// The steps.
        ops: Vec<Op>,
        /// The hash of the whole content, with the last steps.
        end: Option<Hash>,
    },
    /// A request to sign ranges of the basis.
    Sign(Vec<Window>),
    /// A request to cut a range of the basis into content-defined chunks, with the [`Average`] for
    /// its length.
    Cut(Stretch),
    /// The content is unavailable; the sender has reported why.
    Skipped,
}

/// A receiver's reply to a request about the basis of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// One signature for each window; none if the basis can no longer be read.
    Signatures(Vec<ByteBuf>),
    /// The chunks in order; none if the basis can no longer be read.
    Chunks(Vec<Chunk>),
}

/// The receiver's counts of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Entries that were offered.
    pub entries: u64,
    /// Bytes of all regular files in the offer.
    pub total_bytes: u64,
    /// Entries created.
    pub created: u64,
    /// Files and links whose content was replaced.
    pub updated: u64,
    /// Entries whose mode or time alone was set.
    pub adjusted: u64,
    /// Entries removed.
    pub deleted: u64,
    /// Regular files whose content was received or found equal.
    pub files: u64,
    /// Bytes of content that travelled, before compression.
    pub sent_bytes: u64,
    /// Bytes of content that the receiver had already: staged, in the basis, or elsewhere.
    pub matched_bytes: u64,
    /// Files made by moving a file that was to be removed; they also count as created and deleted.
    pub moved: u64,
    /// Files made by copying a file from elsewhere in the destination.
    pub copied: u64,
}

impl Tally {
    /// True if the destination changed.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        self.created + self.updated + self.adjusted + self.deleted > 0
    }

    /// True if all numbers are small enough that sums of a few of them do not overflow. Content
    /// counts at most twice: when it arrives damaged and is requested again.
    fn is_within_limits(&self) -> bool {
        let Self { entries, total_bytes, created, updated, adjusted, deleted, files, .. } = *self;
        let Self { sent_bytes, matched_bytes, moved, copied, .. } = *self;
        [entries, total_bytes, created, updated, adjusted, deleted, files]
            .into_iter()
            .chain([sent_bytes, matched_bytes, moved, copied])
            .all(|number| number <= 2 * manifest::CONTENT_BYTES_MAX)
    }
}

/// Reason of an abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AbortKind {
    /// The other side broke the protocol.
    Protocol,
    /// The two sides are of different versions.
    Version,
    /// The source does not exist or cannot be listed.
    Selection,
    /// The destination cannot be used.
    Destination,
    /// Another run works on the destination.
    Busy,
    /// The destination's filesystem is full, or failed.
    Storage,
    /// The connection ended.
    Connection,
    /// The other side was silent for too long.
    Timeout,
    /// A side is no longer as the plan of this run saw it.
    Plan,
}

/// A message that either side may send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Common {
    /// Agent: an event.
    Note(Event),
    /// The reason why the side stops.
    Abort {
        /// The kind of reason.
        kind: AbortKind,
        /// The reason in words.
        text: String,
    },
    /// A sign of life of a side that has written nothing else for a while. The engine never sees
    /// it.
    Heartbeat {
        /// True if the side is at work, or if something arrived since its last heartbeat.
        is_active: bool,
    },
}

/// A message of the sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromSender {
    /// A message that either side may send.
    Common(Common),
    /// Before the subject: the offer covers only these parts of the directory, with the directories
    /// above them. Several such messages may follow each other.
    Scope(Vec<Subtree>),
    /// The offered object.
    Subject(Subject),
    /// The following messages may be changes to the offer whose record has this digest.
    Baseline {
        /// The digest.
        digest: Hash,
    },
    /// The ignore files of the tree. The receiver must not delete the entries that they exclude.
    Ignores(Vec<IgnoreFile>),
    /// The next block of the manifest.
    Entries(ByteBuf),
    /// End of the manifest.
    Offered {
        /// True if everything below the source could be listed. If not, nothing may be deleted.
        complete: bool,
    },
    /// The next part of the differences to the baseline.
    Changes(Change),
    /// End of the changes.
    Changed {
        /// As in [`FromSender::Offered`].
        complete: bool,
        /// The digest of the new offer's record.
        digest: Hash,
    },
    /// Before the offer ends: contents of small offered files. The receiver drops those that it
    /// does not need.
    Pushed(Vec<(u32, Hash, ByteBuf)>),
    /// Before the offer ends: samples of large offered files that changed, or may have.
    Sampled(Vec<(u32, Samples)>),
    /// Before the offer ends: the bytes of the offer that take no disk space, if there are any.
    Holes(Holes),
    /// The bases of these files equal the wanted contents.
    Same {
        /// The files' ids.
        ids: Vec<u32>,
        /// The hash over their hashes.
        digest: Hash,
    },
    /// Answers to wants, by file.
    Answers(Vec<(u32, Answer)>),
    /// Before the offer ends, if the options ask for it: names of the offered ids.
    Owners(Owners),
    /// Before the offer ends, if there are any: attributes of the offered directory itself.
    Root(Attributes),
    /// After the last [`FromReceiver::Removable`]: the removals from the source are over.
    Removed,
}

/// A message of the receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromReceiver {
    /// A message that either side may send.
    Common(Common),
    /// The baseline is unknown here, so the sender must send the full offer.
    BaselineMissing,
    /// The files that must travel.
    Wants(Vec<Want>),
    /// Replies to requests about bases, by file.
    Replies(Vec<(u32, Reply)>),
    /// The run is complete.
    Finished(Tally),
    /// At any time where rounds follow each other: the next round must be a full one.
    Rescan,
    /// If the options ask for it, when the destination is complete: files and links that are in
    /// place, so that the sender may remove them from the source.
    Removable {
        /// Their ids, each with the fingerprint of the identity that the entry has here.
        entries: Vec<(u32, u64)>,
        /// True for the last of these messages.
        is_last: bool,
    },
}

/// The messages of one side.
pub trait Message: From<Common> + Serialize + DeserializeOwned + std::fmt::Debug + Send + 'static {
    /// The message that either side may send, if this is one.
    fn as_common(&self) -> Option<&Common>;

    /// True for [`FromReceiver::Rescan`].
    fn is_rescan(&self) -> bool {
        false
    }

    /// The request or unasked content in the message, as a name and pairs for the log.
    fn label(&self) -> Option<(&'static str, String)>;

    /// True if every list and number is as small as it must be.
    fn is_within_limits(&self) -> bool;

    /// Approximate bytes of the contents in the message, so that the encoder allocates once.
    fn content_bytes(&self) -> usize {
        0
    }

    /// True if the message carries deltas of small files. These are short and resemble each other.
    fn has_deltas(&self) -> bool {
        false
    }

    /// Encodes the wire form.
    #[must_use]
    fn encode(&self) -> Vec<u8> {
        let room = Vec::with_capacity(self.content_bytes() + 64);
        match encode::append(room, self) {
            Ok(bytes) => bytes,
            // Writing plain data to a `Vec` cannot fail.
            Err(error) => unreachable!("encoding a message: {error}"),
        }
    }

    /// Decodes the wire form and checks every limit.
    ///
    /// # Errors
    /// See [`MessageError`].
    fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let (message, rest) =
            postcard::take_from_bytes::<Self>(bytes).map_err(|_| MessageError::Malformed)?;
        if !rest.is_empty() {
            return Err(MessageError::Malformed);
        }
        if message.is_within_limits() { Ok(message) } else { Err(MessageError::Limit) }
    }
}

/// A message that does not decode, or exceeds a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The bytes are no message.
    #[error("a message is malformed")]
    Malformed,
    /// A list or number in it is larger than allowed.
    #[error("a message exceeds a limit")]
    Limit,
}

impl From<Common> for FromSender {
    fn from(common: Common) -> Self {
        Self::Common(common)
    }
}

impl From<Common> for FromReceiver {
    fn from(common: Common) -> Self {
        Self::Common(common)
    }
}

impl FromSender {
    /// A [`FromSender::Same`] for these files and their hashes.
    #[must_use]
    pub fn same(files: &[(u32, Hash)]) -> Self {
        let ids = files.iter().map(|(id, _)| *id).collect();
        Self::Same { ids, digest: digest_of(files.iter().map(|(_, hash)| hash)) }
    }
}

impl Message for FromSender {
    fn as_common(&self) -> Option<&Common> {
        if let Self::Common(common) = self { Some(common) } else { None }
    }

    fn label(&self) -> Option<(&'static str, String)> {
        let Self::Pushed(files) = self else { return None };
        Some(("pushed", files.len().to_string()))
    }

    fn content_bytes(&self) -> usize {
        const EACH_BYTES: usize = size_of::<Hash>() + 16;
        match self {
            Self::Answers(files) => files.iter().map(|(_, answer)| EACH_BYTES + answer.sent_bytes()).sum(),
            Self::Pushed(files) => files.iter().map(|(_, _, data)| EACH_BYTES + data.len()).sum(),
            _ => 0,
        }
    }

    fn has_deltas(&self) -> bool {
        let Self::Answers(files) = self else { return false };
        files.iter().any(|(_, answer)| answer.is_delta())
    }

    fn is_within_limits(&self) -> bool {
        match self {
            Self::Common(common) => common.is_within_limits(),
            Self::Subject(Subject::Directory { mode, seconds, nanos, tree_id: _ }) => {
                *mode <= 0o7777 && Time::new(*seconds, *nanos).is_some()
            }
            Self::Subject(Subject::File { name }) => {
                !name.contains(&b'/') && TreePath::new(name.as_slice()).is_ok()
            }
            Self::Ignores(files) => files.len() <= LIST_MAX,
            Self::Answers(files) => {
                files.len() <= LIST_MAX && files.iter().all(|(_, answer)| answer.is_within_limits())
            }
            Self::Same { ids, .. } => ids.len() <= LIST_MAX,
            Self::Changes(change) => (1..=EDITS_MAX).contains(&change.edits.len()),
            Self::Scope(subtrees) => subtrees.len() <= LIST_MAX,
            Self::Pushed(files) => {
                files.iter().map(|(_, _, data)| data.len()).sum::<usize>() <= PUSHED_BYTES_MAX
                    && files.len() <= LIST_MAX
            }
            Self::Sampled(files) => {
                files.len() <= SAMPLED_MAX && files.iter().all(|(_, samples)| samples.is_complete())
            }
            Self::Holes(Holes { files, .. }) => {
                files.len() <= HOLES_MAX && files.is_sorted_by(|(one, _), (next, _)| one < next)
            }
            Self::Owners(owners) => owners.is_within_limits(),
            Self::Root(attributes) => attributes.is_within_limits(),
            Self::Subject(Subject::Several)
            | Self::Entries(_)
            | Self::Removed
            | Self::Offered { .. }
            | Self::Baseline { .. }
            | Self::Changed { .. } => true,
        }
    }
}

impl Message for FromReceiver {
    fn as_common(&self) -> Option<&Common> {
        if let Self::Common(common) = self { Some(common) } else { None }
    }

    fn is_rescan(&self) -> bool {
        *self == Self::Rescan
    }

    fn label(&self) -> Option<(&'static str, String)> {
        let one = || "1".to_owned();
        match self {
            Self::Wants(wants) => {
                let with_basis = wants.iter().filter(|want| want.basis.is_some()).count();
                let with_part = wants.iter().filter(|want| want.staged.is_some()).count();
                let text = format!("{} with_basis={with_basis} with_part={with_part}", wants.len());
                Some(("wants", text))
            }
            Self::BaselineMissing => Some(("baseline-missing", one())),
            Self::Rescan => Some(("rescan", one())),
            Self::Removable { entries, .. } => Some(("removable", entries.len().to_string())),
            Self::Common(_) | Self::Replies(_) | Self::Finished(_) => None,
        }
    }

    fn is_within_limits(&self) -> bool {
        match self {
            Self::Common(common) => common.is_within_limits(),
            Self::Removable { entries, .. } => entries.len() <= LIST_MAX,
            Self::Wants(wants) => wants.len() <= WANTS_MAX && wants.iter().all(want_is_within_limits),
            Self::Replies(files) => {
                files.len() <= LIST_MAX
                    && files.iter().all(|(_, reply)| match reply {
                        Reply::Signatures(signatures) => signatures.len() <= WINDOWS_MAX,
                        Reply::Chunks(chunks) => chunks.len() <= CHUNKS_MAX,
                    })
            }
            Self::Finished(tally) => tally.is_within_limits(),
            Self::BaselineMissing | Self::Rescan => true,
        }
    }
}

impl Common {
    fn is_within_limits(&self) -> bool {
        match self {
            Self::Note(event) => event_is_within_limits(event),
            Self::Abort { text, .. } => text.len() <= TEXT_BYTES_MAX,
            Self::Heartbeat { .. } => true,
        }
    }
}

impl Answer {
    fn sent_bytes(&self) -> usize {
        // At most `CONTENT_BYTES_MAX`.
        if let Self::Steps { ops, .. } = self {
            ops.iter().map(|op| op.sent_bytes() as usize).sum()
        } else {
            0
        }
    }

    /// True for a delta that is a whole file.
    fn is_delta(&self) -> bool {
        matches!(self, Self::Steps { ops, end: Some(_) } if matches!(ops[..], [Op::Delta { .. }]))
    }

    fn is_within_limits(&self) -> bool {
        match self {
            Self::Steps { ops, .. } => {
                ops.len() <= LIST_MAX
                    && ops.iter().all(|op| match op {
                        Op::Delta { window, length, .. } => {
                            window_is_within_limits(window) && *length as usize <= NEW_BYTES_MAX
                        }
                        Op::Copy { offset, length } => is_stretch(*offset, *length),
                        Op::Keep { .. } | Op::Data(_) | Op::Zeros { .. } => true,
                    })
            }
            Self::Sign(windows) => {
                (1..=WINDOWS_MAX).contains(&windows.len()) && windows.iter().all(window_is_within_limits)
            }
            Self::Cut(Stretch { offset, length }) => {
                is_stretch(*offset, *length) && Average::for_size(*length).is_some()
            }
            Self::Skipped => true,
        }
    }
}

/// Hashes a sequence of hashes.
pub fn digest_of<'a>(hashes: impl Iterator<Item = &'a Hash>) -> Hash {
    let mut hasher = Hasher::new();
    hashes.for_each(|hash| hasher.update(hash.as_bytes()));
    hasher.finish()
}

fn event_is_within_limits(event: &Event) -> bool {
    match event {
        Event::Change { path, target, .. } => path.len().max(target.len()) <= TEXT_BYTES_MAX,
        Event::Renamed { from, path } => from.len().max(path.len()) <= TEXT_BYTES_MAX,
        Event::Resolved { path }
        | Event::Left { path, .. }
        | Event::Grew { path }
        | Event::BasisMissing { path }
        | Event::LinksExcluded { first: path, .. }
        | Event::DevicesPassedOver { first: path, .. }
        | Event::NonRegularSkipped { first: path, .. }
        | Event::SourceRemoved { path }
        | Event::Began { path } => path.len() <= TEXT_BYTES_MAX,
        Event::Polling { cause } => cause.len() <= TEXT_BYTES_MAX,
        Event::Problem(problem) => {
            problem.path.len() <= TEXT_BYTES_MAX && problem.cause.len() <= TEXT_BYTES_MAX
        }
        Event::Braked(braked) => {
            braked.head.len() <= HEAD_MAX
                && braked.head.iter().all(|doomed| doomed.path.len() <= TEXT_BYTES_MAX)
        }
        Event::Paired(_)
        | Event::Bound(_)
        | Event::Stored { .. }
        | Event::Scanned { .. }
        | Event::Excluded { .. }
        | Event::StateExcluded { .. }
        | Event::Planned { .. }
        | Event::Moved { .. }
        | Event::Matched { .. }
        | Event::Written(_) => true,
    }
}
