//! Aligned blocks of a content, named by the inner nodes of the tree of its [hash](super::hash).
//!
//! The nodes are by-products of the hash that verifies the whole, so naming blocks costs nothing.
//! Each node can be computed alone, so several threads share the work. Most large files are edited
//! in place or appended to, so two versions differ in few blocks. A node depends on its block's
//! position. So blocks that one insertion moved are found by naming bytes as if they lay where they
//! would without it ([`block_ids`]). Bytes that went elsewhere are found by
//! [`chunk`](crate::content::chunk) instead.

use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use serde::{Deserialize, Serialize};

use crate::content::hash::{GRAIN_BYTES, Hash, Hasher, Node, node_above, node_and_hash_of, node_of};

/// Most blocks of one content: 512 KiB of names.
pub const BLOCKS_MAX: u64 = 1 << 15;

/// Shortest block in bytes.
const BLOCK_BYTES_MIN: u64 = GRAIN_BYTES as u64;

/// Minimum run of zeros, in bytes, that becomes a hole. A shorter run is not worth an extent.
pub(crate) const HOLE_BYTES_MIN: u64 = 32 << 10;

/// Most threads on one content. Two hash faster than most disks read.
const THREADS_MAX: usize = 4;

/// Least work of a thread, in bytes, that is worth its start.
const THREAD_BYTES_MIN: u64 = 4 << 20;

/// Bytes per read.
const READ_BYTES: u64 = 256 << 10;

/// The first 16 bytes of a block's node. They suffice to find equal blocks, since the hash of the
/// whole still verifies the result, and they halve the cost of sending a list.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockId([u8; 16]);

impl BlockId {
    /// The name of a block with this content that begins at `offset`, a multiple of the block size.
    /// The name of an empty block is never used.
    #[must_use]
    pub fn of(offset: u64, bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self([0; 16]);
        }
        Self::short(&node_of(offset, bytes))
    }

    fn short(node: &Node) -> Self {
        let mut id = [0; 16];
        id.copy_from_slice(node.split_at(16).0);
        Self(id)
    }
}

impl std::fmt::Debug for BlockId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Length of blocks: a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSize(u64);

impl BlockSize {
    /// The block size for a content of `size` bytes: 8·√size, as a power of two. A list of names
    /// costs 16 bytes per block, an edit the signature of a block (12 bytes for 1 KiB). With this
    /// size both are cheap, from a megabyte (1 KB and 200 B) to a terabyte.
    #[must_use]
    pub fn for_size(size: u64) -> Self {
        let balanced = size.isqrt().saturating_mul(8);
        let fewest = size.div_ceil(BLOCKS_MAX);
        Self(balanced.max(fewest).max(BLOCK_BYTES_MIN).next_power_of_two())
    }

    /// Half the block size, but at least the shortest.
    #[must_use]
    pub fn halved(self) -> Self {
        Self((self.0 / 2).max(BLOCK_BYTES_MIN))
    }

    /// The block size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Number of blocks in `length` bytes; the last one may be short.
    #[must_use]
    pub fn count(self, length: u64) -> u64 {
        length.div_ceil(self.0)
    }
}

/// The blocks of a content, or of its beginning, and the hash of these bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// The blocks' names, in order.
    pub ids: Vec<BlockId>,
    /// The hash.
    pub hash: Hash,
}

impl Outline {
    /// Makes the outline of a content of at most one block.
    fn of_one((node, hash): (Node, Hash)) -> Self {
        Self { ids: vec![BlockId::short(&node)], hash }
    }

    /// Makes the outline of a content of two blocks or more.
    fn of_several(nodes: &[Node]) -> Self {
        Self { ids: nodes.iter().map(BlockId::short).collect(), hash: Hash::above(nodes) }
    }
}

/// The nodes of a content's blocks. The names of longer blocks follow from them, so the nodes can
/// be computed before the block size is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nodes {
    length: u64,
    block: BlockSize,
    nodes: Vec<Node>,
}

impl Nodes {
    /// The outline in blocks of this size. `None` if these are shorter than the hashed blocks, or
    /// if there was only one of those.
    #[must_use]
    pub fn outline(&self, block: BlockSize) -> Option<Outline> {
        let each = usize::try_from(block.0 / self.block.0).ok().filter(|&each| each > 0)?;
        if self.nodes.len() < 2 {
            return None;
        }
        let ids = self.nodes.chunks(each).map(|nodes| BlockId::short(&node_above(nodes))).collect();
        Some(Outline { ids, hash: Hash::above(&self.nodes) })
    }

    /// A hasher that has seen the beginning of the content: whole blocks of at most `most` bytes.
    #[must_use]
    pub fn hasher(&self, most: u64) -> Option<Hasher> {
        let blocks = usize::try_from(most.min(self.length) / self.block.0).ok()?;
        Hasher::of_nodes(self.nodes.get(..blocks)?, self.block.0)
    }

    /// Computes the nodes of these bytes' blocks again after the bytes changed, or for the first
    /// time.
    ///
    /// # Errors
    /// Errors of reading the content.
    pub fn renew(&mut self, bytes: &Range<u64>, content: &dyn Content) -> io::Result<()> {
        let blocks = bytes.start / self.block.0..self.block.count(bytes.end);
        let found = nodes(blocks.clone(), self.length, self.block, content)?;
        if (self.nodes.len() as u64) < blocks.end {
            // At most as many as were found before and now.
            self.nodes.resize(blocks.end as usize, [0; 32]);
        }
        for (place, node) in self.nodes.iter_mut().skip(blocks.start as usize).zip(found) {
            *place = node;
        }
        Ok(())
    }
}

/// Computes nodes of a content's blocks on any number of threads: each takes the next block.
#[derive(Debug)]
pub struct Finding {
    blocks: Range<u64>,
    length: u64,
    block: BlockSize,
    next: AtomicU64,
    found: Mutex<Vec<(u64, Node)>>,
}

impl Finding {
    /// All blocks of a content of `length` bytes.
    #[must_use]
    pub fn of_all(length: u64, block: BlockSize) -> Self {
        Self::of_first(length, length, block)
    }

    /// The blocks that hold the first `first` bytes of a content of `length` bytes.
    #[must_use]
    pub fn of_first(first: u64, length: u64, block: BlockSize) -> Self {
        Self::new(0..block.count(first.min(length)), length, block)
    }

    fn new(blocks: Range<u64>, length: u64, block: BlockSize) -> Self {
        let next = AtomicU64::new(blocks.start);
        Self { blocks, length, block, next, found: Mutex::default() }
    }

    /// Helps on several threads until no block is left.
    ///
    /// # Errors
    /// Errors of reading the content. The failing thread's nodes are then lost.
    pub fn help(&self, content: &dyn Content) -> io::Result<()> {
        let bytes = (self.blocks.end - self.blocks.start).saturating_mul(self.block.0);
        thread::scope(|scope| {
            let others: Vec<_> =
                (1..threads(bytes)).map(|_| scope.spawn(|| self.take_turns(content))).collect();
            self.take_turns(content)?;
            let join = |other: thread::ScopedJoinHandle<'_, _>| {
                other.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
            };
            others.into_iter().try_for_each(join)
        })
    }

    /// Helps on this thread until no block is left.
    ///
    /// # Errors
    /// As [`Finding::help`].
    pub fn take_turns(&self, content: &dyn Content) -> io::Result<()> {
        let (mut nodes, mut buffer) = (Vec::new(), Vec::new());
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.blocks.end {
                break;
            }
            let offset = index * self.block.0;
            let length = self.block.0.min(self.length - offset);
            let hasher = hash_block(offset, length, content, &mut buffer)?;
            nodes.push((index, hasher.node()));
        }
        self.found.lock().unwrap_or_else(PoisonError::into_inner).append(&mut nodes);
        Ok(())
    }

    /// Returns the nodes, if they are complete. To be called when nobody helps any more.
    #[must_use]
    pub fn finish(&self) -> Option<Nodes> {
        let found = std::mem::take(&mut *self.found.lock().unwrap_or_else(PoisonError::into_inner));
        let is_all = found.len() as u64 == self.blocks.end - self.blocks.start;
        let mut nodes = vec![[0; 32]; found.len()];
        for (index, node) in found {
            if let Some(place) = nodes.get_mut((index - self.blocks.start) as usize) {
                *place = node;
            }
        }
        is_all.then_some(Nodes { length: self.length, block: self.block, nodes })
    }
}

/// A content that can be read from several threads. (Its users are not generic, so that the agent
/// holds their code once.)
pub trait Content: Sync {
    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// The bytes cannot be read, or are fewer than requested.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Number of zeros from `offset` on that need not be read; there may be more zeros.
    fn zeros_at(&self, offset: u64) -> u64 {
        let _ = offset;
        0
    }

    /// The first run of `range`, clipped to it.
    fn first_run(&self, range: &Range<u64>) -> Run {
        Run { length: range.end - range.start, is_hole: false }
    }
}

/// A run of a content: zeros that take no space, or data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Length in bytes.
    pub length: u64,
    /// True for zeros that take no space.
    pub is_hole: bool,
}

impl<F: Fn(&mut [u8], u64) -> io::Result<()> + Sync> Content for F {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self(buffer, offset)
    }
}

/// Computes the blocks and the hash of `length` bytes.
///
/// # Errors
/// Errors of reading the content.
pub fn outline(length: u64, block: BlockSize, content: &dyn Content) -> io::Result<Outline> {
    if length <= READ_BYTES {
        let mut bytes = vec![0; length as usize];
        content.read_at(&mut bytes, 0)?;
        return Ok(outline_of(&bytes, block));
    }
    let count = block.count(length);
    if count <= 1 {
        let hasher = hash_block(0, length, content, &mut Vec::new())?;
        return Ok(Outline::of_one(hasher.node_and_hash()));
    }
    Ok(Outline::of_several(&nodes(0..count, length, block, content)?))
}

/// Computes the blocks and the hash of a content in memory.
#[must_use]
pub fn outline_of(content: &[u8], block: BlockSize) -> Outline {
    if content.is_empty() {
        return Outline { ids: Vec::new(), hash: Hash::of(content) };
    }
    if content.len() as u64 <= block.0 {
        return Outline::of_one(node_and_hash_of(content));
    }
    let node = |(bytes, index): (&[u8], u64)| node_of(index * block.0, bytes);
    let nodes: Vec<Node> = content.chunks(block.0 as usize).zip(0..).map(node).collect();
    Outline::of_several(&nodes)
}

/// Names some blocks of a content of `length` bytes. `content` may read other bytes, to test
/// whether they would be those blocks if they lay there.
///
/// # Errors
/// Errors of reading the content.
pub fn block_ids(
    blocks: Range<u64>,
    length: u64,
    block: BlockSize,
    content: &dyn Content,
) -> io::Result<Vec<BlockId>> {
    Ok(nodes(blocks, length, block, content)?.iter().map(BlockId::short).collect())
}

fn nodes(blocks: Range<u64>, length: u64, block: BlockSize, content: &dyn Content) -> io::Result<Vec<Node>> {
    let finding = Finding::new(blocks, length, block);
    finding.help(content)?;
    let lost = || io::Error::other("a block was not looked at");
    Ok(finding.finish().ok_or_else(lost)?.nodes)
}

/// Names the block of `length` bytes that begins at `offset`, a multiple of the block size.
///
/// # Errors
/// Errors of reading the content.
pub fn block_id(offset: u64, length: u64, content: &dyn Content) -> io::Result<BlockId> {
    Ok(BlockId::short(&hash_block(offset, length, content, &mut Vec::new())?.node()))
}

/// Number of threads that share the work.
fn threads(length: u64) -> usize {
    let worth = usize::try_from(length / THREAD_BYTES_MIN).unwrap_or(THREADS_MAX);
    if worth <= 1 {
        // Asking for the number of processors takes longer than hashing a small file.
        return 1;
    }
    let there = thread::available_parallelism().map_or(1, NonZero::get);
    worth.min(there).min(THREADS_MAX)
}

/// Hashes one block. `buffer` is reused for the next block.
fn hash_block(offset: u64, length: u64, content: &dyn Content, buffer: &mut Vec<u8>) -> io::Result<Hasher> {
    let mut hasher = Hasher::of_subtree(offset);
    // At most `READ_BYTES`.
    buffer.resize(buffer.len().max(length.min(READ_BYTES) as usize), 0);
    let mut at = 0;
    while at < length {
        let zeros = content.zeros_at(offset + at).min(length - at);
        if zeros > 0 {
            hasher.zeros(zeros);
            at += zeros;
            continue;
        }
        let now = (length - at).min(READ_BYTES) as usize;
        let piece = buffer.get_mut(..now).unwrap_or_default();
        content.read_at(piece, offset + at)?;
        hasher.update(piece);
        at += now as u64;
    }
    Ok(hasher)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::testing::{noise, reader};

    fn outline_of(content: &[u8], block: BlockSize) -> Outline {
        outline(content.len() as u64, block, &reader(content)).unwrap()
    }

    #[test]
    fn outline_has_the_hash_of_the_whole_content() {
        let content = noise(9 << 20);
        let block = BlockSize(16 << 10);
        let edges = [0, 1, 1024, 16 << 10, (16 << 10) + 1, 32 << 10, (48 << 10) - 1, 48 << 10, 80 << 10];
        for length in edges.into_iter().chain([1_000_000, 5 << 20, content.len()]) {
            let content = &content[..length];
            let outline = outline_of(content, block);
            assert_eq!(outline.hash, Hash::of(content), "{length}");
            let ids: Vec<_> = content
                .chunks(16 << 10)
                .enumerate()
                .map(|(index, bytes)| BlockId::of(index as u64 * block.bytes(), bytes))
                .collect();
            assert_eq!(outline.ids, ids, "{length}");
        }
    }

    #[test]
    fn longer_blocks_follow_from_shorter_ones() {
        for length in [3 << 20, (3 << 20) + 1, 5_000_000, (16 << 10) + 1] {
            let content = noise(length);
            let finding = Finding::of_all(length as u64, BlockSize(32 << 10));
            assert_eq!(finding.finish(), None, "nobody has helped");
            finding.help(&reader(&content)).unwrap();
            let nodes = finding.finish().unwrap();
            for block in [16, 32, 64, 256, 4096] {
                let block = BlockSize(block << 10);
                let can_be = block.bytes() >= 32 << 10 && length > 32 << 10;
                assert_eq!(nodes.outline(block), can_be.then(|| outline_of(&content, block)), "{length}");
            }
        }
    }

    #[test]
    fn renewed_nodes_equal_those_of_the_changed_content() {
        let mut content = noise(3_000_001);
        let block = BlockSize(32 << 10);
        let find = |content: &[u8]| {
            let finding = Finding::of_all(content.len() as u64, block);
            finding.help(&reader(content)).unwrap();
            finding.finish().unwrap()
        };
        let mut nodes = find(&content);
        for changed in [5..6, 32_767..32_769, 1_000_000..1_500_000, 3_000_000..3_000_001] {
            content[changed.clone()].fill(7);
            nodes.renew(&(changed.start as u64..changed.end as u64), &reader(&content)).unwrap();
            assert_eq!(nodes, find(&content), "{changed:?}");
        }
        // Blocks that were never hashed are computed like changed ones.
        for first in [1_000_000, 1_015_808, 2_999_999] {
            let finding = Finding::of_first(first, content.len() as u64, block);
            finding.help(&reader(&content)).unwrap();
            let mut nodes = finding.finish().unwrap();
            nodes.renew(&(first..content.len() as u64), &reader(&content)).unwrap();
            assert_eq!(nodes, find(&content), "{first}");
        }
    }

    #[test]
    fn edit_changes_the_name_of_its_block_only() {
        let mut content = noise(3 << 20);
        let block = BlockSize::for_size(content.len() as u64);
        let before = outline_of(&content, block);
        content[1_000_000] ^= 1;
        let after = outline_of(&content, block);
        let changed: Vec<_> = (0..before.ids.len()).filter(|&i| before.ids[i] != after.ids[i]).collect();
        assert_eq!(changed, [1_000_000 / block.bytes() as usize]);
        assert_ne!(before.hash, after.hash);
    }

    #[test]
    fn equal_blocks_in_different_places_have_different_names() {
        let outline = outline_of(&vec![7; 64 << 10], BlockSize(16 << 10));
        assert!(outline.ids.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn blocks_are_recognised_where_they_were_moved_to() {
        let content = noise(1_000_000);
        let block = BlockSize(16 << 10);
        let before = outline_of(&content, block).ids;
        let moved = [&noise(5000)[..], &content].concat();
        let content = |buffer: &mut [u8], offset: u64| {
            let offset = offset as usize + 5000;
            buffer.copy_from_slice(&moved[offset..offset + buffer.len()]);
            Ok(())
        };
        let found = block_ids(7..block.count(1_000_000), 1_000_000, block, &content).unwrap();
        assert_eq!(found, before[7..]);
    }

    #[test]
    fn hasher_continues_after_the_blocks_whose_nodes_are_known() {
        let content = noise(3_000_001);
        for block in [16 << 10, 64 << 10, 256 << 10, 2 << 20] {
            let finding = Finding::of_all(content.len() as u64, BlockSize(block));
            finding.help(&reader(&content)).unwrap();
            let nodes = finding.finish().unwrap();
            for most in [0, 100_000, 1 << 20, 2_000_000, 3_000_001] {
                let blocks = most / block;
                let Some(mut hasher) = nodes.hasher(most) else {
                    assert!(blocks < 2 || block < 64 << 10, "{block} {most}");
                    continue;
                };
                assert_eq!(hasher.count(), blocks * block);
                if most > hasher.count() {
                    hasher.update(&content[hasher.count() as usize..most as usize]);
                }
                assert_eq!(hasher.finish(), Hash::of(&content[..most as usize]), "{block} {most}");
            }
        }
    }

    /// A content of zeros with a few other bytes; only reads that contain one of these are allowed.
    struct Sparse {
        length: u64,
        data: Vec<u64>,
    }

    impl Content for Sparse {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            let end = offset + buffer.len() as u64;
            assert!(self.data.iter().any(|&at| at < end && offset <= at), "a hole is read at {offset}");
            buffer.fill(0);
            for &at in self.data.iter().filter(|&&at| offset <= at && at < end) {
                buffer[(at - offset) as usize] = 7;
            }
            Ok(())
        }

        fn zeros_at(&self, offset: u64) -> u64 {
            let next = self.data.iter().find(|&&at| at >= offset).map_or(self.length, |&at| at);
            next - offset
        }
    }

    #[test]
    fn holes_are_not_read_and_hash_like_zeros() {
        let content = Sparse { length: 5_000_000, data: vec![0, 1_000_001, 3 << 20, 4_999_999] };
        let mut bytes = vec![0; 5_000_000];
        content.data.iter().for_each(|&at| bytes[at as usize] = 7);
        for block in [16, 64, 1024, 16 << 10] {
            let block = BlockSize(block << 10);
            assert_eq!(outline(5_000_000, block, &content).unwrap(), outline_of(&bytes, block));
        }
        let long = Sparse { length: 1 << 40, data: vec![3 << 30, (1 << 39) + 5] };
        let found = outline(1 << 40, BlockSize::for_size(1 << 40), &long).unwrap();
        let differing = found.ids.iter().filter(|&id| *id != found.ids[0]).count();
        assert_eq!((found.ids.len(), differing), (1 << 15, 2));
    }

    #[test]
    fn read_error_of_any_thread_is_reported() {
        for bad in [0, 5 << 20, 40 << 20] {
            let content =
                |_: &mut [u8], offset| if offset == bad { Err(io::ErrorKind::Other.into()) } else { Ok(()) };
            assert!(outline(64 << 20, BlockSize(1 << 20), &content).is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_stay_short_whatever_the_size() {
        for (size, bytes) in
            [(0, 16 << 10), (1 << 20, 16 << 10), (100_000_000, 128 << 10), (1 << 30, 256 << 10)]
        {
            assert_eq!(BlockSize::for_size(size).bytes(), bytes, "{size}");
        }
        for bits in 0..63 {
            let size = (1 << bits) + 1;
            assert!(BlockSize::for_size(size).count(size) <= BLOCKS_MAX, "{size}");
        }
    }
}
