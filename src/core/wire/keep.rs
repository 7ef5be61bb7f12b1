//! Records: how one kept agent serves one run after another over one channel.
//!
//! A *kept agent* is an agent that outlives its run. The client starts it with [`ARGUMENT`] and
//! borrows its stream for each further run. The stream of a run holds exactly the bytes that a
//! fresh agent would read from stdin and write to stdout. Records tell the runs apart:
//!
//! ```text
//! u8: kind │ u24 BE: length of the payload, at most 64 KiB │ payload
//! ```
//! ```text
//!  CLIENT                                     KEPT AGENT
//!    ◄──────────────────────────────── MAGIC (of the hello)
//!  Data (magic, hello, frames) … ────────────► serves the run
//!    ◄──────────────────────────────── Data (magic, hello, frames) …
//!  End, when the run's client closed ────────► sees the end of the stream
//!    ◄──────────────────────────────── End, after the run's last bytes
//!  Data … ───────────────────────────────────► serves the next run
//! ```
//! There is one run at a time. The first `Data` of a run begins it. A run may end before its client
//! closes: the agent then skips what is left of it, up to the client's `End`. The next run begins
//! after both `End`s. A client that died leaves an `End` too: whoever holds the channel writes it.
//! Each `End` of the client has one answer, also the `End` of a run that sent nothing.
//!
//! `Warm` holds a request that somebody is likely to make. The agent lists that tree, watches it,
//! and answers nothing. `Ping` may come at any time, and `Pong` answers it with the same payload:
//! at once between two runs, later during a run whose agent has no room for more input. A record of
//! an unknown kind, or in the wrong direction, ends the channel. The agent exits when the channel
//! ends.

use crate::wire::hello::{HelloError, Request};

/// The agent's argument that makes it a kept one.
pub const ARGUMENT: &str = "keep";

/// Longest payload of a record, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// Longest payload of `Ping` and `Pong`, in bytes.
pub const PING_BYTES_MAX: usize = 16;

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 4;

/// The kind of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of the current run's stream. It is never empty.
    Data,
    /// The current run's stream ends in this direction.
    End,
    /// A request that is likely to come: the agent begins to watch its tree. Client to agent only.
    Warm,
    /// Asks for a sign of life. Client to agent only.
    Ping,
    /// Answers `Ping`, with its payload. Agent to client only.
    Pong,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Data, Self::End, Self::Warm, Self::Ping, Self::Pong];

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }

    /// The lengths that its payload may have.
    fn lengths(self) -> std::ops::RangeInclusive<usize> {
        match self {
            Self::Data => 1..=PAYLOAD_BYTES_MAX,
            Self::End => 0..=0,
            Self::Warm => 0..=PAYLOAD_BYTES_MAX,
            Self::Ping | Self::Pong => 0..=PING_BYTES_MAX,
        }
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its kind.
    pub kind: Kind,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// A stream that holds no records. It cannot be read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A record of an unknown kind.
    #[error("a record of kind {0}, which does not exist")]
    Kind(u8),
    /// A record whose payload is too long or too short for its kind.
    #[error("a record of kind {kind:?} declares {declared} bytes")]
    Length {
        /// The record's kind.
        kind: Kind,
        /// The declared length.
        declared: usize,
    },
}

/// Encodes one record.
///
/// # Errors
/// The payload is too long or too short for this kind.
pub fn encode(kind: Kind, payload: &[u8]) -> Result<Vec<u8>, RecordError> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    push(&mut bytes, kind, payload)?;
    Ok(bytes)
}

/// Cuts bytes of a run's stream into `Data` records.
#[must_use]
pub fn encode_data(stream: &[u8]) -> Vec<u8> {
    let headers = stream.len().div_ceil(PAYLOAD_BYTES_MAX) * HEADER_BYTES;
    let mut bytes = Vec::with_capacity(headers + stream.len());
    for payload in stream.chunks(PAYLOAD_BYTES_MAX) {
        // No chunk is empty or too long.
        let _ = push(&mut bytes, Kind::Data, payload);
    }
    bytes
}

/// Encodes a `Warm` record; `None` for a request that is too long for one.
#[must_use]
pub fn encode_warm(request: &Request) -> Option<Vec<u8>> {
    encode(Kind::Warm, &postcard::to_stdvec(request).ok()?).ok()
}

fn push(bytes: &mut Vec<u8>, kind: Kind, payload: &[u8]) -> Result<(), RecordError> {
    let declared = payload.len();
    let length = u32::try_from(declared).ok().filter(|_| kind.lengths().contains(&declared));
    let [_, high, middle, low] = length.ok_or(RecordError::Length { kind, declared })?.to_be_bytes();
    bytes.extend_from_slice(&[kind as u8, high, middle, low]);
    bytes.extend_from_slice(payload);
    Ok(())
}

impl Record {
    /// The request of a `Warm` record.
    ///
    /// # Errors
    /// It is malformed, or exceeds the limits of a hello.
    pub fn request(&self) -> Result<Request, HelloError> {
        Request::decode(&self.payload)
    }
}

/// Decodes a stream that is cut anywhere. It never holds more than one record.
#[derive(Debug, Default)]
pub struct Decoder {
    header: Vec<u8>,
    /// The record whose payload is arriving, and what is missing of it.
    arriving: Option<(Record, usize)>,
}

impl Decoder {
    /// Takes bytes from the front of `input`, up to the end of a record, and returns that record.
    /// `None` once the input is empty. Call it until then.
    ///
    /// # Errors
    /// [`RecordError`], before memory is allocated for the payload. The decoder must not be used
    /// afterwards.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Record>, RecordError> {
        while self.arriving.is_none() {
            let Some((&byte, rest)) = input.split_first() else { return Ok(None) };
            *input = rest;
            self.header.push(byte);
            if let [kind, high, middle, low] = *self.header {
                self.header.clear();
                let kind = Kind::of(kind).ok_or(RecordError::Kind(kind))?;
                let declared = u32::from_be_bytes([0, high, middle, low]) as usize;
                if !kind.lengths().contains(&declared) {
                    return Err(RecordError::Length { kind, declared });
                }
                self.arriving = Some((Record { kind, payload: Vec::with_capacity(declared) }, declared));
            }
        }
        let Some((record, missing)) = &mut self.arriving else { return Ok(None) };
        let (taken, rest) = input.split_at(input.len().min(*missing));
        *input = rest;
        record.payload.extend_from_slice(taken);
        *missing -= taken.len();
        let is_complete = *missing == 0;
        Ok(self.arriving.take_if(|_| is_complete).map(|(record, _)| record))
    }

    /// True if the stream may end here: no record has arrived in part.
    #[must_use]
    pub fn is_between_records(&self) -> bool {
        self.header.is_empty() && self.arriving.is_none()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::wire::hello::{Options, Role};

    /// The records of a stream that arrives in pieces of these lengths, over and over.
    fn decode(stream: &[u8], pieces: &[usize]) -> Result<(Vec<Record>, bool), RecordError> {
        let (mut decoder, mut records, mut rest) = (Decoder::default(), Vec::new(), stream);
        for length in pieces.iter().cycle() {
            let (mut piece, behind) = rest.split_at(rest.len().min(*length));
            while let Some(record) = decoder.next(&mut piece)? {
                records.push(record);
            }
            assert!(piece.is_empty());
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
        Ok((records, decoder.is_between_records()))
    }

    fn record() -> impl Strategy<Value = Record> {
        prop_oneof![
            vec(any::<u8>(), 1..300).prop_map(|payload| Record { kind: Kind::Data, payload }),
            vec(any::<u8>(), 0..300).prop_map(|payload| Record { kind: Kind::Warm, payload }),
            Just(Record { kind: Kind::End, payload: Vec::new() }),
            vec(any::<u8>(), 0..=PING_BYTES_MAX).prop_map(|payload| Record { kind: Kind::Ping, payload }),
            vec(any::<u8>(), 0..=PING_BYTES_MAX).prop_map(|payload| Record { kind: Kind::Pong, payload }),
        ]
    }

    proptest! {
        #[test]
        fn records_survive_the_stream_however_it_is_cut(
            records in vec(record(), 0..20),
            pieces in vec(1_usize..400, 1..20),
        ) {
            let stream: Vec<u8> =
                records.iter().flat_map(|record| encode(record.kind, &record.payload).unwrap()).collect();
            prop_assert_eq!(decode(&stream, &pieces), Ok((records, true)));
        }

        #[test]
        fn any_bytes_are_records_or_an_error_whatever_their_cut(
            stream in vec(prop_oneof![Just(0_u8), 0_u8..6, any::<u8>()], 0..2000),
            pieces in vec(1_usize..100, 1..10),
        ) {
            let (cut, whole) = (decode(&stream, &pieces), decode(&stream, &[usize::MAX]));
            prop_assert_eq!(&cut, &whole);
            if let Ok((records, is_complete)) = cut {
                let again: Vec<u8> =
                    records.iter().flat_map(|record| encode(record.kind, &record.payload).unwrap()).collect();
                prop_assert!(stream.starts_with(&again));
                prop_assert_eq!(is_complete, again.len() == stream.len());
            }
        }
    }

    #[test]
    fn record_that_declares_a_wrong_length_is_refused_before_its_payload() {
        for (header, kind, declared) in [
            ([0, 1, 0, 1], Kind::Data, (64 << 10) + 1),
            ([0, 0xff, 0xff, 0xff], Kind::Data, (16 << 20) - 1),
            ([0, 0, 0, 0], Kind::Data, 0),
            ([1, 0, 0, 1], Kind::End, 1),
            ([2, 1, 0, 1], Kind::Warm, (64 << 10) + 1),
            ([3, 0, 0, 17], Kind::Ping, 17),
            ([4, 0, 1, 0], Kind::Pong, 256),
        ] {
            assert_eq!(decode(&header, &[1]), Err(RecordError::Length { kind, declared }));
            assert_eq!(encode(kind, &vec![0; declared]), Err(RecordError::Length { kind, declared }));
        }
        assert_eq!(decode(&[5, 0, 0, 0], &[4]), Err(RecordError::Kind(5)));
        assert_eq!(
            decode(b"\0KSYNC\r\n", &[4]),
            Err(RecordError::Length { kind: Kind::Data, declared: 0x4b_53_59 })
        );
    }

    #[test]
    fn long_stream_is_cut_into_full_records() {
        let stream = vec![7; 2 * PAYLOAD_BYTES_MAX + 1];
        let (records, _) = decode(&encode_data(&stream), &[1000]).unwrap();
        let lengths: Vec<usize> = records.iter().map(|record| record.payload.len()).collect();
        assert_eq!(lengths, [PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_MAX, 1]);
        assert!(encode_data(b"").is_empty());
    }

    #[test]
    fn warm_record_holds_a_request_or_is_an_error() {
        let request = Request {
            role: Role::Receiver,
            path: b"/tmp/\xff".to_vec(),
            further: Vec::new(),
            options: Options::default(),
            baseline_key: Some([7; 16]),
            watch: None,
            timeout_ms: 60_000,
        };
        let (records, _) = decode(&encode_warm(&request).unwrap(), &[3]).unwrap();
        assert_eq!(records[0].request().unwrap(), request);
        let cut = Record { kind: Kind::Warm, payload: records[0].payload[..9].to_vec() };
        assert!(matches!(cut.request(), Err(HelloError::Malformed)));
        let long = Request { path: vec![b'a'; PAYLOAD_BYTES_MAX], ..request };
        assert_eq!(encode_warm(&long), None);
    }
}
