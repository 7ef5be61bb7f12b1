//! ksync's own SSH client against OpenSSH's sshd, and russh's server where that sshd lacks a method.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod host;
#[path = "../world/mod.rs"]
mod world;

mod algorithms;
mod channels;
mod orders;
