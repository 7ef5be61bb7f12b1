//! The cloud: an emulator of the platform, which creates and deletes VMs over HTTP.
//!
//! ```text
//! client ═ HTTP ═ routes ─ browsers, pools ─ session ─ 127.x.y.z:2222: TLS, gateway, SSH
//!                    │                          │
//!                    ├─ exec, spawn, files ─────┤      real programs, below the session's own root
//!                    └─ cdp, computer ──────── life    the clock: quiet, standby, over
//! ```
//!
//! It answers as the platform does, quirks included. Errors have two shapes, and an empty directory
//! is `null`. It writes files in place. An `exec` waits for every process that inherited its
//! output. It forgets processes after their end, and SSH does not stop its clock. Tests can request
//! the platform's failures (see `faults`), and move its clock (see `admin`).
//!
//! # The VM
//! A session has a world of its own (see `world`): one file system for `exec`, the files API and
//! SSH, made of this machine's directories and a directory of the session that takes every change.
//! The SSH server accepts the keys in its `/root/.ssh/authorized_keys`. At its end, a session
//! resets its connections, and its processes and its directory go.
//!
//! Without a world, on request or where the system has no namespaces, the directory is the `/` of
//! the files API only. Programs see this machine, with `HOME` in its `root/` and its path in
//! `KSYNC_SANDBOX_ROOT`, by which they are found and killed at the end.
//!
//! # What is missing
//! There are no browsers, live view, profiles, proxies or extensions. A request may name these
//! things: its answer shows them, and they have no effect. CDP answers two commands, unless there
//! is a Chromium beside the emulator (see [`PlatformOptions::chromium`]). Calls of the platform
//! that are not served answer 501 (see `call`).

mod admin;
mod answer;
mod archive;
mod authority;
mod browsers;
mod call;
mod cdp;
mod chromium;
mod cloud;
mod computer;
mod curl;
mod exec;
mod faults;
mod files;
mod fs_watch;
mod host;
mod life;
mod logs;
mod multipart;
mod orphans;
mod page;
mod path_filter;
mod png;
mod pool;
mod pools;
mod properties;
mod query;
mod rfc3339;
mod rng;
mod routes;
mod screen;
mod session;
mod spawn;
mod spawned;
mod time;
mod token;
mod uploads;
mod watch;

use std::fs::{self, DirBuilder};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use russh::keys::PublicKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OnceCell;
use tokio::task::{JoinHandle, JoinSet};

use crate::SandboxError;
use crate::isolation::Isolation;
use crate::link_conditions::LinkConditions;
use authority::Authority;
use cloud::Cloud;
use faults::Faults;
use host::Host;
pub use host::Sshd;
use time::Time;

/// Interval between checks of the sessions' clocks, in the platform's time.
const REAP_EVERY: Duration = Duration::from_secs(5);

/// HTTP connections served at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 256;

/// Allowed speeds of the clock.
const TIME_SCALE: std::ops::RangeInclusive<f64> = 0.001..=1_000_000.0;

/// Options of a platform.
#[derive(Debug, Clone)]
pub struct PlatformOptions {
    /// Listening address of the API: a loopback address, with port 0 for any free port.
    pub listen: SocketAddr,
    /// Directory of the sessions. Each platform has a subdirectory named after its port.
    pub home: PathBuf,
    /// The files that programs of a VM see.
    pub isolation: Isolation,
    /// Link conditions of connections to VMs.
    pub conditions: LinkConditions,
    /// Seconds of the platform's clock per real second: 1, or more for fast tests.
    pub time_scale: f64,
    /// A public key in OpenSSH's one-line form that every VM accepts, besides those in its own
    /// file.
    pub client_key: Option<String>,
    /// URL of a Chromium that answers the CDP sockets of all sessions: `ws://HOST:PORT/…`, or
    /// `http://HOST:PORT` for the one of its `/json/version`.
    pub chromium: Option<String>,
    /// A real sshd in place of the SSH server of every VM.
    pub sshd: Option<Sshd>,
}

/// A running platform. Dropping it ends the platform, but neither waits for its processes nor
/// removes the files: see [`stop`](Platform::stop).
#[derive(Debug)]
pub struct Platform {
    cloud: Arc<Cloud>,
    tasks: Vec<JoinHandle<()>>,
}

impl Platform {
    /// Makes a key and a CA, listens, and serves until [`stop`](Platform::stop). The caller must be
    /// in a tokio runtime.
    ///
    /// # Errors
    /// [`SandboxError`]: the address is not loopback or not free, or a file or key cannot be made.
    pub fn start(options: PlatformOptions) -> BoxFuture<'static, Result<Platform, SandboxError>> {
        // Boxed, or each crate that calls this would compile all of it once more.
        Box::pin(Platform::listen(options))
    }

    async fn listen(options: PlatformOptions) -> Result<Platform, SandboxError> {
        let PlatformOptions { listen, home, isolation, conditions, time_scale, client_key, chromium, sshd } =
            options;
        if !listen.ip().is_loopback() {
            return Err(SandboxError::NotLoopback(listen));
        }
        if !TIME_SCALE.contains(&time_scale) {
            return Err(SandboxError::TimeScale(time_scale));
        }
        let client_key = client_key.map(|key| PublicKey::from_openssh(&key)).transpose();
        let client_key = client_key.map_err(SandboxError::ClientKey)?;
        let authority = Authority::new().map_err(|error| SandboxError::Keys(error.into()))?;
        let secret = rng::word(40).map_err(|error| SandboxError::Keys(error.into()))?;
        let listening = async {
            let listener = TcpListener::bind(listen).await?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) =
            listening.await.map_err(|source| SandboxError::Listen { address: listen, source })?;
        let folder = make_folder(&home, address.port(), authority.certificate_pem())
            .map_err(|source| SandboxError::Home { path: home, source })?;
        let host = Host {
            address,
            folder,
            search_path: OnceCell::new(),
            isolation,
            conditions,
            client_key,
            authority,
            time: Time::new(time_scale),
            faults: Faults::default(),
            chromium,
            sshd,
        };
        let cloud = Arc::new(Cloud::new(host, format!("sk_sandbox_{secret}"), serve));
        let reaper = {
            let cloud = Arc::clone(&cloud);
            async move {
                loop {
                    cloud.host.time.sleep(REAP_EVERY).await;
                    cloud.reap().await;
                }
            }
        };
        let tasks = vec![tokio::spawn(serve(Arc::clone(&cloud), listener, None)), tokio::spawn(reaper)];
        Ok(Platform { cloud, tasks })
    }

    /// Base URL in place of `https://api.onkernel.com`: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}", self.cloud.host.address)
    }

    /// The API's key. Each start makes a new one.
    #[must_use]
    pub fn api_key(&self) -> &str {
        &self.cloud.api_key
    }

    /// File with the CA certificate of the VMs' `wss:` ports.
    #[must_use]
    pub fn ca_cert(&self) -> PathBuf {
        ca_cert(&self.cloud.host.folder)
    }

    /// Ends every session with its processes and files, and closes the API's connections.
    pub fn stop(self) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            for task in &self.tasks {
                task.abort();
            }
            for session in self.cloud.sessions() {
                self.cloud.end(&session.id).await;
            }
            let folder = self.cloud.host.folder.clone();
            let _ = tokio::task::spawn_blocking(move || fs::remove_dir_all(folder)).await;
        })
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.cloud.forget_sessions();
    }
}

/// Accepts and serves HTTP connections: see [`Serve`](cloud::Serve).
fn serve(cloud: Arc<Cloud>, listener: TcpListener, at: Option<String>) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                    Ok((socket, _)) => {
                        connections.spawn(converse(Arc::clone(&cloud), socket, at.clone()));
                    }
                    // The process is probably out of file descriptors; some will be free again.
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    })
}

/// Serves one HTTP connection.
async fn converse(cloud: Arc<Cloud>, socket: TcpStream, at: Option<String>) {
    let _ = socket.set_nodelay(true);
    let service = service_fn(move |request| routes::answer(Arc::clone(&cloud), request, at.clone()));
    // A client that disconnects, or that a fault hangs up on, is no event here.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).with_upgrades().await;
}

/// Creates the platform's own directory with the CA certificate.
fn make_folder(home: &Path, port: u16, certificate_pem: &str) -> io::Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(home)?;
    let folder = home.canonicalize()?.join(format!("platform-{port}"));
    // A leftover directory has no owner any more, because this process has its port.
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
