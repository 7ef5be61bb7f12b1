//! The planned destination as the engine's transfers use it.

use std::sync::Arc;

use crate::content::blocks::Nodes;
use crate::disk::stage::Staging;
use crate::engine::WorkError;
use crate::engine::transfer::Target;
use crate::exchange::common::{retry_while_busy, unwritable};
use crate::exchange::receiving::draft::{OpenBasis, StagedDraft};
use crate::exchange::receiving::tree::{OpenTree, PlannedTree};

/// Length in bytes from which a replaced file is closed on a thread of its own. The last handle
/// frees its pages, which takes 0.1 s for a gigabyte.
const CLOSED_ASIDE_BYTES_MIN: u64 = 64 << 20;

/// Most files that are written before the first of them gets its name: each is open until then.
const OPEN_FILES_MAX: usize = 128;

impl Target for Arc<PlannedTree> {
    type Opened = Arc<OpenTree>;
    type Basis = OpenBasis;
    type Draft = StagedDraft;

    fn open_basis(&self, at: u32) -> Result<OpenBasis, WorkError> {
        self.open_listed(at).map(|(file, seen)| OpenBasis::of(file, seen.size))
    }

    fn is_prehashed(&self, at: u32) -> bool {
        self.identity(at).is_some_and(|seen| self.prehashes.is_ready(&seen))
    }

    fn prehashed(&self, at: u32) -> Option<Nodes> {
        self.prehashes.take(&self.identity(at)?)
    }

    fn cancel_prehash(&self, at: u32) {
        self.identity(at).into_iter().for_each(|seen| self.prehashes.cancel(&seen));
    }

    fn pre_copy_room_bytes(&self) -> u64 {
        let space = self.root.space().ok().filter(|space| !space.shares_extents);
        space.map_or(0, |space| space.bytes)
    }

    fn staged(&self, id: u32) -> Result<Option<StagedDraft>, WorkError> {
        let path = self.path(id)?;
        let found = retry_while_busy(|| Staging::find(&self.root, &path));
        let found = found.map_err(unwritable)?;
        Ok(found.map(|staging| StagedDraft::new(staging, id, Arc::clone(self))))
    }

    fn draft(&self, id: u32, replaces: bool) -> Result<StagedDraft, WorkError> {
        self.replaced.release();
        let path = self.path(id)?;
        let (staging, _) =
            retry_while_busy(|| Staging::open(&self.root, &path)).map_err(|error| self.failed(id, &error))?;
        let staging = if replaces { staging.replacing() } else { staging };
        Ok(StagedDraft::new(staging, id, Arc::clone(self)))
    }

    fn install(&self, id: u32, draft: StagedDraft, basis: Option<OpenBasis>) -> Result<(), WorkError> {
        // A complete file is installed even if the disk is full.
        let (staging, _owner) = draft.into_parts();
        let is_long = staging.len() >= CLOSED_ASIDE_BYTES_MIN;
        let installed = self.install_staged(id, staging, true);
        self.replaced.keep(basis.filter(|_| is_long).map(OpenBasis::into_inner));
        installed
    }

    fn install_small(&self, files: &[(u32, Vec<u8>)]) -> Vec<Result<(), WorkError>> {
        let chunks = files.chunks(if self.is_durable { OPEN_FILES_MAX } else { 1 });
        chunks.flat_map(|chunk| self.install_chunk(chunk)).collect()
    }
}
