//! The lab of the comparing benches: a machine to sync with, the link in front of it, and the
//! observers of both.
//!
//! Each bench uses a part of this module. A failure ends the bench with a panic, which its user
//! reads.
#![allow(dead_code, unused_imports, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

pub(crate) mod change;
pub(crate) mod figures;
pub(crate) mod link;
pub(crate) mod machine;
pub(crate) mod memory;
pub(crate) mod place;
pub(crate) mod verify;
#[path = "../../tests/world/mod.rs"]
pub(crate) mod world;

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Reports if the user has interrupted the bench.
pub(crate) fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Sets a flag on SIGINT and SIGTERM, so that the bench stops its services and frees the memory
/// that it uses as a disk.
pub(crate) fn end_orderly_when_interrupted() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let mut terminate = signal(SignalKind::terminate()).expect("a signal");
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        });
        INTERRUPTED.store(true, Ordering::Relaxed);
    });
}

/// First missing program that the machine needs.
pub(crate) fn missing_program() -> Option<&'static str> {
    ["sshd", "ssh", "ssh-keygen", "websocat"].into_iter().find(|name| world::skip::program(name).is_none())
}
