//! A sync job: its endpoints, its options and its observer.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::kernel::{BridgeImage, Settings};
use crate::monitor::Monitor;
use crate::remote::AgentImage;
use crate::remote::ssh_config::AddressFamily;
use crate::sync::endpoint::Endpoint;
use crate::wire::hello::{Consent, Options};

/// One sync job.
#[derive(Debug, Clone)]
pub struct Job {
    /// The endpoint with the files.
    pub source: Endpoint,
    /// Further sources on the same machine: all of them go into the destination by their names.
    pub further: Vec<Endpoint>,
    /// The endpoint that receives them.
    pub destination: Endpoint,
    /// Options that both sides follow.
    pub options: Options,
    /// Connect options for the remote endpoint.
    pub connect_options: ConnectOptions,
    /// True if the job compares both trees and changes nothing: see [`Job::verifying`].
    pub verifies: bool,
}

impl Job {
    /// The job that verifies the result of this one. Both sides hash all of their files, and a dry
    /// run compares the hashes. Deletions in it are no deletions: they need no consent.
    #[must_use]
    pub fn verifying(&self) -> Self {
        let consent = Consent { yes: true, ..self.options.consent.clone() };
        let options =
            Options { dry_run: true, checksum: true, list_changes: true, consent, ..self.options.clone() };
        Self { options, verifies: true, ..self.clone() }
    }

    /// All sources.
    pub fn sources(&self) -> impl Iterator<Item = &Endpoint> {
        std::iter::once(&self.source).chain(&self.further)
    }

    /// The paths of the further sources on this machine.
    pub(crate) fn further_local(&self) -> Vec<PathBuf> {
        let local = |endpoint: &Endpoint| match endpoint {
            Endpoint::Local(path) => Some(path.clone()),
            _ => None,
        };
        self.further.iter().filter_map(local).collect()
    }

    /// The paths of the further sources on the other machine.
    pub(crate) fn further_remote(&self) -> Vec<Vec<u8>> {
        self.further.iter().map(|endpoint| endpoint.path().to_vec()).collect()
    }
}

/// Connect options for a remote endpoint.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The agent to install where it is missing.
    pub agent: AgentImage,
    /// The bridge to upload to a VM without one.
    pub bridge: BridgeImage,
    /// Private key files; if empty: ssh-agent, then the usual files.
    pub identities: Vec<PathBuf>,
    /// The output of `kernel browsers ssh ID --setup-only -o json`.
    pub setup: Option<Vec<u8>>,
    /// Additional root certificates for `wss`, in PEM.
    pub ca_cert: Option<PathBuf>,
    /// The only accepted host key, as one line of OpenSSH's text form.
    pub host_key: Option<String>,
    /// Timeout for connecting.
    pub connect_timeout: Duration,
    /// Timeout for a silent other side.
    pub timeout: Duration,
    /// Maximum number of reconnections in a row without progress, after a connection that has
    /// worked is lost.
    pub retries: u32,
    /// Maximum number of channels for an upload; `None`: as many as the round trip justifies.
    pub connections: Option<usize>,
    /// The platform's API; without it only previously used sessions can be reached.
    pub api: Option<Settings>,
    /// The session that `session:` means, if not the one that was chosen last.
    pub session: Option<String>,
    /// True if a keep-alive keeps the session active meanwhile.
    pub keep_alive: bool,
    /// Time for which a connection is kept for the next run; `None`: not at all.
    pub keep: Option<Duration>,
    /// True if commands in `sandbox:` may see and change the files of this machine.
    pub host_files: bool,
    /// True if ports are to be forwarded over the connection.
    pub forwards: bool,
    /// True if the agent runs as root, by `sudo -n`.
    pub sudo: bool,
    /// The kind of addresses of an SSH host, if not the one in its configuration.
    pub address_family: Option<AddressFamily>,
    /// The SSH configuration, if not the usual files; an empty path is none at all.
    pub ssh_config: Option<PathBuf>,
}

impl ConnectOptions {
    /// The defaults, with these programs.
    #[must_use]
    pub const fn new(agent: AgentImage, bridge: BridgeImage) -> Self {
        Self {
            agent,
            bridge,
            identities: Vec::new(),
            setup: None,
            ca_cert: None,
            host_key: None,
            connect_timeout: Duration::from_secs(30),
            timeout: Duration::from_secs(60),
            retries: 5,
            connections: None,
            api: None,
            session: None,
            keep_alive: true,
            keep: None,
            host_files: false,
            forwards: false,
            sudo: false,
            address_family: None,
            ssh_config: None,
        }
    }
}

/// The observer of a job's progress.
pub type SharedMonitor = Arc<dyn Monitor + Send + Sync>;
