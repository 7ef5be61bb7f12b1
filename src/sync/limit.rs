//! The limit for the length of files (`ulimit -f`): a file that is too long is that file's trouble.

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

/// From now on a write beyond the limit fails, where it would have ended the process. The programs
/// that this process starts are ended by it as ever, since the system gives them none of our
/// handlers.
pub(super) fn outlive() {
    // The handler stays when what listens is dropped. Without it a run ends as it did.
    let _ = signal(SignalKind::from_raw(Signal::XFSZ.as_raw()));
}
