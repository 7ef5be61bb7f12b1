//! The servers of the matrix: those in the directory `KSYNC_SSH_SERVERS`, which `servers.sh` fills,
//! and this machine's own sshd.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use russh::keys::load_secret_key;

use crate::host::Key;
use crate::world::service::{Service, listening, make_key};
use crate::world::skip::{needs, needs_superuser};
use crate::world::{Run, World};

/// The releases of Debian whose servers take part, oldest first.
const RELEASES: [&str; 4] = ["bullseye", "bookworm", "trixie", "sid"];

/// The release that the tests cannot do without: that of the machine they run on.
const RELEASE_NEEDED: &str = "bookworm";

/// First version of OpenSSH with PerSourcePenalties, as [`Installed::version`].
pub(crate) const PENALTIES_SINCE: u32 = 908;

/// A program of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Sshd,
    Dropbear,
    Tinysshd,
    Paramiko,
    AsyncSsh,
    Go,
}

/// A server that can be started.
#[derive(Debug, Clone)]
pub(crate) struct Installed {
    /// The release, or the language of a server without one.
    pub(crate) name: String,
    pub(crate) program: Program,
    folder: PathBuf,
}

/// A server that runs, in a world of its own.
pub(crate) struct Server {
    pub(crate) installed: Installed,
    pub(crate) address: SocketAddr,
    pub(crate) world: World,
    _service: Option<Service>,
}

/// The directory with the servers; `None` if there is none.
pub(crate) fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("KSYNC_SSH_SERVERS").map(PathBuf::from);
    let why = "KSYNC_SSH_SERVERS names no directory that tests/ssh/servers.sh has filled";
    let is_there = |folder: &PathBuf| folder.join("key.pub").is_file();
    let folder = folder.filter(is_there);
    // Servers run with another root directory.
    (needs(folder.is_some(), why) && needs_superuser()).then_some(folder).flatten()
}

/// The Python of the servers' virtual environment.
pub(crate) fn python() -> Option<PathBuf> {
    let python = folder()?.join("python/bin/python");
    needs(python.is_file(), "paramiko and AsyncSSH are missing").then_some(python)
}

/// All servers of these programs. Skips for those that the tests cannot do without.
pub(crate) fn installed(programs: &[Program]) -> Vec<Installed> {
    let Some(folder) = folder() else { return Vec::new() };
    let mut found = Vec::new();
    for &program in programs {
        let (places, binary): (&[&str], &str) = match program {
            Program::Sshd => (&RELEASES, "usr/sbin/sshd"),
            Program::Dropbear => (&RELEASES, "usr/sbin/dropbear"),
            Program::Tinysshd => (&RELEASES, "usr/sbin/tinysshd"),
            Program::Paramiko | Program::AsyncSsh => (&["python"], "bin/python"),
            Program::Go => (&["go"], "server"),
        };
        for name in places {
            let here = folder.join(name);
            if here.join(binary).is_file() {
                found.push(Installed { name: (*name).to_owned(), program, folder: folder.clone() });
            } else if ["python", "go", RELEASE_NEEDED].contains(name) {
                needs(false, format!("{program:?} of {name} is missing"));
            } else {
                println!("skipped: {program:?} of {name} is missing");
            }
        }
    }
    found
}

impl Installed {
    /// The root directory of a release.
    fn root(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    /// The version of an sshd, as a number that compares: 9.2 is 902.
    pub(crate) fn version(&self) -> u32 {
        let text = std::fs::read_to_string(self.root().join("etc/server")).expect("a version");
        let numbers = text.split("OpenSSH_").nth(1).expect("a version");
        let mut numbers = numbers.split(|character: char| !character.is_ascii_digit());
        let mut next = || numbers.next().expect("a number").parse::<u32>().expect("a number");
        next() * 100 + next()
    }

    /// Starts it. `settings` are lines of sshd's configuration.
    pub(crate) fn start(&self, settings: &str) -> Server {
        let world = match self.program {
            Program::Paramiko | Program::AsyncSsh | Program::Go => World::new(),
            _ => World::within(&self.root().join("run"), |_| ()),
        };
        for name in ["host-key", "stranger"] {
            make_key(&world, name, "ed25519");
        }
        let (port, service) = match self.program {
            Program::Sshd => self.serve(&world, |port| self.sshd(&world, settings, port)),
            Program::Dropbear => {
                let mut command = self.within(&world, "/usr/bin/dropbearkey");
                command.args(["-t", "ed25519", "-f"]).arg(self.inside(&world, "dropbear-key"));
                Run::of(command).ok();
                self.serve(&world, |port| {
                    let mut command = self.within(&world, "/usr/sbin/dropbear");
                    command.args(["-F", "-E", "-s", "-P", "", "-p", &format!("127.0.0.1:{port}"), "-r"]);
                    command.arg(self.inside(&world, "dropbear-key"));
                    command
                })
            }
            Program::Tinysshd => (self.tinysshd(&world), None),
            Program::Paramiko | Program::AsyncSsh => self.serve(&world, |port| {
                let mut command = world.command(self.folder.join("python/bin/python"));
                command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ssh/servers.py"));
                let name = if self.program == Program::Paramiko { "paramiko" } else { "asyncssh" };
                command.args([name, &port.to_string()]).arg(world.path("host-key"));
                command.arg(self.folder.join("key.pub"));
                command
            }),
            Program::Go => self.serve(&world, |port| {
                let mut command = world.command(self.folder.join("go/server"));
                command.arg(port.to_string()).arg(world.path("host-key")).arg(self.folder.join("key.pub"));
                command
            }),
        };
        let address = ([127, 0, 0, 1], port).into();
        Server { installed: self.clone(), address, world, _service: service }
    }

    /// A path in a world below the root, as programs within see it.
    fn inside(&self, world: &World, name: &str) -> PathBuf {
        let root = self.root().canonicalize().expect("a root");
        Path::new("/").join(world.path(name).strip_prefix(root).expect("a path within"))
    }

    /// A program that runs with the release as its root.
    fn within(&self, world: &World, program: &str) -> Command {
        let mut command = world.command("chroot");
        command.arg(self.root()).arg(program);
        command
    }

    fn serve(&self, world: &World, command: impl Fn(u16) -> Command) -> (u16, Option<Service>) {
        let (port, service) = listening(|port| {
            let log = std::fs::File::create(world.path("log")).expect("a log");
            let mut command = command(port);
            command.stdout(Stdio::null()).stderr(log);
            Service::start(command)
        });
        (port, Some(service))
    }

    fn sshd(&self, world: &World, settings: &str, port: u16) -> Command {
        // The first value of a setting counts, and a Match block ends with the file.
        let (settings, blocks) = settings.find("Match ").map_or((settings, ""), |at| settings.split_at(at));
        let config = format!(
            "{settings}\nListenAddress 127.0.0.1\nPort {port}\nPidFile none\nStrictModes no\nUsePAM no\n\
             HostKey {}\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nPrintMotd no\nPrintLastLog no\nUseDNS no\n\
             MaxStartups 1000\n{blocks}\n",
            self.inside(world, "host-key").display()
        );
        std::fs::write(world.path("sshd_config"), config).expect("a configuration");
        let mut command = self.within(world, "/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(self.inside(world, "sshd_config"));
        command
    }

    /// tinysshd serves one connection, which is its input and output.
    fn tinysshd(&self, world: &World) -> u16 {
        let mut command = self.within(world, "/usr/sbin/tinysshd-makekey");
        command.arg(self.inside(world, "tiny"));
        Run::of(command).ok();
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (root, keys) = (self.root(), self.inside(world, "tiny"));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let input = std::os::fd::OwnedFd::from(stream.try_clone().expect("a socket"));
                let mut command = Command::new("chroot");
                command.arg(&root).args(["/usr/sbin/tinysshd", "-l"]).arg(&keys).stderr(Stdio::null());
                command.stdin(input).stdout(std::os::fd::OwnedFd::from(stream));
                let mut child = command.spawn().expect("tinysshd");
                // Whoever closes the connection ends it.
                thread::spawn(move || child.wait());
            }
        });
        port
    }
}

impl Server {
    /// The key that is let in, or one of the world.
    pub(crate) fn key(&self, name: &str) -> Key {
        let path = if name == "key" { self.installed.folder.join("key") } else { self.world.path(name) };
        Key(Arc::new(load_secret_key(path, None).expect("a key")))
    }

    /// A name for messages.
    pub(crate) fn name(&self) -> String {
        format!("{:?} of {}", self.installed.program, self.installed.name)
    }
}
