//! Open bases, and drafts: files without their final names.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::content::blocks::Content;
use crate::content::hash::Piece;
use crate::disk::error::DiskError;
use crate::disk::holes::SparseFile;
use crate::disk::stage::Staging;
use crate::engine::WorkError;
use crate::engine::transfer::Draft;
use crate::exchange::receiving::tree::PlannedTree;
use crate::monitor::ProblemKind;

/// An open basis.
pub(super) type OpenBasis = SparseFile<File>;

/// A draft in the state directory. If it is dropped, it stays there for the next run, unless the
/// disk is full.
#[derive(Debug)]
pub struct StagedDraft {
    staging: Staging,
    owner: Owner,
}

/// The file that a draft belongs to.
#[derive(Debug)]
pub(super) struct Owner {
    id: u32,
    tree: Arc<PlannedTree>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.tree.is_full.load(Ordering::Relaxed) {
            self.tree.give_up(self.id);
        }
    }
}

impl StagedDraft {
    pub(super) fn new(staging: Staging, id: u32, tree: Arc<PlannedTree>) -> Self {
        Self { staging, owner: Owner { id, tree } }
    }

    /// The staged file. On a full disk it is freed when the second value is dropped.
    pub(super) fn into_parts(self) -> (Staging, Owner) {
        (self.staging, self.owner)
    }

    /// Writes, if the disk keeps its reserve after at most `bytes` more.
    fn write<R>(
        &mut self,
        bytes: u64,
        write: impl FnOnce(&mut Staging) -> Result<R, DiskError>,
    ) -> Result<R, WorkError> {
        // The part of it that becomes holes is unknown.
        let written = self.owner.tree.before_writing(0, bytes).and_then(|()| write(&mut self.staging));
        written.map_err(|error| self.owner.failed(&error))
    }
}

impl Owner {
    fn failed(&self, error: &DiskError) -> WorkError {
        self.tree.failed(self.id, error)
    }
}

impl Content for StagedDraft {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.staging.read_at(buffer, offset)
    }

    fn zeros_at(&self, offset: u64) -> u64 {
        self.staging.content().zeros_at(offset)
    }
}

impl Draft<OpenBasis> for StagedDraft {
    fn length(&self) -> u64 {
        self.staging.len()
    }

    fn keep(&mut self, length: u64) -> Result<(), WorkError> {
        self.write(0, |staging| staging.keep(length))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), WorkError> {
        self.write(bytes.len() as u64, |staging| staging.append(bytes))
    }

    fn append_zeros(&mut self, count: u64) -> Result<(), WorkError> {
        self.write(0, |staging| staging.append_zeros(count))
    }

    fn append_from(
        &mut self,
        basis: &OpenBasis,
        offset: u64,
        length: u64,
        visit: &mut (dyn FnMut(Piece<'_>) + Send),
    ) -> Result<(), WorkError> {
        self.write(length, |staging| staging.append_from_and_visit(basis.file(), offset, length, visit))
    }

    fn read_back(&self, start: u64, visit: &mut dyn FnMut(Piece<'_>)) -> Result<(), WorkError> {
        self.staging.read_back(start, visit).map_err(|error| self.owner.failed(&error))
    }

    fn begin_with_zeros(&mut self, length: u64) -> Result<(), WorkError> {
        self.write(0, |staging| staging.begin_with_zeros(length))
    }

    fn fill(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.staging.fill(bytes, offset)
    }

    fn overwrite(&mut self, bytes: &[u8], offset: u64) -> Result<(), WorkError> {
        self.write(bytes.len() as u64, |staging| staging.overwrite(bytes, offset))
    }

    fn overwrite_with_zeros(&mut self, range: Range<u64>) -> Result<(), WorkError> {
        self.write(0, |staging| staging.overwrite_with_zeros(range))
    }

    fn failed(&self, error: io::Error) -> WorkError {
        WorkError::Entry(ProblemKind::Unwritable, format!("cannot read it back: {error}"))
    }

    fn discard(self) {
        // The end of the run removes a file that stays.
        let _ = self.staging.discard();
    }
}
