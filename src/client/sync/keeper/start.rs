//! Starting a keeper: a process of its own, which gets its parameters over a pipe. They may hold
//! secrets, and every user can read the arguments of a process.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::kernel::{BridgeImage, Settings};
use crate::log::{self, debug};
use crate::remote::AgentImage;
use crate::sync::endpoint::Endpoint;
use crate::sync::job::ConnectOptions;
use crate::sync::keeper::facts::Facts;
use crate::sync::keeper::place::{Lock, Place};
use crate::wire::hello::Request;

/// The arguments that start a keeper.
const ARGUMENTS: [&str; 2] = ["keep", "serve"];

/// Longest parameters, in bytes.
const PARAMETERS_BYTES_MAX: u64 = 32 << 20;

/// The parameters of a keeper.
#[derive(Serialize, Deserialize)]
pub struct Parameters {
    /// The name that the facts had for the run.
    pub(super) name: String,
    pub(super) endpoint: Endpoint,
    identities: Vec<PathBuf>,
    setup: Option<Vec<u8>>,
    ca_cert: Option<PathBuf>,
    host_key: Option<String>,
    host_files: bool,
    connect_timeout: Duration,
    api: Option<Settings>,
    session: Option<String>,
    pub(super) keep: Duration,
    /// The request of the run, whose tree the agent watches from then on.
    pub(super) request: Option<Request>,
}

impl Parameters {
    /// Reads the parameters from stdin.
    ///
    /// # Errors
    /// Stdin holds none.
    pub fn read() -> io::Result<Self> {
        let mut text = Vec::new();
        io::stdin().take(PARAMETERS_BYTES_MAX).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// The connect options of the run.
    pub(super) fn connect_options(&self, agent: AgentImage, bridge: BridgeImage) -> ConnectOptions {
        ConnectOptions {
            identities: self.identities.clone(),
            setup: self.setup.clone(),
            ca_cert: self.ca_cert.clone(),
            host_key: self.host_key.clone(),
            host_files: self.host_files,
            connect_timeout: self.connect_timeout,
            api: self.api.clone(),
            session: self.session.clone(),
            // A VM that may not stand by costs money.
            keep_alive: false,
            keep: Some(self.keep),
            ..ConnectOptions::new(agent, bridge)
        }
    }
}

/// Starts a keeper for the next runs to `endpoint`, unless there is one, or in place of one that
/// does not answer. Errors are ignored: the next run connects by itself.
pub(in crate::sync) fn start(
    endpoint: &Endpoint,
    connect_options: &ConnectOptions,
    keep: Duration,
    request: Option<Request>,
    is_keeper_silent: bool,
) {
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let mut connect_options = connect_options.clone();
    connect_options.identities = connect_options.identities.iter().map(absolute).collect();
    connect_options.ca_cert = connect_options.ca_cert.as_ref().map(absolute);
    let Some(facts) = Facts::of(endpoint, &connect_options) else { return };
    let Some(place) = Place::of(&facts.name) else { return };
    // The keeper inherits the lock, so that `ksync keep stop` sees it from now on. One that is to
    // replace another takes the lock by itself.
    let lock = if is_keeper_silent { None } else { place.lock().ok().flatten() };
    if lock.is_none() && !is_keeper_silent {
        return;
    }
    let parameters = Parameters {
        name: facts.name,
        endpoint: facts.endpoint,
        identities: connect_options.identities,
        setup: connect_options.setup,
        ca_cert: connect_options.ca_cert,
        host_key: connect_options.host_key,
        host_files: connect_options.host_files,
        connect_timeout: connect_options.connect_timeout,
        api: connect_options.api,
        session: connect_options.session,
        keep,
        request,
    };
    let started = spawn(&parameters, lock);
    debug!("keeper step=start ok={}", started.is_ok());
}

fn spawn(parameters: &Parameters, lock: Option<Lock>) -> io::Result<()> {
    let stdout = lock.as_ref().map_or_else(|| Ok(Stdio::null()), Lock::stdout)?;
    let text = serde_json::to_vec(parameters)?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(ARGUMENTS)
        .current_dir("/")
        .env_remove(log::VARIABLE)
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(lock) = lock {
        lock.hand_over();
    }
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(&text)?;
    }
    Ok(())
}

/// Leaves everything behind that a process inherits: its session and terminal, its directory, and
/// open files beside stdin, stdout and stderr. A program that waits for the end of a pipe would
/// wait for the keeper otherwise.
pub fn detach() {
    let _ = rustix::process::setsid();
    let _ = std::env::set_current_dir("/");
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let open: Vec<i32> = std::fs::read_dir("/dev/fd")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&number| number > 2)
        .collect();
    for number in open {
        // The one of the listing itself is closed already.
        let _ = nix::unistd::close(number);
    }
}
