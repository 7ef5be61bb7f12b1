//! `SparseFile`: a file whose holes are found without reading them.
//!
//! The filesystem reports them by `SEEK_DATA` and `SEEK_HOLE` (lseek(2)). A filesystem that does
//! not support this reports the whole file as data.

use std::borrow::Borrow;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::content::blocks::{Content, HOLE_BYTES_MIN, Run};
use crate::content::hash::Piece;

/// Bytes per read.
const READ_BYTES: u64 = 128 * 1024;

/// A file whose holes are skipped. Searching for a hole moves the offset of the descriptor.
#[derive(Debug, Clone, Copy)]
pub struct SparseFile<F> {
    file: F,
    /// Length in bytes; 0 if the file has no holes.
    sparse_bytes: u64,
}

impl<F: Borrow<File> + Sync> SparseFile<F> {
    /// The holes of `file`. A file with as many blocks as its length needs has none, so it is not
    /// searched.
    #[must_use]
    pub fn of(file: F, length: u64) -> Self {
        let metadata = (length >= HOLE_BYTES_MIN).then(|| file.borrow().metadata().ok()).flatten();
        let sparse = metadata.filter(|metadata| metadata.blocks() < metadata.size() / 512);
        Self { file, sparse_bytes: sparse.map_or(0, |metadata| metadata.size()) }
    }

    /// The file itself.
    #[must_use]
    pub fn file(&self) -> &File {
        self.file.borrow()
    }

    /// The file, to be kept or closed.
    #[must_use]
    pub fn into_inner(self) -> F {
        self.file
    }

    /// The first run of `range`, clipped to it. The run is a hole of at least `HOLE_BYTES_MIN`, or
    /// data up to the next such hole.
    #[must_use]
    pub fn first_run(&self, range: &Range<u64>) -> Run {
        let hole = self.zeros_at(range.start);
        if hole >= HOLE_BYTES_MIN {
            return Run { length: hole.min(range.end - range.start), is_hole: true };
        }
        let mut end = range.start + hole;
        while end < range.end.min(self.sparse_bytes) {
            // A filesystem without this call reports data only.
            let Ok(hole) = seek(self.file.borrow(), SeekFrom::Hole(end)) else { break };
            let zeros = self.zeros_at(hole);
            if zeros >= HOLE_BYTES_MIN && hole < range.end {
                return Run { length: hole - range.start, is_hole: false };
            }
            end = hole.max(end).saturating_add(zeros.max(1));
        }
        Run { length: range.end - range.start, is_hole: false }
    }

    /// Hands `range` of the file to `visit`, data in pieces of at most 128 KiB.
    ///
    /// # Errors
    /// The file cannot be read, or is shorter than `range`.
    pub fn visit(&self, range: Range<u64>, visit: &mut dyn FnMut(Piece<'_>)) -> io::Result<()> {
        let mut buffer = Vec::new();
        let mut left = range;
        while !left.is_empty() {
            let zeros = self.zeros_at(left.start).min(left.end - left.start);
            if zeros >= HOLE_BYTES_MIN {
                visit(Piece::Zeros(zeros));
                left.start += zeros;
                continue;
            }
            // No overflow: at most `READ_BYTES`.
            let now = (left.end - left.start).min(READ_BYTES) as usize;
            buffer.resize(buffer.len().max(now), 0);
            let piece = buffer.get_mut(..now).unwrap_or_default();
            self.file.borrow().read_exact_at(piece, left.start)?;
            visit(Piece::Bytes(piece));
            left.start += now as u64;
        }
        Ok(())
    }
}

impl<F: Borrow<File> + Sync> Content for SparseFile<F> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.borrow().read_exact_at(buffer, offset)
    }

    fn zeros_at(&self, offset: u64) -> u64 {
        if offset >= self.sparse_bytes {
            return 0;
        }
        match seek(self.file.borrow(), SeekFrom::Data(offset)) {
            Ok(data) => data.saturating_sub(offset),
            // There is no data up to the end.
            Err(Errno::NXIO) => self.sparse_bytes - offset,
            Err(_) => 0,
        }
    }
}

/// Makes `range` of a file a hole; writes zeros where the filesystem has no holes.
///
/// # Errors
/// The disk is full or read-only.
pub(crate) fn punch(file: &File, range: Range<u64>) -> io::Result<()> {
    static ZEROS: [u8; READ_BYTES as usize] = [0; READ_BYTES as usize];
    #[cfg(target_os = "linux")]
    if rustix::fs::fallocate(
        file,
        rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
        range.start,
        range.end - range.start,
    )
    .is_ok()
    {
        return Ok(());
    }
    let mut left = range;
    while !left.is_empty() {
        // No overflow: at most `READ_BYTES`.
        let now = (left.end - left.start).min(READ_BYTES) as usize;
        file.write_all_at(ZEROS.get(..now).unwrap_or_default(), left.start)?;
        left.start += now as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A file with data at these offsets, 4 KiB each.
    fn sparse(length: u64, data: &[u64]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        data.iter().for_each(|&at| file.write_all_at(&[7; 4096], at).unwrap());
        file
    }

    #[test]
    fn runs_cover_the_file_and_short_holes_count_as_data() {
        let file = sparse(100 * MIB, &[0, 8192, 50 * MIB, 100 * MIB - 4096]);
        let holes = SparseFile::of(&file, 100 * MIB);
        let mut runs = Vec::new();
        let mut at = 0;
        while at < 100 * MIB {
            let run = holes.first_run(&(at..100 * MIB));
            runs.push((run.length, run.is_hole));
            at += run.length;
        }
        let page = 4096;
        let due = [
            (3 * page, false),
            (50 * MIB - 3 * page, true),
            (page, false),
            (50 * MIB - 2 * page, true),
            (page, false),
        ];
        assert_eq!(runs, due);
        assert_eq!(holes.first_run(&(10 * MIB..11 * MIB)), Run { length: MIB, is_hole: true });
        assert_eq!(holes.first_run(&(0..5)), Run { length: 5, is_hole: false });
    }

    #[test]
    fn visit_reads_only_the_data() {
        let file = sparse(1 << 40, &[3 * MIB, 1 << 39]);
        let (mut zeros, mut bytes, mut ones) = (0, 0, 0);
        SparseFile::of(&file, 1 << 40)
            .visit(0..1 << 40, &mut |piece| match piece {
                Piece::Zeros(count) => zeros += count,
                Piece::Bytes(piece) => {
                    bytes += piece.len() as u64;
                    ones += piece.iter().filter(|&&byte| byte == 7).count();
                }
            })
            .unwrap();
        assert_eq!((zeros + bytes, ones), (1 << 40, 2 * 4096));
        assert!(bytes <= 4 * READ_BYTES, "{bytes}");
    }

    #[test]
    fn a_dense_file_has_no_holes() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![0; MIB as usize], 0).unwrap();
        assert_eq!(SparseFile::of(&file, MIB).zeros_at(0), 0);
        punch(&file, 0..MIB / 2).unwrap();
        let mut half = vec![7; MIB as usize];
        file.read_exact_at(&mut half, 0).unwrap();
        assert!(half.iter().all(|&byte| byte == 0));
    }
}
