//! Sync: one job from end to end: connect, run, run again where the source moved meanwhile, summarise.
//!
//! Knows both ends and the way between them, and no terminal.

pub mod endpoint;
mod error;
mod kernel;
mod lanes;
mod limit;
mod local;
mod memory;
mod meter;
mod pairing;
mod remote;
mod retry;
mod stand_in;
mod target;
mod visit;
pub mod watch;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use endpoint::Endpoint;
pub use error::SyncError;
pub use visit::Visit;

use crate::engine::{PROBLEMS_MAX, Summary};
use crate::kernel::{Access, Settings};
use crate::monitor::{Event, Monitor, Preparation, Trouble, Warning};
use crate::sync::pairing::Pairing;
use crate::sync::watch::{AfterRound, Listener, News};
use crate::wire::hello::{Options, Role};

/// How often a run is repeated because files changed while they were read.
const REPEATS_MAX: usize = 2;

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Job {
    /// Where the files are.
    pub source: Endpoint,
    /// Where they are to go.
    pub destination: Endpoint,
    /// What both sides go by.
    pub options: Options,
    /// How to get to the remote one.
    pub way: Way,
}

/// How to get to a remote endpoint.
#[derive(Debug, Clone)]
pub struct Way {
    /// Private key files; none: ssh-agent, then the usual ones.
    pub identities: Vec<PathBuf>,
    /// The JSON that `kernel browsers ssh ID --setup-only -o json` prints.
    pub setup: Option<Vec<u8>>,
    /// Further roots for `wss`, in PEM.
    pub ca_cert: Option<PathBuf>,
    /// The only key that the host may show, as one line of OpenSSH's text form.
    pub host_key: Option<String>,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long the other side may be silent.
    pub timeout: Duration,
    /// How often a connection that is lost once it has worked is made again without anything coming
    /// of it.
    pub retries: u32,
    /// How many channels may carry an upload; `None`: as many as the round trip is worth.
    pub connections: Option<usize>,
    /// The platform's API; without it only sessions that were used before can be reached.
    pub api: Option<Settings>,
    /// Which session `session:` means, if not the one that was chosen last.
    pub session: Option<String>,
    /// Whether a session is kept active meanwhile.
    pub keep_alive: bool,
}

impl Default for Way {
    fn default() -> Self {
        Self {
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

/// How a job ended.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What was done, of all repeats together.
    pub summary: Summary,
    /// From the start of the job to its end.
    pub elapsed: Duration,
    /// Bytes of the exchange to the other side: what SSH carries.
    pub wire_up_bytes: u64,
    /// Bytes of the exchange from the other side.
    pub wire_down_bytes: u64,
    /// Bytes of agent that had to be put there first.
    pub agent_installed_bytes: u64,
    /// Round trips until the other side could answer; 0 where there is no other machine.
    pub connect_round_trips: u32,
    /// How often the connection was lost and made again. What was done before that is in the
    /// destination, and in the summary only as content that travelled.
    pub retries: u32,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// How the command ended that ran afterwards, if one did: its exit status.
    pub command_status: Option<u32>,
}

impl Report {
    /// Whether the destination is another than before, as far as is known.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        let tally = &self.summary.tally;
        tally.has_changed() || (self.retries > 0 && tally.sent_bytes > 0)
    }

    /// Of attempts that were lost, and then of one that came to its end.
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

/// Who looks on while a job runs.
pub type Watcher = Arc<dyn Monitor + Send + Sync>;

/// One exchange, whatever the way.
struct Round {
    summary: Summary,
    wire_up_bytes: u64,
    wire_down_bytes: u64,
    agent_installed_bytes: u64,
    connect_round_trips: u32,
}

/// What is needed to get into Kernel sessions.
///
/// # Errors
/// There is no directory to keep things in.
pub fn access(way: &Way) -> Result<Access, SyncError> {
    kernel::access(way)
}

/// Does a job.
///
/// # Errors
/// [`SyncError`]: why it ended early. What went wrong without ending it is in the report's summary.
pub async fn run(job: &Job, monitor: Watcher) -> Result<Report, SyncError> {
    run_and_then(job, None, monitor, Arc::new(|_: News<'_>| {})).await
}

/// Does a job, and runs a command after it if it changed something.
///
/// # Errors
/// As [`run`]; or the command could not be run.
pub async fn run_and_then(
    job: &Job,
    after: Option<&AfterRound>,
    monitor: Watcher,
    listener: Listener,
) -> Result<Report, SyncError> {
    let start = Instant::now();
    limit::outlive();
    let (source, destination, options) = (&job.source, &job.destination, &job.options);
    let pairing = Pairing::of(job);
    let monitor = pairing.watching(monitor);
    let mut report = match (source, destination) {
        (Endpoint::Local(from), Endpoint::Local(to)) => {
            local::check_apart(from, to)?;
            let round = async |monitor| local::exchange(from, to, &pairing.options(options), monitor).await;
            then(repeat(monitor, round).await, after, None, &listener).await?
        }
        (Endpoint::Local(path), remote) => {
            let key = memory::key(job, Role::Sender, path);
            let round = async |session: &remote::Session<'_>, monitor| {
                session.meet(options, &monitor).await?;
                session.upload(path, remote.path(), &pairing.options(options), key, monitor).await
            };
            let (session, result) =
                retry::over_connections(remote, &job.way, &pairing, monitor, &listener, round).await;
            let result = then(result, after, Some(&session), &listener).await;
            session.close().await;
            result?
        }
        (remote, Endpoint::Local(path)) => {
            let key = memory::key(job, Role::Receiver, path);
            let round = async |session: &remote::Session<'_>, monitor| {
                session.meet(options, &monitor).await?;
                session.download(remote.path(), path, &pairing.options(options), key, monitor).await
            };
            let (session, result) =
                retry::over_connections(remote, &job.way, &pairing, monitor, &listener, round).await;
            let result = then(result, after, None, &listener).await;
            session.close().await;
            result?
        }
        _ => return Err(SyncError::BothRemote),
    };
    report.elapsed = start.elapsed();
    report.dry_run = job.options.dry_run;
    Ok(report)
}

/// Runs the command that is due when something has changed.
async fn then(
    result: Result<Report, SyncError>,
    after: Option<&AfterRound>,
    session: Option<&remote::Session<'_>>,
    listener: &Listener,
) -> Result<Report, SyncError> {
    let mut report = result?;
    if let Some(after) = after.filter(|_| report.has_changed()) {
        report.command_status = Some(after.run(session, listener).await?);
    }
    Ok(report)
}

/// Runs rounds until no file of the source changed while it was read, or it has been tried often enough.
async fn repeat(
    monitor: Watcher,
    round: impl AsyncFn(Watcher) -> Result<Round, SyncError>,
) -> Result<Report, SyncError> {
    let mut report = Report::default();
    for attempt in 0..=REPEATS_MAX {
        let patience = Arc::new(Patience::new(Watcher::clone(&monitor)));
        let done = round(Watcher::clone(&(Arc::clone(&patience) as Watcher))).await;
        let again = attempt < REPEATS_MAX && done.is_ok() && patience.has_withheld();
        if !again {
            patience.release();
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
    }
    Ok(report)
}

/// Passes events on, but for problems that may be gone when the round is repeated.
struct Patience {
    monitor: Watcher,
    withheld: Mutex<Vec<Event>>,
}

impl Patience {
    fn new(monitor: Watcher) -> Self {
        Self { monitor, withheld: Mutex::default() }
    }

    fn has_withheld(&self) -> bool {
        self.lock().iter().any(|event| !matches!(event, Event::Braked(_)))
    }

    /// Passes on what was withheld.
    fn release(&self) {
        self.lock().drain(..).for_each(|event| self.monitor.observe(event));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Monitor for Patience {
    fn observe(&self, event: Event) {
        let moved = matches!(&event, Event::Problem(problem)
            if matches!(problem.trouble, Trouble::Changed | Trouble::Vanished));
        // What the last round says of deletions counts.
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

/// Adds a later round: what it did counts on top, what went wrong is only what still does.
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

/// Does work that blocks on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, SyncError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| SyncError::Pipe(std::io::Error::other(error)))
}
