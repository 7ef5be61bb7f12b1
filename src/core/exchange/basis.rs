//! `BasisFile`: the basis of a larger file, under its advertised shift map.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::content::blocks::Content;
use crate::content::chunk::{self, Average, Chunk, ChunkId};
use crate::content::shift_map::ShiftMap;
use crate::disk::holes::SparseFile;
use crate::exchange::sink::{SinkError, basis_changed, read_bytes};
use crate::wire::message::Window;

/// A basis as it is advertised: unchanged, or with the shift map of a pre-copy.
pub(super) struct BasisFile {
    file: SparseFile<File>,
    shift_map: ShiftMap,
}

impl BasisFile {
    pub(super) fn new(file: File, shift_map: ShiftMap) -> Self {
        Self { file: SparseFile::of(file, shift_map.basis_length()), shift_map }
    }

    /// The file itself, without the shift map.
    pub(super) fn file(&self) -> &File {
        self.file.file()
    }

    pub(super) fn into_file(self) -> File {
        self.file.into_inner()
    }

    /// Reads a window.
    pub(super) fn window(&self, window: Window) -> Result<Vec<u8>, SinkError> {
        let mut bytes = Vec::new();
        for (piece, from) in self.shift_map.pieces(window.offset..window.offset + u64::from(window.length)) {
            // At most `BASIS_BYTES_MAX`: the decoder checked it.
            let length = (piece.end - piece.start) as usize;
            match from {
                Some(from) => {
                    let read = read_bytes(self.file(), from, length);
                    let read = read.map_err(|error| SinkError::Basis(error.to_string()))?;
                    if bytes.is_empty() { bytes = read } else { bytes.extend(read) }
                }
                None => bytes.resize(bytes.len() + length, 0),
            }
        }
        if bytes.len() == window.length as usize { Ok(bytes) } else { Err(basis_changed()) }
    }

    /// Cuts a range into chunks; fewer if the file ends before that.
    pub(super) fn chunks(&self, stretch: Range<u64>, average: Average) -> io::Result<Vec<Chunk>> {
        chunks_of(&mut Reading { basis: self, at: stretch.start, end: stretch.end }, average)
    }
}

impl Content for BasisFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.shift_map.read_at(buffer, offset, &self.file)
    }

    fn zeros_at(&self, offset: u64) -> u64 {
        self.shift_map.zeros_at(offset, &self.file)
    }
}

/// Reads a range of a basis.
struct Reading<'a> {
    basis: &'a BasisFile,
    at: u64,
    end: u64,
}

impl Read for Reading<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (from, length) = self.basis.shift_map.piece(self.at);
        let length = length.min(self.end - self.at).min(buffer.len() as u64);
        // At most the length of the buffer.
        let buffer = buffer.get_mut(..length as usize).unwrap_or_default();
        let count = match from {
            Some(from) => self.basis.file().read_at(buffer, from)?,
            None => {
                buffer.fill(0);
                buffer.len()
            }
        };
        self.at += count as u64;
        Ok(count)
    }
}

/// Cuts a content into chunks. (Not generic, so that the agent holds this code once.)
pub(super) fn chunks_of(content: &mut dyn Read, average: Average) -> io::Result<Vec<Chunk>> {
    let mut chunks = Vec::new();
    chunk::cut(content, average, |bytes| {
        // A chunk is at most 16 MiB long.
        chunks.push(Chunk { length: bytes.len() as u32, id: ChunkId::of(bytes) });
    })?;
    Ok(chunks)
}
