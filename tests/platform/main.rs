//! Is the stand-in for the platform what the platform is? Each call, each quirk, and the clock, by HTTP that is
//! written out here, so that no client smooths anything over.
#![cfg(feature = "sandbox")]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod client;
#[path = "../world/mod.rs"]
mod world;

mod clock;
mod faults;
mod files;
mod pools;
mod process;
mod sessions;
mod spawned;
mod vm;
