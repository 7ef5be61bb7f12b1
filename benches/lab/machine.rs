//! The VM: sshd on loopback behind websocat, with its own keys and home directory, and the links in
//! front of it: a relay, and a network with real TCP where this machine can have one.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::link::{Carried, Conditions, Link, Network, unlimited};
use super::place::user;
use super::world::network::{FAR, SEEN};
use super::world::service::{Service, Sshd, make_key, websocat, websocat_on};
use super::world::{World, path};

/// Host name of the machine in OpenSSH's configuration.
pub(crate) const HOST: &str = "vm";

/// Environment variable by which ksync keeps no connection for the next run.
pub(crate) const KEEP: &str = "KSYNC_KEEP";

/// Timeout for the machine to become quiet.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Direction of a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Direction {
    Up,
    Down,
}

impl Direction {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Direction::Up => "up",
            Direction::Down => "down",
        }
    }
}

/// One sync: it makes `destination` equal to `source`.
pub(crate) struct Job<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) direction: Direction,
    pub(crate) source: &'a Path,
    pub(crate) destination: &'a Path,
}

/// The VM: sshd, websocat and the links.
pub(crate) struct Machine {
    pub(crate) world: World,
    pub(crate) link: Link,
    network: Option<RealTcp>,
    /// The network is in use, and not the relay.
    is_real_tcp: AtomicBool,
    /// There are no bridges: SSH goes straight to sshd.
    is_direct: bool,
    user: String,
    host_key: String,
    sshd: Sshd,
    _websocat: Service,
}

/// The network, and the server's port on it.
struct RealTcp {
    network: Network,
    port: u16,
    _websocat: Option<Service>,
}

impl Machine {
    pub(crate) fn start(world: World) -> Machine {
        Machine::on(world, None, false)
    }

    /// Starts a machine that is on a network too. `is_direct` leaves out the bridges.
    pub(crate) fn on(world: World, network: Option<Network>, is_direct: bool) -> Machine {
        make_key(&world, "host-key", "ed25519");
        make_key(&world, "key", "ed25519");
        let settings = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nSetEnv HOME={} PATH={}",
            world.path("host-key").display(),
            world.path("key.pub").display(),
            // The home directory has no shell start files, which would cost time.
            world.path("far").display(),
            path().to_string_lossy(),
        );
        let settings = if network.is_some() { format!("{settings}\nListenAddress {FAR}") } else { settings };
        let sshd = Sshd::start(&world, &settings);
        let to = format!("tcp:127.0.0.1:{}", sshd.port);
        let (port, websocat) = websocat(&world, "ws-l", &to);
        let network = network.map(|network| {
            let bridge = (!is_direct).then(|| websocat_on(FAR, &world, "ws-l", &to));
            let port = bridge.as_ref().map_or(sshd.port, |(port, _)| *port);
            RealTcp { network, port, _websocat: bridge.map(|(_, service)| service) }
        });
        let host_key = fs::read_to_string(world.path("host-key.pub")).expect("a key").trim().to_owned();
        let link = Link::to((Ipv4Addr::LOCALHOST, if is_direct { sshd.port } else { port }));
        let is_real_tcp = AtomicBool::new(false);
        let (user, _websocat) = (user(), websocat);
        let machine =
            Machine { world, link, network, is_real_tcp, is_direct, user, host_key, sshd, _websocat };
        machine.configure_ssh();
        machine
    }

    /// Writes the configuration of OpenSSH's programs.
    ///
    /// With its stdio in asynchronous mode, websocat 1.14.1 sometimes keeps its last bytes until
    /// more arrive. One download in about thirty hung until ssh's keep-alive, 300 s later. That
    /// would be unfair to the peers, and the other mode is as fast.
    fn configure_ssh(&self) {
        let path = |name: &str| self.world.path(name).display().to_string();
        let known_hosts = format!("{HOST} {}\n", self.host_key);
        fs::write(self.world.path("known_hosts"), known_hosts).expect("known_hosts");
        let (host, port) = self.address();
        let through = if self.is_direct {
            String::new()
        } else {
            format!(" ProxyCommand websocat --binary --no-async-stdio ws://{host}:{port}\n")
        };
        let config = format!(
            "Host {HOST}\n HostName {host}\n Port {port}\n HostKeyAlias {HOST}\n User {}\n\
             {through} IdentityFile {}\n IdentitiesOnly yes\n \
             IdentityAgent none\n UserKnownHostsFile {}\n GlobalKnownHostsFile /dev/null\n \
             StrictHostKeyChecking yes\n BatchMode yes\n LogLevel ERROR\n",
            self.user,
            path("key"),
            path("known_hosts"),
        );
        fs::write(self.ssh_config(), config).expect("a configuration");
    }

    /// File for `ssh -F`.
    pub(crate) fn ssh_config(&self) -> PathBuf {
        self.world.path("ssh_config")
    }

    /// The `ssh` command of the peers.
    pub(crate) fn ssh(&self) -> String {
        format!("ssh -F {}", self.ssh_config().display())
    }

    /// An endpoint on the machine, as ksync's argument.
    pub(crate) fn endpoint(&self, path: &Path) -> String {
        let scheme = if self.is_direct { "ssh" } else { "ws" };
        let (host, port) = self.address();
        format!("{scheme}://{}@{host}:{port}{}", self.user, path.display())
    }

    /// The server's address as the clients see it.
    pub(crate) fn address(&self) -> (Ipv4Addr, u16) {
        match self.in_use() {
            Some(real_tcp) => (SEEN, real_tcp.port),
            None => (Ipv4Addr::LOCALHOST, self.link.port),
        }
    }

    /// The network, if the machine is on one.
    pub(crate) fn network(&self) -> Option<&Network> {
        self.network.as_ref().map(|real_tcp| &real_tcp.network)
    }

    fn in_use(&self) -> Option<&RealTcp> {
        self.network.as_ref().filter(|_| self.is_real_tcp.load(Ordering::Relaxed))
    }

    /// Leads the way of `link` from now on, without its limits.
    pub(crate) fn lead(&self, link: Conditions) {
        self.is_real_tcp.store(link.is_real_tcp, Ordering::Relaxed);
        self.configure_ssh();
        self.limit(unlimited(link));
    }

    /// Limits the way that is in use.
    pub(crate) fn limit(&self, link: Conditions) {
        match self.in_use() {
            Some(RealTcp { network, .. }) => network.set(link),
            None => self.link.set(link),
        }
    }

    /// Resets the counters.
    pub(crate) fn reset(&self) {
        match self.in_use() {
            Some(RealTcp { network, .. }) => network.reset(),
            None => self.link.reset(),
        }
    }

    /// The traffic since the last reset.
    pub(crate) fn carried(&self) -> Carried {
        match self.in_use() {
            Some(RealTcp { network, .. }) => network.carried(),
            None => self.link.carried(),
        }
    }

    /// `ksync` with its login options.
    pub(crate) fn ksync(&self) -> Command {
        let mut command = self.world.command(env!("CARGO_BIN_EXE_ksync"));
        command.arg("--identity").arg(self.world.path("key")).args(["--host-key", &self.host_key]);
        // A kept connection is a case of its own.
        command.env(KEEP, "0");
        command
    }

    /// Lets `ksync` install its agent.
    pub(crate) fn put_agent_there(&self) -> Result<(), String> {
        let source = self.world.path("nothing");
        fs::create_dir_all(&source).expect("a directory");
        let mut command = self.ksync();
        command.arg("--no-progress").arg(&source).arg(self.endpoint(&self.world.path("to-nothing")));
        let output = command.output().map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(format!("ksync cannot reach the machine: {text}")) }
    }

    /// Offers the whole link as a plain TCP address, for programs without ProxyCommand.
    pub(crate) fn plain(&self) -> ((Ipv4Addr, u16), Option<Service>) {
        let (host, port) = self.address();
        if self.is_direct {
            return ((host, port), None);
        }
        let (port, service) = websocat(&self.world, "tcp-l", &format!("ws://{host}:{port}"));
        ((Ipv4Addr::LOCALHOST, port), Some(service))
    }

    /// Login name on the machine.
    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    /// Process id of sshd, the ancestor of all programs on the machine.
    pub(crate) fn sshd(&self) -> u32 {
        self.sshd.id()
    }

    /// Waits until no client is connected.
    pub(crate) fn wait_until_quiet(&self) -> bool {
        let start = Instant::now();
        let is_quiet = || self.in_use().map_or_else(|| self.link.is_quiet(), |used| used.network.is_quiet());
        while !(is_quiet() && super::memory::children(self.sshd()).is_empty()) {
            if start.elapsed() > TIMEOUT {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Removes the agent, as if ksync had never connected.
    pub(crate) fn forget_agent(&self) {
        let _ = fs::remove_dir_all(self.world.path("far/.cache"));
    }

    /// Reports if the agent is in the machine's own home directory, and not only elsewhere.
    pub(crate) fn has_agent(&self) -> bool {
        self.world.path("far/.cache/ksync").is_dir()
    }
}
