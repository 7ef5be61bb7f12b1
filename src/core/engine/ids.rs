//! Maps by file id.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map by file id. An id is a position in a manifest, and each is used at most twice, so a peer
/// cannot choose many ids that collide. SipHash took 3 % of a first copy of small files.
pub(super) type IdMap<V> = HashMap<u32, V, BuildHasherDefault<IdHasher>>;

/// Multiplies by 2^64 divided by the golden ratio (Knuth, The Art of Computer Programming, 6.4),
/// and folds the upper half into the lower one.
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(byte.into()));
    }

    fn write_u32(&mut self, id: u32) {
        let product = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }
}
