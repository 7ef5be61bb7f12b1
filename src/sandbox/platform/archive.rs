//! ZIP archives for the files API. This module unpacks common archives, and packs a directory
//! without compression. It supports neither encryption nor ZIP64, which begins at 4 GiB.

use std::io::{self, Read};

use flate2::Crc;
use flate2::read::DeflateDecoder;

/// Most bytes of an unpacked archive.
const UNPACKED_MAX: u64 = 256 << 20;

const LOCAL: &[u8] = b"PK\x03\x04";
const CENTRAL: &[u8] = b"PK\x01\x02";
const END: &[u8] = b"PK\x05\x06";

const STORED: usize = 0;
const DEFLATED: usize = 8;

/// Version of the format that has all features used here: 2.0.
const VERSION: u16 = 20;

/// The version; the upper byte says that attributes are those of Unix.
const MADE_BY: u16 = (3 << 8) | VERSION;

/// Flag for UTF-8 names; without it names are in code page 437.
const NAMES_ARE_UTF8: u16 = 1 << 11;

/// First date of the format, 1 January 1980.
const DATE: u16 = 0x21;

/// A file, or a directory, whose name ends in a slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    /// The permissions, if the archive has them.
    pub(super) mode: Option<u32>,
    pub(super) content: Vec<u8>,
}

/// Unpacks an archive.
///
/// # Errors
/// The bytes are not an archive, or it is broken, too large, or packed with another method.
pub(super) fn unpack(archive: &[u8]) -> io::Result<Vec<Entry>> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "zip: not a valid zip file");
    // A comment may follow the end record.
    let end = archive.windows(END.len()).rposition(|window| window == END).ok_or_else(broken)?;
    let count = short(archive, end + 10).ok_or_else(broken)?;
    let mut at = long(archive, end + 16).ok_or_else(broken)?;
    let mut room = UNPACKED_MAX;
    let mut entries = Vec::new();
    for _ in 0..count {
        let (entry, next) = unpack_one(archive, at, room)?.ok_or_else(broken)?;
        room = room.saturating_sub(entry.content.len() as u64);
        entries.push(entry);
        at = next;
    }
    Ok(entries)
}

/// Unpacks the entry whose record in the central directory is at `at`. Also returns the position of
/// the next record; `None` if the archive is broken.
fn unpack_one(archive: &[u8], at: usize, room: u64) -> io::Result<Option<(Entry, usize)>> {
    let read = || {
        (archive.get(at..at + 4)? == CENTRAL).then_some(())?;
        let [name, extra, remark] = [28, 30, 32].map(|field| short(archive, at + field));
        let (name, extra, remark) = (name?, extra?, remark?);
        let bytes = archive.get(at + 46..at + 46 + name)?;
        let attributes = long(archive, at + 38)?;
        // The upper half is the mode, if the archive was made on Unix.
        let is_unix = archive.get(at + 5) == Some(&3);
        let mode = is_unix.then(|| u32::try_from(attributes >> 16).unwrap_or(0) & 0o777);
        let local = long(archive, at + 42)?;
        let begin = local + 30 + short(archive, local + 26)? + short(archive, local + 28)?;
        let packed = archive.get(begin..begin.checked_add(long(archive, at + 20)?)?)?;
        let next = at + 46 + name + extra + remark;
        let name = String::from_utf8(bytes.to_vec()).ok()?;
        Some((short(archive, at + 10)?, packed, long(archive, at + 16)?, name, mode, next))
    };
    let Some((method, packed, sum, name, mode, next)) = read() else { return Ok(None) };
    let mut content = Vec::new();
    match method {
        STORED => content.extend_from_slice(packed),
        DEFLATED => _ = DeflateDecoder::new(packed).take(room + 1).read_to_end(&mut content)?,
        _ => {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "zip: unsupported compression algorithm"));
        }
    }
    if content.len() as u64 > room {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let is_whole = sum_of(&content) as usize == sum;
    Ok(is_whole.then_some((Entry { name, mode, content }, next)))
}

/// Packs entries into an archive.
///
/// # Errors
/// The entries are too many or too large for the format.
pub(super) fn pack(entries: &[Entry]) -> io::Result<Vec<u8>> {
    let too_large = |_| io::Error::from(io::ErrorKind::FileTooLarge);
    let (mut archive, mut list) = (Vec::new(), Vec::new());
    for Entry { name, mode, content } in entries {
        let begin = u32::try_from(archive.len()).map_err(too_large)?;
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let name_length = u16::try_from(name.len()).map_err(too_large)?;
        let kind = if name.ends_with('/') { 0o040_000 } else { 0o100_000 };
        // Version, flags, method (stored), time, date, CRC, both sizes, the lengths of name and
        // extra fields.
        let mut common = Vec::new();
        shorts(&mut common, [VERSION, NAMES_ARE_UTF8, 0, 0, DATE]);
        longs(&mut common, [sum_of(content), size, size]);
        shorts(&mut common, [name_length, 0]);
        archive.extend([LOCAL, &common, name.as_bytes(), content].concat());
        list.extend([CENTRAL, &MADE_BY.to_le_bytes(), &common].concat());
        // The length of the comment, disk, kind of content, attributes, offset of the entry.
        shorts(&mut list, [0, 0, 0]);
        longs(&mut list, [(kind | mode.unwrap_or(0o644)) << 16, begin]);
        list.extend(name.as_bytes());
    }
    let count = u16::try_from(entries.len()).map_err(too_large)?;
    let (begin, size) =
        (u32::try_from(archive.len()).map_err(too_large)?, u32::try_from(list.len()).map_err(too_large)?);
    archive.extend(list);
    archive.extend(END);
    shorts(&mut archive, [0, 0, count, count]);
    longs(&mut archive, [size, begin]);
    shorts(&mut archive, [0]);
    Ok(archive)
}

fn sum_of(content: &[u8]) -> u32 {
    let mut sum = Crc::new();
    sum.update(content);
    sum.sum()
}

fn shorts<const N: usize>(bytes: &mut Vec<u8>, numbers: [u16; N]) {
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

fn longs<const N: usize>(bytes: &mut Vec<u8>, numbers: [u32; N]) {
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

fn short(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(2)?)?.first_chunk()?;
    Some(usize::from(u16::from_le_bytes(*bytes)))
}

fn long(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(4)?)?.first_chunk()?;
    usize::try_from(u32::from_le_bytes(*bytes)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        let entry = |name: &str, mode, content: &[u8]| Entry {
            name: name.to_owned(),
            mode: Some(mode),
            content: content.to_vec(),
        };
        vec![entry("d/", 0o755, b""), entry("d/ä", 0o600, b"content"), entry("empty", 0o644, b"")]
    }

    #[test]
    fn a_packed_archive_unpacks_to_the_same_entries() {
        for entries in [entries(), Vec::new()] {
            assert_eq!(unpack(&pack(&entries).expect("an archive")).expect("entries"), entries);
        }
    }

    #[test]
    fn a_broken_archive_is_an_error() {
        let archive = pack(&entries()).expect("an archive");
        for length in 0..archive.len() - 6 {
            assert!(unpack(&archive[..length]).is_err(), "{length}");
        }
        let mut other = archive.clone();
        let at = archive.windows(7).position(|window| window == b"content").expect("a content");
        other[at] ^= 1;
        assert!(unpack(&other).is_err());
    }
}
