//! Connections to a real sshd, past all obstacles.
//!
//! A test whose peer is missing reports that and passes, unless `KSYNC_REQUIRE_PEERS=1`. The tests
//! look for peers in `PATH` and in `KSYNC_PEERS_BIN`.
// Helpers of tests are tests too, but clippy does not know that.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod config;
mod cut;
mod fast;
mod forward;
mod install;
mod keys;
mod links;
mod own;
mod protocols;
mod server;
mod shell;
#[path = "../peers/tls.rs"]
#[allow(dead_code)]
mod tls;
mod trust;
#[path = "../world/mod.rs"]
mod world;
