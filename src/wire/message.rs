//! Messages: everything that the two engines say, in postcard.
//!
//! The golden bytes of each message lie in `fixtures/wire/`.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::content::blocks::{BLOCKS_MAX, BlockId, BlockSize};
use crate::content::chunk::{Average, CHUNKS_MAX, Chunk};
use crate::content::delta::{NEW_BYTES_MAX, OLD_BYTES_MAX, signature_bytes};
use crate::content::encode;
use crate::content::hash::{Hash, Hasher};
use crate::content::sample::Samples;
use crate::monitor::{Event, HEAD_MAX};
use crate::tree::change::{Change, EDITS_MAX};
use crate::tree::entry::{SIZE_MAX, Time};
use crate::tree::filter::IgnoreFile;
use crate::tree::manifest;
use crate::tree::path::TreePath;
use crate::tree::place::Place;
use crate::tree::scope::Part;

/// Most wants without an answer. On the fastest link that was planned for (1 Gbit/s, 100 ms) 12 MB are on
/// their way, 3,000 files of 4 KiB; and a want takes some 100 bytes on each side.
pub const WANTS_MAX: usize = 8192;

/// Most bytes of wants without an answer, by [`Want::weight`]: names of blocks, mostly. A receiver stops asking
/// at 4 MiB; the few wants that it prepares meanwhile weigh up to 1.5 MiB each.
pub const WANTS_BYTES_MAX: usize = 11 << 20;

/// Most files whose content is on its way in pieces at a time. Most of them wait for signatures: with a hundred
/// milliseconds between question and answer eight would be 80 files a second.
pub const STREAMS_MAX: usize = 32;

/// Longest file that travels whole in [`Message::Files`], in bytes.
pub const SMALL_BYTES_MAX: u64 = 128 << 10;

/// Longest old version that a file which travels so is compared with as a whole, in bytes.
pub const SMALL_OLD_BYTES_MAX: u64 = 256 << 10;

/// Files shorter than this are always sent whole, in bytes: the signature would cost as much.
pub const DELTA_BYTES_MIN: u64 = 1 << 10;

/// Most bytes of content in one message.
pub const CONTENT_BYTES_MAX: usize = 1 << 20;

/// Most windows of one [`Message::SignRequest`]: their signatures must fit in a frame.
pub const WINDOWS_MAX: usize = 48;

/// Longest path or text in a note or an abort, in bytes. The longest path, escaped, with words around it, is
/// half of that; and a side keeps up to a thousand of them.
pub const TEXT_BYTES_MAX: usize = 64 << 10;

/// Most bytes of content that a sender gives with an offer, before anybody has asked for it: so that a file that was
/// just saved is there half a round trip later. What a slow link (20 Mbit/s) carries in a tenth of a second.
pub const PUSHED_BYTES_MAX: usize = 256 << 10;

/// Most files that samples come of with an offer: half a kilobyte each, which most of the time nobody needs.
pub const SAMPLED_MAX: usize = 2;

/// Most files whose holes are told one by one; those of all others are told as a sum.
pub const HOLES_MAX: usize = 1 << 10;

/// Most elements of every other list in a message.
pub const LIST_MAX: usize = 1 << 13;

/// What is offered: a directory with everything in it, or one file or link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// A directory; its own mode and time.
    Directory {
        /// Permission bits.
        mode: u16,
        /// Modification time: seconds since 1970.
        seconds: i64,
        /// Nanoseconds after that.
        nanos: u32,
        /// Which directory it is.
        place: Place,
    },
    /// A single file or link; the manifest has exactly that entry, or none if it cannot be read.
    File {
        /// Its name: one component.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
}

impl Subject {
    /// A directory with this mode and time.
    #[must_use]
    pub fn directory(mode: u16, mtime: Time, place: Place) -> Self {
        Self::Directory { mode, seconds: mtime.seconds(), nanos: mtime.nanos(), place }
    }
}

/// What of the files that are offered takes no room: by it a receiver tells whether the rest fits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holes {
    /// Files, in ascending order, with the bytes of their lengths that no block of the filesystem
    /// is behind.
    pub files: Vec<(u32, u64)>,
    /// The same, of all other files together.
    pub others_bytes: u64,
}

impl Holes {
    /// Bytes of this file.
    #[must_use]
    pub fn of(&self, id: u32) -> u64 {
        let found = self.files.binary_search_by_key(&id, |&(id, _)| id);
        found.ok().and_then(|at| self.files.get(at)).map_or(0, |&(_, bytes)| bytes)
    }
}

/// A file that a receiver wants, with what it has of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// Which.
    pub id: u32,
    /// What an earlier run staged of it: a prefix.
    pub staged: Option<Blocks>,
    /// The version that is there now.
    pub old: Option<Old>,
}

/// What a receiver tells of an old version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Old {
    /// Its blocks, where the new one may be the same.
    Blocks(Blocks),
    /// Its signature, where it cannot be ([`is_signed`]): so nobody has to ask for that.
    Signed {
        /// Its length in bytes.
        length: u64,
        /// The signature.
        signature: ByteBuf,
    },
    /// Its blocks without a piece, as if what follows that followed at once: where something was taken out.
    Narrowed {
        /// Its length, with the piece, and the blocks of all the rest. That is as long as the wanted file.
        blocks: Blocks,
        /// Where the piece begins.
        split: u64,
    },
}

impl Want {
    /// A want of which nothing is there.
    #[must_use]
    pub fn whole(id: u32) -> Self {
        Self { id, staged: None, old: None }
    }

    /// About how many bytes the want takes in a message.
    #[must_use]
    pub fn weight(&self) -> usize {
        let blocks = |blocks: &Blocks| 10 + blocks.ids.len() * size_of::<BlockId>();
        let old = match &self.old {
            Some(Old::Blocks(old)) => blocks(old),
            Some(Old::Narrowed { blocks: old, .. }) => blocks(old) + 10,
            Some(Old::Signed { signature, .. }) => 10 + signature.len(),
            None => 0,
        };
        8 + self.staged.as_ref().map_or(0, blocks) + old
    }

    /// The blocks of the old version, if they are told.
    #[must_use]
    pub fn old_blocks(&self) -> Option<&Blocks> {
        match &self.old {
            Some(Old::Blocks(blocks) | Old::Narrowed { blocks, .. }) => Some(blocks),
            Some(Old::Signed { .. }) | None => None,
        }
    }

    /// Whether it names the blocks that are due for a file of `size` bytes.
    #[must_use]
    pub fn fits(&self, size: u64) -> bool {
        let fits = |blocks: &Blocks, most: u64| {
            BlockSize::for_size(size).count(blocks.length.min(most)) == blocks.ids.len() as u64
        };
        let old_fits = match &self.old {
            Some(Old::Blocks(old)) => fits(old, old_bytes_max(size)),
            Some(Old::Narrowed { blocks, split }) => {
                self.staged.is_none() && size < blocks.length && *split <= size && fits(blocks, size)
            }
            Some(Old::Signed { length, signature }) => {
                self.staged.is_none()
                    && is_signed(size, *length)
                    && signature.len() == signature_bytes(*length as usize)
            }
            None => true,
        };
        old_fits && self.staged.as_ref().is_none_or(|staged| fits(staged, size))
    }
}

/// What a receiver has of a file, in blocks of the [`BlockSize`] for the wanted size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    /// Its length in bytes.
    pub length: u64,
    /// The blocks: of what is staged as much as the wanted file is long, of an old version as much as
    /// [`old_bytes_max`] says.
    pub ids: Vec<BlockId>,
}

/// How much of an old version is named for a wanted file of `size` bytes: more than that has, since something may
/// have been taken out near the beginning.
#[must_use]
pub fn old_bytes_max(size: u64) -> u64 {
    size.saturating_mul(2)
}

/// Whether an old version of `length` bytes is signed at once for a wanted file of `size` bytes: both are small, the
/// signature is shorter than the file, and their lengths say already that they differ.
#[must_use]
pub fn is_signed(size: u64, length: u64) -> bool {
    size != length
        && (DELTA_BYTES_MIN..=SMALL_BYTES_MAX).contains(&size)
        && (1..=SMALL_OLD_BYTES_MAX).contains(&length)
}

/// A stretch of an old version that is to be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes, at most [`OLD_BYTES_MAX`].
    pub length: u32,
}

/// A long stretch of an old version, beyond what one signature can cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// A step in making a new content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Begin with the first bytes of what is staged. Only ever first.
    Keep {
        /// How many.
        length: u64,
    },
    /// Append bytes of the old version.
    Copy {
        /// From where.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// Append these bytes.
    Data(ByteBuf),
    /// Append what this delta makes of a window of the old version.
    Delta {
        /// The window.
        window: Window,
        /// Bytes that it makes.
        length: u32,
        /// The delta as `fast_rsync` writes it.
        delta: ByteBuf,
    },
    /// Append zeros.
    Zeros {
        /// How many.
        length: u64,
    },
}

impl Op {
    /// Bytes of content that travel in it.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        match self {
            Self::Keep { .. } | Self::Copy { .. } | Self::Zeros { .. } => 0,
            Self::Data(bytes) | Self::Delta { delta: bytes, .. } => bytes.len() as u64,
        }
    }

    /// Bytes of content that it makes.
    #[must_use]
    pub fn made_bytes(&self) -> u64 {
        match self {
            Self::Keep { length } | Self::Copy { length, .. } | Self::Zeros { length } => *length,
            Self::Data(bytes) => bytes.len() as u64,
            Self::Delta { length, .. } => u64::from(*length),
        }
    }
}

/// The answer to a want, complete in one message; or the step before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// The content.
    Whole {
        /// Its hash.
        hash: Hash,
        /// Its bytes.
        data: ByteBuf,
    },
    /// The old version differs: its signature is needed to say in what. This is no answer yet.
    Differs,
    /// What makes the content out of the old version.
    Delta {
        /// Its hash.
        hash: Hash,
        /// The delta as `fast_rsync` writes it.
        delta: ByteBuf,
    },
    /// It cannot be had; the sender has said why.
    Skipped,
}

/// What a receiver did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Entries that were offered.
    pub entries: u64,
    /// Bytes of all regular files that were offered.
    pub total_bytes: u64,
    /// Entries made.
    pub created: u64,
    /// Files and links whose content was replaced.
    pub updated: u64,
    /// Entries of which only mode or time were set.
    pub adjusted: u64,
    /// Entries removed.
    pub deleted: u64,
    /// Regular files whose content was received or found equal.
    pub files: u64,
    /// Bytes of content that travelled, before compression.
    pub sent_bytes: u64,
    /// Bytes of content that were there already: staged, in the old version, or elsewhere.
    pub matched_bytes: u64,
    /// Files that were made by moving one that was to be removed; they count as created and deleted too.
    pub moved: u64,
    /// Files that were made by copying one that lies elsewhere.
    pub copied: u64,
}

impl Tally {
    /// Whether the destination is another than before.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        self.created + self.updated + self.adjusted + self.deleted > 0
    }

    /// Whether the numbers are such that sums of a few of them do not overflow. Content counts twice at most,
    /// when it arrives damaged and is asked for again.
    fn is_within_limits(&self) -> bool {
        let Self { entries, total_bytes, created, updated, adjusted, deleted, files, .. } = *self;
        let Self { sent_bytes, matched_bytes, moved, copied, .. } = *self;
        [entries, total_bytes, created, updated, adjusted, deleted, files]
            .into_iter()
            .chain([sent_bytes, matched_bytes, moved, copied])
            .all(|number| number <= 2 * manifest::CONTENT_BYTES_MAX)
    }
}

/// Why a side stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AbortKind {
    /// The other side broke the protocol.
    Protocol,
    /// The two ends are not of the same version.
    Version,
    /// What was named as source does not exist or cannot be listed.
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

/// Everything that is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// S: what is offered.
    Subject(Subject),
    /// S: the ignore files of the tree; what they exclude is not to be deleted.
    Ignores(Vec<IgnoreFile>),
    /// S: the next block of the manifest.
    Entries(ByteBuf),
    /// S: the manifest ends.
    Offered {
        /// Whether everything below the source could be listed. If not, nothing may be deleted.
        complete: bool,
    },
    /// S: what follows may be told as changes to the offer whose record has this digest.
    Base {
        /// The digest.
        digest: Hash,
    },
    /// S: the next part of what differs from the base.
    Changes(Change),
    /// S: the changes end.
    Changed {
        /// As in [`Message::Offered`].
        complete: bool,
        /// The digest of the record of what is offered now.
        digest: Hash,
    },
    /// R: the base is not known here, so all of the offer is needed.
    Forgotten,
    /// R: what has to travel.
    Wants(Vec<Want>),
    /// S: whole answers.
    Files(Vec<(u32, Body)>),
    /// S: the old versions of these files have their very content.
    Same {
        /// Which.
        ids: Vec<u32>,
        /// The hash of all their hashes.
        digest: Hash,
    },
    /// R: signatures of the old versions of files that differ; an empty one where it cannot be read any more.
    FileSignatures(Vec<(u32, ByteBuf)>),
    /// S: sign stretches of the old version.
    SignRequest {
        /// Of which file.
        id: u32,
        /// The stretches.
        windows: Vec<Window>,
    },
    /// R: the signatures, in order.
    Signatures {
        /// Of which file.
        id: u32,
        /// One for each window.
        signatures: Vec<ByteBuf>,
    },
    /// S: cut a stretch of the old version into content-defined chunks, with the [`Average`] for its length.
    CutRequest {
        /// Of which file.
        id: u32,
        /// The stretch.
        stretch: Stretch,
    },
    /// R: the chunks in order; none if the old version cannot be read any more.
    Chunks {
        /// Of which file.
        id: u32,
        /// The chunks.
        chunks: Vec<Chunk>,
    },
    /// S: the next steps of one file.
    Pieces {
        /// Which file.
        id: u32,
        /// The steps.
        ops: Vec<Op>,
        /// With the last ones: the hash of the whole.
        end: Option<Hash>,
    },
    /// R: everything is done.
    Finished(Tally),
    /// Agent: what it observed.
    Note(Event),
    /// Either: why it stops.
    Abort {
        /// Which kind of reason.
        kind: AbortKind,
        /// The reason in words.
        text: String,
    },
    /// S, before the subject: only these parts of the directory are offered, with the directories above them; one of
    /// several such messages.
    Scope(Vec<Part>),
    /// S: contents of small files of the offer, before it ends. What of it is not needed is passed over.
    Pushed(Vec<(u32, Hash, ByteBuf)>),
    /// R, at any time where rounds follow each other: the next round is to be about everything.
    Rescan,
    /// S: samples of large files of the offer that have changed, or may have, before it ends.
    Sampled(Vec<(u32, Samples)>),
    /// S: what of the offer takes no room, before it ends, if anything does.
    Holes(Holes),
    /// Either, when it has said nothing else for a while: that it lives. No engine sees it.
    Heartbeat {
        /// Whether it is at work, or something arrived since its last one.
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
    /// That the old versions of these files have their very content, by their hashes.
    #[must_use]
    pub fn same(files: &[(u32, Hash)]) -> Self {
        let ids = files.iter().map(|(id, _)| *id).collect();
        Self::Same { ids, digest: digest_of(files.iter().map(|(_, hash)| hash)) }
    }

    /// The wire form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let room = Vec::with_capacity(self.content_bytes() + 64);
        match encode::append(room, self) {
            Ok(bytes) => bytes,
            // Writing plain data to a `Vec` cannot fail.
            Err(error) => unreachable!("encoding a message: {error}"),
        }
    }

    /// Whether it carries deltas of small files. They are short and resemble each other.
    #[must_use]
    pub fn has_deltas(&self) -> bool {
        let Self::Files(files) = self else { return false };
        files.iter().any(|(_, body)| matches!(body, Body::Delta { .. }))
    }

    /// About how many bytes the contents take that it carries, so that they are copied into one place at once.
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

    /// Reads the wire form, with every limit checked.
    ///
    /// # Errors
    /// [`MessageError`].
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
            Self::Subject(Subject::Directory { mode, seconds, nanos, place: _ }) => {
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
            Self::Scope(parts) => parts.len() <= LIST_MAX,
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
            | Self::Base { .. }
            | Self::Changed { .. }
            | Self::Forgotten => true,
        }
    }
}

/// The hash of hashes.
pub fn digest_of<'a>(hashes: impl Iterator<Item = &'a Hash>) -> Hash {
    let mut hasher = Hasher::new();
    hashes.for_each(|hash| hasher.update(hash.as_bytes()));
    hasher.finish()
}

fn window_is_within_limits(window: &Window) -> bool {
    window.length as usize <= OLD_BYTES_MAX && is_stretch(window.offset, window.length.into())
}

/// Whether a file can have such a stretch; offsets that pass here can be added to.
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

/// Whether it is what any file could have; [`Want::fits`] tells whether it is what this one has.
fn want_is_within_limits(want: &Want) -> bool {
    [want.staged.as_ref(), want.old_blocks()]
        .into_iter()
        .flatten()
        .all(|blocks| blocks.length <= SIZE_MAX && blocks.ids.len() as u64 <= 2 * BLOCKS_MAX)
}
