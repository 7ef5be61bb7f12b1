//! `Source`: one larger file on its way out.
//!
//! Where the receiver has nothing of it, it is read and sent once. Otherwise it is read once to find, chunk
//! by chunk, what the receiver has (and to hash it), and a second time for what is missing. What lies
//! between found chunks is a *gap*; if the old version has something in the same place, the fine delta is
//! tried on it.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use serde_bytes::ByteBuf;

use crate::content::chunk::{self, Average, ChunkId};
use crate::content::delta::{NEW_BYTES_MAX, OLD_BYTES_MAX, Signature};
use crate::content::hash::{Hash, Hasher};
use crate::disk::stat::Identity;
use crate::engine::SourceNext;
use crate::wire::message::{CONTENT_BYTES_MAX, Old, Op, Staged, WINDOWS_MAX, Want, Window};

/// How far to both sides of a gap's place in the old version the delta looks, in bytes, where the gap is too
/// long to compare as a whole.
const SLACK_BYTES: u64 = 64 << 10;

/// A gap shorter than this, in bytes, is sent as it is: its signature would cost as much.
const GAP_BYTES_MIN: u64 = 1 << 10;

/// After so many bytes of gaps without success the delta is given up for this file: searching costs 2 s for
/// 100 MB, sending does not.
const FUTILE_BYTES: u64 = 4 << 20;

/// Most steps in one message.
const OPS_MAX: usize = 4096;

/// Why a file cannot be sent.
#[derive(Debug)]
pub(super) enum SourceError {
    /// It cannot be read.
    Read(std::io::Error),
    /// The receiver's signatures are not what was asked for.
    Peer(String),
}

impl From<std::io::Error> for SourceError {
    fn from(error: std::io::Error) -> Self {
        Self::Read(error)
    }
}

/// A stretch of the new content and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Segment {
    /// It stands in the old version.
    Old { offset: u64, length: u64 },
    /// It has to be sent.
    New { offset: u64, length: u64 },
    /// It may resemble a stretch of the old version; at most [`NEW_BYTES_MAX`] long.
    Gap { offset: u64, length: u64, window: Window },
}

pub(super) struct Source {
    file: File,
    /// What was offered; the file must still be that in the end.
    pub(super) identity: Identity,
    plan: VecDeque<Segment>,
    /// The whole hash, if a first pass found it; else what a single pass has seen.
    hash: Option<Hash>,
    hasher: Hasher,
    first_ops: Vec<Op>,
    same: bool,
    /// Signatures that came, by window.
    signatures: HashMap<(u64, u32), Vec<u8>>,
    asked: Vec<Window>,
    gap_bytes: u64,
    saved_bytes: u64,
    futile: bool,
}

impl Source {
    /// Begins with a file of this identity.
    pub(super) fn begin(file: File, identity: Identity, want: &Want) -> Result<Self, SourceError> {
        let size = identity.size;
        let mut source = Self {
            file,
            identity,
            plan: VecDeque::new(),
            hash: None,
            hasher: Hasher::new(),
            first_ops: Vec::new(),
            same: false,
            signatures: HashMap::new(),
            asked: Vec::new(),
            gap_bytes: 0,
            saved_bytes: 0,
            futile: false,
        };
        if want.old.is_none() && want.staged.is_none() {
            source.plan.extend((size > 0).then_some(Segment::New { offset: 0, length: size }));
        } else {
            source.match_old(want)?;
        }
        Ok(source)
    }

    /// Reads the file once and finds what the receiver has of it.
    fn match_old(&mut self, want: &Want) -> Result<(), SourceError> {
        let old = OldIndex::new(want.old.as_ref());
        let mut prefix = Prefix::new(want.staged.as_ref());
        let mut found = Vec::new();
        let mut hasher = Hasher::new();
        let average =
            want.old.as_ref().map(|old| old.average).or_else(|| Average::for_size(self.identity.size));
        let average = average.ok_or_else(|| SourceError::Peer("a file too long to be cut".to_owned()))?;
        let (mut at, mut expected) = (0, None);
        // What is appended meanwhile was not offered; that it was shows in the end.
        let offered = (&self.file).take(self.identity.size);
        chunk::cut(offered, average, |bytes| {
            hasher.update(bytes);
            prefix.update(bytes);
            let length = bytes.len() as u64;
            let here = if old.is_empty() { None } else { old.find(ChunkId::of(bytes), length, expected) };
            expected = here.map(|offset| offset + length);
            found.push(match here {
                Some(offset) => Segment::Old { offset, length },
                None => Segment::New { offset: at, length },
            });
            at += length;
        })?;
        self.hash = Some(hasher.finish());
        let kept = prefix.finish();
        if kept > 0 {
            self.first_ops.push(Op::Keep { length: kept });
        }
        let merged = merge(found, kept);
        let whole = Segment::Old { offset: 0, length: at };
        self.same = kept == 0 && old.length == at && (merged == [whole] || at == 0);
        self.plan = with_gaps(merged, old.length);
        Ok(())
    }

    /// Takes in the signatures that were asked for; none means that they cannot be had.
    pub(super) fn signatures(&mut self, signatures: Vec<Vec<u8>>) {
        if signatures.is_empty() {
            self.futile = true;
        }
        let asked = std::mem::take(&mut self.asked);
        self.signatures =
            asked.into_iter().map(|window| (window.offset, window.length)).zip(signatures).collect();
    }

    /// The next steps, about a megabyte of content, and what has to happen then.
    pub(super) fn produce(&mut self) -> Result<(Vec<Op>, SourceNext), SourceError> {
        if let (true, Some(hash)) = (self.same, self.hash) {
            return Ok((Vec::new(), SourceNext::Same(hash)));
        }
        let mut ops = std::mem::take(&mut self.first_ops);
        let mut bytes = 0;
        while let Some(segment) = self.plan.front().copied() {
            if bytes >= CONTENT_BYTES_MAX as u64 || ops.len() >= OPS_MAX {
                return Ok((ops, SourceNext::More));
            }
            match segment {
                Segment::Old { offset, length } => {
                    self.plan.pop_front();
                    ops.push(Op::Copy { offset, length });
                }
                Segment::New { offset, length } => {
                    let now = length.min(CONTENT_BYTES_MAX as u64 - bytes);
                    ops.push(Op::Data(ByteBuf::from(self.read(offset, now)?)));
                    self.advance(now);
                    bytes += now;
                }
                Segment::Gap { offset, length, window } => {
                    let key = (window.offset, window.length);
                    if !self.futile && !self.signatures.contains_key(&key) {
                        return Ok((ops, SourceNext::Sign(self.next_windows())));
                    }
                    // A gap may be as long as what is left of this message.
                    let op = self.fill_gap(offset, length, window)?;
                    bytes += op.sent_bytes();
                    ops.push(op);
                    self.plan.pop_front();
                }
            }
        }
        let hash = self.hash.unwrap_or_else(|| self.hasher.finish());
        Ok((ops, SourceNext::End(hash)))
    }

    /// The first segment has been sent up to here.
    fn advance(&mut self, sent: u64) {
        match self.plan.front_mut() {
            Some(Segment::New { offset, length }) if *length > sent => {
                *offset += sent;
                *length -= sent;
            }
            _ => {
                self.plan.pop_front();
            }
        }
    }

    fn read(&mut self, offset: u64, length: u64) -> Result<Vec<u8>, SourceError> {
        // At most `CONTENT_BYTES_MAX`.
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, offset)?;
        if self.hash.is_none() {
            self.hasher.update(&bytes);
        }
        Ok(bytes)
    }

    fn fill_gap(&mut self, offset: u64, length: u64, window: Window) -> Result<Op, SourceError> {
        let new = self.read(offset, length)?;
        let Some(entries) = self.signatures.get(&(window.offset, window.length)).filter(|_| !self.futile)
        else {
            return Ok(Op::Data(ByteBuf::from(new)));
        };
        let peer = |error: crate::content::delta::DeltaError| SourceError::Peer(error.to_string());
        let signature = Signature::check(entries, window.length as usize).map_err(peer)?;
        let delta = signature.diff(&new).map_err(peer)?;
        self.gap_bytes += length;
        let Some(delta) = delta else {
            self.futile = self.gap_bytes >= FUTILE_BYTES && self.saved_bytes < self.gap_bytes / 20;
            return Ok(Op::Data(ByteBuf::from(new)));
        };
        self.saved_bytes += length - delta.len() as u64;
        // At most `NEW_BYTES_MAX`.
        Ok(Op::Delta { window, length: length as u32, delta: ByteBuf::from(delta) })
    }

    /// The windows of the next gaps, each once, as many as one message may ask for.
    fn next_windows(&mut self) -> Vec<Window> {
        self.asked.clear();
        for segment in &self.plan {
            let Segment::Gap { window, .. } = *segment else { continue };
            if self.asked.last() != Some(&window) {
                if self.asked.len() == WINDOWS_MAX {
                    break;
                }
                self.asked.push(window);
            }
        }
        self.asked.clone()
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

/// Where each chunk of the old version stands.
struct OldIndex {
    offsets: HashMap<(ChunkId, u64), u64>,
    at: HashMap<u64, (ChunkId, u64)>,
    length: u64,
}

impl OldIndex {
    fn new(old: Option<&Old>) -> Self {
        let mut index = Self { offsets: HashMap::new(), at: HashMap::new(), length: 0 };
        for chunk in old.map(|old| old.chunks.as_slice()).unwrap_or_default() {
            let name = (chunk.id, u64::from(chunk.length));
            index.offsets.entry(name).or_insert(index.length);
            index.at.insert(index.length, name);
            index.length += u64::from(chunk.length);
        }
        index
    }

    fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// An offset of this chunk: `expected`, which continues what came before, if it stands there.
    fn find(&self, id: ChunkId, length: u64, expected: Option<u64>) -> Option<u64> {
        let name = (id, length);
        expected.filter(|at| self.at.get(at) == Some(&name)).or_else(|| self.offsets.get(&name).copied())
    }
}

/// Compares the content, as it goes by, with the blocks of a staged prefix.
struct Prefix<'a> {
    staged: Option<&'a Staged>,
    block_bytes: u64,
    block: Vec<u8>,
    next: usize,
    kept: u64,
    broken: bool,
}

impl<'a> Prefix<'a> {
    fn new(staged: Option<&'a Staged>) -> Self {
        let block_bytes = staged.map_or(0, |staged| Staged::block_bytes(staged.length));
        Self { staged, block_bytes, block: Vec::new(), next: 0, kept: 0, broken: staged.is_none() }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while !self.broken && !bytes.is_empty() {
            let due = self.due();
            let room = usize::try_from(due - self.block.len() as u64).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() as u64 == due {
                self.close_block();
            }
        }
    }

    /// The length of the block that is being filled.
    fn due(&self) -> u64 {
        let left = self.staged.map_or(0, |staged| staged.length) - self.kept;
        left.min(self.block_bytes)
    }

    fn close_block(&mut self) {
        let wanted = self.staged.and_then(|staged| staged.blocks.get(self.next));
        if wanted == Some(&ChunkId::of(&self.block)) {
            self.kept += self.block.len() as u64;
            self.next += 1;
            self.block.clear();
        } else {
            self.broken = true;
        }
        self.broken |= self.due() == 0;
    }

    /// How many bytes of the prefix are right.
    fn finish(self) -> u64 {
        self.kept
    }
}

/// Joins neighbours that continue each other and leaves out the first `kept` bytes.
fn merge(segments: Vec<Segment>, kept: u64) -> Vec<Segment> {
    let mut merged: Vec<Segment> = Vec::new();
    let mut at = 0;
    for segment in segments {
        let (Segment::Old { length, .. } | Segment::New { length, .. } | Segment::Gap { length, .. }) =
            segment;
        let cut = kept.saturating_sub(at).min(length);
        at += length;
        if cut == length {
            continue;
        }
        match (merged.last_mut(), segment) {
            (Some(Segment::Old { offset: last, length: so_far }), Segment::Old { offset, .. })
                if *last + *so_far == offset =>
            {
                *so_far += length;
            }
            (Some(Segment::New { length: so_far, .. }), Segment::New { .. }) => *so_far += length,
            (_, Segment::Old { offset, .. }) => {
                merged.push(Segment::Old { offset: offset + cut, length: length - cut });
            }
            (_, Segment::New { offset, .. } | Segment::Gap { offset, .. }) => {
                merged.push(Segment::New { offset: offset + cut, length: length - cut });
            }
        }
    }
    merged
}

/// Turns what has to be sent into gaps where the old version has something in the same place.
fn with_gaps(segments: Vec<Segment>, old_length: u64) -> VecDeque<Segment> {
    let mut plan = VecDeque::new();
    // Where in the old version the last found chunk ends.
    let mut old_end = 0;
    for (index, segment) in segments.iter().enumerate() {
        match *segment {
            Segment::Old { offset, length } => {
                old_end = offset + length;
                plan.push_back(*segment);
            }
            Segment::New { offset, length } | Segment::Gap { offset, length, .. } => {
                let next_start = match segments.get(index + 1) {
                    Some(Segment::Old { offset, .. }) => *offset,
                    _ => old_length,
                };
                let old = old_end..next_start.max(old_end);
                if length < GAP_BYTES_MIN || old.is_empty() {
                    plan.push_back(Segment::New { offset, length });
                } else {
                    plan.extend(gaps(offset, length, old));
                }
            }
        }
    }
    plan
}

/// Cuts a gap into pieces that one delta can cover.
fn gaps(offset: u64, length: u64, old: std::ops::Range<u64>) -> impl Iterator<Item = Segment> {
    let old_length = old.end - old.start;
    (0..length).step_by(NEW_BYTES_MAX).map(move |from| {
        let piece = (length - from).min(NEW_BYTES_MAX as u64);
        let (start, end) = if old_length <= OLD_BYTES_MAX as u64 {
            (old.start, old.end)
        } else {
            let start = (old.start + from).saturating_sub(SLACK_BYTES).clamp(old.start, old.end);
            (start, (old.start + from + piece + SLACK_BYTES).min(old.end))
        };
        if start >= end {
            return Segment::New { offset: offset + from, length: piece };
        }
        // At most `OLD_BYTES_MAX`.
        let window = Window { offset: start, length: (end - start) as u32 };
        Segment::Gap { offset: offset + from, length: piece, window }
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;
    use crate::disk::stat::identity_of;
    use crate::exchange::sink::chunks_of;

    #[test]
    fn a_file_that_grows_gives_no_more_than_was_offered() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 3_000_000]).unwrap();
        let identity = identity_of(&file).unwrap();
        file.rewind().unwrap();
        let (old, _) = chunks_of(&file.try_clone().unwrap(), Average::for_size(0).unwrap()).unwrap();
        file.write_all(&vec![8; 3_000_000]).unwrap();
        file.rewind().unwrap();

        let want = Want { id: 0, staged: None, old: Some(old) };
        let mut source = Source::begin(file, identity, &want).unwrap();
        let mut made = 0;
        loop {
            let (ops, next) = source.produce().unwrap();
            made += ops.iter().map(Op::made_bytes).sum::<u64>();
            match next {
                SourceNext::More => {}
                SourceNext::Sign(_) => source.signatures(Vec::new()),
                SourceNext::End(_) | SourceNext::Same(_) => break,
            }
        }
        assert!(made <= identity.size, "{made}");
    }
}
