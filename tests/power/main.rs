//! Power cuts: an ext4 loses its power at any moment of a run, and the next run finds and repairs
//! the damage.
//!
//! Each round has a filesystem of its own in a file. Its seed determines the direction (local,
//! upload, download, watch), mount options, kinds of files, and the moment. The power goes by
//! ext4's shutdown ioctl. Then the next run must exit with 0, and a comparison that shares no code
//! with ksync must find no difference.
//!
//! `cargo test --test power` runs 20 rounds. `KSYNC_POWER_ROUNDS=500 cargo test --test power
//! campaign -- --nocapture` runs that many. `KSYNC_POWER_SEED` is the first round's seed, so that
//! one round can be repeated. Tests that lack root, loop devices, mkfs.ext4 or perl print a message
//! and pass, unless `KSYNC_REQUIRE_PEERS=1`.

#![cfg(feature = "sandbox")]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs
)]

mod closing;
mod disk;
mod fsync;
mod fuse;
mod round;
#[path = "../world/skip.rs"]
mod skip;

use std::sync::{Mutex, MutexGuard, PoisonError};

use disk::Disk;
use round::{Outcome, Round};

/// The default number of rounds.
const ROUNDS: u64 = 20;

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")),
        Err(_) => default,
    }
}

/// Skips unless this machine can cut the power of a filesystem, and returns if it can.
pub(crate) fn can_cut() -> bool {
    Disk::probe().map_err(skip::skip).is_ok()
}

/// Only one test at a time: two that look for a free loop device at once may find the same one.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn campaign() {
    let _turn = alone();
    if !can_cut() {
        return;
    }
    let (first, rounds) = (number("KSYNC_POWER_SEED", 1), number("KSYNC_POWER_ROUNDS", ROUNDS));
    let takes_markers = number("KSYNC_POWER_CONTROL", 0) == 1;
    let mut failed = Vec::new();
    for seed in first..first + rounds {
        let round = Round::new(seed);
        let outcome = round.run(takes_markers);
        println!("{outcome:?}: {round}");
        if outcome != Outcome::Repaired {
            failed.push(seed);
        }
    }
    println!("{rounds} rounds from seed {first}, {} failed: {failed:?}", failed.len());
    assert!(failed.is_empty(), "KSYNC_POWER_SEED={} KSYNC_POWER_ROUNDS=1 repeats one", failed[0]);
}

#[test]
fn the_campaign_fails_without_markers() {
    let _turn = alone();
    if !can_cut() {
        return;
    }
    let rounds = (1..=6).map(Round::that_shows_old_blocks);
    let wrong = rounds.filter(|round| round.run(true) != Outcome::Repaired).count();
    assert!(wrong > 0, "the campaign sees nothing");
}
