//! The machine of an emulated VM: a world of its own, or this machine. It starts programs and
//! signals them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, Command};

use crate::isolation::{Files, Isolation, reason};
use crate::process::{CONFINED_VARIABLE, ROOT_VARIABLE};
use crate::rooted::Root;
use crate::terminal;
use crate::world::{self, User, World};

/// Interval between looks for a program that is about to start, and their greatest number.
const LOOK_EVERY: Duration = Duration::from_millis(1);
const LOOKS_MAX: usize = 2000;

/// The machine of a VM.
#[derive(Debug)]
pub(crate) struct Machine {
    kind: Kind,
    files: Files,
    root: Root,
}

#[derive(Debug)]
enum Kind {
    World(Box<World>),
    /// This machine, with `HOME` and the directory that its programs learn.
    Host {
        home: PathBuf,
        variable: Option<PathBuf>,
    },
}

/// The directories of a VM on this machine.
pub(crate) struct Directories {
    /// Directory of a world.
    pub(crate) world: PathBuf,
    /// The root of the files API, without a world.
    pub(crate) root: PathBuf,
    /// `HOME` of programs, without a world.
    pub(crate) home: PathBuf,
    /// The directory in [`ROOT_VARIABLE`], without a world.
    pub(crate) variable: Option<PathBuf>,
}

/// A program to start.
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a OsStr,
    pub(crate) args: Vec<OsString>,
    /// Working directory, on the VM.
    pub(crate) cwd: Option<&'a Path>,
    pub(crate) user: User,
    pub(crate) search_path: &'a OsStr,
    /// If true, the program's standard input becomes its controlling terminal.
    pub(crate) has_terminal: bool,
}

impl Machine {
    /// Makes a machine with this isolation, as far as the system can.
    ///
    /// # Errors
    /// A directory cannot be created.
    pub(crate) async fn start(isolation: Isolation, directories: Directories) -> io::Result<Machine> {
        let Directories { world, root, home, variable } = directories;
        let files = match isolation {
            Isolation::HostFiles => Files::Host,
            Isolation::World => match World::start(&world).await {
                Ok(world) => {
                    let files = Files::World { volatile: world.volatile().map(str::to_owned) };
                    let root = Root::new(world.root().to_owned());
                    return Ok(Machine { kind: Kind::World(Box::new(world)), files, root });
                }
                Err(error) => Files::Rooted { reason: reason(error) },
            },
        };
        for directory in [&root, &home] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let (root, home) = (Root::new(root.canonicalize()?), home.canonicalize()?);
        Ok(Machine { kind: Kind::Host { home, variable }, files, root })
    }

    /// The files that programs see.
    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// The `/` of the files API.
    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    /// True if the VM has a world of its own.
    pub(crate) fn is_world(&self) -> bool {
        matches!(self.kind, Kind::World(_))
    }

    /// The directory with the programs' devices.
    pub(crate) fn devices(&self) -> PathBuf {
        match &self.kind {
            Kind::World(world) => world.root().join("dev"),
            Kind::Host { .. } => PathBuf::from("/dev"),
        }
    }

    /// The login shell.
    pub(crate) fn shell(&self) -> &'static str {
        if self.is_world() && self.root.find("bin/bash").is_ok() { "/bin/bash" } else { "/bin/sh" }
    }

    /// Makes the command of a program, in a session or process group of its own, with the
    /// environment of a login and without this process's own variables.
    ///
    /// # Errors
    /// This machine lacks a program that is needed to start it.
    pub(crate) fn command(&self, launch: Launch<'_>) -> io::Result<Command> {
        let Launch { program, args, cwd, user, search_path, has_terminal } = launch;
        let mut command;
        match &self.kind {
            Kind::World(world) => {
                let cwd = cwd.unwrap_or(Path::new(user.home()));
                let entry = world.entry(user, cwd, has_terminal)?;
                let (first, rest) = entry.split_first().ok_or(io::ErrorKind::NotFound)?;
                command = Command::new(first);
                command.args(rest).arg(program).env_clear();
                command.env("HOME", user.home()).env(ROOT_VARIABLE, "/").current_dir("/").process_group(0);
            }
            Kind::Host { home, variable } => {
                if has_terminal {
                    // The leader of a session already leads a group. Only a process that leads no
                    // group can start a session.
                    let [maker, option] = terminal::leader_maker()?;
                    command = Command::new(maker);
                    command.arg(option).arg(program);
                } else {
                    command = Command::new(program);
                    command.process_group(0);
                }
                command.env_clear().env("HOME", home).current_dir(cwd.unwrap_or(home));
                command.envs(variable.iter().map(|root| (ROOT_VARIABLE, root)));
                if let Files::Rooted { .. } = self.files {
                    command.env(CONFINED_VARIABLE, self.root.path());
                }
            }
        }
        let name = if self.is_world() { user.name() } else { "root" };
        command.args(args).env("USER", name).env("LOGNAME", name).env("PATH", search_path);
        command.kill_on_drop(true);
        Ok(command)
    }

    /// The handle of a program that [`command`](Self::command) has started.
    pub(crate) fn handle(&self, child: &Child) -> Option<Handle> {
        let outer = Pid::from_raw(i32::try_from(child.id()?).ok()?)?;
        Some(Handle { outer, is_inside: self.is_world() })
    }

    /// Kills all programs, if they have a world.
    pub(crate) fn kill(&self) {
        if let Kind::World(world) = &self.kind {
            world.kill();
        }
    }

    /// Kills all programs, and waits until they are gone, if they have a world.
    pub(crate) async fn stop(&self) {
        if let Kind::World(world) = &self.kind {
            world.stop().await;
        }
    }

    /// Removes the world's directory after a stop.
    pub(crate) async fn remove_world(&self) {
        if let Kind::World(world) = &self.kind {
            world.remove().await;
        }
    }
}

/// A started program. It is valid until its child is waited for: then the system may reuse the pid.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Handle {
    /// The child of this process: the program itself, or what entered the world with it.
    outer: Pid,
    is_inside: bool,
}

impl Handle {
    /// The program's pid on this machine. It waits for a program that is about to start.
    pub(crate) fn pid(self) -> Option<Pid> {
        if !self.is_inside {
            return Some(self.outer);
        }
        let outer = self.outer.as_raw_nonzero();
        for _ in 0..LOOKS_MAX {
            let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).ok()?;
            if let Some(child) = children.split_whitespace().next() {
                return Pid::from_raw(child.parse().ok()?);
            }
            let stat = fs::read_to_string(format!("/proc/{outer}/stat")).ok()?;
            if stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X'])) {
                return None;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        None
    }

    /// Waits until the program itself runs, and no longer what enters the world with it. Returns
    /// its pid as the VM sees it, or another number if the program has ended already.
    pub(crate) async fn started(self) -> i32 {
        let outer = self.outer.as_raw_nonzero().get();
        let Some(pid) = self.pid().map(Pid::as_raw_nonzero) else { return outer };
        for _ in 0..LOOKS_MAX {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if !self.is_inside || !world::is_entering(&line) {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().last());
        inner.and_then(|inner| inner.parse().ok()).unwrap_or(outer)
    }

    /// Signals the program alone. Returns false if it is gone.
    pub(crate) fn signal(self, signal: Signal) -> bool {
        self.pid().is_some_and(|pid| kill_process(pid, signal).is_ok())
    }

    /// Signals the program's process group.
    pub(crate) fn signal_group(self, signal: Signal) {
        let Some(pid) = self.pid() else { return };
        // A program that is about to start a session has no group yet.
        if kill_process_group(pid, signal).is_err() {
            let _ = kill_process(pid, signal);
        }
    }

    /// Id of the program's process group, if other programs may outlive it there.
    pub(crate) fn group(self) -> Option<i32> {
        (!self.is_inside).then(|| self.outer.as_raw_nonzero().get())
    }
}
