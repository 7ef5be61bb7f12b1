//! Wants: what a receiver asks for, what it has, and the steps that make the rest.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::content::blocks::{BLOCKS_MAX, BlockId, BlockSize};
use crate::content::delta::{BASIS_BYTES_MAX, signature_bytes};
use crate::tree::entry::SIZE_MAX;

/// Longest file that is read, sent and made as a whole, in bytes.
pub const SMALL_BYTES_MAX: u64 = 128 << 10;

/// Longest file, in bytes, that is sent whole although the receiver has a basis: a signature costs
/// a round trip and saves little.
pub const WHOLE_BYTES_MAX: u64 = 16 << 10;

/// Longest basis against which such a file is compared as a whole, in bytes.
pub const SMALL_BASIS_BYTES_MAX: u64 = 256 << 10;

/// Shortest file that may travel as a delta, in bytes: the signature of a shorter one would cost as
/// much as its content.
pub const DELTA_BYTES_MIN: u64 = 1 << 10;

/// A file that a receiver wants, with the bytes that it already has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// The file's id.
    pub id: u32,
    /// The prefix that an earlier run staged.
    pub staged: Option<Blocks>,
    /// The basis: the version that is there now.
    pub basis: Option<BasisReport>,
}

/// A basis report: what a receiver advertises of a basis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BasisReport {
    /// The blocks of a basis that may equal the new version.
    Blocks(Blocks),
    /// The signature of a basis that certainly differs ([`is_signed`]), so the sender need not ask
    /// for it.
    Signed {
        /// Length of the basis in bytes.
        length: u64,
        /// The signature.
        signature: ByteBuf,
    },
    /// The blocks of a basis without one range, as if its two ends touched: the range was probably
    /// removed.
    RangeRemoved {
        /// The basis's length with the range, and the blocks of the rest. The rest is as long as
        /// the wanted file.
        blocks: Blocks,
        /// Start of the removed range.
        split: u64,
    },
}

impl BasisReport {
    /// The blocks, if they are advertised.
    #[must_use]
    pub fn blocks(&self) -> Option<&Blocks> {
        match self {
            Self::Blocks(blocks) | Self::RangeRemoved { blocks, .. } => Some(blocks),
            Self::Signed { .. } => None,
        }
    }
}

impl Want {
    /// A want without any bytes of the file at the receiver.
    #[must_use]
    pub fn whole(id: u32) -> Self {
        Self { id, staged: None, basis: None }
    }

    /// Approximate size of the want in a message, in bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        let blocks = |blocks: &Blocks| 10 + blocks.ids.len() * size_of::<BlockId>();
        let basis = match &self.basis {
            Some(BasisReport::Blocks(basis)) => blocks(basis),
            Some(BasisReport::RangeRemoved { blocks: basis, .. }) => blocks(basis) + 10,
            Some(BasisReport::Signed { signature, .. }) => 10 + signature.len(),
            None => 0,
        };
        8 + self.staged.as_ref().map_or(0, blocks) + basis
    }

    /// The blocks of the basis, if they are advertised.
    #[must_use]
    pub fn basis_blocks(&self) -> Option<&Blocks> {
        self.basis.as_ref().and_then(BasisReport::blocks)
    }

    /// Length of the basis in bytes; 0 without one.
    #[must_use]
    pub fn basis_length(&self) -> u64 {
        match &self.basis {
            Some(BasisReport::Blocks(blocks) | BasisReport::RangeRemoved { blocks, .. }) => blocks.length,
            Some(BasisReport::Signed { length, .. }) => *length,
            None => 0,
        }
    }

    /// True if a wanted file of `size` bytes is read and compared as a whole.
    #[must_use]
    pub fn is_small(&self, size: u64) -> bool {
        size <= SMALL_BYTES_MAX
            && match (&self.staged, self.basis_blocks()) {
                (None, None) => true,
                (None, Some(basis)) => basis.length <= SMALL_BASIS_BYTES_MAX || size <= WHOLE_BYTES_MAX,
                (Some(_), _) => size <= WHOLE_BYTES_MAX,
            }
    }

    /// True if the want names exactly the blocks that a file of `size` bytes calls for.
    #[must_use]
    pub fn fits(&self, size: u64) -> bool {
        let fits = |blocks: &Blocks, most: u64| {
            BlockSize::for_size(size).count(blocks.length.min(most)) == blocks.ids.len() as u64
        };
        let basis_fits = match &self.basis {
            Some(BasisReport::Blocks(basis)) => fits(basis, basis_bytes_max(size)),
            Some(BasisReport::RangeRemoved { blocks, split }) => {
                self.staged.is_none() && size < blocks.length && *split <= size && fits(blocks, size)
            }
            Some(BasisReport::Signed { length, signature }) => {
                self.staged.is_none()
                    && is_signed(size, *length)
                    && signature.len() == signature_bytes(*length as usize)
            }
            None => true,
        };
        basis_fits && self.staged.as_ref().is_none_or(|staged| fits(staged, size))
    }
}

/// A receiver's blocks of a file, in the [`BlockSize`] for the wanted size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    /// Length in bytes of the staged prefix or the basis.
    pub length: u64,
    /// Names of the blocks. A staged prefix is named up to the length of the wanted file, a basis
    /// up to [`basis_bytes_max`].
    pub ids: Vec<BlockId>,
}

/// Bytes of a basis that are advertised for a wanted file of `size` bytes. They exceed `size`,
/// since something may have been removed near the beginning.
#[must_use]
pub fn basis_bytes_max(size: u64) -> u64 {
    size.saturating_mul(2)
}

/// True if a basis of `length` bytes is signed at once for a wanted file of `size` bytes. Both are
/// small, the signature is shorter than the file, and the lengths alone show that they differ.
#[must_use]
pub fn is_signed(size: u64, length: u64) -> bool {
    size != length
        && (DELTA_BYTES_MIN..=SMALL_BYTES_MAX).contains(&size)
        && (1..=SMALL_BASIS_BYTES_MAX).contains(&length)
}

/// A range of a basis for the receiver to sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Window {
    /// Start, in bytes.
    pub offset: u64,
    /// Length in bytes, at most [`BASIS_BYTES_MAX`].
    pub length: u32,
}

/// A long range of a basis, beyond what one signature can cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// Start, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// A step that builds a new content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Begin with the first bytes of the staged prefix. Only allowed as the first step.
    Keep {
        /// Bytes to keep.
        length: u64,
    },
    /// Append bytes of the basis.
    Copy {
        /// Start in the basis.
        offset: u64,
        /// Bytes to copy.
        length: u64,
    },
    /// Append these bytes.
    Data(ByteBuf),
    /// Append the result of this delta against a window of the basis.
    Delta {
        /// The window.
        window: Window,
        /// Length of the result in bytes.
        length: u32,
        /// The delta in the format of `fast_rsync`.
        delta: ByteBuf,
    },
    /// Append zeros.
    Zeros {
        /// Number of zeros.
        length: u64,
    },
}

impl Op {
    /// Bytes of content that travel in this step.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        match self {
            Self::Keep { .. } | Self::Copy { .. } | Self::Zeros { .. } => 0,
            Self::Data(bytes) | Self::Delta { delta: bytes, .. } => bytes.len() as u64,
        }
    }

    /// Bytes of content that this step produces.
    #[must_use]
    pub fn made_bytes(&self) -> u64 {
        match self {
            Self::Keep { length } | Self::Copy { length, .. } | Self::Zeros { length } => *length,
            Self::Data(bytes) => bytes.len() as u64,
            Self::Delta { length, .. } => u64::from(*length),
        }
    }
}

pub(super) fn window_is_within_limits(window: &Window) -> bool {
    window.length as usize <= BASIS_BYTES_MAX && is_stretch(window.offset, window.length.into())
}

/// True if a file can have such a range. Adding to offsets that pass here cannot overflow.
pub(super) fn is_stretch(offset: u64, length: u64) -> bool {
    offset.checked_add(length).is_some_and(|end| end <= SIZE_MAX)
}

/// True if some file could have these blocks; [`Want::fits`] checks them against the file.
pub(super) fn want_is_within_limits(want: &Want) -> bool {
    [want.staged.as_ref(), want.basis_blocks()]
        .into_iter()
        .flatten()
        .all(|blocks| blocks.length <= SIZE_MAX && blocks.ids.len() as u64 <= 2 * BLOCKS_MAX)
}
