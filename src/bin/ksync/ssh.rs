//! `ksync ssh`: a shell or a command on a session's VM, and port forwards.

use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use ksync::exchange::plain;
use ksync::monitor::{Event, Monitor, Notice, Preparation, Warning};
use ksync::remote::{Forwarding, Forwards, LineListener, Size, Terminal};
use ksync::sync::{SharedMonitor, SyncError, Visit};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::list::visible;
use crate::out;
use crate::report::{CliError, NOT_STARTED, SIGNAL};
use crate::request;
use crate::run::{Signals, block_on};
use crate::screen::{noticed, prepared, warned};
use crate::verbs::SshArgs;

/// Runs the command and returns its exit status.
pub(crate) fn run(args: &SshArgs) -> Result<u8, CliError> {
    let mut connect_options = request::access_options(&args.access);
    connect_options.forwards = !args.forwards().is_empty();
    // Forwards last as long as their process, which makes a connection for them.
    connect_options.keep = args.keep.time().filter(|_| args.forwards().is_empty() && !args.no_command);
    let command = args.command.iter().map(|word| word.as_bytes()).collect::<Vec<_>>().join(&b' ');
    let is_terminal = !args.no_command && command.is_empty() && std::io::stdin().is_terminal();
    let monitor: SharedMonitor = Arc::new(Teller { is_terminal });
    let notice: LineListener =
        Arc::new(move |text| note(&format!("ksync: {}", visible(&plain(text))), is_terminal));
    block_on(async {
        // First of all: connections wait in the listeners' queues until the session is there.
        let forwards = Forwards::bind(args.forwards(), notice).await.map_err(SyncError::from)?;
        let session = Visit::begin(&args.session, &connect_options, &monitor).await?;
        // Before the terminal is changed: a signal must not leave it changed.
        let mut signals = Signals::new()?;
        let forwarding = tokio::select! {
            forwarding = session.forward(forwards) => forwarding.map_err(CliError::from),
            () = signals.wait() => Err(stopped()),
        };
        let forwarding = match forwarding {
            Ok(forwarding) => forwarding,
            Err(error) => {
                session.end().await;
                return Err(error);
            }
        };
        forwarding.allocated().iter().for_each(|line| out::note(&visible(line)));
        if args.no_command {
            out::note(&told(&forwarding));
            let error = tokio::select! {
                error = session.lost() => error.into(),
                () = signals.wait() => stopped(),
            };
            forwarding.end().await;
            session.end().await;
            return Err(error);
        }
        // From here on the other side gets every key, Ctrl-C too.
        let raw = is_terminal.then(Raw::begin).transpose()?;
        let terminal = raw.as_ref().map(|Raw(before)| terminal(before)).transpose()?;
        let status = tokio::select! {
            status = session.shell(&command, terminal) => Some(status),
            () = signals.wait() => None,
        };
        drop(raw);
        forwarding.end().await;
        if status.as_ref().is_some_and(Result::is_ok) {
            session.leave(&args.session, &connect_options);
        }
        session.end().await;
        let status = status.ok_or_else(stopped)??;
        // Exit statuses are a byte.
        Ok(u8::try_from(status & 0xff).unwrap_or(u8::MAX))
    })
}

fn stopped() -> CliError {
    CliError::new(SIGNAL, "stopped by a signal")
}

/// The line of `-N`.
fn told(forwarding: &Forwarding) -> String {
    let forwards = forwarding.forwards().iter().map(ToString::to_string).collect::<Vec<_>>();
    match forwards.as_slice() {
        [] => "connected; Ctrl-C ends it".to_owned(),
        forwards => format!("forwarding {}; Ctrl-C ends it", visible(&forwards.join(", "))),
    }
}

/// Prints a message. A line must end in a carriage return too if a raw terminal adds none.
fn note(text: &str, is_terminal: bool) {
    let text = format!("{text}\n");
    out::note(&if is_terminal { text.replace('\n', "\r\n") } else { text });
}

/// Prints preparation steps and warnings.
struct Teller {
    /// True if a shell runs in a raw terminal.
    is_terminal: bool,
}

impl Monitor for Teller {
    fn observe(&self, _event: Event) {}

    fn prepare(&self, preparation: Preparation) {
        out::note(prepared(preparation));
    }

    fn warn(&self, warning: Warning) {
        note(&warned(&warning), self.is_terminal);
    }

    fn notice(&self, notice: Notice) {
        if let Some(line) = noticed(&notice) {
            note(&line, self.is_terminal);
        }
    }
}

fn terminal(modes: &Termios) -> Result<Terminal, CliError> {
    let failed =
        |error: std::io::Error| CliError::new(NOT_STARTED, format!("cannot use the terminal: {error}"));
    let mut resizes = signal(SignalKind::window_change()).map_err(failed)?;
    let (tell, resized) = mpsc::channel(1);
    tokio::spawn(async move {
        while resizes.recv().await.is_some() {
            if tell.send(size()).await.is_err() {
                return;
            }
        }
    });
    let kind = std::env::var("TERM").unwrap_or_else(|_| "xterm-256color".to_owned());
    Ok(Terminal { kind, size: size(), modes: modes.clone(), resized })
}

fn size() -> Size {
    // The usual size, if the terminal has no known one.
    tcgetwinsize(std::io::stdin()).map_or(Size { columns: 80, rows: 24 }, |size| Size {
        columns: size.ws_col.into(),
        rows: size.ws_row.into(),
    })
}

/// A raw terminal, which passes every key on until this is dropped.
struct Raw(Termios);

impl Raw {
    fn begin() -> Result<Self, CliError> {
        let failed = |error| CliError::new(NOT_STARTED, format!("cannot use the terminal: {error}"));
        let before = tcgetattr(std::io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
