//! A session: a directory that is the root of its VM, processes, an SSH server at an address of its own, a clock.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use russh::keys::key::safe_rng;
use russh::keys::{Algorithm, PrivateKey};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::answer::Refusal;
use super::life::{self, Life, Stage};
use super::routes::Call;
use super::spawn::Spawned;
use super::time::Time;
use super::{Cloud, dice, stamp, survivors, token};
use crate::sandbox::port::{self, Port};
use crate::sandbox::process::Processes;
use crate::sandbox::server::{Lock, Server};
use crate::sandbox::weather::{Forecast, Meter, StandsStill, Weather};

/// Where a VM's SSH is bridged.
const SSH_PORT: u16 = 2222;

/// How many addresses are tried before there is said to be no room.
const ADDRESS_ATTEMPTS_MAX: usize = 64;

/// How long the end of a session waits for killed processes to be gone.
const END_MAX: Duration = Duration::from_secs(5);

/// What every VM has besides `/root`.
const DIRECTORIES: [(&str, u32); 6] = [
    ("root", 0o700),
    ("root/.ssh", 0o700),
    ("tmp", 0o1777),
    ("etc/ssh", 0o755),
    ("home/kernel/Downloads", 0o755),
    ("recordings", 0o755),
];

/// What was asked for.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) timeout: Duration,
    pub(super) headless: bool,
    pub(super) stealth: bool,
    pub(super) name: Option<String>,
    pub(super) tags: Option<BTreeMap<String, String>>,
    /// The id and the name of the pool that it belongs to.
    pub(super) pool: Option<(String, Option<String>)>,
    /// Whether `cdp_ws_url` tells by its host where the VM is, and not by a token.
    pub(super) without_jwt: bool,
    /// How long that token is good; without it, for as long as a session can live.
    pub(super) token_good_for: Option<Duration>,
}

/// A VM that was made and not deleted yet.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: String,
    pub(super) wish: Mutex<Wish>,
    /// The directory that its API takes for `/`, absolute.
    pub(super) root: PathBuf,
    pub(super) address: SocketAddr,
    /// What the `jwt` of a CDP socket has to be.
    pub(super) token: Option<String>,
    /// Until when that is good, since the platform began.
    pub(super) token_expires: Duration,
    pub(super) spawned: Mutex<BTreeMap<String, Arc<Spawned>>>,
    cdp_url: String,
    created_at: SystemTime,
    /// By how much the platform's clock had been moved when it was made.
    advanced_then: Duration,
    life: Mutex<Life>,
    is_over: watch::Sender<bool>,
    processes: Arc<Processes>,
    gone: tokio::sync::Mutex<mpsc::Receiver<()>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Session {
    /// Makes a VM.
    ///
    /// # Errors
    /// 529 when no address is free, 500 when something else is not to be had.
    pub(super) async fn start(cloud: &Arc<Cloud>, wish: Wish) -> Result<Arc<Session>, Refusal> {
        let id = dice::word(24).map_err(Refusal::internal)?;
        let root = cloud.folder.join(&id);
        make_root(&root).map_err(Refusal::internal)?;
        let host_key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).map_err(Refusal::internal)?;
        let host_key_text = host_key.public_key().to_openssh().map_err(Refusal::internal)?;
        std::fs::write(root.join("etc/ssh/ssh_host_ed25519_key.pub"), format!("{host_key_text}\n"))
            .map_err(Refusal::internal)?;

        let listener = listen().await?;
        let address = listener.local_addr().map_err(Refusal::internal)?;
        let (processes, gone) = Processes::new(root.join("root"), Some(root.clone()));
        let processes = Arc::new(processes);
        let authorized_keys = Some(root.join("root/.ssh/authorized_keys"));
        let lock = Lock { key: cloud.client_key.clone(), authorized_keys };
        let tls = cloud.authority.acceptor(address.ip()).map_err(Refusal::internal)?;
        let port = Port {
            server: Server::new(host_key, lock, Arc::clone(&processes)),
            meter: Arc::new(Meter::default()),
            tls: Some(tls),
            forecast: forecast(cloud, id.clone()),
        };
        let mut tasks = vec![tokio::spawn(port::accept(listener, Arc::new(port)))];

        let fqdn = address.ip();
        let (created_at, advanced_then) = (SystemTime::now(), cloud.time.advanced());
        let token_good_for = wish.token_good_for.unwrap_or(life::AGE_MAX);
        let token_expires = cloud.time.now().saturating_add(token_good_for);
        let (token, cdp_url) = if wish.without_jwt {
            // Whoever finds no token takes the host for the VM, so the socket has to be there.
            let listener = TcpListener::bind((fqdn, 0)).await.map_err(Refusal::internal)?;
            let cdp_address = listener.local_addr().map_err(Refusal::internal)?;
            let serve = super::serve(Arc::clone(cloud), listener, Some(id.clone()));
            tasks.push(tokio::spawn(serve));
            (None, format!("ws://{cdp_address}/browser/cdp"))
        } else {
            let signature = dice::word(43).map_err(Refusal::internal)?;
            let expires = created_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let expires = expires.saturating_add(token_good_for).as_secs();
            let token = token::token(&id, &fqdn.to_string(), expires, &signature);
            let url = format!("ws://{}/browser/cdp?jwt={token}", cloud.address);
            (Some(token), url)
        };
        let life = Life::new(wish.timeout, cloud.time.now());
        Ok(Arc::new(Session {
            id,
            wish: Mutex::new(wish),
            root,
            address,
            token,
            token_expires,
            spawned: Mutex::default(),
            cdp_url,
            created_at,
            advanced_then,
            life: Mutex::new(life),
            is_over: watch::Sender::new(false),
            processes,
            gone: tokio::sync::Mutex::new(gone),
            tasks,
        }))
    }

    /// What the API says of it.
    pub(super) fn describe(&self, time: &Time) -> Value {
        let (wish, now) = (self.wish(), time.now());
        // Whoever asks goes by the clock on the wall, which nobody moved: to them it was made longer ago.
        let advanced = time.advanced().saturating_sub(self.advanced_then);
        let created_at = self.created_at.checked_sub(advanced).unwrap_or(self.created_at);
        let mut value = json!({
            "session_id": self.id,
            "cdp_ws_url": self.cdp_url,
            "webdriver_ws_url": self.cdp_url.replace("/browser/cdp", "/browser/webdriver"),
            "created_at": stamp::rfc3339(created_at),
            "headless": wish.headless,
            "memory": if wish.headless { "1GiB" } else { "8GiB" },
            "region": "us-east",
            "stealth": wish.stealth,
            "timeout_seconds": wish.timeout.as_secs(),
            "usage": { "uptime_ms": u64::try_from(self.life().age(now).as_millis()).unwrap_or(u64::MAX) },
        });
        if let Some(fields) = value.as_object_mut() {
            let optional = [
                ("name", wish.name.as_ref().map(|name| json!(name))),
                ("tags", wish.tags.as_ref().map(|tags| json!(tags))),
                ("pool", wish.pool.as_ref().map(|(id, name)| json!({ "id": id, "name": name }))),
            ];
            for (name, value) in optional {
                fields.extend(value.map(|value| (name.to_owned(), value)));
            }
        }
        value
    }

    /// Where in this machine something in the VM is: below the session's root, and what is named as there is
    /// left as it is. No `..` leads out.
    pub(super) fn place(&self, path: &str) -> PathBuf {
        let mut place = self.root.clone();
        let path = Path::new(path);
        for component in path.strip_prefix(&self.root).unwrap_or(path).components() {
            match component {
                Component::Normal(name) => place.push(name),
                Component::ParentDir if place != self.root => {
                    place.pop();
                }
                _ => {}
            }
        }
        place
    }

    /// What was asked for, and changed since.
    pub(super) fn wish(&self) -> MutexGuard<'_, Wish> {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is on its clock.
    pub(super) fn stage(&self, now: Duration) -> Stage {
        self.life().stage(now)
    }

    /// Something counts as activity.
    pub(super) fn touch(&self, now: Duration) {
        self.life().touch(now);
    }

    /// A client has come, or the session waits in its pool: the clock stands.
    pub(super) fn join(&self) {
        self.life().join();
    }

    /// What [`join`](Self::join) told of has ended.
    pub(super) fn leave(&self, now: Duration) {
        self.life().leave(now);
    }

    /// Returns once the session has been ended.
    pub(super) async fn over(&self) {
        // An error is that of a session that is dropped, which is over, too.
        let _ = self.is_over.subscribe().wait_for(|is_over| *is_over).await;
    }

    /// Lets nobody in through its port any more, from the network on: connections end, and new ones are refused.
    pub(super) fn close_port(&self) {
        if let Some(accept) = self.tasks.first() {
            accept.abort();
        }
    }

    /// Ends its connections, kills its processes and removes its files. Whoever ends it has to have taken it
    /// off the list before.
    pub(super) async fn end(&self) {
        self.is_over.send_replace(true);
        for task in &self.tasks {
            task.abort();
        }
        self.processes.stop();
        let root = self.root.clone();
        let _ = tokio::task::spawn_blocking(move || survivors::kill(&root)).await;
        let _ = tokio::time::timeout(END_MAX, async { self.gone.lock().await.recv().await }).await;
        let root = self.root.clone();
        let _ = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(root)).await;
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

/// Makes the directories that a VM has.
fn make_root(root: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(root)?;
    for (name, mode) in DIRECTORIES {
        let path = root.join(name);
        std::fs::create_dir_all(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Listens at an address that no other session has. Where all of 127.0.0.0/8 leads home, which is on Linux,
/// that is one of two million; elsewhere there is one, and room for one session.
async fn listen() -> Result<TcpListener, Refusal> {
    for _ in 0..ADDRESS_ATTEMPTS_MAX {
        let address = if cfg!(target_os = "linux") {
            let [a, b, c] = dice::triple().map_err(Refusal::internal)?;
            Ipv4Addr::new(127, 64 + a % 128, b, 1 + c % 254)
        } else {
            Ipv4Addr::LOCALHOST
        };
        if let Ok(listener) = TcpListener::bind((IpAddr::V4(address), SSH_PORT)).await {
            return Ok(listener);
        }
    }
    let status = hyper::StatusCode::from_u16(529).unwrap_or(hyper::StatusCode::SERVICE_UNAVAILABLE);
    Err(Refusal::new(status, "no_capacity", "no address is free for another VM"))
}

/// What the next connection to a session meets: the platform's weather, or what a fault says.
fn forecast(cloud: &Arc<Cloud>, id: String) -> Box<dyn Fn() -> Forecast + Send + Sync> {
    // Weak, since the cloud holds the session whose port has this.
    let cloud = Arc::downgrade(cloud);
    Box::new(move || {
        let Some(there) = cloud.upgrade() else { return Weather::default().into() };
        let Some(fault) = there.faults.take(Call::Bridge) else { return there.weather.into() };
        let weather = Weather {
            delay: there.weather.delay + Duration::from_millis(fault.delay_ms),
            cut_after: fault.after_bytes.or(there.weather.cut_after),
            lasts: fault.after_seconds.map(|seconds| there.time.real(Duration::from_secs(seconds))),
            ..there.weather
        };
        let (cloud, id) = (Weak::clone(&cloud), id.clone());
        let is_in_standby = move || {
            let Some(cloud) = cloud.upgrade() else { return false };
            cloud.session(&id).is_ok_and(|session| session.stage(cloud.time.now()) == Stage::Standby)
        };
        let stands_still = fault.freezes_in_standby.then(|| Box::new(is_in_standby) as StandsStill);
        Forecast { weather, stands_still, status: fault.status }
    })
}
