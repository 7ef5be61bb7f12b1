//! Transfers: one value for each file on its way.
//!
//! The engine keeps the transfers of all files that were asked for. A work takes one, performs a
//! step on it and gives it back, so no two works share one. The steps read and write through the
//! traits here: open files in production, bytes in memory in the tests of both engines.
//!
//! [`send`] is the sender's half of a transfer, [`receive`] the receiver's. `plan` decides which
//! parts of a content must travel.

pub(crate) mod basis;
mod plan;
pub(super) mod pre_copy;
pub mod receive;
pub mod send;

use std::fmt::Debug;
use std::io;

use crate::content::blocks::{BlockSize, Content, Nodes, Outline};
use crate::content::hash::Piece;
use crate::engine::error::WorkError;
use crate::wire::message::AbortKind;

/// A listed source. Its clones share one listing.
pub trait Source: Clone + Debug + Send + 'static {
    /// The source before it is listed.
    type Found: Debug + Send + 'static;
    /// A file of it.
    type File: SourceFile;

    /// Opens an offered file.
    ///
    /// # Errors
    /// The file cannot be read, or is no longer the listed one.
    fn open(&self, id: u32) -> Result<Self::File, WorkError>;
}

/// An open file of a source.
pub trait SourceFile: Content + Debug + Send + 'static {
    /// Reads `length` bytes from `offset` on.
    ///
    /// # Errors
    /// The file cannot be read, or ends before that.
    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>>;

    /// The outline of the file, if it was prehashed; waits until it is complete.
    fn prehashed(&self, block: BlockSize) -> Option<Outline>;

    /// Cancels the prehash of the file: nobody will compare it.
    fn cancel_prehash(&self);

    /// Compares the file with the offered version by its identity.
    ///
    /// # Errors
    /// The file's identity cannot be read.
    fn difference(&self) -> io::Result<Difference>;
}

/// Difference between an open file and the offered version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// It is the offered version.
    None,
    /// The same file has other times: it was written to, or only touched.
    Touched,
    /// The same file is longer.
    Longer,
    /// It is shorter, or another file.
    Other,
}

/// A destination that is opened and listed. Its clones share one listing.
pub trait Target: Clone + Debug + Send + 'static {
    /// The destination before the plan.
    type Opened: Clone + Debug + Send + 'static;
    /// An open basis.
    type Basis: Content + Debug + Send + 'static;
    /// A file without its final name.
    type Draft: Draft<Self::Basis>;

    /// Opens a basis, if it is still the listed file.
    ///
    /// # Errors
    /// The file cannot be read, or has changed.
    fn open_basis(&self, at: u32) -> Result<Self::Basis, WorkError>;

    /// True if [`Target::prehashed`] has nodes of a basis and would not wait for them.
    fn is_prehashed(&self, at: u32) -> bool;

    /// The nodes of a basis, if it was prehashed; waits until they are complete.
    fn prehashed(&self, at: u32) -> Option<Nodes>;

    /// Cancels the prehash of a basis.
    fn cancel_prehash(&self, at: u32);

    /// Free bytes for pre-copies; 0 if unknown, or if a copy within the filesystem shares extents:
    /// then a pre-copy saves nothing.
    fn pre_copy_room_bytes(&self) -> u64;

    /// The content that an earlier run staged of a file.
    ///
    /// # Errors
    /// The destination cannot be read.
    fn staged(&self, id: u32) -> Result<Option<Self::Draft>, WorkError>;

    /// A draft of a file, with the content that an earlier run staged. `replaces` tells that the
    /// file in place is its basis.
    ///
    /// # Errors
    /// The destination cannot be written to.
    fn draft(&self, id: u32, replaces: bool) -> Result<Self::Draft, WorkError>;

    /// Gives a complete file its final name.
    ///
    /// # Errors
    /// The destination cannot be written to, or somebody else changed the place.
    fn install(&self, id: u32, draft: Self::Draft, basis: Option<Self::Basis>) -> Result<(), WorkError>;

    /// Writes and installs small files.
    fn install_small(&self, files: &[(u32, Vec<u8>)]) -> Vec<Result<(), WorkError>>;
}

/// A file without its final name: what its content is made in.
pub trait Draft<B>: Content + Debug + Send + 'static {
    /// Length in bytes.
    fn length(&self) -> u64;

    /// Keeps only the first `length` bytes.
    ///
    /// # Errors
    /// The disk fails; the same holds for all writes.
    fn keep(&mut self, length: u64) -> Result<(), WorkError>;

    /// Appends bytes.
    ///
    /// # Errors
    /// The disk is full, or fails.
    fn append(&mut self, bytes: &[u8]) -> Result<(), WorkError>;

    /// Appends zeros, which take no space.
    ///
    /// # Errors
    /// As [`Draft::append`].
    fn append_zeros(&mut self, count: u64) -> Result<(), WorkError>;

    /// Appends a range of a basis, and hands the bytes to `visit` as they were written.
    ///
    /// # Errors
    /// As [`Draft::append`]; the basis cannot be read or is shorter.
    fn append_from(
        &mut self,
        basis: &B,
        offset: u64,
        length: u64,
        visit: &mut (dyn FnMut(Piece<'_>) + Send),
    ) -> Result<(), WorkError>;

    /// Hands the bytes from `start` on to `visit`.
    ///
    /// # Errors
    /// The bytes cannot be read.
    fn read_back(&self, start: u64, visit: &mut dyn FnMut(Piece<'_>)) -> Result<(), WorkError>;

    /// Starts over with `length` zeros, which take no space.
    ///
    /// # Errors
    /// As [`Draft::append`].
    fn begin_with_zeros(&mut self, length: u64) -> Result<(), WorkError>;

    /// Writes over a range that still holds zeros.
    ///
    /// # Errors
    /// The disk is full, or the draft is shorter.
    fn fill(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Overwrites bytes from `offset` on.
    ///
    /// # Errors
    /// As [`Draft::append`].
    fn overwrite(&mut self, bytes: &[u8], offset: u64) -> Result<(), WorkError>;

    /// Overwrites a range with zeros, which take no space.
    ///
    /// # Errors
    /// As [`Draft::append`].
    fn overwrite_with_zeros(&mut self, range: std::ops::Range<u64>) -> Result<(), WorkError>;

    /// Classifies an error of reading or filling this draft.
    fn failed(&self, error: io::Error) -> WorkError;

    /// Removes the draft.
    fn discard(self);
}

/// A peer that broke the protocol.
fn broken(text: &str) -> WorkError {
    WorkError::Fatal(AbortKind::Protocol, text.to_owned())
}
