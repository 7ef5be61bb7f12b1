//! `WriteBack`: starts writing a staged file to the disk early, if it will replace another file.
//!
//! A file must be on its way to the disk before it is renamed over another one. Otherwise a power
//! cut may leave neither of the two. ext4 ensures that itself (`auto_da_alloc`): the rename waits
//! until the disk has taken everything. For a gigabyte this wait is 0.27 s in which the run has
//! nothing else to do; with an early start it is 0.07 s. No other part of a run waits for the disk.
//! So a separate thread does this work, and no other thread waits for it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Bytes that are handed to the disk at a time. A shorter rest takes only a moment.
const STEP_BYTES: u64 = 8 << 20;

/// The progress of a file's write-back.
#[derive(Debug)]
pub(super) struct WriteBack(Mutex<State>);

#[derive(Debug)]
struct State {
    begun: u64,
    thread: Option<Thread>,
}

impl WriteBack {
    /// Write-back for a file whose first `len` bytes are from an earlier time.
    pub(super) fn from(len: u64) -> Self {
        Self(Mutex::new(State { begun: len, thread: None }))
    }

    /// Tells that the file has been written up to `end`, or nearly: several threads may write it.
    pub(super) fn reached(&self, file: &Arc<File>, end: u64) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(due) = state.due(end) else { return };
        if state.thread.is_none() {
            state.thread = Thread::start(file).ok();
        }
        // Without a thread, the rename writes the file.
        if let Some(due_to) = state.thread.as_ref().and_then(|thread| thread.due.as_ref()) {
            let _ = due_to.send(due);
        }
    }
}

impl State {
    /// The next range to hand to the disk, if any.
    fn due(&mut self, end: u64) -> Option<Range<u64>> {
        let due = self.begun..end - end % STEP_BYTES;
        if due.is_empty() {
            return None;
        }
        self.begun = due.end;
        Some(due)
    }
}

/// Waits for the disk, so that the writer need not. Dropping it waits for the current range: a lock
/// on the file lasts as long as a thread has the file open.
#[derive(Debug)]
struct Thread {
    due: Option<Sender<Range<u64>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Thread {
    fn start(file: &Arc<File>) -> io::Result<Self> {
        // The thread shares the descriptor: closing a second one would swallow the error that the
        // filesystem reports at `close`.
        let (file, is_over) = (Arc::clone(file), Arc::new(AtomicBool::new(false)));
        let (sender, due) = mpsc::channel();
        let seen = Arc::clone(&is_over);
        let work = move || {
            due.iter().take_while(|_| !seen.load(Ordering::Relaxed)).for_each(|due| begin(&file, due));
        };
        let thread = thread::Builder::new().spawn(work)?;
        Ok(Self { due: Some(sender), is_over, thread: Some(thread) })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.due = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Starts writing a range. `sync_file_range` is made for this, but no crate offers it without
/// `unsafe`. This advice starts the same write, and then drops cached pages that are on the disk
/// already; none of the new pages is.
#[cfg(target_os = "linux")]
fn begin(file: &File, stretch: Range<u64>) {
    use std::num::NonZero;

    use rustix::fs::{Advice, fadvise};

    let _ = fadvise(file, stretch.start, NonZero::new(stretch.end - stretch.start), Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
fn begin(_file: &File, _stretch: Range<u64>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_back_covers_each_range_once_and_in_steps() {
        let mut state = State { begun: 5, thread: None };
        let mib = |count: u64| count << 20;
        let begun = [7, 8, 9, 3, 15, 30, 31, 32].map(|at| state.due(mib(at)));
        let begun: Vec<_> = begun.into_iter().flatten().collect();
        assert_eq!(begun, [5..mib(8), mib(8)..mib(24), mib(24)..mib(32)]);
    }
}
