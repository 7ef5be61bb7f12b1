//! Blocks: the encoded form of a manifest's entries, on the wire and in stored baselines.
//!
//! In a block each path is front-coded: the number of bytes that it shares with the path before,
//! then the rest. Each time is the difference to the time before; postcard makes varints of the
//! numbers. Blocks decode independently, so one block bounds the memory for the encoded form.
//!
//! A run that finds nothing to do still encodes the whole tree, to hash it. So [`BlockWriter`]
//! writes postcard's format by hand: 82,000 entries took 5.4 ms through serde, and take 3.0 ms.
//!
//! Two bits of the mode, which are always 0 in an entry without attributes, tell that attributes
//! follow, or that they are those of the last entry that had some.

use std::sync::Arc;

use serde::Deserialize;
#[cfg(test)]
use serde::Serialize;

use crate::content::encode;
use crate::content::hash::Hash;
use crate::tree::attributes::Attributes;
use crate::tree::entry::{Entry, EntryRef, Kind, LINK_BYTES_MAX, MODE_MASK, SIZE_MAX, Time};
use crate::tree::limits::ManifestError;
use crate::tree::path::TreePath;

/// Most entries in one block: about 64 KiB encoded for a source tree.
pub const BLOCK_ENTRIES: usize = 2048;

/// Size in bytes from which a block takes no further entry: with the longest entry it still fits in
/// a frame.
pub const BLOCK_BYTES: usize = 1 << 20;

/// Bit of an encoded mode: attributes follow the entry.
const HAS_ATTRIBUTES: u16 = 1 << 12;

/// Bit of an encoded mode: the entry has the attributes of the last entry that had some.
const SAME_ATTRIBUTES: u16 = 1 << 13;

/// Writes blocks.
#[derive(Debug, Default)]
pub struct BlockWriter {
    bytes: Vec<u8>,
    count: usize,
    /// The path of the last entry.
    path: Vec<u8>,
    seconds: i64,
    /// The attributes of the last entry that had some.
    attributes: Option<Arc<Attributes>>,
}

impl BlockWriter {
    /// Appends an entry.
    pub fn push(&mut self, entry: EntryRef<'_>) {
        let shared = entry.path.shared_bytes(&self.path);
        entry.path.write_to(&mut self.path, shared);
        let flags = match entry.attributes {
            None => 0,
            same if same == self.attributes.as_ref() => SAME_ATTRIBUTES,
            Some(_) => HAS_ATTRIBUTES,
        };
        let bytes = &mut self.bytes;
        push_number(bytes, shared as u64);
        push_bytes(bytes, self.path.get(shared..).unwrap_or_default());
        push_number(bytes, (entry.mode | flags).into());
        push_signed(bytes, entry.mtime.seconds().wrapping_sub(self.seconds));
        push_number(bytes, entry.mtime.nanos().into());
        match entry.kind {
            Kind::Directory => push_number(bytes, DIRECTORY),
            Kind::File { size, hash: None } => {
                push_number(bytes, FILE);
                push_number(bytes, size);
            }
            Kind::File { size, hash: Some(hash) } => {
                push_number(bytes, HASHED_FILE);
                push_number(bytes, size);
                bytes.extend_from_slice(hash.as_bytes());
            }
            Kind::Symlink { target } => {
                push_number(bytes, SYMLINK);
                push_bytes(bytes, target);
            }
        }
        if let Some(attributes) = entry.attributes.filter(|_| flags == HAS_ATTRIBUTES) {
            self.bytes = match encode::append(std::mem::take(&mut self.bytes), &**attributes) {
                Ok(bytes) => bytes,
                // Writing numbers and bytes to a `Vec` cannot fail.
                Err(error) => unreachable!("encoding the attributes of an entry: {error}"),
            };
            self.attributes = Some(Arc::clone(attributes));
        }
        self.count += 1;
        self.seconds = entry.mtime.seconds();
    }

    /// True if the block must be taken before another entry is appended.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.count == BLOCK_ENTRIES || self.bytes.len() >= BLOCK_BYTES
    }

    /// Takes the block, which is empty if it has no entry; the next one begins.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self).bytes
    }
}

/// Reads the entries of a block. Each entry is valid by itself; the reader does not check that they
/// form a manifest. Nothing follows an error.
#[derive(Debug)]
pub struct BlockReader<'a> {
    rest: &'a [u8],
    decoder: Decoder,
}

impl<'a> BlockReader<'a> {
    /// Reads `block`.
    #[must_use]
    pub fn new(block: &'a [u8]) -> Self {
        Self { rest: block, decoder: Decoder::default() }
    }
}

impl Iterator for BlockReader<'_> {
    type Item = Result<Entry, ManifestError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let (entry, rest) = self
            .decoder
            .decode(self.rest)
            .map_or_else(|error| (Err(error), &[][..]), |(entry, rest)| (Ok(entry), rest));
        self.rest = rest;
        Some(entry)
    }
}

/// State that is carried from one entry of a block to the next.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    count: usize,
    path: Vec<u8>,
    seconds: i64,
    attributes: Option<Arc<Attributes>>,
}

impl Decoder {
    /// Decodes the first entry of `bytes`; also returns the rest.
    pub(super) fn decode<'b>(&mut self, bytes: &'b [u8]) -> Result<(Entry, &'b [u8]), ManifestError> {
        if self.count == BLOCK_ENTRIES {
            return Err(ManifestError::Malformed);
        }
        self.count += 1;
        let (mut wire, mut rest): (WireEntry<'b>, _) =
            postcard::take_from_bytes(bytes).map_err(|_| ManifestError::Malformed)?;
        let shared = usize::from(wire.shared);
        if shared > self.path.len() {
            return Err(ManifestError::Malformed);
        }
        self.path.truncate(shared);
        self.path.extend_from_slice(wire.suffix);
        let path = TreePath::new(self.path.as_slice())?;
        self.seconds = self.seconds.wrapping_add(wire.seconds_delta);
        let flags = wire.mode & (HAS_ATTRIBUTES | SAME_ATTRIBUTES);
        wire.mode ^= flags;
        let attributes = match flags {
            0 => None,
            SAME_ATTRIBUTES => Some(self.attributes.clone().ok_or(ManifestError::Malformed)?),
            HAS_ATTRIBUTES => {
                let (attributes, after): (Attributes, _) =
                    postcard::take_from_bytes(rest).map_err(|_| ManifestError::Malformed)?;
                if !attributes.is_within_limits() {
                    return Err(ManifestError::Field(path, "attribute"));
                }
                rest = after;
                self.attributes = Some(Arc::new(attributes));
                self.attributes.clone()
            }
            _ => return Err(ManifestError::Malformed),
        };
        Ok((wire.into_entry(path, self.seconds, attributes)?, rest))
    }
}

/// Appends a number as postcard does: seven bits a byte, the lowest first.
fn push_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Appends a signed number as postcard does: the sign in the lowest bit.
fn push_signed(bytes: &mut Vec<u8>, number: i64) {
    push_number(bytes, (number << 1 ^ number >> 63).cast_unsigned());
}

fn push_bytes(bytes: &mut Vec<u8>, text: &[u8]) {
    push_number(bytes, text.len() as u64);
    bytes.extend_from_slice(text);
}

/// The number of each [`WireKind`].
const DIRECTORY: u64 = 0;
const FILE: u64 = 1;
const HASHED_FILE: u64 = 2;
const SYMLINK: u64 = 3;

#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize))]
struct WireEntry<'a> {
    shared: u16,
    #[serde(borrow, with = "serde_bytes")]
    suffix: &'a [u8],
    mode: u16,
    seconds_delta: i64,
    nanos: u32,
    #[serde(borrow)]
    kind: WireKind<'a>,
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize, Clone, Copy))]
enum WireKind<'a> {
    Directory,
    File {
        size: u64,
    },
    HashedFile {
        size: u64,
        hash: Hash,
    },
    Symlink {
        #[serde(borrow, with = "serde_bytes")]
        target: &'a [u8],
    },
}

impl WireEntry<'_> {
    fn into_entry(
        self,
        path: TreePath,
        seconds: i64,
        attributes: Option<Arc<Attributes>>,
    ) -> Result<Entry, ManifestError> {
        let kind: Kind = match self.kind {
            WireKind::Directory => Kind::Directory,
            WireKind::File { size } => Kind::File { size, hash: None },
            WireKind::HashedFile { size, hash } => Kind::File { size, hash: Some(hash) },
            WireKind::Symlink { target } => Kind::Symlink { target: target.into() },
        };
        let Some(mtime) = Time::new(seconds, self.nanos) else {
            return Err(ManifestError::Field(path, "modification time"));
        };
        if self.mode & !MODE_MASK != 0 {
            return Err(ManifestError::Field(path, "mode"));
        }
        let special = attributes.as_ref().is_some_and(|attributes| attributes.special.is_some());
        let is_linked = attributes.as_ref().is_some_and(|attributes| attributes.link.is_some());
        if special != kind.is_special() || is_linked && kind == Kind::Directory {
            return Err(ManifestError::Field(path, "kind"));
        }
        match &kind {
            Kind::File { size, .. } if *size > SIZE_MAX => return Err(ManifestError::Field(path, "size")),
            Kind::Symlink { target } if target.len() > LINK_BYTES_MAX || target.contains(&0) => {
                return Err(ManifestError::Field(path, "link target"));
            }
            _ => {}
        }
        Ok(Entry { path, kind, mode: self.mode, mtime, attributes })
    }
}

/// Encodes `entries` as one block.
#[cfg(test)]
pub(super) fn encode_block(entries: &[Entry]) -> Vec<u8> {
    let mut block = BlockWriter::default();
    entries.iter().for_each(|entry| block.push(entry.view()));
    block.take()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::entry::SECONDS_MAX;

    #[test]
    fn block_with_the_longest_entries_fits_in_a_frame() {
        let link = |number: u32| Entry {
            path: TreePath::new(format!("{number:08}").into_bytes()).unwrap(),
            kind: Kind::Symlink { target: vec![b'x'; LINK_BYTES_MAX].into() },
            mode: 0o777,
            mtime: Time::new(0, 0).unwrap(),
            attributes: None,
        };
        let entries: Vec<Entry> = (0..1000).map(link).collect();
        let mut block = BlockWriter::default();
        let taken = entries.iter().take_while(|entry| {
            let room = !block.is_full();
            if room {
                block.push(entry.view());
            }
            room
        });
        let taken = taken.count();
        let block = block.take();
        assert!((BLOCK_BYTES..BLOCK_BYTES + 16_384).contains(&block.len()), "{}", block.len());
        assert!(BlockReader::new(&block).map(Result::unwrap).eq(entries.into_iter().take(taken)));
    }

    #[test]
    fn entry_is_written_as_postcard_writes_it() {
        let (hash, target) = (Hash::of(b"x"), &b"../t"[..]);
        let numbers = [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, SIZE_MAX];
        let files = numbers.map(|size| WireKind::File { size });
        let kinds =
            [WireKind::Directory, WireKind::HashedFile { size: 300, hash }, WireKind::Symlink { target }];
        for kind in kinds.into_iter().chain(files) {
            for (mode, seconds_delta, nanos) in
                [(0, 0, 0), (0o7777, -1, 999_999_999), (0o644, 64, 127), (1, -65, 128), (2, SECONDS_MAX, 1)]
            {
                let wire = WireEntry { shared: 0, suffix: b"name", mode, seconds_delta, nanos, kind };
                let bytes = postcard::to_stdvec(&wire).unwrap();
                let (entry, rest) = Decoder::default().decode(&bytes).unwrap();
                assert!(rest.is_empty());
                assert_eq!(encode_block(&[entry]), bytes);
            }
        }
    }

    #[test]
    fn block_of_more_entries_than_allowed_is_malformed() {
        let entry = |number: usize| Entry {
            path: TreePath::new(format!("{number:08}").into_bytes()).unwrap(),
            kind: Kind::Directory,
            mode: 0o755,
            mtime: Time::new(0, 0).unwrap(),
            attributes: None,
        };
        let entries: Vec<Entry> = (0..=BLOCK_ENTRIES).map(entry).collect();
        let read = |count| BlockReader::new(&encode_block(&entries[..count])).collect::<Result<Vec<_>, _>>();
        assert_eq!(read(BLOCK_ENTRIES).unwrap().len(), BLOCK_ENTRIES);
        assert_eq!(read(BLOCK_ENTRIES + 1), Err(ManifestError::Malformed));
    }
}
