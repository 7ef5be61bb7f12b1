//! A job from end to end, without a watch.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::LocalBoxFuture;

use crate::sync::baseline;
use crate::sync::endpoint::Endpoint;
use crate::sync::error::SyncError;
use crate::sync::job::{ConnectOptions, Job, SharedMonitor};
use crate::sync::limit;
use crate::sync::local::{self, check_apart};
use crate::sync::news::{Listener, News};
use crate::sync::owed::Owed;
use crate::sync::pairing::Pairing;
use crate::sync::remote::{Kept, LazyConnection};
use crate::sync::repeat::repeat;
use crate::sync::report::Report;
use crate::sync::retry::over_connections;
use crate::sync::undo;
use crate::sync::verify;
use crate::sync::watch::AfterRound;
use crate::wire::hello::Role;

/// Runs a job.
///
/// # Errors
/// [`SyncError`], if the job ended early. Problems that did not end it are in the report's summary.
pub fn run(job: &Job, monitor: SharedMonitor) -> LocalBoxFuture<'_, Result<Report, SyncError>> {
    Box::pin(async move {
        let mut runner = Runner::default();
        let result = runner.run_and_then(job, None, monitor, Arc::new(|_: News<'_>| {})).await;
        runner.close().await;
        result
    })
}

/// Runs jobs one after the other. Those on one machine share a connection.
#[derive(Default)]
pub struct Runner {
    kept: Option<Kept>,
    /// The connect options of the last job, if it succeeded.
    last: Option<ConnectOptions>,
}

impl Runner {
    /// Runs a job, and then a command if the job changed something, or if the command has not
    /// succeeded since an earlier run did.
    ///
    /// # Errors
    /// As [`run`]; or the command could not be run.
    pub fn run_and_then<'a>(
        &'a mut self,
        job: &'a Job,
        after: Option<&'a AfterRound>,
        monitor: SharedMonitor,
        listener: Listener,
    ) -> LocalBoxFuture<'a, Result<Report, SyncError>> {
        // Boxed, or each crate that calls this would compile all of it once more.
        Box::pin(async move {
            self.last = None;
            let report = run_once(job, after, monitor, listener, &mut self.kept).await?;
            self.last = Some(job.connect_options.clone());
            Ok(report)
        })
    }

    /// Closes the connection that is still open, and leaves a keeper behind if that is wanted.
    pub fn close(self) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            if let Some(kept) = self.kept {
                self.last.iter().for_each(|connect_options| kept.leave(connect_options));
                kept.close().await;
            }
        })
    }
}

async fn run_once(
    job: &Job,
    after: Option<&AfterRound>,
    monitor: SharedMonitor,
    listener: Listener,
    kept: &mut Option<Kept>,
) -> Result<Report, SyncError> {
    let start = Instant::now();
    limit::outlive();
    let (source, destination, options) = (&job.source, &job.destination, &job.options);
    let pairing = Pairing::of(job);
    let owed = Owed::of(job, after.map(AfterRound::named));
    undo::remember(job);
    let monitor = if job.verifies { verify::observing(monitor) } else { monitor };
    let monitor = owed.observing(pairing.observing(monitor));
    let after = after.filter(|_| !options.dry_run);
    let mut report = match (source, destination) {
        (Endpoint::Local(from), Endpoint::Local(to)) => {
            let further = job.further_local();
            // The source of an undo is a directory that nobody reads.
            if !options.undo.is_own() {
                std::iter::once(from)
                    .chain(&further)
                    .try_for_each(|from| check_apart(from, to, options.files.as_ref()))?;
            }
            let round =
                async |monitor| local::exchange(from, &further, to, &pairing.options(options), monitor).await;
            then(repeat(monitor, round).await, after, &owed, None, &listener).await?
        }
        (Endpoint::Local(path), remote) => {
            let (key, further) = (baseline::key(job, Role::Sender, path), job.further_local());
            let round = async |connection: &LazyConnection<'_>, monitor| {
                connection.meet(options, &monitor).await?;
                connection
                    .upload(path, &further, remote.path(), &pairing.options(options), key, monitor)
                    .await
            };
            let last = kept.take();
            let (connection, result) =
                over_connections(remote, &job.connect_options, &pairing, monitor, &listener, last, round)
                    .await;
            let result = then(result, after, &owed, Some(&connection), &listener).await;
            *kept = connection.keep();
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
            let last = kept.take();
            let (connection, result) =
                over_connections(remote, &job.connect_options, &pairing, monitor, &listener, last, round)
                    .await;
            let result = then(result, after, &owed, None, &listener).await;
            *kept = connection.keep();
            result?
        }
        _ => return Err(SyncError::BothRemote),
    };
    report.elapsed = start.elapsed();
    report.dry_run = job.options.dry_run;
    if job.verifies {
        (report.verified, report.summary.braked) = (true, None);
    }
    Ok(report)
}

/// Runs the command if it is due. After an error the next run has to run it: the debt stays.
async fn then(
    result: Result<Report, SyncError>,
    after: Option<&AfterRound>,
    owed: &Owed,
    connection: Option<&LazyConnection<'_>>,
    listener: &Listener,
) -> Result<Report, SyncError> {
    let mut report = result?;
    let is_again = owed.is_old();
    if let Some(after) = after.filter(|_| is_again || report.has_changed()) {
        owed.incur();
        let status = after.run(is_again && !report.has_changed(), connection, listener).await?;
        report.command_status = Some(status);
        if status == 0 {
            owed.settle(owed.rounds());
        }
    } else {
        owed.forgive();
    }
    Ok(report)
}
