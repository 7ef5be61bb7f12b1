//! `process/exec`: runs a program to its end, without a shell, and answers with its output in one
//! piece.
//!
//! As in the VM, the call ends with the outputs and not with the process. A process that inherited
//! them keeps the call waiting, even beyond its timeout. The timeout kills only the process itself.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
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
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::answer::{Answer, PlatformError, json_answer, read_json};
use super::host::Host;
use super::session::Session;
use crate::machine::{Handle, Launch};
use crate::terminal::{Size, Terminal};
use crate::world::User;

/// Most bytes of an output. A VM without a screen has 1 GB of memory in all.
const OUTPUT_MAX: u64 = 256 << 20;

/// Users of a VM. Without a world each of them is the user who runs the sandbox.
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

/// Environment variable with the port of a real sshd.
const SSHD_VARIABLE: &str = "KSYNC_SANDBOX_SSHD";

impl Program {
    /// Makes a command with the environment of a process in the VM, without this process's own
    /// variables.
    fn command(
        &self,
        host: &Host,
        session: &Session,
        search_path: &OsStr,
        in_terminal: bool,
    ) -> Result<Command, PlatformError> {
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
        let name = user.and_then(|user| user.split(':').next());
        let user = if matches!(name, Some("kernel" | "1000")) { User::Kernel } else { User::Root };
        let (machine, root) = (&session.machine, session.machine.root());
        let cwd = match self.cwd.as_deref().filter(|cwd| !cwd.is_empty()) {
            None => None,
            Some(cwd) if !cwd.starts_with('/') => return refused(format!("cwd must be absolute: {cwd}")),
            Some(cwd) if !root.is_directory(cwd) => {
                return refused(format!("chdir {cwd}: no such file or directory"));
            }
            Some(cwd) => Some(PathBuf::from(cwd)),
        };
        let mut program = PathBuf::from(&self.command);
        let mut cwd = cwd;
        if machine.is_world() {
            let cwd = cwd.as_deref().unwrap_or(Path::new(user.home()));
            root.check_program(&program, cwd, search_path).map_err(|error| self.not_started(&error))?;
        } else {
            // A program in the VM takes precedence over one of this machine with the same path.
            let in_vm = root.host_path(&program);
            if self.command.starts_with('/') && in_vm.is_file() {
                program = in_vm;
            }
            cwd = cwd.map(|cwd| root.host_path(&cwd));
            // In a terminal, `setsid` would only report a failure.
            let place = cwd.as_deref().unwrap_or(Path::new("/"));
            if in_terminal && !is_there(&program, place, search_path) {
                return Err(self.not_started(&io::ErrorKind::NotFound.into()));
            }
        }
        let mut command = machine
            .command(Launch {
                program: program.as_os_str(),
                args: self.args.iter().flatten().map(OsString::from).collect(),
                cwd: cwd.as_deref(),
                user,
                search_path,
                has_terminal: in_terminal,
            })
            .map_err(PlatformError::internal)?;
        command
            .env("SHELL", "/bin/bash")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .envs(in_terminal.then_some(("TERM", "xterm-256color")))
            .envs(host.sshd.as_ref().map(|sshd| (SSHD_VARIABLE, sshd.port.to_string())))
            .envs(self.env.iter().flatten())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command)
    }

    /// Starts the program with an empty input and no terminal.
    ///
    /// # Errors
    /// 400 with the system's message, or if the request contradicts itself.
    async fn start(&self, host: &Host, session: &Session) -> Result<Child, PlatformError> {
        let mut command = self.command(host, session, host.search_path(&session.machine).await?, false)?;
        command.stdin(Stdio::null()).spawn().map_err(|error| self.not_started(&error))
    }

    /// Starts the program with an open input, in a terminal if the request asks for one.
    ///
    /// # Errors
    /// As for `exec`, or 500 if the system has no terminals.
    pub(super) async fn start_fed(&self, host: &Host, session: &Session) -> Result<Started, PlatformError> {
        let in_terminal = self.allocate_tty == Some(true);
        let mut command =
            self.command(host, session, host.search_path(&session.machine).await?, in_terminal)?;
        if !in_terminal {
            let mut child =
                command.stdin(Stdio::piped()).spawn().map_err(|error| self.not_started(&error))?;
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
            let (terminal, theirs) = Terminal::open(size, &session.machine.devices())?;
            let (reader, writer) = terminal.ends()?;
            command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
            io::Result::Ok((terminal, reader, writer))
        };
        let (terminal, reader, writer) = opened().map_err(PlatformError::internal)?;
        let child = command.spawn().map_err(|error| self.not_started(&error))?;
        Ok(Started {
            child,
            stdin: Some(Box::new(writer)),
            stdout: Some(Box::new(reader)),
            stderr: None,
            terminal: Some(terminal),
        })
    }

    fn not_started(&self, error: &io::Error) -> PlatformError {
        PlatformError::in_vm(StatusCode::BAD_REQUEST, self.cannot_start(error))
    }

    /// The VM's message, whose wording is that of Go.
    fn cannot_start(&self, error: &io::Error) -> String {
        let command = &self.command;
        let cause = match error.kind() {
            io::ErrorKind::NotFound => "no such file or directory".to_owned(),
            io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string().to_lowercase(),
        };
        if !command.contains('/') && error.kind() == io::ErrorKind::NotFound {
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
    let running = Running::new(session.machine.handle(&child));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut finished = pin!(async {
        let status = async {
            let status = child.wait().await;
            running.has_ended();
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
        running.kill();
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

/// A program that is killed when this is dropped, unless it has ended. After the wait for it, the
/// system may have reused its pid.
struct Running {
    handle: Option<Handle>,
    has_ended: AtomicBool,
}

impl Running {
    fn new(handle: Option<Handle>) -> Running {
        Running { handle, has_ended: AtomicBool::new(false) }
    }

    fn has_ended(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
    }

    fn kill(&self) {
        if let Some(handle) = self.handle.filter(|_| !self.has_ended.load(Ordering::Relaxed)) {
            handle.signal(Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads an output to its end.
async fn read_all(output: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(output) = output {
        output.take(OUTPUT_MAX + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() as u64 > OUTPUT_MAX { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(bytes) }
}
