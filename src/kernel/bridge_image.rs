//! The bridge that ksync uploads to a VM without one: its compressed bytes and its hash.

/// A program that carries bytes between WebSocket messages and sshd.
#[derive(Debug, Clone, Copy)]
pub struct BridgeImage {
    /// SHA-256 of the program, in lower-case hex.
    pub sha256: &'static str,
    /// The program, compressed with gzip.
    pub gzip: &'static [u8],
}

impl BridgeImage {
    /// The bridge built along with this client: a static x86-64 Linux program.
    #[must_use]
    pub const fn embedded() -> Self {
        Self { sha256: ksync_embedded::BRIDGE_SHA256, gzip: ksync_embedded::BRIDGE_GZIP }
    }
}
