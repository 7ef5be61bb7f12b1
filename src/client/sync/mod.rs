//! Sync: one job from end to end. Connects, runs, runs again if the source changed meanwhile,
//! summarises.
//!
//! This layer knows both endpoints and the connection between them, but no terminal.

mod baseline;
mod emulator;
pub mod endpoint;
mod error;
mod kernel;
mod lanes;
mod limit;
mod local;
mod meter;
mod pairing;
mod remote;
mod retry;
mod target;
mod visit;
pub mod watch;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::LocalBoxFuture;

pub use endpoint::Endpoint;
pub use error::SyncError;
pub use visit::Visit;

use crate::engine::{PROBLEMS_MAX, Summary};
use crate::kernel::{Access, BridgeImage, Settings};
use crate::log::debug;
use crate::monitor::{Event, Monitor, Preparation, ProblemKind, Warning};
use crate::remote::AgentImage;
use crate::sync::pairing::Pairing;
use crate::sync::watch::{AfterRound, Listener, News};
use crate::wire::hello::{Options, Role};

/// Maximum repetitions of a run because files changed while they were read.
const REPEATS_MAX: usize = 2;

/// One sync job.
#[derive(Debug, Clone)]
pub struct Job {
    /// The endpoint with the files.
    pub source: Endpoint,
    /// The endpoint that receives them.
    pub destination: Endpoint,
    /// Options that both sides follow.
    pub options: Options,
    /// Connect options for the remote endpoint.
    pub connect_options: ConnectOptions,
}

/// Connect options for a remote endpoint.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The agent to install where it is missing.
    pub agent: AgentImage,
    /// The bridge to upload to a VM without one.
    pub bridge: BridgeImage,
    /// Private key files; if empty: ssh-agent, then the usual files.
    pub identities: Vec<PathBuf>,
    /// The output of `kernel browsers ssh ID --setup-only -o json`.
    pub setup: Option<Vec<u8>>,
    /// Additional root certificates for `wss`, in PEM.
    pub ca_cert: Option<PathBuf>,
    /// The only accepted host key, as one line of OpenSSH's text form.
    pub host_key: Option<String>,
    /// Timeout for connecting.
    pub connect_timeout: Duration,
    /// Timeout for a silent other side.
    pub timeout: Duration,
    /// Maximum number of reconnections in a row without progress, after a connection that has
    /// worked is lost.
    pub retries: u32,
    /// Maximum number of channels for an upload; `None`: as many as the round trip justifies.
    pub connections: Option<usize>,
    /// The platform's API; without it only previously used sessions can be reached.
    pub api: Option<Settings>,
    /// The session that `session:` means, if not the one that was chosen last.
    pub session: Option<String>,
    /// True if a keep-alive keeps the session active meanwhile.
    pub keep_alive: bool,
}

impl ConnectOptions {
    /// The defaults, with these programs.
    #[must_use]
    pub const fn new(agent: AgentImage, bridge: BridgeImage) -> Self {
        Self {
            agent,
            bridge,
            identities: Vec::new(),
            setup: None,
            ca_cert: None,
            host_key: None,
            connect_timeout: Duration::from_secs(30),
            timeout: Duration::from_secs(60),
            retries: 5,
            connections: None,
            api: None,
            session: None,
            keep_alive: true,
        }
    }
}

/// The result of a job.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The work done, of all repetitions together.
    pub summary: Summary,
    /// Time from the start of the job to its end.
    pub elapsed: Duration,
    /// Bytes of the exchange to the other side, as SSH carries them.
    pub wire_up_bytes: u64,
    /// Bytes of the exchange from the other side.
    pub wire_down_bytes: u64,
    /// Bytes of the agent that had to be installed first.
    pub agent_installed_bytes: u64,
    /// Round trips until the other side could answer; 0 without another machine.
    pub connect_round_trips: u32,
    /// Number of reconnections. Work before the last one is in the destination, but the summary
    /// counts only its transferred content.
    pub retries: u32,
    /// True if this was a dry run.
    pub dry_run: bool,
    /// Exit status of the command that ran afterwards, if one did.
    pub command_status: Option<u32>,
}

impl Report {
    /// True if the destination has changed, as far as is known.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        let tally = &self.summary.tally;
        tally.has_changed() || (self.retries > 0 && tally.sent_bytes > 0)
    }

    /// Adds the result of the last attempt to that of the lost ones.
    fn and(mut self, last: Self) -> Self {
        add(&mut self.summary, last.summary);
        Self {
            summary: self.summary,
            wire_up_bytes: self.wire_up_bytes + last.wire_up_bytes,
            wire_down_bytes: self.wire_down_bytes + last.wire_down_bytes,
            agent_installed_bytes: self.agent_installed_bytes + last.agent_installed_bytes,
            retries: self.retries,
            ..last
        }
    }
}

/// The observer of a job's progress.
pub type SharedMonitor = Arc<dyn Monitor + Send + Sync>;

/// The result of one exchange, over any connection.
struct Round {
    summary: Summary,
    wire_up_bytes: u64,
    wire_down_bytes: u64,
    agent_installed_bytes: u64,
    connect_round_trips: u32,
}

/// The settings for connecting to Kernel sessions.
///
/// # Errors
/// There is no state directory.
pub fn access(connect_options: &ConnectOptions) -> Result<Access, SyncError> {
    kernel::access(connect_options)
}

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
            local::check_apart(from, to)?;
            let round = async |monitor| local::exchange(from, to, &pairing.options(options), monitor).await;
            then(repeat(monitor, round).await, after, None, &listener).await?
        }
        (Endpoint::Local(path), remote) => {
            let key = baseline::key(job, Role::Sender, path);
            let round = async |connection: &remote::LazyConnection<'_>, monitor| {
                connection.meet(options, &monitor).await?;
                connection.upload(path, remote.path(), &pairing.options(options), key, monitor).await
            };
            let (connection, result) =
                retry::over_connections(remote, &job.connect_options, &pairing, monitor, &listener, round)
                    .await;
            let result = then(result, after, Some(&connection), &listener).await;
            connection.close().await;
            result?
        }
        (remote, Endpoint::Local(path)) => {
            let key = baseline::key(job, Role::Receiver, path);
            let round = async |connection: &remote::LazyConnection<'_>, monitor| {
                connection.meet(options, &monitor).await?;
                connection.download(remote.path(), path, &pairing.options(options), key, monitor).await
            };
            let (connection, result) =
                retry::over_connections(remote, &job.connect_options, &pairing, monitor, &listener, round)
                    .await;
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
    connection: Option<&remote::LazyConnection<'_>>,
    listener: &Listener,
) -> Result<Report, SyncError> {
    let mut report = result?;
    if let Some(after) = after.filter(|_| report.has_changed()) {
        report.command_status = Some(after.run(connection, listener).await?);
    }
    Ok(report)
}

/// Repeats the round until no source file changed while it was read, or the maximum is reached.
async fn repeat(
    monitor: SharedMonitor,
    round: impl AsyncFn(SharedMonitor) -> Result<Round, SyncError>,
) -> Result<Report, SyncError> {
    let mut report = Report::default();
    for attempt in 0..=REPEATS_MAX {
        let deferred = Arc::new(DeferredProblems::new(SharedMonitor::clone(&monitor)));
        let done = round(SharedMonitor::clone(&(Arc::clone(&deferred) as SharedMonitor))).await;
        let again = attempt < REPEATS_MAX && done.is_ok() && deferred.has_withheld();
        if !again {
            deferred.release();
        }
        let Round { summary, wire_up_bytes, wire_down_bytes, agent_installed_bytes, connect_round_trips } =
            done?;
        report.connect_round_trips = connect_round_trips;
        add(&mut report.summary, summary);
        report.wire_up_bytes += wire_up_bytes;
        report.wire_down_bytes += wire_down_bytes;
        report.agent_installed_bytes += agent_installed_bytes;
        if !again {
            break;
        }
        debug!("repeat why=source-changed attempt={}", attempt + 1);
    }
    Ok(report)
}

/// Forwards events, but defers problems that a repeated round may solve.
struct DeferredProblems {
    monitor: SharedMonitor,
    withheld: Mutex<Vec<Event>>,
}

impl DeferredProblems {
    fn new(monitor: SharedMonitor) -> Self {
        Self { monitor, withheld: Mutex::default() }
    }

    fn has_withheld(&self) -> bool {
        self.lock().iter().any(|event| !matches!(event, Event::Braked(_)))
    }

    /// Forwards the deferred events.
    fn release(&self) {
        self.lock().drain(..).for_each(|event| self.monitor.observe(event));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Monitor for DeferredProblems {
    fn observe(&self, event: Event) {
        let moved = matches!(&event, Event::Problem(problem)
            if matches!(problem.kind, ProblemKind::Changed | ProblemKind::Vanished));
        // Only the last round's report about braked deletions counts.
        let withheld = moved || matches!(event, Event::Braked(_));
        if withheld && self.lock().len() < PROBLEMS_MAX {
            self.lock().push(event);
        } else {
            self.monitor.observe(event);
        }
    }

    fn prepare(&self, preparation: Preparation) {
        self.monitor.prepare(preparation);
    }

    fn warn(&self, warning: Warning) {
        self.monitor.warn(warning);
    }
}

/// Adds a later round: its work is added, but its problems replace the earlier ones.
fn add(summary: &mut Summary, later: Summary) {
    let (total, tally) = (&mut summary.tally, later.tally);
    total.entries = tally.entries;
    total.total_bytes = tally.total_bytes;
    total.created += tally.created;
    total.updated += tally.updated;
    total.adjusted += tally.adjusted;
    total.deleted += tally.deleted;
    total.files += tally.files;
    total.sent_bytes += tally.sent_bytes;
    total.matched_bytes += tally.matched_bytes;
    total.moved += tally.moved;
    total.copied += tally.copied;
    summary.traffic.raw_bytes += later.traffic.raw_bytes;
    summary.traffic.waits += later.traffic.waits;
    summary.braked = later.braked;
    summary.problems = later.problems;
    summary.problem_count = later.problem_count;
}

/// Runs blocking work on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, SyncError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| SyncError::Pipe(std::io::Error::other(error)))
}
