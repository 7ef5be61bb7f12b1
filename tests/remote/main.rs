//! Connections to a real sshd, past all obstacles.
//!
//! A test whose peer is missing reports that and passes, unless `KSYNC_REQUIRE_PEERS=1`. The tests
//! look for peers in `PATH` and in `KSYNC_PEERS_BIN`.
// Helpers of tests are tests too, but clippy does not know that.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]
#![cfg(all(feature = "client", target_os = "linux"))]

mod cut;
mod install;
mod links;
#[path = "../world/skip.rs"]
mod skip;
mod trust;
mod world;
