//! Connections to a Kernel session: from the session store, or after asking the API.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::{JoinHandle, spawn_blocking};

use crate::content::hash::Hash;
use crate::exchange::chain;
use crate::kernel::{
    Access, Browser, Expiry, KeepAlive, KernelError, State, Step, StoredSession, Waits, unconfirmed,
};
use crate::log::debug;
use crate::monitor::{Awake, Notice, Preparation, Warning};
use crate::remote::{self, Connection, ErrorKind, HostKeys, Keys, Proxies, RemoteError, Target, Transport};
use crate::sync::error::SyncError;
use crate::sync::job::{ConnectOptions, SharedMonitor};
use crate::sync::target::{common, state_dir};
use crate::wire::message::AbortKind;

/// Interval of reading the wall clock. Timers use a clock that stops while this machine sleeps.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// A connected session, and the keep-alive that keeps its VM awake.
pub(super) struct KernelSession {
    /// Held, not used.
    _alive: Option<KeepAlive>,
    /// Held, not used.
    _warner: ExpiryWarner,
    id: String,
    vm_domain: String,
    /// Tells this VM from others.
    machine: String,
    access: Access,
}

impl KernelSession {
    /// Connects to the session of this id or name.
    ///
    /// A session that was used before needs no API. Its name does: another session may have got it
    /// since. The API is asked while the connection is made, and nothing is written before it has
    /// answered.
    ///
    /// The login may wait for the first agent, as with [`remote::connect`]. A login that is refused
    /// there does not lead to the API, but the next connection's login does.
    pub(super) async fn connect(
        name: &str,
        connect_options: &ConnectOptions,
        login: LoginTime,
        monitor: &SharedMonitor,
    ) -> Result<(Connection, Self), SyncError> {
        let access = telling(access(connect_options)?, monitor);
        let connector = Connector { access, connect_options, login, monitor };
        let meant = connector.access.meant(name)?;
        let reached = match connector.access.stored(&meant) {
            Some(stored) => connector.again(stored, meant).await?,
            None => connector.anew(meant).await?,
        };
        let Reached { connection, alive, stored, has_last_token } = reached;
        let mut expiry = Expiry::of(&stored);
        if !has_last_token {
            // The keep-alive asks for another token in time, and tells if there is none.
            expiry.awake_until = None;
        }
        // The warner starts last: a session that is gone needs no warning of its end.
        let warner =
            ExpiryWarner::begin(expiry, stored.shown(), connect_options.keep_alive, Arc::clone(monitor));
        let machine = Hash::of(format!("{}\n{}", stored.session_id, stored.host_key).as_bytes()).to_string();
        let StoredSession { session_id: id, vm_domain, .. } = stored;
        let session =
            Self { _alive: alive, _warner: warner, id, vm_domain, machine, access: connector.access };
        session.tell(monitor);
        Ok((connection, session))
    }

    /// Tells which session this is.
    pub(super) fn tell(&self, monitor: &SharedMonitor) {
        let (session_id, vm_domain) = (self.id.clone(), self.vm_domain.clone());
        monitor.notice(Notice::Session { session_id, vm_domain });
    }

    /// Tells this VM from every other one: the session's id and the host key.
    pub(super) fn machine(&self) -> &str {
        &self.machine
    }

    /// Replaces the error of a lost connection by its cause. If the session is gone, that is the
    /// cause, and the session store forgets it.
    pub(super) async fn explain(&self, error: SyncError) -> SyncError {
        let is_loss = match &error {
            SyncError::Remote(error) => may_be_outdated(error.kind()),
            SyncError::Run(error) => error.kind == AbortKind::Timeout,
            _ => false,
        };
        if !is_loss || self.access.api.is_none() {
            return error;
        }
        let (access, id) = (self.access.clone(), self.id.clone());
        let asked = spawn_blocking(move || -> Result<(), KernelError> {
            let found = access.api()?.browser(&id).map(drop).map_err(KernelError::from);
            if found.as_ref().is_err_and(KernelError::is_gone) {
                access.forget(&id);
            }
            found
        });
        match asked.await {
            Ok(Err(gone)) if gone.is_gone() => gone.into(),
            _ => error,
        }
    }
}

/// The time of the login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LoginTime {
    /// Before the connection is used.
    First,
    /// Along with the first agent, where the host is remembered.
    WithAgent,
}

/// Connects to a session: everything that its connections share.
struct Connector<'a> {
    access: Access,
    connect_options: &'a ConnectOptions,
    login: LoginTime,
    monitor: &'a SharedMonitor,
}

/// A connection, and the session as it is known by now.
struct Reached {
    connection: Connection,
    alive: Option<KeepAlive>,
    stored: StoredSession,
    /// True if nobody has a longer token for the keep-alive.
    has_last_token: bool,
}

impl Connector<'_> {
    /// Connects to a session that was used before.
    async fn again(&self, stored: StoredSession, meant: String) -> Result<Reached, SyncError> {
        let (is_named, has_api) = (stored.session_id != meant, self.access.api.is_some());
        if is_named && !has_api {
            let (what, hint) = unconfirmed(&meant, &stored);
            self.monitor.warn(Warning { what, hint });
        }
        // The API is also asked for another URL if the token of the keep-alive expires.
        let is_short = || Expiry::of(&stored).is_token_short(SystemTime::now());
        if has_api && (is_named || (self.connect_options.keep_alive && is_short())) {
            return self.while_asking(stored, meant).await;
        }
        match self.to(stored, false).await {
            // Without the API there is no other way to connect.
            Err(SyncError::Remote(source)) if !has_api && is_unreachable(source.kind()) => {
                Err(SyncError::PerhapsGone { session: meant, source })
            }
            Err(SyncError::Remote(error)) if has_api && may_be_outdated(error.kind()) => {
                debug!("session ask=api why=store-may-be-outdated error={}", chain(&*error));
                self.anew(meant).await
            }
            result => result,
        }
    }

    /// Connects to a session that was used before, and meanwhile asks the API which one is meant.
    async fn while_asking(&self, stored: StoredSession, meant: String) -> Result<Reached, SyncError> {
        let is_named = stored.session_id != meant;
        let (access, known) = (self.access.clone(), stored.clone());
        let mut asking = spawn_blocking(move || access.confirm(&meant, Some(&known)));
        let mut connecting = pin!(self.to(stored.clone(), true));
        let (answer, reached) = tokio::select! {
            answer = &mut asking => (answer?, None),
            reached = &mut connecting => (asking.await?, Some(reached)),
        };
        let browser = match answer {
            Ok(browser) if browser.session_id == stored.session_id => Some(browser),
            // Another session has the name now. The connection to the former one is dropped.
            Ok(browser) => {
                debug!("session name-leads-to={} before={}", browser.session_id, stored.session_id);
                return match self.access.stored(&browser.session_id) {
                    Some(other) => {
                        self.or_set_up(self.to(other.refreshed(&browser), true).await, browser).await
                    }
                    None => self.set_up(browser).await,
                };
            }
            // An id leads nowhere else, so the token merely stays as it is.
            Err(error) if !is_named && !error.is_gone() => None,
            Err(error) => return Err(error.into()),
        };
        let reached = match reached {
            Some(reached) => reached,
            None => connecting.await,
        };
        match browser {
            Some(browser) => {
                let reached = reached.map(|reached| self.refreshed(reached, &browser));
                self.or_set_up(reached, browser).await
            }
            None => reached,
        }
    }

    /// The connection with what the API told meanwhile.
    fn refreshed(&self, reached: Reached, browser: &Browser) -> Reached {
        let stored = reached.stored.refreshed(browser);
        self.access.refresh(browser);
        let has_other_url = stored.cdp_ws_url != reached.stored.cdp_ws_url;
        let alive = if has_other_url { self.keep_alive(&stored, true) } else { reached.alive };
        let has_last_token = !has_other_url && Expiry::of(&stored).is_token_short(SystemTime::now());
        alive.iter().filter(|_| has_last_token).for_each(KeepAlive::expiry_is_told);
        Reached { alive, stored, has_last_token, ..reached }
    }

    /// Sets the VM up if the connection failed for a reason that this may mend.
    async fn or_set_up(
        &self,
        reached: Result<Reached, SyncError>,
        browser: Browser,
    ) -> Result<Reached, SyncError> {
        match reached {
            Err(SyncError::Remote(error)) if may_be_outdated(error.kind()) => {
                debug!("session set-up=again why=store-may-be-outdated error={}", chain(&*error));
                self.set_up(browser).await
            }
            reached => reached,
        }
    }

    /// Asks the API for a session, and sets its VM up.
    async fn anew(&self, meant: String) -> Result<Reached, SyncError> {
        let (access, tell) = (self.access.clone(), self.preparing());
        let vm = spawn_blocking(move || access.connect(&meant, tell)).await??;
        self.to_set_up(vm.stored).await
    }

    /// Sets the VM of a session up.
    async fn set_up(&self, browser: Browser) -> Result<Reached, SyncError> {
        let (access, tell) = (self.access.clone(), self.preparing());
        let vm = spawn_blocking(move || access.set_up(&access.api()?, &browser, tell)).await??;
        self.to_set_up(vm.stored).await
    }

    fn preparing(&self) -> impl FnMut(Step) + Send + 'static {
        let monitor = Arc::clone(self.monitor);
        move |step| monitor.prepare(preparation(step))
    }

    /// Connects to a VM that was just set up.
    async fn to_set_up(&self, stored: StoredSession) -> Result<Reached, SyncError> {
        let id = stored.session_id.clone();
        match self.to(stored, true).await {
            Err(SyncError::Remote(error))
                if is_unreachable(error.kind()) || error.kind() == ErrorKind::NotAuthorised =>
            {
                Err(self.ask_why(id, error).await)
            }
            result => result,
        }
    }

    /// Explains why a VM that was just set up cannot be reached: the VM's own diagnosis, or that
    /// the session is gone.
    async fn ask_why(&self, session: String, source: Arc<RemoteError>) -> SyncError {
        let (access, id) = (self.access.clone(), session.clone());
        match spawn_blocking(move || access.diagnose(&id)).await {
            Ok(Err(gone)) if gone.is_gone() => gone.into(),
            Ok(Ok(diagnosis)) => {
                SyncError::Unreachable { session, diagnosis: Some(Box::new(diagnosis)), source }
            }
            _ => SyncError::Unreachable { session, diagnosis: None, source },
        }
    }

    /// Connects to the VM of a session. `is_asked` tells that the API is asked about it as well.
    async fn to(&self, stored: StoredSession, is_asked: bool) -> Result<Reached, SyncError> {
        // The keep-alive comes first: it wakes a VM that sleeps.
        let alive = self.keep_alive(&stored, is_asked);
        let connection = remote::connect(&target_of(&stored, self.connect_options)).await?;
        if self.login == LoginTime::First {
            connection.log_in_now().await?;
        }
        let has_last_token = self.access.api.is_none();
        Ok(Reached { connection, alive, stored, has_last_token })
    }

    fn keep_alive(&self, stored: &StoredSession, is_asked: bool) -> Option<KeepAlive> {
        if !self.connect_options.keep_alive {
            self.monitor.notice(Notice::KeepAlive(Awake::Off));
            return None;
        }
        let monitor = Arc::clone(self.monitor);
        let tell = move |state| match state {
            State::Held => monitor.notice(Notice::KeepAlive(Awake::Held)),
            State::Back => monitor.notice(Notice::KeepAlive(Awake::Back)),
            State::Lost(what, hint) => monitor.notice(Notice::KeepAlive(Awake::Lost(Warning { what, hint }))),
            State::Expires(what, hint) => monitor.warn(Warning { what, hint }),
        };
        let ca_cert = self.connect_options.ca_cert.clone();
        Some(KeepAlive::begin(stored, &self.access, ca_cert, is_asked, tell))
    }
}

/// Waits until a session's end is near, and warns once.
struct ExpiryWarner(Option<JoinHandle<()>>);

impl ExpiryWarner {
    fn begin(expiry: Expiry, session: &str, is_kept_awake: bool, monitor: SharedMonitor) -> Self {
        let mut now = SystemTime::now();
        let Some(end) = expiry.end(now, is_kept_awake) else { return Self(None) };
        let name = session.to_owned();
        let warn = move |now| {
            let (what, hint) = end.told(&name, now);
            monitor.warn(Warning { what, hint });
        };
        if end.is_short_in(now).is_zero() {
            warn(now);
            return Self(None);
        }
        Self(Some(tokio::spawn(async move {
            while !end.is_short_in(now).is_zero() {
                tokio::time::sleep(end.is_short_in(now).min(LOOK_EVERY)).await;
                now = SystemTime::now();
            }
            warn(now);
        })))
    }
}

impl Drop for ExpiryWarner {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// The settings, with the API's waits told to `monitor`.
fn telling(access: Access, monitor: &SharedMonitor) -> Access {
    let monitor = Arc::clone(monitor);
    Access { waits: Waits::new(move |what, wait| monitor.notice(Notice::Wait { what, wait })), ..access }
}

fn preparation(step: Step) -> Preparation {
    match step {
        Step::LookUp => Preparation::LookUp,
        Step::SetUp => Preparation::SetUp,
        Step::BringBridge => Preparation::BringBridge,
    }
}

/// The settings for connecting to Kernel sessions.
///
/// # Errors
/// There is no state directory.
pub fn access(connect_options: &ConnectOptions) -> Result<Access, SyncError> {
    // The session store keeps the path, and the next run may be in another directory.
    let identity = connect_options
        .identities
        .first()
        .map(|file| std::path::absolute(file).unwrap_or_else(|_| file.clone()));
    Ok(Access {
        api: connect_options.api.clone(),
        directory: state_dir()?,
        identity,
        current: connect_options.session.clone(),
        bridge: connect_options.bridge,
        waits: Waits::default(),
    })
}

/// The connection target of a known session. Only the host key that the API reported is accepted.
pub(super) fn target_of(stored: &StoredSession, connect_options: &ConnectOptions) -> Target {
    let mut target = common(connect_options, HostKeys::Exactly(stored.host_key.clone()));
    let (url, ca_cert) = (stored.bridge_url(), connect_options.ca_cert.clone());
    target.transport = Transport::WebSocket { url, ca_cert, proxies: Proxies::of_environment() };
    target.keys = Keys::named(vec![stored.key_file.clone()]);
    target
}

/// True if the connection failed, and not the machine at its other end.
fn is_unreachable(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Socket | ErrorKind::Timeout | ErrorKind::ConnectTimeout)
}

/// True if asking the API may help: the VM was created anew or moved, or no longer knows the key.
/// This includes a wrong host key. It gets no second chance by itself: the API reports the key of
/// the present VM.
fn may_be_outdated(kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::Socket
        | ErrorKind::Timeout
        | ErrorKind::ConnectTimeout
        | ErrorKind::NotAuthorised
        | ErrorKind::HostKey => true,
        ErrorKind::Usage | ErrorKind::FileIo | ErrorKind::CouldNotStart => false,
    }
}
