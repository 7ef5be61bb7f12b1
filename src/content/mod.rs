//! Content: what the bytes of one file are. Knows no files and no peers.

pub mod blocks;
pub mod chunk;
pub mod delta;
pub mod encode;
pub mod fitted;
pub mod hash;
pub mod pack;
pub mod sample;

#[cfg(test)]
pub(crate) mod testing;
