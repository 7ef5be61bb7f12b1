//! Kernel sessions from the outside: `ksync` against the emulator of the platform.
#![cfg(feature = "sandbox")]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

#[path = "../world/mod.rs"]
mod world;

mod brake;
mod clock;
mod connections;
mod failures;
mod journey;
mod life;
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
