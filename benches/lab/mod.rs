//! The lab of the benches that measure ksync beside others: a machine to sync with, the link before it, and what
//! looks at both.
//!
//! Each bench uses its own part of this. A harness that cannot go on has nobody to tell but who started it.
#![allow(dead_code, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

pub(crate) mod change;
pub(crate) mod figures;
pub(crate) mod link;
pub(crate) mod machine;
pub(crate) mod memory;
pub(crate) mod verify;
pub(crate) mod world;

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether somebody wants all of this to end.
pub(crate) fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// What was started has to be stopped, and memory that is used as a disk has to be given back.
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

/// The first of the programs that is not installed, without which there is no machine to sync with.
pub(crate) fn missing_program() -> Option<&'static str> {
    ["sshd", "ssh", "ssh-keygen", "websocat"].into_iter().find(|name| world::program(name).is_none())
}
