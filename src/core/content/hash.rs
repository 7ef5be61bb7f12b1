//! `Hash`: BLAKE3 of a content, except for long runs of zeros.
//!
//! # Definition
//! The hash is the root of BLAKE3's tree (sections 2.4 and 2.5 of its paper), with one difference.
//! Each aligned 16 KiB of zeros (a [grain](GRAIN_BYTES)) has the same chaining value everywhere:
//! the one that it has at the beginning of a content. So equal subtrees of zeros have equal nodes,
//! and a hole of 1 TiB costs 40 compressions instead of minutes. BLAKE3's collision resistance
//! rests on the flags of chunks, parents and the root. The chunk counter, which this hash omits for
//! grains of zeros, only helps implementations. A content without a grain of zeros after its first
//! 16 KiB has the hash that `b3sum` prints.

use std::fmt;
use std::sync::OnceLock;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Serialize};

/// Length in bytes of the runs of zeros that have a node of their own.
pub const GRAIN_BYTES: usize = 16 << 10;

/// Longest subtree in bytes that is hashed at once: a power of two, at least [`GRAIN_BYTES`].
const PIECE_BYTES: usize = 64 << 10;

/// Levels of subtrees of zeros above a piece; the highest is longer than any file.
const LEVELS: usize = 48;

/// The chaining value of a subtree.
pub(crate) type Node = [u8; 32];

/// The hash of some content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Hash([u8; 32]);

impl Hash {
    /// The hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        if bytes.len() <= GRAIN_BYTES || !has_zero_grain(bytes) {
            return Self(*blake3::hash(bytes).as_bytes());
        }
        let (left, right) = bytes.split_at(left_bytes(bytes.len()));
        Self::of_children(&node_of(0, left), &node_of(left.len() as u64, right))
    }

    /// Makes a hash of bytes that were computed elsewhere.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The root above two or more subtrees of equal length; the last one may be shorter.
    pub(crate) fn above(nodes: &[Node]) -> Self {
        let (left, right) = nodes.split_at(left_count(nodes.len()));
        Self::of_children(&node_above(left), &node_above(right))
    }

    /// The root above two subtrees.
    fn of_children(left: &Node, right: &Node) -> Self {
        Self(*merge_subtrees_root(left, right, Mode::Hash).as_bytes())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A part of a content.
#[derive(Debug, Clone, Copy)]
pub enum Piece<'a> {
    /// Bytes in memory.
    Bytes(&'a [u8]),
    /// A number of zeros.
    Zeros(u64),
}

/// Hashes a content, or an aligned subtree of one, that arrives in pieces.
///
/// Complete pieces of `PIECE_BYTES` are hashed where they lie. Their nodes are on a stack, as in
/// BLAKE3's own hasher. Two nodes of one level are merged only when a further one arrives, since
/// the last two may be the children of the root.
#[derive(Clone, Default)]
pub struct Hasher {
    /// Start of the subtree in the content, in bytes.
    start: u64,
    /// Number of pieces whose nodes are on the stack.
    pieces: u64,
    /// Subtrees, the longest first.
    stack: Vec<Node>,
    /// Bytes after the last complete piece; also the first piece, while it may be the whole
    /// content.
    rest: Vec<u8>,
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hasher").field("count", &self.count()).finish_non_exhaustive()
    }
}

impl Hasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A hasher of the subtree that begins at `start` bytes. `start` must be a multiple of the
    /// subtree's length, rounded up to a power of two.
    pub(crate) fn of_subtree(start: u64) -> Self {
        Self { start, ..Self::default() }
    }

    /// A hasher that has seen the subtrees of these nodes, `bytes` long each. `None` if `bytes` is
    /// no power of two of pieces, or if there are fewer than two nodes.
    pub(crate) fn of_nodes(nodes: &[Node], bytes: u64) -> Option<Self> {
        let level = (bytes / PIECE_BYTES as u64).checked_ilog2()?;
        if nodes.len() < 2 || (PIECE_BYTES as u64) << level != bytes {
            return None;
        }
        let mut hasher = Self::new();
        nodes.iter().for_each(|&node| hasher.push(node, level));
        Some(hasher)
    }

    /// Number of bytes so far.
    pub(crate) fn count(&self) -> u64 {
        self.pieces * PIECE_BYTES as u64 + self.rest.len() as u64
    }

    /// Takes in the next piece.
    pub fn take(&mut self, piece: Piece<'_>) {
        match piece {
            Piece::Bytes(bytes) => self.update(bytes),
            Piece::Zeros(count) => self.zeros(count),
        }
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            if self.rest.len() == PIECE_BYTES {
                self.push_rest();
            }
            // The first piece is pushed as soon as it is known not to be all.
            let is_complete = if self.pieces > 0 { PIECE_BYTES } else { PIECE_BYTES + 1 };
            if self.rest.is_empty() && bytes.len() >= is_complete {
                let (piece, later) = bytes.split_at(PIECE_BYTES);
                self.push(node_of(self.start + self.count(), piece), 0);
                bytes = later;
            } else {
                let (now, later) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.rest.len()));
                self.rest.extend_from_slice(now);
                bytes = later;
            }
        }
    }

    /// Takes in `count` zeros, in time that grows with the logarithm of their number.
    pub fn zeros(&mut self, count: u64) {
        static ZEROS: [u8; PIECE_BYTES] = [0; PIECE_BYTES];
        let mut left = count;
        while left > 0 {
            if self.rest.len() == PIECE_BYTES {
                self.push_rest();
            }
            if self.pieces > 0 && self.rest.is_empty() && left >= PIECE_BYTES as u64 {
                // The longest subtree of zeros that may begin here.
                let place = self.start / PIECE_BYTES as u64 + self.pieces;
                let level = (left / PIECE_BYTES as u64).ilog2().min(place.trailing_zeros());
                let level = level.min(self.pieces.trailing_zeros()).min(LEVELS as u32 - 1);
                self.push(zero_node(level as usize), level);
                left -= (PIECE_BYTES as u64) << level;
            } else {
                // At most `PIECE_BYTES`.
                let now = left.min((PIECE_BYTES - self.rest.len()) as u64);
                self.rest.extend_from_slice(ZEROS.get(..now as usize).unwrap_or_default());
                left -= now;
            }
        }
    }

    /// The hash of all bytes so far. Only valid for a hasher of a whole content.
    #[must_use]
    pub fn finish(&self) -> Hash {
        match self.children() {
            Some((left, right)) => Hash::of_children(&left, &right),
            None => Hash::of(&self.rest),
        }
    }

    /// The node of all bytes so far, at least one.
    pub(crate) fn node(&self) -> Node {
        match self.children() {
            Some((left, right)) => merge_subtrees_non_root(&left, &right, Mode::Hash),
            None => node_of(self.start, &self.rest),
        }
    }

    /// The node and the hash of all bytes so far, which are one at least and a whole content.
    pub(crate) fn node_and_hash(&self) -> (Node, Hash) {
        self.children().map_or_else(|| node_and_hash_of(&self.rest), both_above)
    }

    /// The two subtrees that make up all bytes so far; `None` if these are at most one piece.
    fn children(&self) -> Option<(Node, Node)> {
        let mut nodes = self.stack.clone();
        if !self.rest.is_empty() {
            merge_complete(&mut nodes, self.pieces);
            nodes.push(node_of(self.start + self.pieces * PIECE_BYTES as u64, &self.rest));
        }
        let mut nodes = nodes.into_iter().rev();
        let last = nodes.next()?;
        let before = nodes.next()?;
        Some(nodes.fold((before, last), |(left, right), before| {
            (before, merge_subtrees_non_root(&left, &right, Mode::Hash))
        }))
    }

    fn push_rest(&mut self) {
        let node = node_of(self.start + self.pieces * PIECE_BYTES as u64, &self.rest);
        self.rest.clear();
        self.push(node, 0);
    }

    /// Adds a subtree of 2^`level` pieces.
    fn push(&mut self, node: Node, level: u32) {
        merge_complete(&mut self.stack, self.pieces);
        self.stack.push(node);
        self.pieces += 1 << level;
    }
}

/// Merges the subtrees on a stack that are complete as soon as something follows. As many remain as
/// the number of `pieces` has binary ones.
fn merge_complete(stack: &mut Vec<Node>, pieces: u64) {
    while stack.len() > pieces.count_ones() as usize
        && let (Some(right), Some(left)) = (stack.pop(), stack.pop())
    {
        stack.push(merge_subtrees_non_root(&left, &right, Mode::Hash));
    }
}

/// The node above one or more subtrees of equal length; the last one may be shorter.
pub(crate) fn node_above(nodes: &[Node]) -> Node {
    match nodes {
        [node] => *node,
        _ => {
            let (left, right) = nodes.split_at(left_count(nodes.len()));
            merge_subtrees_non_root(&node_above(left), &node_above(right), Mode::Hash)
        }
    }
}

/// True if all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // The first byte decides for most contents. The compiler vectorises each group, except where it
    // optimises for size, as for the agent: there a group took 5 % of the hashing.
    bytes.first().is_none_or(|&byte| byte == 0)
        && bytes.chunks(256).all(|group| group.iter().fold(0, |seen, byte| seen | byte) == 0)
}

/// The node of one or more bytes that stand at `offset`.
pub(crate) fn node_of(offset: u64, bytes: &[u8]) -> Node {
    if !has_zero_grain(bytes) {
        return blake3::Hasher::new().set_input_offset(offset).update(bytes).finalize_non_root();
    }
    if bytes.len() <= GRAIN_BYTES {
        return zero_grain();
    }
    let (left, right) = bytes.split_at(left_bytes(bytes.len()));
    let right = node_of(offset + left.len() as u64, right);
    merge_subtrees_non_root(&node_of(offset, left), &right, Mode::Hash)
}

/// The node and the hash of a content of one byte or more, which is read once for both.
pub(crate) fn node_and_hash_of(content: &[u8]) -> (Node, Hash) {
    if !has_zero_grain(content) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(content);
        return (hasher.finalize_non_root(), Hash(*hasher.finalize().as_bytes()));
    }
    if content.len() <= GRAIN_BYTES {
        return (zero_grain(), Hash::of(content));
    }
    let (left, right) = content.split_at(left_bytes(content.len()));
    both_above((node_of(0, left), node_of(left.len() as u64, right)))
}

/// The node and the hash above two subtrees.
fn both_above((left, right): (Node, Node)) -> (Node, Hash) {
    (merge_subtrees_non_root(&left, &right, Mode::Hash), Hash::of_children(&left, &right))
}

/// True if these bytes, which begin at a grain, contain a grain of zeros.
fn has_zero_grain(bytes: &[u8]) -> bool {
    bytes.chunks_exact(GRAIN_BYTES).any(is_zero)
}

fn zero_grain() -> Node {
    static NODE: OnceLock<Node> = OnceLock::new();
    *NODE.get_or_init(|| blake3::Hasher::new().update(&[0; GRAIN_BYTES]).finalize_non_root())
}

/// The node of 2^`level` pieces of zeros.
fn zero_node(level: usize) -> Node {
    static NODES: OnceLock<[Node; LEVELS]> = OnceLock::new();
    let nodes = NODES.get_or_init(|| {
        let mut node = node_above(&[zero_grain(); PIECE_BYTES / GRAIN_BYTES]);
        std::array::from_fn(|_| {
            let above = merge_subtrees_non_root(&node, &node, Mode::Hash);
            std::mem::replace(&mut node, above)
        })
    });
    nodes.get(level).copied().unwrap_or_default()
}

/// The largest power of two below `count`, which is at least two.
fn left_count(count: usize) -> usize {
    count.div_ceil(2).next_power_of_two()
}

/// The length of the left subtree of a content longer than one grain: a multiple of the grain.
fn left_bytes(length: usize) -> usize {
    left_count(length.div_ceil(GRAIN_BYTES)) * GRAIN_BYTES
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::content::testing::noise;

    /// The definition, grain by grain.
    fn by_definition(content: &[u8]) -> Hash {
        if content.len() <= GRAIN_BYTES {
            return Hash(*blake3::hash(content).as_bytes());
        }
        let node = |(grain, index): (&[u8], u64)| {
            let is_zeros = grain.len() == GRAIN_BYTES && grain.iter().all(|&byte| byte == 0);
            let offset = if is_zeros { 0 } else { index * GRAIN_BYTES as u64 };
            blake3::Hasher::new().set_input_offset(offset).update(grain).finalize_non_root()
        };
        let nodes: Vec<Node> = content.chunks(GRAIN_BYTES).zip(0..).map(node).collect();
        Hash::above(&nodes)
    }

    #[test]
    fn hash_of_nothing_is_the_published_one() {
        // From BLAKE3's published test vectors, input length 0.
        assert_eq!(
            Hash::of(b"").to_string(),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }

    #[test]
    fn content_without_a_grain_of_zeros_has_the_hash_of_b3sum() {
        let content = noise(1_000_000);
        for length in
            [0, 1, GRAIN_BYTES, GRAIN_BYTES + 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES, 1_000_000]
        {
            let content = &content[..length];
            assert_eq!(Hash::of(content).as_bytes(), blake3::hash(content).as_bytes(), "{length}");
            let mut hasher = Hasher::new();
            content.chunks(70_001).for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finish().as_bytes(), blake3::hash(content).as_bytes(), "{length}");
        }
    }

    /// Ranges of zeros in a content of `length` bytes.
    fn sparse(length: usize, zeros: &[Range<usize>]) -> Vec<u8> {
        let mut content = noise(length);
        for zeros in zeros {
            content[zeros.start.min(length)..zeros.end.min(length)].fill(0);
        }
        content
    }

    #[test]
    fn pieces_and_zeros_hash_like_the_whole() {
        let g = GRAIN_BYTES;
        #[allow(clippy::single_range_in_vec_init)]
        let layouts: [&[Range<usize>]; 7] = [
            &[0..g],
            &[g..2 * g],
            &[5..3 * g - 1],
            &[0..100 * g],
            &[PIECE_BYTES..9 * PIECE_BYTES],
            &[3 * g + 1..7 * g, 40 * g..73 * g + 5],
            &[90 * g..100 * g + 7],
        ];
        for zeros in layouts {
            for length in [g - 1, g, g + 1, 2 * g, 4 * g, 5 * g, 64 * g, 64 * g + 1, 100 * g, 100 * g + 7] {
                let content = sparse(length, zeros);
                let due = by_definition(&content);
                assert_eq!(Hash::of(&content), due, "{length} {zeros:?}");
                let both = (node_of(0, &content), due);
                assert_eq!(node_and_hash_of(&content), both, "{length} {zeros:?}");
                for step in [1000, g, 3 * g + 1, 8 * PIECE_BYTES] {
                    let mut hasher = Hasher::new();
                    for piece in content.chunks(step) {
                        if is_zero(piece) { hasher.zeros(piece.len() as u64) } else { hasher.update(piece) }
                    }
                    assert_eq!(hasher.finish(), due, "{length} {zeros:?} in steps of {step}");
                    assert_eq!(hasher.node_and_hash(), both, "{length} {zeros:?} in steps of {step}");
                }
            }
        }
    }

    #[test]
    fn subtree_of_zeros_is_found_wherever_it_begins() {
        let block = 1 << 20;
        let content = sparse(4 * block, &[0..2 * block + 70_000, 3 * block..4 * block]);
        let nodes: Vec<Node> = content
            .chunks(block)
            .zip(0..)
            .map(|(bytes, index)| {
                let mut hasher = Hasher::of_subtree(index * block as u64);
                let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
                hasher.zeros(zeros as u64);
                hasher.update(&bytes[zeros..]);
                assert_eq!(hasher.count(), block as u64);
                hasher.node()
            })
            .collect();
        assert_eq!(nodes[0], nodes[3]);
        assert_eq!(Hash::above(&nodes), by_definition(&content));
    }

    #[test]
    fn contents_of_zeros_differ_by_their_length() {
        let g = GRAIN_BYTES as u64;
        let lengths =
            [0, 1, g, g + 1, 2 * g, 3 * g, 4 * g, 5 * g, 8 * g, 1 << 40, (1 << 40) + g, (1 << 40) + 1];
        let hashes: std::collections::BTreeSet<Hash> = lengths
            .iter()
            .map(|&length| {
                let mut hasher = Hasher::new();
                hasher.zeros(length);
                hasher.finish()
            })
            .collect();
        assert_eq!(hashes.len(), lengths.len());
    }
}
