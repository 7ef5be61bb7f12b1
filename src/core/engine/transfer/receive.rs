//! The receiver's half of a transfer.
//!
//! A transfer may begin with a basis report, which decides how the content is made: anew in a
//! draft, from what an earlier run staged, or by patching a pre-copy of the basis. Then the
//! sender's steps are performed. A small file whose steps are all known at once needs no draft.

use std::io;

use serde_bytes::ByteBuf;

use super::basis::{apply_delta, average_for, basis_changed, corrupt, sign, wrong_hash};
use super::pre_copy::{Cancelled, PreCopy};
use super::{Draft, Target, broken};
use crate::content::blocks::{BlockSize, Content, Finding, Nodes, Outline, outline};
use crate::content::chunk::cut_range;
use crate::content::hash::{Hash, Hasher};
use crate::content::sample::Samples;
use crate::content::shift_map::{Mapped, ShiftMap};
use crate::engine::error::WorkError;
use crate::monitor::ProblemKind;
use crate::wire::message::{
    BasisReport, Blocks, Op, Reply, SMALL_BYTES_MAX, Stretch, Want, Window, basis_bytes_max, is_signed,
};

/// One file on its way in.
#[derive(Debug)]
pub struct ReceiveTransfer<T: Target> {
    id: u32,
    size: u64,
    basis: Option<Basis>,
    making: Making<T>,
}

/// The basis of a wanted file, as it was advertised.
#[derive(Debug, Clone, Copy)]
pub struct Basis {
    /// A position in the present manifest.
    pub(crate) at: u32,
    /// True if the basis lies elsewhere than in the new file's place.
    pub(crate) is_elsewhere: bool,
    /// The shift map under which it was advertised.
    shift_map: ShiftMap,
    /// The hash of the advertised content, to check the answer "the same"; `None` if it cannot be
    /// the same.
    pub(crate) hash: Option<Hash>,
}

impl Basis {
    pub(crate) fn new(at: u32, length: u64, is_elsewhere: bool) -> Self {
        Self { at, is_elsewhere, shift_map: ShiftMap::same(length), hash: None }
    }

    /// Length in bytes.
    fn length(&self) -> u64 {
        self.shift_map.basis_length()
    }

    /// True if the basis was advertised with a gap inserted. An equal file must then still be made.
    pub(crate) fn has_gap(&self) -> bool {
        self.shift_map.size() != self.length()
    }
}

/// The way in which a file is received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// There is no basis.
    Whole,
    /// The basis certainly differs and is small: its signature goes with the want.
    Signed,
    /// The blocks of the basis go with the want.
    Blocks,
    /// A pre-copy of the basis under this shift map is patched.
    PreCopy {
        /// The shift map.
        shift_map: ShiftMap,
        /// True if it is made after the want, whose blocks are known already.
        is_beside: bool,
    },
}

/// Facts that decide about a [`Strategy`].
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Length of the wanted file in bytes.
    pub size: u64,
    /// Length of the basis in bytes, if there is one.
    pub basis_bytes: Option<u64>,
    /// True if the basis is probably the wanted file.
    pub is_doubted: bool,
    /// True if the basis lies elsewhere.
    pub is_elsewhere: bool,
}

/// Facts about a large file and its basis that only the disk knows.
#[derive(Debug, Clone, Copy)]
pub struct Looked {
    /// True if the basis is prehashed.
    pub is_prehashed: bool,
    /// Free bytes for pre-copies.
    pub room_bytes: u64,
    /// The shift map under which the basis resembles the file; `None` if there seems to be none.
    pub shift_map: Option<ShiftMap>,
}

impl Facts {
    /// True if the strategy depends on a look at the disk, for files from `pre_copy_bytes_min` on.
    #[must_use]
    pub fn need_look(&self, pre_copy_bytes_min: u64) -> bool {
        self.basis_bytes.is_some()
            && !self.is_doubted
            && !self.is_elsewhere
            && self.size >= pre_copy_bytes_min
    }

    /// Chooses the strategy. `has_slot` tells that another pre-copy may be made.
    #[must_use]
    pub fn strategy(&self, looked: Option<&Looked>, has_slot: bool) -> Strategy {
        let Some(basis_bytes) = self.basis_bytes else { return Strategy::Whole };
        // The disk must have room for more than the file needs anyway.
        let pays = |looked: &&Looked| has_slot && looked.room_bytes / 2 >= self.size;
        match looked.filter(pays).and_then(|looked| Some((looked.shift_map?, looked.is_prehashed))) {
            Some((shift_map, is_beside)) => Strategy::PreCopy { shift_map, is_beside },
            None if is_signed(self.size, basis_bytes) => Strategy::Signed,
            None => Strategy::Blocks,
        }
    }
}

/// Looks at a large file's basis before its strategy is chosen.
#[must_use]
pub fn look<T: Target>(target: &T, at: u32, facts: &Facts, samples: Option<&Samples>) -> Looked {
    let (size, basis_bytes) = (facts.size, facts.basis_bytes.unwrap_or(0));
    let shift_map = if basis_bytes == size {
        Some(ShiftMap::same(size))
    } else {
        samples.and_then(|samples| {
            let basis = target.open_basis(at).ok()?;
            samples.shift_map(size, basis_bytes, &basis).ok()?
        })
    };
    Looked { is_prehashed: target.is_prehashed(at), room_bytes: target.pre_copy_room_bytes(), shift_map }
}

/// An input of a transfer.
#[derive(Debug)]
pub enum ReceiveInput {
    /// Make a pre-copy of the basis, which was advertised unchanged.
    PreCopy(ShiftMap, Cancelled),
    /// Perform these steps. With the hash of the whole content these are the last ones, and the
    /// file is put in place. A directory in its place is removed first, with its listed entries.
    Steps(Vec<Op>, Option<Hash>),
    /// Discard the pre-copy.
    Discard,
}

/// The content of a file in the making.
#[derive(Debug)]
enum Making<T: Target> {
    /// Nothing.
    Nothing,
    /// An earlier run staged a part; the nodes of its blocks, if they were hashed for the want.
    Staged(Option<Nodes>),
    /// A draft that steps are appended to.
    Anew(Box<Anew<T>>),
    /// A pre-copy that steps patch.
    PreCopy(Box<PreCopy<T::Basis, T::Draft>>),
}

#[derive(Debug)]
struct Anew<T: Target> {
    draft: T::Draft,
    /// Nodes of the staged bytes, if they are known.
    nodes: Option<Nodes>,
    hasher: Hasher,
    has_begun: bool,
    basis: Option<Mapped<T::Basis>>,
}

/// A transfer and the result of a step on it.
pub type Returned<T, R> = (Box<ReceiveTransfer<T>>, Result<R, WorkError>);

/// Performs a step on each of these transfers.
pub fn step_all<T: Target>(
    target: &T,
    steps: Vec<(Box<ReceiveTransfer<T>>, ReceiveInput)>,
) -> Vec<Returned<T, ()>> {
    let (mut small, mut returned) = (Vec::new(), Vec::with_capacity(steps.len()));
    for (mut transfer, input) in steps {
        let result = transfer.step(target, input).map(|content| {
            small.extend(content.map(|content| (returned.len(), (transfer.id, content))));
        });
        returned.push((transfer, result));
    }
    let (places, files): (Vec<usize>, Vec<_>) = small.into_iter().unzip();
    for (index, installed) in places.into_iter().zip(target.install_small(&files)) {
        if let Some((_, result)) = returned.get_mut(index) {
            *result = installed;
        }
    }
    returned
}

impl<T: Target> ReceiveTransfer<T> {
    pub(crate) fn new(id: u32, size: u64, basis: Option<Basis>) -> Self {
        Self { id, size, basis, making: Making::Nothing }
    }

    /// The file's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The basis, as it was advertised.
    #[must_use]
    pub fn basis(&self) -> Option<Basis> {
        self.basis
    }

    /// True if a pre-copy is made.
    #[must_use]
    pub fn has_pre_copy(&self) -> bool {
        matches!(self.making, Making::PreCopy(_))
    }

    /// Makes the basis report. Returns the strategy that was followed.
    ///
    /// # Errors
    /// The basis, or what an earlier run staged, cannot be read.
    pub fn report(
        &mut self,
        target: &T,
        strategy: Strategy,
        may_be_staged: bool,
    ) -> Result<(Want, Strategy), WorkError> {
        let staged = if may_be_staged { self.find_staged(target)? } else { None };
        let strategy = if staged.is_some() { Strategy::Blocks } else { strategy };
        let mut want = Want { id: self.id, staged, basis: None };
        let Some(mut basis) = self.basis else { return Ok((want, Strategy::Whole)) };
        if let Strategy::PreCopy { shift_map, is_beside: false } = strategy {
            target.cancel_prehash(basis.at);
            let pre_copy = self.make_pre_copy(target, shift_map, &Cancelled::default());
            if let Some(pre_copy) = pre_copy
                && let Some((report, hash)) = pre_copy.report()
            {
                (basis.shift_map, basis.hash) = (pre_copy.advertised(), hash);
                self.making = Making::PreCopy(Box::new(pre_copy));
                (self.basis, want.basis) = (Some(basis), Some(report));
                return Ok((want, strategy));
            }
        }
        // The basis is opened after it was hashed: an unchanged identity covers the whole time.
        let prehashed = if strategy == Strategy::Signed { None } else { target.prehashed(basis.at) };
        let file = target.open_basis(basis.at)?;
        let length = basis.length();
        want.basis = Some(if strategy == Strategy::Signed {
            // At most `SMALL_BASIS_BYTES_MAX`.
            let signature = sign(&file, Window { offset: 0, length: length as u32 })?;
            BasisReport::Signed { length, signature: ByteBuf::from(signature) }
        } else {
            let (blocks, hash) =
                blocks_of(length, self.size, &file, prehashed.as_ref()).map_err(unreadable)?;
            basis.hash = hash;
            BasisReport::Blocks(blocks)
        });
        self.basis = Some(basis);
        Ok((want, strategy))
    }

    /// Names the blocks that an earlier run staged.
    fn find_staged(&mut self, target: &T) -> Result<Option<Blocks>, WorkError> {
        let Some(draft) = target.staged(self.id)?.filter(|draft| draft.length() > 0) else {
            return Ok(None);
        };
        let (length, block) = (draft.length().min(self.size), BlockSize::for_size(self.size));
        let finding = Finding::of_all(length, block);
        finding.help(&draft).map_err(unreadable)?;
        let nodes = finding.finish();
        let ids = match nodes.as_ref().and_then(|nodes| nodes.outline(block)) {
            Some(outline) => outline.ids,
            None => outline(length, block, &draft).map_err(unreadable)?.ids,
        };
        self.making = Making::Staged(nodes);
        Ok(Some(Blocks { length: draft.length(), ids }))
    }

    fn make_pre_copy(
        &self,
        target: &T,
        shift_map: ShiftMap,
        cancelled: &Cancelled,
    ) -> Option<PreCopy<T::Basis, T::Draft>> {
        let basis = target.open_basis(self.basis?.at).ok()?;
        PreCopy::of(target.draft(self.id, true).ok()?, basis, shift_map, cancelled)
    }

    /// Performs a step. Returns the content of a small file, which is to be installed.
    fn step(&mut self, target: &T, input: ReceiveInput) -> Result<Option<Vec<u8>>, WorkError> {
        match input {
            ReceiveInput::PreCopy(shift_map, cancelled) => {
                let pre_copy = self.make_pre_copy(target, shift_map, &cancelled);
                if let Some(pre_copy) = pre_copy {
                    self.making = Making::PreCopy(Box::new(pre_copy.advertised_unchanged()));
                }
            }
            ReceiveInput::Discard => {
                if let Making::PreCopy(pre_copy) = std::mem::replace(&mut self.making, Making::Nothing) {
                    pre_copy.discard();
                }
            }
            ReceiveInput::Steps(ops, Some(hash)) if self.is_small(&ops) => {
                return self.make_small(target, ops, hash).map(Some);
            }
            ReceiveInput::Steps(ops, end) => {
                // After an error the staged content serves the next run.
                let mut making = std::mem::replace(&mut self.making, Making::Nothing);
                self.begin(target, &mut making)?;
                ops.into_iter().try_for_each(|op| making.apply(op))?;
                match end {
                    Some(hash) => {
                        let (draft, basis) = making.finish(hash)?;
                        target.install(self.id, draft, basis)?;
                    }
                    None => self.making = making,
                }
            }
        }
        Ok(None)
    }

    /// True if a file with all these steps is made in memory.
    fn is_small(&self, ops: &[Op]) -> bool {
        self.size <= SMALL_BYTES_MAX
            && matches!(self.making, Making::Nothing)
            && ops.iter().all(|op| matches!(op, Op::Data(_) | Op::Delta { .. } | Op::Zeros { .. }))
    }

    fn make_small(&self, target: &T, ops: Vec<Op>, hash: Hash) -> Result<Vec<u8>, WorkError> {
        let mut content = Vec::new();
        for op in ops {
            match op {
                Op::Data(bytes) if content.is_empty() => content = bytes.into_vec(),
                Op::Data(bytes) => content.extend_from_slice(&bytes),
                // At most the size, which the engine checked.
                Op::Zeros { length } => content.resize(content.len() + length as usize, 0),
                Op::Delta { window, length, delta } => {
                    let basis = self.open_basis(target).ok_or_else(basis_changed)?;
                    content.extend(apply_delta(&basis, window, length, &delta)?);
                }
                Op::Copy { .. } | Op::Keep { .. } => return Err(broken("a step of a larger file")),
            }
        }
        if Hash::of(&content) == hash { Ok(content) } else { Err(wrong_hash()) }
    }

    /// Opens the basis as it was advertised. Without it the content may still come whole; only
    /// steps that copy from it fail.
    fn open_basis(&self, target: &T) -> Option<Mapped<T::Basis>> {
        let Basis { at, shift_map, .. } = self.basis?;
        Some(Mapped { basis: target.open_basis(at).ok()?, shift_map })
    }

    /// Prepares for steps.
    fn begin(&self, target: &T, making: &mut Making<T>) -> Result<(), WorkError> {
        let nodes = match making {
            Making::Anew(_) | Making::PreCopy(_) => return Ok(()),
            Making::Nothing => None,
            Making::Staged(nodes) => nodes.take(),
        };
        let replaces = self.basis.is_some_and(|basis| !basis.is_elsewhere);
        *making = Making::Anew(Box::new(Anew {
            draft: target.draft(self.id, replaces)?,
            nodes,
            hasher: Hasher::new(),
            has_begun: false,
            basis: self.open_basis(target),
        }));
        Ok(())
    }
}

impl<T: Target> Making<T> {
    fn apply(&mut self, op: Op) -> Result<(), WorkError> {
        match self {
            Self::Anew(anew) => anew.apply(op),
            Self::PreCopy(pre_copy) => pre_copy.apply(op),
            Self::Nothing | Self::Staged(_) => Err(broken("a file that was not begun")),
        }
    }

    /// Returns the finished file, if it has this hash, and the basis.
    fn finish(self, hash: Hash) -> Result<(T::Draft, Option<T::Basis>), WorkError> {
        match self {
            Self::Anew(anew) => anew.finish(hash),
            Self::PreCopy(pre_copy) => pre_copy.finish(hash).map(|(draft, basis)| (draft, Some(basis))),
            Self::Nothing | Self::Staged(_) => Err(broken("a file that was not begun")),
        }
    }
}

impl<T: Target> Anew<T> {
    fn apply(&mut self, op: Op) -> Result<(), WorkError> {
        let has_begun = self.has_begun;
        if !has_begun {
            self.begin(if let Op::Keep { length } = op { length } else { 0 })?;
        }
        match op {
            Op::Keep { .. } if has_begun => Err(broken("keeping what is staged is only ever first")),
            Op::Keep { .. } => Ok(()),
            Op::Data(bytes) => self.append(&bytes),
            Op::Copy { offset, length } => {
                let (basis, hasher) = (self.basis.as_ref().ok_or_else(basis_changed)?, &mut self.hasher);
                // Hash the bytes that are written.
                self.draft.append_from(&basis.basis, offset, length, &mut |piece| hasher.take(piece))
            }
            Op::Delta { window, length, delta } => {
                let basis = self.basis.as_ref().ok_or_else(basis_changed)?;
                let bytes = apply_delta(basis, window, length, &delta)?;
                self.append(&bytes)
            }
            Op::Zeros { length } => {
                self.hasher.zeros(length);
                self.draft.append_zeros(length)
            }
        }
    }

    /// Keeps the beginning of what is staged.
    fn begin(&mut self, kept: u64) -> Result<(), WorkError> {
        self.has_begun = true;
        self.draft.keep(kept)?;
        if self.draft.length() < kept {
            return Err(corrupt("the staged content is gone"));
        }
        // Hashing a gigabyte again would keep the sender waiting, and the bytes that it has sent
        // meanwhile would be lost if the connection breaks.
        self.hasher = self.nodes.take().and_then(|nodes| nodes.hasher(kept)).unwrap_or_default();
        let (draft, hasher) = (&self.draft, &mut self.hasher);
        draft.read_back(hasher.count(), &mut |piece| hasher.take(piece))
    }

    fn finish(mut self, hash: Hash) -> Result<(T::Draft, Option<T::Basis>), WorkError> {
        if !self.has_begun {
            self.draft.keep(0)?;
        }
        if self.hasher.finish() == hash {
            return Ok((self.draft, self.basis.map(|basis| basis.basis)));
        }
        self.draft.discard();
        Err(wrong_hash())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), WorkError> {
        self.hasher.update(bytes);
        self.draft.append(bytes)
    }
}

/// A question of the sender about a basis.
#[derive(Debug)]
pub enum Query {
    /// The signatures of these ranges.
    Sign(Vec<Window>),
    /// The chunks of this range.
    Cut(Stretch),
}

impl Query {
    /// The reply if the basis can no longer be read.
    #[must_use]
    pub fn unavailable(&self) -> Reply {
        match self {
            Self::Sign(_) => Reply::Signatures(Vec::new()),
            Self::Cut(_) => Reply::Chunks(Vec::new()),
        }
    }

    /// Looks at a basis as it was advertised.
    ///
    /// # Errors
    /// Only failures that end the run.
    pub fn reply<T: Target>(&self, target: &T, basis: Basis) -> Result<Reply, WorkError> {
        match self.try_reply(target, basis) {
            Err(WorkError::Entry(..)) => Ok(self.unavailable()),
            result => result,
        }
    }

    fn try_reply<T: Target>(&self, target: &T, basis: Basis) -> Result<Reply, WorkError> {
        let Basis { at, shift_map, .. } = basis;
        let basis = Mapped { basis: target.open_basis(at)?, shift_map };
        match self {
            Self::Sign(windows) => {
                let sign = |&window: &Window| sign(&basis, window).map(ByteBuf::from);
                Ok(Reply::Signatures(windows.iter().map(sign).collect::<Result<_, _>>()?))
            }
            Self::Cut(Stretch { offset, length }) => {
                let chunks = cut_range(&basis, *offset..*offset + *length, average_for(*length)?);
                Ok(Reply::Chunks(chunks.map_err(unreadable)?))
            }
        }
    }
}

/// Names the blocks of a basis of `length` bytes for a wanted file of `size` bytes. Also returns
/// the hash of all of it, unless it is too long to be named in full.
fn blocks_of(
    length: u64,
    size: u64,
    basis: &dyn Content,
    prehashed: Option<&Nodes>,
) -> io::Result<(Blocks, Option<Hash>)> {
    let (most, block) = (basis_bytes_max(size), BlockSize::for_size(size));
    let prehashed = prehashed.filter(|_| length <= most).and_then(|nodes| nodes.outline(block));
    let Outline { ids, hash } = match prehashed {
        Some(outline) => outline,
        None => outline(length.min(most), block, basis)?,
    };
    Ok((Blocks { length, ids }, (length <= most).then_some(hash)))
}

fn unreadable(error: io::Error) -> WorkError {
    WorkError::Entry(ProblemKind::Unwritable, format!("cannot read it: {error}"))
}
