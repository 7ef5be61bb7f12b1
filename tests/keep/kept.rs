//! A machine whose connections are kept.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::machine::Machine;
use crate::world::link::Link;
use crate::world::{Run, wait_for};

/// A machine behind a link, and the keepers of its connections.
pub(crate) struct Kept {
    pub(crate) machine: Machine,
    pub(crate) link: Link,
    runtime: PathBuf,
}

/// A process that keeps a connection.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    pub(crate) pid: i32,
    pub(crate) served: u64,
}

impl Keeper {
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_raw(self.pid).unwrap(), signal);
    }

    /// True if the process runs, and is none of another program.
    pub(crate) fn is_alive(&self) -> bool {
        std::fs::read(format!("/proc/{}/cmdline", self.pid))
            .is_ok_and(|line| line.ends_with(b"keep\0serve\0"))
    }
}

impl Kept {
    /// Starts a machine; `None` if peers are missing.
    pub(crate) fn start() -> Option<Kept> {
        Self::of(Machine::start()?)
    }

    pub(crate) fn of(machine: Machine) -> Option<Kept> {
        let link = Link::to(([127, 0, 0, 1], machine.port));
        let runtime = machine.world.path("run");
        std::fs::create_dir(&runtime).unwrap();
        std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o700)).unwrap();
        let kept = Kept { machine, link, runtime };
        kept.trust("host-key");
        Some(kept)
    }

    /// Records a key as the machine's, under the link's port.
    pub(crate) fn trust(&self, key: &str) {
        let text = std::fs::read_to_string(self.machine.world.path(format!("{key}.pub"))).unwrap();
        let line = format!("[127.0.0.1]:{} {text}", self.link.port);
        self.machine.world.tree("home/.ssh").file("known_hosts", line).mode("known_hosts", 0o600);
    }

    /// A directory of the machine, over the link.
    pub(crate) fn there(&self, name: &str) -> String {
        format!("ssh://root@127.0.0.1:{}{}", self.link.port, self.machine.world.path(name).display())
    }

    /// `ksync` that keeps its connection.
    pub(crate) fn ksync<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.machine.world.ksync(args);
        command.env("KSYNC_KEEP", "1").env("XDG_RUNTIME_DIR", &self.runtime);
        command
    }

    /// The command of a copy of `src` to `dst` there.
    pub(crate) fn copy(&self, options: &[&str]) -> Command {
        let mut command = self.ksync(["--identity", "key", "--stats"]);
        command.args(options).arg("src").arg(self.there("dst"));
        command
    }

    pub(crate) fn sync(&self, options: &[&str]) -> Run {
        Run::of(self.copy(options))
    }

    /// The keepers that run and answer.
    pub(crate) fn keepers(&self) -> Vec<Keeper> {
        let run = Run::of(self.ksync(["keep", "list", "--json"]));
        let keeper = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            let pid = i32::try_from(value["pid"].as_i64().unwrap()).unwrap();
            Keeper { pid, served: value["served"].as_u64().unwrap() }
        };
        run.stdout.lines().map(keeper).collect()
    }

    /// Waits for a keeper that serves.
    pub(crate) fn keeper(&self) -> Keeper {
        wait_for("a keeper", || self.keepers().pop())
    }

    /// True if a keeper runs or starts.
    pub(crate) fn has_lock(&self) -> bool {
        let entries = std::fs::read_dir(self.runtime.join("ksync")).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.path().extension().is_some_and(|suffix| suffix == "lock"))
    }

    /// Waits until a keeper has ended.
    pub(crate) fn ends(&self, keeper: &Keeper) {
        wait_for("the end of a keeper", || (!keeper.is_alive()).then_some(()));
    }

    /// The socket of the keeper.
    pub(crate) fn socket(&self) -> PathBuf {
        let mut entries =
            std::fs::read_dir(self.runtime.join("ksync")).unwrap().map(|entry| entry.unwrap().path());
        entries.find(|path| path.extension().is_some_and(|suffix| suffix == "sock")).expect("a socket")
    }

    /// Asserts that the copy there is right.
    #[track_caller]
    pub(crate) fn is_same(&self) {
        self.machine.world.assert_same("src", "dst");
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.ksync(["keep", "stop"]).output();
    }
}
