//! Listing an endpoint, without a destination.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::thread;

use futures_util::future::LocalBoxFuture;
use tokio::task::spawn_blocking;

use crate::engine::lister::{Listed, Lister, Listing};
use crate::engine::{Config, RunError, Sender, Summary};
use crate::exchange::{self, Incoming, Sending};
use crate::monitor::Quiet;
use crate::sync::endpoint::Endpoint;
use crate::sync::error::SyncError;
use crate::sync::job::{Job, SharedMonitor};
use crate::sync::local::own_error;
use crate::sync::news::News;
use crate::sync::pairing::Pairing;
use crate::sync::remote::{Idle, LazyConnection};
use crate::sync::report::Report;
use crate::sync::retry::over_connections;
use crate::wire::hello::Options;
use crate::wire::message::AbortKind;

/// Lists the source of a job; its destination does not count.
///
/// # Errors
/// [`SyncError`], if there is no complete answer.
pub fn list(job: &Job, monitor: SharedMonitor) -> LocalBoxFuture<'_, Result<(Listed, Report), SyncError>> {
    Box::pin(async move {
        let listing = Listing::default();
        let report = match &job.source {
            Endpoint::Local(path) => {
                let summary = locally(path, &job.options, Arc::clone(&listing), monitor).await?;
                Report { summary, ..Report::default() }
            }
            remote => remotely(remote, job, &listing, monitor).await?,
        };
        let listed = listing.lock().unwrap_or_else(PoisonError::into_inner).take();
        let nothing = || RunError {
            kind: AbortKind::Protocol,
            by_peer: false,
            text: "the listing did not arrive".to_owned(),
        };
        Ok((listed.ok_or_else(|| SyncError::Run(nothing()))?, report))
    })
}

async fn remotely(
    remote: &Endpoint,
    job: &Job,
    listing: &Listing,
    monitor: SharedMonitor,
) -> Result<Report, SyncError> {
    let pairing = Pairing::of(job);
    let round = async |connection: &LazyConnection<'_>, monitor| {
        connection.list(remote.path(), &job.options, Arc::clone(listing), monitor).await
    };
    let (connect_options, listener) = (&job.connect_options, Arc::new(|_: News<'_>| {}) as _);
    let (connection, result) =
        over_connections(remote, connect_options, &pairing, monitor, &listener, None, round).await;
    if let Some(kept) = connection.keep() {
        if result.is_ok() {
            kept.leave(connect_options);
        }
        kept.close().await;
    }
    result
}

/// Lists a path of this machine. A sender in a thread plays the agent.
async fn locally(
    path: &Path,
    options: &Options,
    listing: Listing,
    monitor: SharedMonitor,
) -> Result<Summary, SyncError> {
    let options = Options { compress: false, ..options.clone() };
    let (up_reader, up_writer) = io::pipe().map_err(SyncError::Pipe)?;
    let (down_reader, down_writer) = io::pipe().map_err(SyncError::Pipe)?;
    let sending = Sending::new(path.to_owned(), options.clone());
    let sender = Sender::new(&Config { options, relay: true, ..Config::default() });
    let sender = thread::spawn(move || {
        exchange::run(Incoming::alone(up_reader), down_writer, sender, sending, false, false, &Quiet)
    });
    let run = move || {
        let lister = Lister::new(listing);
        exchange::run(Incoming::alone(down_reader), up_writer, lister, Idle, false, false, &*monitor)
            .map_err(|error| own_error(error, sender.join().ok().and_then(Result::err)))
    };
    spawn_blocking(run).await?
}
