//! The command after each round that changed something. One runs at a time; of the rounds that end
//! meanwhile, only the last one starts another. A command that failed is owed: the next process
//! runs it after its first round, whatever that round changed.

use std::convert::Infallible;
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::Notify;

use crate::remote::Lines;
use crate::sync::error::SyncError;
use crate::sync::news::{Listener, News, Said};
use crate::sync::owed::Owed;
use crate::sync::remote::LazyConnection;
use crate::sync::retry::is_loss;

/// The place where a command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterRound {
    /// On the other machine, by the login shell.
    There(String),
    /// On this machine, by `sh`.
    Here(String),
}

/// Runs a command after each change.
pub(super) struct Commands {
    after: Option<AfterRound>,
    due: Arc<Notify>,
    owed: Arc<Owed>,
    listener: Listener,
}

/// Starts the command after a round, if it is due.
pub(super) struct Starter {
    due: Arc<Notify>,
    owed: Arc<Owed>,
}

impl Commands {
    /// Runs this command, if there is one.
    pub(super) fn new(after: Option<AfterRound>, owed: Arc<Owed>, listener: Listener) -> Self {
        Self { after, due: Arc::default(), owed, listener }
    }

    /// Returns a handle for the code that sees rounds end.
    pub(super) fn starter(&self) -> Starter {
        Starter { due: Arc::clone(&self.due), owed: Arc::clone(&self.owed) }
    }

    /// Runs the command after each change, as long as the connection lasts. A command that is
    /// broken off with the connection runs again on the next one.
    pub(super) async fn run(&self, connection: Option<&LazyConnection<'_>>) -> Infallible {
        let Some(after) = &self.after else { return std::future::pending().await };
        loop {
            self.due.notified().await;
            let begun = Begun(&self.due);
            let (rounds, is_again) = (self.owed.rounds(), self.owed.is_old());
            // The listener has got the result.
            match after.run(is_again && rounds == 0, connection, &self.listener).await {
                Ok(0) => self.owed.settle(rounds),
                Ok(_) => {}
                Err(error) if is_loss(&error) => {
                    drop(begun);
                    return std::future::pending().await;
                }
                Err(_) => {}
            }
            begun.end();
        }
    }
}

impl Starter {
    /// Starts the command after a round that changed something, or that follows one which was cut
    /// off. After the first round of this process, also starts one that an earlier process owes.
    pub(super) fn round_ended(&self, has_changed: bool, is_first: bool) {
        let was_cut = self.owed.round_ended(has_changed);
        if has_changed || was_cut || (is_first && self.owed.is_old()) {
            self.due.notify_one();
        }
    }
}

impl AfterRound {
    /// The place and the command, for [`Owed`].
    pub(in crate::sync) fn named(&self) -> (&str, &str) {
        match self {
            Self::There(command) => ("there", command),
            Self::Here(command) => ("here", command),
        }
    }

    /// Runs the command once, reports its output and result, and returns its exit status.
    /// `is_again` tells that an earlier run owes it.
    pub(in crate::sync) async fn run(
        &self,
        is_again: bool,
        connection: Option<&LazyConnection<'_>>,
        listener: &Listener,
    ) -> Result<u32, SyncError> {
        let (Self::There(command) | Self::Here(command)) = self;
        listener(News::Command(Said::Begins { command, is_again }));
        let mut hear = |line: &[u8]| listener(News::Command(Said::Line(line)));
        let ended = match (self, connection) {
            (Self::There(command), Some(connection)) => {
                connection.command(command.as_bytes(), &mut hear).await
            }
            // The first round makes the connection, and commands run only after a round.
            (Self::There(_), None) => Err(SyncError::BothRemote),
            (Self::Here(command), _) => here(command, &mut hear).await.map_err(SyncError::Pipe),
        };
        listener(News::Command(match &ended {
            Ok(status) => Said::Ended(*status),
            Err(error) => Said::Failed(error),
        }));
        ended
    }
}

/// A started command that may be broken off. It is then due on the next connection.
struct Begun<'a>(&'a Notify);

impl Begun<'_> {
    /// The command has ended.
    fn end(self) {
        std::mem::forget(self);
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// Runs a command on this machine.
async fn here(command: &str, hear: &mut impl FnMut(&[u8])) -> std::io::Result<u32> {
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut out, mut err) = (Lines::default(), Lines::default());
    let (mut from_out, mut from_err) = ([0; 8192], [0; 8192]);
    let (mut stdout, mut stderr) = (stdout, stderr);
    while stdout.is_some() || stderr.is_some() {
        tokio::select! {
            count = read(&mut stdout, &mut from_out) => out.push(from_out.get(..count?).unwrap_or_default(), hear),
            count = read(&mut stderr, &mut from_err) => err.push(from_err.get(..count?).unwrap_or_default(), hear),
        }
    }
    out.end(hear);
    err.end(hear);
    let status = child.wait().await?;
    Ok(status.code().and_then(|code| u32::try_from(code).ok()).unwrap_or(128))
}

/// Reads some bytes; sets the stream to `None` at its end.
async fn read(stream: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> std::io::Result<usize> {
    let Some(open) = stream else { return std::future::pending().await };
    let count = open.read(buffer).await?;
    if count == 0 {
        *stream = None;
    }
    Ok(count)
}
