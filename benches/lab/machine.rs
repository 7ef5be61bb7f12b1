//! The VM: sshd on loopback behind websocat, with its own keys and home directory, and the link in
//! front of it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::link::Link;
use super::place::user;
use super::world::service::{Service, Sshd, make_key, websocat};
use super::world::{World, path};

/// Host name of the machine in OpenSSH's configuration.
pub(crate) const HOST: &str = "vm";

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

/// The VM: sshd, websocat and the link.
pub(crate) struct Machine {
    pub(crate) world: World,
    pub(crate) link: Link,
    user: String,
    host_key: String,
    sshd: Sshd,
    _websocat: Service,
}

impl Machine {
    pub(crate) fn start(world: World) -> Machine {
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
        let sshd = Sshd::start(&world, &settings);
        let (port, websocat) = websocat(&world, "ws-l", &format!("tcp:127.0.0.1:{}", sshd.port));
        let host_key = fs::read_to_string(world.path("host-key.pub")).expect("a key").trim().to_owned();
        let link = Link::to((Ipv4Addr::LOCALHOST, port));
        let machine = Machine { world, link, user: user(), host_key, sshd, _websocat: websocat };
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
        let config = format!(
            "Host {HOST}\n HostName 127.0.0.1\n HostKeyAlias {HOST}\n User {}\n \
             ProxyCommand websocat --binary --no-async-stdio ws://127.0.0.1:{}\n IdentityFile {}\n IdentitiesOnly yes\n \
             IdentityAgent none\n UserKnownHostsFile {}\n GlobalKnownHostsFile /dev/null\n \
             StrictHostKeyChecking yes\n BatchMode yes\n LogLevel ERROR\n",
            self.user,
            self.link.port,
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
        format!("ws://{}@127.0.0.1:{}{}", self.user, self.link.port, path.display())
    }

    /// `ksync` with its login options.
    pub(crate) fn ksync(&self) -> Command {
        let mut command = self.world.command(env!("CARGO_BIN_EXE_ksync"));
        command.arg("--identity").arg(self.world.path("key")).args(["--host-key", &self.host_key]);
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

    /// Offers the whole link as a plain TCP port, for programs without ProxyCommand.
    pub(crate) fn plain_port(&self) -> (u16, Service) {
        websocat(&self.world, "tcp-l", &format!("ws://127.0.0.1:{}", self.link.port))
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
        while !(self.link.is_quiet() && super::memory::children(self.sshd()).is_empty()) {
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
