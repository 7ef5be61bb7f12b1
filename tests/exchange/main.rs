//! Whole exchanges on real directories: both sides in this process, over a pair of pipes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod attributes;
mod baseline;
mod cuts;
mod deltas;
mod filters;
mod kept;
mod kinds;
mod lanes;
mod large;
mod meddling;
mod panics;
mod random;
#[path = "../world/skip.rs"]
mod skip;
mod world;
