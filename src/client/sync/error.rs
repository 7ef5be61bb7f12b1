//! `SyncError`: the reason why a job ended early, for people and programs.

use std::fmt;
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
    "Make it yours alone (chown, chmod 700), or name another directory with XDG_STATE_HOME.";

/// Advice for a connection that is cut where nothing was transferred yet.
const CUT: &str = "Something on the way, or the VM, cuts the connection: look at the proxy, the VPN and the firewall on \
                   this side, or try another network.";

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
    #[error("could not get into the VM of the session {session}, {}", says(diagnosis.as_deref()))]
    Unreachable {
        /// The session's id.
        session: String,
        /// The diagnosis by the VM itself, if it could be asked.
        diagnosis: Option<Box<Diagnosis>>,
        /// The failed connection attempt.
        source: Arc<RemoteError>,
    },
    /// The VM of a session that was used before is unreachable, and nobody can tell if it exists.
    #[error("could not reach the session {session}, which may have ended")]
    PerhapsGone {
        /// The session's id or name.
        session: String,
        /// The failed connection attempt.
        source: Arc<RemoteError>,
    },
    /// One side aborted the run.
    #[error("{}{}", if .0.by_peer { "the other side stopped: " } else { "" }, .0.text)]
    Run(RunError),
    /// The agent exited unexpectedly, after it had started.
    #[error("the agent {end}{}", and_said(said))]
    Agent {
        /// The agent's end.
        end: AgentExit,
        /// The end of its error output.
        said: String,
    },
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
            | Self::Pipe(_) => 5,
            Self::Agent { .. } => 12,
            Self::Kernel(error) => error.exit_code(),
            Self::Remote(error)
            | Self::Unreachable { source: error, .. }
            | Self::PerhapsGone { source: error, .. } => match error.kind() {
                ErrorKind::Usage => 1,
                ErrorKind::CouldNotStart => 5,
                ErrorKind::Socket => 10,
                ErrorKind::FileIo => 11,
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
                AbortKind::Plan => 26,
                AbortKind::Timeout => 30,
            },
        }
    }

    /// The next step for a user who runs `ksync doctor`: it names neither the doctor, nor the files
    /// of a sync.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Unreachable { session, diagnosis, source } => {
                let (what, _) = unreachable_remedy(session, diagnosis.as_deref(), source);
                Some(if what.ends_with('.') { what } else { what + "." })
            }
            Self::Kernel(error) => error.remedy(),
            Self::Remote(error) if error.kind() == ErrorKind::Timeout || error.was_cut() => Some(CUT.to_owned()),
            Self::Run(error) if error.kind == AbortKind::Connection => Some(CUT.to_owned()),
            Self::Run(error) if error.kind == AbortKind::Timeout => Some(
                "The machine there, or the agent on it, is paused or too busy: look at its load and its memory."
                    .to_owned(),
            ),
            Self::Agent { .. } => {
                Some("Look at the free memory and disk of the VM, and at the log of its kernel.".to_owned())
            }
            error => error.hint(),
        }
    }

    /// The next step for the user.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Remote(error) => return Some(error.hint()),
            Self::Unreachable { session, diagnosis, source } => {
                let (what, doctor_helps) = unreachable_remedy(session, diagnosis.as_deref(), source);
                let doctor = format!("; ksync doctor {session} tries each step.");
                return Some(if doctor_helps { what + &doctor } else { what });
            }
            Self::PerhapsGone { .. } => {
                "Set KERNEL_API_KEY, and run the same command again: with it ksync finds out if the session is still \
                 there (ksync session list). A session that is idle for its timeout is deleted with its files."
            }
            Self::Kernel(error) => return error.hint(),
            Self::Overlap => "Choose a destination beside the source.",
            Self::BothRemote => "Copy to a local directory first, then from there.",
            Self::NoSetup(_) => {
                "Give the JSON that `kernel browsers ssh ID --setup-only -o json` prints with --setup."
            }
            Self::Setup(_) => {
                "It must be the JSON that `kernel browsers ssh ID --setup-only -o json` prints."
            }
            Self::Proxy { .. } => "Name the host that can be reached directly, or use a wss:// endpoint.",
            Self::NoHome(_) => "Set HOME.",
            Self::State(_) => STATE_HINT,
            Self::NoSandbox => "Build it with the feature sandbox, which is on by default.",
            Self::Run(error) => match error.kind {
                AbortKind::Selection if error.text.ends_with(" does not exist") => "Check how it is spelled.",
                AbortKind::Selection if error.text.contains(": the emulated VM has no files of its own") => {
                    "Name a path in its home, as in sandbox:site; or let it use the files of this machine with --host-files."
                }
                AbortKind::Destination if error.text.contains(" is a file") => {
                    "Name another DEST, or remove what is there."
                }
                // A device is better not removed.
                AbortKind::Destination if error.text.ends_with(" a directory") => "Name another DEST.",
                AbortKind::Destination if error.text.contains(" is a link to nowhere") => {
                    "Name another DEST, make what the link leads to, or remove the link."
                }
                AbortKind::Destination if error.text.contains(" is not writable for ") => {
                    "Name another DEST, or another login, or change its owner or mode."
                }
                AbortKind::Plan => "Make the plan anew, with ksync -n --plan FILE.",
                AbortKind::Busy => "Wait until the other run has ended.",
                AbortKind::Storage => {
                    "Make room and run the same command again: files that are complete are kept."
                }
                AbortKind::Connection => "Run the same command again: what has arrived is not sent twice.",
                AbortKind::Timeout => {
                    "The machine there, or the agent on it, is paused or too busy; run the same command again: what has \
                     arrived is not sent twice; --timeout gives it more time."
                }
                _ => return None,
            },
            Self::Agent { end, .. } => return Some(end.hint().to_owned()),
            Self::SshConfig(_) | Self::Sandbox(_) | Self::Pipe(_) => return None,
        };
        Some(hint.to_owned())
    }
}

/// The end of an agent that had started. Its `Display` continues a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentExit {
    /// A signal killed it: its name, and its number if that is known.
    Signal(String),
    /// It exited with this status.
    Status(u32),
    /// It ended the watch by itself.
    Watch,
}

impl AgentExit {
    /// The number of SIGKILL.
    const KILL: u32 = 9;

    /// The end that the server reported. A shell between the server and the agent reports a signal
    /// as the status 128 and its number.
    pub(super) fn of(signal: Option<String>, status: Option<u32>) -> Option<Self> {
        match (signal, status) {
            (Some(signal), _) => Some(Self::Signal(signal)),
            (None, Some(status @ 129..=192)) => Some(Self::Signal(format!("{}", status - 128))),
            (None, Some(status)) => Some(Self::Status(status)),
            (None, None) => None,
        }
    }

    /// The number of the signal.
    fn number(&self) -> Option<u32> {
        let Self::Signal(name) = self else { return None };
        Some(match name.as_str() {
            "HUP" => 1,
            "INT" => 2,
            "QUIT" => 3,
            "ILL" => 4,
            "ABRT" => 6,
            "FPE" => 8,
            "KILL" => Self::KILL,
            "USR1" => 10,
            "SEGV" => 11,
            "PIPE" => 13,
            "ALRM" => 14,
            "TERM" => 15,
            number => return number.parse().ok(),
        })
    }

    fn hint(&self) -> &'static str {
        if self.number() == Some(Self::KILL) {
            "Perhaps the machine there is out of memory: look at its log, and run the same command again; what has \
             arrived is not sent twice."
        } else {
            "Run the same command again: what has arrived is not sent twice."
        }
    }
}

impl fmt::Display for AgentExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.number()) {
            (Self::Signal(_), Some(number)) => write!(f, "was killed (signal {number}) after it had started"),
            (Self::Signal(name), None) => write!(f, "was killed (signal {name}) after it had started"),
            (Self::Status(status), _) => write!(f, "exited unexpectedly (status {status})"),
            (Self::Watch, _) => f.write_str("ended the watch"),
        }
    }
}

fn and_said(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

fn says(diagnosis: Option<&Diagnosis>) -> String {
    diagnosis.map_or_else(
        || "which could not be asked what runs there".to_owned(),
        |diagnosis| format!("which says that {diagnosis}"),
    )
}

/// The next step for a user who cannot connect to a session's VM, and if `ksync doctor` helps to
/// find the cause.
fn unreachable_remedy(session: &str, diagnosis: Option<&Diagnosis>, error: &RemoteError) -> (String, bool) {
    let what = match error {
        _ if diagnosis.is_some_and(|diagnosis| !diagnosis.is_well()) => {
            return (
                format!(
                    "Run ksync session setup {session}, which starts what is missing there; if that is no help, take a \
                     new session."
                ),
                false,
            );
        }
        RemoteError::NotAuthorised { .. } if diagnosis.is_some_and(|diagnosis| !diagnosis.admits_root()) => {
            let what = "The API let the key in, but sshd refuses root with any key: set PermitRootLogin to \
                        prohibit-password in /etc/ssh/sshd_config and /etc/ssh/sshd_config.d on the VM, and restart sshd \
                        there (supervisorctl restart sshd).";
            return (what.to_owned(), false);
        }
        RemoteError::NotAuthorised { .. } => {
            let what = "The API let the key in, but sshd does not take it: look at AuthorizedKeysFile, AllowUsers and \
                        PermitRootLogin in its settings on the VM, and at the owner and mode of /root/.ssh.";
            return (what.to_owned(), false);
        }
        RemoteError::Tls { source, .. } if source.is_about_trust() => return (source.hint(), false),
        RemoteError::Connect { .. } | RemoteError::TimedOut { .. } => {
            "Something on the way lets no connection through to port 2222: look at the firewall and the VPN on this side, \
             or try another network; HTTPS_PROXY names a proxy if the network needs one"
        }
        RemoteError::Tls { .. }
        | RemoteError::OtherProtocol { .. }
        | RemoteError::ClosedAtOnce { .. }
        | RemoteError::NoWebSocket { .. }
        | RemoteError::WebSocket { .. }
        | RemoteError::Redirected { .. } => {
            "Something on the way answers in the VM's place: look at the proxy and the firewall on this side, or try \
             another network"
        }
        RemoteError::Lost { .. } | RemoteError::Handshake { .. } => {
            "Something on the way, or the VM, cuts the connection during the login: look at the proxy and the firewall on \
             this side, or try another network"
        }
        error => return (error.hint(), false),
    };
    (what.to_owned(), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_agent_is_told_from_one_that_exits() {
        for (signal, status, text, hints_at_memory) in [
            (Some("KILL"), None, "the agent was killed (signal 9) after it had started", true),
            (None, Some(137), "the agent was killed (signal 9) after it had started", true),
            (Some("SEGV"), None, "the agent was killed (signal 11) after it had started", false),
            (Some("XCPU"), None, "the agent was killed (signal XCPU) after it had started", false),
            (None, Some(101), "the agent exited unexpectedly (status 101)", false),
        ] {
            let end = AgentExit::of(signal.map(str::to_owned), status).unwrap();
            let error = SyncError::Agent { end, said: String::new() };
            assert_eq!((error.to_string().as_str(), error.exit_code()), (text, 12));
            assert_eq!(error.hint().unwrap().contains("out of memory"), hints_at_memory, "{text}");
        }
        assert_eq!(AgentExit::of(None, None), None);
    }
}
