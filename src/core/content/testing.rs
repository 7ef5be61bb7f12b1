//! Helpers for the tests of this layer and of those above it.

use std::io;

/// Deterministic bytes without repetition; a shorter result is a prefix of a longer one.
pub(super) fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// Reads a content in memory, as [`Content`](crate::content::blocks::Content).
pub(crate) fn reader(content: &[u8]) -> impl Fn(&mut [u8], u64) -> io::Result<()> + Sync {
    |buffer, offset| {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let range = offset..offset.saturating_add(buffer.len());
        buffer.copy_from_slice(content.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
