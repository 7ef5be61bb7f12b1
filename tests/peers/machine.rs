//! A machine to sync with: sshd on loopback with one authorised key, and websocat bridges in front
//! of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use ksync::kernel::BridgeImage;

use crate::world::skip::{needs_programs, program};
use crate::world::{Run, World, wait_for};

/// A process that is killed when the test drops it.
pub(crate) struct Service(Child);

impl Service {
    pub(crate) fn start(mut command: Command) -> Service {
        Service(command.stdin(Stdio::null()).spawn().expect("start"))
    }

    /// First line of the process's output.
    pub(crate) fn first_line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
        line
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An sshd, with the keys for its login.
pub(crate) struct Machine {
    pub(crate) world: World,
    pub(crate) port: u16,
    _sshd: Service,
}

impl Machine {
    /// Starts a machine; `None` if peers are missing.
    pub(crate) fn start() -> Option<Machine> {
        Machine::with(&[])
    }

    /// Starts a machine with extra settings of sshd.
    pub(crate) fn with(settings: &[&str]) -> Option<Machine> {
        if !needs_programs(&["sshd", "ssh", "ssh-keygen", "websocat", "rsync"]) {
            return None;
        }
        let world = World::new();
        world.tree("machine/home");
        make_key(&world, "host-key");
        make_key(&world, "key");
        fs::copy(world.path("key.pub"), world.path("machine/authorized")).expect("a key");
        let (port, sshd) = listening(|port| {
            let mut command = sshd(&world, port, "host-key");
            for setting in settings {
                command.args(["-o", setting]);
            }
            Service::start(command)
        });
        let machine = Machine { world, port, _sshd: sshd };
        machine.trust("host-key");
        Some(machine)
    }

    /// Records a key of the world in `known_hosts` as the machine's.
    pub(crate) fn trust(&self, key: &str) {
        let text = fs::read_to_string(self.world.path(format!("{key}.pub"))).expect("a key");
        let line = format!("[127.0.0.1]:{} {text}", self.port);
        self.world.tree("home/.ssh").file("known_hosts", line).mode("known_hosts", 0o600);
    }

    /// Replaces the key in `known_hosts` by another one.
    pub(crate) fn distrust(&self) {
        if !self.world.path("other-key").exists() {
            make_key(&self.world, "other-key");
        }
        self.trust("other-key");
    }

    /// An endpoint on the machine, over plain TCP.
    pub(crate) fn ssh(&self, name: &str) -> String {
        format!("ssh://root@127.0.0.1:{}{}", self.port, self.world.path(name).display())
    }

    /// An endpoint on the machine, behind a bridge.
    pub(crate) fn behind(&self, bridge: &str, name: &str) -> String {
        format!("{}{}", bridge.replace("://", "://root@"), self.world.path(name).display())
    }

    /// Starts a websocat bridge and returns its URL: `ws://127.0.0.1:PORT`.
    pub(crate) fn bridge(&self) -> (String, Service) {
        let (port, service) = listening(|port| {
            let mut command = self.world.command("websocat");
            command.args(["--binary", "--exit-on-eof"]);
            command.arg(format!("ws-l:127.0.0.1:{port}")).arg(format!("tcp:127.0.0.1:{}", self.port));
            command.stdout(Stdio::null()).stderr(Stdio::null());
            Service::start(command)
        });
        (format!("ws://127.0.0.1:{port}"), service)
    }

    /// Starts the bridge that ksync uploads to VMs without websocat.
    pub(crate) fn own_bridge(&self) -> (String, Service) {
        let program = self.world.unpack("ksync-bridge", BridgeImage::embedded().gzip);
        let (port, service) = listening(|port| {
            let mut command = self.world.command(&program);
            command.arg(format!("127.0.0.1:{port}")).arg(format!("127.0.0.1:{}", self.port));
            command.stdout(Stdio::null()).stderr(Stdio::null());
            Service::start(command)
        });
        (format!("ws://127.0.0.1:{port}"), service)
    }

    /// Runs `ksync --identity key` with these arguments.
    pub(crate) fn run<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Run {
        self.world.run(["--identity", "key", "--stats"].into_iter().chain(args))
    }

    /// Asserts that rsync, as an independent judge, finds no difference between two directories.
    #[track_caller]
    pub(crate) fn rsync_finds_no_difference(&self, one: &str, other: &str) {
        let mut command = self.world.command("rsync");
        command.args(["-anic", "--delete", &format!("{one}/"), &format!("{other}/")]);
        let run = Run::of(command).ok();
        assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));
    }
}

/// Makes an ed25519 key without a passphrase.
pub(crate) fn make_key(world: &World, name: &str) {
    let mut command = world.command("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(world.path(name));
    Run::of(command).ok();
}

fn sshd(world: &World, port: u16, host_key: &str) -> Command {
    let option = |name: &str, value: &Path| format!("{name}={}", value.display());
    // sshd must be started by its absolute path.
    let mut command = world.command(program("sshd").expect("sshd"));
    // Ignore the machine's own settings. The home directory is empty, because shell start files
    // cost time.
    command.args(["-D", "-e", "-f", "/dev/null", "-o", "ListenAddress=127.0.0.1", "-p", &port.to_string()]);
    for set in [
        option("HostKey", &world.path(host_key)),
        option("AuthorizedKeysFile", &world.path("machine/authorized")),
        option("SetEnv", Path::new(&format!("HOME={}", world.path("machine/home").display()))),
        "PidFile=none".to_owned(),
        "StrictModes=no".to_owned(),
        "UsePAM=no".to_owned(),
        "PermitRootLogin=prohibit-password".to_owned(),
        "PasswordAuthentication=no".to_owned(),
        "KbdInteractiveAuthentication=no".to_owned(),
        // Several tests connect at once.
        "MaxStartups=100".to_owned(),
        "Subsystem=sftp internal-sftp".to_owned(),
    ] {
        command.args(["-o", &set]);
    }
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Starts a service on a port that the kernel chose, and waits until it answers. Another program
/// may take the port in between; then it tries another one.
fn listening(start: impl Fn(u16) -> Service) -> (u16, Service) {
    for _ in 0..10 {
        let chosen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = chosen.local_addr().expect("an address");
        drop(chosen);
        let mut service = start(address.port());
        let answers = wait_for("a service", || match service.0.try_wait().expect("wait") {
            Some(_) => Some(false),
            None => TcpStream::connect(address).is_ok().then_some(true),
        });
        if answers {
            return (address.port(), service);
        }
    }
    panic!("no port is free")
}

/// Port of a listener that is closed again.
pub(crate) fn closed_port() -> u16 {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a port");
    listener.local_addr().expect("an address").port()
}
