//! Does the bridge that ksync carries hold whatever comes to the port that everybody can reach?
//!
//! It is the very program that ksync brings to a VM, with a target that each test plays itself, and clients that
//! write their frames byte by byte. What it is like with real clients and sshd is shown among the peers.
#![cfg(all(feature = "client", target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod client;
mod served;
#[path = "../world/mod.rs"]
mod world;

mod ends;
mod hostile;
mod traffic;
