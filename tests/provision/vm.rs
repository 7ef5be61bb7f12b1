//! A machine like a VM, and operations on it.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::host::{Host, namespace_of, processes_in};
use crate::world::skip::{program, skip};
use crate::world::{World, wait_for};

const BOOT: &str = include_str!("boot.sh");
const OFFICIAL: &str = include_str!("official.sh");
const PROVISION: &str = include_str!("../../src/client/kernel/provision.sh");
const CLEANUP: &str = include_str!("../../src/client/kernel/cleanup.sh");
const DIAGNOSE: &str = include_str!("../../src/client/kernel/diagnose.sh");

/// Programs that the machine that runs the tests must have.
const PROGRAMS: [&str; 12] = [
    "supervisord",
    "supervisorctl",
    "sshd",
    "ssh",
    "ssh-keygen",
    "websocat",
    "unshare",
    "nsenter",
    "flock",
    "curl",
    "apt-get",
    "ip",
];

/// Search path of programs on the VM.
const VM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Exit code of `boot.sh` if it cannot make such a machine.
const IMPOSSIBLE: i32 = 77;

/// Timeout of a command. The script waits up to 80 s for apt-get, but here apt-get need not wait.
const RUN_MAX: Duration = Duration::from_secs(60);

/// One VM at a time, because each keeps both cores of a small machine busy.
static ONE: Mutex<()> = Mutex::new(());

/// Software on the VM before its setup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Image {
    /// sshd and websocat, unconfigured and without host keys.
    New,
    /// No sshd; apt-get can install it from downloaded packages.
    Old,
    /// No websocat.
    NoWebsocat,
    /// Neither sshd nor websocat, and nothing to install them from.
    Bare,
}

/// Runs a test on a VM, and asserts that it leaves nothing on the machine that runs the tests.
#[track_caller]
pub(crate) fn on_vm(image: Image, test: impl FnOnce(&Vm)) {
    let _one: MutexGuard<'_, ()> = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let host = Host::now();
    let vm = match Vm::start(image) {
        Ok(vm) => vm,
        Err(missing) => return skip(missing),
    };
    let namespace = namespace_of(vm.first.to_string()).expect("a namespace");
    assert_ne!(Some(namespace.as_path()), namespace_of("self").as_deref());
    test(&vm);
    assert!(processes_in(&namespace) > 0);
    drop(vm);
    wait_for("the last process", || (processes_in(&namespace) == 0).then_some(()));
    host.assert_unchanged();
}

/// A running machine, killed when dropped.
pub(crate) struct Vm {
    world: World,
    unshare: Child,
    /// Pid of its first process in the namespace of the machine that runs the tests.
    pub(crate) first: i32,
}

/// Exit code and output of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// Time until no process held the output any more.
    pub(crate) took: Duration,
}

impl Ran {
    #[track_caller]
    pub(crate) fn ok(self) -> Ran {
        assert_eq!(self.code, Some(0), "stdout:\n{}stderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Value of a line in the script's output.
    pub(crate) fn told(&self, what: &str) -> Option<&str> {
        self.stdout.lines().find_map(|line| line.strip_prefix("KSYNC ")?.strip_prefix(what)).map(str::trim)
    }
}

impl Vm {
    /// Boots a machine, or returns the missing requirement.
    fn start(image: Image) -> Result<Vm, String> {
        if !geteuid().is_root() {
            return Err("only root can make a machine like a VM".to_owned());
        }
        let found: Vec<_> = PROGRAMS.iter().map(|name| program(name).ok_or(name)).collect();
        if let Some(missing) = found.iter().find_map(|found| found.as_ref().err()) {
            return Err(format!("{missing} is missing"));
        }
        let packages = match (image, std::env::var_os("KSYNC_PEERS_PACKAGES")) {
            (Image::Old, None) => return Err("KSYNC_PEERS_PACKAGES is not set".to_owned()),
            (_, packages) => packages.unwrap_or_default(),
        };
        let variant = match image {
            Image::New => "new",
            Image::Old => "old",
            Image::NoWebsocat => "no-websocat",
            Image::Bare => "bare",
        };
        let world = World::new();
        world.tree("vm");
        let log = File::create(world.path("boot.log")).expect("a log");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--net", "bash", "-c", BOOT, "boot"]);
        command.arg(world.path("vm")).arg(program("websocat").expect("websocat"));
        command.arg(packages).arg(variant).env_clear().env("PATH", VM_PATH).env("HOME", "/root");
        command.current_dir("/").stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        let mut vm = Vm { unshare: command.spawn().expect("unshare"), world, first: 0 };
        wait_for("a machine", || vm.try_boot())?;
        Ok(vm)
    }

    /// Checks if the machine has come up or failed.
    fn try_boot(&mut self) -> Option<Result<(), String>> {
        if let Some(status) = self.unshare.try_wait().expect("wait") {
            let said = fs::read_to_string(self.world.path("boot.log")).unwrap_or_default();
            let is_impossible = status.code() == Some(IMPOSSIBLE) || said.starts_with("unshare: ");
            assert!(is_impossible, "no machine: {status}\n{said}");
            return Some(Err(format!("a machine like a VM cannot be made: {said}")));
        }
        let parent = self.unshare.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
        self.first = children.split_whitespace().next()?.parse().ok()?;
        // These files exist only after it has changed its root; the real machine has none.
        let run = PathBuf::from(format!("/proc/{}/root/run", self.first));
        let is_up = run.join("vm-of-a-test").exists() && run.join("supervisor.sock").exists();
        is_up.then_some(Ok(()))
    }

    /// A command on the machine, with the environment of a service.
    fn command(&self, args: &[&str]) -> Command {
        command_at(self.first, args)
    }

    /// Runs a command until it has ended and no process holds its output, like the platform's exec.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.end_of(self.spawn(args))
    }

    fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).spawn().expect("nsenter")
    }

    #[track_caller]
    fn end_of(&self, mut child: Child) -> Ran {
        let start = Instant::now();
        let stdout = drain(child.stdout.take().expect("stdout"));
        let stderr = drain(child.stderr.take().expect("stderr"));
        let mut output = |stream: Receiver<String>| {
            stream.recv_timeout(RUN_MAX.saturating_sub(start.elapsed())).unwrap_or_else(|_| {
                let ended = child.try_wait().expect("wait");
                panic!("after {RUN_MAX:?} somebody holds the output; the command itself: {ended:?}");
            })
        };
        let (stdout, stderr) = (output(stdout), output(stderr));
        let took = start.elapsed();
        Ran { code: child.wait().expect("wait").code(), stdout, stderr, took }
    }

    /// Runs a line of shell, asserts its success and returns its output.
    #[track_caller]
    pub(crate) fn sh(&self, line: &str) -> String {
        self.run(&["bash", "-c", line]).ok().stdout
    }

    /// Sets the machine up, with the platform's call.
    #[track_caller]
    pub(crate) fn provision(&self, key: &str) -> Ran {
        self.provision_at_once(&[key]).remove(0)
    }

    /// Sets the machine up with several calls at once.
    #[track_caller]
    pub(crate) fn provision_at_once(&self, keys: &[&str]) -> Vec<Ran> {
        let running: Vec<_> = keys.iter().map(|key| self.spawn(&call(PROVISION, &[*key]))).collect();
        running.into_iter().map(|child| self.end_of(child)).collect()
    }

    /// Sets the machine up with an uploaded bridge: written as the files API writes it, and passed
    /// with its hash.
    #[track_caller]
    pub(crate) fn provision_with_bridge(&self, key: &str, sha256: &str) -> Ran {
        let file = "/usr/local/lib/ksync/brought.gz";
        let there = PathBuf::from(format!("/proc/{}/root{file}", self.first));
        fs::create_dir_all(there.parent().expect("a parent")).expect("a directory");
        fs::write(&there, ksync::bridge().gzip).expect("a file");
        let ran = self.run(&call(PROVISION, &[key, sha256, file]));
        assert!(!there.exists(), "what was brought stays packed");
        ran
    }

    /// Runs the diagnosis script and returns its output.
    #[track_caller]
    pub(crate) fn diagnose(&self) -> String {
        self.run(&["bash", "-c", DIAGNOSE]).ok().stdout
    }

    #[track_caller]
    pub(crate) fn clean_up(&self, keys: &[&str]) -> Ran {
        self.run(&call(CLEANUP, keys))
    }

    /// `ksync` on the machine that runs the tests, in the network namespace of this machine.
    pub(crate) fn ksync(&self, args: &[&str]) -> crate::world::Run {
        let plain = self.world.ksync(args);
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first.to_string(), "--net", "--"]);
        command.arg(plain.get_program()).args(plain.get_args()).env_clear();
        for (name, value) in plain.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        command.current_dir(self.world.path(""));
        crate::world::Run::of(command)
    }

    /// The test's files outside of the machine.
    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    /// Sets the machine up like the official CLI.
    #[track_caller]
    pub(crate) fn provision_officially(&self, key: &str) -> Ran {
        self.run(&["bash", "-c", OFFICIAL, "official", key])
    }

    /// Makes a key and returns its public half.
    #[track_caller]
    pub(crate) fn make_key(&self, name: &str) -> String {
        let line = format!("ssh-keygen -q -t ed25519 -N '' -C {name} -f /tmp/{name} && cat /tmp/{name}.pub");
        self.sh(&line).trim_end().to_owned()
    }

    /// Logs in with a key through the bridge, to the host with this host key, and runs a command.
    #[track_caller]
    pub(crate) fn log_in(&self, name: &str, host_key: &str, command: &str) -> Ran {
        self.sh(&format!("echo 'localhost {host_key}' >/tmp/known_hosts"));
        let (identity, bridge) = (
            format!("/tmp/{name}"),
            "ProxyCommand=/opt/client/websocat-of-a-client --binary ws://127.0.0.1:2222",
        );
        let mut args = vec!["timeout", "20", "ssh", "-F", "/dev/null", "-i", &identity, "-o", bridge];
        for option in [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "HostKeyAlgorithms=ssh-ed25519",
            "StrictHostKeyChecking=yes",
        ] {
            args.extend(["-o", option]);
        }
        args.extend(["-o", "UserKnownHostsFile=/tmp/known_hosts", "root@localhost", command]);
        self.run(&args)
    }

    /// Pid of a running service.
    #[track_caller]
    pub(crate) fn service(&self, name: &str) -> u32 {
        let status = self.sh(&format!("supervisorctl status {name}"));
        assert!(status.contains("RUNNING"), "{status}");
        self.sh(&format!("supervisorctl pid {name}")).trim().parse().expect("a process")
    }

    /// Number of times that supervisord has started a service.
    #[track_caller]
    pub(crate) fn starts_of(&self, name: &str) -> usize {
        let log = self.sh("cat /var/log/supervisord.log");
        log.lines().filter(|line| line.contains(&format!("spawned: '{name}'"))).count()
    }

    /// Lines of `authorized_keys`.
    #[track_caller]
    pub(crate) fn keys(&self) -> Vec<String> {
        self.sh("cat /root/.ssh/authorized_keys").lines().map(str::to_owned).collect()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // The death of its first process ends all others in its namespace, and then its mounts.
        if let Some(first) = Pid::from_raw(self.first) {
            let _ = kill_process(first, Signal::KILL);
        } else {
            let _ = self.unshare.kill();
        }
        let _ = self.unshare.wait();
    }
}

/// A command on the machine whose first process this is.
pub(crate) fn command_at(first: i32, args: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &first.to_string(), "--mount", "--pid", "--net", "--root", "--wd", "--"]);
    command.args(args).env_clear().env("PATH", VM_PATH).env("HOME", "/root");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Builds the platform's call of a script.
fn call<'a>(script: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    let lock = ["flock", "-o", "-w", "60", "-E", "75", "/run/ksync-provision.lock"];
    [&lock[..], &["bash", "-c", script, "ksync"], args].concat()
}

/// Reads a stream to its end, on another thread.
fn drain(mut stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}
