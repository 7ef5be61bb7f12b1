//! Watching: a destination stays a copy of a source, over as many connections as needed.
//!
//! For an upload this process watches, over one connection after the other; for a download the
//! agent watches. When a connection is lost, another is made, and its first round is a full one: it
//! finds everything that happened meanwhile.
//!
//! A connection may be cut at any moment, also during the first round or the login. Until a round
//! has ended, the rules of `sync::retry` decide on another connection. So a host that was never
//! reached, or an agent that always fails, ends the watch. Afterwards the watch ends only if
//! another connection cannot help.

mod command;
mod control;
mod flush;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures_util::future::LocalBoxFuture;
use tokio::task::spawn_blocking;

pub use crate::sync::news::{Listener, News, Said};
pub use command::AfterRound;
pub use control::{NotFlushed, request_flush};

use crate::exchange::chain;
use crate::exchange::rounds::{Round, WatchedSource};
use crate::log::debug;
use crate::remote::ErrorKind;
use crate::sync::backoff::Backoff;
use crate::sync::baseline;
use crate::sync::endpoint::Endpoint;
use crate::sync::error::SyncError;
use crate::sync::job::{Job, SharedMonitor};
use crate::sync::limit;
use crate::sync::local;
use crate::sync::owed::Owed;
use crate::sync::pairing::Pairing;
use crate::sync::remote::{LazyConnection, Rounds};
use crate::sync::retry::{Attempts, Counting, Verdict, Went, is_loss};
use crate::sync::target::state_dir;
use crate::wire::hello::{Role, WatchOptions};
use crate::wire::message::AbortKind;
use command::Commands;
use flush::Flushes;

/// The settings of a watch.
#[derive(Debug, Clone)]
pub struct Live {
    /// The settings of the watch on the source.
    pub watch_options: WatchOptions,
    /// The command after each round that changed something.
    pub after: Option<AfterRound>,
}

/// Makes the destination a copy of the source and keeps it one, until that cannot continue.
///
/// # Errors
/// Always ends with a [`SyncError`]. A cut connection ends the watch only before its first round
/// has ended, and only after `retries` failures in a row. A missing source or a changed host key
/// ends it at any time.
pub fn watch<'a>(
    job: &'a Job,
    live: &'a Live,
    monitor: SharedMonitor,
    listener: Listener,
) -> LocalBoxFuture<'a, Result<Infallible, SyncError>> {
    // Boxed, or each crate that calls this would compile all of it once more.
    Box::pin(keep_same(job, live, monitor, listener))
}

async fn keep_same(
    job: &Job,
    live: &Live,
    monitor: SharedMonitor,
    listener: Listener,
) -> Result<Infallible, SyncError> {
    limit::outlive();
    let local = match (&job.source, &job.destination) {
        (Endpoint::Local(from), Endpoint::Local(to)) => {
            local::check_apart(from, to, None)?;
            from.clone()
        }
        (Endpoint::Local(path), _) | (_, Endpoint::Local(path)) => path.clone(),
        _ => return Err(SyncError::BothRemote),
    };
    let source = match &job.source {
        Endpoint::Local(path) => {
            let (path, watch_options) = (path.clone(), live.watch_options);
            Some(Arc::new(
                spawn_blocking(move || WatchedSource::new(&path, watch_options, Instant::now)).await??,
            ))
        }
        _ => None,
    };
    let flushes = Arc::new(Flushes::new(source.clone()));
    // Without a socket no process can request a flush; everything else works.
    let _control = state_dir().ok().and_then(|state| control::serve(&state, &local, &flushes).ok());
    let owed = Owed::of(job, live.after.as_ref().map(AfterRound::named));
    let commands = Commands::new(live.after.clone(), Arc::clone(&owed), Listener::clone(&listener));
    let is_first = Arc::new(AtomicBool::new(true));
    let pairing = Pairing::of(job);
    let mut backoff = Backoff::default();
    let mut has_worked = false;
    let (mut first, mut last_lost) = (Attempts::new(job.connect_options.retries), None);
    loop {
        let works = Arc::new(AtomicBool::new(false));
        let done = {
            let (works, flushes, listener) =
                (Arc::clone(&works), Arc::clone(&flushes), Listener::clone(&listener));
            let (starter, is_first) = (commands.starter(), Arc::clone(&is_first));
            move |round: Round| {
                works.store(true, Ordering::Relaxed);
                flushes.seen(&round);
                listener(News::Round(&round));
                starter.round_ended(round.has_changed(), is_first.swap(false, Ordering::Relaxed));
            }
        };
        let monitor = owed.observing(pairing.observing(SharedMonitor::clone(&monitor)));
        let (error, went) =
            once(job, &pairing, live.watch_options, source.clone(), &flushes, &commands, monitor, done).await;
        owed.cut();
        let worked = works.load(Ordering::Relaxed);
        has_worked |= worked;
        if has_worked {
            if !is_passing(&error, worked) {
                return Err(error);
            }
        } else {
            match first.failed(&error, went) {
                Verdict::Again => {}
                Verdict::End => return Err(error),
                Verdict::EndAsLost => return Err(last_lost.unwrap_or(error)),
            }
        }
        if worked || went.moved_bytes > 0 {
            backoff = Backoff::default();
        }
        let wait = backoff.next();
        debug!("wait ms={} why=connection-lost error={}", wait.as_millis(), chain(&error));
        listener(News::Lost { error: &error, wait });
        if !has_worked && is_loss(&error) {
            last_lost = Some(error);
        }
        tokio::time::sleep(wait).await;
    }
}

/// Watches over one connection until it ends. Returns the error and the progress.
#[allow(clippy::too_many_arguments)]
async fn once(
    job: &Job,
    pairing: &Arc<Pairing>,
    watch_options: WatchOptions,
    source: Option<Arc<WatchedSource>>,
    flushes: &Arc<Flushes>,
    commands: &Commands,
    monitor: SharedMonitor,
    done: impl FnMut(Round) + Send + 'static,
) -> (SyncError, Went) {
    let remote = match (&job.source, &job.destination) {
        (Endpoint::Local(_), Endpoint::Local(to)) => {
            let Some(source) = source else { return (SyncError::BothRemote, Went::default()) };
            let (to, options) = (PathBuf::from(to), pairing.options(&job.options));
            let error = tokio::select! {
                error = local::live(source, to, options, monitor, done) => error,
                never = commands.run(None) => match never {},
            };
            return (error, Went::default());
        }
        (Endpoint::Local(_), remote) | (remote, _) => remote,
    };
    let connection =
        LazyConnection::new(remote, &job.connect_options, Arc::clone(pairing)).with_login_first();
    let counting = Arc::new(Counting::new(monitor));
    let monitor = Arc::clone(&counting) as SharedMonitor;
    let running = async {
        if let Err(error) = connection.meet(&job.options, &monitor).await {
            return error;
        }
        let options = &pairing.options(&job.options);
        match (&job.source, &job.destination, source) {
            (Endpoint::Local(path), remote, Some(source)) => {
                let key = baseline::key(job, Role::Sender, path);
                let rounds = Rounds { key, watch_options, monitor, done };
                connection.upload_live(source, remote.path(), options, rounds).await
            }
            (remote, Endpoint::Local(path), _) => {
                let key = baseline::key(job, Role::Receiver, path);
                let rounds = Rounds { key, watch_options, monitor, done };
                let flushes = Arc::clone(flushes);
                let began = move |asker| flushes.ask_with(asker);
                connection.download_live(remote.path(), path, options, began, rounds).await
            }
            _ => SyncError::BothRemote,
        }
    };
    let error = tokio::select! {
        error = running => error,
        never = commands.run(Some(&connection)) => match never {},
    };
    let (_, down_bytes) = connection.traffic();
    let went = counting.went(down_bytes);
    connection.close().await;
    // A user who starts a watch wants it to last, so a login that is cut is retried, too.
    let was_cut = match &error {
        SyncError::Remote(error) | SyncError::PerhapsGone { source: error, .. } => error.was_cut(),
        _ => false,
    };
    (error, Went { has_worked: went.has_worked || was_cut, ..went })
}

/// True if another connection may succeed; `worked` tells if this one completed a round.
fn is_passing(error: &SyncError, worked: bool) -> bool {
    match error {
        SyncError::Remote(error) => match error.kind() {
            ErrorKind::Socket | ErrorKind::Timeout | ErrorKind::ConnectTimeout | ErrorKind::CouldNotStart => {
                true
            }
            ErrorKind::Usage | ErrorKind::FileIo | ErrorKind::NotAuthorised | ErrorKind::HostKey => false,
        },
        // Socket errors and timeouts may pass; a lost session and a rejected key do not.
        SyncError::Kernel(error) => matches!(error.exit_code(), 10 | 30 | 35),
        SyncError::Run(error) => match error.kind {
            AbortKind::Connection | AbortKind::Timeout | AbortKind::Busy => true,
            // A destination that was replaced is filled again.
            AbortKind::Destination => worked,
            // A full disk may get room again.
            AbortKind::Storage => true,
            AbortKind::Protocol | AbortKind::Version | AbortKind::Selection | AbortKind::Plan => false,
        },
        // The VM may be waking up.
        SyncError::Unreachable { source, .. } => source.kind() != ErrorKind::NotAuthorised,
        SyncError::PerhapsGone { .. } | SyncError::Agent { .. } => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::RunError;
    use crate::sync::error::AgentExit;

    #[test]
    fn only_errors_that_may_pass_are_retried() {
        let run = |kind| SyncError::Run(RunError { kind, by_peer: false, text: String::new() });
        for (error, worked, expected) in [
            (run(AbortKind::Connection), false, true),
            (run(AbortKind::Timeout), false, true),
            (run(AbortKind::Busy), false, true),
            (run(AbortKind::Destination), true, true),
            (run(AbortKind::Destination), false, false),
            (run(AbortKind::Selection), true, false),
            (run(AbortKind::Storage), false, true),
            (run(AbortKind::Protocol), true, false),
            (SyncError::Agent { end: AgentExit::Watch, said: String::new() }, true, true),
            (SyncError::Overlap, true, false),
        ] {
            assert_eq!(is_passing(&error, worked), expected, "{error:?} {worked}");
        }
    }
}
