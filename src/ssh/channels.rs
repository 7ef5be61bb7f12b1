//! Channels (RFC 4254): sessions that run a command or a shell, with their windows.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::encoding::{
    CHANNEL_CLOSE, CHANNEL_DATA, CHANNEL_EOF, CHANNEL_EXTENDED_DATA, CHANNEL_FAILURE, CHANNEL_OPEN,
    CHANNEL_OPEN_CONFIRMATION, CHANNEL_OPEN_FAILURE, CHANNEL_REQUEST, CHANNEL_SUCCESS, CHANNEL_WINDOW_ADJUST,
    Message, Reader,
};
use crate::error::SshError;

/// Longest data of one message, both ways: OpenSSH's `CHAN_SES_PACKET_DEFAULT`.
const DATA_BYTES_MAX: u32 = 32 << 10;

/// Data that may be sent before the server has opened a window. OpenSSH's sshd gives each session
/// 2 MiB from its start on, and silently loses what is over.
pub(crate) const EARLY_BYTES_MAX: i64 = 1 << 20;

/// Reason for refusing a channel that a server opens: "administratively prohibited".
const PROHIBITED: u32 = 1;

/// A channel of a connection. Numbers are never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(u32);

/// A request about a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Run a command.
    Exec(Vec<u8>),
    /// Run the login shell.
    Shell,
    /// Run the command or the shell in a terminal.
    Pty {
        /// The type of terminal, as in `TERM`.
        term: String,
        /// The width in characters.
        columns: u32,
        /// The height in characters.
        rows: u32,
        /// Modes, with the numbers of RFC 4254, section 8.
        modes: Vec<(u8, u32)>,
    },
    /// The terminal has another size.
    WindowChange {
        /// The width in characters.
        columns: u32,
        /// The height in characters.
        rows: u32,
    },
    /// Set an environment variable.
    Env {
        /// The name.
        name: String,
        /// The value.
        value: String,
    },
    /// Send a signal, named without `SIG`.
    Signal(String),
}

/// An event of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelEvent {
    /// The server opened the channel.
    Opened,
    /// The server opened no channel.
    Refused {
        /// The reason code of RFC 4254, section 5.1.
        code: u32,
        /// The server's text.
        message: String,
    },
    /// Output.
    Data(Bytes),
    /// Output of another kind: 1 is stderr.
    ExtendedData(u32, Bytes),
    /// The server takes this many bytes now.
    Window(u32),
    /// The output ended.
    Eof,
    /// The command exited.
    ExitStatus(u32),
    /// A signal, named without `SIG`, ended the command.
    ExitSignal(String),
    /// The server did what the oldest unanswered request asked.
    Success,
    /// The server refused the oldest unanswered request.
    Failure,
    /// The channel is closed. No event follows.
    Closed,
}

#[derive(Debug)]
struct Channel {
    /// The server's number, maybe guessed.
    remote: Option<u32>,
    is_open: bool,
    /// Bytes that may be sent; negative while more was sent early than the server allows yet.
    send_window: i64,
    data_bytes_max: u32,
    /// Bytes that the server may still send.
    receive_window: u32,
    /// Bytes that were read since the window was last adjusted.
    consumed: u32,
    is_eof_sent: bool,
    is_eof_received: bool,
    is_close_sent: bool,
}

impl Channel {
    /// The server's number, for a message that may be sent now.
    fn to(&self) -> Result<u32, SshError> {
        self.remote.filter(|_| !self.is_close_sent).ok_or(SshError::Closed)
    }
}

/// Consequences of a server's message: an event, and a message to send.
type Taken = (Option<(ChannelId, ChannelEvent)>, Option<Vec<u8>>);

#[derive(Debug)]
pub(crate) struct Channels {
    window_bytes: u32,
    next: u32,
    open: BTreeMap<u32, Channel>,
}

impl Request {
    fn encode(&self, to: u32, want_reply: bool) -> Vec<u8> {
        let begin = |name: &str| Message::new(CHANNEL_REQUEST).u32(to).string(name).boolean(want_reply);
        match self {
            Self::Exec(command) => begin("exec").string(command),
            Self::Shell => begin("shell"),
            Self::Pty { term, columns, rows, modes } => {
                let modes =
                    modes.iter().fold(Message::default(), |all, (key, value)| all.byte(*key).u32(*value));
                let begin = begin("pty-req").string(term).u32(*columns).u32(*rows).u32(0).u32(0);
                begin.string(modes.byte(0).into_bytes())
            }
            Self::WindowChange { columns, rows } => {
                begin("window-change").u32(*columns).u32(*rows).u32(0).u32(0)
            }
            Self::Env { name, value } => begin("env").string(name).string(value),
            Self::Signal(name) => begin("signal").string(name),
        }
        .into_bytes()
    }

    /// Requests that have no answer, whatever is asked for.
    pub(crate) const fn is_silent(&self) -> bool {
        matches!(self, Self::WindowChange { .. } | Self::Signal(_))
    }
}

impl Channels {
    pub(crate) const fn new(window_bytes: u32) -> Self {
        Self { window_bytes, next: 0, open: BTreeMap::new() }
    }

    /// Opens a session. With a guess of the server's number, it can be used at once.
    pub(crate) fn open(&mut self, guess: Option<u32>) -> (ChannelId, Vec<u8>) {
        let id = self.next;
        self.next += 1;
        let channel = Channel {
            remote: guess,
            is_open: false,
            send_window: if guess.is_some() { EARLY_BYTES_MAX } else { 0 },
            data_bytes_max: DATA_BYTES_MAX,
            receive_window: self.window_bytes,
            consumed: 0,
            is_eof_sent: false,
            is_eof_received: false,
            is_close_sent: false,
        };
        self.open.insert(id, channel);
        let message = Message::new(CHANNEL_OPEN).string("session").u32(id);
        (ChannelId(id), message.u32(self.window_bytes).u32(DATA_BYTES_MAX).into_bytes())
    }

    fn get(&mut self, id: ChannelId) -> Result<&mut Channel, SshError> {
        self.open.get_mut(&id.0).ok_or(SshError::Closed)
    }

    pub(crate) fn request(
        &mut self,
        id: ChannelId,
        request: &Request,
        want_reply: bool,
    ) -> Result<Vec<u8>, SshError> {
        Ok(request.encode(self.get(id)?.to()?, want_reply && !request.is_silent()))
    }

    /// Bytes that may be sent now.
    pub(crate) fn room(&self, id: ChannelId) -> usize {
        let channel = self.open.get(&id.0).filter(|channel| channel.to().is_ok() && !channel.is_eof_sent);
        channel.map_or(0, |channel| usize::try_from(channel.send_window).unwrap_or_default())
    }

    /// The head of one message with the beginning of `bytes`, and the number of bytes that belong
    /// behind it.
    pub(crate) fn data(&mut self, id: ChannelId, bytes: &[u8]) -> Result<(usize, Vec<u8>), SshError> {
        let room = self.room(id);
        let channel = self.get(id)?;
        let to = channel.to()?;
        if channel.is_eof_sent {
            return Err(SshError::Closed);
        }
        let count = bytes.len().min(room).min(channel.data_bytes_max as usize);
        channel.send_window -= count as i64;
        Ok((count, Message::new(CHANNEL_DATA).u32(to).u32(count as u32).into_bytes()))
    }

    pub(crate) fn eof(&mut self, id: ChannelId) -> Result<Option<Vec<u8>>, SshError> {
        let channel = self.get(id)?;
        let to = channel.to()?;
        let is_again = std::mem::replace(&mut channel.is_eof_sent, true);
        Ok((!is_again).then(|| Message::new(CHANNEL_EOF).u32(to).into_bytes()))
    }

    pub(crate) fn close(&mut self, id: ChannelId) -> Result<Option<Vec<u8>>, SshError> {
        let channel = self.get(id)?;
        let Ok(to) = channel.to() else { return Ok(None) };
        channel.is_close_sent = true;
        Ok(Some(Message::new(CHANNEL_CLOSE).u32(to).into_bytes()))
    }

    /// The reader took `count` bytes of data. Returns a message when half of the window was used.
    pub(crate) fn consume(&mut self, id: ChannelId, count: usize) -> Option<Vec<u8>> {
        let window_bytes = self.window_bytes;
        let channel = self.get(id).ok()?;
        channel.consumed = channel.consumed.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        let to = channel.to().ok()?;
        if channel.consumed < window_bytes / 2 || channel.is_eof_received {
            return None;
        }
        let count = std::mem::take(&mut channel.consumed);
        channel.receive_window = channel.receive_window.saturating_add(count);
        Some(Message::new(CHANNEL_WINDOW_ADJUST).u32(to).u32(count).into_bytes())
    }

    /// Answers a message of the server: an event, and maybe a message to send.
    pub(crate) fn take(&mut self, payload: &Bytes) -> Result<Taken, SshError> {
        let number = payload.first().copied().unwrap_or_default();
        let mut reader = Reader::new(payload.get(1..).unwrap_or_default());
        if number == CHANNEL_OPEN {
            reader.string()?;
            let refusal = Message::new(CHANNEL_OPEN_FAILURE).u32(reader.u32()?).u32(PROHIBITED);
            return Ok((None, Some(refusal.string("no channel is taken here").string("").into_bytes())));
        }
        let id = reader.u32()?;
        let channel =
            self.open.get_mut(&id).ok_or(SshError::Malformed("it names a channel that is not open"))?;
        let is_opening = matches!(number, CHANNEL_OPEN_CONFIRMATION | CHANNEL_OPEN_FAILURE);
        if channel.is_open == is_opening {
            return Err(SshError::OutOfOrder(number));
        }
        let mut answer = None;
        let event = match number {
            CHANNEL_OPEN_CONFIRMATION => {
                let (remote, window, data_bytes_max) = (reader.u32()?, reader.u32()?, reader.u32()?);
                if channel.remote.is_some_and(|guess| guess != remote) {
                    return Err(SshError::Guess("its first channel has another number"));
                }
                if data_bytes_max == 0 {
                    return Err(SshError::Malformed("it takes no data"));
                }
                let early = if channel.remote.is_some() { EARLY_BYTES_MAX - channel.send_window } else { 0 };
                channel.send_window = i64::from(window) - early;
                channel.data_bytes_max = data_bytes_max.min(DATA_BYTES_MAX);
                (channel.remote, channel.is_open) = (Some(remote), true);
                ChannelEvent::Opened
            }
            CHANNEL_OPEN_FAILURE => {
                self.open.remove(&id);
                ChannelEvent::Refused { code: reader.u32()?, message: reader.text()? }
            }
            CHANNEL_DATA | CHANNEL_EXTENDED_DATA => {
                let kind = if number == CHANNEL_DATA { None } else { Some(reader.u32()?) };
                let data = payload.slice_ref(reader.string()?);
                let count = u32::try_from(data.len()).unwrap_or(u32::MAX);
                if channel.is_eof_received {
                    return Err(SshError::OutOfOrder(number));
                }
                let rest = channel.receive_window.checked_sub(count);
                channel.receive_window = rest.ok_or(SshError::TooMuch("data beyond a window"))?;
                match kind {
                    None => ChannelEvent::Data(data),
                    Some(kind) => ChannelEvent::ExtendedData(kind, data),
                }
            }
            CHANNEL_WINDOW_ADJUST => {
                let window = channel.send_window + i64::from(reader.u32()?);
                if window > i64::from(u32::MAX) {
                    return Err(SshError::TooMuch("a window beyond 4 GiB"));
                }
                channel.send_window = window;
                ChannelEvent::Window(u32::try_from(window).unwrap_or_default())
            }
            CHANNEL_EOF => {
                channel.is_eof_received = true;
                ChannelEvent::Eof
            }
            CHANNEL_SUCCESS => ChannelEvent::Success,
            CHANNEL_FAILURE => ChannelEvent::Failure,
            CHANNEL_CLOSE => {
                let to = channel.to().ok();
                self.open.remove(&id);
                answer = to.map(|to| Message::new(CHANNEL_CLOSE).u32(to).into_bytes());
                ChannelEvent::Closed
            }
            CHANNEL_REQUEST => {
                let (kind, want_reply) = (reader.string()?, reader.boolean()?);
                if want_reply && let Ok(to) = channel.to() {
                    answer = Some(Message::new(CHANNEL_FAILURE).u32(to).into_bytes());
                }
                match kind {
                    b"exit-status" => ChannelEvent::ExitStatus(reader.u32()?),
                    b"exit-signal" => ChannelEvent::ExitSignal(reader.text()?),
                    _ => return Ok((None, answer)),
                }
            }
            _ => return Err(SshError::OutOfOrder(number)),
        };
        Ok((Some((ChannelId(id), event)), answer))
    }
}
