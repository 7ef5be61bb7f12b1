//! The bridge that ksync uploads to a VM without one: its compressed bytes and its hash.

use std::fmt;

/// A program that carries bytes between WebSocket messages and sshd.
#[derive(Clone, Copy)]
pub struct BridgeImage {
    /// SHA-256 of the program, in lower-case hex.
    pub sha256: &'static str,
    /// The program, compressed with gzip.
    pub gzip: &'static [u8],
}

/// Shows the hash, since the bytes are half a megabyte.
impl fmt::Debug for BridgeImage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("BridgeImage").field("sha256", &self.sha256).finish_non_exhaustive()
    }
}
