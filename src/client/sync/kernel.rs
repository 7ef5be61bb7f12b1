//! Connections to a Kernel session: from the session store, or after asking the API.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::{JoinHandle, spawn_blocking};

use crate::content::hash::Hash;
use crate::exchange::chain;
use crate::kernel::{Access, Expiry, KeepAlive, KernelError, Step, StoredSession};
use crate::log::debug;
use crate::monitor::{Preparation, Warning};
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
    /// Tells this VM from others.
    machine: String,
    access: Access,
}

impl KernelSession {
    /// Connects to the session of this id or name.
    pub(super) async fn connect(
        name: &str,
        connect_options: &ConnectOptions,
        monitor: &SharedMonitor,
    ) -> Result<(Connection, Self), SyncError> {
        let access = access(connect_options)?;
        let meant = access.meant(name)?;
        // If the token of the keep-alive URL has expired, the API is asked for a new URL.
        let is_of_use = |stored: &StoredSession| {
            let can_ask = connect_options.keep_alive && access.api.is_some();
            !(can_ask && Expiry::of(stored).is_token_expired(SystemTime::now()))
        };
        if let Some(stored) = access.stored(&meant).filter(is_of_use) {
            match Self::connect_to(stored, access.clone(), connect_options, monitor).await {
                // Without the API there is no other way to connect.
                Err(SyncError::Remote(error)) if access.api.is_some() && may_be_outdated(error.kind()) => {
                    debug!("session ask=api why=store-may-be-outdated error={}", chain(&*error));
                }
                result => return result,
            }
        }
        let (asking, observer) = (access.clone(), Arc::clone(monitor));
        let tell = move |step| observer.prepare(preparation(step));
        let stored = spawn_blocking(move || asking.connect(&meant, tell)).await??.stored;
        let id = stored.session_id.clone();
        match Self::connect_to(stored, access.clone(), connect_options, monitor).await {
            Err(SyncError::Remote(error)) if is_unreachable(error.kind()) => {
                Err(Self::ask_why(access, id, error).await)
            }
            result => result,
        }
    }

    /// Explains why a VM that was just set up cannot be reached: the VM's own diagnosis, or that
    /// the session is gone.
    async fn ask_why(access: Access, session: String, source: Arc<RemoteError>) -> SyncError {
        let id = session.clone();
        match spawn_blocking(move || access.diagnose(&id)).await {
            Ok(Err(gone)) if gone.is_gone() => gone.into(),
            Ok(Ok(diagnosis)) => SyncError::Unreachable { session, diagnosis: Some(diagnosis), source },
            _ => SyncError::Unreachable { session, diagnosis: None, source },
        }
    }

    async fn connect_to(
        stored: StoredSession,
        access: Access,
        connect_options: &ConnectOptions,
        monitor: &SharedMonitor,
    ) -> Result<(Connection, Self), SyncError> {
        let alive = connect_options
            .keep_alive
            .then(|| KeepAlive::begin(stored.cdp_ws_url.clone(), connect_options.ca_cert.clone()));
        let connection = remote::connect(&target_of(&stored, connect_options)).await?;
        // The warner starts last: a session that is gone needs no warning of its end.
        let warner = ExpiryWarner::begin(&stored, connect_options.keep_alive, Arc::clone(monitor));
        let machine = Hash::of(format!("{}\n{}", stored.session_id, stored.host_key).as_bytes()).to_string();
        Ok((connection, Self { _alive: alive, _warner: warner, id: stored.session_id, machine, access }))
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

/// Waits until a session's end is near, and warns once.
struct ExpiryWarner(Option<JoinHandle<()>>);

impl ExpiryWarner {
    fn begin(stored: &StoredSession, is_kept_awake: bool, monitor: SharedMonitor) -> Self {
        let mut now = SystemTime::now();
        let Some(end) = Expiry::of(stored).end(now, is_kept_awake) else { return Self(None) };
        let name = stored.name.as_ref().unwrap_or(&stored.session_id).clone();
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
