//! Shift map: a content made as long as another one, with a gap inserted or a range removed.

use std::cmp::Ordering;
use std::io;
use std::ops::Range;

use crate::content::blocks::Content;

/// A content of `basis_length` bytes, fitted to `size` bytes. Before `split` the bytes keep their
/// distance from the beginning, from there on their distance from the end. If the content is
/// shorter than `size`, the gap is zeros, and bytes that both sides cover stand there twice. If it
/// is longer, the range between is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShiftMap {
    basis_length: u64,
    size: u64,
    split: u64,
}

impl ShiftMap {
    /// The identity: nothing is moved.
    #[must_use]
    pub fn same(length: u64) -> Self {
        Self { basis_length: length, size: length, split: length }
    }

    /// Fits a content of `basis_length` bytes to `size` bytes; the bytes from `split` on are the
    /// moved ones. `None` if they would begin before the content's beginning, or after its end.
    #[must_use]
    pub fn new(basis_length: u64, size: u64, split: u64) -> Option<Self> {
        let first = size.saturating_sub(basis_length);
        (first..=size).contains(&split).then_some(Self { basis_length, size, split })
    }

    /// The kind of shift, for the log.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.basis_length.cmp(&self.size) {
            Ordering::Equal => "none",
            Ordering::Less if self.split == self.size => "appended",
            Ordering::Less => "inserted",
            Ordering::Greater => "removed",
        }
    }

    /// Length in bytes of the original content.
    #[must_use]
    pub fn basis_length(&self) -> u64 {
        self.basis_length
    }

    /// Length in bytes of the fitted content.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Number of original bytes, if the fitted content is all of them followed by a gap.
    #[must_use]
    pub fn appended_to(&self) -> Option<u64> {
        (self.split == self.size && self.basis_length < self.size).then_some(self.basis_length)
    }

    /// The removed range in the original content, if there is one.
    #[must_use]
    pub fn without(&self) -> Option<Range<u64>> {
        (self.basis_length > self.size).then(|| self.split..self.split + (self.basis_length - self.size))
    }

    /// Maps the bytes from `offset` on to the original content. Returns their original offset, or
    /// `None` for zeros, and the number of bytes for which this holds; 0 from the end on.
    #[must_use]
    pub fn piece(&self, offset: u64) -> (Option<u64>, u64) {
        let (from, end) = if offset >= self.size {
            (None, self.size)
        } else if offset >= self.split {
            // The moved part keeps its distance from the end.
            (Some(offset + self.basis_length - self.size), self.size)
        } else if offset < self.basis_length {
            (Some(offset), self.split.min(self.basis_length))
        } else {
            (None, self.split)
        };
        (from, end.saturating_sub(offset))
    }

    /// The pieces of a range, each with its original offset.
    pub fn pieces(&self, stretch: Range<u64>) -> impl Iterator<Item = (Range<u64>, Option<u64>)> {
        let mut at = stretch.start;
        std::iter::from_fn(move || {
            let (from, length) = self.piece(at);
            let piece = at..at.saturating_add(length).min(stretch.end);
            at = piece.end;
            (piece.start < piece.end).then_some((piece, from))
        })
    }

    /// Fills a buffer from `offset` on. `basis` is the original content.
    ///
    /// # Errors
    /// Errors of reading `basis`; also if the fitted content ends before the buffer is full.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64, basis: &dyn Content) -> io::Result<()> {
        let mut rest = buffer;
        for (piece, from) in self.pieces(offset..offset.saturating_add(rest.len() as u64)) {
            // At most the rest of the buffer.
            let (now, later) = rest.split_at_mut((piece.end - piece.start) as usize);
            match from {
                Some(from) => basis.read_at(now, from)?,
                None => now.fill(0),
            }
            rest = later;
        }
        if rest.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Number of zeros from `offset` on that need not be read; there may be more zeros.
    #[must_use]
    pub fn zeros_at(&self, offset: u64, basis: &dyn Content) -> u64 {
        match self.piece(offset) {
            (Some(from), length) => basis.zeros_at(from).min(length),
            (None, length) => length,
        }
    }
}

/// A content under a shift map.
#[derive(Debug)]
pub struct Mapped<C> {
    /// The content.
    pub basis: C,
    /// The shift map.
    pub shift_map: ShiftMap,
}

impl<C: Content> Content for Mapped<C> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.shift_map.read_at(buffer, offset, &self.basis)
    }

    fn zeros_at(&self, offset: u64) -> u64 {
        self.shift_map.zeros_at(offset, &self.basis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::testing::reader;

    fn all(basis: &[u8], size: u64, split: u64) -> Vec<u8> {
        let shift_map = ShiftMap::new(basis.len() as u64, size, split).unwrap();
        let mut made = vec![b'?'; size as usize];
        let read = reader(basis);
        shift_map.read_at(&mut made, 0, &read).unwrap();
        // Reads in parts give the same.
        for (start, end) in (0..=size).flat_map(|start| (start..=size).map(move |end| (start, end))) {
            let mut part = vec![0; (end - start) as usize];
            shift_map.read_at(&mut part, start, &read).unwrap();
            assert_eq!(part, made[start as usize..end as usize]);
        }
        assert!(shift_map.read_at(&mut [0; 2], size - 1, &read).is_err());
        made
    }

    #[test]
    fn bytes_after_the_split_are_moved() {
        assert_eq!(all(b"abcdef", 6, 6), b"abcdef");
        assert_eq!(all(b"abcdef", 8, 8), b"abcdef\0\0", "appended to");
        assert_eq!(all(b"abcdef", 8, 2), b"ababcdef", "at the beginning");
        assert_eq!(all(b"abcdef", 8, 5), b"abcdedef");
        assert_eq!(all(b"abcdef", 20, 18), b"abcdef\0\0\0\0\0\0\0\0\0\0\0\0ef");
        assert_eq!(all(b"abcdef", 4, 0), b"cdef", "taken out at the beginning");
        assert_eq!(all(b"abcdef", 4, 1), b"adef");
        assert_eq!(all(b"abcdef", 4, 4), b"abcd", "at the end");
    }

    #[test]
    fn impossible_splits_are_refused_and_gap_or_removal_is_reported() {
        assert_eq!(ShiftMap::new(6, 8, 1), None);
        assert_eq!(ShiftMap::new(6, 8, 9), None);
        assert_eq!(ShiftMap::new(6, 5, 6), None);
        assert_eq!(ShiftMap::new(6, 6, 6), Some(ShiftMap::same(6)));
        assert_eq!(ShiftMap::new(6, 8, 8).unwrap().appended_to(), Some(6));
        assert_eq!(ShiftMap::new(6, 8, 7).unwrap().appended_to(), None);
        assert_eq!(ShiftMap::same(6).appended_to(), None);
        assert_eq!(ShiftMap::new(6, 4, 4).unwrap().appended_to(), None);
        assert_eq!(ShiftMap::new(6, 4, 1).unwrap().without(), Some(1..3));
        assert_eq!((ShiftMap::same(6).without(), ShiftMap::new(6, 8, 8).unwrap().without()), (None, None));
    }
}
