//! The limit for the length of files (`ulimit -f`): exceeding it is a problem of one file, not of
//! the run.

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

/// From now on a write beyond the limit fails; by default the signal would end the process. Child
/// processes do not inherit the handler, so the signal still ends them.
pub(super) fn outlive() {
    // The handler stays when the listener is dropped. If it cannot be installed, the signal ends
    // the run.
    let _ = signal(SignalKind::from_raw(Signal::XFSZ.as_raw()));
}
