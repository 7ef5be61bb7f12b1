//! Records: the stored form of a baseline.
//!
//! A record is the one canonical form of a manifest and its ignore files. So two sides with equal
//! records have equal digests, and one digest names a whole tree.
//!
//! ```text
//! u32 LE length │ ignore files (postcard) │ { u32 LE length │ block } for each manifest block
//! ```

use std::fmt;
use std::io;

use crate::content::hash::{Hash, Hasher};
use crate::tree::block::Decoder;
use crate::tree::entry::Entry;
use crate::tree::filter::IgnoreFile;
use crate::tree::manifest::{Manifest, ManifestError};

/// Writes the record of `manifest` and `ignores` to `sink`, piece by piece.
///
/// # Errors
/// The errors of `sink`.
pub fn write(
    manifest: &Manifest,
    ignores: &[IgnoreFile],
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let ignores = match postcard::to_stdvec(ignores) {
        Ok(bytes) => bytes,
        // Writing plain data to a `Vec` cannot fail.
        Err(error) => unreachable!("encoding ignore files: {error}"),
    };
    for section in std::iter::once(ignores).chain(manifest.blocks()) {
        // A block has about a megabyte, all ignore files together have a few.
        sink(&u32::try_from(section.len()).unwrap_or(u32::MAX).to_le_bytes())?;
        sink(&section)?;
    }
    Ok(())
}

/// The digest of the record of `manifest` and `ignores`.
#[must_use]
pub fn digest(manifest: &Manifest, ignores: &[IgnoreFile]) -> Hash {
    let mut hasher = Hasher::new();
    let hashed = write(manifest, ignores, &mut |bytes| {
        hasher.update(bytes);
        Ok(())
    });
    match hashed {
        Ok(()) => hasher.finish(),
        // Nothing above can fail.
        Err(error) => unreachable!("hashing a record: {error}"),
    }
}

/// A record that was read back. Its entries stay encoded and are decoded one at a time: that takes
/// a third of the memory.
pub struct Record {
    digest: Hash,
    ignores: Vec<IgnoreFile>,
    entries: Entries,
}

impl Record {
    /// Reads a record; `None` if the bytes do not begin like one.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        let digest = Hash::of(&bytes);
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let section = rest.get(..u32::from_le_bytes(*length) as usize)?;
        let ignores = postcard::from_bytes(section).ok()?;
        let at = length.len() + section.len();
        Some(Self {
            digest,
            ignores,
            entries: Entries { bytes, begin: at, at, block_end: at, decoder: Decoder::default() },
        })
    }

    /// The record's digest.
    #[must_use]
    pub fn digest(&self) -> Hash {
        self.digest
    }

    /// The record's ignore files.
    #[must_use]
    pub fn ignores(&self) -> &[IgnoreFile] {
        &self.ignores
    }

    /// The record's ignore files and entries.
    #[must_use]
    pub fn into_parts(self) -> (Vec<IgnoreFile>, Entries) {
        (self.ignores, self.entries)
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Record({})", self.digest)
    }
}

/// The entries of a record in order. The stored bytes may be damaged; nothing follows an error.
pub struct Entries {
    bytes: Vec<u8>,
    begin: usize,
    at: usize,
    block_end: usize,
    decoder: Decoder,
}

impl Entries {
    /// Goes back to the first entry.
    pub fn rewind(&mut self) {
        (self.at, self.block_end, self.decoder) = (self.begin, self.begin, Decoder::default());
    }

    fn decode(&mut self) -> Result<Entry, ManifestError> {
        if self.at == self.block_end {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            let (length, rest) = rest.split_first_chunk::<4>().ok_or(ManifestError::Malformed)?;
            let length = u32::from_le_bytes(*length) as usize;
            if length == 0 || length > rest.len() {
                return Err(ManifestError::Malformed);
            }
            self.at += 4;
            self.block_end = self.at + length;
            self.decoder = Decoder::default();
        }
        let block = self.bytes.get(self.at..self.block_end).ok_or(ManifestError::Malformed)?;
        let (entry, rest) = self.decoder.decode(block)?;
        self.at = self.block_end - rest.len();
        Ok(entry)
    }
}

impl Iterator for Entries {
    type Item = Result<Entry, ManifestError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.bytes.len() {
            return None;
        }
        let entry = self.decode();
        if entry.is_err() {
            (self.at, self.block_end) = (self.bytes.len(), self.bytes.len());
        }
        Some(entry)
    }
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entries({} of {} bytes)", self.at, self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::change::testing::{entries, ignores, record_bytes};

    #[test]
    fn record_comes_back_and_its_digest_names_it() {
        for count in [0, 1, 5000] {
            let manifest = Manifest::new(entries(count)).unwrap();
            for ignores in [Vec::new(), ignores("*.o\n")] {
                let record = Record::new(record_bytes(&manifest, &ignores)).unwrap();
                assert_eq!(record.digest(), digest(&manifest, &ignores));
                assert_eq!(record.ignores(), ignores);
                let entries: Result<Vec<_>, _> = record.into_parts().1.collect();
                assert!(manifest.entries().eq(entries.unwrap().iter().map(Entry::view)));
            }
        }
        let manifest = Manifest::new(entries(3)).unwrap();
        assert_ne!(digest(&manifest, &ignores("a")), digest(&manifest, &ignores("b")));
        assert_ne!(digest(&manifest, &[]), digest(&Manifest::new(entries(4)).unwrap(), &[]));
    }

    #[test]
    fn any_bytes_are_a_record_or_none_and_its_entries_end() {
        let valid = record_bytes(&Manifest::new(entries(5)).unwrap(), &ignores("x"));
        let read = |bytes: Vec<u8>| {
            let length = bytes.len();
            if let Some(record) = Record::new(bytes) {
                let mut entries = record.into_parts().1;
                assert!(entries.by_ref().count() <= length);
                assert!(entries.next().is_none());
            }
        };
        for position in 0..valid.len() {
            for flip in 0..=255_u8 {
                let mut bytes = valid.clone();
                bytes[position] ^= flip;
                read(bytes);
            }
            read(valid[..position].to_vec());
        }
        let cut = Record::new(valid[..valid.len() - 1].to_vec()).unwrap();
        assert!(cut.into_parts().1.any(|entry| entry.is_err()));
    }
}
