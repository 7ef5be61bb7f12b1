//! Takes contents in and installs files.

use std::fs::File;

use crate::content::delta;
use crate::content::hash::Hash;
use crate::disk::error::DiskError;
use crate::disk::stage::{Complete, Durability, Staging};
use crate::engine::{CopiedFile, SmallContent, SmallFile, WorkError};
use crate::exchange::receiving::{Receiving, out_of_turn, sink_error};
use crate::exchange::sink::{Sink, SinkError};
use crate::exchange::work_error;
use crate::log::debug;
use crate::monitor::ProblemKind;
use crate::tree::path::escape;
use crate::wire::message::Op;

/// Length in bytes from which a replaced file is closed on a thread of its own. The last handle
/// frees its pages, which takes 0.1 s for a gigabyte.
const CLOSED_ASIDE_BYTES_MIN: u64 = 64 << 20;

/// Number of small files from which one `syncfs` for all is quicker than an `fsync` for each.
const SYNC_FILES_MIN: usize = 4;

/// Most files that are written before the first of them gets its name: each is open until then.
const OPEN_FILES_MAX: usize = 128;

/// A complete file without its final name.
enum Unnamed {
    Anonymous(File),
    Staged(Complete),
}

impl Receiving {
    /// Puts small files in place. If they must be durable, all are on the disk before the first
    /// gets its name.
    pub(super) fn store_all(&self, files: &[SmallFile]) -> Vec<(u32, Result<(), WorkError>)> {
        let chunks = files.chunks(if self.options.fsync { OPEN_FILES_MAX } else { 1 });
        chunks.flat_map(|chunk| self.store_together(chunk)).collect()
    }

    fn store_together(&self, files: &[SmallFile]) -> Vec<(u32, Result<(), WorkError>)> {
        let is_batch = self.options.fsync && files.len() >= SYNC_FILES_MIN;
        let durability = if is_batch { Durability::Eventually } else { self.durability() };
        let made: Vec<_> = files.iter().map(|file| (file, self.make(file, durability))).collect();
        let synced = if is_batch {
            self.root().and_then(|root| root.sync_written().map_err(|e| unwritable(&e)))
        } else {
            Ok(())
        };
        let name = |(file, made): (&SmallFile, Result<Unnamed, WorkError>)| {
            let named = match (made, &synced) {
                (Ok(Unnamed::Staged(complete)), Err(error)) => {
                    // The file may look whole without being on the disk.
                    let _ = complete.discard();
                    Err(error.clone())
                }
                (Ok(_), Err(error)) => Err(error.clone()),
                (Ok(made), Ok(())) => self.name(file, made),
                (Err(error), _) => Err(error),
            };
            (file.id, named)
        };
        made.into_iter().map(name).collect()
    }

    pub(super) fn durability(&self) -> Durability {
        if self.options.fsync { Durability::Immediately } else { Durability::Eventually }
    }

    /// Makes a file without its final name.
    fn make(&self, file: &SmallFile, durability: Durability) -> Result<Unnamed, WorkError> {
        self.replaced.release();
        let made;
        let data = match &file.content {
            SmallContent::Whole(data) => data,
            SmallContent::Delta { at, delta } => {
                made = self.apply_delta(file.id, *at, delta)?;
                &made
            }
        };
        if Hash::of(data) != file.hash {
            return Err(corrupt());
        }
        let unwritable = |error: &DiskError| self.failed(file.id, error);
        let (root, path, metadata) = (self.root()?, self.path(file.id)?, self.metadata(file.id)?);
        self.before_writing(data).map_err(|error| unwritable(&error))?;
        if self.trees()?.present.position(self.entry(file.id)?.path).is_none() {
            let new = root.make_new(&path, data, &metadata, durability);
            if let Some(new) = new.map_err(|error| unwritable(&error))? {
                return Ok(Unnamed::Anonymous(new));
            }
        }
        self.stage(data, file.id, durability).map(Unnamed::Staged)
    }

    fn stage(&self, data: &[u8], id: u32, durability: Durability) -> Result<Complete, WorkError> {
        let (root, path, metadata) = (self.root()?, self.path(id)?, self.metadata(id)?);
        let staged = Staging::open(root, &path).and_then(|(mut staging, _)| {
            staging.keep(0)?;
            staging.append(data)?;
            staging.complete(root, &metadata, durability)
        });
        staged.map_err(|error| self.failed(id, &error))
    }

    /// Gives a file its final name.
    fn name(&self, file: &SmallFile, made: Unnamed) -> Result<(), WorkError> {
        match made {
            Unnamed::Staged(complete) => self.place_complete(file.id, complete),
            Unnamed::Anonymous(new) => {
                let (root, path) = (self.root()?, self.path(file.id)?);
                if root.name_new(&path, &new).map_err(|error| self.failed(file.id, &error))? {
                    return Ok(());
                }
                // On this system only the superuser may name an anonymous file. From now on such
                // files are staged.
                let made = self.make(file, self.durability())?;
                let Unnamed::Staged(complete) = made else { return Err(out_of_turn()) };
                self.place_complete(file.id, complete)
            }
        }
    }

    fn apply_delta(&self, id: u32, at: u32, delta: &[u8]) -> Result<Vec<u8>, WorkError> {
        let basis = self.read_basis(at)?;
        // The engine checked that it is small.
        let size = self.entry(id)?.size() as usize;
        delta::apply(&basis, delta, size).map_err(|error| sink_error(SinkError::Basis(error.to_string())))
    }

    pub(super) fn copy(&self, file: CopiedFile) -> Result<(), WorkError> {
        let (_, seen) = self.basis(file.at)?;
        debug!(
            "file role=receiver how=copy why=same-content path={}",
            escape(self.path(file.id)?.as_bytes())
        );
        let ops = vec![Op::Copy { offset: 0, length: seen.size }];
        self.sink(file.id, Some(file.at), ops, Some(file.hash))
    }

    pub(super) fn sink(
        &self,
        id: u32,
        at: Option<u32>,
        ops: Vec<Op>,
        end: Option<Hash>,
    ) -> Result<(), WorkError> {
        self.replaced.release();
        let taken = self.sinks().remove(&id);
        let mut sink = match taken {
            Some(sink) => sink,
            None => {
                let basis = at.map(|at| self.basis(at)).transpose()?;
                let basis = basis.as_ref().map(|(path, seen)| (path, seen));
                Sink::begin(
                    self.root()?,
                    &self.path(id)?,
                    basis,
                    self.pre_copies.take(id),
                    self.take_staged(id),
                )
                .map_err(|error| self.sink_failed(id, error))?
            }
        };
        for op in ops {
            if let Err(error) = self.before_step(&op).and_then(|()| sink.apply(op)) {
                drop(sink);
                return Err(self.sink_failed(id, error));
            }
        }
        match end {
            Some(hash) => {
                let (staging, basis) = sink.finish(hash).map_err(|error| self.sink_failed(id, error))?;
                let is_long = staging.len() >= CLOSED_ASIDE_BYTES_MIN;
                let installed = self.install(id, staging);
                self.replaced.keep(basis.filter(|_| is_long));
                installed
            }
            None => {
                self.sinks().insert(id, sink);
                self.give_up_if_full();
                Ok(())
            }
        }
    }

    pub(super) fn install(&self, id: u32, staging: Staging) -> Result<(), WorkError> {
        let (root, metadata) = (self.root()?, self.metadata(id)?);
        let complete = staging.complete(root, &metadata, self.durability());
        self.place_complete(id, complete.map_err(|error| self.failed(id, &error))?)
    }

    fn place_complete(&self, id: u32, complete: Complete) -> Result<(), WorkError> {
        let seen = self.seen(id)?;
        let present = &self.trees()?.present;
        if let Some(at) = present.position(self.entry(id)?.path)
            && present.get(at).is_some_and(|entry| entry.is_directory())
        {
            self.clear(at)?;
        }
        complete.install(self.root()?, seen.as_ref()).map_err(|error| self.failed(id, &error))?;
        self.settle_doubt(id);
        Ok(())
    }
}

fn unwritable(error: &DiskError) -> WorkError {
    work_error(error, ProblemKind::Unwritable)
}

fn corrupt() -> WorkError {
    debug!("file role=receiver how=ask-again why=hash-differs");
    WorkError::Entry(ProblemKind::Corrupt, "the received content does not have the announced hash".to_owned())
}
