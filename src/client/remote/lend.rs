//! The keeper's end of a lent channel: see [`lent`](crate::remote::lent).

use std::time::Duration;

use futures_util::FutureExt;
use russh::{ChannelMsg, Pty};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::remote::agent::Agent;
use crate::remote::agent_image::AgentImage;
use crate::remote::bootstrap::Purpose;
use crate::remote::connection::Connection;
use crate::remote::error::RemoteError;
use crate::remote::lent::{Described, record};
use crate::remote::relay::{self, Record};
use crate::remote::session::{Channel, Writer};
use crate::remote::timeout::within;

/// Records that wait for a run: two megabytes of SSH packets.
const QUEUED: usize = 64;

/// Time for a run to take a record. A channel that is not drained stops the whole session, so a run
/// that is stopped loses its channel.
const TAKEN_WITHIN: Duration = Duration::from_secs(5);

/// Time for the server to close a channel that nobody uses any more.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);

/// An open channel that runs nothing yet.
pub struct SpareChannel(Channel);

impl SpareChannel {
    /// True unless the server has closed the channel meanwhile, as ChannelTimeout does.
    pub fn is_open(&mut self) -> bool {
        !matches!(self.0.wait().now_or_never(), Some(None | Some(ChannelMsg::Close | ChannelMsg::Eof)))
    }
}

impl Connection {
    /// Starts an agent that serves one run after another: see [`wire::keep`](crate::wire::keep).
    ///
    /// # Errors
    /// The same as [`Connection::agent`].
    pub async fn keep(&self, image: AgentImage) -> Result<Agent, RemoteError> {
        let (agent, waiting) = Agent::waiting();
        self.start_for(|_| Purpose::Keep, waiting, image).await?;
        Ok(agent)
    }

    /// Opens a channel.
    ///
    /// # Errors
    /// The server opens none, or the connection is lost.
    pub async fn spare_channel(&self) -> Result<SpareChannel, RemoteError> {
        let opening = async { self.session.open().await.map_err(|source| self.channel_error(source)) };
        within(self.timeout, "open a channel to", &self.endpoint, opening).await.map(SpareChannel)
    }

    /// Tells the server that the session ends.
    pub async fn goodbye(&self) {
        let _ = timeout(CLOSED_WITHIN, self.session.disconnect()).await;
    }

    /// Bytes received so far, for all channels.
    #[must_use]
    pub fn heard_bytes(&self) -> u64 {
        self.connection_status.heard_bytes()
    }

    /// Lends a channel to the process at the other end of `stream`, until either ends.
    pub async fn lend(&self, SpareChannel(channel): SpareChannel, stream: UnixStream) {
        let (mut from, mut to) = stream.into_split();
        loop {
            let started = match relay::read(&mut from).await {
                Ok(Some(Record::Terminal(text))) => match serde_json::from_slice::<Described>(&text) {
                    Ok(terminal) => {
                        let Described { term, columns, rows, modes } = terminal;
                        let modes: Vec<_> = modes
                            .into_iter()
                            .filter_map(|(mode, value)| Some((Pty::from_u8(mode)?, value)))
                            .collect();
                        if channel.request_pty(&term, columns, rows, &modes).await.is_err() {
                            return;
                        }
                        continue;
                    }
                    Err(_) => return,
                },
                Ok(Some(Record::Exec(command))) => channel.exec(false, command).await,
                Ok(Some(Record::Shell)) => channel.request_shell(false).await,
                // The run has gone. Dropping the channel closes it.
                _ => return,
            };
            if started.is_err() {
                return;
            }
            break;
        }
        let (mut read, write) = channel.split();
        let (records, mut queue) = mpsc::channel::<Record>(QUEUED);
        let sending = async {
            while let Ok(Some(record)) = relay::read(&mut from).await {
                if !pass(&write, record).await {
                    break;
                }
            }
        };
        let receiving = async move {
            while let Some(message) = read.wait().await {
                let Some(record) = record(message) else { continue };
                let is_over = record == Record::Close;
                let taken = timeout(TAKEN_WITHIN, records.send(record)).await;
                if is_over || !matches!(taken, Ok(Ok(()))) {
                    return;
                }
            }
            let reason = self.connection_status.error(&self.endpoint).to_string();
            let _ = records.try_send(Record::Lost(reason.into_bytes().into()));
        };
        let writing = async {
            while let Some(record) = queue.recv().await {
                if !matches!(timeout(TAKEN_WITHIN, to.write_all(&record.encode())).await, Ok(Ok(()))) {
                    return;
                }
            }
        };
        tokio::select! {
            // Everything that was received is written first.
            ((), ()) = async { tokio::join!(receiving, writing) } => {}
            // The run has gone.
            () = sending => {}
        }
        let _ = timeout(CLOSED_WITHIN, write.close()).await;
    }
}

/// Passes a record of the run on to its channel. False if the channel takes no more.
async fn pass(write: &Writer, record: Record) -> bool {
    match record {
        Record::Data(bytes) => write.data(bytes).await,
        Record::Eof => write.eof().await,
        Record::Resized(columns, rows) => write.window_change(columns, rows).await,
        _ => return false,
    }
    .is_ok()
}
