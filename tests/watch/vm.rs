//! A VM emulator in a process of its own, and the link to it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::watcher::{Direction, Watcher};
use crate::world::link::Link;
use crate::world::{Emulator, World, wait_for};

/// A running `ksync sandbox`, reached over a link.
pub(crate) struct Vm<'w> {
    world: &'w World,
    pub(crate) link: Link,
    emulator: Emulator,
}

impl<'w> Vm<'w> {
    /// Starts a sandbox, and writes `vm.json` for `--setup`.
    pub(crate) fn start(world: &'w World) -> Vm<'w> {
        let (emulator, port, setup) = serve(world);
        let link = Link::to((Ipv4Addr::LOCALHOST, port));
        let setup = setup.replace(&format!(":{port}"), &format!(":{}", link.port));
        fs::write(world.path("vm.json"), setup).unwrap();
        Vm { world, link, emulator }
    }

    /// Ends the sandbox and starts another one in its place, with other keys.
    pub(crate) fn replace(&mut self) {
        self.end();
        let (emulator, port, _) = serve(self.world);
        self.link.lead_to(port);
        self.emulator = emulator;
    }

    /// Starts a watch over the link, and waits until the destination is a copy.
    #[track_caller]
    pub(crate) fn watch(&self, direction: Direction, options: &[&str]) -> Watcher<'w> {
        let watcher = self.begin_watch(direction, options);
        watcher.event("ready");
        watcher
    }

    /// Starts a watch over the link.
    pub(crate) fn begin_watch(&self, direction: Direction, options: &[&str]) -> Watcher<'w> {
        let far = |name: &str| format!(":{}", self.world.path(name).display());
        let (source, destination) = match direction {
            Direction::Down => (far("src"), "dst".to_owned()),
            _ => ("src".to_owned(), far("dst")),
        };
        let mut command = self.world.ksync(["--watch", "--json", "--setup", "vm.json"]);
        command.args(options).args([source, destination]);
        Watcher::of(self.world, direction.near(), command)
    }

    /// The command for one sync over the link, not started yet.
    pub(crate) fn sync(&self, direction: Direction, options: &[&str]) -> Command {
        let far = |name: &str| format!(":{}", self.world.path(name).display());
        let (source, destination) = match direction {
            Direction::Down => (far("src"), "dst".to_owned()),
            _ => ("src".to_owned(), far("dst")),
        };
        let mut command = self.world.ksync(["--setup", "vm.json"]);
        command.args(options).args([source, destination]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The one agent that runs in the VM.
    #[track_caller]
    pub(crate) fn agent(&self) -> Pid {
        let home = self.world.path("vm");
        wait_for("one agent", || match programs_below(&home)[..] {
            [agent] => Some(agent),
            _ => None,
        })
    }

    pub(crate) fn end(&mut self) {
        self.emulator.end();
    }
}

/// Starts a sandbox. Returns its port, and the setup that it printed.
fn serve(world: &World) -> (Emulator, u16, String) {
    let mut command = world.ksync(["sandbox", "--json", "--listen", "127.0.0.1:0", "--home"]);
    command.arg(world.path("vm"));
    let emulator = Emulator::of(command);
    let setup = emulator.told["setup"].to_string();
    let digits = setup.split("ws://127.0.0.1:").nth(1).expect("a URL").chars();
    let digits: String = digits.take_while(char::is_ascii_digit).collect();
    (emulator, digits.parse().expect("a port"), setup)
}

/// Processes whose program is in this folder.
pub(crate) fn programs_below(folder: &Path) -> Vec<Pid> {
    let is_one = |process: &Path| fs::read_link(process.join("exe")).is_ok_and(|exe| exe.starts_with(folder));
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(|entry| Some(entry.ok()?.path()));
    let number = |process: PathBuf| process.file_name()?.to_str()?.parse().ok();
    processes.filter(|process| is_one(process)).filter_map(number).filter_map(Pid::from_raw).collect()
}

/// Stops a process, and waits until each of its threads has stopped. A thread that still runs could
/// read events that are meant to pile up.
#[track_caller]
pub(crate) fn stop(process: Pid) {
    kill_process(process, Signal::STOP).expect("a signal");
    let stands = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        text.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"))
    };
    let tasks = || fs::read_dir(format!("/proc/{process}/task")).expect("a process").map_while(Result::ok);
    wait_for("a process to stand still", || tasks().all(stands).then_some(()));
}

/// CPU time of a process so far, in hundredths of a second.
pub(crate) fn ticks(process: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).expect("a process");
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Memory of a process in bytes, without mapped files.
pub(crate) fn memory_bytes(process: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
