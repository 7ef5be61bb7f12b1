//! An SSH session to a server, and the agents on it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;

use crate::log::debug;
use crate::remote::agent::Agent;
use crate::remote::agent_image::AgentImage;
use crate::remote::bootstrap::{self, Form, Purpose};
use crate::remote::error::{ConnectionStatus, RemoteError};
use crate::remote::facts::{HostFacts, Login, Way};
use crate::remote::fast::{self, Begun, Job, LoggedIn, Trusted};
use crate::remote::hostkey::HostKeys;
use crate::remote::lent::{Lent, Opener};
use crate::remote::line::Line;
use crate::remote::own;
use crate::remote::probe::Probe;
use crate::remote::pump::{self, Waiting};
use crate::remote::secrets::Secrets;
use crate::remote::session::{Channel, Library, Session};
use crate::remote::spool::Room;
use crate::remote::ssh::{self, Hooks};
use crate::remote::target::{Target, Transport};
use crate::remote::tcp_sender::{self, TcpSender};
use crate::remote::timeout::within;
use crate::remote::websocket::Address;
use crate::wire::lanes::Token;

/// Unread bytes that all agents of a connection may have together: one full window. Beyond this
/// limit the session stops, its sends included, until somebody reads.
const UNREAD_BYTES_MAX: usize = ssh::WINDOW_BYTES_MAX as usize;

/// An SSH session.
///
/// With a host that is remembered, a new connection has done no more than prove who the host is.
/// The login then travels along with whatever is started first.
pub struct Connection {
    line: OnceCell<Line>,
    /// A connection whose login has not been sent.
    trusted: Mutex<Option<Box<Trusted>>>,
    pub(super) endpoint: String,
    pub(super) timeout: Duration,
    budget: Arc<Semaphore>,
    /// The target, for a further connection to it.
    pub(super) target: Target,
    /// Room for bytes that nobody here takes, once the connection has forwards.
    pub(super) spool_room: OnceLock<Room>,
    facts: Option<Login>,
    secrets: Option<Secrets>,
    /// True if agents run as root, by `sudo -n`.
    as_root: bool,
}

/// A connection that a keeper lends.
pub struct Loan {
    /// The keeper's target.
    pub target: Target,
    /// Its name, for messages.
    pub endpoint: String,
    /// The round trip that the keeper has measured.
    pub round_trip: Duration,
    /// A stream to an agent for one run.
    pub agent: Option<UnixStream>,
    /// True if that agent runs already.
    pub is_agent_ready: bool,
    /// Opens channels.
    pub open: Opener,
}

/// Connects. The login may wait for the first agent or command; it then tells its errors there.
///
/// # Errors
/// The network failed, the host key is not trusted, or the server refused the login.
pub async fn connect(target: &Target) -> Result<Connection, RemoteError> {
    let facts = Login::of(target);
    let (line, trusted) = match fast::begin(target, facts.as_ref()).await? {
        Begun::Trusted(trusted) => (None, Some(trusted)),
        Begun::LoggedIn(line) => (Some(learnt(*line, facts.clone(), Way::Fast).await), None),
        Begun::InOrder(way) => (Some(in_order(target, facts.clone(), way).await?), None),
    };
    Ok(Connection {
        line: OnceCell::new_with(line),
        trusted: Mutex::new(trusted),
        endpoint: target.endpoint()?,
        timeout: target.connect_timeout,
        budget: Arc::new(Semaphore::new(UNREAD_BYTES_MAX)),
        target: target.clone(),
        spool_room: OnceLock::new(),
        facts,
        secrets: None,
        as_root: false,
    })
}

/// Connects and logs in, in order.
async fn in_order(target: &Target, facts: Option<Login>, way: Way) -> Result<Line, RemoteError> {
    let line = match Line::in_order(Library::Russh, target).await {
        Err(error) if own::has_what_is_missing(&error) => {
            debug!("connect step=again client=own why={error:?}");
            Line::in_order(Library::Own, target).await
        }
        line => line,
    }?;
    Ok(learnt(line, facts, way).await)
}

/// Remembers what a connection has shown.
async fn learnt(line: Line, facts: Option<Login>, way: Way) -> Line {
    if let (Some(facts), Some(seen)) = (facts, line.seen.clone()) {
        let seen = HostFacts { round_trip: Some(line.round_trip()), ..seen };
        // A lost task has remembered nothing.
        let _ = tokio::task::spawn_blocking(move || facts.learn(seen, way)).await;
    }
    line
}

impl Connection {
    /// A connection that a keeper lends. Closing it ends only the channels of this process.
    #[must_use]
    pub fn lent(loan: Loan) -> Self {
        let Loan { target, endpoint, round_trip, agent, is_agent_ready, open } = loan;
        let status = ConnectionStatus::default();
        let session = Session::Lent(Lent::new(open, agent, is_agent_ready, status.clone()));
        let line = Line::over(None, session, status, &Hooks::default(), 0);
        line.took(round_trip);
        Self {
            line: OnceCell::new_with(Some(line)),
            trusted: Mutex::default(),
            endpoint,
            timeout: target.connect_timeout,
            budget: Arc::new(Semaphore::new(UNREAD_BYTES_MAX)),
            target,
            spool_room: OnceLock::new(),
            facts: None,
            secrets: None,
            as_root: false,
        }
    }

    /// The name of the server, for messages.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// True if a keeper lends this connection.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.line.get().is_some_and(|line| matches!(*line.session, Session::Lent(_)))
    }

    /// True if a keeper lends an agent with this connection that runs already.
    #[must_use]
    pub fn has_ready_agent(&self) -> bool {
        let is_ready = |session: &Session| matches!(session, Session::Lent(lent) if lent.is_agent_ready());
        self.line.get().is_some_and(|line| is_ready(&line.session))
    }

    /// Returns the connection with a file (mode 0600) that keeps the agents' secrets. With its
    /// secret, ksync seals the agent's first bytes, and they travel in the command line. Without a
    /// secret the first bytes arrive one round trip later.
    #[must_use]
    pub fn with_secrets(self, file: PathBuf) -> Self {
        let key = match self.line.get() {
            Some(line) => line.host_key().cloned(),
            None => self.trusted().as_ref().and_then(|trusted| trusted.line.host_key().cloned()),
        };
        let secrets = key.map(|key| Secrets::of(file, &key, &self.target.user));
        Self { secrets, ..self }
    }

    /// Returns the connection with agents that run as root, by `sudo -n`.
    #[must_use]
    pub fn with_sudo(self) -> Self {
        Self { as_root: true, ..self }
    }

    fn trusted(&self) -> MutexGuard<'_, Option<Box<Trusted>>> {
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs in now, where the login would travel along with the first agent or command.
    ///
    /// # Errors
    /// The server refused the login, or the connection is lost.
    pub async fn log_in_now(&self) -> Result<(), RemoteError> {
        self.line().await.map(drop)
    }

    /// The session, after the login.
    pub(super) async fn line(&self) -> Result<&Line, RemoteError> {
        self.line.get_or_try_init(|| self.log_in(None)).await
    }

    /// The session, if the login has succeeded.
    pub(super) fn known_line(&self) -> Option<&Line> {
        self.line.get()
    }

    /// Logs in, and starts a job along with that if it can.
    async fn log_in(&self, job: Option<&mut Job<'_>>) -> Result<Line, RemoteError> {
        let trusted = self.trusted().take();
        let (way, facts) = match trusted {
            Some(trusted) => match trusted.log_in(&self.target, self.facts.as_ref(), job).await? {
                LoggedIn::Line(line) => return Ok(learnt(*line, self.facts.clone(), Way::Fast).await),
                LoggedIn::InOrder(failure) => (Way::AfterFailure(failure), self.facts.clone()),
            },
            // An earlier login failed.
            None => (Way::InOrder, self.facts.clone()),
        };
        in_order(&self.target, facts, way).await
    }

    /// Starts the agent `image`, and installs it first if it is missing. Returns without waiting
    /// for the agent's first answer. Up to 64 KiB that the caller writes meanwhile are already on
    /// their way.
    ///
    /// # Errors
    /// The login failed, or the server opens no channel. The agent's reader and its end report
    /// every later failure.
    pub async fn agent(&self, image: AgentImage) -> Result<Agent, RemoteError> {
        let (agent, waiting) = Agent::waiting();
        self.start(waiting, image).await?;
        Ok(agent)
    }

    /// Starts the agent for which a reader and a writer already exist. Bytes that were already
    /// written travel along with the login, if that is still to come. Otherwise up to 8 KiB travel
    /// in the command line, and so arrive one round trip earlier. They travel there only if they
    /// can be sealed, because every user of that machine can read its command lines.
    ///
    /// # Errors
    /// The same as [`Connection::agent`].
    pub async fn start(&self, mut waiting: Waiting, image: AgentImage) -> Result<(), RemoteError> {
        if let Some(Session::Lent(lent)) = self.line.get().map(|line| &*line.session)
            && let Some(channel) = lent.agent()
        {
            debug!("agent step=start for=exchange kept=true");
            let line = self.line().await?;
            let (read, write) = Channel::Lent(channel).split();
            let start = self.agent_on(line, image, String::new(), Form::Whole);
            waiting.start(read, write, pump::Start { probe: None, ..start });
            return Ok(());
        }
        let (marker, form) = (self.marker()?, self.form(&image));
        let command = bootstrap::command(&image, &marker, &Purpose::Exchange(None), form, self.as_root);
        let mut job = Job { command, waiting: &mut waiting, started: None };
        let line = self.line.get_or_try_init(|| self.log_in(Some(&mut job))).await?;
        if let Some((read, write)) = job.started.take() {
            waiting.start(read, write, self.agent_on(line, image, marker, form));
            return Ok(());
        }
        let secret = self.secrets.as_ref().and_then(Secrets::recall);
        let sealing = image.clone();
        let purpose = move |waiting: &mut Waiting| {
            Purpose::Exchange(secret.and_then(|secret| waiting.seal_first_flight(&secret, &sealing)))
        };
        self.start_for(purpose, waiting, image).await
    }

    /// Starts the agent `image` as a further lane of the exchange that announces `token`. The
    /// agent's first answer means that it has joined. Everything written to it from then on belongs
    /// to that exchange.
    ///
    /// # Errors
    /// The same as [`Connection::agent`].
    pub async fn lane(&self, image: AgentImage, token: Token) -> Result<Agent, RemoteError> {
        let (agent, waiting) = Agent::waiting();
        self.start_for(|_| Purpose::Lane(token), waiting, image).await?;
        Ok(agent)
    }

    /// Connects once more to the same server, which must show the same host key.
    ///
    /// # Errors
    /// The same as [`connect`].
    pub async fn another(&self) -> Result<Connection, RemoteError> {
        let mut target = self.target.clone();
        if let Some(key) = self.line.get().and_then(Line::host_key) {
            target.host_keys = HostKeys::Exactly(key.clone());
        }
        Ok(Connection { as_root: self.as_root, ..connect(&target).await? })
    }

    /// The TCP sender below this connection, where the system shows it.
    #[must_use]
    pub fn tcp_sender(&self) -> Option<TcpSender> {
        let port = match &self.target.transport {
            Transport::Tcp { port, .. } => *port,
            Transport::WebSocket { url, .. } => Address::parse(url).ok()?.port,
        };
        tcp_sender::look(port)
    }

    pub(super) async fn start_for(
        &self,
        purpose: impl FnOnce(&mut Waiting) -> Purpose,
        mut waiting: Waiting,
        image: AgentImage,
    ) -> Result<(), RemoteError> {
        let line = self.line().await?;
        let marker = self.marker()?;
        let form = if matches!(&*line.session, Session::Own(_)) { self.form(&image) } else { Form::Whole };
        let opening = async {
            let begin = Instant::now();
            let channel = line.session.open().await?;
            line.took(begin.elapsed());
            let purpose = purpose(&mut waiting);
            debug!("agent step=start {}", purpose.kind());
            let command = bootstrap::command(&image, &marker, &purpose, form, self.as_root);
            // Ask for no reply: the agent's own first answer arrives one round trip earlier.
            channel.exec(false, command).await?;
            Ok(channel)
        };
        let opened =
            within(self.timeout, "open a channel to", &self.endpoint, async { Ok(opening.await) }).await?;
        let channel = opened.map_err(|source: russh::Error| line.channel_error(&self.endpoint, source))?;
        let (read, write) = channel.split();
        waiting.start(read, write, self.agent_on(line, image, marker, form));
        Ok(())
    }

    fn marker(&self) -> Result<String, RemoteError> {
        bootstrap::marker().ok_or_else(|| RemoteError::NotStarted {
            endpoint: self.endpoint.clone(),
            reason: "this machine gave no random number".into(),
        })
    }

    /// The form of the command that starts this agent: short where it is known to be.
    fn form(&self, image: &AgentImage) -> Form {
        // The facts are about the agent of the login.
        if self.as_root {
            return Form::Whole;
        }
        let known = self.facts.as_ref().and_then(Login::recall);
        if known.is_some_and(|known| known.has_agent(&image.sha256)) { Form::Short } else { Form::Whole }
    }

    /// The settings of the tasks behind an agent on `line`.
    fn agent_on(&self, line: &Line, image: AgentImage, marker: String, form: Form) -> pump::Start {
        let round_trip = line.round_trip();
        pump::Start {
            image,
            marker,
            form,
            endpoint: self.endpoint.clone(),
            timeout: self.timeout,
            round_trip,
            budget: self.budget.clone(),
            connection_status: line.status.clone(),
            secrets: self.secrets.clone(),
            facts: self.facts.clone().filter(|_| !self.as_root),
            probe: Some(Probe::new(&line.session, round_trip)),
        }
    }

    /// Upper bound of a round trip: the shortest one measured among those that connecting needed
    /// anyway.
    #[must_use]
    pub fn round_trip(&self) -> Duration {
        match self.line.get() {
            Some(line) => line.round_trip(),
            None => self.trusted().as_ref().map_or(Duration::MAX, |trusted| trusted.line.round_trip()),
        }
    }

    /// Round trips until an agent is started, if the server accepts the first key and TLS is 1.3.
    #[must_use]
    pub fn round_trips(&self) -> u32 {
        match self.line.get() {
            Some(line) => line.round_trips,
            None => self.trusted().as_ref().map_or(0, |trusted| trusted.line.round_trips),
        }
    }

    /// Reports if the session has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match self.line.get() {
            Some(line) => line.session.is_closed(),
            None => self.trusted().as_ref().is_some_and(|trusted| trusted.line.session.is_closed()),
        }
    }

    /// Waits until the session has ended, and returns the reason.
    pub async fn lost(&self) -> RemoteError {
        match self.line().await {
            Ok(line) => line.lost(&self.endpoint).await,
            Err(error) => error,
        }
    }

    /// Ends the session. This cuts off agents that still run, so read to their end first.
    pub async fn close(self) {
        let trusted = self.trusted().take();
        match (self.line.into_inner(), trusted) {
            (Some(line), _) => line.close().await,
            (None, Some(trusted)) => trusted.line.close().await,
            (None, None) => {}
        }
    }
}
