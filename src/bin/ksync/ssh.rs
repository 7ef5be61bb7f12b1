//! `ksync ssh`: a shell or a command on a session's VM.

use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use ksync::monitor::{Event, Monitor, Notice, Preparation, Warning};
use ksync::remote::{Size, Terminal};
use ksync::sync::{SharedMonitor, Visit};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::out;
use crate::report::{CliError, NOT_STARTED, SIGNAL};
use crate::request;
use crate::run::{Signals, block_on};
use crate::screen::{noticed, prepared, warned};
use crate::verbs::SshArgs;

/// Runs the command and returns its exit status.
pub(crate) fn run(args: &SshArgs) -> Result<u8, CliError> {
    let connect_options = request::access_options(&args.access);
    let command = args.command.iter().map(|word| word.as_bytes()).collect::<Vec<_>>().join(&b' ');
    let is_terminal = command.is_empty() && std::io::stdin().is_terminal();
    let monitor: SharedMonitor = Arc::new(Teller { is_terminal });
    block_on(async {
        let session = Visit::begin(&args.session, &connect_options, &monitor).await?;
        // Before the terminal is changed: a signal must not leave it changed.
        let mut signals = Signals::new()?;
        // From here on the other side gets every key, Ctrl-C too.
        let raw = is_terminal.then(Raw::begin).transpose()?;
        let terminal = raw.as_ref().map(|Raw(before)| terminal(before)).transpose()?;
        let status = tokio::select! {
            status = session.shell(&command, terminal) => Some(status),
            () = signals.wait() => None,
        };
        drop(raw);
        session.end().await;
        let status = status.ok_or_else(|| CliError::new(SIGNAL, "stopped by a signal"))??;
        // Exit statuses are a byte.
        Ok(u8::try_from(status & 0xff).unwrap_or(u8::MAX))
    })
}

/// Prints preparation steps and warnings.
struct Teller {
    /// True if a line must end in a carriage return too, since a raw terminal adds none.
    is_terminal: bool,
}

impl Monitor for Teller {
    fn observe(&self, _event: Event) {}

    fn prepare(&self, preparation: Preparation) {
        out::note(prepared(preparation));
    }

    fn warn(&self, warning: Warning) {
        self.note(warned(&warning));
    }

    fn notice(&self, notice: Notice) {
        if let Some(line) = noticed(&notice) {
            self.note(line);
        }
    }
}

impl Teller {
    fn note(&self, text: String) {
        out::note(&if self.is_terminal { format!("{}\r\n", text.replace('\n', "\r\n")) } else { text });
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
