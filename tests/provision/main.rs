//! Do the scripts that set a VM up, and take that back, work on a real machine?
//!
//! Each test makes a machine like a VM: an overlay over the root of the one that runs the tests, in namespaces of
//! its own for mounts, processes and the network, with a real supervisord, sshd, websocat and apt-get, and without
//! the internet. The scripts run in it word for word, called as the platform calls them. Nothing of the real machine
//! may change by that: each test looks.
//!
//! It needs root, and what [`vm`] names. Where that is missing a test says so and passes, unless
//! `KSYNC_REQUIRE_PEERS=1`. The packages for the image that lacks them lie in `KSYNC_PEERS_PACKAGES`.
#![cfg(all(feature = "sandbox", target_os = "linux"))]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod host;
mod vm;
#[path = "../world/mod.rs"]
mod world;

mod bridge;
mod cleanup;
mod first;
mod official;
mod trouble;
