//! `WriteBack`: has a file that will replace another one written to the disk while it is being made.
//!
//! A file that is renamed over another one has to be on its way to the disk by then, or a power cut may leave neither
//! of the two: ext4 sees to that itself (`auto_da_alloc`), and the rename waits until the disk has taken everything.
//! For a gigabyte that is 0.27 s in which nobody has anything else to do; begun earlier, it costs 0.07. Elsewhere
//! nobody waits for the disk, so here a thread does that nobody waits for either.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// How much is handed to the disk at a time. What is shorter is there in a moment.
const STEP_BYTES: u64 = 8 << 20;

/// How far a file has been handed to the disk.
#[derive(Debug)]
pub(super) struct WriteBack(Mutex<State>);

#[derive(Debug)]
struct State {
    begun: u64,
    thread: Option<Thread>,
}

impl WriteBack {
    /// Of a file, the first `len` bytes of which are from an earlier time.
    pub(super) fn from(len: u64) -> Self {
        Self(Mutex::new(State { begun: len, thread: None }))
    }

    /// The file has been written up to `end`, or nearly: several threads may be at it.
    pub(super) fn reached(&self, file: &Arc<File>, end: u64) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(due) = state.due(end) else { return };
        if state.thread.is_none() {
            state.thread = Thread::start(file).ok();
        }
        // Without a thread it is written when it is renamed.
        if let Some(due_to) = state.thread.as_ref().and_then(|thread| thread.due.as_ref()) {
            let _ = due_to.send(due);
        }
    }
}

impl State {
    /// What is to be handed to the disk now.
    fn due(&mut self, end: u64) -> Option<Range<u64>> {
        let due = self.begun..end - end % STEP_BYTES;
        if due.is_empty() {
            return None;
        }
        self.begun = due.end;
        Some(due)
    }
}

/// Waits for the disk where it has to be waited for. It ends with what it does just now: a lock on the file lasts as
/// long as anybody has that open.
#[derive(Debug)]
struct Thread {
    due: Option<Sender<Range<u64>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Thread {
    fn start(file: &Arc<File>) -> io::Result<Self> {
        // No descriptor of its own: closing that would swallow what the filesystem tells at a
        // `close`.
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

/// Begins to write a stretch. `sync_file_range` is made for that, but nobody offers it without `unsafe`. This advice
/// does the same first, and then lets go of what is on the disk already: of what was just written, nothing is.
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
    fn what_is_handed_to_the_disk_is_handed_to_it_once_and_in_steps() {
        let mut state = State { begun: 5, thread: None };
        let mib = |count: u64| count << 20;
        let begun = [7, 8, 9, 3, 15, 30, 31, 32].map(|at| state.due(mib(at)));
        let begun: Vec<_> = begun.into_iter().flatten().collect();
        assert_eq!(begun, [5..mib(8), mib(8)..mib(24), mib(24)..mib(32)]);
    }
}
