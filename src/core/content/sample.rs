//! Samples of a content: they show that another version is the same but for one place.
//!
//! The holder of the other version can then make it as long as this one before anything is
//! compared. A wrong guess costs time and nothing else.

use std::io;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::content::blocks::{BlockSize, Content};
use crate::content::hash::Hash;
use crate::content::shift_map::ShiftMap;

/// Shortest content, in bytes, of which samples are taken.
pub const SAMPLED_BYTES_MIN: u64 = 32 << 20;

/// Number of samples of one content. They locate the change to a sixty-fourth of the content, which
/// is then cut into chunks.
const COUNT: usize = 64;

/// Length of a sample, in bytes.
const BYTES: usize = 4 << 10;

/// Bytes of a sample's name: the beginning of its hash.
const NAME_BYTES: usize = 8;

/// Fewest samples that must be found again.
const FOUND_MIN: usize = 8;

/// The names of a content's samples, which lie evenly in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Samples(ByteBuf);

impl Samples {
    /// Samples a content of `size` bytes.
    ///
    /// # Errors
    /// Errors of reading the content.
    pub fn of(size: u64, content: &dyn Content) -> io::Result<Self> {
        let mut names = Vec::with_capacity(COUNT * NAME_BYTES);
        for index in 0..COUNT {
            names.extend(name(position(index, size), content)?);
        }
        Ok(Self(ByteBuf::from(names)))
    }

    /// True if the number of samples is right.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.0.len() == COUNT * NAME_BYTES
    }

    /// Finds the shift map under which an older version of `basis_length` bytes resembles the
    /// sampled content of `size` bytes. `None` if there seems to be none.
    ///
    /// # Errors
    /// Errors of reading the older version.
    pub fn shift_map(
        &self,
        size: u64,
        basis_length: u64,
        basis: &dyn Content,
    ) -> io::Result<Option<ShiftMap>> {
        if !self.is_complete() {
            return Ok(None);
        }
        let is_at = |name_there: &[u8], offset: Option<u64>| match offset {
            Some(offset) if offset.saturating_add(BYTES as u64) <= basis_length => {
                Ok::<_, io::Error>(name(offset, basis)?.as_slice() == name_there)
            }
            _ => Ok(false),
        };
        let (mut in_place, mut moved) = (Vec::with_capacity(COUNT), Vec::with_capacity(COUNT));
        for (index, name_there) in self.0.chunks(NAME_BYTES).enumerate() {
            let offset = position(index, size);
            in_place.push(is_at(name_there, Some(offset))?);
            moved.push(is_at(name_there, (offset + basis_length).checked_sub(size))?);
        }
        // Choose the split before which most samples are in place, and after which most are moved.
        // Take the last such split, so that the bytes between are in their old place.
        let mut found: usize = moved.iter().filter(|&&found| found).count();
        let (mut most, mut split) = (found, 0);
        for (index, (in_place, moved)) in in_place.into_iter().zip(&moved).enumerate() {
            found = found + usize::from(in_place) - usize::from(*moved);
            if found >= most {
                (most, split) = (found, index + 1);
            }
        }
        // The most samples that can be found: inserted bytes have none.
        let due = (COUNT as u64).saturating_mul(basis_length.min(size)) / size.max(1);
        if most < FOUND_MIN || (most as u64) < due * 3 / 4 {
            return Ok(None);
        }
        let split = match split {
            COUNT => size,
            // If a range was removed, the bytes between two samples cannot be kept in any case.
            // They are searched from the split on. It lies at the start of a block, so that no
            // block holds bytes from both of its sides.
            split if basis_length > size => {
                let block = BlockSize::for_size(size).bytes();
                position(split.saturating_sub(1), size) / block * block
            }
            split => position(split, size),
        };
        Ok(ShiftMap::new(basis_length, size, split))
    }
}

/// Position of a sample.
fn position(index: usize, size: u64) -> u64 {
    size / COUNT as u64 * index as u64
}

fn name(offset: u64, content: &dyn Content) -> io::Result<[u8; NAME_BYTES]> {
    let mut sample = [0; BYTES];
    content.read_at(&mut sample, offset)?;
    let mut name = [0; NAME_BYTES];
    name.copy_from_slice(Hash::of(&sample).as_bytes().split_at(NAME_BYTES).0);
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::testing::{noise, reader};

    /// The shift map from `basis` to `new`, and the number of bytes that it puts in the right
    /// place.
    fn shift_map(basis: &[u8], new: &[u8]) -> Option<(ShiftMap, usize)> {
        let (basis_length, size) = (basis.len() as u64, new.len() as u64);
        let samples = Samples::of(size, &reader(new)).unwrap();
        let shift_map = samples.shift_map(size, basis_length, &reader(basis)).unwrap()?;
        let mut made = vec![0; new.len()];
        shift_map.read_at(&mut made, 0, &reader(basis)).unwrap();
        Some((shift_map, made.iter().zip(new).filter(|(made, new)| made == new).count()))
    }

    const SIZE: usize = 4_000_000;

    #[test]
    fn rest_around_an_insertion_or_appendix_is_in_the_right_place() {
        let old = noise(SIZE);
        for at in [0, 5, 100_000, SIZE / 2, SIZE - 5, SIZE] {
            for inserted in [1, 1000, 77_777, SIZE / 3] {
                let new = [&old[..at], &vec![7; inserted], &old[at..]].concat();
                let (shift_map, right) = shift_map(&old, &new).unwrap();
                assert_eq!(shift_map.size(), new.len() as u64);
                // All bytes but the new ones and those between two samples; of the latter, each
                // exists once.
                let between = new.len().div_ceil(64);
                assert!(right + 2 * between > SIZE, "{inserted} at {at}: {right}");
            }
        }
        assert_eq!(shift_map(&old, &old), Some((ShiftMap::same(SIZE as u64), SIZE)));
    }

    #[test]
    fn some_edits_do_no_harm() {
        let old = noise(SIZE);
        let mut new = [&old[..1_000_000], &[7; 500], &old[1_000_000..]].concat();
        for edit in new.chunks_mut(SIZE / 7) {
            edit[0] ^= 1;
        }
        let (_, right) = shift_map(&old, &new).unwrap();
        assert!(right > SIZE * 31 / 32, "{right}");
    }

    #[test]
    fn rest_around_a_removed_range_is_in_the_right_place() {
        let old = noise(SIZE);
        for at in [0, 5, 100_000, SIZE / 2, SIZE * 2 / 3] {
            for taken in [1, 1000, 77_777, SIZE / 3] {
                let new = [&old[..at], &old[at + taken..]].concat();
                let (shift_map, right) = shift_map(&old, &new).unwrap();
                assert_eq!(shift_map.size(), new.len() as u64);
                let without = shift_map.without().unwrap();
                assert_eq!(without.end - without.start, taken as u64);
                let block = BlockSize::for_size(new.len() as u64).bytes();
                assert!(without.start % block == 0 || without.start == shift_map.size());
                // All bytes but those between two samples, and in one block.
                let between = 2 * new.len().div_ceil(64) + block as usize;
                assert!(right + between >= new.len(), "{taken} at {at}: {right}");
            }
        }
        for cut_off in [1, 77_777, SIZE / 2] {
            let new = &old[..SIZE - cut_off];
            assert_eq!(shift_map(&old, new).unwrap().1, new.len());
        }
    }

    #[test]
    fn unrelated_content_has_no_shift_map() {
        let old = noise(SIZE);
        let other = [&old[..SIZE / 2], &vec![7; SIZE / 2 + 10]].concat();
        assert_eq!(shift_map(&old, &other), None);
        assert_eq!(shift_map(&[], &old), None);
        // Too few samples of the old bytes in a content of this length.
        assert_eq!(shift_map(&old[..SIZE / 10], &old), None);
        assert_eq!(shift_map(&old, &noise(SIZE * 2)[SIZE + 5..]), None);
        let cut_short = Samples(ByteBuf::from(vec![0; 8]));
        assert_eq!(cut_short.shift_map(SIZE as u64, SIZE as u64, &reader(&old)).unwrap(), None);
    }
}
