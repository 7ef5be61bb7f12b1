//! Whole exchanges on real directories: both sides in this process, over a pair of pipes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod cuts;
mod deltas;
mod kinds;
mod meddling;
mod memory;
mod random;
mod world;
