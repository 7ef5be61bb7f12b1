//! Kernel sessions from the outside: `ksync` against the emulator of the platform.
#![cfg(feature = "sandbox")]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

#[path = "../world/mod.rs"]
mod world;

mod brake;
mod cleanup;
mod clock;
mod connections;
mod cut;
mod doctor;
mod failures;
mod journey;
mod keep_alive;
mod life;
mod names;
mod openssh;
mod platform;
mod proxies;
mod proxy_server;
mod secrets;
mod shown;
mod terminal;
#[path = "../peers/tls.rs"]
#[allow(dead_code)]
mod tls;
mod unreachable;
