//! A command on the other side, with its output read line by line.

use russh::ChannelMsg;

use crate::log::debug;
use crate::remote::connection::{Connection, connect};
use crate::remote::error::{DisconnectReason, RemoteError};
use crate::remote::lines::Lines;
use crate::remote::session::Channel;
use crate::remote::timeout::within;

/// Exit status of a command killed by a signal: a shell's number, without that of the signal.
pub(super) const BY_SIGNAL: u32 = 128;

impl Connection {
    /// Runs a command with empty input, and returns its exit status. `hear` gets its stdout and
    /// stderr line by line. If the server allows no further channel beside the agent's
    /// (MaxSessions 1), the command gets a connection of its own.
    ///
    /// # Errors
    /// The server opens no channel, or the connection is lost.
    pub async fn run(&self, command: &[u8], hear: &mut impl FnMut(&[u8])) -> Result<u32, RemoteError> {
        match self.start_command(command).await {
            Ok(channel) => self.finish_command(channel, hear).await,
            Err(RemoteError::Channel { .. }) => {
                debug!("command step=connect why=no-further-channel");
                let own = connect(&self.target).await?;
                let channel = own.start_command(command).await?;
                let result = own.finish_command(channel, hear).await;
                own.close().await;
                result
            }
            Err(error) => Err(error),
        }
    }

    /// Starts a command, and ends its input.
    async fn start_command(&self, command: &[u8]) -> Result<Channel, RemoteError> {
        let line = self.line().await?;
        let failed = |source| line.channel_error(&self.endpoint, source);
        let opening = async {
            let channel = line.session.open().await.map_err(failed)?;
            channel.exec(false, command).await.map_err(failed)?;
            channel.eof().await.map_err(failed)?;
            Ok(channel)
        };
        within(self.timeout, "open a channel to", &self.endpoint, opening).await
    }

    /// Reads the output of a command to its end.
    async fn finish_command(
        &self,
        mut channel: Channel,
        hear: &mut impl FnMut(&[u8]),
    ) -> Result<u32, RemoteError> {
        let (mut out, mut err) = (Lines::default(), Lines::default());
        let mut status = None;
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { data } => out.push(&data, hear),
                ChannelMsg::ExtendedData { data, .. } => err.push(&data, hear),
                ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
                ChannelMsg::ExitSignal { .. } => status = Some(BY_SIGNAL),
                _ => {}
            }
        }
        out.end(hear);
        err.end(hear);
        self.told(status)
    }

    fn reason(&self) -> Option<DisconnectReason> {
        self.known_line()?.status.known()
    }

    /// Returns the exit status of a command, or an error if the server reported none.
    pub(super) fn told(&self, status: Option<u32>) -> Result<u32, RemoteError> {
        status.ok_or_else(|| RemoteError::Lost {
            endpoint: self.endpoint.clone(),
            source: self
                .reason()
                .unwrap_or_else(|| DisconnectReason::Broken("the command's end was not told".into())),
        })
    }
}
