//! A session: its VM's machine, processes, an SSH server at an address of its own, and a clock.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use russh::keys::key::safe_rng;
use russh::keys::{Algorithm, PrivateKey};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::answer::PlatformError;
use super::call::Call;
use super::host::Host;
use super::life::{self, Life, Stage};
use super::properties::Properties;
use super::screen::Screen;
use super::spawned::Spawned;
use super::time::Time;
use super::watch::Watch;
use super::{orphans, path_filter, rfc3339, rng, token};
use crate::link_conditions::{ConnectionConditions, LinkConditions, Meter, StandsStill};
use crate::machine::{Directories, Machine};
use crate::port::Inside;
use crate::port::{self, Port};
use crate::process::Processes;
use crate::rooted::Root;
use crate::server::{Lock, Server};

/// Port of the bridge to a VM's SSH server.
const SSH_PORT: u16 = 2222;

/// Addresses tried before the platform reports a lack of capacity.
const ADDRESS_ATTEMPTS_MAX: usize = 64;

/// Time that the end of a session waits for killed processes to be gone.
const END_MAX: Duration = Duration::from_secs(5);

/// Directories of every VM.
const DIRECTORIES: [(&str, u32); 6] = [
    ("root", 0o700),
    ("root/.ssh", 0o700),
    ("tmp", 0o1777),
    ("etc/ssh", 0o755),
    ("home/kernel/Downloads", 0o755),
    ("recordings", 0o755),
];

/// The requested properties of a session.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) timeout: Duration,
    pub(super) headless: bool,
    pub(super) stealth: bool,
    pub(super) name: Option<String>,
    pub(super) tags: Option<BTreeMap<String, String>>,
    pub(super) properties: Properties,
    /// Id and name of the pool that the session belongs to.
    pub(super) pool: Option<(String, Option<String>)>,
    /// If true, the host in `cdp_ws_url` names the VM, and there is no token.
    pub(super) without_jwt: bool,
    /// Lifetime of the token. Without it the token lives as long as a session can.
    pub(super) token_good_for: Option<Duration>,
}

/// A VM from its creation to its deletion.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: String,
    pub(super) wish: Mutex<Wish>,
    /// Absolute path on this machine of the directory that the VM's API shows as `/`.
    pub(super) root: PathBuf,
    pub(super) machine: Arc<Machine>,
    /// The session's own directory on this machine.
    directory: PathBuf,
    pub(super) address: SocketAddr,
    /// The `jwt` that opens a CDP socket.
    pub(super) token: Option<String>,
    /// Expiry of the token, counted from the platform's start.
    pub(super) token_expires: Duration,
    pub(super) spawned: Mutex<BTreeMap<String, Arc<Spawned>>>,
    pub(super) screen: Mutex<Screen>,
    pub(super) watches: Mutex<BTreeMap<String, Watch>>,
    pub(super) cdp_url: String,
    /// Address of the calls that the VM serves itself. They need the token.
    base_url: Option<String>,
    created_at: SystemTime,
    /// Total advance of the platform's clock when the session was created.
    advanced_then: Duration,
    life: Arc<Mutex<Life>>,
    is_over: watch::Sender<bool>,
    processes: Arc<Processes>,
    gone: tokio::sync::Mutex<mpsc::Receiver<()>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Session {
    /// Makes a VM. `serve` serves the API at an address of the session's own, given its id.
    ///
    /// # Errors
    /// 529 if no address is free, 500 if anything else is not available.
    pub(super) async fn start(
        host: &Arc<Host>,
        wish: Wish,
        serve: impl FnOnce(TcpListener, String) -> JoinHandle<()>,
    ) -> Result<Arc<Session>, PlatformError> {
        let id = rng::word(24).map_err(PlatformError::internal)?;
        let directory = host.folder.join(&id);
        let machine = Machine::start(host.isolation, directories(&directory)).await;
        let machine = Arc::new(machine.map_err(PlatformError::internal)?);
        let root = machine.root().path().to_owned();
        if !machine.is_world() {
            make_root(&root).map_err(PlatformError::internal)?;
        }
        let host_key =
            PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).map_err(PlatformError::internal)?;
        let host_key_text = match &host.sshd {
            Some(sshd) => sshd.host_key.clone(),
            None => host_key.public_key().to_openssh().map_err(PlatformError::internal)?,
        };
        let host_key_file = "etc/ssh/ssh_host_ed25519_key.pub";
        machine
            .root()
            .write(host_key_file, format!("{host_key_text}\n").as_bytes(), 0o644)
            .map_err(PlatformError::internal)?;
        if machine.is_world() {
            path_filter::install_supervisorctl(machine.root()).map_err(PlatformError::internal)?;
        }

        let listener = listen().await?;
        let address = listener.local_addr().map_err(PlatformError::internal)?;
        let (processes, gone) = Processes::new(Arc::clone(&machine));
        let processes = Arc::new(processes);
        let lock = Lock { key: host.client_key.clone(), root: Some(machine.root().clone()) };
        let tls = host.authority.acceptor(address.ip()).map_err(PlatformError::internal)?;
        let life = Arc::new(Mutex::new(Life::new(wish.timeout, host.time.now())));
        let port = Port {
            server: match &host.sshd {
                Some(sshd) => Inside::Sshd(sshd.port),
                None => Inside::Own(Server::new(host_key, lock, Arc::clone(&processes))),
            },
            meter: Arc::new(Meter::default()),
            tls: Some(tls),
            conditions: conditions_of(host, &life),
        };
        let mut tasks = vec![tokio::spawn(port::accept(listener, Arc::new(port)))];

        let fqdn = address.ip();
        let (created_at, advanced_then) = (SystemTime::now(), host.time.advanced());
        let token_good_for = wish.token_good_for.unwrap_or(life::AGE_MAX);
        let token_expires = host.time.now().saturating_add(token_good_for);
        let (token, cdp_url, base_url) = if wish.without_jwt {
            // A client that finds no token takes the host for the VM, so the socket must be on that
            // host.
            let listener = TcpListener::bind((fqdn, 0)).await.map_err(PlatformError::internal)?;
            let cdp_address = listener.local_addr().map_err(PlatformError::internal)?;
            tasks.push(serve(listener, id.clone()));
            (None, format!("ws://{cdp_address}/browser/cdp"), None)
        } else {
            let signature = rng::word(43).map_err(PlatformError::internal)?;
            let expires = created_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let expires = expires.saturating_add(token_good_for).as_secs();
            let token = token::token(&id, &fqdn.to_string(), expires, &signature);
            let url = format!("ws://{}/browser/cdp?jwt={token}", host.address);
            (Some(token), url, Some(format!("http://{}/browser/kernel", host.address)))
        };
        Ok(Arc::new(Session {
            id,
            wish: Mutex::new(wish),
            root,
            machine,
            directory,
            address,
            token,
            token_expires,
            spawned: Mutex::default(),
            screen: Mutex::default(),
            watches: Mutex::default(),
            cdp_url,
            base_url,
            created_at,
            advanced_then,
            life,
            is_over: watch::Sender::new(false),
            processes,
            gone: tokio::sync::Mutex::new(gone),
            tasks,
        }))
    }

    /// The API's description of the session.
    pub(super) fn describe(&self, time: &Time) -> Value {
        let (wish, now) = (self.wish(), time.now());
        // The client uses the real clock, which nobody advanced. So the creation time moves back by
        // the advance.
        let advanced = time.advanced().saturating_sub(self.advanced_then);
        let created_at = self.created_at.checked_sub(advanced).unwrap_or(self.created_at);
        let created_at = rfc3339::format(created_at);
        let mut value = json!({
            "session_id": self.id,
            "cdp_ws_url": self.cdp_url,
            "webdriver_ws_url": self.cdp_url.replace("/browser/cdp", "/browser/webdriver"),
            "created_at": created_at,
            "headless": wish.headless,
            "stealth": wish.stealth,
            "timeout_seconds": wish.timeout.as_secs(),
            "usage": { "uptime_ms": u64::try_from(self.life().age(now).as_millis()).unwrap_or(u64::MAX) },
        });
        if let Some(fields) = value.as_object_mut() {
            fields.extend(wish.properties.describe(wish.headless, &created_at));
            let live_view = self.base_url.as_ref().filter(|_| !wish.headless);
            let live_view = live_view.map(|url| json!(url.replace("kernel", &format!("live/{}", self.id))));
            let optional = [
                ("base_url", self.base_url.as_ref().map(|url| json!(url))),
                ("browser_live_view_url", live_view),
                ("name", wish.name.as_ref().map(|name| json!(name))),
                ("tags", wish.tags.as_ref().map(|tags| json!(tags))),
                (
                    "pool",
                    wish.pool.as_ref().map(|(id, name)| match name {
                        Some(name) => json!({ "id": id, "name": name }),
                        None => json!({ "id": id }),
                    }),
                ),
            ];
            for (name, value) in optional {
                fields.extend(value.map(|value| (name.to_owned(), value)));
            }
        }
        value
    }

    /// The `/` of the VM.
    pub(super) fn root(&self) -> &Root {
        self.machine.root()
    }

    /// The requested properties, with later changes.
    pub(super) fn wish(&self) -> MutexGuard<'_, Wish> {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        locked(&self.life)
    }

    /// Stage of the session's clock.
    pub(super) fn stage(&self, now: Duration) -> Stage {
        self.life().stage(now)
    }

    /// Records activity.
    pub(super) fn touch(&self, now: Duration) {
        self.life().touch(now);
    }

    /// Records that a client has connected, or that the session waits in its pool: the clock stops.
    pub(super) fn join(&self) {
        self.life().join();
    }

    /// Ends a [`join`](Self::join).
    pub(super) fn leave(&self, now: Duration) {
        self.life().leave(now);
    }

    /// Waits until the session has ended.
    pub(super) async fn over(&self) {
        // An error means that the session was dropped, so it is over too.
        let _ = self.is_over.subscribe().wait_for(|is_over| *is_over).await;
    }

    /// Closes the port: its connections end, and the system refuses new ones.
    pub(super) fn close_port(&self) {
        if let Some(accept) = self.tasks.first() {
            accept.abort();
        }
    }

    /// Ends the connections, kills the processes and removes the files. The caller must first take
    /// the session off the list.
    pub(super) async fn end(&self) {
        self.is_over.send_replace(true);
        for task in &self.tasks {
            task.abort();
        }
        self.processes.stop();
        self.watches.lock().unwrap_or_else(PoisonError::into_inner).clear();
        if !self.machine.is_world() {
            let root = self.root.clone();
            let _ = tokio::task::spawn_blocking(move || orphans::kill(&root)).await;
        }
        let _ = tokio::time::timeout(END_MAX, async { self.gone.lock().await.recv().await }).await;
        self.machine.stop().await;
        self.machine.remove_world().await;
        let directory = self.directory.clone();
        let _ = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(directory)).await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.processes.stop();
    }
}

/// The directories of a session's VM.
fn directories(directory: &Path) -> Directories {
    Directories {
        world: directory.to_owned(),
        root: directory.to_owned(),
        home: directory.join("root"),
        variable: Some(directory.to_owned()),
    }
}

/// Creates the directories of a VM without a world.
fn make_root(root: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(root)?;
    for (name, mode) in DIRECTORIES {
        let path = root.join(name);
        std::fs::create_dir_all(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Listens at an address that no other session has. On Linux all of 127.0.0.0/8 is loopback, so
/// there are two million addresses. Elsewhere there is one, and room for one session.
async fn listen() -> Result<TcpListener, PlatformError> {
    for _ in 0..ADDRESS_ATTEMPTS_MAX {
        let address = if cfg!(target_os = "linux") {
            let [a, b, c] = rng::triple().map_err(PlatformError::internal)?;
            Ipv4Addr::new(127, 64 + a % 128, b, 1 + c % 254)
        } else {
            Ipv4Addr::LOCALHOST
        };
        if let Ok(listener) = TcpListener::bind((IpAddr::V4(address), SSH_PORT)).await {
            return Ok(listener);
        }
    }
    let status = hyper::StatusCode::from_u16(529).unwrap_or(hyper::StatusCode::SERVICE_UNAVAILABLE);
    Err(PlatformError::new(status, "no_capacity", "no address is free for another VM"))
}

/// Makes the conditions of the next connection to a session: the platform's link conditions, or
/// those of a fault.
fn conditions_of(
    host: &Arc<Host>,
    life: &Arc<Mutex<Life>>,
) -> Box<dyn Fn() -> ConnectionConditions + Send + Sync> {
    let (host, life) = (Arc::clone(host), Arc::clone(life));
    Box::new(move || {
        let Some(fault) = host.faults.take(Call::Bridge) else { return host.conditions.into() };
        let link = LinkConditions {
            delay: host.conditions.delay + Duration::from_millis(fault.delay_ms),
            cut_after: fault.after_bytes.or(host.conditions.cut_after),
            lasts: fault.after_seconds.map(|seconds| host.time.real(Duration::from_secs(seconds))),
            ..host.conditions
        };
        let (host, life) = (Arc::clone(&host), Arc::clone(&life));
        let is_in_standby = move || locked(&life).stage(host.time.now()) == Stage::Standby;
        let stands_still = fault.freezes_in_standby.then(|| Box::new(is_in_standby) as StandsStill);
        ConnectionConditions { link, stands_still, status: fault.status }
    })
}

fn locked(life: &Mutex<Life>) -> MutexGuard<'_, Life> {
    life.lock().unwrap_or_else(PoisonError::into_inner)
}
