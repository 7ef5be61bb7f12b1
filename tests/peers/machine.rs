//! A machine to sync with: sshd on loopback with one authorised key, and websocat bridges in front
//! of it.

use std::fs;
use std::process::Stdio;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::world::service::{Service, Sshd, listening, make_key, websocat};
use crate::world::skip::needs_programs;
use crate::world::{Run, World};

/// An sshd, with the keys for its login.
pub(crate) struct Machine {
    pub(crate) world: World,
    pub(crate) port: u16,
    _sshd: Sshd,
    _turn: Turn,
}

/// Number of machines that run, or `None` while one runs alone.
static RUNNING: Mutex<Option<usize>> = Mutex::new(Some(0));
static ENDED: Condvar = Condvar::new();

/// A machine's permission to run.
struct Turn;

impl Turn {
    /// Waits until this machine may run: alone, or beside others.
    fn take(is_alone: bool) -> Turn {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let has_to_wait = |running: &mut Option<usize>| running.is_none_or(|count| is_alone && count > 0);
        let mut running = ENDED.wait_while(running, has_to_wait).unwrap_or_else(PoisonError::into_inner);
        *running = running.filter(|_| !is_alone).map(|count| count + 1);
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        *running = Some(running.map_or(0, |count| count - 1));
        ENDED.notify_all();
    }
}

impl Machine {
    /// Starts a machine; `None` if peers are missing.
    pub(crate) fn start() -> Option<Machine> {
        Machine::with("")
    }

    /// Starts a machine while no other one runs, for a test that measures.
    pub(crate) fn start_alone() -> Option<Machine> {
        Machine::with_turn("", Turn::take(true))
    }

    /// Starts a machine with extra lines in sshd's configuration.
    pub(crate) fn with(settings: &str) -> Option<Machine> {
        Machine::with_turn(settings, Turn::take(false))
    }

    fn with_turn(settings: &str, turn: Turn) -> Option<Machine> {
        if !needs_programs(&["sshd", "ssh", "ssh-keygen", "websocat", "rsync"]) {
            return None;
        }
        let world = World::new();
        world.tree("machine/home");
        make_key(&world, "host-key", "ed25519");
        make_key(&world, "key", "ed25519");
        fs::copy(world.path("key.pub"), world.path("machine/authorized")).expect("a key");
        let path = |name: &str| world.path(name).display().to_string();
        // The home directory is empty, because shell start files cost time.
        let settings = format!(
            "{settings}\nHostKey {}\nAuthorizedKeysFile {}\nSetEnv HOME={}",
            path("host-key"),
            path("machine/authorized"),
            path("machine/home")
        );
        let sshd = Sshd::start(&world, &settings);
        let machine = Machine { port: sshd.port, _sshd: sshd, _turn: turn, world };
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
            make_key(&self.world, "other-key", "ed25519");
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
        let (port, service) = websocat(&self.world, "ws-l", &format!("tcp:127.0.0.1:{}", self.port));
        (format!("ws://127.0.0.1:{port}"), service)
    }

    /// Starts the bridge that ksync uploads to VMs without websocat.
    pub(crate) fn own_bridge(&self) -> (String, Service) {
        let program = self.world.unpack("ksync-bridge", ksync::bridge().gzip);
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
