//! Basis reports of wanted files.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};

use serde_bytes::ByteBuf;

use crate::content::blocks::{BlockSize, Finding, Nodes, Outline};
use crate::content::chunk::{Average, Chunk};
use crate::content::delta;
use crate::content::sample::{SAMPLED_BYTES_MIN, Samples};
use crate::content::shift_map::ShiftMap;
use crate::disk::holes::SparseFile;
use crate::disk::stage::Staging;
use crate::engine::{Advertised, SignOrder, WorkError};
use crate::exchange::basis::BasisFile;
use crate::exchange::pre_copy::PreCopyParts;
use crate::exchange::receiving::{Receiving, Trees, sink_error, unwritable};
use crate::exchange::sink::{SinkError, basis_changed, blocks_of, open_basis};
use crate::exchange::{retry_while_busy, work_error};
use crate::log::{self, debug};
use crate::monitor::ProblemKind;
use crate::tree::path::escape;
use crate::wire::message::{
    AbortKind, BasisReport, Blocks, SMALL_BASIS_BYTES_MAX, Stretch, Want, Window, basis_bytes_max, is_signed,
};

impl Receiving {
    pub(super) fn sign(&self, order: &SignOrder) -> Result<Advertised, WorkError> {
        let advertised = self.report_basis(order);
        if log::is_on() {
            self.log_basis(order, &advertised);
        }
        advertised
    }

    /// Logs a basis report.
    fn log_basis(&self, order: &SignOrder, advertised: &Result<Advertised, WorkError>) {
        let (Ok(entry), Ok(Advertised { want, has_gap, .. })) = (self.entry(order.id), advertised) else {
            debug!("basis role=receiver how=none why=unreadable id={}", order.id);
            return;
        };
        let how = match &want.basis {
            None => "none why=new-file",
            Some(BasisReport::Signed { .. }) => "signature why=small-file",
            Some(BasisReport::RangeRemoved { .. }) => "blocks why=range-removed",
            Some(BasisReport::Blocks(_)) if *has_gap => "blocks why=gap-inserted",
            Some(BasisReport::Blocks(_)) if order.is_doubted => "blocks why=verify-after-power-cut",
            Some(BasisReport::Blocks(_)) => "blocks why=basis",
        };
        let (path, part) = (entry.path.to_path(), want.staged.as_ref().map_or(0, |staged| staged.length));
        let basis = order.at.and_then(|at| self.trees().ok()?.present.get(at));
        let (length, elsewhere) = basis.map_or((0, false), |basis| (basis.size(), basis.path != entry.path));
        debug!(
            "basis role=receiver how={how} size={} basis_bytes={length} elsewhere={elsewhere} \
             part_bytes={part} path={}",
            entry.size(),
            escape(path.as_bytes())
        );
    }

    fn report_basis(&self, order: &SignOrder) -> Result<Advertised, WorkError> {
        let SignOrder { id, at, may_be_staged, is_doubted, ref samples } = *order;
        let size = self.entry(id)?.size();
        let staged = if may_be_staged { self.staged(id, size)? } else { None };
        let mut want = Want { id, staged, basis: None };
        let Some(at) = at else { return Ok(Advertised { want, hash: None, has_gap: false }) };
        let (_, seen) = self.basis(at)?;
        let parts = || self.pre_copy_parts(id, at, samples.as_ref());
        if is_doubted {
            // The basis is probably the same, so make no pre-copy.
        } else if want.staged.is_none() && self.prehashes.is_done(&seen) {
            self.pre_copies.make_in_thread(id, parts);
        } else if want.staged.is_none()
            && let Some((basis, hash)) =
                self.pre_copies.make(id, || parts().inspect(|_| self.prehashes.cancel(&seen)))
        {
            want.basis = Some(basis);
            let has_gap = want.basis_blocks().is_some_and(|basis| basis.length != seen.size);
            return Ok(Advertised { want, hash, has_gap });
        }
        let prehashed = self.prehashes.take(&seen);
        // Open the basis after it was hashed: an unchanged identity covers the whole time.
        let (file, seen) = self.open_basis(at)?;
        if want.staged.is_none() && is_signed(size, seen.size) {
            let signature = ByteBuf::from(self.sign_file(at)?);
            want.basis = Some(BasisReport::Signed { length: seen.size, signature });
            return Ok(Advertised { want, hash: None, has_gap: false });
        }
        let most = basis_bytes_max(size);
        let outline = prehashed
            .filter(|_| seen.size <= most)
            .and_then(|nodes| nodes.outline(BlockSize::for_size(size)));
        let (basis, hash) = match outline {
            Some(Outline { ids, hash }) => (Blocks { length: seen.size, ids }, Some(hash)),
            None => blocks_of(seen.size, size, most, &SparseFile::of(&file, seen.size))
                .map_err(|error| unwritable(&error))?,
        };
        want.basis = Some(BasisReport::Blocks(basis));
        Ok(Advertised { want, hash, has_gap: false })
    }

    /// Prepares the pre-copy of a large file's basis. It is made if the file seems to be edited in
    /// place, or if a range seems to be inserted, appended or removed.
    fn pre_copy_parts(&self, id: u32, at: u32, samples: Option<&Samples>) -> Option<PreCopyParts> {
        let (root, path, size) = (self.root().ok()?, self.path(id).ok()?, self.entry(id).ok()?.size());
        let (basis_path, seen) = self.basis(at).ok()?;
        // The disk must have room for more than the file needs anyway.
        if basis_path != path || size < SAMPLED_BYTES_MIN || root.space().ok()?.bytes / 2 < size {
            return None;
        }
        let basis = open_basis(root, &basis_path, &seen).ok()?;
        let shift_map = if seen.size == size {
            ShiftMap::same(size)
        } else {
            samples?.shift_map(size, seen.size, &SparseFile::of(&basis, seen.size)).ok()??
        };
        let (staging, _) = Staging::open(root, &path).ok()?;
        let pays = !staging.shares_extents();
        debug!(
            "pre-copy role=receiver made={pays} shift={} path={}",
            shift_map.kind(),
            escape(path.as_bytes())
        );
        pays.then(|| PreCopyParts { basis, shift_map, staging: staging.replacing() })
    }

    /// Drops prehashed files that nobody will ask about: those that are up to date, and those that
    /// have changed since.
    pub(super) fn cancel_prehashes(&self) {
        let (Ok(Trees { wanted, present }), Some(identities)) = (self.trees(), self.identities()) else {
            return;
        };
        self.prehashes.only(|begun| {
            let listed = identities.position(present, begun).and_then(|at| present.get(at));
            let new = listed.and_then(|listed| wanted.get(wanted.position(listed.path)?));
            listed.is_some_and(|listed| {
                new.is_none_or(|new| (new.size(), new.mtime) != (listed.size(), listed.mtime))
            })
        });
    }

    /// Names the blocks that an earlier run staged of a file.
    fn staged(&self, id: u32, size: u64) -> Result<Option<Blocks>, WorkError> {
        let (root, path) = (self.root()?, self.path(id)?);
        let found = retry_while_busy(|| Staging::find(root, &path));
        let found = found.map_err(|error| work_error(&error, ProblemKind::Unwritable))?;
        let Some(staging) = found.filter(|staging| !staging.is_empty()) else { return Ok(None) };
        let (length, block) = (staging.len().min(size), BlockSize::for_size(size));
        let finding = Finding::of_all(length, block);
        finding.help(&staging.content()).map_err(|error| unwritable(&error))?;
        let nodes = finding.finish();
        if let Some(outline) = nodes.as_ref().and_then(|nodes| nodes.outline(block)) {
            self.nodes_of_staged().extend(nodes.map(|nodes| (id, nodes)));
            return Ok(Some(Blocks { length: staging.len(), ids: outline.ids }));
        }
        let blocks = blocks_of(staging.len(), size, size, &staging.content());
        Ok(Some(blocks.map_err(|error| unwritable(&error))?.0))
    }

    /// Takes the nodes of a file's staged bytes, as far as they are known.
    pub(super) fn take_staged(&self, id: u32) -> Option<Nodes> {
        self.nodes_of_staged().remove(&id)
    }

    fn nodes_of_staged(&self) -> MutexGuard<'_, HashMap<u32, Nodes>> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn sign_file(&self, at: u32) -> Result<Vec<u8>, WorkError> {
        delta::sign(&self.read_basis(at)?).map_err(|error| sink_error(SinkError::Basis(error.to_string())))
    }

    /// Reads a small basis as a whole.
    pub(super) fn read_basis(&self, at: u32) -> Result<Vec<u8>, WorkError> {
        let (_, seen) = self.basis(at)?;
        if seen.size > SMALL_BASIS_BYTES_MAX {
            return Err(WorkError::Fatal(
                AbortKind::Protocol,
                "a signature of what is too long for one".to_owned(),
            ));
        }
        let (file, _) = self.open_basis(at)?;
        let window = Window { offset: 0, length: seen.size as u32 };
        BasisFile::new(file, ShiftMap::same(seen.size)).window(window).map_err(sink_error)
    }

    /// Opens a basis in the shape that was advertised to the sender.
    fn basis_file(&self, id: u32, at: u32) -> Result<BasisFile, WorkError> {
        let (file, seen) = self.open_basis(at)?;
        Ok(BasisFile::new(
            file,
            self.pre_copies.advertised_shift_map(id).unwrap_or(ShiftMap::same(seen.size)),
        ))
    }

    pub(super) fn cut(&self, id: u32, at: u32, stretch: Stretch) -> Result<Vec<Chunk>, WorkError> {
        let basis = self.basis_file(id, at)?;
        let average = Average::for_size(stretch.length).ok_or_else(|| {
            WorkError::Fatal(AbortKind::Protocol, "a stretch too long to be cut".to_owned())
        })?;
        let chunks = basis
            .chunks(stretch.offset..stretch.offset + stretch.length, average)
            .map_err(|error| unwritable(&error))?;
        let length: u64 = chunks.iter().map(|chunk| u64::from(chunk.length)).sum();
        if length == stretch.length { Ok(chunks) } else { Err(sink_error(basis_changed())) }
    }

    pub(super) fn sign_windows(
        &self,
        id: u32,
        at: u32,
        windows: &[Window],
    ) -> Result<Vec<Vec<u8>>, WorkError> {
        let basis = self.basis_file(id, at)?;
        windows
            .iter()
            .map(|&window| {
                let basis = basis.window(window).map_err(sink_error)?;
                delta::sign(&basis).map_err(|error| WorkError::Fatal(AbortKind::Protocol, error.to_string()))
            })
            .collect()
    }
}
