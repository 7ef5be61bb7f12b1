//! Compatibility with the software of real VMs: OpenSSH's sshd behind websocat, and rsync as the
//! judge.
//!
//! A test whose peers are missing reports that and passes, unless `KSYNC_REQUIRE_PEERS=1`. The
//! tests look for peers in `KSYNC_PEERS_BIN`, in `PATH` and in the directories of sshd.
#![cfg(feature = "sandbox")]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod machine;
#[allow(dead_code)]
mod tls;
#[path = "../world/mod.rs"]
mod world;

mod command_lines;
mod config;
mod emulator;
mod forward;
mod lanes;
mod login;
mod lossy;
mod own;
mod private;
mod proxy;
mod recipe;
mod round_trip;
mod round_trips;
mod shell;
mod sockets;
mod stand_in;
