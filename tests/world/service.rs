//! Background programs: their start, their ports, and an sshd.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use super::{World, wait_for};

/// A background program, killed when dropped.
pub(crate) struct Service(Child);

impl Service {
    pub(crate) fn start(mut command: Command) -> Service {
        Service(command.stdin(Stdio::null()).spawn().expect("start"))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Waits until the program answers at `address`. Returns false if it has ended.
    fn answers(&mut self, address: SocketAddr) -> bool {
        wait_for("a service", || match self.0.try_wait().expect("wait") {
            Some(_) => Some(false),
            None => TcpStream::connect(address).is_ok().then_some(true),
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a service on a port that the kernel chose, and waits until it answers. Another program
/// may take the port in between; then it tries another one.
pub(crate) fn listening(start: impl Fn(u16) -> Service) -> (u16, Service) {
    listening_on(Ipv4Addr::LOCALHOST, start)
}

fn listening_on(host: Ipv4Addr, start: impl Fn(u16) -> Service) -> (u16, Service) {
    (0..10)
        .find_map(|_| listening_at((host, closed_port()).into(), &start))
        .expect("a free port; is /run/sshd there?")
}

fn listening_at(address: SocketAddr, start: impl Fn(u16) -> Service) -> Option<(u16, Service)> {
    let mut service = start(address.port());
    service.answers(address).then_some((address.port(), service))
}

/// Port of a listener that is closed again.
pub(crate) fn closed_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

/// Starts a websocat that bridges `from` to `to`, both in its notation, and returns its port.
pub(crate) fn websocat(world: &World, from: &str, to: &str) -> (u16, Service) {
    websocat_on(Ipv4Addr::LOCALHOST, world, from, to)
}

/// The same at another address of this machine.
pub(crate) fn websocat_on(host: Ipv4Addr, world: &World, from: &str, to: &str) -> (u16, Service) {
    listening_on(host, |port| {
        let mut command = world.command("websocat");
        // Without exit-on-eof, websocat keeps a connection open for ever after the client has
        // closed it.
        command.args(["--binary", "--exit-on-eof", "-q", &format!("{from}:{host}:{port}"), to]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Service::start(command)
    })
}

/// An sshd on loopback.
pub(crate) struct Sshd {
    pub(crate) port: u16,
    service: Option<Service>,
}

impl Sshd {
    /// Starts an sshd. `settings` are lines of its configuration, and precede the default ones.
    pub(crate) fn start(world: &World, settings: &str) -> Sshd {
        // sshd changes its root to this directory before the login.
        let _ = std::fs::create_dir_all("/run/sshd");
        let (port, service) = listening(|port| sshd(world, settings, port));
        Sshd { port, service: Some(service) }
    }

    /// Starts it again with other settings, on the same port.
    pub(crate) fn restart(&mut self, world: &World, settings: &str) {
        self.service = None;
        let (_, service) =
            listening_at((Ipv4Addr::LOCALHOST, self.port).into(), |port| sshd(world, settings, port))
                .expect("sshd");
        self.service = Some(service);
    }

    /// Process id, also that of the ancestor of all programs that run there.
    pub(crate) fn id(&self) -> u32 {
        self.service.as_ref().expect("sshd runs").id()
    }
}

/// Starts an sshd that ignores the machine's own settings and logs to `sshd.log`.
fn sshd(world: &World, settings: &str, port: u16) -> Service {
    // Several tests connect at once.
    let config = format!(
        "{settings}\nListenAddress 127.0.0.1\nPort {port}\nPidFile none\nStrictModes no\nUsePAM no\n\
         PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
         PrintMotd no\nPrintLastLog no\nUseDNS no\nMaxStartups 1000\nSubsystem sftp internal-sftp\n"
    );
    std::fs::write(world.path("sshd_config"), config).expect("a configuration");
    let log = std::fs::File::create(world.path("sshd.log")).expect("a log");
    // sshd must be started by its absolute path.
    let mut command = world.command(super::skip::program("sshd").expect("sshd"));
    command.args(["-D", "-e", "-f"]).arg(world.path("sshd_config")).stdout(Stdio::null()).stderr(log);
    Service::start(command)
}

/// Makes a key without a passphrase, in place of an earlier one.
pub(crate) fn make_key(world: &World, name: &str, kind: &str) {
    for file in [world.path(name), world.path(format!("{name}.pub"))] {
        let _ = std::fs::remove_file(file);
    }
    let mut command = world.command("ssh-keygen");
    command.args(["-q", "-t", kind, "-N", "", "-C", name, "-f"]).arg(world.path(name));
    super::Run::of(command).ok();
}
