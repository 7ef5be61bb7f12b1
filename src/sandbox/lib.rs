//! The sandbox: a VM emulator on loopback. It shares no code with the rest of ksync, so it shares
//! no mistake.
//!
//! ```text
//! client ═ TCP ═ link ════ gateway ═ server ═ process
//!                delay,    WebSocket  SSH      sh -c, in a group of its own
//!                cut       to bytes
//! ```
//!
//! Real clients (`ssh` through `websocat`) see the same as on a VM. There is a byte bridge that
//! ignores the bytes' meaning, and behind it an SSH server that accepts one key, runs commands and
//! forwards TCP connections. Commands are real, and run with the rights of the user who started the
//! sandbox, but in a world of their own (see `world`): its files and processes are not those of
//! this machine. The network is, and the key is the only protection, so the sandbox listens on
//! loopback only.
//!
//! This module is one VM. [`platform`] is the cloud around such VMs: the HTTP API that creates,
//! names and deletes them.
//!
//! The sandbox differs from sshd in these points:
//!
//! - it kills a process group as soon as the channel or connection ends;
//! - a terminal has the system's modes and not the client's;
//! - it forwards TCP only, and listens on loopback only, whatever address a client names;
//! - `sftp`, its only subsystem, is that of this machine, and fails where there is none;
//! - input counts as consumed when it has arrived (see `backlog`);
//! - it reopens the window only when half of it is used. An upload with a round trip of 100 ms
//!   therefore reaches about 10 MB/s a channel, against 17 MB/s with sshd.

mod backlog;
mod forward;
mod gateway;
mod isolation;
mod link_conditions;
mod machine;
pub mod platform;
mod port;
mod process;
mod rooted;
mod server;
mod subsystem;
mod terminal;
mod world;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use russh::keys::key::safe_rng;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub use isolation::{Files, Isolation};
pub use link_conditions::LinkConditions;
use link_conditions::Meter;
use machine::{Directories, Machine};
use port::{Inside, Port};
use process::Processes;
use server::{Lock, Server};

/// Time that [`Sandbox::stop`] waits for killed processes to be gone.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Options of a sandbox.
#[derive(Debug, Clone)]
pub struct Options {
    /// Listening address: a loopback address, with port 0 for any free port.
    pub listen: SocketAddr,
    /// Directory of the VM: its world is in there and stays, or it is `HOME` and working directory
    /// of commands, without a world. The sandbox creates it with mode 0700 if it is missing.
    pub home: PathBuf,
    /// The files that commands see.
    pub isolation: Isolation,
    /// Link conditions of every connection.
    pub conditions: LinkConditions,
}

/// Reason why an emulator, of a VM or of the platform, could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The address is reachable from other machines, and whoever has the key can run anything.
    #[error("the sandbox listens on loopback only, not on {0}")]
    NotLoopback(SocketAddr),
    /// The address is not available.
    #[error("cannot listen on {address}")]
    Listen {
        /// The requested address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The home directory or a file in it cannot be created.
    #[error("cannot write in the home directory {}", path.display())]
    Home {
        /// The requested directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The platform's clock cannot run at this speed.
    #[error("the clock cannot go {0} times as fast")]
    TimeScale(f64),
    /// The client key of the platform's VMs is malformed.
    #[error("cannot read the client key")]
    ClientKey(#[source] russh::keys::ssh_key::Error),
    /// Fresh keys or the CA cannot be made or encoded.
    #[error("cannot make keys")]
    Keys(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<russh::keys::ssh_key::Error> for SandboxError {
    fn from(error: russh::keys::ssh_key::Error) -> Self {
        Self::Keys(error.into())
    }
}

/// Connection data of the sandbox, with the keys of `kernel browsers ssh ID --setup-only -o json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setup {
    /// Host of the gateway, without its port.
    pub vm_domain: String,
    /// Name of the session.
    pub session_id: String,
    /// File with the private client key.
    pub ssh_key_file: String,
    /// The command that carries SSH to the gateway.
    pub proxy_command: String,
    /// A shell command line that logs in.
    pub ssh_command: String,
}

/// A running VM emulator. Dropping it ends the emulator, but does not wait for its processes: see
/// [`stop`].
///
/// [`stop`]: Sandbox::stop
#[derive(Debug)]
pub struct Sandbox {
    address: SocketAddr,
    host_key: String,
    client_key: String,
    client_public_key: String,
    meter: Arc<Meter>,
    machine: Arc<Machine>,
    processes: Arc<Processes>,
    /// Ends when the last channel's task has ended.
    gone: mpsc::Receiver<()>,
    gateway: Gateway,
}

impl Sandbox {
    /// Makes fresh keys, listens, and serves until [`stop`](Sandbox::stop). The caller must be in a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`SandboxError`]: the address is not loopback or not free, or the home directory or the keys
    /// cannot be made.
    pub fn start(options: Options) -> BoxFuture<'static, Result<Sandbox, SandboxError>> {
        // Boxed, or each crate that calls this would compile all of it once more.
        Box::pin(Sandbox::listen(options))
    }

    async fn listen(options: Options) -> Result<Sandbox, SandboxError> {
        let Options { listen, home, isolation, conditions } = options;
        if !listen.ip().is_loopback() {
            return Err(SandboxError::NotLoopback(listen));
        }
        let home = make_home(&home).map_err(|source| SandboxError::Home { path: home, source })?;
        let directories =
            Directories { world: home.join("world"), root: home.clone(), home: home.clone(), variable: None };
        let machine = Machine::start(isolation, directories).await;
        let machine = Arc::new(machine.map_err(|source| SandboxError::Home { path: home, source })?);
        let host_key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519)?;
        let client_key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519)?;
        let host_key_text = host_key.public_key().to_openssh()?;
        let client_key_text = client_key.to_openssh(LineEnding::LF)?.to_string();
        let listening = async {
            let listener = TcpListener::bind(listen).await?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) =
            listening.await.map_err(|source| SandboxError::Listen { address: listen, source })?;
        let (processes, gone) = Processes::new(Arc::clone(&machine));
        let processes = Arc::new(processes);
        let lock = Lock { key: Some(client_key.public_key().clone()), root: None };
        let meter = Arc::new(Meter::default());
        let port = Port {
            server: Inside::Own(Server::new(host_key, lock, Arc::clone(&processes))),
            meter: Arc::clone(&meter),
            tls: None,
            conditions: Box::new(move || conditions.into()),
        };
        let gateway = Gateway(tokio::spawn(port::accept(listener, Arc::new(port))));
        Ok(Sandbox {
            address,
            host_key: host_key_text,
            client_key: client_key_text,
            client_public_key: client_key.public_key().to_openssh()?,
            meter,
            machine,
            processes,
            gone,
            gateway,
        })
    }

    /// URL of the gateway: `ws://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// The files that commands see.
    #[must_use]
    pub fn files(&self) -> &Files {
        self.machine.files()
    }

    /// The server's public key in OpenSSH's one-line form, `ssh-ed25519 AAAA…`.
    #[must_use]
    pub fn host_key(&self) -> String {
        self.host_key.clone()
    }

    /// The only private key that the server accepts, as OpenSSH's PEM text. Each start makes a new
    /// one.
    #[must_use]
    pub fn client_key(&self) -> &str {
        &self.client_key
    }

    /// The public half of [`client_key`](Sandbox::client_key) in OpenSSH's one-line form.
    #[must_use]
    pub fn client_public_key(&self) -> &str {
        &self.client_public_key
    }

    /// Connection data for a client key in `key_file`. The caller must write the key to that file.
    #[must_use]
    pub fn setup(&self, key_file: &Path) -> Setup {
        let key_file = key_file.display().to_string();
        let proxy_command = format!("websocat --binary {}", self.url());
        let ssh_command = format!(
            "ssh -o 'ProxyCommand={proxy_command}' -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -i {} root@localhost",
            quoted(&key_file)
        );
        Setup {
            vm_domain: self.address.ip().to_string(),
            session_id: "sandbox".to_owned(),
            ssh_key_file: key_file,
            proxy_command,
            ssh_command,
        }
    }

    /// TCP connections accepted so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.meter.connections.load(Ordering::Relaxed)
    }

    /// Bytes received from clients so far: TCP payload of all connections.
    #[must_use]
    pub fn bytes_up(&self) -> u64 {
        self.meter.up_bytes.load(Ordering::Relaxed)
    }

    /// Bytes sent to clients so far: TCP payload of all connections.
    #[must_use]
    pub fn bytes_down(&self) -> u64 {
        self.meter.down_bytes.load(Ordering::Relaxed)
    }

    /// Closes every connection, kills the started processes, and waits at most 5 s until they are
    /// gone. Without a world, it does not find a process that has moved to another group by itself.
    pub fn stop(mut self) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            self.gateway.0.abort();
            self.processes.stop();
            let _ = (&mut self.gateway.0).await;
            let _ = tokio::time::timeout(STOP_MAX, self.gone.recv()).await;
            self.machine.stop().await;
        })
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.processes.stop();
    }
}

/// The accepting task; dropping it closes all connections.
#[derive(Debug)]
struct Gateway(JoinHandle<()>);

impl Drop for Gateway {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Creates the home directory with mode 0700, and returns its absolute path.
fn make_home(home: &Path) -> io::Result<PathBuf> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(home)?;
    home.canonicalize()
}

/// Quotes `text` as one word of a POSIX shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
