//! Records on the Unix socket between a run and the keeper of its connection. Each connection to
//! that socket carries one SSH channel, in both directions: what the run asks of the channel, and
//! what the channel says. A record is its kind, the length of its payload, and the payload.
//!
//! Both ends are the same build of ksync, on one machine and of one user. The limits are for a
//! socket that something else serves.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest payload, in bytes: a command with a first flight in hex, or an SSH packet.
const PAYLOAD_BYTES_MAX: usize = 256 << 10;

/// Bytes before a payload.
const HEADER_BYTES: usize = 5;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    /// A question to the keeper, or its answer, in JSON.
    Text(Bytes),
    /// Bytes of stdin or stdout.
    Data(Bytes),
    /// Bytes of stderr.
    Stderr(Bytes),
    /// The command to run.
    Exec(Bytes),
    /// The login shell to run.
    Shell,
    /// The terminal for the command or the shell, in JSON.
    Terminal(Bytes),
    /// Another size of the terminal: columns and rows.
    Resized(u32, u32),
    /// The end of this direction.
    Eof,
    /// The end of the channel.
    Close,
    /// The exit status.
    ExitStatus(u32),
    /// The signal that ended the command.
    ExitSignal(Bytes),
    /// The channel's window, in bytes.
    Window(u32),
    /// The connection was lost, for this reason.
    Lost(Bytes),
}

impl Record {
    /// The record with its header.
    pub(crate) fn encode(&self) -> Bytes {
        let (kind, payload): (u8, Bytes) = match self {
            Self::Text(bytes) => (b't', bytes.clone()),
            Self::Data(bytes) => (b'd', bytes.clone()),
            Self::Stderr(bytes) => (b'D', bytes.clone()),
            Self::Exec(bytes) => (b'x', bytes.clone()),
            Self::Shell => (b's', Bytes::new()),
            Self::Terminal(bytes) => (b'p', bytes.clone()),
            Self::Resized(columns, rows) => {
                (b'r', [columns.to_be_bytes(), rows.to_be_bytes()].concat().into())
            }
            Self::Eof => (b'e', Bytes::new()),
            Self::Close => (b'c', Bytes::new()),
            Self::ExitStatus(status) => (b'X', status.to_be_bytes().to_vec().into()),
            Self::ExitSignal(bytes) => (b'S', bytes.clone()),
            Self::Window(size) => (b'w', size.to_be_bytes().to_vec().into()),
            Self::Lost(bytes) => (b'l', bytes.clone()),
        };
        let mut encoded = BytesMut::with_capacity(HEADER_BYTES + payload.len());
        encoded.put_u8(kind);
        encoded.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        encoded.put(payload);
        encoded.freeze()
    }

    fn decode(kind: u8, payload: Bytes) -> Option<Self> {
        let number = || Some(u32::from_be_bytes(payload.as_ref().try_into().ok()?));
        Some(match kind {
            b't' => Self::Text(payload),
            b'd' => Self::Data(payload),
            b'D' => Self::Stderr(payload),
            b'x' => Self::Exec(payload),
            b's' => Self::Shell,
            b'p' => Self::Terminal(payload),
            b'r' => {
                let (columns, rows) = payload.split_at_checked(4)?;
                let number = |bytes: &[u8]| Some(u32::from_be_bytes(bytes.try_into().ok()?));
                Self::Resized(number(columns)?, number(rows)?)
            }
            b'e' => Self::Eof,
            b'c' => Self::Close,
            b'X' => Self::ExitStatus(number()?),
            b'S' => Self::ExitSignal(payload),
            b'w' => Self::Window(number()?),
            b'l' => Self::Lost(payload),
            _ => return None,
        })
    }
}

/// Reads a record; `None` at the end of the stream between two records.
///
/// # Errors
/// The stream breaks, or it carries something else.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Record>> {
    let kind = match stream.read_u8().await {
        Ok(kind) => kind,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = stream.read_u32().await? as usize;
    if length > PAYLOAD_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a record that is too long"));
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    let record = Record::decode(kind, payload.into());
    record.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an unknown record"))
}

/// True if these bytes begin with a whole record of stdin.
pub(crate) fn begins_with_data(bytes: &[u8]) -> bool {
    let Some((&[kind, a, b, c, d], payload)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return false;
    };
    kind == b'd' && payload.len() >= u32::from_be_bytes([a, b, c, d]) as usize
}

/// Writes a question or an answer.
///
/// # Errors
/// The stream is broken.
pub(crate) async fn tell(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &(impl Serialize + Sync),
) -> io::Result<()> {
    let text = Record::Text(serde_json::to_vec(message)?.into());
    stream.write_all(&text.encode()).await
}

/// Reads a question or an answer.
///
/// # Errors
/// The stream is broken, or carries something else.
pub(crate) async fn hear<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    match read(stream).await? {
        Some(Record::Text(text)) => Ok(serde_json::from_slice(&text)?),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let bytes = Bytes::from_static(b"some bytes");
        vec![
            Record::Text(bytes.clone()),
            Record::Data(Bytes::new()),
            Record::Data(vec![7; PAYLOAD_BYTES_MAX].into()),
            Record::Stderr(bytes.clone()),
            Record::Exec(bytes.clone()),
            Record::Shell,
            Record::Terminal(bytes.clone()),
            Record::Resized(80, 24),
            Record::Eof,
            Record::Close,
            Record::ExitStatus(256),
            Record::ExitSignal(bytes.clone()),
            Record::Window(2 << 20),
            Record::Lost(bytes),
        ]
    }

    #[tokio::test]
    async fn records_are_read_as_they_were_written() {
        let stream: Vec<u8> = records().iter().flat_map(Record::encode).collect();
        let mut reader = stream.as_slice();
        for record in records() {
            assert_eq!(read(&mut reader).await.unwrap(), Some(record));
        }
        assert_eq!(read(&mut reader).await.unwrap(), None);
    }

    #[test]
    fn only_a_whole_record_of_stdin_can_be_read_at_once() {
        let whole = Record::Data(Bytes::from_static(b"ab")).encode();
        assert!(begins_with_data(&whole) && begins_with_data(&[&whole[..], b"x"].concat()));
        assert!((0..whole.len()).all(|length| !begins_with_data(&whole[..length])));
        assert!(!begins_with_data(&Record::Close.encode()));
    }

    #[tokio::test]
    async fn foreign_bytes_are_an_error_before_memory_is_taken() {
        for bytes in [&b"d\xff\xff\xff\xff"[..], b"?\0\0\0\0", b"X\0\0\0\x01a", b"d\0\0\0\x02a", b"d\0"] {
            assert!(read(&mut &bytes[..]).await.is_err(), "{bytes:?}");
        }
    }
}
