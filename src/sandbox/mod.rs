//! The sandbox: a stand-in VM on loopback. Shares no code with the rest of ksync, so it shares no mistake.
//!
//! ```text
//! client ═ TCP ═ weather ═ gateway ═ server ═ process
//!                delay,    WebSocket  SSH      sh -c, in a group of its own
//!                cut       to bytes
//! ```
//!
//! Real clients (`ssh` through `websocat`) see what a VM shows them: a byte bridge that knows nothing of what
//! it carries, and behind it an SSH server that takes one key and runs commands. What is executed is real and
//! runs with the rights of whoever started the sandbox: the key is the only lock, so only loopback is served.
//!
//! That is one VM. [`platform`] is the cloud around such VMs: the HTTP API that makes them, gives them names and
//! takes them away again.
//!
//! Where it differs from sshd: a process group is killed as soon as its channel or connection ends; there are
//! no terminals, no forwarding and no subsystems; input counts as consumed when it arrived (see `backlog`); and
//! the window is topped up only when half of it is used, so that a far client's upload reaches about 10 MB/s a
//! channel at 100 ms round trip, where sshd lets it reach 17.

mod backlog;
mod gateway;
pub mod platform;
mod port;
mod process;
mod server;
mod weather;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use russh::keys::key::safe_rng;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use port::Port;
use process::Processes;
use server::{Lock, Server};
use weather::Meter;
pub use weather::Weather;

/// How long [`Sandbox::stop`] waits for killed processes to be gone.
const STOP_MAX: Duration = Duration::from_secs(5);

/// How to start a sandbox.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen: a loopback address, with port 0 for any free port.
    pub listen: SocketAddr,
    /// `HOME` and working directory of what is executed. Made with mode 0700 if it is missing.
    pub home: PathBuf,
    /// What happens to the bytes on their way.
    pub weather: Weather,
}

/// Why a sandbox could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The address can be reached from elsewhere, and whoever logs in can run anything.
    #[error("the sandbox listens on loopback only, not on {0}")]
    NotLoopback(SocketAddr),
    /// The address is not to be had.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The home directory cannot be made.
    #[error("cannot make the home directory {}", path.display())]
    Home {
        /// The directory that was asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The fresh keys cannot be made or written as text.
    #[error("cannot make keys")]
    Keys(#[from] russh::keys::ssh_key::Error),
}

/// How to reach the sandbox, with the keys of `kernel browsers ssh ID --setup-only -o json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setup {
    /// The host that the gateway runs on, without its port.
    pub vm_domain: String,
    /// The name of the session.
    pub session_id: String,
    /// The file with the private client key.
    pub ssh_key_file: String,
    /// The command that carries SSH to the gateway.
    pub proxy_command: String,
    /// A shell command line that logs in.
    pub ssh_command: String,
}

/// A running stand-in VM. Dropping it ends it too, but does not wait for what it started: see [`stop`].
///
/// [`stop`]: Sandbox::stop
#[derive(Debug)]
pub struct Sandbox {
    address: SocketAddr,
    host_key: String,
    client_key: String,
    client_public_key: String,
    meter: Arc<Meter>,
    processes: Arc<Processes>,
    /// Ends when the last channel's task has ended.
    gone: mpsc::Receiver<()>,
    gateway: Gateway,
}

impl Sandbox {
    /// Makes fresh keys, listens, and serves until [`stop`](Sandbox::stop). Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`SandboxError`]: the address is not loopback or not free, the home cannot be made, or the keys cannot.
    pub async fn start(options: Options) -> Result<Sandbox, SandboxError> {
        let Options { listen, home, weather } = options;
        if !listen.ip().is_loopback() {
            return Err(SandboxError::NotLoopback(listen));
        }
        let home = make_home(&home).map_err(|source| SandboxError::Home { path: home, source })?;
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
        let (processes, gone) = Processes::new(home, None);
        let processes = Arc::new(processes);
        let lock = Lock { key: Some(client_key.public_key().clone()), authorized_keys: None };
        let meter = Arc::new(Meter::default());
        let port = Port {
            server: Server::new(host_key, lock, Arc::clone(&processes)),
            meter: Arc::clone(&meter),
            tls: None,
            forecast: Box::new(move || weather.into()),
        };
        let gateway = Gateway(tokio::spawn(port::accept(listener, Arc::new(port))));
        Ok(Sandbox {
            address,
            host_key: host_key_text,
            client_key: client_key_text,
            client_public_key: client_key.public_key().to_openssh()?,
            meter,
            processes,
            gone,
            gateway,
        })
    }

    /// Where the gateway is: `ws://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// The server's public key in OpenSSH's one-line form, `ssh-ed25519 AAAA…`.
    #[must_use]
    pub fn host_key(&self) -> String {
        self.host_key.clone()
    }

    /// The only private key that is let in, as OpenSSH's PEM text. Made fresh by every start.
    #[must_use]
    pub fn client_key(&self) -> &str {
        &self.client_key
    }

    /// The public half of [`client_key`](Sandbox::client_key) in OpenSSH's one-line form.
    #[must_use]
    pub fn client_public_key(&self) -> &str {
        &self.client_public_key
    }

    /// How to log in with the client key once it is in `key_file`. Writing it there is up to the caller.
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

    /// How many TCP connections were accepted so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.meter.connections.load(Ordering::Relaxed)
    }

    /// The bytes that were received from clients so far: TCP payload of all connections.
    #[must_use]
    pub fn bytes_up(&self) -> u64 {
        self.meter.up_bytes.load(Ordering::Relaxed)
    }

    /// The bytes that were sent to clients so far: TCP payload of all connections.
    #[must_use]
    pub fn bytes_down(&self) -> u64 {
        self.meter.down_bytes.load(Ordering::Relaxed)
    }

    /// Closes every connection, kills the process groups that were started, and waits until they are gone (at
    /// most 5 s). A process that has moved to another group by itself is not found.
    pub async fn stop(mut self) {
        self.gateway.0.abort();
        self.processes.stop();
        let _ = (&mut self.gateway.0).await;
        let _ = tokio::time::timeout(STOP_MAX, self.gone.recv()).await;
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.processes.stop();
    }
}

/// The task that accepts; dropping it closes all connections.
#[derive(Debug)]
struct Gateway(JoinHandle<()>);

impl Drop for Gateway {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Makes the home directory, private, and gives its absolute path.
fn make_home(home: &Path) -> io::Result<PathBuf> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(home)?;
    home.canonicalize()
}

/// `text` as one word of a POSIX shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
