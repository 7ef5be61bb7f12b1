//! ZIP archives for the files API. A directory is packed without compression.

use std::io::{Cursor, Read, Write};

use zip::result::{ZipError, ZipResult};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, System, ZipArchive, ZipWriter};

/// A file, or a directory, whose name ends in a slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    /// The permissions, if the archive has them.
    pub(super) mode: Option<u32>,
    pub(super) content: Vec<u8>,
}

/// Unpacks an archive whose files have at most `room` bytes together.
///
/// # Errors
/// The bytes are not an archive, or it is broken, too large, or packed with another method.
pub(super) fn unpack(archive: &[u8], mut room: u64) -> ZipResult<Vec<Entry>> {
    let mut archive = ZipArchive::new(Cursor::new(archive))?;
    let mut entries = Vec::new();
    for index in 0..archive.len() {
        let file = archive.by_index(index)?;
        let name = String::from_utf8(file.name_raw().to_vec())
            .map_err(|_| ZipError::InvalidArchive("a name is not UTF-8".into()))?;
        // The upper half is the mode, if the archive was made on Unix.
        let mode = (file.system() == System::Unix).then(|| (file.external_attributes() >> 16) & 0o777);
        let mut content = Vec::new();
        let size = file.take(room.saturating_add(1)).read_to_end(&mut content)? as u64;
        let too_large = ZipError::DecompressedSizeLimitExceeded { size: size.into(), limit: room };
        room = room.checked_sub(size).ok_or(too_large)?;
        entries.push(Entry { name, mode, content });
    }
    Ok(entries)
}

/// The platform's words for an archive that does not unpack: those of Go's library.
pub(super) fn message(error: &ZipError) -> &'static str {
    match error {
        ZipError::UnsupportedArchive(_) | ZipError::CompressionMethodNotSupported(_) => {
            "zip: unsupported compression algorithm"
        }
        ZipError::DecompressedSizeLimitExceeded { .. } => "zip: too large",
        _ => "zip: not a valid zip file",
    }
}

/// Packs entries into an archive.
///
/// # Errors
/// An entry is too large for the format, or has the name of another one.
pub(super) fn pack(entries: &[Entry]) -> ZipResult<Vec<u8>> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for Entry { name, mode, content } in entries {
        let options = SimpleFileOptions::DEFAULT
            .compression_method(CompressionMethod::Stored)
            .unix_permissions(mode.unwrap_or(0o644));
        if name.ends_with('/') {
            archive.add_directory(name.as_str(), options)?;
        } else {
            archive.start_file(name, options)?;
            archive.write_all(content)?;
        }
    }
    Ok(archive.finish()?.into_inner())
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
        vec![entry("d/", 0o755, b""), entry("d/ä", 0o600, b"content"), entry("../e\\f", 0o644, b"")]
    }

    #[test]
    fn a_packed_archive_unpacks_to_the_same_entries() {
        for entries in [entries(), Vec::new()] {
            assert_eq!(unpack(&pack(&entries).expect("an archive"), 100).expect("entries"), entries);
        }
    }

    #[test]
    fn a_deflated_archive_unpacks() {
        let content = vec![7; 100_000];
        let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
        let options = SimpleFileOptions::DEFAULT.compression_method(CompressionMethod::Deflated);
        archive.start_file("a", options).expect("a file");
        archive.write_all(&content).expect("its content");
        let archive = archive.finish().expect("an archive").into_inner();
        assert!(archive.len() < 1_000);
        assert_eq!(unpack(&archive, 100_000).expect("entries")[0].content, content);
        assert!(unpack(&archive, 99_999).is_err());
    }

    #[test]
    fn an_archive_unpacks_only_within_the_limit_of_all_its_files() {
        let file = |name: &str| Entry { name: name.to_owned(), mode: None, content: vec![0; 50] };
        let archive = pack(&[file("a"), file("b")]).expect("an archive");
        assert_eq!(unpack(&archive, 100).expect("entries").len(), 2);
        assert!(unpack(&archive, 99).is_err());
    }

    #[test]
    fn a_broken_archive_is_an_error() {
        let archive = pack(&entries()).expect("an archive");
        for length in 0..archive.len() {
            assert!(unpack(&archive[..length], 100).is_err(), "{length}");
        }
        let mut other = archive.clone();
        let at = archive.windows(7).position(|window| window == b"content").expect("a content");
        other[at] ^= 1;
        assert!(unpack(&other, 100).is_err());
    }
}
