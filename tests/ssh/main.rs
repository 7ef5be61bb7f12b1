//! ksync's own SSH client against OpenSSH's sshd, and against russh's server, which has methods
//! that this sshd lacks.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod host;
#[path = "../world/mod.rs"]
mod world;

mod algorithms;
mod channels;
mod foreign;
mod orders;
