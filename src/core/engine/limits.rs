//! `Limits`: lengths of contents from which something is done.

use crate::content::delta::BASIS_BYTES_MAX;
use crate::content::sample::SAMPLED_BYTES_MIN;
use crate::wire::message::CONTENT_BYTES_MAX;

/// Lengths of contents from which something is done. Tests shorten them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of content from which a message is complete.
    pub piece_bytes: u64,
    /// Remaining ranges longer than this, in both versions, are cut into chunks.
    pub cut_bytes_min: u64,
    /// Shortest file that is made from a pre-copy of its basis.
    pub pre_copy_bytes_min: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            piece_bytes: CONTENT_BYTES_MAX as u64,
            // Signatures cover anything shorter as a whole.
            cut_bytes_min: BASIS_BYTES_MAX as u64,
            pre_copy_bytes_min: SAMPLED_BYTES_MIN,
        }
    }
}
