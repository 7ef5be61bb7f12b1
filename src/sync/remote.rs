//! From or to another machine: a session with it, and exchanges with an agent on it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::OnceCell;

use crate::engine::{Config, Engine, Receiver, Sender};
use crate::exchange::lanes::Striped;
use crate::exchange::{self, Perform, Receiving, Sending};
use crate::remote::{self, Agent, AgentEnd, AgentImage, Connection, HostKeys, Transport};
use crate::sandbox::{self, Sandbox, Weather};
use crate::sync::memory::{self, Key};
use crate::sync::meter::Count;
use crate::sync::{Endpoint, Round, SyncError, Watcher, Way, kernel, lanes, target};
use crate::wire::hello::{self, Options, Order, Role};
use crate::wire::message::AbortKind;

/// How long the far side may take to say how the agent ended, once it has closed its output. A peer that never
/// says so must not keep us.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// The way to where the agent runs: connected when it is first needed, while the first exchange already reads
/// its source.
pub(super) struct Session<'a> {
    endpoint: &'a Endpoint,
    way: &'a Way,
    connected: OnceCell<Connected>,
}

/// A connection, and what is behind it.
struct Connected {
    connection: Connection,
    behind: Behind,
}

/// What a connection leads to, where there is more to it.
enum Behind {
    Host,
    Sandbox(Sandbox),
    Kernel(kernel::Session),
}

impl<'a> Session<'a> {
    /// A session with the machine of `endpoint`.
    pub(super) fn new(endpoint: &'a Endpoint, way: &'a Way) -> Self {
        Self { endpoint, way, connected: OnceCell::new() }
    }

    async fn connect(&self, monitor: &Watcher) -> Result<Connected, SyncError> {
        if let Endpoint::Sandbox { .. } = self.endpoint {
            return self.connect_to_sandbox().await;
        }
        if let Endpoint::Session { name, .. } = self.endpoint {
            let (connection, session) = kernel::Session::connect(name, self.way, monitor).await?;
            return Ok(Connected { connection, behind: Behind::Kernel(session) });
        }
        let target = target::target(self.endpoint, self.way)?;
        Ok(Connected { connection: remote::connect(&target).await?, behind: Behind::Host })
    }

    /// Starts a sandbox in this process and connects to it as to any VM.
    async fn connect_to_sandbox(&self) -> Result<Connected, SyncError> {
        let options = sandbox::Options {
            listen: (std::net::Ipv4Addr::LOCALHOST, 0).into(),
            home: target::cache_dir()?.join("sandbox"),
            weather: Weather::default(),
        };
        let sandbox = Sandbox::start(options).await.map_err(|error| SyncError::Sandbox(Box::new(error)))?;
        let mut target = target::common(self.way, HostKeys::Exactly(sandbox.host_key()));
        target.transport = Transport::WebSocket { url: sandbox.url(), ca_cert: None };
        target.identity_text = Some(sandbox.client_key().to_owned());
        target.use_ssh_agent = false;
        target.identities.clear();
        Ok(Connected { connection: remote::connect(&target).await?, behind: Behind::Sandbox(sandbox) })
    }

    /// Ends the connection.
    pub(super) async fn close(self) {
        let Some(Connected { connection, behind }) = self.connected.into_inner() else { return };
        connection.close().await;
        if let Behind::Sandbox(sandbox) = behind {
            sandbox.stop().await;
        }
    }

    /// Sends what is at `from` to `to` on the other machine.
    pub(super) async fn upload(
        &self,
        from: &Path,
        to: &[u8],
        options: &Options,
        key: Option<Key>,
        monitor: Watcher,
    ) -> Result<Round, SyncError> {
        let options = Options { special_bits: true, ..options.clone() };
        let engine = Sender::new(&Config { options: options.clone(), relay: false });
        let disk = Sending::new(from.to_owned(), options.clone()).remembering(memory::open(key));
        let order = Order { role: Role::Receiver, path: to.to_vec(), options, memory: key };
        self.exchange(order, engine, disk, monitor).await
    }

    /// Fetches what is at `from` on the other machine to `to`. What comes from there is not trusted: set-id
    /// bits and links that lead out of the tree stay away.
    pub(super) async fn download(
        &self,
        from: &[u8],
        to: &Path,
        options: &Options,
        key: Option<Key>,
        monitor: Watcher,
    ) -> Result<Round, SyncError> {
        let options = Options { special_bits: false, safe_links: true, ..options.clone() };
        let engine = Receiver::new(&Config { options: options.clone(), relay: false });
        let name = from.rsplit(|&byte| byte == b'/').next().map(<[u8]>::to_vec);
        let disk = Receiving::new(PathBuf::from(to), options.clone())
            .remembering(memory::open(key))
            .looking_ahead(name);
        let order = Order { role: Role::Sender, path: from.to_vec(), options, memory: key };
        self.exchange(order, engine, disk, monitor).await
    }

    async fn exchange(
        &self,
        order: Order,
        engine: impl Engine + 'static,
        disk: impl Perform,
        monitor: Watcher,
    ) -> Result<Round, SyncError> {
        let (agent, waiting) = Agent::waiting();
        let (up_bytes, down_bytes) = (Count::default(), Count::default());
        let (reader, mut writer) = (down_bytes.meter(agent.reader), up_bytes.meter(agent.writer));
        // Also for a download: which way much goes is seen where it is written.
        let (asking, opening) = lanes::pair(up_bytes.clone());
        let compress = order.options.compress;
        let preparing = Watcher::clone(&monitor);
        let running = super::blocking(move || {
            // A writer that is gone shows in what the reader says.
            let _ = hello::write(&mut writer, Some(order));
            let writer = Striped::new(Box::new(writer), Box::new(asking));
            exchange::run(reader, writer, engine, disk, true, compress, &*monitor)
        });
        tokio::pin!(running);
        let starting = async {
            let connected = self.connected.get_or_try_init(|| self.connect(&preparing)).await?;
            connected.connection.start(waiting, AgentImage::embedded()).await?;
            Ok::<_, SyncError>(&connected.connection)
        };
        let result = tokio::select! {
            // Nothing can come of it before it has started, save that there is nothing to send.
            result = &mut running => result,
            started = starting => {
                tokio::select! {
                    result = &mut running => result,
                    never = opening.run(started?, self.way.connections) => match never {},
                }
            }
        };
        let summary = match result? {
            Ok(summary) => summary,
            Err(failure) if failure.kind == AbortKind::Connection => {
                let error = explain(agent.end).await.unwrap_or(SyncError::Run(failure));
                return Err(match self.connected.get() {
                    Some(Connected { behind: Behind::Kernel(session), .. }) => session.explain(error).await,
                    _ => error,
                });
            }
            Err(failure) => return Err(SyncError::Run(failure)),
        };
        Ok(Round {
            summary,
            wire_up_bytes: up_bytes.bytes(),
            wire_down_bytes: down_bytes.bytes(),
            connect_round_trips: self
                .connected
                .get()
                .map_or(0, |connected| connected.connection.round_trips()),
            agent_installed_bytes: agent.installed.sent_bytes().flatten().unwrap_or(0),
        })
    }
}

/// Why an agent's stream ended, from what the connection and the agent itself left behind.
async fn explain(end: AgentEnd) -> Option<SyncError> {
    let end = tokio::time::timeout(END_PATIENCE, end.wait()).await.ok()?;
    if let Some(error) = end.error {
        return Some(SyncError::Remote(error));
    }
    let how = match (end.signal, end.exit_status) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(status)) => format!("exit status {status}"),
        (None, None) => return None,
    };
    let said = end.stderr.trim();
    Some(SyncError::Agent(if said.is_empty() { how } else { format!("{how}: {said}") }))
}
