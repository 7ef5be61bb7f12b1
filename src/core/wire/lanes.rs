//! Lanes: one direction of an exchange, spread over several streams.
//!
//! ```text
//! main   hello │ frames … │ announcement │ segments …
//! lane                                     segments …
//!
//! announcement   4 bytes: "LANE" │ 16 bytes: token │ u8: lanes in all, the main one included
//! segment        u64 LE: number │ u32 LE: length │ bytes
//! ```
//! After the announcement the bytes of the frames travel in segments, numbered from 0 over all
//! lanes together. Each segment takes the lane that has room first, and each lane keeps its order.
//! So the segment with the next number is always the first unread one of some lane. A reader needs
//! to hold at most one segment of each lane to restore the order.

use std::fmt;
use std::io::{self, Read};

/// Most lanes over the channels of one connection, the main one included. Eight windows of 2 MiB
/// fill 1 Gbit/s at a round trip of 100 ms, and sshd allows ten sessions by default.
pub const CHANNELS_MAX: usize = 8;

/// Most further connections, with a lane each, where losses limit a single one.
pub const FURTHER_CONNECTIONS_MAX: usize = 3;

/// Most lanes of an exchange, the main one included.
pub const LANES_MAX: usize = CHANNELS_MAX + FURTHER_CONNECTIONS_MAX;

/// Longest segment, in bytes: so much may wait in a lane whose window is used up.
pub const SEGMENT_BYTES_MAX: usize = 128 << 10;

/// Marks an announcement in place of a frame's length; as a length it exceeds every limit.
pub(super) const ANNOUNCEMENT: u32 = u32::from_le_bytes(*b"LANE");

/// Bytes of an announcement after its first word.
pub(super) const ANNOUNCEMENT_REST_BYTES: usize = TOKEN_BYTES + 1;

const TOKEN_BYTES: usize = 16;
const HEADER_BYTES: usize = 12;

/// Token by which a lane names the exchange that it joins. The token is random, so that two
/// exchanges are not confused, but not secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token([u8; TOKEN_BYTES]);

impl Token {
    /// Makes a token of these bytes, which must be random.
    #[must_use]
    pub fn new(random: [u8; TOKEN_BYTES]) -> Self {
        Self(random)
    }

    /// Parses the text that [`Display`](fmt::Display) writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // `from_str_radix` alone would accept a sign, and fewer digits.
        let is_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number =
            u128::from_str_radix(text, 16).ok().filter(|_| is_hex && text.len() == 2 * TOKEN_BYTES)?;
        Some(Self(number.to_be_bytes()))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Token({self})")
    }
}

/// Announcement: from here on the stream lies in several lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// The token with which lanes join.
    pub token: Token,
    /// The most lanes that may join, the main one included; at most [`LANES_MAX`].
    pub lanes: u8,
}

impl Announcement {
    /// The wire form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = ANNOUNCEMENT.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.token.0);
        bytes.push(self.lanes);
        bytes
    }

    /// Decodes the bytes after the first word; `None` if the number of lanes is not allowed.
    pub(super) fn decode_rest(rest: [u8; ANNOUNCEMENT_REST_BYTES]) -> Option<Self> {
        let (token, lanes) = rest.split_first_chunk()?;
        let lanes = *lanes.first()?;
        (1..=LANES_MAX).contains(&usize::from(lanes)).then_some(Self { token: Token(*token), lanes })
    }
}

/// Failure to read a lane.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The lane ended within a segment, or could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A segment declares no bytes, or more than are allowed.
    #[error("a segment declares {declared} bytes; 1 to {SEGMENT_BYTES_MAX} are allowed")]
    Length {
        /// The declared length.
        declared: u32,
    },
}

/// Encodes a segment of at most [`SEGMENT_BYTES_MAX`] bytes.
#[must_use]
pub fn encode_segment(number: u64, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let mut segment = Vec::with_capacity(HEADER_BYTES + bytes.len());
    segment.extend_from_slice(&number.to_le_bytes());
    segment.extend_from_slice(&length.to_le_bytes());
    segment.extend_from_slice(bytes);
    segment
}

/// Reads the next segment of a lane; `None` where the lane ends before it.
///
/// # Errors
/// See [`SegmentError`]. No memory is allocated for a length that is not allowed.
pub fn read_segment(lane: &mut impl Read) -> Result<Option<(u64, Vec<u8>)>, SegmentError> {
    let mut number = [0; 8];
    // An end before the first byte is the end of the lane; an end after it is a cut.
    loop {
        match lane.read(&mut number[..1]) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    lane.read_exact(&mut number[1..])?;
    let mut declared = [0; 4];
    lane.read_exact(&mut declared)?;
    let declared = u32::from_le_bytes(declared);
    if !(1..=SEGMENT_BYTES_MAX).contains(&(declared as usize)) {
        return Err(SegmentError::Length { declared });
    }
    let mut bytes = vec![0; declared as usize];
    lane.read_exact(&mut bytes)?;
    Ok(Some((u64::from_le_bytes(number), bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_survives_its_text_and_malformed_texts_are_refused() {
        let token = Token::new([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xff]);
        assert_eq!(token.to_string(), "000102030405060708090a0b0c0d0eff");
        assert_eq!(Token::parse(&token.to_string()), Some(token));
        for text in [
            "",
            "00",
            "+00102030405060708090a0b0c0d0eff",
            "000102030405060708090A0B0C0D0EFF",
            &"0".repeat(33),
        ] {
            assert_eq!(Token::parse(text), None, "{text}");
        }
    }

    #[test]
    fn segments_survive_the_stream_and_a_cut_segment_is_an_error() {
        let stream = [encode_segment(0, b"first"), encode_segment(u64::MAX, b"x")].concat();
        let mut lane = stream.as_slice();
        assert_eq!(read_segment(&mut lane).unwrap(), Some((0, b"first".to_vec())));
        assert_eq!(read_segment(&mut lane).unwrap(), Some((u64::MAX, b"x".to_vec())));
        assert_eq!(read_segment(&mut lane).unwrap(), None);
        for end in 1..HEADER_BYTES + 5 {
            assert!(matches!(read_segment(&mut &stream[..end]), Err(SegmentError::Io(_))), "{end}");
        }
    }

    #[test]
    fn segment_of_a_forbidden_length_is_refused_unread() {
        for declared in [0, SEGMENT_BYTES_MAX as u32 + 1, u32::MAX] {
            let mut bytes = vec![0; 8];
            bytes.extend(declared.to_le_bytes());
            let error = read_segment(&mut bytes.as_slice()).unwrap_err();
            assert!(matches!(error, SegmentError::Length { declared: told } if told == declared), "{error}");
        }
    }
}
