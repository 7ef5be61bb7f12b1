//! The contestants and their command lines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use crate::lab::figures::first_line;
use crate::lab::machine::{Direction, HOST, Job, KEEP, Machine};
use crate::lab::world::service::Service;
use crate::lab::world::skip::program;

const KSYNC_PROGRAM: &str = env!("CARGO_BIN_EXE_ksync");

/// True if this ksync can keep a connection for the next run.
static CAN_KEEP: LazyLock<bool> = LazyLock::new(|| {
    let help = Command::new(KSYNC_PROGRAM).arg("--help").stdin(Stdio::null()).output();
    help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--keep"))
});

/// The processes of a job.
pub(crate) struct Plan {
    pub(crate) command: Command,
    /// A process that must run beside the command.
    pub(crate) helper: Option<Service>,
}

impl From<Command> for Plan {
    fn from(command: Command) -> Plan {
        Plan { command, helper: None }
    }
}

/// A program, with options, to compare.
pub(crate) struct Contestant {
    /// Name for `--peer` and the tables.
    pub(crate) name: &'static str,
    /// Command line for readers of the table.
    pub(crate) about: &'static str,
    /// Programs that must be installed.
    programs: &'static [&'static str],
    /// True if the program keeps records between runs. Then no other program may change its
    /// destination.
    pub(crate) remembers: bool,
    plan: fn(&Job) -> Plan,
    /// Preparation of each run, outside of the measurement.
    pub(crate) prepare: fn(&Machine),
    /// The connection that the program keeps after a run, if it keeps one.
    pub(crate) kept: Option<Kept>,
    /// False if the program only connects.
    pub(crate) copies: bool,
}

/// A connection that a program keeps after a run.
#[derive(Clone, Copy)]
pub(crate) struct Kept {
    /// Waits until the next run would find it.
    pub(crate) settle: fn(&Machine),
    pub(crate) end: fn(&Machine),
}

const KSYNC: &str = "ksync";
const KSYNC_ANEW: &str = "ksync-anew";
/// Time for a keeper to connect: so many times the pause.
const KEEPER_ATTEMPTS: u32 = 50;
const KEEPER_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

const KSYNC_KEPT: &str = "ksync-kept";

fn nothing(_: &Machine) {}

const fn stateless(
    name: &'static str,
    about: &'static str,
    programs: &'static [&'static str],
    plan: fn(&Job) -> Plan,
) -> Contestant {
    Contestant { name, about, programs, remembers: false, plan, prepare: nothing, kept: None, copies: true }
}

/// A ksync with this preparation.
const fn own(
    name: &'static str,
    about: &'static str,
    plan: fn(&Job) -> Plan,
    prepare: fn(&Machine),
) -> Contestant {
    Contestant { name, about, programs: &[], remembers: true, plan, prepare, kept: None, copies: true }
}

/// All contestants. The others are compared with the first one.
pub(crate) const ALL: &[Contestant] = &[
    own(KSYNC, "ksync --delete", ksync, nothing),
    own(KSYNC_ANEW, "ksync --delete, with no agent there yet", ksync, Machine::forget_agent),
    Contestant {
        kept: Some(Kept { settle: wait_for_keeper, end: end_keeper }),
        ..own(KSYNC_KEPT, "ksync --delete, which keeps its connection", ksync_kept, nothing)
    },
    stateless("rsync", "rsync -a --delete", &["rsync"], |job| rsync(job, &[])),
    stateless("rsync-z", "rsync -az --delete", &["rsync"], |job| rsync(job, &["-z"])),
    stateless("rsync-nir", "rsync -a --delete --no-inc-recursive", &["rsync"], |job| {
        rsync(job, &["--no-inc-recursive"])
    }),
    stateless("rsync-inplace", "rsync -a --delete --inplace", &["rsync"], |job| rsync(job, &["--inplace"])),
    stateless("rsync-partial", "rsync -a --delete --partial", &["rsync"], |job| rsync(job, &["--partial"])),
    stateless("rsync-append", "rsync -a --delete --append-verify", &["rsync"], |job| {
        rsync(job, &["--append-verify"])
    }),
    Contestant {
        kept: Some(Kept { settle: nothing, end: end_master }),
        ..stateless("rsync-kept", "rsync -a --delete, ssh -o ControlMaster=auto", &["rsync"], rsync_kept)
    },
    Contestant { copies: false, ..stateless("ssh-true", "ssh true", &["ssh"], |job| ssh_true(job, &[])) },
    Contestant {
        copies: false,
        kept: Some(Kept { settle: nothing, end: end_master }),
        ..stateless("ssh-true-kept", "ssh -o ControlMaster=auto true", &["ssh"], |job| {
            ssh_true(job, &master_options(job.machine))
        })
    },
    stateless("scp", "scp -r -p", &["scp"], scp),
    stateless("sftp", "sftp -b (put -R -p)", &["sftp"], sftp),
    stateless("tar-zstd", "tar | zstd -1 | ssh tar", &["tar", "zstd"], tar),
    stateless("rclone", "rclone sync over sftp", &["rclone"], rclone),
    Contestant {
        name: "unison",
        about: "unison -batch -times",
        programs: &["unison"],
        remembers: true,
        plan: unison,
        prepare: nothing,
        kept: None,
        copies: true,
    },
];

impl Contestant {
    /// Reports if the contestant is ksync.
    pub(crate) fn is_ksync(&self) -> bool {
        [KSYNC, KSYNC_ANEW, KSYNC_KEPT].contains(&self.name)
    }

    /// Reports if the contestant finds the agent missing.
    pub(crate) fn is_anew(&self) -> bool {
        self.name == KSYNC_ANEW
    }

    /// First missing program, or ability.
    pub(crate) fn missing(&self) -> Option<&'static str> {
        if self.name == KSYNC_KEPT && !*CAN_KEEP {
            return Some("ksync --keep");
        }
        self.programs.iter().copied().find(|name| program(name).is_none())
    }

    /// Version text of the program.
    pub(crate) fn version(&self) -> Option<String> {
        let name = *self.programs.last()?;
        let argument = match name {
            "scp" | "sftp" | "ssh" => return first_line(Command::new(program("ssh")?).arg("-V")),
            "unison" => "-version",
            "rclone" => "version",
            _ => "--version",
        };
        first_line(Command::new(program(name)?).arg(argument))
    }

    pub(crate) fn plan(&self, job: &Job) -> Plan {
        (self.plan)(job)
    }
}

/// Source and destination of a job, in that order. `far` formats the one on the machine.
fn endpoints(job: &Job, far: impl Fn(&Path) -> String) -> [String; 2] {
    let near = |path: &Path| path.display().to_string();
    match job.direction {
        Direction::Up => [near(job.source), far(job.destination)],
        Direction::Down => [far(job.source), near(job.destination)],
    }
}

fn ksync(job: &Job) -> Plan {
    let mut command = job.machine.ksync();
    // In the case `Cut` the second run is measured, so ksync must not retry by itself.
    command.args(["--no-progress", "--delete", "--retries", "0"]);
    command.args(endpoints(job, |path| job.machine.endpoint(path)));
    command.into()
}

fn ksync_kept(job: &Job) -> Plan {
    let mut plan = ksync(job);
    plan.command.env_remove(KEEP);
    plan
}

/// Waits for the keeper, which begins to connect only when its run is over.
fn wait_for_keeper(machine: &Machine) {
    let list = || machine.world.command(KSYNC_PROGRAM).args(["keep", "list", "--json"]).output();
    for _ in 0..KEEPER_ATTEMPTS {
        if list().is_ok_and(|output| output.stdout.contains(&b'{')) {
            break;
        }
        std::thread::sleep(KEEPER_PAUSE);
    }
}

fn end_keeper(machine: &Machine) {
    wait_for_keeper(machine);
    let _ = machine.world.command(KSYNC_PROGRAM).args(["keep", "stop"]).stdin(Stdio::null()).output();
}

/// Options of ssh for a connection that stays open after the first use.
fn master_options(machine: &Machine) -> [String; 6] {
    let socket = format!("ControlPath={}", machine.world.path("master").display());
    ["-o", "ControlMaster=auto", "-o", "ControlPersist=300", "-o", &socket].map(str::to_owned)
}

fn end_master(machine: &Machine) {
    let mut command = machine.world.command("ssh");
    command.arg("-F").arg(machine.ssh_config()).args(master_options(machine)).args(["-O", "exit", HOST]);
    let _ = command.stdin(Stdio::null()).output();
}

fn ssh_true(job: &Job, options: &[String]) -> Plan {
    let mut command = job.machine.world.command("ssh");
    command.arg("-F").arg(job.machine.ssh_config()).args(options).args([HOST, "true"]);
    command.into()
}

fn rsync_kept(job: &Job) -> Plan {
    let ssh = format!("{} {}", job.machine.ssh(), master_options(job.machine).join(" "));
    rsync_over(job, &[], &ssh)
}

fn rsync(job: &Job, options: &[&str]) -> Plan {
    rsync_over(job, options, &job.machine.ssh())
}

fn rsync_over(job: &Job, options: &[&str], ssh: &str) -> Plan {
    let mut command = job.machine.world.command("rsync");
    command.args(["-a", "--delete"]).args(options).args(["-e", ssh]);
    let [source, destination] = endpoints(job, |path| format!("{HOST}:{}", path.display()));
    command.arg(format!("{source}/")).arg(format!("{destination}/"));
    command.into()
}

fn scp(job: &Job) -> Plan {
    let mut command = job.machine.world.command("scp");
    command.arg("-F").arg(job.machine.ssh_config()).args(["-q", "-r", "-p"]);
    command.args(endpoints(job, |path| format!("{HOST}:{}", path.display())));
    command.into()
}

/// sftp exits with an error after a failure only in batch mode.
fn sftp(job: &Job) -> Plan {
    let [source, destination] = [job.source, job.destination].map(Path::display);
    let batch = match job.direction {
        Direction::Up => format!("mkdir {destination}\nput -R -p {source}/. {destination}\n"),
        Direction::Down => format!("get -R -p {source}/. {destination}\n"),
    };
    let file = job.machine.world.path("batch");
    fs::write(&file, batch).expect("a batch");
    let mut command = job.machine.world.command("sftp");
    command.arg("-F").arg(job.machine.ssh_config()).arg("-q").arg("-b").arg(file).arg(HOST);
    command.into()
}

fn tar(job: &Job) -> Plan {
    let pack = format!("tar -C {} -cf - . | zstd -1 -q -c", job.source.display());
    let directory = job.destination.display();
    let unpack = format!("mkdir -p {directory} && zstd -d -q -c | tar -C {directory} -xf -");
    let ssh = job.machine.ssh();
    let line = match job.direction {
        Direction::Up => format!("{pack} | {ssh} {HOST} '{unpack}'"),
        Direction::Down => format!("{ssh} {HOST} '{pack}' | ({unpack})"),
    };
    let mut command = job.machine.world.command("sh");
    command.arg("-c").arg(line);
    command.into()
}

/// Uses a plain port through websocat: rclone can call ssh only since 1.64.
fn rclone(job: &Job) -> Plan {
    let ((host, port), helper) = job.machine.plain();
    let world = &job.machine.world;
    let known_hosts = world.path("known_hosts_of_port");
    let line = fs::read_to_string(world.path("known_hosts")).expect("known_hosts");
    fs::write(&known_hosts, line.replacen(HOST, &format!("[{host}]:{port}"), 1)).expect("known_hosts");
    let mut command = world.command("rclone");
    command.args(["sync", "--create-empty-src-dirs", "--config", "/dev/null"]);
    command.args(["--sftp-host", &host.to_string(), "--sftp-port", &port.to_string()]);
    command.args(["--sftp-user", job.machine.user()]).arg("--sftp-key-file").arg(world.path("key"));
    command.arg("--sftp-known-hosts-file").arg(known_hosts);
    command.args(endpoints(job, |path| format!(":sftp:{}", path.display())));
    Plan { command, helper }
}

/// unison keeps its records in the home directories of both sides.
fn unison(job: &Job) -> Plan {
    let mut command = job.machine.world.command("unison");
    command.args(["-ui", "text", "-batch", "-times", "-confirmbigdel=false", "-silent"]);
    command.arg("-sshargs").arg(format!("-F {}", job.machine.ssh_config().display()));
    let [near, far] = match job.direction {
        Direction::Up => [job.source, job.destination],
        Direction::Down => [job.destination, job.source],
    };
    command.arg(near).arg(format!("ssh://{HOST}/{}", far.display()));
    command.into()
}

/// Path of a contestant's copy.
pub(crate) fn destination(machine: &Machine, contestant: &Contestant, direction: Direction) -> PathBuf {
    machine.world.path(format!("to-{}-{}", contestant.name, direction.name()))
}
