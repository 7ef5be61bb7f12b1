//! A command on the other side, with its output read line by line.

use russh::ChannelMsg;

use crate::remote::error::{DisconnectReason, RemoteError};
use crate::remote::{Connection, within};

/// Longest line passed on as one, in bytes.
const LINE_BYTES_MAX: usize = 4096;

/// Exit status of a command killed by a signal: a shell's number, without that of the signal.
pub(super) const BY_SIGNAL: u32 = 128;

/// Splits incoming bytes into lines.
#[derive(Debug, Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// Adds bytes, and passes on the lines that they complete, without line ends.
    pub fn push(&mut self, bytes: &[u8], hear: &mut impl FnMut(&[u8])) {
        for &byte in bytes {
            if byte != b'\n' {
                self.0.push(byte);
            }
            if byte == b'\n' || self.0.len() == LINE_BYTES_MAX {
                hear(self.0.strip_suffix(b"\r").unwrap_or(&self.0));
                self.0.clear();
            }
        }
    }

    /// Passes on a last line without a line end.
    pub fn end(self, hear: &mut impl FnMut(&[u8])) {
        if !self.0.is_empty() {
            hear(&self.0);
        }
    }
}

impl Connection {
    /// Runs a command with empty input, and returns its exit status. `hear` gets its stdout and
    /// stderr line by line.
    ///
    /// # Errors
    /// The server opens no channel, or the connection is lost.
    pub async fn run(&self, command: &[u8], hear: &mut impl FnMut(&[u8])) -> Result<u32, RemoteError> {
        let failed = |source| self.channel_error(source);
        let opening = async {
            let channel = self.session.channel_open_session().await.map_err(failed)?;
            channel.exec(false, command).await.map_err(failed)?;
            channel.eof().await.map_err(failed)?;
            Ok(channel)
        };
        let mut channel = within(self.timeout, "open a channel to", &self.endpoint, opening).await?;
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

    /// Returns the exit status of a command, or an error if the server reported none.
    pub(super) fn told(&self, status: Option<u32>) -> Result<u32, RemoteError> {
        status.ok_or_else(|| RemoteError::Lost {
            endpoint: self.endpoint.clone(),
            source: self
                .connection_status
                .known()
                .unwrap_or_else(|| DisconnectReason::Broken("the command's end was not told".into())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_split_at_line_ends_and_at_the_length_limit() {
        let mut heard = Vec::new();
        let mut hear = |line: &[u8]| heard.push(line.to_vec());
        let mut lines = Lines::default();
        for bytes in [&b"a\nb"[..], b"", b"c\r\n\n", &[b'x'; LINE_BYTES_MAX + 1], b"\nend"] {
            lines.push(bytes, &mut hear);
        }
        lines.end(&mut hear);
        let long = vec![b'x'; LINE_BYTES_MAX];
        assert_eq!(heard, [&b"a"[..], b"bc", b"", &long, b"x", b"end"]);
    }
}
