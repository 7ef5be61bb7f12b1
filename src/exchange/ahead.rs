//! `Ahead`: hashes large files that will probably be asked for while the connection is made.
//!
//! To compare a file with an old version its sender hashes it first, 0.14 s for a gigabyte, while the receiver waits.
//! Before that the sender waits for the receiver.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::content::blocks::{BlockSize, Outline, outline};

/// Shortest file, in bytes, for which that is worth a thread.
pub(super) const AHEAD_BYTES_MIN: u64 = 8 << 20;

/// Most files at a time: each keeps all processors busy.
pub(super) const AHEAD_FILES_MAX: usize = 2;

/// Outlines that are being made.
#[derive(Default)]
pub(super) struct Ahead {
    begun: Mutex<HashMap<u32, Begun>>,
}

struct Begun {
    thread: JoinHandle<io::Result<Outline>>,
    is_over: Arc<AtomicBool>,
}

impl Ahead {
    /// Begins to read a file of `size` bytes.
    pub(super) fn begin(&self, id: u32, file: File, size: u64) {
        let is_over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_over);
        let make = move || {
            give_way();
            outline(size, BlockSize::for_size(size), &|buffer, offset| {
                if stop.load(Ordering::Relaxed) {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                file.read_exact_at(buffer, offset)
            })
        };
        // Without a thread it is read when it is asked for.
        if let Ok(thread) = thread::Builder::new().spawn(make) {
            self.begun().insert(id, Begun { thread, is_over });
        }
    }

    /// The outline of a file, when it is done; `None` where it was not begun, or could not be made.
    pub(super) fn take(&self, id: u32) -> Option<Outline> {
        let begun = self.begun().remove(&id)?;
        begun.thread.join().ok()?.ok()
    }

    /// Nobody will ask for the outline of a file.
    pub(super) fn cancel(&self, id: u32) {
        if let Some(begun) = self.begun().remove(&id) {
            begun.is_over.store(true, Ordering::Relaxed);
        }
    }

    fn begun(&self) -> MutexGuard<'_, HashMap<u32, Begun>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the connection, which is made meanwhile, go first. A niceness is the whole process's where threads have none.
fn give_way() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.begun().values().for_each(|begun| begun.is_over.store(true, Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn an_outline_is_there_once_and_only_of_what_was_begun() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 3_000_000]).unwrap();
        let block = BlockSize::for_size(3_000_000);
        let due = outline(3_000_000, block, &|buffer, at| file.read_exact_at(buffer, at)).unwrap();
        let ahead = Ahead::default();
        ahead.begin(5, file.try_clone().unwrap(), 3_000_000);
        assert_eq!(ahead.take(4), None);
        assert_eq!(ahead.take(5), Some(due));
        assert_eq!(ahead.take(5), None);
        ahead.begin(5, file.try_clone().unwrap(), 3_000_000);
        ahead.cancel(5);
        assert_eq!(ahead.take(5), None);
        ahead.begin(6, file, 3_000_001);
        assert_eq!(ahead.take(6), None, "a file that shrank");
    }
}
