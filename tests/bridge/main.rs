//! The bridge that ksync uploads, against arbitrary traffic on its public port.
//!
//! The tests run the same program that ksync uploads to a VM. Each test plays the target itself,
//! and its clients write their frames byte by byte. tests/peers covers real clients and sshd.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod client;
mod served;
#[path = "../world/mod.rs"]
mod world;

mod ends;
mod hostile;
mod traffic;
