//! Frames: the form of messages in a byte stream.
//!
//! ```text
//! u32 LE: stored length, bit 31 set if packed │ packed only: u32 LE raw length │ stored bytes
//! ```
//! The reader checks both lengths against [`FRAME_BYTES_MAX`] before it allocates memory. An
//! [`Announcement`] may stand in place of a frame: from there on the stream lies in
//! [lanes](super::lanes).

use std::io::{self, Read, Write};

use crate::content::pack::{CompressionLevel, Packer, Unpacker};
use crate::wire::lanes::{ANNOUNCEMENT, ANNOUNCEMENT_REST_BYTES, Announcement};

/// Longest frame in bytes, raw or stored: 1 MiB of content, or the names of all blocks of the
/// longest file.
pub const FRAME_BYTES_MAX: usize = 2 << 20;

const PACKED: u32 = 1 << 31;

/// Failure to read a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream ended between two frames.
    #[error("the other side closed the connection")]
    Closed,
    /// The stream ended within a frame, or could not be read.
    #[error("reading from the connection")]
    Io(#[from] io::Error),
    /// A frame declares more than is allowed.
    #[error("a frame declares {declared} bytes; {FRAME_BYTES_MAX} are allowed")]
    TooLong {
        /// The declared length.
        declared: usize,
    },
    /// The peer announces lanes where none are allowed, or too many of them.
    #[error("lanes are announced out of turn, or too many of them")]
    Lanes,
    /// A packed frame does not unpack to what it declares.
    #[error("a frame is damaged")]
    Damaged,
}

/// The next element of a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A frame.
    Frame(Vec<u8>),
    /// An announcement: from here on the stream lies in lanes.
    Lanes(Announcement),
}

/// Writes each frame in one write: an unbuffered writer may make a packet of each write, and lanes
/// begin between two writes.
pub struct FrameWriter<W> {
    writer: W,
    packer: Packer,
    buffer: Vec<u8>,
}

impl<W: Write> FrameWriter<W> {
    /// Writes to `writer`; with `compress`, packs the frames that shrink.
    pub fn new(writer: W, compress: bool) -> Self {
        Self { writer, packer: Packer::new(compress), buffer: Vec::new() }
    }

    /// Writes one frame of at most [`FRAME_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// The writer's error, or `InvalidInput` for a frame that is too long.
    pub fn write(&mut self, raw: &[u8]) -> io::Result<()> {
        let length = |bytes: &[u8]| {
            u32::try_from(bytes.len())
                .ok()
                .filter(|_| bytes.len() <= FRAME_BYTES_MAX)
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a frame is too long"))
        };
        let raw_length = length(raw)?;
        self.buffer.clear();
        match self.packer.pack(raw) {
            Some(packed) => {
                self.buffer.extend_from_slice(&(length(&packed)? | PACKED).to_le_bytes());
                self.buffer.extend_from_slice(&raw_length.to_le_bytes());
                self.buffer.extend_from_slice(&packed);
            }
            None => {
                self.buffer.extend_from_slice(&raw_length.to_le_bytes());
                self.buffer.extend_from_slice(raw);
            }
        }
        self.writer.write_all(&self.buffer)
    }

    /// The compression effort of later frames.
    #[must_use]
    pub fn level(&self) -> CompressionLevel {
        self.packer.level()
    }

    /// Sets the compression effort of later frames.
    pub fn set_level(&mut self, level: CompressionLevel) {
        self.packer.set_level(level);
    }

    /// Flushes the writer.
    ///
    /// # Errors
    /// The writer's error.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Reads frames.
pub struct FrameReader<R> {
    reader: R,
    unpacker: Unpacker,
}

impl<R: Read> FrameReader<R> {
    /// Reads from `reader`.
    pub fn new(reader: R) -> Self {
        Self::continuing(reader, Unpacker::new())
    }

    /// Reads the frames from `reader` that continue frames of another stream; `unpacker` holds
    /// their history.
    pub fn continuing(reader: R, unpacker: Unpacker) -> Self {
        Self { reader, unpacker }
    }

    /// Returns the rest of the stream, and the unpacker with the history that later frames may
    /// refer to.
    pub fn into_parts(self) -> (R, Unpacker) {
        (self.reader, self.unpacker)
    }

    /// Reads the next frame; an announcement of lanes is an error here.
    ///
    /// # Errors
    /// [`FrameError::Closed`] at the end of the stream, otherwise the failure.
    pub fn read(&mut self) -> Result<Vec<u8>, FrameError> {
        match self.read_first()? {
            // Fail at once, even if the rest of the announcement never arrives.
            Some(ANNOUNCEMENT) => Err(FrameError::Lanes),
            Some(first) => self.read_frame(first),
            None => Err(FrameError::Closed),
        }
    }

    /// Reads the next frame or an announcement of lanes.
    ///
    /// # Errors
    /// As [`FrameReader::read`].
    pub fn read_next(&mut self) -> Result<Next, FrameError> {
        let Some(first) = self.read_first()? else { return Err(FrameError::Closed) };
        if first == ANNOUNCEMENT {
            let mut rest = [0; ANNOUNCEMENT_REST_BYTES];
            self.reader.read_exact(&mut rest)?;
            return Announcement::decode_rest(rest).map(Next::Lanes).ok_or(FrameError::Lanes);
        }
        self.read_frame(first).map(Next::Frame)
    }

    fn read_frame(&mut self, first: u32) -> Result<Vec<u8>, FrameError> {
        let declared = (first & !PACKED) as usize;
        check_length(declared)?;
        if first & PACKED == 0 {
            return Ok(self.read_bytes(declared)?);
        }
        let mut raw_length = [0; 4];
        self.reader.read_exact(&mut raw_length)?;
        let raw_length = u32::from_le_bytes(raw_length) as usize;
        check_length(raw_length)?;
        let packed = self.read_bytes(declared)?;
        self.unpacker.unpack(&packed, raw_length).map_err(|_| FrameError::Damaged)
    }

    /// Reads the first word of a frame; `None` where the stream ends before it.
    fn read_first(&mut self) -> io::Result<Option<u32>> {
        let mut first = [0; 4];
        let mut filled = 0;
        while let Some(rest) = first.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.reader.read(rest) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(u32::from_le_bytes(first)))
    }

    fn read_bytes(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn check_length(declared: usize) -> Result<(), FrameError> {
    if declared > FRAME_BYTES_MAX { Err(FrameError::TooLong { declared }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::lanes::{LANES_MAX, Token};

    #[test]
    fn frames_survive_the_stream_packed_and_unpacked() {
        let text = b"text ".repeat(1000);
        let mut stream = Vec::new();
        let mut writer = FrameWriter::new(&mut stream, true);
        for frame in [&b""[..], b"short", &text] {
            writer.write(frame).unwrap();
        }
        assert!(stream.len() < 200, "{}", stream.len());
        let mut reader = FrameReader::new(stream.as_slice());
        for frame in [&b""[..], b"short", &text] {
            assert_eq!(reader.read().unwrap(), frame);
        }
        assert!(matches!(reader.read(), Err(FrameError::Closed)));
    }

    #[test]
    fn frame_that_declares_too_much_is_refused_unread() {
        for header in [[0xff; 8], [1, 0, 0, 0x80, 0xff, 0xff, 0xff, 0x7f]] {
            let error = FrameReader::new(&header[..]).read().unwrap_err();
            assert!(matches!(error, FrameError::TooLong { .. }), "{error}");
        }
        assert!(FrameWriter::new(Vec::new(), true).write(&vec![0; FRAME_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn announcement_survives_the_stream_and_is_refused_by_plain_read() {
        let announcement = Announcement { token: Token::new(*b"0123456789abcdef"), lanes: 8 };
        let bytes = announcement.encode();
        assert_eq!(FrameReader::new(&bytes[..]).read_next().unwrap(), Next::Lanes(announcement));
        assert!(matches!(FrameReader::new(&bytes[..4]).read(), Err(FrameError::Lanes)));
        assert!(matches!(FrameReader::new(&bytes[..bytes.len() - 1]).read_next(), Err(FrameError::Io(_))));
        let too_many = u8::try_from(LANES_MAX + 1).unwrap();
        for lanes in [0, too_many, 255] {
            let bytes = Announcement { lanes, ..announcement }.encode();
            assert!(matches!(FrameReader::new(&bytes[..]).read_next(), Err(FrameError::Lanes)), "{lanes}");
        }
    }

    #[test]
    fn cut_stream_is_an_error_unless_cut_between_frames() {
        let mut stream = Vec::new();
        FrameWriter::new(&mut stream, true).write(b"frame").unwrap();
        for end in 1..stream.len() {
            assert!(matches!(FrameReader::new(&stream[..end]).read(), Err(FrameError::Io(_))), "{end}");
        }
    }
}
