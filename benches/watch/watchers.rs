//! The watchers and their command lines.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::figures::first_line;
use crate::lab::machine::{Direction, HOST, Job, Machine};
use crate::lab::memory::end_group;
use crate::lab::world::service::Service;
use crate::lab::world::skip::program;

/// Timeout of a first sync, a connection, or a save.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(120);

/// One or more programs that keep a destination equal to a source.
pub(crate) struct Watcher {
    /// Name for `--peer` and the tables.
    pub(crate) name: &'static str,
    /// Command line for readers of the table.
    pub(crate) about: &'static str,
    /// Programs that must be installed.
    programs: &'static [&'static str],
    plan: fn(&Job, &Ssh) -> Command,
    /// True for a watcher that reuses one ssh connection.
    is_kept: bool,
}

/// The `ssh` command of a peer.
pub(crate) struct Ssh {
    command: String,
}

const KSYNC: &str = "ksync";

/// All watchers. The others are compared with the first one.
pub(crate) const ALL: &[Watcher] = &[
    Watcher {
        name: KSYNC,
        about: "ksync --watch --delete --json",
        programs: &[],
        plan: ksync,
        is_kept: false,
    },
    Watcher {
        name: "lsyncd",
        about: "lsyncd, default.rsync, delay 0",
        programs: &["rsync", "lsyncd"],
        plan: lsyncd,
        is_kept: false,
    },
    Watcher {
        name: "lsyncd-kept",
        about: "the same over one ssh connection that is kept",
        programs: &["rsync", "lsyncd"],
        plan: lsyncd,
        is_kept: true,
    },
    Watcher {
        name: "inotify-rsync",
        about: "inotifywait -m -r | rsync -a --delete",
        programs: &["bash", "rsync", "inotifywait"],
        plan: inotify_rsync,
        is_kept: false,
    },
    Watcher {
        name: "inotify-kept",
        about: "the same over one ssh connection that is kept",
        programs: &["bash", "rsync", "inotifywait"],
        plan: inotify_rsync,
        is_kept: true,
    },
];

impl Watcher {
    /// Makes a program that is called once, and watches nothing.
    pub(crate) const fn called(
        name: &'static str,
        about: &'static str,
        programs: &'static [&'static str],
        plan: fn(&Job, &Ssh) -> Command,
    ) -> Watcher {
        Watcher { name, about, programs, plan, is_kept: false }
    }

    /// Command of a watcher without a shared ssh connection.
    pub(crate) fn command(&self, job: &Job) -> Command {
        (self.plan)(job, &Ssh { command: job.machine.ssh() })
    }

    /// Reports if the watcher is ksync.
    pub(crate) fn is_ksync(&self) -> bool {
        self.name == KSYNC
    }

    /// First missing program.
    pub(crate) fn missing(&self) -> Option<&'static str> {
        self.programs.iter().copied().find(|name| program(name).is_none())
    }

    /// Version text of the program.
    pub(crate) fn version(&self) -> Option<String> {
        match *self.programs.last()? {
            "lsyncd" => first_line(Command::new(program("lsyncd")?).arg("-version")),
            name => first_line(Command::new(program(name)?).arg("--help")),
        }
    }

    /// Starts to watch.
    pub(crate) fn start(&'static self, job: &Job) -> Result<Running, String> {
        let (ssh, master) =
            if self.is_kept { kept(job.machine, self.name)? } else { (job.machine.ssh(), None) };
        let log = job.machine.world.path(format!("{}.log", self.name));
        let mut command = (self.plan)(job, &Ssh { command: ssh });
        command.stdin(Stdio::null()).stderr(File::create(&log).expect("a log"));
        command.stdout(if self.is_ksync() { Stdio::piped() } else { Stdio::null() });
        // The process group lets the owner kill the whole pipeline.
        let mut child = command.process_group(0).spawn().map_err(|error| error.to_string())?;
        let events = child.stdout.take().map(|stdout| {
            let (tell, events) = channel();
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let event = serde_json::from_str::<Value>(&line).unwrap_or_default();
                    if tell.send(event).is_err() {
                        return;
                    }
                }
            });
            events
        });
        Ok(Running { child, events, log, _master: master })
    }
}

/// A running watcher, killed when dropped.
pub(crate) struct Running {
    child: Child,
    /// Events from ksync.
    pub(crate) events: Option<Receiver<Value>>,
    log: PathBuf,
    _master: Option<Service>,
}

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for ksync's report that the destination is a copy.
    pub(crate) fn wait_until_ready(&self) -> Result<Value, String> {
        let events = self.events.as_ref().ok_or("there is nobody to tell")?;
        let start = Instant::now();
        loop {
            match events.recv_timeout(TIMEOUT.saturating_sub(start.elapsed())) {
                Ok(event) if event["event"] == "ready" => return Ok(event),
                Ok(_) => {}
                Err(_) => return Err(format!("it is not ready: {}", self.last_words())),
            }
        }
    }

    /// Takes all events so far.
    pub(crate) fn told(&self) -> Vec<Value> {
        self.events.iter().flat_map(Receiver::try_iter).collect()
    }

    /// Last lines of the log.
    pub(crate) fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(3)..].join(" / ")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        end_group(self.child.id());
        let _ = self.child.wait();
    }
}

/// Starts a shared ssh connection, and returns the command that uses it.
fn kept(machine: &Machine, name: &str) -> Result<(String, Option<Service>), String> {
    let socket = machine.world.path(format!("{name}.ctl"));
    let _ = fs::remove_file(&socket);
    let mut command = machine.world.command("ssh");
    command.arg("-F").arg(machine.ssh_config()).arg("-M").arg("-S").arg(&socket).args(["-N", HOST]);
    let master = Service::start(command);
    let start = Instant::now();
    while !socket.exists() {
        if start.elapsed() > TIMEOUT {
            return Err("ssh makes no connection to keep".to_owned());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok((format!("{} -S {} -o ControlMaster=no", machine.ssh(), socket.display()), Some(master)))
}

fn ksync(job: &Job, _: &Ssh) -> Command {
    let mut command = job.machine.ksync();
    command.args(["--watch", "--delete", "--json"]);
    let near = |path: &Path| path.display().to_string();
    match job.direction {
        Direction::Up => command.arg(near(job.source)).arg(job.machine.endpoint(job.destination)),
        Direction::Down => command.arg(job.machine.endpoint(job.source)).arg(near(job.destination)),
    };
    command
}

fn lsyncd(job: &Job, ssh: &Ssh) -> Command {
    let world = &job.machine.world;
    let config = format!(
        "settings {{ nodaemon = true, insist = true }}\nsync {{ default.rsync, source = \"{}\", \
         target = \"{HOST}:{}/\", delay = 0, delete = true, rsync = {{ archive = true, rsh = \"{}\" }} }}\n",
        job.source.display(),
        job.destination.display(),
        ssh.command,
    );
    let name = job.destination.file_name().expect("a name").to_string_lossy();
    let file = world.path(format!("lsyncd-of-{name}.lua"));
    fs::write(&file, config).expect("a configuration");
    let mut command = world.command("lsyncd");
    command.arg("-nodaemon").arg(file);
    command
}

/// Events during rsync's run lead to one further run, without a delay.
fn inotify_rsync(job: &Job, ssh: &Ssh) -> Command {
    let script = format!(
        "inotifywait -m -q -r -e close_write,create,delete,move,attrib --format x '{source}' | \
         while read -r _; do while read -t 0; do read -r _; done; \
         rsync -a --delete -e '{}' '{source}/' '{HOST}:{}/'; done",
        ssh.command,
        job.destination.display(),
        source = job.source.display(),
    );
    let mut command = job.machine.world.command("bash");
    command.arg("-c").arg(script);
    command
}
