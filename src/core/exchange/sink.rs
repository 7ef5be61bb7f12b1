//! `Sink`: one larger file on its way in.

use std::fs::File;
use std::io;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use crate::content::blocks::{BlockSize, Content, Nodes, outline};
use crate::content::delta;
use crate::content::hash::{Hash, Hasher};
use crate::content::shift_map::ShiftMap;
use crate::disk::error::DiskError;
use crate::disk::root::Root;
use crate::disk::stage::Staging;
use crate::disk::stat::Identity;
use crate::exchange::basis::BasisFile;
use crate::exchange::pre_copy::PreCopy;
use crate::exchange::retry_while_busy;
use crate::tree::path::TreePath;
use crate::wire::message::{Blocks, Op, Window};

/// Failure to make a file.
#[derive(Debug)]
pub(super) enum SinkError {
    /// A failure of the disk.
    Disk(DiskError),
    /// The bytes to copy do not exist, or a delta does not fit: the basis changed, or the sender is
    /// wrong about it.
    Basis(String),
    /// A request of the peer that makes no sense.
    Peer(&'static str),
}

impl From<DiskError> for SinkError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

pub(super) struct Sink {
    growing: Growing,
    basis: Option<BasisFile>,
}

/// The way in which the file is made.
enum Growing {
    /// From nothing, or from the bytes that an earlier run staged.
    Anew(Box<Anew>),
    /// From a pre-copy of the basis.
    PreCopy(PreCopy),
}

struct Anew {
    staging: Staging,
    /// Nodes of the staged bytes, if they were hashed for the want.
    nodes: Option<Nodes>,
    hasher: Hasher,
    begun: bool,
}

impl Sink {
    /// Begins to make `path`. `basis` is the path and listed identity of a file that it can be made
    /// from, and `pre_copy` a pre-copy of that file. `nodes` belong to the bytes that an earlier
    /// run staged, if they are known.
    pub(super) fn begin(
        root: &Root,
        path: &TreePath,
        basis: Option<(&TreePath, &Identity)>,
        pre_copy: Option<PreCopy>,
        nodes: Option<Nodes>,
    ) -> Result<Self, SinkError> {
        let shift_map = pre_copy.as_ref().map(PreCopy::advertised_shift_map);
        let growing = match pre_copy {
            Some(pre_copy) => Growing::PreCopy(pre_copy),
            None => {
                let (staging, _) = retry_while_busy(|| Staging::open(root, path))?;
                let is_replaced = basis.is_some_and(|(basis, _)| basis == path);
                let staging = if is_replaced { staging.replacing() } else { staging };
                Growing::Anew(Box::new(Anew { staging, nodes, hasher: Hasher::new(), begun: false }))
            }
        };
        let basis_file = basis.and_then(|(basis, seen)| {
            let file = open_basis(root, basis, seen).ok()?;
            Some(BasisFile::new(file, shift_map.unwrap_or(ShiftMap::same(seen.size))))
        });
        // Without a basis the content may still come whole; only steps that copy from it fail.
        Ok(Self { growing, basis: basis_file })
    }

    /// Performs one step.
    pub(super) fn apply(&mut self, op: Op) -> Result<(), SinkError> {
        match &mut self.growing {
            Growing::Anew(anew) => anew.apply(op, self.basis.as_ref()),
            Growing::PreCopy(pre_copy) => pre_copy.apply(op, self.basis.as_ref()),
        }
    }

    /// Returns the finished file, if it has this hash, and the basis.
    pub(super) fn finish(self, hash: Hash) -> Result<(Staging, Option<File>), SinkError> {
        let staging = match self.growing {
            Growing::Anew(anew) => anew.finish(hash)?,
            Growing::PreCopy(pre_copy) => pre_copy.finish(hash)?,
        };
        Ok((staging, self.basis.map(BasisFile::into_file)))
    }
}

impl Anew {
    fn apply(&mut self, op: Op, basis: Option<&BasisFile>) -> Result<(), SinkError> {
        let begun = std::mem::replace(&mut self.begun, true);
        if !begun {
            let kept = if let Op::Keep { length } = op { length } else { 0 };
            self.staging.keep(kept)?;
            if self.staging.len() < kept {
                return Err(SinkError::Basis("the staged content is gone".to_owned()));
            }
            // Hashing a gigabyte again would keep the sender waiting, and the bytes that it has
            // sent meanwhile would be lost if the connection breaks.
            self.hasher = self.nodes.take().and_then(|nodes| nodes.hasher(kept)).unwrap_or_default();
            self.staging.read_back(self.hasher.count(), &mut |piece| self.hasher.take(piece))?;
        }
        match op {
            Op::Keep { .. } if begun => Err(SinkError::Peer("keeping what is staged is only ever first")),
            Op::Keep { .. } => Ok(()),
            Op::Data(bytes) => Ok(self.append(&bytes)?),
            Op::Copy { offset, length } => {
                let (basis, hasher) = (basis.ok_or_else(basis_changed)?, &mut self.hasher);
                // Hash the bytes that are written.
                self.staging
                    .append_from_and_visit(basis.file(), offset, length, &mut |piece| hasher.take(piece))?;
                Ok(())
            }
            Op::Delta { window, length, delta } => {
                Ok(self.append(&apply_delta(basis, window, length, &delta)?)?)
            }
            Op::Zeros { length } => {
                self.hasher.zeros(length);
                Ok(self.staging.append_zeros(length)?)
            }
        }
    }

    fn finish(mut self, hash: Hash) -> Result<Staging, SinkError> {
        if !self.begun {
            self.staging.keep(0)?;
        }
        if self.hasher.finish() == hash {
            return Ok(self.staging);
        }
        self.staging.discard()?;
        Err(wrong_hash())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        self.hasher.update(bytes);
        self.staging.append(bytes)
    }
}

/// Applies a delta to a range of the basis.
pub(super) fn apply_delta(
    basis: Option<&BasisFile>,
    window: Window,
    length: u32,
    delta: &[u8],
) -> Result<Vec<u8>, SinkError> {
    let basis = basis.ok_or_else(basis_changed)?.window(window)?;
    delta::apply(&basis, delta, length as usize).map_err(|error| SinkError::Basis(error.to_string()))
}

pub(super) fn wrong_hash() -> SinkError {
    SinkError::Basis("the received content does not have the announced hash".to_owned())
}

pub(super) fn basis_changed() -> SinkError {
    SinkError::Basis("its basis in the destination has changed".to_owned())
}

/// Opens a basis, if it is still the listed file.
pub(super) fn open_basis(root: &Root, path: &TreePath, seen: &Identity) -> Result<File, SinkError> {
    let (file, stat) = root.open_file(path)?;
    if stat.identity == *seen { Ok(file) } else { Err(basis_changed()) }
}

/// Names the blocks of a basis or a staged prefix of `length` bytes, for a wanted file of `size`
/// bytes, from at most `most` bytes. Also returns the hash of all of it, unless it is longer than
/// that.
pub(super) fn blocks_of(
    length: u64,
    size: u64,
    most: u64,
    content: &dyn Content,
) -> std::io::Result<(Blocks, Option<Hash>)> {
    let outline = outline(length.min(most), BlockSize::for_size(size), content)?;
    Ok((Blocks { length, ids: outline.ids }, (length <= most).then_some(outline.hash)))
}

/// Reads `length` bytes of a file from `offset` on. (Zero-filled memory would be touched twice.)
pub(super) fn read_bytes(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let at = offset.saturating_add(bytes.len() as u64);
        match rustix::io::pread(file, spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The capacity may exceed `length`.
    bytes.truncate(length);
    Ok(bytes)
}
