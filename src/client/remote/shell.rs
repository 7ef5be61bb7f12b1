//! A shell or a command on the other side, connected to standard input and output, as `ssh` does
//! it.

use std::time::Duration;

use bytes::{Buf, Bytes};
use russh::{ChannelMsg, Pty};
use rustix::termios::{InputModes, SpecialCodeIndex, Termios};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use crate::remote::command::BY_SIGNAL;
use crate::remote::connection::Connection;
use crate::remote::error::RemoteError;
use crate::remote::spool::{Room, Spool};
use crate::remote::timeout::within;

/// Bytes of one read.
const READ_BYTES: usize = 32 << 10;

/// Time that stderr waits for earlier bytes of stdout, if the connection has forwards.
const ORDER_TIMEOUT: Duration = Duration::from_millis(100);

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// The width.
    pub columns: u32,
    /// The height.
    pub rows: u32,
}

/// The terminal that a shell runs in.
#[derive(Debug)]
pub struct Terminal {
    /// The type, as in `TERM`.
    pub kind: String,
    /// The size at the start.
    pub size: Size,
    /// The terminal's modes before it was set to raw: special keys, and UTF-8 input.
    pub modes: Termios,
    /// Later sizes.
    pub resized: Receiver<Size>,
}

/// Terminal modes to send to the other side. Its terminal edits the typed lines, so it must know
/// the erase key and the length of a character. For everything else its own modes do.
fn told(modes: &Termios) -> Vec<(Pty, u32)> {
    use SpecialCodeIndex as Key;
    let keys = [
        (Pty::VINTR, Key::VINTR),
        (Pty::VQUIT, Key::VQUIT),
        (Pty::VERASE, Key::VERASE),
        (Pty::VKILL, Key::VKILL),
        (Pty::VEOF, Key::VEOF),
        (Pty::VSTART, Key::VSTART),
        (Pty::VSTOP, Key::VSTOP),
        (Pty::VSUSP, Key::VSUSP),
        (Pty::VREPRINT, Key::VREPRINT),
        (Pty::VWERASE, Key::VWERASE),
        (Pty::VLNEXT, Key::VLNEXT),
    ];
    // RFC 4254 and Linux have different numbers for a disabled key.
    let code = |key| match modes.special_codes[key] {
        0 => u32::from(u8::MAX),
        code => code.into(),
    };
    let keys = keys.map(|(name, key)| (name, code(key)));
    let is_utf8 = modes.input_modes.contains(InputModes::IUTF8);
    keys.into_iter().chain([(Pty::IUTF8, is_utf8.into())]).collect()
}

impl Connection {
    /// Runs `command`, or the login shell if `command` is empty, and returns its exit status. Bytes
    /// pass unchanged in both directions. With a `terminal` the other side echoes and edits lines.
    ///
    /// # Errors
    /// The server opens no channel, or the connection is lost.
    pub async fn shell(&self, command: &[u8], mut terminal: Option<Terminal>) -> Result<u32, RemoteError> {
        let line = self.line().await?;
        let failed = |source| line.channel_error(&self.endpoint, source);
        let opening = async {
            let channel = line.session.open().await.map_err(failed)?;
            if let Some(Terminal { kind, size, modes, .. }) = &terminal {
                let (columns, rows) = (size.columns, size.rows);
                let modes = told(modes);
                channel.request_pty(kind, columns, rows, &modes).await.map_err(failed)?;
            }
            let asked = if command.is_empty() {
                channel.request_shell(true).await
            } else {
                channel.exec(true, command).await
            };
            asked.map_err(failed).map(|()| channel)
        };
        let channel = within(self.timeout, "open a channel to", &self.endpoint, opening).await?;
        let (mut read, write) = channel.split();

        let typing = async {
            let (mut stdin, mut buffer) = (tokio::io::stdin(), vec![0; READ_BYTES]);
            loop {
                let resized = async {
                    match &mut terminal {
                        Some(terminal) => terminal.resized.recv().await,
                        None => None,
                    }
                };
                tokio::select! {
                    count = stdin.read(&mut buffer) => {
                        let bytes = buffer.get(..count.unwrap_or(0)).unwrap_or_default();
                        let sent = if bytes.is_empty() { write.eof().await } else { write.data(Bytes::copy_from_slice(bytes)).await };
                        if bytes.is_empty() || sent.is_err() {
                            return;
                        }
                    }
                    Some(size) = resized => {
                        let _ = write.window_change(size.columns, size.rows).await;
                    }
                }
            }
        };
        let showing = async {
            let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
            let (mut status, mut lost, mut is_over, mut is_flushed) = (None, None, false, true);
            // Output that nobody takes must not stop the forwards beside it. Without them it
            // stops the command, by way of the session.
            let forwards = self.spool_room.get();
            let spool_room = || forwards.cloned().unwrap_or_else(|| Room::of(0));
            let order_timeout = if forwards.is_some() { ORDER_TIMEOUT } else { Duration::MAX };
            let (mut spool, mut next) = (Spool::within(spool_room()), Bytes::new());
            loop {
                if next.is_empty() {
                    match spool.pop() {
                        Ok(Some(bytes)) => next = bytes,
                        Ok(None) if is_over => break,
                        Ok(None) => {}
                        Err(error) => return (status, Some(error)),
                    }
                }
                let has_room = spool.has_room();
                tokio::select! {
                    biased;
                    put = async {
                        if next.is_empty() { stdout.flush().await.map(|()| 0) } else { stdout.write(&next).await }
                    }, if !is_flushed || !next.is_empty() => match put {
                        Ok(count) => {
                            is_flushed = next.is_empty();
                            next.advance(count);
                        }
                        // A closed output takes nothing more; the command will notice that.
                        Err(error) => {
                            lost = lost.or(Some(error));
                            is_flushed = true;
                            (spool, next) = (Spool::within(spool_room()), Bytes::new());
                        }
                    },
                    message = read.wait(), if !is_over && has_room => match message {
                        Some(ChannelMsg::Data { data }) if lost.is_none() => spool.push(data),
                        Some(ChannelMsg::ExtendedData { data, .. }) => {
                            // Both outputs may lead to one file, where their order shows.
                            let earlier = async {
                                loop {
                                    stdout.write_all_buf(&mut next).await?;
                                    match spool.pop()? {
                                        Some(bytes) => next = bytes,
                                        None => return stdout.flush().await,
                                    }
                                }
                            };
                            if let Ok(Err(error)) = timeout(order_timeout, earlier).await {
                                lost = lost.or(Some(error));
                            }
                            is_flushed = false;
                            if stderr.write_all(&data).await.is_ok() {
                                let _ = stderr.flush().await;
                            }
                        }
                        Some(ChannelMsg::ExitStatus { exit_status }) => status = Some(exit_status),
                        Some(ChannelMsg::ExitSignal { .. }) => status = Some(BY_SIGNAL),
                        Some(_) => {}
                        None => is_over = true,
                    },
                }
            }
            let flushed = stdout.flush().await;
            (status, lost.or(flushed.err()))
        };
        tokio::pin!(showing);
        let (status, lost) = tokio::select! {
            shown = &mut showing => shown,
            // The input has ended, but output may still come.
            () = typing => showing.await,
        };
        match lost {
            Some(source) if source.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(RemoteError::Output { source })
            }
            _ => self.told(status),
        }
    }
}
