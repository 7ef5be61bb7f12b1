//! `process/exec`: runs a program to its end, without a shell, and answers with its output in one
//! piece.
//!
//! As in the VM, the call ends with the outputs and not with the process. A process that inherited
//! them keeps the call waiting, even beyond its timeout. The timeout kills only the process itself.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use hyper::body::Incoming;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::answer::{Answer, PlatformError, json_answer, read_json};
use super::host::Host;
use super::session::Session;
use crate::process::ROOT_VARIABLE;
use crate::terminal::{self, Size, Terminal};

/// Most bytes of an output. A VM without a screen has 1 GB of memory in all.
const OUTPUT_MAX: u64 = 256 << 20;

/// Users of a VM. Here each of them is the user who runs the sandbox.
const USERS: [&str; 4] = ["root", "kernel", "0", "1000"];

/// The program of a request.
#[derive(Debug, Deserialize)]
pub(super) struct Program {
    #[serde(default)]
    command: String,
    args: Option<Vec<String>>,
    cwd: Option<String>,
    env: Option<BTreeMap<String, String>>,
    as_user: Option<String>,
    as_root: Option<bool>,
    timeout_sec: Option<u64>,
    allocate_tty: Option<bool>,
    rows: Option<u16>,
    cols: Option<u16>,
}

/// Input and output of a program.
type Input = Box<dyn AsyncWrite + Send + Unpin>;
pub(super) type Output = Box<dyn AsyncRead + Send + Unpin>;

/// A started program, with our ends of its streams.
pub(super) struct Started {
    pub(super) child: Child,
    pub(super) stdin: Option<Input>,
    pub(super) stdout: Option<Output>,
    /// Standard error; `None` in a terminal, which has one output only.
    pub(super) stderr: Option<Output>,
    pub(super) terminal: Option<Terminal>,
}

impl Program {
    /// Makes a command with the environment of a process in the VM, without this process's own
    /// variables.
    fn command(
        &self,
        session: &Session,
        search_path: &OsStr,
        in_terminal: bool,
    ) -> Result<(Command, PathBuf), PlatformError> {
        let refused = |message: String| Err(PlatformError::in_vm(StatusCode::BAD_REQUEST, message));
        if self.command.is_empty() {
            return refused("command required".to_owned());
        }
        let user = self.as_user.as_deref().filter(|user| !user.is_empty());
        if self.as_root == Some(true) && user.is_some() {
            return refused("cannot specify both as_root and as_user".to_owned());
        }
        if let Some(user) = user.filter(|user| !USERS.contains(&user.split(':').next().unwrap_or_default())) {
            return refused(format!("failed to lookup user \"{user}\": user: unknown user {user}"));
        }
        let home = session.root.join("root");
        let cwd = match self.cwd.as_deref().filter(|cwd| !cwd.is_empty()) {
            None => home.clone(),
            Some(cwd) if cwd.starts_with('/') => session.host_path(cwd),
            Some(cwd) => return refused(format!("cwd must be absolute: {cwd}")),
        };
        // A program in the VM takes precedence over one of this machine with the same path.
        let in_vm = session.host_path(&self.command);
        let is_path = self.command.starts_with('/');
        let program = if is_path && in_vm.is_file() { in_vm } else { PathBuf::from(&self.command) };
        let mut command = if in_terminal {
            // Check for a missing program now: in a terminal, `setsid` would only report a failure.
            if !is_there(&program, &cwd, search_path) {
                return Err(self.not_started(&cwd, &io::ErrorKind::NotFound.into()));
            }
            let [maker, option] = terminal::leader_maker().map_err(PlatformError::internal)?;
            let mut command = Command::new(maker);
            command.arg(option).arg(program);
            command
        } else {
            let mut command = Command::new(program);
            command.process_group(0);
            command
        };
        command
            .args(self.args.iter().flatten())
            .env_clear()
            .env("HOME", &home)
            .env("USER", "root")
            .env("LOGNAME", "root")
            .env("SHELL", "/bin/bash")
            .env("PATH", search_path)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .envs(in_terminal.then_some(("TERM", "xterm-256color")))
            .envs(self.env.iter().flatten())
            .env(ROOT_VARIABLE, &session.root)
            .current_dir(&cwd)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Ok((command, cwd))
    }

    /// Starts the program with an empty input and no terminal.
    ///
    /// # Errors
    /// 400 with the system's message, or if the request contradicts itself.
    async fn start(&self, host: &Host, session: &Session) -> Result<Child, PlatformError> {
        let (mut command, cwd) = self.command(session, host.search_path().await?, false)?;
        command.stdin(Stdio::null()).spawn().map_err(|error| self.not_started(&cwd, &error))
    }

    /// Starts the program with an open input, in a terminal if the request asks for one.
    ///
    /// # Errors
    /// As for `exec`, or 500 if the system has no terminals.
    pub(super) async fn start_fed(&self, host: &Host, session: &Session) -> Result<Started, PlatformError> {
        let in_terminal = self.allocate_tty == Some(true);
        let (mut command, cwd) = self.command(session, host.search_path().await?, in_terminal)?;
        if !in_terminal {
            let mut child =
                command.stdin(Stdio::piped()).spawn().map_err(|error| self.not_started(&cwd, &error))?;
            return Ok(Started {
                stdin: child.stdin.take().map(|end| Box::new(end) as _),
                stdout: child.stdout.take().map(|end| Box::new(end) as _),
                stderr: child.stderr.take().map(|end| Box::new(end) as _),
                terminal: None,
                child,
            });
        }
        let usual = Size::default();
        let size =
            Size { columns: self.cols.unwrap_or(usual.columns), rows: self.rows.unwrap_or(usual.rows) };
        let mut opened = || {
            let (terminal, theirs) = Terminal::open(size)?;
            let (reader, writer) = terminal.ends()?;
            command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
            io::Result::Ok((terminal, reader, writer))
        };
        let (terminal, reader, writer) = opened().map_err(PlatformError::internal)?;
        let child = command.spawn().map_err(|error| self.not_started(&cwd, &error))?;
        Ok(Started {
            child,
            stdin: Some(Box::new(writer)),
            stdout: Some(Box::new(reader)),
            stderr: None,
            terminal: Some(terminal),
        })
    }

    fn not_started(&self, cwd: &Path, error: &io::Error) -> PlatformError {
        PlatformError::in_vm(StatusCode::BAD_REQUEST, self.cannot_start(cwd, error))
    }

    /// The VM's message, whose wording is that of Go.
    fn cannot_start(&self, cwd: &Path, error: &io::Error) -> String {
        let command = &self.command;
        let cause = match error.kind() {
            io::ErrorKind::NotFound => "no such file or directory".to_owned(),
            io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string().to_lowercase(),
        };
        if !cwd.is_dir() {
            format!("chdir {}: no such file or directory", self.cwd.as_deref().unwrap_or_default())
        } else if !command.contains('/') && error.kind() == io::ErrorKind::NotFound {
            format!("exec: \"{command}\": executable file not found in $PATH")
        } else {
            format!("fork/exec {command}: {cause}")
        }
    }
}

/// `POST process/exec`.
pub(super) async fn exec(host: &Host, session: &Session, body: Incoming) -> Result<Answer, PlatformError> {
    let program: Program = read_json(body).await?;
    let begun = Instant::now();
    let mut child = program.start(host, session).await?;
    let pid = pid_of(&child);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let is_waited_for = AtomicBool::new(false);
    let mut finished = pin!(async {
        let status = async {
            let status = child.wait().await;
            is_waited_for.store(true, Ordering::Relaxed);
            status
        };
        tokio::join!(read_all(stdout), read_all(stderr), status)
    });
    let timeout = program.timeout_sec.filter(|seconds| *seconds > 0).map(Duration::from_secs);
    let ended = match timeout {
        None => Some(finished.as_mut().await),
        Some(timeout) => tokio::time::timeout(timeout, finished.as_mut()).await.ok(),
    };
    let Some((stdout, stderr, status)) = ended else {
        // After the wait, the system may have reused its pid.
        if let Some(pid) = pid.filter(|_| !is_waited_for.load(Ordering::Relaxed)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        // The rest of the output is discarded.
        let (_, _, _) = finished.await;
        return Err(PlatformError::in_vm(StatusCode::INTERNAL_SERVER_ERROR, "process timed out"));
    };
    let too_much = |_| PlatformError::in_vm(StatusCode::INTERNAL_SERVER_ERROR, "out of memory");
    let (stdout, stderr) = (stdout.map_err(too_much)?, stderr.map_err(too_much)?);
    let value = json!({
        "exit_code": status.ok().and_then(|status| status.code()).unwrap_or(-1),
        "stdout_b64": STANDARD.encode(stdout),
        "stderr_b64": STANDARD.encode(stderr),
        "duration_ms": u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    });
    Ok(json_answer(StatusCode::OK, &value))
}

/// Checks that a program exists: a path, or a name in `search_path`.
fn is_there(program: &Path, cwd: &Path, search_path: &OsStr) -> bool {
    if program.components().count() > 1 {
        cwd.join(program).is_file()
    } else {
        std::env::split_paths(search_path).any(|directory| directory.join(program).is_file())
    }
}

/// Pid of a process that nobody has waited for yet.
pub(super) fn pid_of(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()?).ok()?)
}

/// Reads an output to its end.
async fn read_all(output: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(output) = output {
        output.take(OUTPUT_MAX + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() as u64 > OUTPUT_MAX { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(bytes) }
}
