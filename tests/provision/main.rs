//! Setup and cleanup scripts on a real machine.
//!
//! Each test makes a machine like a VM: an overlay over the root of this machine, in namespaces of
//! its own for mounts, processes and the network. It has a real supervisord, sshd, websocat and
//! apt-get, but no internet. The scripts run in it unchanged, called as the platform calls them.
//! Each test asserts that the real machine did not change.
//!
//! The tests need root, and the programs that [`vm`] names. If these are missing, a test reports
//! that and passes, unless `KSYNC_REQUIRE_PEERS=1`. The packages for the image without sshd are in
//! `KSYNC_PEERS_PACKAGES`.
#![cfg(all(feature = "sandbox", target_os = "linux"))]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod host;
mod platform;
mod vm;
#[path = "../world/mod.rs"]
mod world;

mod bridge;
mod cleanup;
mod failures;
mod first;
mod nodelay;
mod official;
mod through_api;
