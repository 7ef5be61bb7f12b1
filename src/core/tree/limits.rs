//! Limits of a manifest, and the reasons to refuse one.

use crate::tree::path::{PathError, TreePath};

/// Most entries of one tree. At 28 bytes and a name each, they bound the memory that a peer can
/// make a receiver use.
pub const ENTRIES_MAX: usize = 4_000_000;

/// Most bytes of paths and link targets of one tree: 128 bytes for each of the most entries. Front
/// coding makes a path of 8 KiB out of ten bytes on the wire, so the number of entries alone bounds
/// nothing.
pub const TEXT_BYTES_MAX: usize = 512 << 20;

/// Most bytes of all files of one tree together: an exbibyte, so that sums of them never overflow.
pub const CONTENT_BYTES_MAX: u64 = 1 << 60;

/// The reason why bytes are not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The block does not have the form of a block.
    #[error("a block of the manifest is malformed")]
    Malformed,
    /// A name is not allowed.
    #[error("the manifest holds a path that is not allowed: {0}")]
    Path(#[from] PathError),
    /// An entry does not come after the one before it.
    #[error("the manifest is out of order at {0}")]
    Order(TreePath),
    /// An entry's parent is not a directory of the manifest.
    #[error("the manifest lists {0} without its directory")]
    Orphan(TreePath),
    /// A size, mode, time or link target is outside the allowed range.
    #[error("the manifest gives {0} an impossible {1}")]
    Field(TreePath, &'static str),
    /// More than [`ENTRIES_MAX`] entries.
    #[error("the manifest has more than {ENTRIES_MAX} entries")]
    TooMany,
    /// All files together are longer than [`CONTENT_BYTES_MAX`].
    #[error("the files of the manifest are longer than {CONTENT_BYTES_MAX} bytes together")]
    TooLarge,
    /// Paths and link targets of more than [`TEXT_BYTES_MAX`] bytes.
    #[error("the manifest's paths have more than {TEXT_BYTES_MAX} bytes")]
    TooLong,
}
