//! The VM: sshd on loopback behind websocat, with its own keys and home directory, and the link in
//! front of it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::link::Link;
use super::world::{World, path, program, user};

/// Host name of the machine in OpenSSH's configuration.
pub(crate) const HOST: &str = "vm";

/// Timeout for a service to answer, and for the machine to become quiet.
const PATIENCE: Duration = Duration::from_secs(20);

/// Direction of a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Up,
    Down,
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::Up => "up",
            Way::Down => "down",
        }
    }
}

/// One sync: it makes `destination` equal to `source`.
pub(crate) struct Job<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) way: Way,
    pub(crate) source: &'a Path,
    pub(crate) destination: &'a Path,
}

/// A background program, killed when dropped.
pub(crate) struct Service(Child);

impl Service {
    /// Starts the program in its own process group. A key that interrupts the harness must not stop
    /// the VM during a measurement.
    pub(crate) fn start(mut command: Command) -> Service {
        let null = command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        Service(null.spawn().expect("start"))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The VM: sshd, websocat and the link.
pub(crate) struct Machine {
    pub(crate) world: World,
    pub(crate) link: Link,
    user: String,
    host_key: String,
    sshd: Service,
    _websocat: Service,
}

impl Machine {
    pub(crate) fn start(world: World) -> Machine {
        make_key(&world, "host-key");
        make_key(&world, "key");
        let (ssh_port, sshd) = listening(|port| start_sshd(&world, port));
        let (port, websocat) = listening(|port| {
            let mut command = world.command("websocat");
            // Without exit-on-eof, websocat keeps a connection open for ever after the client has
            // closed it.
            command.args(["--binary", "--exit-on-eof", "-q"]);
            command.arg(format!("ws-l:127.0.0.1:{port}")).arg(format!("tcp:127.0.0.1:{ssh_port}"));
            command.stderr(Stdio::null());
            Service::start(command)
        });
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
    pub(crate) fn place(&self, path: &Path) -> String {
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
        command.arg("--no-progress").arg(&source).arg(self.place(&self.world.path("to-nothing")));
        let output = command.output().map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(format!("ksync cannot reach the machine: {text}")) }
    }

    /// Offers the whole link as a plain TCP port, for programs without ProxyCommand.
    pub(crate) fn plain_port(&self) -> (u16, Service) {
        listening(|port| {
            let mut command = self.world.command("websocat");
            command.args(["--binary", "--exit-on-eof", "-q", &format!("tcp-l:127.0.0.1:{port}")]);
            command.arg(format!("ws://127.0.0.1:{}", self.link.port)).stderr(Stdio::null());
            Service::start(command)
        })
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
            if start.elapsed() > PATIENCE {
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

fn start_sshd(world: &World, port: u16) -> Service {
    let far = world.path("far");
    let config = format!(
        "ListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
         StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n\
         KbdInteractiveAuthentication no\nPrintMotd no\nPrintLastLog no\nUseDNS no\n\
         Subsystem sftp internal-sftp\nSetEnv HOME={} PATH={}\n",
        world.path("host-key").display(),
        world.path("key.pub").display(),
        // The home directory has no shell start files, which would cost time.
        far.display(),
        path().to_string_lossy(),
    );
    fs::write(world.path("sshd_config"), config).expect("a configuration");
    let log = fs::File::create(world.path("sshd.log")).expect("a log");
    // sshd must be started by its absolute path.
    let mut command = world.command(program("sshd").expect("sshd"));
    command.args(["-D", "-e", "-f"]).arg(world.path("sshd_config")).stderr(log);
    Service::start(command)
}

/// Makes an ed25519 key without a passphrase.
fn make_key(world: &World, name: &str) {
    let mut command = world.command("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(world.path(name));
    assert!(command.status().expect("ssh-keygen").success());
    fs::set_permissions(world.path(name), fs::Permissions::from_mode(0o600)).expect("a mode");
}

/// Starts a service on a port that the kernel chose, and waits until it answers. Another program
/// may take the port in between; then it tries another one.
fn listening(start: impl Fn(u16) -> Service) -> (u16, Service) {
    for _ in 0..10 {
        let chosen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = chosen.local_addr().expect("an address");
        drop(chosen);
        let mut service = start(address.port());
        let began = Instant::now();
        while began.elapsed() < PATIENCE && service.0.try_wait().expect("wait").is_none() {
            if TcpStream::connect(address).is_ok() {
                return (address.port(), service);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
    panic!("a service does not start: is /run/sshd there?")
}
