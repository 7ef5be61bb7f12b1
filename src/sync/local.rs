//! From one directory of this machine to another: both sides of an exchange in one process.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use crate::engine::{Config, Receiver, Sender};
use crate::exchange::rounds::{self, Watched};
use crate::exchange::{self, Incoming, Link, Receiving, Sending};
use crate::monitor::Quiet;
use crate::sync::{Round, SyncError, Watcher};
use crate::wire::hello::Options;

/// Refuses to copy a directory into itself, or something onto what it lies in.
pub(super) fn check_apart(from: &Path, to: &Path) -> Result<(), SyncError> {
    let Ok(from) = std::fs::canonicalize(from) else { return Ok(()) };
    // What does not exist yet will lie in what exists of its path.
    let to = std::path::absolute(to).map_err(SyncError::Pipe)?;
    let real = to.ancestors().find_map(|existing| {
        let rest = to.strip_prefix(existing).ok()?;
        Some(std::fs::canonicalize(existing).ok()?.join(rest))
    });
    let to = real.unwrap_or(to);
    let overlap = from.is_dir() && (to.starts_with(&from) || from.starts_with(&to));
    if overlap || from == to { Err(SyncError::Overlap) } else { Ok(()) }
}

/// Keeps `to` a copy of a source that is watched, until that ends. Tells each round.
pub(super) async fn live(
    source: Arc<Watched>,
    to: PathBuf,
    options: Options,
    monitor: Watcher,
    mut done: impl FnMut(exchange::rounds::Round) + Send + 'static,
) -> SyncError {
    let options = Options { compress: false, special_bits: true, ..options };
    let pipes = io::pipe().and_then(|up| Ok((up, io::pipe()?)));
    let ((up_reader, up_writer), (down_reader, down_writer)) = match pipes {
        Ok(pipes) => pipes,
        Err(error) => return SyncError::Pipe(error),
    };
    let agent = Config { options: options.clone(), relay: true };
    thread::spawn(move || {
        let link = Link::new(Incoming::alone(up_reader), down_writer, false, false);
        let _ = rounds::receive(&link, &to, &agent, || None, &Quiet, &mut drop);
        link.close();
    });
    let client = Config { options, relay: false };
    let run = move || {
        let link = Link::new(Incoming::alone(down_reader), up_writer, false, false);
        let failure = source.send(&link, &client, || None, &*monitor, &mut done);
        link.close();
        failure
    };
    super::blocking(run).await.map_or_else(|error| error, SyncError::from)
}

/// Copies `from` to `to`. The receiving side is the agent's part: it tells what it observes over the wire.
pub(super) async fn exchange(
    from: &Path,
    to: &Path,
    options: &Options,
    monitor: Watcher,
) -> Result<Round, SyncError> {
    let options = Options { compress: false, special_bits: true, ..options.clone() };
    let (up_reader, up_writer) = io::pipe().map_err(SyncError::Pipe)?;
    let (down_reader, down_writer) = io::pipe().map_err(SyncError::Pipe)?;

    let receiving = Receiving::new(to.to_owned(), options.clone());
    let receiver = Receiver::new(&Config { options: options.clone(), relay: true });
    thread::spawn(move || exchange::run(up_reader, down_writer, receiver, receiving, false, false, &Quiet));

    let sending = Sending::new(from.to_owned(), options.clone());
    let sender = Sender::new(&Config { options, relay: false });
    let run = move || exchange::run(down_reader, up_writer, sender, sending, false, false, &*monitor);
    let summary = super::blocking(run).await?.map_err(SyncError::from)?;
    Ok(Round {
        summary,
        wire_up_bytes: 0,
        wire_down_bytes: 0,
        agent_installed_bytes: 0,
        connect_round_trips: 0,
    })
}
