//! The sender's half of a transfer.
//!
//! If the receiver has nothing of a file, the file is read and sent once. Otherwise it is read once
//! to find the parts that the receiver has, and to hash it, in the steps of `plan`. It is read a
//! second time for the missing parts. A small file is compared as a whole: its delta is one gap.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;

use serde_bytes::ByteBuf;

use super::basis::average_for;
use super::plan::{self, Segment, ToCut};
use super::{Difference, Source, SourceFile, broken};
use crate::content::blocks::{
    BlockId, BlockSize, Content, Outline, block_id, block_ids, outline, outline_of,
};
use crate::content::chunk::{Chunk, cut_range};
use crate::content::delta::{DeltaError, Signature};
use crate::content::hash::{Hash, Hasher};
use crate::content::shift_map::ShiftMap;
use crate::engine::error::WorkError;
use crate::engine::limits::Limits;
use crate::monitor::ProblemKind;
use crate::wire::message::{BasisReport, Blocks, Op, Stretch, WINDOWS_MAX, Want, Window};

/// Bytes of gaps without success after which this file's delta is given up: searching costs 2 s for
/// 100 MB, sending does not.
const FUTILE_BYTES: u64 = 4 << 20;

/// Most steps in one message.
const OPS_MAX: usize = 4096;

/// One file on its way out.
#[derive(Debug)]
pub struct SendTransfer<F> {
    id: u32,
    size: u64,
    limits: Limits,
    /// True if the file is read and compared as a whole.
    is_small: bool,
    /// The file, while its content is read in several steps.
    file: Option<F>,
    /// The content of a small file, once it is read.
    data: Option<Vec<u8>>,
    strategy: SendStrategy,
    /// The hash of the whole file, if it is known before the file is sent.
    hash: Option<Hash>,
    /// Hashes a larger file while it is sent, if its hash is not known before.
    hasher: Option<Box<Hasher>>,
    basis_length: u64,
    /// Bytes that the receiver has, as far as is known.
    matched_bytes: u64,
    /// Signatures that arrived, by window.
    signatures: HashMap<Window, Vec<u8>>,
    asked: Vec<Window>,
    /// Up to here there is no hole: searching for one may take long.
    data_end: u64,
    gap_bytes: u64,
    saved_bytes: u64,
    /// True if deltas are not tried any more.
    is_futile: bool,
    has_grown: bool,
}

/// The way in which a file is sent.
#[derive(Debug)]
enum SendStrategy {
    /// Not chosen yet.
    Undecided {
        want: Want,
        /// True if a signature is worth a round trip when the basis of a small file differs.
        may_ask: bool,
    },
    /// A small file travels whole.
    Whole,
    /// The basis equals the file, which has this hash.
    Same(Hash),
    /// Both sides cut a range into chunks; then the plan is complete.
    Chunks { to_cut: ToCut, segments: Vec<Segment>, ours: Vec<Chunk>, kept: u64 },
    /// The segments that are left to send.
    Planned { plan: VecDeque<Segment>, kept: u64, is_shifted: bool },
}

/// An input of a transfer.
#[derive(Debug)]
pub enum SendInput {
    /// Open the file and find out how much of it the receiver has.
    Begin,
    /// Continue with the signatures of the requested windows; none if they are unavailable.
    Signatures(Vec<Vec<u8>>),
    /// Cut the file into chunks while the receiver cuts the basis.
    Cut,
    /// Continue with these chunks of the basis; none if they are unavailable.
    Chunks(Vec<Chunk>),
    /// Continue.
    More,
}

/// The next need of a transfer.
#[derive(Debug, PartialEq, Eq)]
pub enum SendNext {
    /// Another step.
    More,
    /// Signatures of these ranges of the basis.
    Sign(Vec<Window>),
    /// The chunks of this range of the basis, and [`SendInput::Cut`] at the same time.
    Cut(Stretch),
    /// The receiver's chunks, already requested; the sender's own are cut.
    Chunks,
    /// Nothing: the file ends with this hash.
    End(Hash),
    /// Nothing: the file equals its basis, which has this hash.
    Same(Hash),
}

impl<F: SourceFile> SendTransfer<F> {
    /// A transfer that has not begun. The want must fit the file's size.
    pub(crate) fn new(want: Want, size: u64, may_ask: bool, limits: Limits) -> Self {
        Self {
            id: want.id,
            size,
            limits,
            is_small: want.is_small(size),
            file: None,
            data: None,
            basis_length: want.basis_length(),
            matched_bytes: 0,
            strategy: SendStrategy::Undecided { want, may_ask },
            hash: None,
            hasher: None,
            signatures: HashMap::new(),
            asked: Vec::new(),
            data_end: 0,
            gap_bytes: 0,
            saved_bytes: 0,
            is_futile: false,
            has_grown: false,
        }
    }

    /// The file's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// True if the file is read and compared as a whole.
    pub(crate) fn is_small(&self) -> bool {
        self.is_small
    }

    /// Performs one step. Returns steps for the receiver, about 1 MiB of content, and the next
    /// need.
    ///
    /// # Errors
    /// The file cannot be read or has changed, or the receiver broke the protocol.
    pub fn step(
        &mut self,
        source: &impl Source<File = F>,
        input: SendInput,
    ) -> Result<(Vec<Op>, SendNext), WorkError> {
        let file = match self.file.take() {
            Some(file) => file,
            None => source.open(self.id)?,
        };
        match input {
            SendInput::Begin => self.begin(&file)?,
            SendInput::Signatures(signatures) => self.take_signatures(signatures),
            SendInput::Cut => {
                self.cut(&file)?;
                self.file = Some(file);
                return Ok((Vec::new(), SendNext::Chunks));
            }
            SendInput::Chunks(theirs) => self.take_chunks(&theirs)?,
            SendInput::More => {}
        }
        let (ops, next) = self.produce(&file)?;
        match next {
            SendNext::End(hash) | SendNext::Same(hash) => self.confirm(&file, hash)?,
            // Thousands of small files may wait for signatures.
            SendNext::Sign(_) if self.is_small => self.data = None,
            _ => self.file = Some(file),
        }
        Ok((ops, next))
    }

    /// Fails if the content of this hash is not the beginning of the file any more. A file that was
    /// only appended to still begins with it.
    fn confirm(&mut self, file: &F, hash: Hash) -> Result<(), WorkError> {
        let difference = file.difference().map_err(read_error)?;
        if difference == Difference::None {
            return Ok(());
        }
        let is_prefix = difference != Difference::Other
            && outline(self.size, BlockSize::for_size(self.size), file).map_err(read_error)?.hash == hash;
        self.has_grown = difference == Difference::Longer;
        if is_prefix { Ok(()) } else { Err(changed()) }
    }

    /// True if the file grew while it was read. The content that was sent is its beginning.
    pub(crate) fn has_grown(&self) -> bool {
        self.has_grown
    }

    /// The strategy and its reason, as pairs for the log.
    #[must_use]
    pub fn how(&self) -> String {
        let how = match &self.strategy {
            SendStrategy::Same(_) => return "same why=equal-blocks".to_owned(),
            _ if self.basis_length == 0 && self.matched_bytes == 0 => return "whole why=no-basis".to_owned(),
            _ if self.is_small && self.asked.is_empty() && self.saved_bytes == 0 => {
                return "whole why=basis-differs".to_owned();
            }
            _ if self.is_small => return "delta why=basis-differs".to_owned(),
            SendStrategy::Chunks { .. } => "chunks why=long-range-not-in-place",
            SendStrategy::Planned { is_shifted: true, .. } => "blocks why=tail-moved",
            SendStrategy::Planned { .. } | SendStrategy::Undecided { .. } | SendStrategy::Whole => {
                "blocks why=basis"
            }
        };
        format!("{how} matched_bytes={}", self.matched_bytes)
    }

    fn begin(&mut self, file: &F) -> Result<(), WorkError> {
        let SendStrategy::Undecided { want, may_ask } = &mut self.strategy else { return Ok(()) };
        let (Want { staged, basis, .. }, may_ask) = (std::mem::replace(want, Want::whole(self.id)), *may_ask);
        let all = Segment::New { offset: 0, length: self.size };
        self.strategy = match basis {
            None if staged.is_none() && self.is_small => SendStrategy::Whole,
            None if staged.is_none() => {
                file.cancel_prehash();
                SendStrategy::of(all)
            }
            Some(BasisReport::Signed { signature, .. }) => {
                let window = self.whole_basis();
                self.signatures.insert(window, signature.into_vec());
                SendStrategy::of(Segment::Gap { offset: 0, length: self.size, window })
            }
            basis if self.is_small => {
                // At most `SMALL_BYTES_MAX`.
                let data = file.read(0, self.size as usize).map_err(read_error)?;
                let Outline { ids, hash } = outline_of(&data, BlockSize::for_size(self.size));
                (self.data, self.hash) = (Some(data), Some(hash));
                let is_same = basis
                    .as_ref()
                    .and_then(BasisReport::blocks)
                    .is_some_and(|basis| basis.length == self.size && basis.ids == ids);
                if is_same {
                    SendStrategy::Same(hash)
                } else if may_ask {
                    let window = self.whole_basis();
                    SendStrategy::of(Segment::Gap { offset: 0, length: self.size, window })
                } else {
                    SendStrategy::Whole
                }
            }
            basis => self.compare(file, staged.as_ref(), basis.as_ref())?,
        };
        Ok(())
    }

    /// All of a small basis.
    fn whole_basis(&self) -> Window {
        // At most `SMALL_BASIS_BYTES_MAX`.
        Window { offset: 0, length: self.basis_length as u32 }
    }

    /// Finds the blocks of a larger file that the receiver has.
    fn compare(
        &mut self,
        file: &F,
        staged: Option<&Blocks>,
        report: Option<&BasisReport>,
    ) -> Result<SendStrategy, WorkError> {
        let size = self.size;
        let block = BlockSize::for_size(size);
        let Outline { ids, hash } = match file.prehashed(block) {
            Some(outline) => outline,
            None => outline(size, block, file).map_err(read_error)?,
        };
        self.hash = Some(hash);
        let kept = staged.map_or(Ok(0), |staged| kept(file, size, staged, block, &ids));
        let kept = kept.map_err(read_error)?;
        let nothing = Blocks { length: 0, ids: Vec::new() };
        let basis = report.and_then(BasisReport::blocks).unwrap_or(&nothing);
        if report.is_some() && kept == 0 && basis.length == size && basis.ids == ids {
            return Ok(SendStrategy::Same(hash));
        }
        let range_removed = match report {
            // The engine checked it when the want arrived.
            Some(BasisReport::RangeRemoved { blocks, split }) => ShiftMap::new(blocks.length, size, *split),
            _ => None,
        };
        let shift_map = range_removed.unwrap_or(ShiftMap::same(basis.length));
        let mut segments = plan::without_prefix(plan::aligned(size, block, &ids, basis, shift_map), kept);
        let mut is_shifted = false;
        if range_removed.is_none()
            && let Some(shifted) =
                plan::shifted(&segments, kept, size, block, basis, self.limits.cut_bytes_min)
            && let Some(found) =
                find_shifted(file, size, shifted.blocks.clone(), block, basis).map_err(read_error)?
        {
            is_shifted = true;
            segments = plan::reshift(&segments, &shifted, size, block, &found, basis);
        }
        self.matched_bytes = kept + segments.iter().filter_map(Segment::basis_length).sum::<u64>();
        Ok(match plan::to_cut(&segments, kept, basis.length, self.limits.cut_bytes_min) {
            Some(to_cut) => SendStrategy::Chunks { to_cut, segments, ours: Vec::new(), kept },
            None => {
                SendStrategy::Planned { plan: plan::with_gaps(&segments, basis.length), kept, is_shifted }
            }
        })
    }

    fn cut(&mut self, file: &F) -> Result<(), WorkError> {
        if let SendStrategy::Chunks { to_cut: ToCut { new, basis, .. }, ours, .. } = &mut self.strategy {
            *ours = cut_range(file, new.clone(), average_for(basis.length)?).map_err(read_error)?;
        }
        Ok(())
    }

    fn take_chunks(&mut self, theirs: &[Chunk]) -> Result<(), WorkError> {
        let SendStrategy::Chunks { to_cut, segments, ours, kept } = &self.strategy else { return Ok(()) };
        let length: u64 = theirs.iter().map(|chunk| u64::from(chunk.length)).sum();
        if !theirs.is_empty() && length != to_cut.basis.length {
            return Err(broken("chunks do not cover what was to be cut"));
        }
        self.is_futile = theirs.is_empty();
        let inside = plan::matched(ours, to_cut.new.start, theirs, to_cut.basis.offset);
        let plan = plan::with_gaps(&plan::recut(segments, to_cut, inside), self.basis_length);
        self.strategy = SendStrategy::Planned { plan, kept: *kept, is_shifted: false };
        Ok(())
    }

    fn take_signatures(&mut self, signatures: Vec<Vec<u8>>) {
        self.is_futile |= signatures.is_empty();
        let asked = std::mem::take(&mut self.asked);
        self.signatures = asked.into_iter().zip(signatures).collect();
    }

    /// Returns the next steps and the next need.
    fn produce(&mut self, file: &F) -> Result<(Vec<Op>, SendNext), WorkError> {
        let mut ops = Vec::new();
        let mut plan = match &mut self.strategy {
            SendStrategy::Same(hash) => return Ok((ops, SendNext::Same(*hash))),
            SendStrategy::Chunks { to_cut, .. } => return Ok((ops, SendNext::Cut(to_cut.basis))),
            SendStrategy::Undecided { .. } => return Err(broken("a file that was not begun")),
            SendStrategy::Whole => {
                let content = self.read(file, 0, self.size)?;
                if !content.is_empty() {
                    ops = vec![Op::Data(ByteBuf::from(content))];
                }
                let hash = self.hash.unwrap_or_else(|| Hash::of(&[]));
                return Ok((ops, SendNext::End(hash)));
            }
            SendStrategy::Planned { plan, kept, .. } => {
                // The kept bytes come once, and first.
                ops.extend(
                    Some(std::mem::take(kept)).filter(|&kept| kept > 0).map(|length| Op::Keep { length }),
                );
                std::mem::take(plan)
            }
        };
        let next = self.follow(&mut plan, file, &mut ops)?;
        if let SendStrategy::Planned { plan: left, .. } = &mut self.strategy {
            *left = plan;
        }
        Ok((ops, next))
    }

    /// Follows the plan until about 1 MiB of content is there, or until something is needed.
    fn follow(
        &mut self,
        plan: &mut VecDeque<Segment>,
        file: &F,
        ops: &mut Vec<Op>,
    ) -> Result<SendNext, WorkError> {
        let mut bytes = 0;
        while let Some(segment) = plan.front().copied() {
            if bytes >= self.limits.piece_bytes || ops.len() >= OPS_MAX {
                return Ok(SendNext::More);
            }
            match segment {
                Segment::Basis { offset, length } => {
                    plan.pop_front();
                    ops.push(Op::Copy { offset, length });
                }
                Segment::New { offset, length } => {
                    if offset >= self.data_end {
                        let run = file.first_run(&(offset..offset + length));
                        if run.is_hole {
                            ops.push(self.zeros(run.length));
                            advance(plan, run.length);
                            continue;
                        }
                        self.data_end = offset + run.length;
                    }
                    let run = length.min(self.data_end - offset);
                    let now = run.min(self.limits.piece_bytes - bytes);
                    ops.push(Op::Data(ByteBuf::from(self.read(file, offset, now)?)));
                    advance(plan, now);
                    bytes += now;
                }
                Segment::Gap { offset, length, window } => {
                    if file.zeros_at(offset) >= length {
                        ops.push(self.zeros(length));
                        plan.pop_front();
                        continue;
                    }
                    if !self.is_futile && !self.signatures.contains_key(&window) {
                        self.asked = next_windows(plan);
                        return Ok(SendNext::Sign(self.asked.clone()));
                    }
                    // A gap may be longer than the rest of this message.
                    let op = self.fill_gap(file, offset, length, window)?;
                    bytes += op.sent_bytes();
                    ops.push(op);
                    plan.pop_front();
                }
            }
        }
        Ok(SendNext::End(self.hash.unwrap_or_else(|| self.hasher().finish())))
    }

    fn zeros(&mut self, length: u64) -> Op {
        if self.hash.is_none() {
            self.hasher().zeros(length);
        }
        Op::Zeros { length }
    }

    fn read(&mut self, file: &F, offset: u64, length: u64) -> Result<Vec<u8>, WorkError> {
        let is_all = offset == 0 && length == self.size;
        let bytes = match self.data.take().filter(|_| is_all) {
            Some(data) => data,
            // At most one message's content.
            None => file.read(offset, length as usize).map_err(read_error)?,
        };
        if self.hash.is_none() && is_all {
            self.hash = Some(Hash::of(&bytes));
        } else if self.hash.is_none() {
            self.hasher().update(&bytes);
        }
        Ok(bytes)
    }

    fn hasher(&mut self) -> &mut Hasher {
        self.hasher.get_or_insert_default()
    }

    fn fill_gap(&mut self, file: &F, offset: u64, length: u64, window: Window) -> Result<Op, WorkError> {
        let new = self.read(file, offset, length)?;
        let Some(entries) = self.signatures.get(&window).filter(|_| !self.is_futile) else {
            return Ok(Op::Data(ByteBuf::from(new)));
        };
        let peer = |error: DeltaError| broken(&error.to_string());
        let signature = Signature::check(entries, window.length as usize).map_err(peer)?;
        let delta = signature.diff(&new).map_err(peer)?;
        self.gap_bytes += length;
        let Some(delta) = delta else {
            self.is_futile = self.gap_bytes >= FUTILE_BYTES && self.saved_bytes < self.gap_bytes / 20;
            return Ok(Op::Data(ByteBuf::from(new)));
        };
        self.saved_bytes += length - delta.len() as u64;
        // At most `NEW_BYTES_MAX`.
        Ok(Op::Delta { window, length: length as u32, delta: ByteBuf::from(delta) })
    }
}

impl SendStrategy {
    /// All of the file in one segment.
    fn of(segment: Segment) -> Self {
        let plan = Some(segment).filter(|segment| segment.length() > 0).into_iter().collect();
        Self::Planned { plan, kept: 0, is_shifted: false }
    }
}

/// Advances the first segment by the bytes that were sent.
fn advance(plan: &mut VecDeque<Segment>, sent: u64) {
    match plan.front_mut() {
        Some(Segment::New { offset, length }) if *length > sent => {
            *offset += sent;
            *length -= sent;
        }
        _ => {
            plan.pop_front();
        }
    }
}

/// Windows of the next gaps, each once, as many as one message may request.
fn next_windows(plan: &VecDeque<Segment>) -> Vec<Window> {
    let mut windows = Vec::new();
    for segment in plan {
        let Segment::Gap { window, .. } = *segment else { continue };
        if windows.last() != Some(&window) {
            if windows.len() == WINDOWS_MAX {
                break;
            }
            windows.push(window);
        }
    }
    windows
}

/// Number of right bytes in a staged prefix.
fn kept(
    file: &dyn Content,
    size: u64,
    staged: &Blocks,
    block: BlockSize,
    ids: &[BlockId],
) -> io::Result<u64> {
    let length = staged.length.min(size);
    let same = staged.ids.iter().zip(ids).take_while(|(staged, new)| staged == new).count();
    let kept = (same as u64 * block.bytes()).min(length);
    let rest = length - kept;
    if rest == 0 || rest >= block.bytes() {
        return Ok(kept);
    }
    // The last block of a prefix is usually incomplete.
    let beginning = block_id(kept, rest, file)?;
    Ok(if staged.ids.get(same) == Some(&beginning) { length } else { kept })
}

/// Names the blocks that the basis would have if its tail were moved to the new end. `None` if none
/// of the last few matches.
fn find_shifted(
    file: &dyn Content,
    size: u64,
    blocks: Range<u64>,
    block: BlockSize,
    basis: &Blocks,
) -> io::Result<Option<Vec<BlockId>>> {
    const PROBE: u64 = 4;
    let moved = Moved { file, size, basis_length: basis.length };
    let find = |blocks: Range<u64>| block_ids(blocks, basis.length, block, &moved);
    let last = blocks.end.saturating_sub(PROBE).max(blocks.start)..blocks.end;
    let probed = find(last.clone())?;
    let known = basis.ids.get(last.start as usize..).unwrap_or_default();
    let is_worth_it = probed.iter().zip(known).any(|(found, known)| found == known);
    Ok(if is_worth_it { Some(find(blocks)?) } else { None })
}

/// A view of a file of `size` bytes that aligns its end with the end of a basis of `basis_length`
/// bytes.
struct Moved<'a> {
    file: &'a dyn Content,
    size: u64,
    basis_length: u64,
}

impl Moved<'_> {
    fn offset(&self, offset: u64) -> u64 {
        offset.saturating_add(self.size).saturating_sub(self.basis_length)
    }
}

impl Content for Moved<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buffer, self.offset(offset))
    }

    fn zeros_at(&self, offset: u64) -> u64 {
        self.file.zeros_at(self.offset(offset))
    }
}

/// Classifies a read error: a file that became shorter has changed.
pub(crate) fn read_error(error: io::Error) -> WorkError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        changed()
    } else {
        WorkError::Entry(ProblemKind::Unreadable, format!("cannot read it: {error}"))
    }
}

/// A file that is not the offered version any more.
pub(crate) fn changed() -> WorkError {
    WorkError::Entry(ProblemKind::Changed, "it changed while it was being sent".to_owned())
}
