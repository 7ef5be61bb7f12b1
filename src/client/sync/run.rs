//! A job from end to end, without a watch.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::LocalBoxFuture;

use crate::sync::baseline;
use crate::sync::endpoint::Endpoint;
use crate::sync::error::SyncError;
use crate::sync::job::{Job, SharedMonitor};
use crate::sync::limit;
use crate::sync::local::{self, check_apart};
use crate::sync::news::{Listener, News};
use crate::sync::pairing::Pairing;
use crate::sync::remote::LazyConnection;
use crate::sync::repeat::repeat;
use crate::sync::report::Report;
use crate::sync::retry::over_connections;
use crate::sync::watch::AfterRound;
use crate::wire::hello::Role;

/// Runs a job.
///
/// # Errors
/// [`SyncError`], if the job ended early. Problems that did not end it are in the report's summary.
pub fn run(job: &Job, monitor: SharedMonitor) -> LocalBoxFuture<'_, Result<Report, SyncError>> {
    run_and_then(job, None, monitor, Arc::new(|_: News<'_>| {}))
}

/// Runs a job, and then a command if the job changed something.
///
/// # Errors
/// As [`run`]; or the command could not be run.
pub fn run_and_then<'a>(
    job: &'a Job,
    after: Option<&'a AfterRound>,
    monitor: SharedMonitor,
    listener: Listener,
) -> LocalBoxFuture<'a, Result<Report, SyncError>> {
    // Boxed, or each crate that calls this would compile all of it once more.
    Box::pin(run_once(job, after, monitor, listener))
}

async fn run_once(
    job: &Job,
    after: Option<&AfterRound>,
    monitor: SharedMonitor,
    listener: Listener,
) -> Result<Report, SyncError> {
    let start = Instant::now();
    limit::outlive();
    let (source, destination, options) = (&job.source, &job.destination, &job.options);
    let pairing = Pairing::of(job);
    let monitor = pairing.observing(monitor);
    let mut report = match (source, destination) {
        (Endpoint::Local(from), Endpoint::Local(to)) => {
            let further = job.further_local();
            std::iter::once(from).chain(&further).try_for_each(|from| check_apart(from, to))?;
            let round =
                async |monitor| local::exchange(from, &further, to, &pairing.options(options), monitor).await;
            then(repeat(monitor, round).await, after, None, &listener).await?
        }
        (Endpoint::Local(path), remote) => {
            let (key, further) = (baseline::key(job, Role::Sender, path), job.further_local());
            let round = async |connection: &LazyConnection<'_>, monitor| {
                connection.meet(options, &monitor).await?;
                connection
                    .upload(path, &further, remote.path(), &pairing.options(options), key, monitor)
                    .await
            };
            let (connection, result) =
                over_connections(remote, &job.connect_options, &pairing, monitor, &listener, round).await;
            let result = then(result, after, Some(&connection), &listener).await;
            connection.close().await;
            result?
        }
        (remote, Endpoint::Local(path)) => {
            let (key, further) = (baseline::key(job, Role::Receiver, path), job.further_remote());
            let round = async |connection: &LazyConnection<'_>, monitor| {
                connection.meet(options, &monitor).await?;
                connection
                    .download(remote.path(), &further, path, &pairing.options(options), key, monitor)
                    .await
            };
            let (connection, result) =
                over_connections(remote, &job.connect_options, &pairing, monitor, &listener, round).await;
            let result = then(result, after, None, &listener).await;
            connection.close().await;
            result?
        }
        _ => return Err(SyncError::BothRemote),
    };
    report.elapsed = start.elapsed();
    report.dry_run = job.options.dry_run;
    Ok(report)
}

/// Runs the command if the job changed something.
async fn then(
    result: Result<Report, SyncError>,
    after: Option<&AfterRound>,
    connection: Option<&LazyConnection<'_>>,
    listener: &Listener,
) -> Result<Report, SyncError> {
    let mut report = result?;
    if let Some(after) = after.filter(|_| report.has_changed()) {
        report.command_status = Some(after.run(connection, listener).await?);
    }
    Ok(report)
}
