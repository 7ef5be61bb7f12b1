//! Shift map: a content made as long as another one, with a gap inserted or a range removed.

use std::io;
use std::ops::Range;

use crate::content::blocks::Content;

/// A content of `old` bytes, fitted to `size` bytes. Before `split` the bytes keep their distance
/// from the beginning, from there on their distance from the end. If the content is shorter than
/// `size`, the gap is zeros, and bytes that both sides cover stand there twice. If it is longer,
/// the range between is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fitted {
    old: u64,
    size: u64,
    split: u64,
}

impl Fitted {
    /// The identity: nothing is moved.
    #[must_use]
    pub fn same(length: u64) -> Self {
        Self { old: length, size: length, split: length }
    }

    /// Fits a content of `old` bytes to `size` bytes; the bytes from `split` on are the moved ones.
    /// `None` if they would begin before the content's beginning, or after its end.
    #[must_use]
    pub fn new(old: u64, size: u64, split: u64) -> Option<Self> {
        let first = size.saturating_sub(old);
        (first..=size).contains(&split).then_some(Self { old, size, split })
    }

    /// Length in bytes of the original content.
    #[must_use]
    pub fn old(&self) -> u64 {
        self.old
    }

    /// Length in bytes of the fitted content.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Number of original bytes, if the fitted content is all of them followed by a gap.
    #[must_use]
    pub fn appended_to(&self) -> Option<u64> {
        (self.split == self.size && self.old < self.size).then_some(self.old)
    }

    /// The removed range in the original content, if there is one.
    #[must_use]
    pub fn without(&self) -> Option<Range<u64>> {
        (self.old > self.size).then(|| self.split..self.split + (self.old - self.size))
    }

    /// Maps the bytes from `offset` on to the original content. Returns their original offset, or
    /// `None` for zeros, and the number of bytes for which this holds; 0 from the end on.
    #[must_use]
    pub fn piece(&self, offset: u64) -> (Option<u64>, u64) {
        let (from, end) = if offset >= self.size {
            (None, self.size)
        } else if offset >= self.split {
            // The moved part keeps its distance from the end.
            (Some(offset + self.old - self.size), self.size)
        } else if offset < self.old {
            (Some(offset), self.split.min(self.old))
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

    /// Fills a buffer from `offset` on. `old` is the original content.
    ///
    /// # Errors
    /// Errors of reading `old`; also if the fitted content ends before the buffer is full.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64, old: &dyn Content) -> io::Result<()> {
        let mut rest = buffer;
        for (piece, from) in self.pieces(offset..offset.saturating_add(rest.len() as u64)) {
            // At most the rest of the buffer.
            let (now, later) = rest.split_at_mut((piece.end - piece.start) as usize);
            match from {
                Some(from) => old.read_at(now, from)?,
                None => now.fill(0),
            }
            rest = later;
        }
        if rest.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Number of zeros from `offset` on that need not be read; there may be more zeros.
    #[must_use]
    pub fn zeros_at(&self, offset: u64, old: &dyn Content) -> u64 {
        match self.piece(offset) {
            (Some(from), length) => old.zeros_at(from).min(length),
            (None, length) => length,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::testing::reader;

    fn all(old: &[u8], size: u64, split: u64) -> Vec<u8> {
        let fitted = Fitted::new(old.len() as u64, size, split).unwrap();
        let mut made = vec![b'?'; size as usize];
        let read = reader(old);
        fitted.read_at(&mut made, 0, &read).unwrap();
        // Reads in parts give the same.
        for (start, end) in (0..=size).flat_map(|start| (start..=size).map(move |end| (start, end))) {
            let mut part = vec![0; (end - start) as usize];
            fitted.read_at(&mut part, start, &read).unwrap();
            assert_eq!(part, made[start as usize..end as usize]);
        }
        assert!(fitted.read_at(&mut [0; 2], size - 1, &read).is_err());
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
        assert_eq!(Fitted::new(6, 8, 1), None);
        assert_eq!(Fitted::new(6, 8, 9), None);
        assert_eq!(Fitted::new(6, 5, 6), None);
        assert_eq!(Fitted::new(6, 6, 6), Some(Fitted::same(6)));
        assert_eq!(Fitted::new(6, 8, 8).unwrap().appended_to(), Some(6));
        assert_eq!(Fitted::new(6, 8, 7).unwrap().appended_to(), None);
        assert_eq!(Fitted::same(6).appended_to(), None);
        assert_eq!(Fitted::new(6, 4, 4).unwrap().appended_to(), None);
        assert_eq!(Fitted::new(6, 4, 1).unwrap().without(), Some(1..3));
        assert_eq!((Fitted::same(6).without(), Fitted::new(6, 8, 8).unwrap().without()), (None, None));
    }
}
