//! Worlds: each emulated VM has files, mounts and processes of its own.
//!
//! A world is a mount namespace and a process namespace, made with root's rights or in a user
//! namespace. Its `/` is a directory of the VM with overlays of this machine's directories in it:
//! see [`mounts`]. Programs enter it by `nsenter`, and this process reads and writes its files
//! through its first process, `/proc/PID/root`. The network is that of this machine. Everything in
//! the world ends with its first process, and that ends with this process.

mod furnish;
mod mounts;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, geteuid};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use crate::isolation::reason;
use crate::process::PATH;
use crate::terminal;
pub(crate) use furnish::ABSENT;
use mounts::Rights;

/// Time for the first process of a world to come up. It takes 0.03 s on an idle machine.
const START_MAX: Duration = Duration::from_secs(30);

/// Time that a stopped world has to be gone.
const STOP_MAX: Duration = Duration::from_secs(5);

/// The ways to make a world, the best first. The flag is true if the changes to this machine's
/// directories stay.
const ATTEMPTS: [(Rights, bool); 4] = [
    (Rights::Root, true),
    (Rights::Root, false),
    (Rights::UserNamespace, true),
    (Rights::UserNamespace, false),
];

/// The first process of a world.
const INIT: &str = include_str!("init.sh");

/// The shell line that enters a working directory in a world.
const ENTER: &str = "cd -- \"$0\" && exec \"$@\"";

/// A user of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    Root,
    Kernel,
}

impl User {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Kernel => "kernel",
        }
    }

    pub(crate) const fn home(self) -> &'static str {
        match self {
            Self::Root => "/root",
            Self::Kernel => "/home/kernel",
        }
    }
}

/// A running world. Dropping it ends it, but does not wait for its processes: see [`stop`].
///
/// [`stop`]: World::stop
#[derive(Debug)]
pub(crate) struct World {
    /// `/proc/PID/root` of the first process.
    root: PathBuf,
    first: Pid,
    rights: Rights,
    directory: PathBuf,
    /// Reason why the changes to this machine's directories are lost at the end.
    volatile: Option<String>,
    /// `unshare`, the parent of the first process, whose death ends that. `None` after a stop.
    parent: Mutex<Option<Child>>,
    /// The first process waits for the end of this.
    _input: ChildStdin,
    /// Locked while a world uses the layers of the directory.
    _lock: File,
}

impl World {
    /// Makes a world whose files lie in `directory`.
    ///
    /// # Errors
    /// The directory cannot be written, or the system has no namespaces or overlays for this user;
    /// the error tells why.
    pub(crate) async fn start(directory: &Path) -> io::Result<World> {
        if !cfg!(target_os = "linux") {
            return Err(io::Error::other("worlds need Linux's namespaces"));
        }
        fs::create_dir_all(directory)?;
        // Two worlds cannot share layers. The later one has its own, which vanish with it.
        let lock = File::options().create(true).append(true).open(directory.join("lock"))?;
        let is_alone = lock.try_lock().is_ok();
        let mut refusal = (!is_alone).then(|| "another emulated VM uses its directory".to_owned());
        for (rights, layers_last) in ATTEMPTS {
            if (rights == Rights::Root && !geteuid().is_root()) || (layers_last && !is_alone) {
                continue;
            }
            match First::start(directory, rights, layers_last).await {
                Ok(first) => {
                    let world = World {
                        root: format!("/proc/{}/root", first.pid.as_raw_nonzero()).into(),
                        first: first.pid,
                        rights,
                        directory: directory.to_owned(),
                        volatile: refusal.filter(|_| !layers_last),
                        parent: Mutex::new(Some(first.parent)),
                        _input: first.input,
                        _lock: lock,
                    };
                    world.furnish()?;
                    return Ok(world);
                }
                Err(error) => refusal = refusal.or_else(|| Some(reason(error))),
            }
        }
        Err(io::Error::other(refusal.unwrap_or_default()))
    }

    /// Makes the files of this machine those of a VM, once: later changes are the users' own.
    fn furnish(&self) -> io::Result<()> {
        let mark = self.directory.join("furnished");
        if self.volatile.is_some() || !mark.exists() {
            furnish::furnish(&self.root, self.rights == Rights::Root)?;
        }
        if self.volatile.is_none() {
            fs::write(mark, "")?;
        }
        Ok(())
    }

    /// Path of the world's `/` for this process. It leads into the world only as long as no link
    /// is followed: absolute links lead to this machine.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Reason why the changes to this machine's directories are lost at the end, if they are.
    pub(crate) fn volatile(&self) -> Option<&str> {
        self.volatile.as_deref()
    }

    /// A command line that enters the world as `user`, to which a program and its arguments are
    /// added. The program leads a session of its own.
    ///
    /// # Errors
    /// This machine lacks a program for that.
    pub(crate) fn entry(&self, user: User, cwd: &Path, has_terminal: bool) -> io::Result<Vec<OsString>> {
        let mut line: Vec<OsString> = vec![program("nsenter")?.into()];
        line.extend(["--target".into(), self.first.as_raw_nonzero().to_string().into()]);
        line.extend(["--mount", "--pid"].map(OsString::from));
        match (self.rights, user) {
            (Rights::Root, User::Root) => line.push("--".into()),
            (Rights::Root, User::Kernel) => {
                line.extend(
                    ["--setuid", furnish::KERNEL_ID, "--setgid", furnish::KERNEL_ID, "--"]
                        .map(OsString::from),
                );
            }
            (Rights::UserNamespace, _) => {
                line.extend(["--user", "--preserve-credentials", "--"].map(OsString::from));
            }
        }
        let [maker, option] = terminal::leader_maker()?;
        line.extend(["/bin/sh", "-c", ENTER].map(OsString::from));
        line.extend([cwd.into(), maker.into()]);
        line.extend(has_terminal.then(|| option.into()));
        if self.rights == Rights::UserNamespace && user == User::Kernel {
            // There is one user here. In another namespace it has the other id.
            line.push("unshare".into());
            line.push(format!("--map-user={}", furnish::KERNEL_ID).into());
            line.push(format!("--map-group={}", furnish::KERNEL_ID).into());
        }
        Ok(line)
    }

    /// Ends every process of the world.
    pub(crate) fn kill(&self) {
        if let Some(parent) = self.parent.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            let _ = parent.start_kill();
        }
    }

    /// Ends the world, and waits at most 5 s until it is gone.
    pub(crate) async fn stop(&self) {
        let parent = self.parent.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut parent) = parent else { return };
        let _ = parent.start_kill();
        let _ = tokio::time::timeout(STOP_MAX, parent.wait()).await;
        if self.volatile.is_none() {
            mounts::clear(&self.directory);
        }
    }

    /// Removes the directory of a stopped world.
    pub(crate) async fn remove(&self) {
        let directory = self.directory.clone();
        let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(directory)).await;
        if matches!(removed, Ok(Ok(()))) || self.rights == Rights::Root {
            return;
        }
        // The world's root could make directories that their owner cannot list.
        if let Ok(unshare) = program("unshare") {
            let mut rm = Command::new(unshare);
            rm.args(["--user", "--map-root-user", "rm", "-rf", "--"]).arg(&self.directory);
            let _ = rm.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().await;
        }
    }
}

/// A started first process.
struct First {
    pid: Pid,
    parent: Child,
    input: ChildStdin,
}

impl First {
    async fn start(directory: &Path, rights: Rights, layers_last: bool) -> io::Result<First> {
        let place = directory.to_owned();
        let prepared =
            tokio::task::spawn_blocking(move || mounts::prepare(&place, rights, layers_last)).await;
        prepared.map_err(io::Error::other)??;
        let mut command = Command::new(program("unshare")?);
        if rights == Rights::UserNamespace {
            command.args(["--user", "--map-root-user"]);
        }
        let [maker, _] = terminal::leader_maker()?;
        command.args(["--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", INIT, "world"]);
        command.arg(directory).arg(if layers_last { "" } else { "tmpfs" }).arg(maker);
        // Its own group, so that a Ctrl-C for this process does not end it.
        command.env_clear().env("PATH", PATH).process_group(0).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut parent = command.spawn()?;
        let missing = || io::Error::from(io::ErrorKind::BrokenPipe);
        let input = parent.stdin.take().ok_or_else(missing)?;
        let stdout = parent.stdout.take().ok_or_else(missing)?;
        let mut stderr = parent.stderr.take().ok_or_else(missing)?;
        let mut line = String::new();
        let mut stdout = BufReader::new(stdout);
        let told = stdout.read_line(&mut line);
        tokio::time::timeout(START_MAX, told).await.map_err(|_| io::ErrorKind::TimedOut)??;
        match line.trim().parse().ok().and_then(Pid::from_raw) {
            Some(pid) => Ok(First { pid, parent, input }),
            None => {
                let mut said = String::new();
                let told = stderr.read_to_string(&mut said);
                let _ = tokio::time::timeout(START_MAX, told).await;
                Err(io::Error::other(reason(said)))
            }
        }
    }
}

/// True for the command line of a program of [`World::entry`].
pub(crate) fn is_entering(line: &[u8]) -> bool {
    let mut args = line.split(|byte| *byte == 0);
    let first = Path::new(OsStr::from_bytes(args.next().unwrap_or_default()));
    match first.file_name().and_then(OsStr::to_str) {
        Some("nsenter" | "unshare") => true,
        Some("setsid") => first.is_absolute(),
        Some("sh") => args.nth(1) == Some(ENTER.as_bytes()),
        _ => false,
    }
}

/// Finds a program of this machine.
fn program(name: &str) -> io::Result<PathBuf> {
    let found = std::env::split_paths(PATH).map(|directory| directory.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, format!("this machine has no {name}")))
}
