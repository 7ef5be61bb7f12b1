//! Installs files.

use std::fs::File;

use crate::content::hash::{Hash, Hasher, is_zero};
use crate::disk::error::DiskError;
use crate::disk::stage::{Complete, Durability, Staging};
use crate::disk::stat::{FileKind, Identity};
use crate::engine::WorkError;
use crate::engine::transfer::basis::wrong_hash;
use crate::exchange::common::{metadata_error, retry_while_busy, unwritable};
use crate::exchange::receiving::tree::PlannedTree;
use crate::tree::basis_trees::FIRST;

/// Number of small files from which one `syncfs` for all is quicker than an `fsync` for each.
const SYNC_FILES_MIN: usize = 4;

/// A complete file without its final name.
enum Unnamed {
    Anonymous(File),
    Staged(Complete),
}

impl PlannedTree {
    /// Puts small files in place. If they must be durable, all are on the disk before the first
    /// gets its name.
    pub(super) fn install_chunk(&self, files: &[(u32, Vec<u8>)]) -> Vec<Result<(), WorkError>> {
        let is_batch = self.is_durable && files.len() >= SYNC_FILES_MIN;
        let durability = if is_batch { Durability::Eventually } else { self.durability() };
        let made: Vec<_> = files.iter().map(|file| (file, self.make(file, durability))).collect();
        let synced = if is_batch { self.root.sync_written().map_err(unwritable) } else { Ok(()) };
        let name = |(file, made): (&(u32, Vec<u8>), Result<Unnamed, WorkError>)| match (made, &synced) {
            (Ok(Unnamed::Staged(complete)), Err(error)) => {
                // The file may look whole without being on the disk.
                let _ = complete.discard();
                Err(error.clone())
            }
            (Ok(_), Err(error)) => Err(error.clone()),
            (Ok(made), Ok(())) => self.name(file, made),
            (Err(error), _) => Err(error),
        };
        made.into_iter().map(name).collect()
    }

    /// Makes a file without its final name.
    fn make(&self, (id, data): &(u32, Vec<u8>), durability: Durability) -> Result<Unnamed, WorkError> {
        self.replaced.release();
        let failed = |error: &DiskError| self.failed(*id, error);
        let bytes = data.len() as u64;
        let least = if is_zero(data) { 0 } else { bytes };
        self.before_writing(least, bytes).map_err(|error| failed(&error))?;
        if self.position(*id)?.is_none() {
            let new = self.root.make_new(&self.path(*id)?, data, &self.metadata(*id)?, durability);
            if let Some(new) = new.map_err(|error| failed(&error))? {
                return Ok(Unnamed::Anonymous(new));
            }
        }
        self.stage(*id, data, durability).map(Unnamed::Staged)
    }

    fn stage(&self, id: u32, data: &[u8], durability: Durability) -> Result<Complete, WorkError> {
        let (path, metadata) = (self.path(id)?, self.metadata(id)?);
        let staged = Staging::open(&self.root, &path).and_then(|(mut staging, _)| {
            staging.keep(0)?;
            staging.append(data)?;
            staging.complete(&self.root, &metadata, durability)
        });
        staged.map_err(|error| self.failed(id, &error))
    }

    /// Gives a file its final name.
    fn name(&self, (id, data): &(u32, Vec<u8>), made: Unnamed) -> Result<(), WorkError> {
        let complete = match made {
            Unnamed::Staged(complete) => complete,
            Unnamed::Anonymous(new) => {
                let named = self.root.name_new(&self.path(*id)?, &new);
                if named.map_err(|error| self.failed(*id, &error))? {
                    return Ok(());
                }
                // On this system only the superuser may name an anonymous file. From now on such
                // files are staged.
                self.stage(*id, data, self.durability())?
            }
        };
        self.install_complete(*id, complete, true)
    }

    /// Installs a staged file. A file in its place with the same content needs no backup.
    pub(super) fn install_staged(&self, id: u32, staging: Staging, backs_up: bool) -> Result<(), WorkError> {
        let complete = staging.complete(&self.root, &self.metadata(id)?, self.durability());
        self.install_complete(id, complete.map_err(|error| self.failed(id, &error))?, backs_up)
    }

    fn install_complete(&self, id: u32, complete: Complete, backs_up: bool) -> Result<(), WorkError> {
        let seen = if backs_up { self.seen_and_backed_up(id)? } else { self.seen(id)? };
        if let Some(at) = self.position(id)?
            && self.present.get(at).is_some_and(|entry| entry.is_directory())
        {
            self.clear(at)?;
        }
        if let Some(seen) = seen.as_ref().filter(|seen| self.is_in_place && seen.kind == FileKind::File) {
            let written = self.write_in_place(id, seen, Some(complete.content()));
            // The end of the run removes a file that stays.
            let _ = complete.discard();
            return written;
        }
        let installed =
            complete.install(&self.root, seen.as_ref()).map_err(|error| self.failed(id, &error))?;
        self.settle_doubt(id);
        installed.refused.map_or(Ok(()), |error| Err(metadata_error(*error)))
    }

    /// Writes content, if any, into the file in an entry's place, and sets its metadata.
    pub(super) fn write_in_place(
        &self,
        id: u32,
        seen: &Identity,
        content: Option<(&File, u64)>,
    ) -> Result<(), WorkError> {
        let path = self.path(id)?;
        let metadata = self.metadata(id)?;
        let written = self.root.write_in_place(&path, seen, content, &metadata, self.is_durable);
        let refused = written.map_err(|error| self.failed(id, &error))?;
        self.settle_doubt(id);
        refused.map_or(Ok(()), |error| Err(metadata_error(*error)))
    }

    /// Installs a copy of a listed file, with this hash if one is given.
    pub(super) fn copy(&self, id: u32, at: u32, hash: Option<Hash>) -> Result<(), WorkError> {
        let failed = |error: &DiskError| self.failed(id, error);
        let (basis, seen) = self.open_listed(at)?;
        let path = self.path(id)?;
        let staging = retry_while_busy(|| Staging::open(&self.root, &path));
        let (mut staging, _) = staging.map_err(|error| failed(&error))?;
        let mut hasher = Hasher::new();
        let copied = self.before_writing(0, seen.size).and_then(|()| staging.keep(0));
        let copied = copied.and_then(|()| match hash {
            None => staging.append_from(&basis, 0, seen.size),
            Some(_) => staging.append_from_and_visit(&basis, 0, seen.size, &mut |piece| hasher.take(piece)),
        });
        copied.map_err(|error| failed(&error))?;
        if hash.is_some_and(|hash| hasher.finish() != hash) {
            let _ = staging.discard();
            return Err(wrong_hash());
        }
        // Without a hash, a file of the destination is copied onto itself.
        self.install_staged(id, staging, hash.is_some() || at >= FIRST)
    }
}
