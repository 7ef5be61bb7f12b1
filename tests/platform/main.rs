//! The emulator of the platform: each call, each quirk, and the clock. The tests write their HTTP
//! by hand, so that no client hides a difference.
#![cfg(feature = "sandbox")]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod client;
#[path = "../world/mod.rs"]
mod world;

mod clock;
mod computer;
mod faults;
mod files;
mod fs_watch;
mod pools;
mod process;
mod properties;
mod routes;
mod sessions;
mod spawned;
mod vm;
mod worlds;
