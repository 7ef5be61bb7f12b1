//! `Source`: one larger file on its way out.
//!
//! If the receiver has nothing of it, the file is read and sent once. Otherwise it is read once to
//! find the parts that the receiver has (and to hash it), in the steps of
//! [`delta_plan`](super::delta_plan). It is read a second time for the missing parts.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde_bytes::ByteBuf;

use crate::content::blocks::{BlockId, BlockSize, Content, Outline, block_id, block_ids, outline};
use crate::content::chunk::{Average, Chunk};
use crate::content::delta::Signature;
use crate::content::hash::{Hash, Hasher};
use crate::content::shift_map::ShiftMap;
use crate::disk::holes::SparseFile;
use crate::disk::stat::Identity;
use crate::engine::SourceNext;
use crate::exchange::basis::chunks_of;
use crate::exchange::delta_plan::{self, Segment, ToCut};
use crate::wire::message::{BasisReport, Blocks, CONTENT_BYTES_MAX, Op, WINDOWS_MAX, Want, Window};

/// Bytes of gaps without success after which this file's delta is given up: searching costs 2 s for
/// 100 MB, sending does not.
const FUTILE_BYTES: u64 = 4 << 20;

/// Most steps in one message.
const OPS_MAX: usize = 4096;

/// Failure to send a file.
#[derive(Debug)]
pub(super) enum SourceError {
    /// The file cannot be read.
    Read(std::io::Error),
    /// The receiver's signatures or chunks do not match the request.
    Peer(String),
}

impl From<std::io::Error> for SourceError {
    fn from(error: std::io::Error) -> Self {
        Self::Read(error)
    }
}

pub(super) struct Source {
    file: File,
    /// Identity of the offered file; the file must still have it in the end.
    pub(super) identity: Identity,
    plan: VecDeque<Segment>,
    /// The hash of the whole file, if a first pass found it.
    hash: Option<Hash>,
    hasher: Hasher,
    first_ops: Vec<Op>,
    /// True if the tail of the basis was found at another offset.
    is_shifted: bool,
    same: bool,
    basis_length: u64,
    /// The ranges to cut, with all segments of the file.
    cut: Option<(ToCut, Vec<Segment>)>,
    /// The chunks of the sender's range.
    chunks: Vec<Chunk>,
    /// Signatures that arrived, by window.
    signatures: HashMap<(u64, u32), Vec<u8>>,
    asked: Vec<Window>,
    /// Up to here there is no hole: searching for one may take long.
    data_end: u64,
    gap_bytes: u64,
    saved_bytes: u64,
    futile: bool,
}

impl Source {
    /// Begins with a file of this identity. `prehashed` is called for its outline when that is
    /// needed.
    pub(super) fn begin(
        file: File,
        identity: Identity,
        want: &Want,
        prehashed: impl FnOnce() -> Option<Outline>,
    ) -> Result<Self, SourceError> {
        let size = identity.size;
        let mut source = Self {
            file,
            identity,
            plan: VecDeque::new(),
            hash: None,
            hasher: Hasher::new(),
            first_ops: Vec::new(),
            is_shifted: false,
            same: false,
            basis_length: want.basis_blocks().map_or(0, |basis| basis.length),
            cut: None,
            chunks: Vec::new(),
            signatures: HashMap::new(),
            asked: Vec::new(),
            data_end: 0,
            gap_bytes: 0,
            saved_bytes: 0,
            futile: false,
        };
        if want.basis.is_none() && want.staged.is_none() {
            source.plan.extend((size > 0).then_some(Segment::New { offset: 0, length: size }));
        } else {
            source.find(want, prehashed())?;
        }
        Ok(source)
    }

    /// The strategy and its reason, as pairs for the log.
    pub(super) fn how(&self) -> String {
        if self.same || self.hash.is_none() {
            return if self.same { "same why=equal-blocks" } else { "whole why=no-basis" }.to_owned();
        }
        let how = if self.cut.is_some() {
            "chunks why=long-range-not-in-place"
        } else if self.is_shifted {
            "blocks why=tail-moved"
        } else {
            "blocks why=basis"
        };
        let segments = self.cut.iter().flat_map(|(_, segments)| segments).chain(&self.plan);
        let matched: u64 = segments.filter_map(Segment::basis_length).sum();
        format!("{how} matched_bytes={matched} kept_part={}", !self.first_ops.is_empty())
    }

    /// Finds the blocks that the receiver has.
    fn find(&mut self, want: &Want, prehashed: Option<Outline>) -> Result<(), SourceError> {
        let size = self.identity.size;
        let block = BlockSize::for_size(size);
        let Outline { ids, hash } = match prehashed {
            Some(outline) => outline,
            None => outline(size, block, &SparseFile::of(&self.file, size))?,
        };
        self.hash = Some(hash);
        let kept = match &want.staged {
            Some(staged) => self.kept(staged, block, &ids)?,
            None => 0,
        };
        if kept > 0 {
            self.first_ops.push(Op::Keep { length: kept });
        }
        let nothing = Blocks { length: 0, ids: Vec::new() };
        let basis = want.basis_blocks().unwrap_or(&nothing);
        self.same = want.basis_blocks().is_some() && kept == 0 && basis.length == size && basis.ids == ids;
        let range_removed = match &want.basis {
            // The engine checked it when the want arrived.
            Some(BasisReport::RangeRemoved { blocks, split }) => ShiftMap::new(blocks.length, size, *split),
            _ => None,
        };
        let shift_map = range_removed.unwrap_or(ShiftMap::same(basis.length));
        let mut segments =
            delta_plan::without_prefix(delta_plan::aligned(size, block, &ids, basis, shift_map), kept);
        if range_removed.is_none()
            && let Some(shifted) = delta_plan::shifted(&segments, kept, size, block, basis)
            && let Some(found) = self.find_shifted(shifted.blocks.clone(), block, basis)?
        {
            self.is_shifted = true;
            segments = delta_plan::reshift(&segments, &shifted, size, block, &found, basis);
        }
        match delta_plan::to_cut(&segments, kept, basis.length) {
            Some(cut) => self.cut = Some((cut, segments)),
            None => self.plan = delta_plan::with_gaps(&segments, basis.length),
        }
        Ok(())
    }

    /// Names the blocks that the basis would have if its tail were moved to the new end. `None` if
    /// none of the last few matches.
    fn find_shifted(
        &self,
        blocks: Range<u64>,
        block: BlockSize,
        basis: &Blocks,
    ) -> Result<Option<Vec<BlockId>>, SourceError> {
        const PROBE: u64 = 4;
        let size = self.identity.size;
        let moved = Moved { file: SparseFile::of(&self.file, size), size, basis_length: basis.length };
        let find = |blocks: Range<u64>| block_ids(blocks, basis.length, block, &moved);
        let last = blocks.end.saturating_sub(PROBE).max(blocks.start)..blocks.end;
        let probed = find(last.clone())?;
        let known = basis.ids.get(last.start as usize..).unwrap_or_default();
        let is_worth_it = probed.iter().zip(known).any(|(found, known)| found == known);
        Ok(if is_worth_it { Some(find(blocks)?) } else { None })
    }

    /// Number of right bytes in a staged prefix.
    fn kept(&self, staged: &Blocks, block: BlockSize, ids: &[BlockId]) -> Result<u64, SourceError> {
        let length = staged.length.min(self.identity.size);
        let same = staged.ids.iter().zip(ids).take_while(|(staged, new)| staged == new).count();
        let kept = (same as u64 * block.bytes()).min(length);
        let rest = length - kept;
        if rest == 0 || rest >= block.bytes() {
            return Ok(kept);
        }
        // The last block of a prefix is usually incomplete.
        let beginning = block_id(kept, rest, &SparseFile::of(&self.file, rest))?;
        Ok(if staged.ids.get(same) == Some(&beginning) { length } else { kept })
    }

    /// Cuts this file while the receiver cuts the basis.
    pub(super) fn cut(&mut self) -> Result<(), SourceError> {
        if let Some((ToCut { new, basis, .. }, _)) = &self.cut {
            let mut file = &self.file;
            file.seek(SeekFrom::Start(new.start))?;
            self.chunks = chunks_of(&mut file.take(new.end - new.start), average(basis.length)?)?;
        }
        Ok(())
    }

    /// Takes in the requested chunks; an empty list means that they are unavailable.
    pub(super) fn chunks(&mut self, theirs: &[Chunk]) -> Result<(), SourceError> {
        let Some((cut, segments)) = self.cut.take() else { return Ok(()) };
        let length: u64 = theirs.iter().map(|chunk| u64::from(chunk.length)).sum();
        if !theirs.is_empty() && length != cut.basis.length {
            return Err(SourceError::Peer("chunks do not cover what was to be cut".to_owned()));
        }
        self.futile = theirs.is_empty();
        let ours = std::mem::take(&mut self.chunks);
        let inside = delta_plan::matched(&ours, cut.new.start, theirs, cut.basis.offset);
        self.plan = delta_plan::with_gaps(&delta_plan::recut(&segments, &cut, inside), self.basis_length);
        Ok(())
    }

    /// Takes in the requested signatures; an empty list means that they are unavailable.
    pub(super) fn signatures(&mut self, signatures: Vec<Vec<u8>>) {
        if signatures.is_empty() {
            self.futile = true;
        }
        let asked = std::mem::take(&mut self.asked);
        self.signatures =
            asked.into_iter().map(|window| (window.offset, window.length)).zip(signatures).collect();
    }

    /// Returns the next steps, about 1 MiB of content, and the next need.
    pub(super) fn produce(&mut self) -> Result<(Vec<Op>, SourceNext), SourceError> {
        if let (true, Some(hash)) = (self.same, self.hash) {
            return Ok((Vec::new(), SourceNext::Same(hash)));
        }
        if let Some((cut, _)) = &self.cut {
            return Ok((Vec::new(), SourceNext::Cut(cut.basis)));
        }
        let mut ops = std::mem::take(&mut self.first_ops);
        let mut bytes = 0;
        while let Some(segment) = self.plan.front().copied() {
            if bytes >= CONTENT_BYTES_MAX as u64 || ops.len() >= OPS_MAX {
                return Ok((ops, SourceNext::More));
            }
            match segment {
                Segment::Basis { offset, length } => {
                    self.plan.pop_front();
                    ops.push(Op::Copy { offset, length });
                }
                Segment::New { offset, length } => {
                    if offset >= self.data_end {
                        let file = SparseFile::of(&self.file, length);
                        let run = file.first_run(&(offset..offset + length));
                        if run.is_hole {
                            ops.push(self.zeros(run.length));
                            self.advance(run.length);
                            continue;
                        }
                        self.data_end = offset + run.length;
                    }
                    let run = length.min(self.data_end - offset);
                    let now = run.min(CONTENT_BYTES_MAX as u64 - bytes);
                    ops.push(Op::Data(ByteBuf::from(self.read(offset, now)?)));
                    self.advance(now);
                    bytes += now;
                }
                Segment::Gap { offset, length, window } => {
                    if SparseFile::of(&self.file, length).zeros_at(offset) >= length {
                        ops.push(self.zeros(length));
                        self.plan.pop_front();
                        continue;
                    }
                    let key = (window.offset, window.length);
                    if !self.futile && !self.signatures.contains_key(&key) {
                        return Ok((ops, SourceNext::Sign(self.next_windows())));
                    }
                    // A gap may be longer than the rest of this message.
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

    /// Advances the first segment by the bytes that were sent.
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

    fn zeros(&mut self, length: u64) -> Op {
        if self.hash.is_none() {
            self.hasher.zeros(length);
        }
        Op::Zeros { length }
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

    /// Windows of the next gaps, each once, as many as one message may request.
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

/// A view of a file of `size` bytes that aligns its end with the end of a basis of `basis_length`
/// bytes.
struct Moved<'a> {
    file: SparseFile<&'a File>,
    size: u64,
    basis_length: u64,
}

impl Moved<'_> {
    fn place(&self, offset: u64) -> u64 {
        offset.saturating_add(self.size).saturating_sub(self.basis_length)
    }
}

impl Content for Moved<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buffer, self.place(offset))
    }

    fn zeros_at(&self, offset: u64) -> u64 {
        self.file.zeros_at(self.place(offset))
    }
}

/// Average chunk length for a range of this length.
fn average(length: u64) -> Result<Average, SourceError> {
    Average::for_size(length).ok_or_else(|| SourceError::Peer("a stretch too long to be cut".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::disk::stat::identity_of;

    #[test]
    fn file_that_grows_gives_no_more_than_was_offered() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 3_000_000]).unwrap();
        let identity = identity_of(&file).unwrap();
        file.rewind().unwrap();
        let block = BlockSize::for_size(identity.size);
        let outline = outline(identity.size, block, &SparseFile::of(&file, identity.size)).unwrap();
        file.write_all(&vec![8; 3_000_000]).unwrap();
        file.rewind().unwrap();

        let basis = Blocks { length: identity.size, ids: outline.ids };
        let want = Want { id: 0, staged: None, basis: Some(BasisReport::Blocks(basis)) };
        let mut source = Source::begin(file, identity, &want, || None).unwrap();
        let mut made = 0;
        loop {
            let (ops, next) = source.produce().unwrap();
            made += ops.iter().map(Op::made_bytes).sum::<u64>();
            match next {
                SourceNext::More => {}
                SourceNext::Sign(_) => source.signatures(Vec::new()),
                SourceNext::Cut(_) | SourceNext::Chunks => source.chunks(&[]).unwrap(),
                SourceNext::End(_) | SourceNext::Same(_) => break,
            }
        }
        assert!(made <= identity.size, "{made}");
    }
}
