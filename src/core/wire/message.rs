//! Messages: everything that the two engines send each other, encoded with postcard.
//!
//! `fixtures/wire/` holds the golden bytes of each message.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::content::blocks::{BLOCKS_MAX, BlockId, BlockSize};
use crate::content::chunk::{Average, CHUNKS_MAX, Chunk};
use crate::content::delta::{BASIS_BYTES_MAX, NEW_BYTES_MAX, signature_bytes};
use crate::content::encode;
use crate::content::hash::{Hash, Hasher};
use crate::content::sample::Samples;
use crate::monitor::{Event, HEAD_MAX};
use crate::tree::change::{Change, EDITS_MAX};
use crate::tree::entry::{SIZE_MAX, Time};
use crate::tree::filter::IgnoreFile;
use crate::tree::manifest;
use crate::tree::path::TreePath;
use crate::tree::subtrees::Subtree;
use crate::tree::tree_id::TreeId;

/// Most unanswered wants. On the fastest link that was planned for (1 Gbit/s, 100 ms) 12 MB are in
/// flight: 3,000 files of 4 KiB. A want takes about 100 bytes on each side.
pub const WANTS_MAX: usize = 8192;

/// Most bytes of unanswered wants, by [`Want::weight`]; most of them are block names. A receiver
/// stops asking at 4 MiB. The few wants that it prepares meanwhile weigh up to 1.5 MiB each.
pub const WANTS_BYTES_MAX: usize = 11 << 20;

/// Most files whose content is in flight in pieces. Most of them wait for signatures: with 100 ms
/// between question and answer, eight would mean 80 files a second.
pub const STREAMS_MAX: usize = 32;

/// Longest file that travels whole in [`Message::Files`], in bytes.
pub const SMALL_BYTES_MAX: u64 = 128 << 10;

/// Longest basis against which such a file is compared as a whole, in bytes.
pub const SMALL_BASIS_BYTES_MAX: u64 = 256 << 10;

/// Shortest file that may travel as a delta, in bytes: the signature of a shorter one would cost as
/// much as its content.
pub const DELTA_BYTES_MIN: u64 = 1 << 10;

/// Most bytes of content in one message.
pub const CONTENT_BYTES_MAX: usize = 1 << 20;

/// Most windows of one [`Message::SignRequest`]: their signatures must fit in a frame.
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

/// A file that a receiver wants, with the bytes that it already has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// The file's id.
    pub id: u32,
    /// The prefix that an earlier run staged.
    pub staged: Option<Blocks>,
    /// The basis: the version that is there now.
    pub basis: Option<BasisReport>,
}

/// A basis report: what a receiver advertises of a basis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BasisReport {
    /// The blocks of a basis that may equal the new version.
    Blocks(Blocks),
    /// The signature of a basis that certainly differs ([`is_signed`]), so the sender need not ask
    /// for it.
    Signed {
        /// Length of the basis in bytes.
        length: u64,
        /// The signature.
        signature: ByteBuf,
    },
    /// The blocks of a basis without one range, as if its two ends touched: the range was probably
    /// removed.
    RangeRemoved {
        /// The basis's length with the range, and the blocks of the rest. The rest is as long as
        /// the wanted file.
        blocks: Blocks,
        /// Start of the removed range.
        split: u64,
    },
}

impl Want {
    /// A want without any bytes of the file at the receiver.
    #[must_use]
    pub fn whole(id: u32) -> Self {
        Self { id, staged: None, basis: None }
    }

    /// Approximate size of the want in a message, in bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        let blocks = |blocks: &Blocks| 10 + blocks.ids.len() * size_of::<BlockId>();
        let basis = match &self.basis {
            Some(BasisReport::Blocks(basis)) => blocks(basis),
            Some(BasisReport::RangeRemoved { blocks: basis, .. }) => blocks(basis) + 10,
            Some(BasisReport::Signed { signature, .. }) => 10 + signature.len(),
            None => 0,
        };
        8 + self.staged.as_ref().map_or(0, blocks) + basis
    }

    /// The blocks of the basis, if they are advertised.
    #[must_use]
    pub fn basis_blocks(&self) -> Option<&Blocks> {
        match &self.basis {
            Some(BasisReport::Blocks(blocks) | BasisReport::RangeRemoved { blocks, .. }) => Some(blocks),
            Some(BasisReport::Signed { .. }) | None => None,
        }
    }

    /// True if the want names exactly the blocks that a file of `size` bytes calls for.
    #[must_use]
    pub fn fits(&self, size: u64) -> bool {
        let fits = |blocks: &Blocks, most: u64| {
            BlockSize::for_size(size).count(blocks.length.min(most)) == blocks.ids.len() as u64
        };
        let basis_fits = match &self.basis {
            Some(BasisReport::Blocks(basis)) => fits(basis, basis_bytes_max(size)),
            Some(BasisReport::RangeRemoved { blocks, split }) => {
                self.staged.is_none() && size < blocks.length && *split <= size && fits(blocks, size)
            }
            Some(BasisReport::Signed { length, signature }) => {
                self.staged.is_none()
                    && is_signed(size, *length)
                    && signature.len() == signature_bytes(*length as usize)
            }
            None => true,
        };
        basis_fits && self.staged.as_ref().is_none_or(|staged| fits(staged, size))
    }
}

/// A receiver's blocks of a file, in the [`BlockSize`] for the wanted size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    /// Length in bytes of the staged prefix or the basis.
    pub length: u64,
    /// Names of the blocks. A staged prefix is named up to the length of the wanted file, a basis
    /// up to [`basis_bytes_max`].
    pub ids: Vec<BlockId>,
}

/// Bytes of a basis that are advertised for a wanted file of `size` bytes. They exceed `size`,
/// since something may have been removed near the beginning.
#[must_use]
pub fn basis_bytes_max(size: u64) -> u64 {
    size.saturating_mul(2)
}

/// True if a basis of `length` bytes is signed at once for a wanted file of `size` bytes. Both are
/// small, the signature is shorter than the file, and the lengths alone show that they differ.
#[must_use]
pub fn is_signed(size: u64, length: u64) -> bool {
    size != length
        && (DELTA_BYTES_MIN..=SMALL_BYTES_MAX).contains(&size)
        && (1..=SMALL_BASIS_BYTES_MAX).contains(&length)
}

/// A range of a basis for the receiver to sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Start, in bytes.
    pub offset: u64,
    /// Length in bytes, at most [`BASIS_BYTES_MAX`].
    pub length: u32,
}

/// A long range of a basis, beyond what one signature can cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// Start, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// A step that builds a new content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Begin with the first bytes of the staged prefix. Only allowed as the first step.
    Keep {
        /// Bytes to keep.
        length: u64,
    },
    /// Append bytes of the basis.
    Copy {
        /// Start in the basis.
        offset: u64,
        /// Bytes to copy.
        length: u64,
    },
    /// Append these bytes.
    Data(ByteBuf),
    /// Append the result of this delta against a window of the basis.
    Delta {
        /// The window.
        window: Window,
        /// Length of the result in bytes.
        length: u32,
        /// The delta in the format of `fast_rsync`.
        delta: ByteBuf,
    },
    /// Append zeros.
    Zeros {
        /// Number of zeros.
        length: u64,
    },
}

impl Op {
    /// Bytes of content that travel in this step.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        match self {
            Self::Keep { .. } | Self::Copy { .. } | Self::Zeros { .. } => 0,
            Self::Data(bytes) | Self::Delta { delta: bytes, .. } => bytes.len() as u64,
        }
    }

    /// Bytes of content that this step produces.
    #[must_use]
    pub fn made_bytes(&self) -> u64 {
        match self {
            Self::Keep { length } | Self::Copy { length, .. } | Self::Zeros { length } => *length,
            Self::Data(bytes) => bytes.len() as u64,
            Self::Delta { length, .. } => u64::from(*length),
        }
    }
}

/// The complete answer to a want in one message, or the step before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// The content.
    Whole {
        /// Hash of the content.
        hash: Hash,
        /// Bytes of the content.
        data: ByteBuf,
    },
    /// The basis differs, so the sender needs its signature to make a delta. This is not an answer
    /// yet.
    Differs,
    /// A delta that turns the basis into the content.
    Delta {
        /// Hash of the content.
        hash: Hash,
        /// The delta in the format of `fast_rsync`.
        delta: ByteBuf,
    },
    /// The content is unavailable; the sender has reported why.
    Skipped,
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
}

/// Every message; `S` marks the sender's, `R` the receiver's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// S: the offered object.
    Subject(Subject),
    /// S: the ignore files of the tree. The receiver must not delete the entries that they exclude.
    Ignores(Vec<IgnoreFile>),
    /// S: the next block of the manifest.
    Entries(ByteBuf),
    /// S: end of the manifest.
    Offered {
        /// True if everything below the source could be listed. If not, nothing may be deleted.
        complete: bool,
    },
    /// S: the following messages may be changes to the offer whose record has this digest.
    Baseline {
        /// The digest.
        digest: Hash,
    },
    /// S: the next part of the differences to the baseline.
    Changes(Change),
    /// S: end of the changes.
    Changed {
        /// As in [`Message::Offered`].
        complete: bool,
        /// The digest of the new offer's record.
        digest: Hash,
    },
    /// R: the baseline is unknown here, so the sender must send the full offer.
    BaselineMissing,
    /// R: the files that must travel.
    Wants(Vec<Want>),
    /// S: complete answers.
    Files(Vec<(u32, Body)>),
    /// S: the bases of these files equal the wanted contents.
    Same {
        /// The files' ids.
        ids: Vec<u32>,
        /// The hash over their hashes.
        digest: Hash,
    },
    /// R: signatures of the bases of files that differ; an empty signature means the basis can no
    /// longer be read.
    FileSignatures(Vec<(u32, ByteBuf)>),
    /// S: request to sign ranges of a basis.
    SignRequest {
        /// The file's id.
        id: u32,
        /// The ranges.
        windows: Vec<Window>,
    },
    /// R: the signatures, in order.
    Signatures {
        /// The file's id.
        id: u32,
        /// One signature for each window.
        signatures: Vec<ByteBuf>,
    },
    /// S: request to cut a range of the basis into content-defined chunks, with the [`Average`] for
    /// its length.
    CutRequest {
        /// The file's id.
        id: u32,
        /// The range.
        stretch: Stretch,
    },
    /// R: the chunks in order; none if the basis can no longer be read.
    Chunks {
        /// The file's id.
        id: u32,
        /// The chunks.
        chunks: Vec<Chunk>,
    },
    /// S: the next steps of one file.
    Pieces {
        /// The file's id.
        id: u32,
        /// The steps.
        ops: Vec<Op>,
        /// The hash of the whole content, with the last steps.
        end: Option<Hash>,
    },
    /// R: the run is complete.
    Finished(Tally),
    /// Agent: an event.
    Note(Event),
    /// Either side: the reason why it stops.
    Abort {
        /// The kind of reason.
        kind: AbortKind,
        /// The reason in words.
        text: String,
    },
    /// S, before the subject: the offer covers only these parts of the directory, with the
    /// directories above them. Several such messages may follow each other.
    Scope(Vec<Subtree>),
    /// S, before the offer ends: contents of small offered files. The receiver drops those that it
    /// does not need.
    Pushed(Vec<(u32, Hash, ByteBuf)>),
    /// R, at any time where rounds follow each other: the next round must be a full one.
    Rescan,
    /// S, before the offer ends: samples of large offered files that changed, or may have.
    Sampled(Vec<(u32, Samples)>),
    /// S, before the offer ends: the bytes of the offer that take no disk space, if there are any.
    Holes(Holes),
    /// Either side, after it has written nothing else for a while: a sign of life. The engine never
    /// sees it.
    Heartbeat {
        /// True if the side is at work, or if something arrived since its last heartbeat.
        is_active: bool,
    },
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

impl Message {
    /// A [`Message::Same`] for these files and their hashes.
    #[must_use]
    pub fn same(files: &[(u32, Hash)]) -> Self {
        let ids = files.iter().map(|(id, _)| *id).collect();
        Self::Same { ids, digest: digest_of(files.iter().map(|(_, hash)| hash)) }
    }

    /// Encodes the wire form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let room = Vec::with_capacity(self.content_bytes() + 64);
        match encode::append(room, self) {
            Ok(bytes) => bytes,
            // Writing plain data to a `Vec` cannot fail.
            Err(error) => unreachable!("encoding a message: {error}"),
        }
    }

    /// True if the message carries deltas of small files. These are short and resemble each other.
    #[must_use]
    pub fn has_deltas(&self) -> bool {
        let Self::Files(files) = self else { return false };
        files.iter().any(|(_, body)| matches!(body, Body::Delta { .. }))
    }

    /// Approximate bytes of the contents in the message, so that the encoder allocates once.
    fn content_bytes(&self) -> usize {
        const EACH_BYTES: usize = size_of::<Hash>() + 16;
        match self {
            Self::Files(files) => {
                let each = |body: &Body| match body {
                    Body::Whole { data: bytes, .. } | Body::Delta { delta: bytes, .. } => bytes.len(),
                    Body::Differs | Body::Skipped => 0,
                };
                files.iter().map(|(_, body)| EACH_BYTES + each(body)).sum()
            }
            // At most `CONTENT_BYTES_MAX`.
            Self::Pieces { ops, .. } => ops.iter().map(|op| EACH_BYTES + op.sent_bytes() as usize).sum(),
            Self::Pushed(files) => files.iter().map(|(_, _, data)| EACH_BYTES + data.len()).sum(),
            _ => 0,
        }
    }

    /// Decodes the wire form and checks every limit.
    ///
    /// # Errors
    /// See [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let (message, rest) =
            postcard::take_from_bytes::<Self>(bytes).map_err(|_| MessageError::Malformed)?;
        if !rest.is_empty() {
            return Err(MessageError::Malformed);
        }
        if message.is_within_limits() { Ok(message) } else { Err(MessageError::Limit) }
    }

    fn is_within_limits(&self) -> bool {
        match self {
            Self::Subject(Subject::Directory { mode, seconds, nanos, tree_id: _ }) => {
                *mode <= 0o7777 && Time::new(*seconds, *nanos).is_some()
            }
            Self::Ignores(files) => files.len() <= LIST_MAX,
            Self::Wants(wants) => wants.len() <= WANTS_MAX && wants.iter().all(want_is_within_limits),
            Self::Files(files) => {
                files.len() <= LIST_MAX
                    && files.iter().all(|(_, body)| match body {
                        Body::Whole { data, .. } => data.len() as u64 <= SMALL_BYTES_MAX,
                        Body::Delta { delta, .. } => delta.len() as u64 <= SMALL_BYTES_MAX,
                        Body::Differs | Body::Skipped => true,
                    })
            }
            Self::Same { ids, .. } => ids.len() <= LIST_MAX,
            Self::FileSignatures(signatures) => signatures.len() <= LIST_MAX,
            Self::SignRequest { windows, .. } => {
                windows.len() <= WINDOWS_MAX && windows.iter().all(window_is_within_limits)
            }
            Self::Signatures { signatures, .. } => signatures.len() <= WINDOWS_MAX,
            Self::CutRequest { stretch: Stretch { offset, length }, .. } => {
                is_stretch(*offset, *length) && Average::for_size(*length).is_some()
            }
            Self::Chunks { chunks, .. } => chunks.len() <= CHUNKS_MAX,
            Self::Pieces { ops, .. } => {
                ops.len() <= LIST_MAX
                    && ops.iter().all(|op| match op {
                        Op::Delta { window, length, .. } => {
                            window_is_within_limits(window) && *length as usize <= NEW_BYTES_MAX
                        }
                        Op::Copy { offset, length } => is_stretch(*offset, *length),
                        Op::Keep { .. } | Op::Data(_) | Op::Zeros { .. } => true,
                    })
            }
            Self::Subject(Subject::File { name }) => {
                !name.contains(&b'/') && TreePath::new(name.as_slice()).is_ok()
            }
            Self::Note(event) => event_is_within_limits(event),
            Self::Abort { text, .. } => text.len() <= TEXT_BYTES_MAX,
            Self::Finished(tally) => tally.is_within_limits(),
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
            Self::Rescan
            | Self::Heartbeat { .. }
            | Self::Entries(_)
            | Self::Offered { .. }
            | Self::Baseline { .. }
            | Self::Changed { .. }
            | Self::BaselineMissing => true,
        }
    }
}

/// Hashes a sequence of hashes.
pub fn digest_of<'a>(hashes: impl Iterator<Item = &'a Hash>) -> Hash {
    let mut hasher = Hasher::new();
    hashes.for_each(|hash| hasher.update(hash.as_bytes()));
    hasher.finish()
}

fn window_is_within_limits(window: &Window) -> bool {
    window.length as usize <= BASIS_BYTES_MAX && is_stretch(window.offset, window.length.into())
}

/// True if a file can have such a range. Adding to offsets that pass here cannot overflow.
fn is_stretch(offset: u64, length: u64) -> bool {
    offset.checked_add(length).is_some_and(|end| end <= SIZE_MAX)
}

fn event_is_within_limits(event: &Event) -> bool {
    match event {
        Event::Resolved { path }
        | Event::Change { path, .. }
        | Event::Left { path, .. }
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
        | Event::Scanned { .. }
        | Event::Excluded { .. }
        | Event::Planned { .. }
        | Event::Moved { .. }
        | Event::Matched { .. } => true,
    }
}

/// True if some file could have these blocks; [`Want::fits`] checks them against the file.
fn want_is_within_limits(want: &Want) -> bool {
    [want.staged.as_ref(), want.basis_blocks()]
        .into_iter()
        .flatten()
        .all(|blocks| blocks.length <= SIZE_MAX && blocks.ids.len() as u64 <= 2 * BLOCKS_MAX)
}
