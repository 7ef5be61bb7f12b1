//! Does the way there lead to a real sshd, past everything that can stand in it?
//!
//! A test whose peer is missing says so and passes, unless `KSYNC_REQUIRE_PEERS=1`. Peers are looked for in
//! `PATH` and in `KSYNC_PEERS_BIN`.
// Helpers of tests are tests too, which clippy cannot know.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]
#![cfg(all(feature = "client", target_os = "linux"))]

mod cut;
mod install;
mod links;
mod trust;
mod world;
