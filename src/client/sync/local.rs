//! Copies between two directories of this machine: both sides of an exchange in one process.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use tokio::task::spawn_blocking;

use crate::disk::set_id::owner_of_copies;
use crate::engine::{Config, Receiver, RunError, Sender};
use crate::exchange::lanes::Outlet;
use crate::exchange::rounds::{self, WatchedSource};
use crate::exchange::{self, Incoming, Link, Pace, Receiving, Sending};
use crate::monitor::Quiet;
use crate::sync::error::SyncError;
use crate::sync::job::SharedMonitor;
use crate::sync::report::Round;
use crate::wire::hello::{FileList, Options};
use crate::wire::message::AbortKind;

/// Refuses to copy a directory into itself, or an entry onto its own parent. If entries of `from`
/// are listed, it may hold the destination beside them.
pub(super) fn check_apart(from: &Path, to: &Path, files: Option<&FileList>) -> Result<(), SyncError> {
    let Ok(from) = std::fs::canonicalize(from) else { return Ok(()) };
    // A path that does not exist yet will be created below its nearest existing parent.
    let to = std::path::absolute(to).map_err(SyncError::Pipe)?;
    let real = to.ancestors().find_map(|existing| {
        let rest = to.strip_prefix(existing).ok()?;
        Some(std::fs::canonicalize(existing).ok()?.join(rest))
    });
    let to = real.unwrap_or(to);
    let holds = match files {
        Some(files) if from != to => {
            let listed = |path: &[u8]| from.join(OsStr::from_bytes(path));
            files.paths.iter().any(|(path, _)| to.starts_with(listed(path)))
        }
        _ => to.starts_with(&from),
    };
    let overlap = from.is_dir() && (holds || from.starts_with(&to));
    if overlap || from == to { Err(SyncError::Overlap) } else { Ok(()) }
}

/// Keeps `to` a copy of a watched source, until that ends. Reports each round.
pub(super) async fn live(
    source: Arc<WatchedSource>,
    to: PathBuf,
    options: Options,
    monitor: SharedMonitor,
    mut done: impl FnMut(exchange::rounds::Round) + Send + 'static,
) -> SyncError {
    let options = Options { compress: false, set_id_owner: owner_of_copies(&to), ..options };
    let pipes = io::pipe().and_then(|up| Ok((up, io::pipe()?)));
    let ((up_reader, up_writer), (down_reader, down_writer)) = match pipes {
        Ok(pipes) => pipes,
        Err(error) => return SyncError::Pipe(error),
    };
    let agent = Config { options: options.clone(), relay: true, ..Config::default() };
    let receiver = thread::spawn(move || {
        let link = Link::new(Incoming::alone(up_reader), down_writer, false, false);
        let error = rounds::receive(&link, &to, &agent, || None, &Quiet, &mut drop);
        link.close();
        error
    });
    let pace = Pace::of(options.bytes_per_second);
    let client = Config { options, relay: false, ..Config::default() };
    let run = move || {
        let link = Link::new(Incoming::alone(down_reader), Outlet::paced(up_writer, pace), false, false);
        let error = source.send(&link, &client, || None, &*monitor, &mut done);
        link.close();
        own_error(error, receiver.join().ok())
    };
    spawn_blocking(run).await.unwrap_or_else(SyncError::from)
}

/// Copies `from` to `to`. The receiving side plays the agent: it reports its events over the wire.
pub(super) async fn exchange(
    from: &Path,
    further: &[PathBuf],
    to: &Path,
    options: &Options,
    monitor: SharedMonitor,
) -> Result<Round, SyncError> {
    let options = Options { compress: false, set_id_owner: owner_of_copies(to), ..options.clone() };
    let (up_reader, up_writer) = io::pipe().map_err(SyncError::Pipe)?;
    let (down_reader, down_writer) = io::pipe().map_err(SyncError::Pipe)?;

    let receiving = Receiving::new(to.to_owned(), options.clone());
    let receiver = Receiver::new(&Config { options: options.clone(), relay: true, ..Config::default() });
    let receiver = thread::spawn(move || {
        exchange::run(Incoming::alone(up_reader), down_writer, receiver, receiving, false, false, &Quiet)
    });

    let pace = Pace::of(options.bytes_per_second);
    let sending = Sending::new(from.to_owned(), options.clone()).with_further(further.to_vec());
    let sender = Sender::new(&Config { options, relay: false, ..Config::default() });
    let run = move || {
        let up_writer = Outlet::paced(up_writer, pace);
        exchange::run(Incoming::alone(down_reader), up_writer, sender, sending, false, false, &*monitor)
            .map_err(|error| own_error(error, receiver.join().ok().and_then(Result::err)))
    };
    let summary = spawn_blocking(run).await??;
    Ok(Round {
        summary,
        wire_up_bytes: 0,
        wire_down_bytes: 0,
        agent_installed_bytes: 0,
        connect_round_trips: 0,
    })
}

/// The error of a run with both sides in this process, so there is no other side to name.
/// `receiver` is the failure of the receiving thread; `None` if it panicked.
pub(super) fn own_error(sender: RunError, receiver: Option<RunError>) -> SyncError {
    // The side that did not learn of the failure from the other one knows the cause.
    let cause = if sender.by_peer { receiver.filter(|receiver| !receiver.by_peer) } else { None };
    let RunError { kind, text, .. } = cause.unwrap_or(sender);
    match kind {
        // The pipe between the two threads broke: one thread is gone.
        AbortKind::Connection => SyncError::Pipe(io::Error::other(text)),
        kind => SyncError::Run(RunError { kind, by_peer: false, text }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_error(kind: AbortKind, by_peer: bool, text: &str) -> RunError {
        RunError { kind, by_peer, text: text.to_owned() }
    }

    #[test]
    fn a_local_failure_names_no_other_side() {
        let told = run_error(AbortKind::Destination, true, "cannot make b: permission denied");
        let own = run_error(AbortKind::Destination, false, "cannot make b: permission denied");
        let closed = run_error(AbortKind::Connection, true, "the connection was closed");
        for (sender, receiver, expected, exit) in [
            (told.clone(), Some(own.clone()), "cannot make b: permission denied", 11),
            (told.clone(), None, "cannot make b: permission denied", 11),
            (closed.clone(), Some(own.clone()), "cannot make b: permission denied", 11),
            (own, Some(closed.clone()), "cannot make b: permission denied", 11),
            (closed.clone(), None, "cannot set up the exchange", 5),
            (closed.clone(), Some(closed), "cannot set up the exchange", 5),
        ] {
            let error = own_error(sender, receiver);
            assert_eq!((error.to_string().as_str(), error.exit_code()), (expected, exit));
        }
    }
}
