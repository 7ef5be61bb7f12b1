//! ksync's own SSH client against OpenSSH's sshd, against russh's server, which has methods that
//! this sshd lacks, and against servers of other kinds and versions.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used
)]

mod host;
mod servers;
#[path = "../world/mod.rs"]
mod world;

mod algorithms;
mod channels;
mod foreign;
mod matrix;
mod orders;
mod rounds;
mod terrapin;
