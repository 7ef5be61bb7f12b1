//! Blocks and chunks of a content in memory.

use crate::content::blocks::{BlockSize, outline};
use crate::content::chunk::{self, Average, Chunk, ChunkId};
use crate::wire::message::{Blocks, Window};

pub(super) fn window_of(basis: &[u8], window: Window) -> Option<&[u8]> {
    let offset = usize::try_from(window.offset).ok()?;
    basis.get(offset..offset.checked_add(window.length as usize)?)
}

pub(super) fn chunks(content: &[u8]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    chunk::cut(content, Average::for_size(content.len() as u64).unwrap(), |bytes| {
        chunks.push(Chunk { length: bytes.len() as u32, id: ChunkId::of(bytes) });
    })
    .unwrap();
    chunks
}

/// Blocks of at most `most` bytes of `content`, in the block size for a file of `size` bytes.
pub(super) fn blocks(content: &[u8], size: usize, most: usize) -> Blocks {
    let read_at = |buffer: &mut [u8], offset: u64| {
        let offset = offset as usize;
        buffer.copy_from_slice(&content[offset..offset + buffer.len()]);
        Ok(())
    };
    let seen = content.len().min(most) as u64;
    let outline = outline(seen, BlockSize::for_size(size as u64), &read_at).unwrap();
    Blocks { length: content.len() as u64, ids: outline.ids }
}
