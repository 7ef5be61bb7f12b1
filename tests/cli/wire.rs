//! A second, tiny implementation of the wire, made by hand: it says what ksync's own would refuse to say.

/// What either side sends first.
const MAGIC: &[u8] = b"\0KSYNC\r\n";

/// The number of an `Abort`.
pub(crate) const ABORT: u8 = 19;

/// Bit of a frame's length that says that it is packed.
const PACKED: u32 = 1 << 31;

/// Bytes in the making, in postcard's form.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wire(pub(crate) Vec<u8>);

impl Wire {
    pub(crate) fn of(message: u8) -> Wire {
        Wire(vec![message])
    }

    /// An unsigned number: seven bits a byte.
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

    /// Bytes behind their length.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Wire {
        let mut wire = self.number(bytes.len() as u64);
        wire.0.extend_from_slice(bytes);
        wire
    }

    /// Bytes as they are.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Wire {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Behind their length, as a frame.
    pub(crate) fn frame(self) -> Vec<u8> {
        let mut frame = (self.0.len() as u32).to_le_bytes().to_vec();
        frame.extend(self.0);
        frame
    }
}

/// The agent's part in an exchange.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Role {
    Sender = 0,
    Receiver = 1,
}

/// How many bytes say that all other options are off and nothing is known, remembered or watched.
const OPTIONS_OFF: usize = 19;

/// What a client says first: what the agent is to do. All options are off but these, and nothing is
/// remembered or watched.
pub(crate) fn order(role: Role, path: &[u8], delete: bool) -> Vec<u8> {
    let order = Wire::of(1).raw(&[1, role as u8]).bytes(path).raw(&[u8::from(delete)]).raw(&[0; OPTIONS_OFF]);
    [MAGIC, &order.frame()].concat()
}

/// What an agent of this version says first.
pub(crate) fn agent_hello(version: u8) -> Vec<u8> {
    [MAGIC, &Wire::of(version).raw(&[0]).frame()].concat()
}

/// What is offered in a manifest.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind<'a> {
    Directory,
    File(u64),
    Link(&'a [u8]),
}

/// All that a sender says of a directory tree with these entries, in this order, whatever they are.
pub(crate) fn offer(entries: &[(&[u8], Kind<'_>)]) -> Vec<u8> {
    let subject = Wire::of(0).raw(&[0]).number(0o755).signed(1_000_000_000).number(0).raw(&[0; 3]);
    let mut block = Wire::default();
    for (path, kind) in entries {
        // Nothing shared with the path before, then mode and time.
        block = block.number(0).bytes(path).number(0o644).signed(0).number(0);
        block = match kind {
            Kind::Directory => block.number(0),
            Kind::File(size) => block.number(1).number(*size),
            Kind::Link(target) => block.number(3).bytes(target),
        };
    }
    let ignores = Wire::of(1).number(0);
    let entries = Wire::of(2).bytes(&block.0);
    let offered = Wire::of(3).raw(&[1]);
    [subject, ignores, entries, offered].map(Wire::frame).concat()
}

/// A receiver's wish for the files with these ids, of which it has nothing.
pub(crate) fn wants(ids: &[u64]) -> Vec<u8> {
    let all = Wire::of(8).number(ids.len() as u64);
    ids.iter().fold(all, |wire, &id| wire.number(id).raw(&[0, 0])).frame()
}

/// The whole content of a file.
pub(crate) fn content(id: u64, content: &[u8]) -> Vec<u8> {
    let hash = blake3::hash(content);
    Wire::of(9).number(1).number(id).raw(&[0]).raw(hash.as_bytes()).bytes(content).frame()
}

/// That only these parts of a tree are offered, each with everything below it.
pub(crate) fn scope(parts: &[&[u8]]) -> Vec<u8> {
    let all = Wire::of(ABORT + 1).number(parts.len() as u64);
    parts.iter().fold(all, |wire, part| wire.bytes(part).raw(&[1])).frame()
}

/// The content of a file, before the offer ends and before anybody asked for it.
pub(crate) fn pushed(id: u64, content: &[u8]) -> Vec<u8> {
    let hash = blake3::hash(content);
    Wire::of(ABORT + 2).number(1).number(id).raw(hash.as_bytes()).bytes(content).frame()
}

/// The reason of the first Abort in what an agent wrote, as its kind and text.
pub(crate) fn abort_in(mut output: &[u8]) -> Option<(u8, String)> {
    output = output.strip_prefix(MAGIC)?;
    while let Some((length, rest)) = output.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length);
        assert_eq!(length & PACKED, 0, "nothing was to be packed");
        let (frame, rest) = rest.split_at_checked(length as usize)?;
        // An Abort's text is shorter than 128 bytes, or has a length of two bytes.
        if let [ABORT, kind, text @ ..] = frame {
            let start = if text.first().is_some_and(|&byte| byte >= 0x80) { 2 } else { 1 };
            return Some((*kind, String::from_utf8_lossy(&text[start..]).into_owned()));
        }
        output = rest;
    }
    None
}
