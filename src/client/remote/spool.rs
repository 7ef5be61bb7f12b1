//! Bytes of a forwarded connection that its local reader has not taken yet.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

/// Bytes of one connection in memory. The rest goes to a file.
const MEMORY_BYTES_MAX: usize = 256 << 10;

/// Bytes that all connections of a session may have in files.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 30;

/// Most bytes read back at once.
const READ_BYTES: usize = 64 << 10;

/// Attempts to find an unused name for a file.
const NAMES_MAX: u32 = 100;

/// Room for the files of all connections of a session.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<AtomicU64>);

impl Room {
    pub(super) fn of(bytes: u64) -> Self {
        Self(Arc::new(AtomicU64::new(bytes)))
    }

    fn take(&self, bytes: u64) -> bool {
        let less = |room: u64| room.checked_sub(bytes);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A queue of bytes, of which only the oldest are in memory.
///
/// russh reopens a channel's window for received bytes, not for consumed ones. A channel that is
/// not drained stops the whole SSH session, with every other connection and the shell on it. So
/// each connection drains its channel, and bytes that a slow reader leaves go to an unlinked file.
/// Only a queue without [room](Spool::has_room) stops the session.
#[derive(Debug)]
pub(super) struct Spool {
    memory: VecDeque<Bytes>,
    memory_bytes: usize,
    /// Bytes newer than those in memory.
    file: Option<Spilled>,
    /// A piece newer than all others, for which there was no room.
    surplus: Option<Bytes>,
    room: Room,
}

/// The bytes between two positions of a file.
#[derive(Debug)]
struct Spilled {
    file: File,
    read_at: u64,
    write_at: u64,
    room: Room,
}

impl Drop for Spilled {
    fn drop(&mut self) {
        self.room.give_back(self.write_at);
    }
}

impl Spool {
    pub(super) fn within(room: Room) -> Self {
        Self { memory: VecDeque::new(), memory_bytes: 0, file: None, surplus: None, room }
    }

    /// Reports if the queue can take another piece.
    pub(super) fn has_room(&self) -> bool {
        self.surplus.is_none()
    }

    /// Appends a piece, for which there must be room.
    pub(super) fn push(&mut self, bytes: Bytes) {
        if self.file.is_none() && self.memory_bytes.saturating_add(bytes.len()) <= MEMORY_BYTES_MAX {
            self.memory_bytes += bytes.len();
            self.memory.push_back(bytes);
        } else if !self.spill(&bytes) {
            self.surplus = Some(bytes);
        }
    }

    /// Appends to the file. Without room on the disk nothing is appended.
    fn spill(&mut self, bytes: &Bytes) -> bool {
        let length = bytes.len() as u64;
        if !self.room.take(length) {
            return false;
        }
        let spilled = match self.file.take() {
            Some(spilled) => Some(spilled),
            None => unlinked_file().ok().map(|file| {
                let room = self.room.clone();
                Spilled { file, read_at: 0, write_at: 0, room }
            }),
        };
        self.file = spilled;
        // A packet goes into the page cache: too little to leave the async thread.
        let written = self.file.as_ref().map(|spilled| spilled.file.write_all_at(bytes, spilled.write_at));
        match (written, &mut self.file) {
            (Some(Ok(())), Some(spilled)) => {
                spilled.write_at += length;
                true
            }
            _ => {
                self.room.give_back(length);
                self.file.take_if(|spilled| spilled.write_at == 0);
                false
            }
        }
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
        let Some(spilled) = &mut self.file else { return Ok(self.surplus.take()) };
        let left = spilled.write_at.saturating_sub(spilled.read_at);
        let mut bytes = vec![0; usize::try_from(left).unwrap_or(READ_BYTES).min(READ_BYTES)];
        spilled.file.read_exact_at(&mut bytes, spilled.read_at)?;
        spilled.read_at += bytes.len() as u64;
        if spilled.read_at == spilled.write_at {
            self.file = None;
        }
        Ok(Some(bytes.into()))
    }
}

/// Opens a private file without a name.
fn unlinked_file() -> io::Result<File> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut error = io::ErrorKind::AlreadyExists.into();
    for _ in 0..NAMES_MAX {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!(".ksync-forward-{}-{count}", std::process::id()));
        match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => {
                std::fs::remove_file(&path)?;
                return Ok(file);
            }
            Err(failed) => error = failed,
        }
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(number: u32) -> Bytes {
        number.to_le_bytes().repeat(4096).into()
    }

    #[test]
    fn order_is_kept_and_memory_is_bounded() {
        let room = Room::of(FILE_BYTES_MAX);
        let mut spool = Spool::within(room.clone());
        let (mut expected, mut actual) = (Vec::new(), Vec::new());
        for number in 0..1000_u32 {
            expected.extend_from_slice(&piece(number));
            spool.push(piece(number));
            assert!(spool.has_room() && spool.memory_bytes <= MEMORY_BYTES_MAX);
            if number % 3 == 0 {
                actual.extend_from_slice(&spool.pop().unwrap().unwrap());
            }
        }
        while let Some(bytes) = spool.pop().unwrap() {
            actual.extend_from_slice(&bytes);
        }
        assert!(actual == expected);
        assert_eq!(room.0.load(Ordering::Relaxed), FILE_BYTES_MAX);
    }

    #[test]
    fn a_queue_without_room_keeps_one_piece_more_and_then_goes_on() {
        let room = Room::of(2 * 16384);
        let mut spool = Spool::within(room.clone());
        let mut pushed = 0;
        while spool.has_room() {
            spool.push(piece(pushed));
            pushed += 1;
        }
        // 16 pieces in memory, two in the file, and the one too many.
        assert_eq!(pushed, 19);
        let mut actual = Vec::new();
        while let Some(bytes) = spool.pop().unwrap() {
            actual.extend_from_slice(&bytes);
        }
        assert!(actual == (0..pushed).flat_map(piece).collect::<Vec<_>>());
        assert!(spool.has_room());
        assert!(room.take(2 * 16384));
    }

    #[test]
    fn a_dropped_queue_gives_its_room_back() {
        let room = Room::of(1 << 20);
        let mut spool = Spool::within(room.clone());
        (0..30).for_each(|number| spool.push(piece(number)));
        assert!(!room.take(1 << 20));
        drop(spool);
        assert!(room.take(1 << 20));
    }
}
