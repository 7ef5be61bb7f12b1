//! A file whose content is missing, as the receiver keeps it.

use std::collections::VecDeque;

use crate::content::hash::Hash;
use crate::engine::error::WorkError;
use crate::engine::fetch::Fetch;
use crate::engine::transfer::Target;
use crate::engine::transfer::pre_copy::CancelOnDrop;
use crate::engine::transfer::receive::{Basis, Facts, ReceiveTransfer};
use crate::wire::message::Op;

/// Most bytes of content that wait for the disk before messages have to wait.
pub(super) const HELD_BYTES_MAX: usize = 8 << 20;

/// Memory of waiting steps, in bytes: their content, and the steps themselves. A peer may send any
/// number of steps without content.
pub(super) fn held_bytes(ops: &[Op]) -> usize {
    const MESSAGE_BYTES: usize = 128;
    let content: u64 = ops.iter().map(Op::sent_bytes).sum();
    MESSAGE_BYTES + size_of_val(ops) + content as usize
}

/// A file whose content is missing.
#[derive(Debug)]
pub(super) struct MissingFile<T: Target> {
    /// The transfer itself; `None` while a work has it.
    pub(super) held: Option<Box<ReceiveTransfer<T>>>,
    pub(super) progress: Progress,
    /// Weight of the want, while it counts as unanswered.
    pub(super) weight: Option<usize>,
    /// The basis, as it was advertised.
    pub(super) basis: Option<Basis>,
    pub(super) facts: Facts,
    /// True once the basis was cut, which the sender may ask for once.
    pub(super) was_cut: bool,
    /// True while the sender waits for a reply about the basis.
    pub(super) is_queried: bool,
    /// Steps that arrived, and the hash with the last ones.
    pub(super) waiting: VecDeque<(Vec<Op>, Option<Hash>)>,
    /// True while a work writes it.
    pub(super) is_written: bool,
    /// Bytes of the steps that a work performs, if they still count as waiting.
    pub(super) written_bytes: usize,
    /// Bytes of the content that the steps so far make.
    pub(super) made_bytes: u64,
    /// Bytes of them that travelled.
    pub(super) sent_bytes: u64,
    /// Bytes of those that a work writes.
    pub(super) fed_bytes: u64,
    /// Bytes of those that are written.
    pub(super) on_disk_bytes: u64,
    /// Set if the file cannot be made; steps that still arrive are dropped.
    pub(super) failed: Option<WorkError>,
    /// True once the content has arrived damaged.
    pub(super) was_retried: bool,
    /// True if the content is copied from elsewhere in the destination.
    pub(super) is_copy: bool,
    /// Takes one of the slots for pre-copies. One that is being made ends when this is dropped.
    pub(super) pre_copy: Option<CancelOnDrop>,
}

/// Progress of a file whose content is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The want is being prepared.
    Preparing,
    /// The want is sent.
    Asked,
    /// Steps arrive.
    Receiving,
    /// All steps have arrived.
    Arrived,
    /// No content is needed: the file in place is the same, or the sender gave the file up and has
    /// reported why.
    Over,
}

impl<T: Target> MissingFile<T> {
    pub(super) fn new(fetch: Fetch, size: u64, basis_bytes: Option<u64>) -> Self {
        let Fetch { id, at, elsewhere: is_elsewhere, is_doubted } = fetch;
        let basis = at.zip(basis_bytes).map(|(at, length)| Basis::new(at, length, is_elsewhere));
        Self {
            held: Some(Box::new(ReceiveTransfer::new(id, size, basis))),
            progress: Progress::Preparing,
            weight: None,
            basis,
            facts: Facts { size, basis_bytes, is_doubted, is_elsewhere },
            was_cut: false,
            is_queried: false,
            waiting: VecDeque::new(),
            is_written: false,
            written_bytes: 0,
            made_bytes: 0,
            sent_bytes: 0,
            fed_bytes: 0,
            on_disk_bytes: 0,
            failed: None,
            was_retried: false,
            is_copy: false,
            pre_copy: None,
        }
    }

    /// Bytes of the content that have to be written, as far as is known: those that have not
    /// arrived, and those that travelled and are not written.
    pub(super) fn awaited_bytes(&self) -> u64 {
        let unwritten = self.sent_bytes.saturating_sub(self.on_disk_bytes);
        self.facts.size.saturating_sub(self.made_bytes) + unwritten
    }

    /// True if the sender owes an answer.
    pub(super) fn is_awaited(&self) -> bool {
        matches!(self.progress, Progress::Asked | Progress::Receiving)
    }

    /// Adds the last steps. Returns the memory that they take.
    pub(super) fn complete(&mut self, ops: Vec<Op>, hash: Hash) -> usize {
        let held = held_bytes(&ops);
        self.progress = Progress::Arrived;
        self.waiting.push_back((ops, Some(hash)));
        held
    }
}
