//! Content: what the bytes of one file are. Knows no files and no peers.

pub mod hash;
