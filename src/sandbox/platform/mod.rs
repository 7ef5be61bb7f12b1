//! The cloud: a stand-in for the platform that makes VMs, deletes them, and is asked about them by HTTP.
//!
//! ```text
//! client ═ HTTP ═ routes ─ browsers, pools ─ session ─ port 2222 of its own 127.x.y.z: TLS, gateway, SSH
//!                    │                          │
//!                    ├─ exec, spawn, files ─────┤      real programs, below the session's own root
//!                    └─ cdp, computer ──────── life    the clock: quiet, standby, over
//! ```
//!
//! It answers as the platform does, quirks included: errors of two shapes, `null` for an empty directory,
//! writes in place, an `exec` that waits for whoever inherited its output, processes that are forgotten, a
//! clock that SSH does not stop. What goes wrong out there goes wrong here on request (see `faults`), and time
//! can be made to pass (see `admin`).
//!
//! # The VM
//! A session is a directory, its root. `/` of the files API is that directory, `exec` runs there, with
//! `HOME` in `root/` below it and `KSYNC_SANDBOX_ROOT` naming it, and the SSH server takes the keys in
//! `root/.ssh/authorized_keys` below it. There is no isolation: a program sees this machine, with the rights
//! of whoever started the sandbox, and may go wherever those lead. When a session ends its connections are
//! reset, every process with its `KSYNC_SANDBOX_ROOT` is killed, and the directory is removed.
//!
//! # What is not there
//! Browsers, WebDriver and live view but for a socket, profiles,
//! proxies, extensions: a request may name them, and nothing comes of it.

mod admin;
mod answer;
mod archive;
mod authority;
mod browsers;
mod cdp;
mod computer;
mod dice;
mod exec;
mod faults;
mod files;
mod life;
mod multipart;
mod pools;
mod programs;
mod query;
mod routes;
mod session;
mod spawn;
mod stamp;
mod survivors;
mod time;
mod token;
mod uploads;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use russh::keys::PublicKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OnceCell;
use tokio::task::{JoinHandle, JoinSet};

use crate::sandbox::SandboxError;
use crate::sandbox::weather::Weather;
use answer::Refusal;
use authority::Authority;
use faults::Faults;
use life::Stage;
use pools::Pool;
use routes::Call;
use session::Session;
use time::Time;

/// How often the platform looks at the clocks of its sessions, in its own time.
const REAP_EVERY: Duration = Duration::from_secs(5);

/// The HTTP connections that are served at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 256;

/// How fast the clock may go.
const TIME_SCALE: std::ops::RangeInclusive<f64> = 0.001..=1_000_000.0;

/// How to start a platform.
#[derive(Debug, Clone)]
pub struct PlatformOptions {
    /// Where the API listens: a loopback address, with port 0 for any free port.
    pub listen: SocketAddr,
    /// Where sessions have their directories, each platform in one of its own, named by its port.
    pub home: PathBuf,
    /// What connections to VMs meet.
    pub weather: Weather,
    /// How many seconds of the platform's clock pass in a real one: 1, or more for tests in a hurry.
    pub time_scale: f64,
    /// A public key in OpenSSH's one-line form that every VM lets in, besides those in its own file.
    pub client_key: Option<String>,
}

/// A running platform. Dropping it ends it too, but neither waits for what it started nor removes the files:
/// see [`stop`](Platform::stop).
#[derive(Debug)]
pub struct Platform {
    cloud: Arc<Cloud>,
    tasks: Vec<JoinHandle<()>>,
}

impl Platform {
    /// Makes a key and a CA, listens, and serves until [`stop`](Platform::stop). Must be called in a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`SandboxError`]: the address is not loopback or not free, or something cannot be made.
    pub async fn start(options: PlatformOptions) -> Result<Platform, SandboxError> {
        let PlatformOptions { listen, home, weather, time_scale, client_key } = options;
        if !listen.ip().is_loopback() {
            return Err(SandboxError::NotLoopback(listen));
        }
        if !TIME_SCALE.contains(&time_scale) {
            return Err(SandboxError::TimeScale(time_scale));
        }
        let client_key = client_key.map(|key| PublicKey::from_openssh(&key)).transpose();
        let client_key = client_key.map_err(SandboxError::ClientKey)?;
        let authority = Authority::new().map_err(|error| SandboxError::Keys(error.into()))?;
        let secret = dice::word(40).map_err(|error| SandboxError::Keys(error.into()))?;
        let listening = async {
            let listener = TcpListener::bind(listen).await?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) =
            listening.await.map_err(|source| SandboxError::Listen { address: listen, source })?;
        let folder = make_folder(&home, address.port(), authority.certificate_pem())
            .map_err(|source| SandboxError::Home { path: home, source })?;
        let cloud = Arc::new(Cloud {
            api_key: format!("sk_sandbox_{secret}"),
            address,
            folder,
            search_path: OnceCell::new(),
            weather,
            client_key,
            authority,
            time: Time::new(time_scale),
            faults: Faults::default(),
            calls: Mutex::default(),
            sessions: Mutex::default(),
            pools: Mutex::default(),
        });
        let reaper = {
            let cloud = Arc::clone(&cloud);
            async move {
                loop {
                    cloud.time.sleep(REAP_EVERY).await;
                    cloud.reap().await;
                }
            }
        };
        let tasks = vec![tokio::spawn(serve(Arc::clone(&cloud), listener, None)), tokio::spawn(reaper)];
        Ok(Platform { cloud, tasks })
    }

    /// What stands for `https://api.onkernel.com`: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}", self.cloud.address)
    }

    /// The key that the API takes. Made fresh by every start.
    #[must_use]
    pub fn api_key(&self) -> &str {
        &self.cloud.api_key
    }

    /// The file with the CA certificate that vouches for the VMs' `wss:` ports.
    #[must_use]
    pub fn ca_cert(&self) -> PathBuf {
        ca_cert(&self.cloud.folder)
    }

    /// Ends every session with its processes and files, and the API with its connections.
    pub async fn stop(self) {
        for task in &self.tasks {
            task.abort();
        }
        for session in self.cloud.sessions() {
            self.cloud.end(&session.id).await;
        }
        let folder = self.cloud.folder.clone();
        let _ = tokio::task::spawn_blocking(move || fs::remove_dir_all(folder)).await;
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        // They hold the cloud that holds them.
        self.cloud.listed().clear();
    }
}

/// What all calls share.
#[derive(Debug)]
struct Cloud {
    api_key: String,
    /// Where the API answers.
    address: SocketAddr,
    /// Where the sessions have their directories.
    folder: PathBuf,
    /// Where a VM's programs are looked for, once somebody has asked.
    search_path: OnceCell<OsString>,
    weather: Weather,
    client_key: Option<PublicKey>,
    authority: Authority,
    time: Time,
    faults: Faults,
    calls: Mutex<BTreeMap<Call, u64>>,
    sessions: Mutex<Vec<Arc<Session>>>,
    pools: Mutex<Vec<Pool>>,
}

impl Cloud {
    /// The sessions, the oldest first.
    fn sessions(&self) -> Vec<Arc<Session>> {
        self.listed().clone()
    }

    /// A session by its id or its name.
    fn session(&self, id_or_name: &str) -> Result<Arc<Session>, Refusal> {
        let sessions = self.listed();
        let by_id = sessions.iter().find(|session| session.id == id_or_name);
        let named = || sessions.iter().find(|session| session.wish().name.as_deref() == Some(id_or_name));
        by_id.or_else(named).cloned().ok_or_else(|| Refusal::not_found("browser"))
    }

    /// Takes a session onto the list, unless another has its name.
    fn keep(&self, session: Arc<Session>, name: Option<&str>) -> Result<(), Refusal> {
        let mut sessions = self.listed();
        if let Some(name) = name
            && sessions.iter().any(|other| other.wish().name.as_deref() == Some(name))
        {
            return Err(browsers::name_is_taken(name));
        }
        sessions.push(session);
        Ok(())
    }

    /// Ends a session, if it is still there.
    async fn end(&self, id: &str) {
        let session = {
            let mut sessions = self.listed();
            let index = sessions.iter().position(|session| session.id == id);
            index.map(|index| sessions.remove(index))
        };
        for pool in self.pools().iter_mut() {
            pool.forget(id);
        }
        if let Some(session) = session {
            session.end().await;
        }
    }

    /// Ends the sessions whose time is over.
    async fn reap(&self) {
        let now = self.time.now();
        for session in self.sessions() {
            if session.stage(now) == Stage::Over {
                self.end(&session.id).await;
            }
        }
    }

    /// Where a VM's programs are looked for. Made when it is first wanted: that may be thousands of links.
    async fn search_path(&self) -> Result<&OsString, Refusal> {
        let make = || async {
            let folder = self.folder.clone();
            let made = tokio::task::spawn_blocking(move || programs::search_path(&folder)).await;
            made.map_err(Refusal::internal)?.map_err(Refusal::internal)
        };
        self.search_path.get_or_try_init(make).await
    }

    fn listed(&self) -> MutexGuard<'_, Vec<Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pools(&self) -> MutexGuard<'_, Vec<Pool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, call: Call) {
        *self.calls.lock().unwrap_or_else(PoisonError::into_inner).entry(call).or_default() += 1;
    }

    fn calls(&self) -> BTreeMap<Call, u64> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn forget_calls(&self) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Accepts HTTP connections and serves them until it is aborted, which ends them all. `at` is the session
/// whose own address this is.
///
/// Boxed, since a request may make a session that has such an address, so that the future would contain itself.
fn serve(
    cloud: Arc<Cloud>,
    listener: TcpListener,
    at: Option<String>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                    Ok((socket, _)) => {
                        connections.spawn(converse(Arc::clone(&cloud), socket, at.clone()));
                    }
                    // Out of descriptors, most likely: some will be free again.
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    })
}

/// One HTTP connection.
async fn converse(cloud: Arc<Cloud>, socket: TcpStream, at: Option<String>) {
    let _ = socket.set_nodelay(true);
    let service = service_fn(move |request| routes::answer(Arc::clone(&cloud), request, at.clone()));
    // A client that goes, or is hung up on, is no event here.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).with_upgrades().await;
}

/// Makes the platform's own directory with the CA's certificate in it.
fn make_folder(home: &Path, port: u16, certificate_pem: &str) -> io::Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(home)?;
    let folder = home.canonicalize()?.join(format!("platform-{port}"));
    // One that was left behind has no owner any more: the port is ours.
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => DirBuilder::new().mode(0o700).create(&folder)?,
    }
    fs::write(ca_cert(&folder), certificate_pem)?;
    Ok(folder)
}

fn ca_cert(folder: &Path) -> PathBuf {
    folder.join("ca.pem")
}
