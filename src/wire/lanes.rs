//! Lanes: how one direction of an exchange lies in several streams.
//!
//! ```text
//! main   hello │ frames … │ announcement │ segments …
//! lane                                     segments …
//!
//! announcement   4 bytes: "LANE" │ 16 bytes: token │ u8: lanes in all, the main one included
//! segment        u64 LE: number │ u32 LE: length │ bytes
//! ```
//! Behind the announcement the bytes of the frames go on in segments, numbered from 0 over all lanes together.
//! Each segment goes over whichever lane has room first, and each lane keeps its order; so the next number is
//! always the first on some lane, and whoever puts them back in order need hold no more than one segment of
//! each lane to get on.

use std::fmt;
use std::io::{self, Read};

/// Most lanes of an exchange, the main one included: eight windows of 2 MiB fill 1 Gbit/s at 100 ms round trip,
/// and an sshd allows ten sessions unless it is told otherwise.
pub const LANES_MAX: usize = 8;

/// Longest segment, in bytes: so much may wait in a lane whose window is used up.
pub const SEGMENT_BYTES_MAX: usize = 128 << 10;

/// Stands where a frame would say its length, and as a length is more than any of them has.
pub(super) const ANNOUNCEMENT: u32 = u32::from_le_bytes(*b"LANE");

/// Bytes of an announcement behind its first word.
pub(super) const ANNOUNCEMENT_REST_BYTES: usize = TOKEN_BYTES + 1;

const TOKEN_BYTES: usize = 16;
const HEADER_BYTES: usize = 12;

/// What a lane shows to join its exchange: random, so that no two exchanges are confused. It is not a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token([u8; TOKEN_BYTES]);

impl Token {
    /// A token of these bytes, which have to be random.
    #[must_use]
    pub fn new(random: [u8; TOKEN_BYTES]) -> Self {
        Self(random)
    }

    /// What [`Display`](fmt::Display) made of a token.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // `from_str_radix` alone would take a sign, and fewer digits.
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

/// Says that from here on the stream lies in several lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// What the lanes show to join.
    pub token: Token,
    /// How many there may become, the main one included; at most [`LANES_MAX`].
    pub lanes: u8,
}

impl Announcement {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = ANNOUNCEMENT.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.token.0);
        bytes.push(self.lanes);
        bytes
    }

    /// Reads what stands behind the first word; `None` where so many lanes are not allowed.
    pub(super) fn decode_rest(rest: [u8; ANNOUNCEMENT_REST_BYTES]) -> Option<Self> {
        let (token, lanes) = rest.split_first_chunk()?;
        let lanes = *lanes.first()?;
        (1..=LANES_MAX).contains(&usize::from(lanes)).then_some(Self { token: Token(*token), lanes })
    }
}

/// Why a lane cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The lane ended within a segment, or could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A segment declares more than is allowed, or nothing.
    #[error("a segment declares {declared} bytes; 1 to {SEGMENT_BYTES_MAX} are allowed")]
    Length {
        /// What it declares.
        declared: u32,
    },
}

/// Puts a segment of at most [`SEGMENT_BYTES_MAX`] bytes into its form on a lane.
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
/// [`SegmentError`]; no memory is taken for a length that is not allowed.
pub fn read_segment(lane: &mut impl Read) -> Result<Option<(u64, Vec<u8>)>, SegmentError> {
    let mut number = [0; 8];
    // An end before the first byte is the end of the lane; one behind it is a cut.
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
    fn a_token_survives_its_text_and_nothing_else_is_one() {
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
    fn segments_come_back_and_a_cut_one_is_an_error() {
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
    fn a_segment_that_declares_too_much_or_nothing_is_refused_unread() {
        for declared in [0, SEGMENT_BYTES_MAX as u32 + 1, u32::MAX] {
            let mut bytes = vec![0; 8];
            bytes.extend(declared.to_le_bytes());
            let error = read_segment(&mut bytes.as_slice()).unwrap_err();
            assert!(matches!(error, SegmentError::Length { declared: told } if told == declared), "{error}");
        }
    }
}
