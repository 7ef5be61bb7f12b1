//! The tasks behind a running agent's reader and writer.
//!
//! There are two tasks. The receiving task takes everything from the channel at once, even if
//! nobody reads it. A channel that is not drained stops the whole SSH session, its sends included.
//! The sending task sends. Queues bounded in bytes connect the tasks to the reader and writer.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use russh::ChannelMsg;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::log::{self, Side, debug};
use crate::remote::agent::{
    Acknowledged, Agent, AgentEnd, AgentReader, AgentWriter, Chunk, End, Heard, Installed, WRITE_BYTES_MAX,
};
use crate::remote::agent_image::AgentImage;
use crate::remote::bootstrap::{
    self, COMMAND_FLIGHT_BYTES_MAX, FLIGHT_BYTES_MAX, Form, Found, NEEDS_MAX, Scanner, seal,
};
use crate::remote::error::{ConnectionStatus, RemoteError, ShellFault};
use crate::remote::facts::Login;
use crate::remote::lines::Lines;
use crate::remote::probe::Probe;
use crate::remote::secrets::Secrets;
use crate::remote::send_window::SendWindow;
use crate::remote::session::{Reader, Writer};
use crate::tree::path::escape;
use crate::wire::flight::{Sealed, Secret};
use crate::wire::hello::MAGIC;

/// Writes that may queue for the sending task.
const WRITES_QUEUED: usize = 8;

/// Bytes of one send: an OpenSSH packet.
const SEND_BYTES_MAX: usize = 32 * 1024;

/// Bytes kept of the other side's stderr: its end, because the reason is there.
const STDERR_BYTES_MAX: usize = 8 * 1024;

/// Slowest link on which ksync can install an agent. On a slower one the deadline expires first.
const INSTALL_BYTES_PER_SECOND_MIN: u64 = 8 * 1024;

/// Part of the timeout in which the shell must run the command: 15 s of 30 s. The login is over by
/// then, so nothing has to wake up any more.
const SHELL_SHARE: u32 = 2;

/// Bytes of the input by which its echo is recognised: the magic word, and the length of the hello,
/// which differs between client and agent.
const ECHO_BYTES: usize = MAGIC.len() + 4;

/// Timeout for closing a channel of a busy session. Closing it is only a courtesy.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Message from the receiving task to the sending task.
#[derive(Debug)]
enum Step {
    /// Send the agent.
    Install,
    /// Send the first flight again, because the agent could not open the sealed copy.
    Again,
    /// Send the whole script.
    Load,
    /// The agent has answered: drop the copy of the first flight.
    Started,
}

/// Arguments for starting an agent.
pub(super) struct Start {
    pub(super) image: AgentImage,
    pub(super) marker: String,
    /// The form of the command.
    pub(super) form: Form,
    pub(super) endpoint: String,
    /// Timeout of the first answer.
    pub(super) timeout: Duration,
    /// Upper bound of a round trip.
    pub(super) round_trip: Duration,
    /// Unread bytes that all agents of the connection may have together.
    pub(super) budget: Arc<Semaphore>,
    pub(super) connection_status: ConnectionStatus,
    /// Store of the agent's secret.
    pub(super) secrets: Option<Secrets>,
    /// Store of facts about the host.
    pub(super) facts: Option<Login>,
    /// The question to a shell that stays silent.
    pub(super) probe: Option<Probe>,
}

/// A first flight that travelled in the command line.
#[derive(Debug)]
struct First {
    /// Line that announces the second copy of the first flight.
    marker: Vec<u8>,
    bytes: Bytes,
}

/// The far ends of an agent's reader and writer while no agent runs yet.
#[derive(Debug)]
pub struct Waiting {
    chunks: mpsc::UnboundedSender<Chunk>,
    writes: mpsc::Receiver<Bytes>,
    /// Bytes to be sent before further writes: the rest of a write of which only the beginning
    /// fitted into the command line, or what went to a connection that failed.
    surplus: Option<Bytes>,
    first: Option<First>,
    /// Bytes that were sent along with the login.
    sent: Bytes,
    end: oneshot::Sender<End>,
    installed: Installed,
    heard: Heard,
    acknowledged: Acknowledged,
    error: Arc<OnceLock<Arc<RemoteError>>>,
}

impl Agent {
    /// Makes an agent without a connection. Its writer accepts writes at once. Its reader ends if
    /// the [`Waiting`] is dropped and not given to
    /// [`Connection::start`](crate::remote::Connection::start).
    #[must_use]
    pub fn waiting() -> (Self, Waiting) {
        let (chunk_sender, chunks) = mpsc::unbounded_channel();
        let (write_sender, writes) = mpsc::channel(WRITES_QUEUED);
        let (end_sender, end) = oneshot::channel();
        let error = Arc::new(OnceLock::new());
        let (installed, heard, acknowledged) = Default::default();
        let waiting = Waiting {
            chunks: chunk_sender,
            writes,
            surplus: None,
            first: None,
            sent: Bytes::new(),
            end: end_sender,
            installed: Installed::clone(&installed),
            heard: Heard::clone(&heard),
            acknowledged: Acknowledged::clone(&acknowledged),
            error: error.clone(),
        };
        let reader = AgentReader { chunks, current: None, error: error.clone() };
        let writer = AgentWriter { writes: write_sender, error };
        (Self { reader, writer, end: AgentEnd(end), installed, heard, acknowledged }, waiting)
    }
}

impl Waiting {
    /// Seals the bytes written so far, up to a limit, as the agent's first flight.
    pub(super) fn seal_first_flight(&mut self, secret: &Secret, image: &AgentImage) -> Option<Sealed> {
        let bytes = Bytes::from(self.take_first());
        let sealed = seal(secret, image, &bytes);
        match &sealed {
            Some(sealed) => self.first = Some(First { marker: sealed.marker(), bytes }),
            // Without a seal, send these bytes over the channel, ahead of the rest.
            None => self.surplus = Some([bytes, self.surplus.take().unwrap_or_default()].concat().into()),
        }
        sealed
    }

    /// Takes the bytes written so far, up to the limit of what can be sent again.
    pub(super) fn take_queued(&mut self) -> Vec<u8> {
        let mut queued = Vec::from(self.surplus.take().unwrap_or_default());
        while queued.len() + WRITE_BYTES_MAX <= FLIGHT_BYTES_MAX
            && let Ok(bytes) = self.writes.try_recv()
        {
            queued.extend_from_slice(&bytes);
        }
        queued
    }

    /// Waits for a write.
    pub(super) async fn next_write(&mut self) -> Option<Bytes> {
        self.writes.recv().await
    }

    /// Takes bytes back that did not arrive. They are sent first.
    pub(super) fn put_back(&mut self, bytes: Vec<u8>) {
        self.surplus = Some([bytes, Vec::from(self.surplus.take().unwrap_or_default())].concat().into());
    }

    /// Notes bytes that have been sent to the agent. They are kept until it answers.
    pub(super) fn sent(&mut self, bytes: Vec<u8>) {
        self.sent = bytes.into();
    }

    fn take_first(&mut self) -> Vec<u8> {
        let mut surplus = self.surplus.take().unwrap_or_default();
        let mut first = Vec::from(surplus.split_to(surplus.len().min(COMMAND_FLIGHT_BYTES_MAX)));
        self.surplus = Some(surplus).filter(|surplus| !surplus.is_empty());
        while self.surplus.is_none()
            && let Ok(mut bytes) = self.writes.try_recv()
        {
            let room = COMMAND_FLIGHT_BYTES_MAX - first.len();
            first.extend_from_slice(&bytes.split_to(room.min(bytes.len())));
            if !bytes.is_empty() {
                self.surplus = Some(bytes);
                break;
            }
        }
        first
    }

    /// Takes over a channel on which the command was just sent.
    pub(super) fn start(self, read: Reader, write: Writer, start: Start) {
        let _ = self.heard.0.set(start.connection_status.clone());
        let (step_sender, steps) = mpsc::unbounded_channel();
        let (over_sender, over) = watch::channel(false);
        let send_window = Arc::new(SendWindow::over(start.round_trip, std::time::Instant::now));
        let beginning = Arc::new(OnceLock::new());
        let sending = Sending {
            write,
            writes: self.writes,
            surplus: self.surplus,
            first: self.first,
            sent: self.sent,
            steps,
            over,
            image: start.image.clone(),
            marker: start.marker.clone(),
            send_window: send_window.clone(),
            beginning: beginning.clone(),
        };
        tokio::spawn(sending.run());
        let deadline = Instant::now() + start.timeout / SHELL_SHARE;
        let receiving = Receiving {
            start,
            chunks: Some(self.chunks),
            steps: step_sender,
            installed: self.installed,
            scanner: Some(Scanner::default()),
            needs: 0,
            is_again: false,
            is_loaded: false,
            is_secret_told: false,
            deadline,
            stderr: VecDeque::new(),
            lines: Lines::default(),
            end: End::default(),
            send_window,
            beginning,
            is_silent: true,
            acknowledged: self.acknowledged,
        };
        let (error, end_sender) = (self.error, self.end);
        tokio::spawn(async move {
            let (end, clean) = receiving.run(read, &error).await;
            // This wakes a sender that waits for window space that a dead session never grants.
            let _ = over_sender.send(clean);
            let _ = end_sender.send(end);
        });
    }
}

/// The receiving task.
struct Receiving {
    start: Start,
    chunks: Option<mpsc::UnboundedSender<Chunk>>,
    steps: mpsc::UnboundedSender<Step>,
    installed: Installed,
    /// Present until the agent's first answer.
    scanner: Option<Scanner>,
    needs: usize,
    /// Set once the agent has asked for the first flight again.
    is_again: bool,
    /// Set once the short script has asked for the whole one.
    is_loaded: bool,
    /// Set once the agent has reported its secret.
    is_secret_told: bool,
    deadline: Instant,
    stderr: VecDeque<u8>,
    /// Lines of stderr, if this side logs.
    lines: Lines,
    end: End,
    send_window: Arc<SendWindow>,
    /// The first bytes that were sent over the channel.
    beginning: Arc<OnceLock<Bytes>>,
    /// True until the command has said something.
    is_silent: bool,
    acknowledged: Acknowledged,
}

impl Receiving {
    /// Runs until the channel is closed. Returns the agent's end, and if the other side closed the
    /// channel.
    async fn run(mut self, mut read: Reader, error: &OnceLock<Arc<RemoteError>>) -> (End, bool) {
        let (cause, closed) = self.receive(&mut read).await;
        std::mem::take(&mut self.lines).end(&mut |line| hear(line, &mut self.stderr));
        self.end.stderr = lines(self.stderr.make_contiguous());
        let cause = match cause {
            None if self.scanner.is_some() => Some(self.not_started()),
            cause => cause,
        };
        debug!(
            "agent step=ended exit_status={:?} signal={:?} clean={closed}",
            self.end.exit_status, self.end.signal
        );
        if let Some(cause) = cause.map(Arc::new) {
            self.end.error = Some(cause.clone());
            // Set the error before this task drops the queue, so that a reader that sees the
            // queue's end finds it.
            let _ = error.set(cause);
        }
        (self.end, closed)
    }

    async fn receive(&mut self, read: &mut Reader) -> (Option<RemoteError>, bool) {
        let probe = self.start.probe.take();
        let mut no_agent = pin!(async {
            match probe {
                Some(probe) => probe.finds_no_agent().await,
                None => std::future::pending().await,
            }
        });
        loop {
            let message = tokio::select! {
                message = read.wait() => message,
                () = sleep_until(self.deadline), if self.scanner.is_some() => {
                    let (endpoint, after) = (self.start.endpoint.clone(), self.start.timeout);
                    return (Some(if self.is_silent {
                        RemoteError::NotRun { endpoint, fault: ShellFault::Silent(after / SHELL_SHARE) }
                    } else {
                        RemoteError::TimedOut { verb: "start the agent on", endpoint, after }
                    }), false);
                }
                fault = &mut no_agent, if self.is_silent => {
                    let endpoint = self.start.endpoint.clone();
                    return (Some(RemoteError::NotRun { endpoint, fault }), false);
                }
            };
            match message {
                Some(ChannelMsg::Data { data }) => {
                    if let Err(error) = self.take(data).await {
                        return (Some(error), false);
                    }
                }
                Some(ChannelMsg::ExtendedData { data, .. }) => {
                    if log::is_on() {
                        self.lines.push(&data, &mut |line| hear(line, &mut self.stderr));
                    } else {
                        self.stderr.extend(data.iter());
                    }
                    let surplus = self.stderr.len().saturating_sub(STDERR_BYTES_MAX);
                    self.stderr.drain(..surplus);
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => self.end.exit_status = Some(exit_status),
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                    self.end.signal = Some(escape(format!("{signal_name:?}").as_bytes()).into_owned());
                }
                // The reader need not wait for the exit status, which comes after the end of
                // output. This loop does.
                Some(ChannelMsg::Eof) if self.scanner.is_none() => self.chunks = None,
                Some(ChannelMsg::Close) => return (None, true),
                Some(ChannelMsg::WindowAdjusted { new_size }) => {
                    self.acknowledged.0.fetch_add(self.send_window.has_room(new_size), Ordering::Relaxed);
                }
                Some(_) => {}
                None => return (Some(self.start.connection_status.error(&self.start.endpoint)), false),
            }
        }
    }

    /// Handles bytes from stdout.
    async fn take(&mut self, data: Bytes) -> Result<(), RemoteError> {
        let Some(scanner) = &mut self.scanner else {
            self.pass_on(data).await;
            return Ok(());
        };
        scanner.push(&data);
        loop {
            let endpoint = self.start.endpoint.clone();
            let found = scanner.next();
            self.is_silent &= found == Found::Nothing;
            match found {
                Found::Nothing => return Ok(()),
                Found::Need if self.needs == NEEDS_MAX => {
                    let reason = "it asked for the agent again and again".into();
                    return Err(RemoteError::NotInstalled { endpoint, reason });
                }
                Found::Need => {
                    self.needs += 1;
                    debug!("agent step=install bytes={} attempt={}", self.start.image.gzip.len(), self.needs);
                    let seconds = self.start.image.gzip.len() as u64 / INSTALL_BYTES_PER_SECOND_MIN;
                    self.deadline = Instant::now() + self.start.timeout + Duration::from_secs(seconds);
                    let _ = self.steps.send(Step::Install);
                }
                Found::Load if self.is_loaded || self.start.form == Form::Whole => {
                    let reason = "it asked for the script again and again".into();
                    return Err(RemoteError::NotStarted { endpoint, reason });
                }
                Found::Load => {
                    self.is_loaded = true;
                    debug!("agent step=load-script why=not-where-it-was");
                    self.deadline = Instant::now() + self.start.timeout;
                    let _ = self.steps.send(Step::Load);
                }
                Found::Again if self.is_again => {
                    let reason = "it asked for the first flight again and again".into();
                    return Err(RemoteError::NotStarted { endpoint, reason });
                }
                Found::Again => {
                    self.is_again = true;
                    debug!("agent step=repeat-flight why=seal-not-opened");
                    self.deadline = Instant::now() + self.start.timeout;
                    let _ = self.steps.send(Step::Again);
                }
                Found::Secret(_) if self.is_secret_told => {
                    let reason = "it told its secret again and again".into();
                    return Err(RemoteError::NotStarted { endpoint, reason });
                }
                Found::Secret(secret) => {
                    self.is_secret_told = true;
                    debug!("agent step=learn-secret stored={}", self.start.secrets.is_some());
                    if let Some(secrets) = self.start.secrets.clone() {
                        // Store the secret before the agent says anything else, so that a run that
                        // is cut short has learnt it too.
                        let _ = tokio::task::spawn_blocking(move || secrets.remember(&secret)).await;
                    }
                }
                Found::Agent(bytes) if is_echo(&bytes, self.beginning.get()) => {
                    return Err(RemoteError::NotRun { endpoint, fault: ShellFault::RunsNothing });
                }
                Found::Agent(bytes) => {
                    self.scanner = None;
                    let sent = self.needs as u64 * self.start.image.gzip.len() as u64;
                    debug!("agent step=started state={}", if sent > 0 { "installed" } else { "reused" });
                    let _ = self.installed.0.set((sent > 0).then_some(sent));
                    let _ = self.steps.send(Step::Started);
                    self.remember();
                    self.pass_on(bytes).await;
                    return Ok(());
                }
                Found::Fail(reason) => return Err(RemoteError::NotInstalled { endpoint, reason }),
                Found::Noise(beginning) => return Err(RemoteError::Noise { endpoint, beginning }),
            }
        }
    }

    /// Remembers for the next connection that the agent is there. An agent that was found, but not
    /// by the short script, is in another directory.
    fn remember(&self) {
        let Some(facts) = self.start.facts.clone() else { return };
        let is_in_cache = match self.start.form {
            _ if self.needs > 0 => Some(true),
            Form::Short => Some(!self.is_loaded),
            Form::Whole => None,
        };
        let sha256 = self.start.image.sha256.clone();
        tokio::task::spawn_blocking(move || facts.found_agent(&sha256, is_in_cache));
    }

    /// Hands bytes to the reader. Waits only if the reader is very far behind.
    async fn pass_on(&mut self, bytes: Bytes) {
        let Some(chunks) = &self.chunks else { return };
        if chunks.is_closed() {
            // Nobody reads any more, but the channel must still be drained.
            self.chunks = None;
            return;
        }
        let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let share = tokio::select! {
            share = self.start.budget.clone().acquire_many_owned(count) => share.ok(),
            () = chunks.closed() => None,
        };
        let _ = chunks.send(Chunk { bytes, _share: share });
    }

    /// Error for a command that ended without an error before the agent answered.
    fn not_started(&self) -> RemoteError {
        let mut reason = match (self.end.exit_status, &self.end.signal) {
            (Some(status), _) => format!("the command ended with {status} before the agent answered"),
            (None, Some(signal)) => format!("the command was killed ({signal}) before the agent answered"),
            (None, None) => "the channel was closed before the agent answered".to_owned(),
        };
        let noise = self.scanner.as_ref().map(Scanner::beginning).unwrap_or_default();
        for text in [self.end.stderr.as_str(), noise.trim_end_matches("\\n")] {
            if !text.is_empty() {
                reason = format!("{reason}: {text}");
            }
        }
        RemoteError::NotStarted { endpoint: self.start.endpoint.clone(), reason }
    }
}

/// The sending task.
struct Sending {
    write: Writer,
    writes: mpsc::Receiver<Bytes>,
    surplus: Option<Bytes>,
    first: Option<First>,
    /// Bytes that were sent along with the login.
    sent: Bytes,
    steps: mpsc::UnboundedReceiver<Step>,
    /// Changes when the channel has ended; `true` if the other side closed it.
    over: watch::Receiver<bool>,
    image: AgentImage,
    marker: String,
    send_window: Arc<SendWindow>,
    /// The first bytes that were sent, for the receiving task.
    beginning: Arc<OnceLock<Bytes>>,
}

impl Sending {
    async fn run(mut self) {
        let mut over = self.over.clone();
        let closed = tokio::select! {
            _ = over.changed() => *over.borrow(),
            // `send_all` ends after the end of input. The task then waits for the channel's end.
            () = self.send_all() => {
                let _ = over.changed().await;
                *over.borrow()
            }
        };
        if !closed {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.write.close()).await;
        }
    }

    /// Sends all writes, then the end of input, until the session takes no more.
    async fn send_all(&mut self) {
        let mut flight: Vec<Bytes> = Vec::new();
        let sent = std::mem::take(&mut self.sent);
        if !sent.is_empty() {
            let _ = self.beginning.set(sent.slice(..sent.len().min(ECHO_BYTES)));
            self.send_window.admit(sent.len(), sleep).await;
            flight.push(sent);
        }
        if let Some(bytes) = self.surplus.take() {
            flight.push(bytes.clone());
            if self.send(bytes).await.is_err() {
                return;
            }
        }
        let mut started = false;
        let mut ended = false;
        while !(started && ended) {
            let room = flight.iter().map(Bytes::len).sum::<usize>() + WRITE_BYTES_MAX <= FLIGHT_BYTES_MAX;
            let sent = tokio::select! {
                step = self.steps.recv(), if !started => match step {
                    Some(Step::Started) => {
                        (started, flight) = (true, Vec::new());
                        Ok(())
                    }
                    Some(Step::Install) => self.send_agent(&flight).await,
                    Some(Step::Again) => self.send_again(&flight).await,
                    Some(Step::Load) => self.send_script(&flight).await,
                    None => return,
                },
                bytes = self.writes.recv(), if !ended && (started || room) => match bytes {
                    Some(bytes) => {
                        if !started {
                            flight.push(bytes.clone());
                        }
                        self.send(bytes).await
                    }
                    None => {
                        ended = true;
                        Ok(())
                    }
                },
            };
            if sent.is_err() {
                return;
            }
        }
        // Send the end of input only now. Before the agent starts, it would end the shell that
        // installs the agent.
        let _ = self.write.eof().await;
    }

    async fn send(&self, mut bytes: Bytes) -> Result<(), russh::Error> {
        while !bytes.is_empty() {
            let now = bytes.split_to(bytes.len().min(SEND_BYTES_MAX));
            let _ = self.beginning.set(now.slice(..now.len().min(ECHO_BYTES)));
            self.send_window.admit(now.len(), sleep).await;
            self.write.data(now).await?;
        }
        Ok(())
    }

    async fn send_again(&self, flight: &[Bytes]) -> Result<(), russh::Error> {
        // Without a first flight the agent's request is invalid. Nothing is sent, and the agent
        // times out.
        let Some(First { marker, bytes }) = &self.first else { return Ok(()) };
        self.send(marker.clone().into()).await?;
        self.send(bytes.clone()).await?;
        for bytes in flight {
            self.send(bytes.clone()).await?;
        }
        Ok(())
    }

    async fn send_script(&self, flight: &[Bytes]) -> Result<(), russh::Error> {
        self.send(bootstrap::loaded(&self.marker).into()).await?;
        for bytes in flight {
            self.send(bytes.clone()).await?;
        }
        Ok(())
    }

    async fn send_agent(&self, flight: &[Bytes]) -> Result<(), russh::Error> {
        self.send(format!("\n{}\n", self.marker).into()).await?;
        self.send(self.image.gzip.clone()).await?;
        for bytes in flight {
            self.send(bytes.clone()).await?;
        }
        Ok(())
    }
}

/// Reports if the command's output is its own input.
fn is_echo(output: &[u8], input: Option<&Bytes>) -> bool {
    input.is_some_and(|input| input.len() == ECHO_BYTES && output.starts_with(input))
}

/// Logs a line of the agent's stderr. Lines that are not of its log are kept for errors, too.
fn hear(line: &[u8], stderr: &mut VecDeque<u8>) {
    match line.strip_prefix(log::MARK.as_bytes()) {
        Some(text) => log::line(Side::There, format_args!("{}", String::from_utf8_lossy(text))),
        None => {
            log::line(Side::There, format_args!("stderr text={}", escape(line)));
            stderr.extend(line);
            stderr.push_back(b'\n');
        }
    }
}

/// Escapes text for display and keeps its line breaks.
fn lines(bytes: &[u8]) -> String {
    let lines = bytes.split(|&byte| byte == b'\n').map(|line| escape(line.trim_ascii_end()));
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_stderr_outside_the_log_is_kept_for_errors() {
        let mut kept = VecDeque::new();
        for line in [&b"KSYNC-LOG scan entries=1"[..], b"killed", b" KSYNC-LOG x"] {
            hear(line, &mut kept);
        }
        assert_eq!(lines(kept.make_contiguous()), "killed\n KSYNC-LOG x");
    }
}
