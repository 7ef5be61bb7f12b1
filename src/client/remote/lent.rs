//! Channels that the keeper of a connection lends to this process, over its Unix socket. They
//! behave like channels of an SSH session of our own.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use russh::{ChannelMsg, ChannelOpenFailure, Pty, Sig};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use crate::remote::error::{ConnectionStatus, DisconnectReason};
use crate::remote::own::signal;
use crate::remote::relay::{self, Record};
use crate::tree::path::escape;

/// Messages that wait for their reader, and records that wait to be written.
const QUEUED: usize = 16;

/// Bytes that are written at once, beside one record.
const PIECE_BYTES: usize = 32 << 10;

/// RFC 4254's number of stderr.
const STDERR: u32 = 1;

/// A reason why the keeper lends no channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotLent {
    /// The server allows no further channel.
    Refused,
    /// There is no keeper any more, or its connection is gone.
    Gone,
}

/// Opens a further channel.
pub type Opener = Box<dyn Fn() -> BoxFuture<'static, Result<UnixStream, NotLent>> + Send + Sync>;

/// A session of another process.
pub(super) struct Lent {
    open: Opener,
    agent: Mutex<Option<UnixStream>>,
    is_agent_ready: bool,
    connection_status: ConnectionStatus,
    over: watch::Sender<bool>,
}

impl Lent {
    pub(super) fn new(
        open: Opener,
        agent: Option<UnixStream>,
        is_agent_ready: bool,
        connection_status: ConnectionStatus,
    ) -> Self {
        let (agent, over) = (Mutex::new(agent), watch::Sender::new(false));
        Self { open, agent, is_agent_ready, connection_status, over }
    }

    /// True if the keeper lent an agent that runs already.
    pub(super) fn is_agent_ready(&self) -> bool {
        self.is_agent_ready
    }

    /// The stream to the agent that waits, once.
    pub(super) fn agent(&self) -> Option<LentChannel> {
        let stream = self.agent.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(self.channel(stream))
    }

    pub(super) async fn open(&self) -> Result<LentChannel, russh::Error> {
        match (self.open)().await {
            Ok(stream) => Ok(self.channel(stream)),
            Err(NotLent::Refused) => {
                Err(russh::Error::ChannelOpenFailure(ChannelOpenFailure::ResourceShortage))
            }
            Err(NotLent::Gone) => Err(russh::Error::Disconnect),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        *self.over.borrow()
    }

    /// Ends all channels.
    pub(super) fn end(&self) {
        self.over.send_replace(true);
    }

    /// Waits until the channels were ended.
    pub(super) async fn ended(&self) {
        let _ = self.over.subscribe().wait_for(|is_over| *is_over).await;
    }

    fn channel(&self, stream: UnixStream) -> LentChannel {
        let (mut from, mut to) = stream.into_split();
        let (message_sender, messages) = mpsc::channel(QUEUED);
        let (records, mut queue) = mpsc::channel::<Record>(QUEUED);
        let connection_status = self.connection_status.clone();
        let (mut over, unread) = (self.over.subscribe(), message_sender.clone());
        let reading = async move {
            let reason = loop {
                let record = match relay::read(&mut from).await {
                    Ok(Some(record)) => record,
                    Ok(None) => break "the keeper of the connection has ended".to_owned(),
                    Err(error) => break format!("the keeper of the connection has ended: {error}"),
                };
                if let Record::Data(bytes) | Record::Stderr(bytes) = &record {
                    connection_status.heard(bytes.len());
                }
                if let Record::Lost(reason) = &record {
                    break escape(reason).into_owned();
                }
                let Some(message) = message(record) else { continue };
                let is_over = matches!(message, ChannelMsg::Close);
                if message_sender.send(message).await.is_err() || is_over {
                    return;
                }
            };
            connection_status.settle(DisconnectReason::Broken(reason));
        };
        let mut over_too = over.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = reading => {}
                () = unread.closed() => {}
                _ = over.wait_for(|is_over| *is_over) => {}
            }
        });
        tokio::spawn(async move {
            let writing = async {
                while let Some(record) = queue.recv().await {
                    // Waiting records go in one piece, which becomes one packet.
                    let mut piece = record.encode().to_vec();
                    while piece.len() < PIECE_BYTES
                        && let Ok(next) = queue.try_recv()
                    {
                        piece.extend_from_slice(&next.encode());
                    }
                    if to.write_all(&piece).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = writing => {}
                _ = over_too.wait_for(|is_over| *is_over) => {}
            }
        });
        LentChannel { reader: LentReader { messages }, writer: LentWriter { records } }
    }
}

/// A channel that is open.
pub(super) struct LentChannel {
    reader: LentReader,
    writer: LentWriter,
}

/// The half that reads.
pub(super) struct LentReader {
    messages: mpsc::Receiver<ChannelMsg>,
}

/// The half that writes. Dropping it closes the channel.
pub(super) struct LentWriter {
    records: mpsc::Sender<Record>,
}

/// A terminal, as the records describe it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Described {
    pub(super) term: String,
    pub(super) columns: u32,
    pub(super) rows: u32,
    /// RFC 4254's numbers of the modes, and their values.
    pub(super) modes: Vec<(u8, u32)>,
}

impl LentChannel {
    pub(super) async fn exec(&self, command: Vec<u8>) -> Result<(), russh::Error> {
        self.writer.send(Record::Exec(command.into())).await
    }

    pub(super) async fn request_shell(&self) -> Result<(), russh::Error> {
        self.writer.send(Record::Shell).await
    }

    pub(super) async fn request_pty(
        &self,
        term: &str,
        columns: u32,
        rows: u32,
        modes: &[(Pty, u32)],
    ) -> Result<(), russh::Error> {
        let modes = modes.iter().map(|&(mode, value)| (mode as u8, value)).collect();
        let described = Described { term: term.to_owned(), columns, rows, modes };
        let text = serde_json::to_vec(&described).map_err(|_| russh::Error::Inconsistent)?;
        self.writer.send(Record::Terminal(text.into())).await
    }

    pub(super) async fn eof(&self) -> Result<(), russh::Error> {
        self.writer.eof().await
    }

    pub(super) async fn wait(&mut self) -> Option<ChannelMsg> {
        self.reader.wait().await
    }

    pub(super) fn split(self) -> (LentReader, LentWriter) {
        (self.reader, self.writer)
    }
}

impl LentReader {
    pub(super) async fn wait(&mut self) -> Option<ChannelMsg> {
        self.messages.recv().await
    }
}

impl LentWriter {
    async fn send(&self, record: Record) -> Result<(), russh::Error> {
        self.records.send(record).await.map_err(|_| russh::Error::SendError)
    }

    pub(super) async fn data(&self, bytes: Bytes) -> Result<(), russh::Error> {
        self.send(Record::Data(bytes)).await
    }

    pub(super) async fn eof(&self) -> Result<(), russh::Error> {
        self.send(Record::Eof).await
    }

    pub(super) async fn close(&self) -> Result<(), russh::Error> {
        self.send(Record::Close).await
    }

    pub(super) async fn window_change(&self, columns: u32, rows: u32) -> Result<(), russh::Error> {
        self.send(Record::Resized(columns, rows)).await
    }
}

/// The channel's message in a record of the keeper.
fn message(record: Record) -> Option<ChannelMsg> {
    Some(match record {
        Record::Data(data) => ChannelMsg::Data { data },
        Record::Stderr(data) => ChannelMsg::ExtendedData { data, ext: STDERR },
        Record::Eof => ChannelMsg::Eof,
        Record::Close => ChannelMsg::Close,
        Record::ExitStatus(exit_status) => ChannelMsg::ExitStatus { exit_status },
        Record::ExitSignal(name) => ChannelMsg::ExitSignal {
            signal_name: signal(&String::from_utf8_lossy(&name)),
            core_dumped: false,
            error_message: String::new(),
            lang_tag: String::new(),
        },
        Record::Window(new_size) => ChannelMsg::WindowAdjusted { new_size },
        _ => return None,
    })
}

/// The record for a message of a channel.
pub(super) fn record(message: ChannelMsg) -> Option<Record> {
    Some(match message {
        ChannelMsg::Data { data } => Record::Data(data),
        ChannelMsg::ExtendedData { data, .. } => Record::Stderr(data),
        ChannelMsg::Eof => Record::Eof,
        ChannelMsg::Close => Record::Close,
        ChannelMsg::ExitStatus { exit_status } => Record::ExitStatus(exit_status),
        ChannelMsg::ExitSignal { signal_name, .. } => {
            let name = match signal_name {
                Sig::Custom(name) => name,
                // The names of the others are those of RFC 4254.
                known => format!("{known:?}"),
            };
            Record::ExitSignal(name.into_bytes().into())
        }
        ChannelMsg::WindowAdjusted { new_size } => Record::Window(new_size),
        _ => return None,
    })
}
