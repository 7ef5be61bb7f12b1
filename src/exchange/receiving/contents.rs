//! Takes contents in.

use std::thread;

use crate::content::delta;
use crate::content::hash::Hash;
use crate::disk::error::DiskError;
use crate::disk::stage::{Durability, Staging};
use crate::engine::{CopiedFile, Fault, SmallContent, SmallFile};
use crate::exchange::receiving::{Receiving, sink_fault};
use crate::exchange::sink::{Sink, SinkError};
use crate::monitor::Trouble;
use crate::tree::entry::Entry;
use crate::wire::message::Op;

/// With the last handle on a file that was replaced its pages are freed, 0.1 s for a gigabyte. From this length on,
/// in bytes, nobody waits for that.
const CLOSED_ASIDE_BYTES_MIN: u64 = 64 << 20;

impl Receiving {
    pub(super) fn store(&self, file: &SmallFile) -> Result<(), Fault> {
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
        let (root, path) = (self.root()?, self.path(file.id)?);
        self.before_writing(data).map_err(|error| unwritable(&error))?;
        if self.trees()?.present.position(&self.entry(file.id)?.path).is_none() {
            let metadata = self.metadata(file.id)?;
            if root.put_new(path, data, &metadata).map_err(|error| unwritable(&error))? {
                return Ok(());
            }
        }
        let staged = Staging::open(root, path).and_then(|(mut staging, _)| {
            staging.keep(0)?;
            staging.append(data)?;
            Ok(staging)
        });
        self.install(file.id, staged.map_err(|error| unwritable(&error))?)
    }

    fn apply_delta(&self, id: u32, at: u32, delta: &[u8]) -> Result<Vec<u8>, Fault> {
        let old = self.read_basis(at)?;
        // Checked to be small when it came.
        let size = self.entry(id)?.size() as usize;
        delta::apply(&old, delta, size).map_err(|error| sink_fault(SinkError::Basis(error.to_string())))
    }

    pub(super) fn copy(&self, file: CopiedFile) -> Result<(), Fault> {
        let (_, seen) = self.basis(file.at)?;
        let ops = vec![Op::Copy { offset: 0, length: seen.size }];
        self.sink(file.id, Some(file.at), ops, Some(file.hash))
    }

    pub(super) fn sink(
        &self,
        id: u32,
        at: Option<u32>,
        ops: Vec<Op>,
        end: Option<Hash>,
    ) -> Result<(), Fault> {
        let taken = self.sinks().remove(&id);
        let mut sink = match taken {
            Some(sink) => sink,
            None => {
                let basis = at.map(|at| self.basis(at)).transpose()?;
                Sink::begin(self.root()?, self.path(id)?, basis, self.drafts.take(id))
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
                let (staging, old) = sink.finish(hash).map_err(|error| self.sink_failed(id, error))?;
                let is_long = staging.len() >= CLOSED_ASIDE_BYTES_MIN;
                let installed = self.install(id, staging);
                if is_long {
                    // If there can be no thread, it is closed here.
                    let _ = thread::Builder::new().spawn(move || drop(old));
                }
                installed
            }
            None => {
                self.sinks().insert(id, sink);
                self.give_up_if_full();
                Ok(())
            }
        }
    }

    pub(super) fn install(&self, id: u32, staging: Staging) -> Result<(), Fault> {
        let metadata = self.metadata(id)?;
        let seen = self.seen(id)?;
        let present = &self.trees()?.present;
        if let Some(at) = present.position(&self.entry(id)?.path)
            && present.get(at).is_some_and(Entry::is_directory)
        {
            self.clear(at)?;
        }
        staging
            .finish(self.root()?, &metadata, seen.as_ref(), Durability::Eventually)
            .map_err(|error| self.failed(id, &error))
    }
}

fn corrupt() -> Fault {
    Fault::Entry(Trouble::Corrupt, "what arrived does not have the hash that was announced".to_owned())
}
