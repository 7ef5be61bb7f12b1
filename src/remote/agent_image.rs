//! The agent to install: its compressed bytes and its name.

use std::borrow::Cow;

use bytes::Bytes;

/// Unit in which the other side reads the compressed agent. `dd` with whole blocks never reads
/// beyond them.
pub const BLOCK_BYTES: usize = 4096;

/// A program to install on the other side.
#[derive(Debug, Clone)]
pub struct AgentImage {
    /// SHA-256 of the program in lower-case hex, which is part of its file name there.
    pub sha256: Cow<'static, str>,
    /// The program compressed with gzip. Padding in gzip's header fills it up to a multiple of
    /// [`BLOCK_BYTES`].
    pub gzip: Bytes,
}

impl AgentImage {
    /// The agent of this client. Both come from the same source, so their protocols match.
    #[must_use]
    pub fn embedded() -> Self {
        Self {
            sha256: Cow::Borrowed(ksync_embedded::AGENT_SHA256),
            gzip: Bytes::from_static(ksync_embedded::AGENT_GZIP),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_agent_can_be_read_in_whole_blocks() {
        let image = AgentImage::embedded();
        assert_eq!(image.gzip.len() % BLOCK_BYTES, 0);
        assert!(image.gzip.starts_with(&[0x1f, 0x8b]));
        assert!(image.sha256.len() == 64 && image.sha256.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
