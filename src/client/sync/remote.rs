//! Exchanges with another machine: a connection to it, and exchanges with an agent on it.

use std::convert::Infallible;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

use crate::engine::lister::{Lister, Listing, NoWork};
use crate::engine::{Config, Engine, Receiver, RunError, Sender, Summary};
use crate::exchange::lanes::Striped;
use crate::exchange::rounds::{self, WatchedSource};
use crate::exchange::{self, Asker, Incoming, Link, Pace, Perform, Receiving, Sending, Timeouts};
use crate::log::{self, debug};
use crate::monitor::{Notice, Quiet, Warning};
use crate::remote::{self, Agent, AgentEnd, Connection, ErrorKind};
use crate::sync::baseline::{self, Key};
use crate::sync::emulator::Emulator;
use crate::sync::endpoint::{Endpoint, name_of};
use crate::sync::error::{AgentExit, STATE_HINT, SyncError};
use crate::sync::job::{ConnectOptions, SharedMonitor};
use crate::sync::keeper::{self, Dialled, Facts, Purpose};
use crate::sync::kernel::{KernelSession, LoginTime};
use crate::sync::lanes;
use crate::sync::meter::Count;
use crate::sync::pairing::Pairing;
use crate::sync::report::Round;
use crate::sync::target;
use crate::tree::path::TreePath;
use crate::wire::hello::{self, Links, Options, Request, Role, WatchOptions};
use crate::wire::message::AbortKind;

/// Timeout for the exit report of an agent that has closed its output. A peer that never sends one
/// must not block the client.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// A timeout of this length or more means never.
const FOR_EVER: Duration = Duration::from_secs(30 * 24 * 3600);

/// Round trips within which a lent agent answers, and the time that a busy machine adds. After
/// that, a connection of our own is made beside it.
const ANSWER_ROUND_TRIPS: u32 = 2;
const ANSWER_GRACE: Duration = Duration::from_millis(50);

/// The same for an agent that must start on a lent connection. A connection of our own would have
/// to start one too.
const START_ROUND_TRIPS: u32 = 4;
const START_GRACE: Duration = Duration::from_millis(500);

type Writer = Striped;

/// The connection to the agent's machine. It is made on first use, while the first exchange already
/// reads its source.
pub(super) struct LazyConnection<'a> {
    endpoint: &'a Endpoint,
    connect_options: &'a ConnectOptions,
    login: LoginTime,
    pairing: Arc<Pairing>,
    connected: OnceCell<Connected>,
    up_bytes: Count,
    down_bytes: Count,
    /// True if a keeper may lend the connection.
    may_borrow: bool,
    /// The last request to an agent.
    asked: Mutex<Option<Request>>,
    /// A connection that was made because the lent one did not answer.
    spare: Mutex<Option<Connected>>,
    /// Set if there is a keeper that did not answer.
    is_keeper_silent: AtomicBool,
}

/// The open connection of a job that is over, for the next job on the same machine.
pub(super) struct Kept {
    /// The endpoint, without its path.
    machine: Endpoint,
    connected: Connected,
    asked: Option<Request>,
    /// True if there is a keeper that did not answer.
    is_keeper_silent: bool,
}

impl Kept {
    /// Closes the connection.
    pub(super) async fn close(self) {
        self.connected.close().await;
    }

    /// Starts a keeper for the next runs, if this connection is our own. It makes another one: this
    /// one cannot move to its process.
    pub(super) fn leave(&self, connect_options: &ConnectOptions) {
        if let Some(keep) = connect_options.keep.filter(|_| !self.connected.connection.is_lent()) {
            let (asked, is_silent) = (self.asked.clone(), self.is_keeper_silent);
            keeper::start(&self.machine, connect_options, keep, asked, is_silent);
        }
    }
}

/// A connection, and the machine behind it.
struct Connected {
    connection: Connection,
    behind: Behind,
}

impl Connected {
    async fn close(self) {
        self.connection.close().await;
        if let Behind::Sandbox(emulator) = self.behind {
            emulator.stop().await;
        }
    }
}

/// The kind of machine that a connection leads to.
enum Behind {
    Host,
    Sandbox(Emulator),
    Kernel(Box<KernelSession>),
}

/// The settings for the rounds of a watch, on one connection.
pub(super) struct Rounds<F> {
    /// The key of the baseline on both sides.
    pub(super) key: Option<Key>,
    /// The settings of the watch on the source.
    pub(super) watch_options: WatchOptions,
    /// The observer.
    pub(super) monitor: SharedMonitor,
    /// Called after each round.
    pub(super) done: F,
}

impl<'a> LazyConnection<'a> {
    /// Prepares a connection to the machine of `endpoint`.
    pub(super) fn new(
        endpoint: &'a Endpoint,
        connect_options: &'a ConnectOptions,
        pairing: Arc<Pairing>,
    ) -> Self {
        let (up_bytes, down_bytes, asked, spare, is_keeper_silent) = Default::default();
        let (login, connected, may_borrow) = (LoginTime::WithAgent, OnceCell::new(), false);
        Self {
            endpoint,
            connect_options,
            login,
            pairing,
            connected,
            up_bytes,
            down_bytes,
            may_borrow,
            asked,
            spare,
            is_keeper_silent,
        }
    }

    /// Logs in before the connection is used.
    pub(super) fn with_login_first(self) -> Self {
        Self { login: LoginTime::First, ..self }
    }

    /// True if another connection may get further: one whose login comes first, and asks the API
    /// what has become of a session that refuses it.
    pub(super) fn may_log_in_first(&self, error: &SyncError) -> bool {
        let is_refused =
            matches!(error, SyncError::Remote(error) if error.kind() == ErrorKind::NotAuthorised);
        let is_session = matches!(self.connected.get(), Some(Connected { behind: Behind::Kernel(_), .. }));
        is_refused && is_session && self.login == LoginTime::WithAgent
    }

    /// Lets a keeper lend the connection. If that breaks, the exchange must be repeated.
    pub(super) fn borrowing(self, may_borrow: bool) -> Self {
        Self { may_borrow, ..self }
    }

    /// True if a keeper lends the connection.
    pub(super) fn is_lent(&self) -> bool {
        self.connection().is_some_and(Connection::is_lent)
    }

    /// Bytes to and from the other side so far.
    pub(super) fn traffic(&self) -> (u64, u64) {
        (self.up_bytes.bytes(), self.down_bytes.bytes())
    }

    /// Connects before the request is built, if deletions depend on the session's VM.
    pub(super) async fn meet(&self, options: &Options, monitor: &SharedMonitor) -> Result<(), SyncError> {
        if options.delete && matches!(self.endpoint, Endpoint::Session { .. }) {
            self.connected(monitor).await?;
        }
        Ok(())
    }

    /// The connection, which is made on first use.
    async fn connected(&self, monitor: &SharedMonitor) -> Result<&Connected, SyncError> {
        let connect = || async {
            let connected = self.connect(monitor).await?;
            let connection = &connected.connection;
            monitor.notice(Notice::Connected {
                round_trips: connection.round_trips(),
                round_trip: connection.round_trip(),
                is_kept: connection.is_lent(),
            });
            Ok(connected)
        };
        self.connected.get_or_try_init(connect).await
    }

    /// Borrows the connection of a keeper, or connects.
    async fn connect(&self, monitor: &SharedMonitor) -> Result<Connected, SyncError> {
        let Some(facts) = self.facts() else { return self.dial(monitor).await };
        // A kept agent does not log, so a run that logs starts one of its own.
        let purpose = if log::is_on() { Purpose::Command } else { Purpose::Exchange };
        let borrowing = keeper::borrow(&facts, purpose);
        let connection = match keeper::race(borrowing, self.dial(monitor)).await {
            Ok(connection) => connection,
            Err(Dialled { result, is_keeper_silent }) => {
                self.is_keeper_silent.store(is_keeper_silent, Ordering::Relaxed);
                return result;
            }
        };
        let behind = match &facts.session {
            None => Behind::Host,
            Some(known) => {
                let session = KernelSession::lent(known, self.connect_options, monitor)?;
                self.pairing.met(session.machine().to_owned());
                Behind::Kernel(Box::new(session))
            }
        };
        Ok(Connected { connection, behind })
    }

    /// The facts about a connection that a keeper may have.
    fn facts(&self) -> Option<Facts> {
        let is_wanted = self.may_borrow && self.connect_options.keep.is_some();
        is_wanted.then(|| Facts::of(self.endpoint, self.connect_options)).flatten()
    }

    /// Connects beside a lent connection whose agent does not answer. Returns once that has
    /// succeeded or failed, and the agent still has not answered. After an answer, looks after the
    /// keeper.
    async fn doubt(&self, connection: &Connection, before: (u64, u64), monitor: &SharedMonitor) {
        let answered = || self.traffic().1 > before.1;
        if connection.is_lent() {
            let (round_trips, grace) = if connection.has_ready_agent() {
                (ANSWER_ROUND_TRIPS, ANSWER_GRACE)
            } else {
                (START_ROUND_TRIPS, START_GRACE)
            };
            tokio::time::sleep(round_trips * connection.round_trip() + grace).await;
            if !answered() {
                debug!("keeper step=doubt why=no-answer");
                let dialled = self.dial(monitor).await;
                if !answered() {
                    // After an error, the next attempt has it too: the host or its key has gone.
                    *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = dialled.ok();
                    return;
                }
                if let Ok(fresh) = dialled {
                    fresh.close().await;
                }
            }
        }
        match self.look_after(connection).await {}
    }

    /// Looks after the keeper of a lent connection. Never ends.
    async fn look_after(&self, connection: &Connection) -> Infallible {
        match self.facts().filter(|_| connection.is_lent()) {
            Some(facts) => keeper::look_after(&facts).await,
            None => std::future::pending().await,
        }
    }

    /// Gives a lent connection that broke up. Returns the one that was made beside it, if any.
    pub(super) async fn give_up(self) -> Option<Kept> {
        let machine = self.endpoint.clone().with_path(b"");
        if let Some(facts) = self.facts() {
            // Its agent may hold the destination, so a keeper that is stuck ends. Meanwhile the run
            // goes on.
            tokio::spawn(async move { keeper::end_if_silent(&facts).await });
        }
        if let Some(lent) = self.connected.into_inner() {
            lent.close().await;
        }
        let spare = self.spare.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        Some(Kept { machine, connected: spare, asked: None, is_keeper_silent: false })
    }

    /// Runs a command on the other machine. If a keeper's connection breaks before the command has
    /// said anything, it runs over a connection of our own, as after a cut between two runs.
    pub(super) async fn command(
        &self,
        command: &[u8],
        hear: &mut impl FnMut(&[u8]),
    ) -> Result<u32, SyncError> {
        // The first round makes the connection, and commands run only after a round.
        let connection = self.connection().ok_or(SyncError::BothRemote)?;
        let mut is_heard = false;
        let mut hearing = |line: &[u8]| {
            is_heard = true;
            hear(line);
        };
        let ended = tokio::select! {
            ended = connection.run(command, &mut hearing) => ended,
            never = self.look_after(connection) => match never {},
        };
        match ended {
            Err(error) if connection.is_lent() && !is_heard => {
                debug!("keeper step=give-up for=command error={error}");
                let own = self.dial(&(Arc::new(Quiet) as SharedMonitor)).await?;
                let status = own.connection.run(command, hear).await;
                own.close().await;
                Ok(status?)
            }
            ended => Ok(ended?),
        }
    }

    /// Connects.
    async fn dial(&self, monitor: &SharedMonitor) -> Result<Connected, SyncError> {
        let Connected { connection, behind } = self.connect_to(monitor).await?;
        if self.connect_options.sudo {
            // The secrets are those of the login's own agents.
            return Ok(Connected { connection: connection.with_sudo(), behind });
        }
        let connection = match target::state_dir() {
            Ok(state) => connection.with_secrets(state.join("secrets")),
            Err(SyncError::State(error)) => {
                monitor.warn(Warning {
                    what: format!("nothing is remembered for the next run: {error}"),
                    hint: STATE_HINT.to_owned(),
                });
                connection
            }
            Err(_) => connection,
        };
        Ok(Connected { connection, behind })
    }

    async fn connect_to(&self, monitor: &SharedMonitor) -> Result<Connected, SyncError> {
        if let Endpoint::Sandbox { .. } = self.endpoint {
            let (connection, emulator) = Emulator::connect(self.connect_options, monitor).await?;
            return Ok(Connected { connection, behind: Behind::Sandbox(emulator) });
        }
        if let Endpoint::Session { name, .. } = self.endpoint {
            let (connection, session) =
                KernelSession::connect(name, self.connect_options, self.login, monitor).await?;
            self.pairing.met(session.machine().to_owned());
            return Ok(Connected { connection, behind: Behind::Kernel(Box::new(session)) });
        }
        let target = target::target(self.endpoint, self.connect_options)?;
        Ok(Connected { connection: remote::connect(&target).await?, behind: Behind::Host })
    }

    /// Closes the connection.
    pub(super) async fn close(self) {
        if let Some(connected) = self.connected.into_inner() {
            connected.close().await;
        }
    }

    /// Uses the connection of an earlier job, if it leads to the same machine. True then.
    pub(super) async fn take_over(&mut self, kept: Option<Kept>, monitor: &SharedMonitor) -> bool {
        let Some(Kept { machine, connected, .. }) = kept else { return false };
        // A keeper is asked again: it has an agent for each run.
        if machine != self.endpoint.clone().with_path(b"") || connected.connection.is_lent() {
            connected.close().await;
            return false;
        }
        if let Behind::Kernel(session) = &connected.behind {
            self.pairing.met(session.machine().to_owned());
            session.tell(monitor);
        }
        self.connected = OnceCell::new_with(Some(connected));
        true
    }

    /// The connection for the next job, if there is one.
    pub(super) fn keep(self) -> Option<Kept> {
        let machine = self.endpoint.clone().with_path(b"");
        let asked = self.asked.into_inner().unwrap_or_else(PoisonError::into_inner);
        let is_keeper_silent = self.is_keeper_silent.into_inner();
        let connected = self.connected.into_inner()?;
        Some(Kept { machine, connected, asked, is_keeper_silent })
    }

    /// Uploads `from` to `to` on the other machine; with further sources, all of them into `to`.
    pub(super) async fn upload(
        &self,
        from: &Path,
        further: &[PathBuf],
        to: &[u8],
        options: &Options,
        key: Option<Key>,
        monitor: SharedMonitor,
    ) -> Result<Round, SyncError> {
        let config = sending(options);
        let engine = Sender::new(&config);
        let disk = Sending::new(from.to_owned(), config.options.clone())
            .with_baseline(baseline::open(key))
            .with_further(further.to_vec());
        let mut request = request(Role::Receiver, to, &config, key, None);
        // The receiver learns of the listed entries by the offer.
        request.options.files = None;
        self.exchange(request, engine, disk, monitor).await
    }

    /// Keeps `to` on the other machine a copy of a source that is watched here, until that ends.
    pub(super) async fn upload_live(
        &self,
        source: Arc<WatchedSource>,
        to: &[u8],
        options: &Options,
        rounds: Rounds<impl FnMut(rounds::Round) + Send + 'static>,
    ) -> SyncError {
        let (config, Rounds { key, watch_options, monitor, mut done }) = (sending(options), rounds);
        let request = request(Role::Receiver, to, &config, key, Some(watch_options));
        let looking = SharedMonitor::clone(&monitor);
        let run = move |incoming, writer| {
            let link = Link::new(incoming, writer, true, config.options.compress);
            let error = source.send(&link, &config, || baseline::open(key), &*looking, &mut done);
            link.close();
            Err(error)
        };
        self.until_it_ends(request, monitor, run).await
    }

    /// Keeps `to` a copy of a source that is watched on the other machine, until that ends. `began`
    /// gets a handle that asks the agent for a full round.
    pub(super) async fn download_live(
        &self,
        from: &[u8],
        to: &Path,
        options: &Options,
        began: impl FnOnce(Asker) + Send + 'static,
        rounds: Rounds<impl FnMut(rounds::Round) + Send + 'static>,
    ) -> SyncError {
        let (config, to) = (receiving(options), to.to_owned());
        let Rounds { key, watch_options, monitor, mut done } = rounds;
        let request = request(Role::Sender, from, &config, key, Some(watch_options));
        let looking = SharedMonitor::clone(&monitor);
        let run = move |incoming, writer| {
            let link = Link::new(incoming, writer, true, config.options.compress);
            began(link.asker());
            let error = rounds::receive(&link, &to, &config, || baseline::open(key), &*looking, &mut done);
            link.close();
            Err(error)
        };
        self.until_it_ends(request, monitor, run).await
    }

    async fn until_it_ends(
        &self,
        request: Request,
        monitor: SharedMonitor,
        run: impl FnOnce(Incoming, Writer) -> Result<Summary, RunError> + Send + 'static,
    ) -> SyncError {
        match self.over(request, &monitor, run).await {
            Err(error) => error,
            Ok(_) => SyncError::Agent { end: AgentExit::Watch, said: String::new() },
        }
    }

    /// The connection, if there is one already.
    fn connection(&self) -> Option<&Connection> {
        self.connected.get().map(|connected| &connected.connection)
    }

    /// Downloads `from` on the other machine to `to`. The other machine is not trusted: set-id bits
    /// and links that lead out of the tree are not created.
    #[allow(clippy::too_many_arguments)]
    pub(super) async fn download(
        &self,
        from: &[u8],
        further: &[Vec<u8>],
        to: &Path,
        options: &Options,
        key: Option<Key>,
        monitor: SharedMonitor,
    ) -> Result<Round, SyncError> {
        let names = std::iter::once(from)
            .chain(further.iter().map(Vec::as_slice))
            .map(|path| TreePath::new(name_of(path)?).ok());
        let mut asked: Vec<TreePath> =
            if further.is_empty() { Vec::new() } else { names.flatten().collect() };
        let listed = options.files.iter().flat_map(|files| &files.paths);
        asked.extend(listed.filter_map(|(path, _)| TreePath::new(path.as_slice()).ok()));
        asked.sort_unstable();
        let config = Config { asked, ..receiving(options) };
        let engine = Receiver::new(&config);
        let name = from.rsplit(|&byte| byte == b'/').next().map(<[u8]>::to_vec);
        let disk =
            Receiving::new(PathBuf::from(to), config.options.clone()).with_baseline(baseline::open(key));
        // Several sources go into a directory of which they may be a small part.
        let disk = if further.is_empty() && options.files.is_none() {
            disk.prehashing(name, SystemTime::now())
        } else {
            disk
        };
        let request = request(Role::Sender, from, &config, key, None).with_further(further);
        self.exchange(request, engine, disk, monitor).await
    }

    /// Lists `path` on the other machine.
    pub(super) async fn list(
        &self,
        path: &[u8],
        options: &Options,
        listing: Listing,
        monitor: SharedMonitor,
    ) -> Result<Round, SyncError> {
        let request = request(Role::Sender, path, &receiving(options), None, None);
        self.exchange(request, Lister::new(listing), Idle, monitor).await
    }

    async fn exchange<E: Engine>(
        &self,
        request: Request,
        engine: E,
        disk: impl Perform<E>,
        monitor: SharedMonitor,
    ) -> Result<Round, SyncError> {
        let (compress, looking) = (request.options.compress, SharedMonitor::clone(&monitor));
        let run =
            move |incoming, writer| exchange::run(incoming, writer, engine, disk, true, compress, &*looking);
        self.over(request, &monitor, run).await
    }

    /// Puts the name of the other machine before a path there with which its error begins.
    fn located(&self, error: RunError) -> RunError {
        let is_located = error.by_peer
            && matches!(error.kind, AbortKind::Selection | AbortKind::Destination)
            && error.text.starts_with('/');
        if !is_located {
            return error;
        }
        let machine = self.endpoint.clone().with_path(b"/").to_string();
        let text = format!("{}{}", machine.trim_end_matches('/'), error.text);
        RunError { text, by_peer: false, ..error }
    }

    /// Replaces the error by a cause that the platform's API knows, if any.
    async fn explain(&self, error: SyncError) -> SyncError {
        match self.connected.get() {
            Some(Connected { behind: Behind::Kernel(session), .. }) => session.explain(error).await,
            _ => error,
        }
    }

    /// Starts an agent with this request, and runs this side over its streams. Connects first if
    /// there is no connection yet.
    async fn over(
        &self,
        request: Request,
        monitor: &SharedMonitor,
        run: impl FnOnce(Incoming, Writer) -> Result<Summary, RunError> + Send + 'static,
    ) -> Result<Round, SyncError> {
        let options = self.connect_options;
        let request = Request { timeout_ms: millis(options.timeout), ..request };
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(request.clone());
        let (agent, waiting) = Agent::waiting();
        let up_bytes = self.up_bytes.paced(Pace::of(request.options.bytes_per_second));
        let down_bytes = self.down_bytes.clone();
        let before = self.traffic();
        let (telling, installed) = (SharedMonitor::clone(monitor), agent.installed.clone());
        let reader = down_bytes.meter(agent.reader).telling(move || {
            let installed_bytes = installed.sent_bytes().flatten().unwrap_or(0);
            telling.notice(Notice::Agent { installed_bytes });
        });
        let mut writer = up_bytes.meter(agent.writer);
        // Downloads get lanes too: the direction of the bulk data shows only when it is written.
        let (asking, opening) = lanes::pair(up_bytes.clone());
        // The timeout for a silent agent is the one in the connect options.
        let timeouts = (options.timeout < FOR_EVER).then_some(options.timeout).and_then(Timeouts::of_client);
        let (heard, acknowledged) = (agent.heard, agent.acknowledged);
        let running = spawn_blocking(move || {
            // If the write fails, the reader reports why.
            let _ = hello::write(&mut writer, Some(request)).and_then(|()| writer.flush());
            let incoming = Incoming::alone(reader).within(timeouts).carried(move || heard.bytes());
            run(incoming, Striped::new(Box::new(writer), Box::new(asking)))
        });
        tokio::pin!(running);
        let starting = async {
            let connected = self.connected(monitor).await?;
            connected.connection.start(waiting, options.agent.clone()).await?;
            Ok::<_, SyncError>(&connected.connection)
        };
        let result = tokio::select! {
            // Before the agent starts, the exchange can only fail locally, e.g. on a missing
            // source.
            result = &mut running => result,
            started = starting => {
                let connection = started?;
                tokio::select! {
                    result = &mut running => result,
                    never = opening.run(connection, &options.agent, options.connections, acknowledged) => match never {},
                    () = self.doubt(connection, before, monitor) => {
                        connection.goodbye().await;
                        running.await
                    }
                }
            }
        };
        let summary = match result? {
            Ok(summary) => summary,
            Err(error) if error.kind == AbortKind::Connection => {
                let error = explain(agent.end).await.unwrap_or(SyncError::Run(error));
                return Err(self.explain(error).await);
            }
            // A silent agent sends no exit report.
            Err(error) => return Err(self.explain(SyncError::Run(self.located(error))).await),
        };
        Ok(Round {
            summary,
            wire_up_bytes: up_bytes.bytes() - before.0,
            wire_down_bytes: down_bytes.bytes() - before.1,
            connect_round_trips: self
                .connected
                .get()
                .map_or(0, |connected| connected.connection.round_trips()),
            agent_installed_bytes: agent.installed.sent_bytes().flatten().unwrap_or(0),
        })
    }
}

/// The performer of an engine that starts no works.
#[derive(Debug)]
pub(super) struct Idle;

impl Perform<Lister> for Idle {
    fn perform(&self, work: NoWork) -> NoWork {
        work
    }
}

/// A timeout on the wire, in milliseconds; 0 is never.
fn millis(time: Duration) -> u32 {
    if time < FOR_EVER { u32::try_from(time.as_millis()).unwrap_or(u32::MAX).max(1) } else { 0 }
}

/// The configuration of a sender on this side.
fn sending(options: &Options) -> Config {
    // The users of the other machine are unknown, so set-id bits are cleared.
    Config { options: Options { set_id_owner: None, ..options.clone() }, relay: false, ..Config::default() }
}

/// The configuration of a receiver on this side.
fn receiving(options: &Options) -> Config {
    let links = if options.links == Links::ByDirection { Links::Safe } else { options.links };
    let options = Options { set_id_owner: None, links, ..options.clone() };
    Config { options, relay: false, ..Config::default() }
}

fn request(
    role: Role,
    path: &[u8],
    config: &Config,
    baseline_key: Option<Key>,
    watch: Option<WatchOptions>,
) -> Request {
    let further = Vec::new();
    Request {
        role,
        path: path.to_vec(),
        further,
        options: config.options.clone(),
        baseline_key,
        watch,
        timeout_ms: 0,
    }
}

/// Explains why an agent's stream ended, from the connection's error and the agent's exit report.
async fn explain(end: AgentEnd) -> Option<SyncError> {
    let end = tokio::time::timeout(END_TIMEOUT, end.wait()).await.ok()?;
    if let Some(error) = end.error {
        return Some(SyncError::Remote(error));
    }
    let said = end.stderr.trim().to_owned();
    Some(SyncError::Agent { end: AgentExit::of(end.signal, end.exit_status)?, said })
}
