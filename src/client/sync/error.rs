//! `SyncError`: the reason why a job ended early, for people and programs.

use std::io;
use std::sync::Arc;

use tokio::task::JoinError;

use crate::engine::RunError;
use crate::kernel::{Diagnosis, KernelError};
use crate::remote::ssh_config::ConfigError;
use crate::remote::{ErrorKind, RemoteError};
use crate::wire::message::AbortKind;

/// Advice for a state directory that is not private.
pub(super) const STATE_HINT: &str =
    "make it yours alone (chown, chmod 700), or name another directory with XDG_STATE_HOME";

/// The reason why a job ended early.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// Both endpoints are remote.
    #[error("both ends are remote")]
    BothRemote,
    /// One endpoint is inside the other.
    #[error("source and destination are the same, or one lies in the other")]
    Overlap,
    /// A Kernel session cannot be reached.
    #[error(transparent)]
    Kernel(Arc<KernelError>),
    /// The endpoint `:/path` without a setup.
    #[error("the path :{0} is on the VM of a setup, and no setup is given")]
    NoSetup(String),
    /// The setup is not the output of `kernel browsers ssh --setup-only -o json`.
    #[error("the setup cannot be used: {0}")]
    Setup(String),
    /// The user's SSH configuration cannot be followed.
    #[error("cannot follow the SSH configuration")]
    SshConfig(#[from] ConfigError),
    /// The user's SSH configuration asks for a proxy.
    #[error("the SSH configuration leads to {host} through a proxy ({proxy}), which ksync cannot follow")]
    Proxy {
        /// The host.
        host: String,
        /// The proxy in the configuration.
        proxy: String,
    },
    /// There is no home directory for the state directory.
    #[error("there is no home directory to keep {0} in")]
    NoHome(&'static str),
    /// The state directory is not private to this user.
    #[error("cannot use the state directory: {0}")]
    State(io::Error),
    /// The sandbox does not start.
    #[error("cannot start the sandbox")]
    Sandbox(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// This build contains no sandbox.
    #[error("this ksync was built without the sandbox")]
    NoSandbox,
    /// The connection failed.
    #[error(transparent)]
    Remote(#[from] Arc<RemoteError>),
    /// A session's VM was set up, but this machine cannot connect to it.
    #[error("could not get into the VM of the session {session}, {}", says(diagnosis.as_ref()))]
    Unreachable {
        /// The session's id.
        session: String,
        /// The diagnosis by the VM itself, if it could be asked.
        diagnosis: Option<Diagnosis>,
        /// The failed connection attempt.
        source: Arc<RemoteError>,
    },
    /// One side aborted the run.
    #[error("{}{}", if .0.by_peer { "the other side stopped: " } else { "" }, .0.text)]
    Run(RunError),
    /// The agent exited unexpectedly.
    #[error("the agent exited unexpectedly: {0}")]
    Agent(String),
    /// The system provides no pipes or threads.
    #[error("cannot set up the exchange")]
    Pipe(#[source] io::Error),
}

impl From<RunError> for SyncError {
    fn from(error: RunError) -> Self {
        Self::Run(error)
    }
}

impl From<KernelError> for SyncError {
    fn from(error: KernelError) -> Self {
        Self::Kernel(Arc::new(error))
    }
}

impl From<RemoteError> for SyncError {
    fn from(error: RemoteError) -> Self {
        Self::Remote(Arc::new(error))
    }
}

impl From<JoinError> for SyncError {
    fn from(error: JoinError) -> Self {
        Self::Pipe(io::Error::other(error))
    }
}

impl SyncError {
    /// The exit code of the process: rsync's code where rsync has one.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::BothRemote | Self::Overlap | Self::NoSetup(_) | Self::Setup(_) | Self::Proxy { .. } => 1,
            Self::NoSandbox | Self::SshConfig(ConfigError::Line { .. }) => 1,
            Self::SshConfig(ConfigError::Unreadable { .. })
            | Self::NoHome(_)
            | Self::State(_)
            | Self::Sandbox(_)
            | Self::Pipe(_)
            | Self::Agent(_) => 5,
            Self::Kernel(error) => error.exit_code(),
            Self::Remote(error) | Self::Unreachable { source: error, .. } => match error.kind() {
                ErrorKind::Usage => 1,
                ErrorKind::CouldNotStart => 5,
                ErrorKind::Socket => 10,
                ErrorKind::Timeout => 30,
                ErrorKind::ConnectTimeout => 35,
                ErrorKind::NotAuthorised => 40,
                ErrorKind::HostKey => 43,
            },
            Self::Run(error) => match error.kind {
                AbortKind::Protocol => 12,
                AbortKind::Version => 2,
                AbortKind::Selection => 3,
                AbortKind::Destination | AbortKind::Storage => 11,
                AbortKind::Busy => 5,
                AbortKind::Connection => 10,
                AbortKind::Timeout => 30,
            },
        }
    }

    /// The next step for the user.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Remote(error) => return Some(error.hint()),
            Self::Unreachable { session, diagnosis, source } => {
                return Some(unreachable_hint(session, diagnosis.as_ref(), source));
            }
            Self::Kernel(error) => return error.hint(),
            Self::Overlap => "choose a destination beside the source",
            Self::BothRemote => "copy to a local directory first, then from there",
            Self::NoSetup(_) => {
                "give the JSON that `kernel browsers ssh ID --setup-only -o json` prints with --setup"
            }
            Self::Setup(_) => "it must be the JSON that `kernel browsers ssh ID --setup-only -o json` prints",
            Self::Proxy { .. } => "name the host that can be reached directly, or use a wss:// endpoint",
            Self::NoHome(_) => "set HOME",
            Self::State(_) => STATE_HINT,
            Self::NoSandbox => "build it with the feature sandbox, which is on by default",
            Self::Run(error) => match error.kind {
                AbortKind::Busy => "wait until the other run has ended",
                AbortKind::Storage => {
                    "make room and run the same command again: files that are complete are kept"
                }
                AbortKind::Connection => "run the same command again: what has arrived is not sent twice",
                AbortKind::Timeout => {
                    "the machine there, or the agent on it, is paused or too busy; run the same command again: what has \
                     arrived is not sent twice; --timeout gives it more time"
                }
                _ => return None,
            },
            Self::SshConfig(_) | Self::Sandbox(_) | Self::Agent(_) | Self::Pipe(_) => {
                return None;
            }
        };
        Some(hint.to_owned())
    }
}

fn says(diagnosis: Option<&Diagnosis>) -> String {
    diagnosis.map_or_else(
        || "which could not be asked what runs there".to_owned(),
        |diagnosis| format!("which says that {diagnosis}"),
    )
}

/// The next step for a user who cannot connect to a session's VM.
fn unreachable_hint(session: &str, diagnosis: Option<&Diagnosis>, error: &RemoteError) -> String {
    let what = match error {
        _ if diagnosis.is_some_and(|diagnosis| !diagnosis.is_well()) => {
            return format!(
                "ksync session setup {session} starts what is missing there; if that is no help, take a new session"
            );
        }
        RemoteError::Connect { .. } | RemoteError::TimedOut { .. } => {
            "something on the way lets no connection through to port 2222: look at the firewall and the VPN on this side, \
             or try another network; ksync goes through no proxy there"
        }
        RemoteError::Tls { .. } | RemoteError::WebSocket { .. } | RemoteError::Redirected { .. } => {
            "something on the way answers in the VM's place: look at the proxy and the firewall on this side, or try \
             another network"
        }
        error => return error.hint(),
    };
    format!("{what}; ksync doctor {session} tries each step")
}
