//! Kept connections: what a repeat costs, and that no run fails or differs for the keeper's sake.
//!
//! Each test has keepers of its own, in a runtime directory of its own, and ends them.
#![cfg(feature = "sandbox")]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../peers/machine.rs"]
mod machine;
#[allow(dead_code)]
#[path = "../sessions/platform.rs"]
mod platform;
#[path = "../world/mod.rs"]
mod world;

mod campaign;
mod faults;
mod kept;
#[cfg(target_os = "linux")]
mod namespace;
mod places;
mod repeat;
mod session;
