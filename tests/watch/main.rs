//! `ksync --watch` from the outside: each save arrives a moment later, whatever happens in between.
//!
//! No test sleeps to let something happen. It waits for an event (`--json`), for `ksync flush`, or
//! for a visible result, with a deadline that tells a hang from a slow machine. Only tests that
//! nothing happens measure a fixed time.
//!
//! Tests that lack a user namespace, git, an sshd or `/dev/fuse` print a message and pass, unless
//! `KSYNC_REQUIRE_PEERS=1`.
#![cfg(feature = "sandbox")]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

#[path = "../world/mod.rs"]
mod world;

// Each integration binary uses its own part of these three.
#[path = "../power/fuse.rs"]
#[allow(dead_code)]
mod fuse;
#[path = "../peers/machine.rs"]
#[allow(dead_code)]
mod machine;
#[path = "../sessions/platform.rs"]
#[allow(dead_code)]
mod platform;
mod vm;
mod watcher;

use world::skip;

mod brake;
mod converges;
mod exec;
mod limits;
mod link;
mod live;
mod random;
mod reports;
mod retried;
mod silence;
mod torn;
mod twins;
