//! News of a job, for its caller: rounds of a watch, lost connections, and the command after a
//! round.

use std::sync::Arc;
use std::time::Duration;

use crate::exchange::rounds::Round;
use crate::sync::error::SyncError;

/// Events of a watch, or of a run without one.
#[derive(Debug)]
pub enum News<'a> {
    /// A round has ended. The very first round makes the destination a copy; the next ones keep it
    /// one.
    Round(&'a Round),
    /// The connection was lost, and another one is made after `wait`. Also occurs in a run without
    /// a watch.
    Lost {
        /// The reason.
        error: &'a SyncError,
        /// The delay.
        wait: Duration,
    },
    /// An event of the command that runs after a round.
    Command(Said<'a>),
}

/// Called with each event, from the threads of an exchange, so it must be quick.
pub type Listener = Arc<dyn Fn(News<'_>) + Send + Sync>;

/// An event of a command.
#[derive(Debug)]
pub enum Said<'a> {
    /// The command starts.
    Begins {
        /// The command.
        command: &'a str,
        /// True if it has not succeeded since an earlier run changed something.
        is_again: bool,
    },
    /// A line of its output or of its errors, without the line end.
    Line(&'a [u8]),
    /// The exit status; 128 after a signal.
    Ended(u32),
    /// The command could not be run, or its exit status is unknown.
    Failed(&'a SyncError),
}
