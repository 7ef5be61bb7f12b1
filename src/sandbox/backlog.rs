//! Input from a client that its process has not read yet.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

/// Bytes kept in memory, twice OpenSSH's channel window; the rest goes to a file.
const MEMORY_MAX: usize = 4 << 20;

/// Most bytes read back at once.
const READ_SIZE: usize = 64 * 1024;

/// A queue of bytes, of which at most 4 MiB are in memory.
///
/// russh reopens the window for received bytes, not for consumed ones. While a channel is not
/// drained, the whole connection stalls, other channels and all output included. sshd does not
/// stall: there, a process that writes before it reads goes on. This server therefore always drains
/// its channels. Input that a slow process leaves unread goes to an unlinked file.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    memory: VecDeque<Bytes>,
    memory_bytes: usize,
    /// Bytes newer than everything in memory.
    spill: Option<Spill>,
}

/// The queue's part in a file: the bytes between the two positions.
#[derive(Debug)]
struct Spill {
    file: File,
    read_at: u64,
    write_at: u64,
}

impl Backlog {
    /// Appends bytes.
    ///
    /// # Errors
    /// The file cannot be created or written.
    pub(super) fn push(&mut self, bytes: Bytes) -> io::Result<()> {
        if self.spill.is_none() {
            if self.memory_bytes.saturating_add(bytes.len()) <= MEMORY_MAX {
                self.memory_bytes += bytes.len();
                self.memory.push_back(bytes);
                return Ok(());
            }
            self.spill = Some(Spill { file: unlinked_file()?, read_at: 0, write_at: 0 });
        }
        if let Some(spill) = &mut self.spill {
            // This writes at most one SSH packet into the page cache, too little to leave the async
            // thread.
            spill.file.write_all_at(&bytes, spill.write_at)?;
            spill.write_at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Takes the oldest piece; `None` if the queue is empty.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn pop(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(bytes) = self.memory.pop_front() {
            self.memory_bytes -= bytes.len();
            return Ok(Some(bytes));
        }
        let Some(spill) = &mut self.spill else {
            return Ok(None);
        };
        let left = spill.write_at.saturating_sub(spill.read_at);
        let mut bytes = vec![0; usize::try_from(left).unwrap_or(READ_SIZE).min(READ_SIZE)];
        spill.file.read_exact_at(&mut bytes, spill.read_at)?;
        spill.read_at += bytes.len() as u64;
        if spill.read_at == spill.write_at {
            // Dropping the file frees its space as soon as it was read to its end.
            self.spill = None;
        }
        Ok(Some(bytes.into()))
    }
}

/// Opens a private, unlinked temporary file.
fn unlinked_file() -> io::Result<File> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!(".ksync-sandbox-{}-{count}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_across_memory_and_file() {
        let mut backlog = Backlog::default();
        let mut expected = Vec::new();
        let mut actual = Vec::new();
        for round in 0..1000_u32 {
            let piece = round.to_le_bytes().repeat(4096);
            expected.extend_from_slice(&piece);
            backlog.push(piece.into()).expect("push");
            if round % 3 == 0 {
                actual.extend_from_slice(&backlog.pop().expect("pop").expect("a piece"));
            }
            assert!(backlog.memory_bytes <= MEMORY_MAX);
        }
        while let Some(piece) = backlog.pop().expect("pop") {
            actual.extend_from_slice(&piece);
        }
        assert!(actual == expected);
        assert!(backlog.spill.is_none());
    }
}
