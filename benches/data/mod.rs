//! Deterministic data for benches: the same seed gives the same bytes on every machine, without a
//! network.
//!
//! Each bench uses a part of this module. A failed write ends the bench with a panic, which its
//! user reads.
#![allow(dead_code, clippy::expect_used, clippy::indexing_slicing)]

pub(crate) mod text;
pub(crate) mod tree;

use std::io::{self, Write};

/// Modification time of all data, in seconds since 1970. It is long ago, because programs distrust
/// recently written files. It is a whole second, because some programs carry no fractions.
pub(crate) const TIME_OLD: u64 = 1_600_000_000;

/// A pseudo-random number generator: SplitMix64 (Steele et al., 2014), 1 ns for eight bytes.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0xff51_afd7_ed55_8ccd) ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `bound`, which must be far below 2^32, so that the bias is negligible.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (((self.next() >> 32) * bound as u64) >> 32) as usize
    }

    /// A number in (0, 1].
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// A number below `bound`, far more often a small one, because words and directories are not
    /// used evenly.
    pub(crate) fn skewed(&mut self, bound: usize) -> usize {
        let unit = self.unit();
        ((unit * unit * unit * bound as f64) as usize).min(bound - 1)
    }

    /// A normally distributed number (Box–Muller).
    pub(crate) fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

/// Incompressible bytes without repetition.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&rng.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Writes this many bytes of noise and then of text, a megabyte at a time.
pub(crate) fn write_mixed(
    mut to: impl Write,
    seed: u64,
    noise_bytes: u64,
    text_bytes: u64,
) -> io::Result<()> {
    const PIECE: u64 = 1 << 20;
    for index in 0..noise_bytes.div_ceil(PIECE) {
        let length = PIECE.min(noise_bytes - index * PIECE);
        to.write_all(&noise(seed ^ (index << 20), length as usize))?;
    }
    let mut author = text::Author::new(seed);
    let mut piece = Vec::new();
    for index in 0..text_bytes.div_ceil(PIECE) {
        piece.clear();
        author.write(&mut piece, PIECE.min(text_bytes - index * PIECE) as usize);
        to.write_all(&piece)?;
    }
    Ok(())
}
