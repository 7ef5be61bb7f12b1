//! The hello: how two ends find each other in a byte stream, and what the client orders.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::tree::filter::{RULES_BYTES_MAX, RULES_MAX, Rule};
use crate::tree::place::Pair;
use crate::wire::frame::{FrameError, FrameReader, FrameWriter};

/// The first bytes that either side sends. The NUL keeps it out of any login banner; the CR LF shows a
/// channel that translates line ends.
pub const MAGIC: [u8; 8] = *b"\0KSYNC\r\n";

/// Version of everything after the hello.
pub const VERSION: u16 = 1;

/// Which part a side plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Has the files.
    Sender,
    /// Wants the files.
    Receiver,
}

/// What both sides of a run go by.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Options {
    /// Remove from the destination what the source does not have.
    pub delete: bool,
    /// Change nothing.
    pub dry_run: bool,
    /// Compare by content instead of size and time.
    pub checksum: bool,
    /// Tell every change.
    pub list_changes: bool,
    /// Pass content through zstd.
    pub compress: bool,
    /// Let set-user-id and set-group-id bits through, of what belongs to this user and group: to
    /// whom the copies will belong, where that is known.
    pub set_id_owner: Option<(u32, u32)>,
    /// Do not enter directories of the source in which another filesystem is mounted.
    pub one_file_system: bool,
    /// Leave out links that lead out of the tree.
    pub safe_links: bool,
    /// Have everything on the disk before it is reported as done.
    pub fsync: bool,
    /// Which entries take part.
    pub rules: Vec<Rule>,
    /// The SOURCE directory's path in the transfer root, where the rules' anchors are; empty if it
    /// is the root.
    #[serde(with = "serde_bytes")]
    pub anchor: Vec<u8>,
    /// What the person who typed allows to be deleted.
    pub consent: Consent,
    /// What the client remembers of source and destination.
    pub baseline: Baseline,
}

/// What may be deleted without a question.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Consent {
    /// Everything that the plan lists, save in protected directories.
    pub yes: bool,
    /// Everything, as `yes`, as long as it is no more than so many entries: somebody was asked.
    pub agreed: Option<u64>,
    /// At most so many entries.
    pub max_delete: Option<u64>,
    /// Everything in these directories: paths on the receiver's machine, as they were typed.
    pub force_in: Vec<ByteBuf>,
}

/// What the client remembers of a source and a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Baseline {
    /// Both, if the destination was a copy of this source made by ksync.
    pub pair: Option<Pair>,
    /// Which of them is in a session's VM, if one is.
    pub session: Option<InSession>,
}

/// A side in a session's VM, which is one only until it is started or made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InSession {
    /// Whether that is the sender.
    pub is_source: bool,
    /// Whether session id or host key are others than those of the pair.
    pub is_other: bool,
}

/// Most directories of [`Consent::force_in`].
pub const FORCED_MAX: usize = 64;

/// What the agent is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The agent's part.
    pub role: Role,
    /// The path as bytes, as it was typed; relative to the home directory.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// What both sides go by.
    pub options: Options,
    /// Under which name the agent remembers what was offered, if the client remembers it too. It is no secret,
    /// and says nothing to anybody else.
    pub memory: Option<[u8; 16]>,
    /// If rounds follow each other until the connection ends: how the sender watches its tree.
    pub watch: Option<Watching>,
    /// After how many milliseconds of silence the client gives the agent up; 0 is never.
    pub timeout_ms: u32,
}

/// How a sender watches its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watching {
    /// For how many milliseconds nothing may have been touched before what was is looked at.
    pub quiet_ms: u32,
    /// Look at everything again and again.
    pub poll: bool,
}

/// What a side says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u16,
    /// From the client: what the agent is to do.
    pub order: Option<Order>,
}

/// Why there is no hello.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The stream does not begin with [`MAGIC`].
    #[error("what answers is not ksync")]
    Magic,
    /// The other end speaks another version.
    #[error("the other end speaks version {0} of the protocol, not {VERSION}")]
    Version(u16),
    /// The hello is malformed or too long.
    #[error("the other end's hello is malformed")]
    Malformed,
    /// The stream ended or failed.
    #[error("waiting for the other end's hello")]
    Stream(#[from] FrameError),
}

/// Writes the magic and the hello.
///
/// # Errors
/// What writing gives.
pub fn write(writer: &mut impl Write, order: Option<Order>) -> io::Result<()> {
    let hello = Hello { version: VERSION, order };
    let bytes = postcard::to_stdvec(&hello).map_err(io::Error::other)?;
    let mut stream = MAGIC.to_vec();
    FrameWriter::new(&mut stream, false).write(&bytes)?;
    writer.write_all(&stream)?;
    writer.flush()
}

/// Reads the magic and the hello.
///
/// # Errors
/// [`HelloError`].
pub fn read(reader: &mut impl Read) -> Result<Hello, HelloError> {
    let mut magic = [0; MAGIC.len()];
    reader.read_exact(&mut magic).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => HelloError::Stream(FrameError::Closed),
        _ => HelloError::Stream(error.into()),
    })?;
    if magic != MAGIC {
        return Err(HelloError::Magic);
    }
    let bytes = FrameReader::new(reader).read()?;
    // The version comes first and stays first, so that it can be read whatever follows.
    let (version, _) = postcard::take_from_bytes::<u16>(&bytes).map_err(|_| HelloError::Malformed)?;
    if version != VERSION {
        return Err(HelloError::Version(version));
    }
    let hello: Hello = postcard::from_bytes(&bytes).map_err(|_| HelloError::Malformed)?;
    let is_too_long = |options: &Options| {
        let pattern_bytes = options.rules.iter().map(|rule| rule.pattern.len()).sum::<usize>();
        options.rules.len() > RULES_MAX
            || pattern_bytes > RULES_BYTES_MAX
            || options.consent.force_in.len() > FORCED_MAX
    };
    if hello.order.as_ref().is_some_and(|order| is_too_long(&order.options)) {
        Err(HelloError::Malformed)
    } else {
        Ok(hello)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        Order {
            role: Role::Receiver,
            path: b"/tmp/\xff".to_vec(),
            options: Options::default(),
            memory: Some([7; 16]),
            watch: None,
            timeout_ms: 60_000,
        }
    }

    #[test]
    fn a_hello_survives_the_wire() {
        let mut stream = Vec::new();
        write(&mut stream, Some(order())).unwrap();
        let hello = read(&mut stream.as_slice()).unwrap();
        assert_eq!(hello, Hello { version: VERSION, order: Some(order()) });
    }

    #[test]
    fn another_version_is_named_whatever_follows_it() {
        let mut stream = MAGIC.to_vec();
        FrameWriter::new(&mut stream, false).write(&[9, 0xff, 0xff]).unwrap();
        assert!(matches!(read(&mut stream.as_slice()), Err(HelloError::Version(9))));
    }

    #[test]
    fn what_is_not_ksync_is_said_to_be_so() {
        assert!(matches!(read(&mut &b"SSH-2.0-OpenSSH"[..]), Err(HelloError::Magic)));
        assert!(matches!(read(&mut &b""[..]), Err(HelloError::Stream(FrameError::Closed))));
    }
}
