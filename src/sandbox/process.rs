//! Command execution on an SSH channel: a real process in its own process group.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::discriminant;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes};
use russh::server::{Handle, Msg};
use russh::{Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::process::Child;
use tokio::sync::mpsc;

use super::backlog::Backlog;
use super::machine::{Handle as Program, Launch, Machine};
use super::subsystem;
use super::terminal::{Size, Terminal};
use super::world::User;

/// Bytes read of an output at once: the content of one SSH packet.
const OUTPUT_SIZE: usize = 32 * 1024;

/// A shell's exit status if it cannot start a command.
const CANNOT_START: u32 = 127;

/// `PATH` of sshd's children.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Environment variable with the directory that is the VM's root: `/` in a world.
pub(super) const ROOT_VARIABLE: &str = "KSYNC_SANDBOX_ROOT";

/// Environment variable that tells ksync's agent to keep to the directory that is the VM's root.
pub(super) const CONFINED_VARIABLE: &str = "KSYNC_SANDBOX_CONFINED_TO";

/// The extended data type that SSH uses for standard error.
const STDERR: u32 = 1;

/// The processes of one sandbox: how they are started, and which groups may still have members.
#[derive(Debug)]
pub(super) struct Processes {
    machine: Arc<Machine>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Groups that may have members.
    groups: BTreeSet<i32>,
    /// Every channel's task holds a clone, so the receiver learns when all tasks have ended. `None`
    /// after a stop.
    alive: Option<mpsc::Sender<()>>,
}

impl Processes {
    /// Makes the processes of a sandbox. The receiver returns `None` once the processes are stopped
    /// and the last channel's task has ended.
    pub(super) fn new(machine: Arc<Machine>) -> (Processes, mpsc::Receiver<()>) {
        let (alive, gone) = mpsc::channel(1);
        let state = State { groups: BTreeSet::new(), alive: Some(alive) };
        (Processes { machine, state: Mutex::new(state) }, gone)
    }

    /// Kills every started group that may still have members, and from then on kills every new one.
    pub(super) fn stop(&self) {
        let mut state = self.state();
        state.alive = None;
        self.machine.kill();
        for group in std::mem::take(&mut state.groups) {
            signal_group(group, Signal::KILL);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the login shell with sshd's environment.
    fn start(&self, request: Request, wish: Option<&Wish>) -> io::Result<Started> {
        let shell = self.machine.shell();
        let args = match request {
            Request::Exec(line) => vec!["-c".into(), OsString::from_vec(line)],
            Request::Shell => vec!["-l".into()],
        };
        let mut command = self.machine.command(Launch {
            program: OsStr::new(shell),
            args,
            cwd: None,
            user: User::Root,
            search_path: OsStr::new(PATH),
            has_terminal: wish.is_some(),
        })?;
        let mut terminal = None;
        if let Some(Wish { kind, size }) = wish {
            let (ours, theirs) = Terminal::open(*size, &self.machine.devices())?;
            command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
            command.env("TERM", kind);
            terminal = Some(ours);
        } else {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let mut child = command.env("SHELL", shell).spawn()?;
        // `command` holds the program's end of the terminal, which must close with the program.
        drop(command);
        let program = self.machine.handle(&child).ok_or(io::ErrorKind::NotFound)?;
        let mut state = self.state();
        if state.alive.is_none() {
            program.signal_group(Signal::KILL);
        } else {
            state.groups.extend(program.group());
        }
        drop(state);
        let ends = match &terminal {
            Some(terminal) => {
                let (reader, writer) = terminal.ends()?;
                Ends { stdin: Some(Box::new(writer)), stdout: Some(Box::new(reader)), stderr: None }
            }
            None => Ends {
                stdin: child.stdin.take().map(|end| Box::new(end) as _),
                stdout: child.stdout.take().map(|end| Box::new(end) as _),
                stderr: child.stderr.take().map(|end| Box::new(end) as _),
            },
        };
        Ok(Started { child, program, ends, terminal })
    }

    /// Forgets a program that was waited for, unless its group has other members. While it has
    /// members, the kernel cannot reuse its id.
    fn forget(&self, program: Program) {
        let Some(group) = program.group() else { return };
        let mut state = self.state();
        if Pid::from_raw(group).is_none_or(|pid| test_kill_process_group(pid).is_err()) {
            state.groups.remove(&group);
        }
    }
}

/// The terminal that a client requests.
struct Wish {
    kind: String,
    size: Size,
}

/// A started process.
struct Started {
    child: Child,
    program: Program,
    ends: Ends,
    terminal: Option<Terminal>,
}

/// Our ends of the process's three streams, as far as they exist.
struct Ends {
    stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
}

/// A client's request to run something.
enum Request {
    Exec(Vec<u8>),
    Shell,
}

/// Serves one session channel: waits for its one request for a command, a shell or a subsystem,
/// runs that, and closes the channel.
///
/// If the channel or its connection ends first, this kills the process group.
pub(super) async fn serve(channel: Channel<Msg>, session: Handle, processes: Arc<Processes>) {
    let Some(_alive) = processes.state().alive.clone() else {
        return;
    };
    let (mut reader, writer) = channel.split();
    let mut wish = None;
    let request = loop {
        match reader.wait().await {
            Some(ChannelMsg::RequestPty { term, col_width, row_height, .. }) => {
                wish = Some(Wish { kind: term, size: Size::of(col_width, row_height) });
            }
            Some(ChannelMsg::Exec { command, .. }) => break Request::Exec(command),
            Some(ChannelMsg::RequestShell { .. }) => break Request::Shell,
            Some(ChannelMsg::RequestSubsystem { name, .. }) => {
                if let Some(command) = subsystem::command(&name) {
                    break Request::Exec(command);
                }
            }
            Some(ChannelMsg::Close) | None => return,
            Some(_) => {}
        }
    };
    // A send fails only if the connection is gone, and then there is nobody to tell.
    let _ = match processes.start(request, wish.as_ref()) {
        Ok(started) => {
            let program = started.program;
            let ended = run(started, &mut reader, &writer).await;
            // Nobody reads this channel any more, and an undrained channel would stall the session.
            // Dropping the reader discards later input.
            drop(reader);
            processes.forget(program);
            match ended {
                Some(status) => report(&session, &writer, status).await,
                None => Ok(()),
            }
        }
        Err(error) => refuse(&writer, &error).await,
    };
}

/// Runs a process to its end. Returns `None` if its channel ended first, or its status was lost.
async fn run(
    Started { mut child, program, ends: Ends { stdin, stdout, stderr }, terminal }: Started,
    reader: &mut ChannelReadHalf,
    writer: &ChannelWriteHalf<Msg>,
) -> Option<ExitStatus> {
    let ended = {
        let finished = async {
            tokio::join!(output(stdout, writer, None), output(stderr, writer, Some(STDERR)));
            child.wait().await.ok()
        };
        // The reader learns of the connection's end, but the writers may not: russh does not wake a
        // writer that waits for window space.
        tokio::select! {
            status = finished => status,
            () = input(reader, stdin, terminal.as_ref(), program) => None,
        }
    };
    if ended.is_none() {
        program.signal_group(Signal::KILL);
        let _ = child.start_kill();
        let _ = child.wait().await;
    }
    ended
}

/// Feeds the process from the channel, and passes on signals and window sizes, until the channel
/// ends.
async fn input(
    reader: &mut ChannelReadHalf,
    mut stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    terminal: Option<&Terminal>,
    program: Program,
) {
    let mut backlog = Backlog::default();
    let mut next = Bytes::new();
    let mut at_eof = false;
    loop {
        if next.is_empty() {
            match backlog.pop() {
                Ok(Some(bytes)) => next = bytes,
                Ok(None) if at_eof => stdin = None,
                Ok(None) => {}
                // Lost input must not look like the end of input.
                Err(_) => return,
            }
        }
        let written = async {
            match &mut stdin {
                Some(stdin) if !next.is_empty() => stdin.write(&next).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            written = written => match written {
                Ok(written) => next.advance(written),
                // The process has closed its input. Later input is dropped, as sshd does.
                Err(_) => {
                    stdin = None;
                    next = Bytes::new();
                    backlog = Backlog::default();
                }
            },
            message = reader.wait() => match message {
                Some(ChannelMsg::Data { data }) if stdin.is_some() => {
                    if backlog.push(data).is_err() {
                        return;
                    }
                }
                Some(ChannelMsg::Eof) => at_eof = true,
                Some(ChannelMsg::Signal { signal }) => {
                    if let Some(signal) = signal_number(&signal) {
                        program.signal_group(signal);
                    }
                }
                Some(ChannelMsg::WindowChange { col_width, row_height, .. }) => {
                    if let Some(terminal) = terminal {
                        let _ = terminal.resize(Size::of(col_width, row_height));
                    }
                }
                Some(ChannelMsg::Close) | None => return,
                Some(_) => {}
            },
        }
    }
}

/// Copies one output of the process to the channel, until either ends.
async fn output(source: Option<impl AsyncRead + Unpin>, writer: &ChannelWriteHalf<Msg>, ext: Option<u32>) {
    if let Some(source) = source {
        let mut source = BufReader::with_capacity(OUTPUT_SIZE, source);
        let mut sink = std::pin::pin!(writer.make_writer_ext(ext));
        let _ = tokio::io::copy_buf(&mut source, &mut sink).await;
    }
}

/// Reports the exit status or signal, and closes the channel. All output is already queued.
async fn report(
    session: &Handle,
    writer: &ChannelWriteHalf<Msg>,
    status: ExitStatus,
) -> Result<(), russh::Error> {
    let id: ChannelId = writer.id();
    if let Some(signal) = status.signal() {
        let name = signal_name(signal);
        let core = status.core_dumped();
        session
            .exit_signal_request(id, name, core, String::new(), String::new())
            .await
            .map_err(|()| russh::Error::SendError)?;
    } else {
        let code = status.code().and_then(|code| u32::try_from(code).ok()).unwrap_or(CANNOT_START);
        writer.exit_status(code).await?;
    }
    writer.eof().await?;
    writer.close().await
}

/// Answers a request whose command could not be started, as a shell would.
async fn refuse(writer: &ChannelWriteHalf<Msg>, error: &io::Error) -> Result<(), russh::Error> {
    writer.extended_data_bytes(STDERR, format!("sandbox: cannot start the shell: {error}\n")).await?;
    writer.exit_status(CANNOT_START).await?;
    writer.eof().await?;
    writer.close().await
}

/// Signals a process group; ESRCH counts as success.
fn signal_group(group: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(group) {
        let _ = kill_process_group(pid, signal);
    }
}

/// Signal names of RFC 4254, with their signals.
const SIGNALS: [(Sig, Signal); 12] = [
    (Sig::ABRT, Signal::ABORT),
    (Sig::ALRM, Signal::ALARM),
    (Sig::FPE, Signal::FPE),
    (Sig::HUP, Signal::HUP),
    (Sig::ILL, Signal::ILL),
    (Sig::INT, Signal::INT),
    (Sig::KILL, Signal::KILL),
    (Sig::PIPE, Signal::PIPE),
    (Sig::QUIT, Signal::QUIT),
    (Sig::SEGV, Signal::SEGV),
    (Sig::TERM, Signal::TERM),
    (Sig::USR1, Signal::USR1),
];

fn signal_number(name: &Sig) -> Option<Signal> {
    SIGNALS.iter().find(|(known, _)| discriminant(known) == discriminant(name)).map(|(_, signal)| *signal)
}

fn signal_name(number: i32) -> Sig {
    SIGNALS
        .iter()
        .find(|(_, signal)| signal.as_raw() == number)
        .map_or_else(|| Sig::Custom(format!("{number}@sandbox")), |(name, _)| name.clone())
}
