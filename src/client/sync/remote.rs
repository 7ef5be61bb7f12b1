//! Exchanges with another machine: a connection to it, and exchanges with an agent on it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

use crate::engine::{Config, Engine, Receiver, RunError, Sender, Summary};
use crate::exchange::lanes::Striped;
use crate::exchange::rounds::{self, WatchedSource};
use crate::exchange::{self, Asker, Incoming, Link, Perform, Receiving, Sending, Timeouts};
use crate::monitor::Warning;
use crate::remote::{self, Agent, AgentEnd, Connection, ErrorKind};
use crate::sync::baseline::{self, Key};
use crate::sync::emulator::Emulator;
use crate::sync::endpoint::{Endpoint, name_of};
use crate::sync::error::{AgentExit, STATE_HINT, SyncError};
use crate::sync::job::{ConnectOptions, SharedMonitor};
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
}

/// The open connection of a job that is over, for the next job on the same machine.
pub(super) struct Kept {
    /// The endpoint, without its path.
    machine: Endpoint,
    connected: Connected,
}

impl Kept {
    /// Closes the connection.
    pub(super) async fn close(self) {
        self.connected.close().await;
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
        let (up_bytes, down_bytes) = Default::default();
        let (login, connected) = (LoginTime::WithAgent, OnceCell::new());
        Self { endpoint, connect_options, login, pairing, connected, up_bytes, down_bytes }
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

    /// Bytes to and from the other side so far.
    pub(super) fn traffic(&self) -> (u64, u64) {
        (self.up_bytes.bytes(), self.down_bytes.bytes())
    }

    /// Connects before the request is built, if deletions depend on the session's VM.
    pub(super) async fn meet(&self, options: &Options, monitor: &SharedMonitor) -> Result<(), SyncError> {
        if options.delete && matches!(self.endpoint, Endpoint::Session { .. }) {
            self.connected.get_or_try_init(|| self.connect(monitor)).await?;
        }
        Ok(())
    }

    async fn connect(&self, monitor: &SharedMonitor) -> Result<Connected, SyncError> {
        let Connected { connection, behind } = self.connect_to(monitor).await?;
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
        let Some(Kept { machine, connected }) = kept else { return false };
        if machine != self.endpoint.clone().with_path(b"") {
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
        self.connected.into_inner().map(|connected| Kept { machine, connected })
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
        let request = request(Role::Receiver, to, &config, key, None);
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
    pub(super) fn connection(&self) -> Option<&Connection> {
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
        let asked = if further.is_empty() { Vec::new() } else { names.flatten().collect() };
        let config = Config { asked, ..receiving(options) };
        let engine = Receiver::new(&config);
        let name = from.rsplit(|&byte| byte == b'/').next().map(<[u8]>::to_vec);
        let disk =
            Receiving::new(PathBuf::from(to), config.options.clone()).with_baseline(baseline::open(key));
        // Several sources go into a directory of which they may be a small part.
        let disk = if further.is_empty() { disk.prehashing(name, SystemTime::now()) } else { disk };
        let request = request(Role::Sender, from, &config, key, None).with_further(further);
        self.exchange(request, engine, disk, monitor).await
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
        let (agent, waiting) = Agent::waiting();
        let (up_bytes, down_bytes) = (self.up_bytes.clone(), self.down_bytes.clone());
        let before = self.traffic();
        let (reader, mut writer) = (down_bytes.meter(agent.reader), up_bytes.meter(agent.writer));
        // Downloads get lanes too: the direction of the bulk data shows only when it is written.
        let (asking, opening) = lanes::pair(up_bytes.clone());
        // The timeout for a silent agent is the one in the connect options.
        let timeouts = (options.timeout < FOR_EVER).then_some(options.timeout).and_then(Timeouts::of_client);
        let (heard, acknowledged) = (agent.heard, agent.acknowledged);
        let running = spawn_blocking(move || {
            // If the write fails, the reader reports why.
            let _ = hello::write(&mut writer, Some(request));
            let incoming = Incoming::alone(reader).within(timeouts).carried(move || heard.bytes());
            run(incoming, Striped::new(Box::new(writer), Box::new(asking)))
        });
        tokio::pin!(running);
        let starting = async {
            let connected = self.connected.get_or_try_init(|| self.connect(monitor)).await?;
            connected.connection.start(waiting, options.agent.clone()).await?;
            Ok::<_, SyncError>(&connected.connection)
        };
        let result = tokio::select! {
            // Before the agent starts, the exchange can only fail locally, e.g. on a missing
            // source.
            result = &mut running => result,
            started = starting => {
                tokio::select! {
                    result = &mut running => result,
                    never = opening.run(started?, &options.agent, options.connections, acknowledged) => match never {},
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
