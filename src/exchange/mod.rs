//! The exchange: one engine, one disk, one stream in, one stream out.
//!
//! [`run`] drives an engine with plain threads over blocking [`Read`](std::io::Read) and
//! [`Write`](std::io::Write); how the bytes travel is not its business, so it is the same on both sides and
//! between two threads of one process. [`Sending`] and [`Receiving`] perform the works of the two engines. Where a
//! tree is watched, exchanges follow each other on one [`Link`]: see [`rounds`].

mod ahead;
mod draft;
mod drafts;
mod guess;
mod inbox;
pub mod lanes;
mod layout;
mod liveness;
mod old;
mod outbox;
mod pace;
mod receiving;
pub mod rounds;
mod run;
mod sending;
mod sink;
mod source;

pub use liveness::Timeouts;
pub use receiving::Receiving;
pub use run::{Asker, Carried, Incoming, Link, Perform, run, run_over};
pub use sending::Sending;

use std::time::{Duration, Instant};

use crate::disk::error::DiskError;
use crate::disk::memory::Memory;
use crate::disk::scan::{ScanOptions, Subject};
use crate::engine::{Fault, Outcome};
use crate::monitor::Trouble;
use crate::tree::entry::Entry;
use crate::tree::filter::IgnoreFile;
use crate::tree::manifest::{Manifest, ManifestError};
use crate::tree::path::TreePath;
use crate::wire::message::{AbortKind, SMALL_BYTES_MAX};

/// What a failure of the disk means for a run: a full or failing filesystem ends it, everything else is the
/// trouble of one entry.
fn fault(error: &DiskError, trouble: Trouble) -> Fault {
    let text = chain(error);
    if error.is_no_space() || error.is_broken() {
        Fault::Fatal(AbortKind::Storage, text)
    } else if error.is_busy() {
        Fault::Fatal(AbortKind::Busy, text)
    } else if error.is_conflict() {
        Fault::Entry(Trouble::Conflict, text)
    } else if trouble == Trouble::Unreadable && error.is_not_found() {
        Fault::Entry(Trouble::Vanished, text)
    } else {
        Fault::Entry(trouble, text)
    }
}

/// How long a destination may be in use by another run. One that was killed a moment ago leaves an agent
/// behind that still writes what had arrived.
const BUSY_PATIENCE: Duration = Duration::from_secs(5);

/// Tries again while another run is using what this one needs.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, DiskError>) -> Result<T, DiskError> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(error) if error.is_busy() && start.elapsed() < BUSY_PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// Keeps what is offered, where there is a memory. What cannot be kept costs the next run bytes and nothing
/// else, so nobody is told.
fn remember(memory: Option<&Memory>, manifest: &Manifest, ignores: &[IgnoreFile]) -> Outcome {
    let _ = memory.is_some_and(|memory| memory.remember(manifest, ignores));
    Outcome::Remember
}

/// How either side reads its tree. What was touched may be another file of the same length and the same time: a
/// checkout writes many within one tick of the clock, and they get each other's names. Of small ones the content
/// decides; it is sent along anyway.
fn scan_options(checksum: bool, subject: &Subject) -> ScanOptions {
    let hash_bytes_max = if matches!(subject, Subject::Parts(..)) { SMALL_BYTES_MAX } else { 0 };
    ScanOptions { hash: checksum, hash_bytes_max, cross_mounts: true, ..ScanOptions::default() }
}

/// A tree of one entry, under another name. What else was listed with it has no place there.
fn renamed(manifest: &Manifest, name: &TreePath) -> Result<Manifest, ManifestError> {
    let entry = manifest.get(0).map(|entry| Entry { path: name.clone(), ..entry.to_entry() });
    Manifest::new(entry.into_iter().collect())
}

/// An error with its causes, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some errors print their cause themselves.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
