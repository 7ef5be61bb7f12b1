//! From one directory of this machine to another: both sides of an exchange in one process.

use std::io;
use std::path::Path;
use std::thread;

use crate::engine::{Config, Receiver, Sender};
use crate::exchange::{self, Receiving, Sending};
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
