//! The agent to install: its compressed bytes and its name.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;

/// Unit in which the other side reads the compressed agent. `dd` with whole blocks never reads
/// beyond them.
pub const BLOCK_BYTES: usize = 4096;

/// A program to install on the other side.
#[derive(Clone)]
pub struct AgentImage {
    /// SHA-256 of the program in lower-case hex, which is part of its file name there.
    pub sha256: Cow<'static, str>,
    /// The program compressed with gzip. Padding in gzip's header fills it up to a multiple of
    /// [`BLOCK_BYTES`].
    pub gzip: Bytes,
}

/// Shows the hash, since the bytes are a megabyte.
impl fmt::Debug for AgentImage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AgentImage").field("sha256", &self.sha256).finish_non_exhaustive()
    }
}
