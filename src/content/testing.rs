//! What the tests of this layer share, and those above it.

use std::io;

/// Bytes in which nothing repeats, always the same; what is shorter is the beginning of what is longer.
pub(super) fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// Reads a content in memory, as [`Content`](crate::content::blocks::Content) wants it.
pub(crate) fn reader(content: &[u8]) -> impl Fn(&mut [u8], u64) -> io::Result<()> + Sync {
    |buffer, offset| {
        let offset = offset as usize;
        buffer.copy_from_slice(&content[offset..offset + buffer.len()]);
        Ok(())
    }
}
