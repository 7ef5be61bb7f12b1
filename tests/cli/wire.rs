//! A second, tiny implementation of the wire, made by hand: it can send messages that ksync would
//! refuse to send.

/// The first bytes that either side sends.
const MAGIC: &[u8] = b"\0KSYNC\r\n";

/// The numbers of an `Abort` and of a `Heartbeat`: messages that either side may send.
pub(crate) const ABORT: [u8; 2] = [0, 1];
pub(crate) const HEARTBEAT: [u8; 2] = [0, 2];

/// The numbers of the sender's messages.
const SCOPE: u8 = 1;
const SUBJECT: u8 = 2;
const IGNORES: u8 = 4;
const ENTRIES: u8 = 5;
const OFFERED: u8 = 6;
const PUSHED: u8 = 9;
pub(crate) const ANSWERS: u8 = 13;

/// The number of the receiver's wants.
const WANTS: u8 = 2;

/// Bit of a frame's length that marks the frame as compressed.
const PACKED: u32 = 1 << 31;

/// A growing message, in postcard's format.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wire(pub(crate) Vec<u8>);

impl Wire {
    pub(crate) fn of(message: u8) -> Wire {
        Wire(vec![message])
    }

    /// A message that either side may send.
    pub(crate) fn common(message: [u8; 2]) -> Wire {
        Wire(message.to_vec())
    }

    /// An unsigned number: seven bits per byte.
    pub(crate) fn number(mut self, mut number: u64) -> Wire {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
        self
    }

    /// A signed number: zigzag.
    pub(crate) fn signed(self, number: i64) -> Wire {
        self.number(((number << 1) ^ (number >> 63)) as u64)
    }

    /// Bytes after their length.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Wire {
        let mut wire = self.number(bytes.len() as u64);
        wire.0.extend_from_slice(bytes);
        wire
    }

    /// Bytes without a length.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Wire {
        self.0.extend_from_slice(bytes);
        self
    }

    /// The message as a frame, after its length.
    pub(crate) fn frame(self) -> Vec<u8> {
        let mut frame = (self.0.len() as u32).to_le_bytes().to_vec();
        frame.extend(self.0);
        frame
    }
}

/// The agent's role in an exchange.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Role {
    Sender = 0,
    Receiver = 1,
}

/// Number of zero bytes for the remaining options: all off, no pair, no baseline, no watch.
const OPTIONS_OFF: usize = 41;

/// The first message of a client, with the request. All options but these are off, without baseline
/// or watch.
pub(crate) fn request(role: Role, path: &[u8], delete: bool) -> Vec<u8> {
    // After the path: no further sources.
    let request =
        Wire::of(1).raw(&[1, role as u8]).bytes(path).raw(&[0, u8::from(delete)]).raw(&[0; OPTIONS_OFF]);
    [MAGIC, &request.frame()].concat()
}

/// The first message of an agent of this version.
pub(crate) fn agent_hello(version: u8) -> Vec<u8> {
    [MAGIC, &Wire::of(version).raw(&[0]).frame()].concat()
}

/// The kind of an offered entry.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind<'a> {
    Directory,
    File(u64),
    Link(&'a [u8]),
}

/// All messages of a sender that offers these entries, in this order, valid or not.
pub(crate) fn offer(entries: &[(&[u8], Kind<'_>)]) -> Vec<u8> {
    let subject = Wire::of(SUBJECT).raw(&[0]).number(0o755).signed(1_000_000_000).number(0).raw(&[0; 3]);
    let mut block = Wire::default();
    for (path, kind) in entries {
        // No prefix shared with the previous path; then mode and time.
        block = block.number(0).bytes(path).number(0o644).signed(0).number(0);
        block = match kind {
            Kind::Directory => block.number(0),
            Kind::File(size) => block.number(1).number(*size),
            Kind::Link(target) => block.number(3).bytes(target),
        };
    }
    let ignores = Wire::of(IGNORES).number(0);
    let entries = Wire::of(ENTRIES).bytes(&block.0);
    let offered = Wire::of(OFFERED).raw(&[1]);
    [subject, ignores, entries, offered].map(Wire::frame).concat()
}

/// A receiver's request for the files with these ids, of which it has nothing.
pub(crate) fn wants(ids: &[u64]) -> Vec<u8> {
    let all = Wire::of(WANTS).number(ids.len() as u64);
    ids.iter().fold(all, |wire, &id| wire.number(id).raw(&[0, 0])).frame()
}

/// The whole content of a file.
pub(crate) fn content(id: u64, content: &[u8]) -> Vec<u8> {
    let hash = blake3::hash(content);
    // One file; steps, of which one is data; then the hash.
    let steps = Wire::of(ANSWERS).number(1).number(id).raw(&[0]).number(1).raw(&[2]).bytes(content);
    steps.raw(&[1]).raw(hash.as_bytes()).frame()
}

/// The message that only these subtrees are offered, each with everything below it.
pub(crate) fn scope(parts: &[&[u8]]) -> Vec<u8> {
    let all = Wire::of(SCOPE).number(parts.len() as u64);
    parts.iter().fold(all, |wire, part| wire.bytes(part).raw(&[1])).frame()
}

/// The content of a file, pushed before the offer ends and before any request.
pub(crate) fn pushed(id: u64, content: &[u8]) -> Vec<u8> {
    let hash = blake3::hash(content);
    Wire::of(PUSHED).number(1).number(id).raw(hash.as_bytes()).bytes(content).frame()
}

/// Kind and text of the first Abort in an agent's output.
pub(crate) fn abort_in(mut output: &[u8]) -> Option<(u8, String)> {
    output = output.strip_prefix(MAGIC)?;
    while let Some((length, rest)) = output.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length);
        assert_eq!(length & PACKED, 0, "nothing was to be packed");
        let (frame, rest) = rest.split_at_checked(length as usize)?;
        // The text is shorter than 128 bytes, or its length takes two bytes.
        if let Some([kind, text @ ..]) = frame.strip_prefix(&ABORT) {
            let start = if text.first().is_some_and(|&byte| byte >= 0x80) { 2 } else { 1 };
            return Some((*kind, String::from_utf8_lossy(&text[start..]).into_owned()));
        }
        output = rest;
    }
    None
}
