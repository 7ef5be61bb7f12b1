//! What the tests of this layer share.

/// Bytes in which nothing repeats, always the same; what is shorter is the beginning of what is longer.
pub(super) fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}
