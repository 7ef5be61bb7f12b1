//! `Prehashes`: hashes large files that will probably be requested, while the connection is made.
//!
//! A sender hashes a file before it compares it with a basis, 0.14 s for a gigabyte. Before that
//! the receiver hashes the basis, and each side waits while the other works. And before that the
//! sender waits for the receiver.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::content::blocks::{BlockSize, Content, Finding, Nodes};
use crate::disk::holes::SparseFile;
use crate::disk::stat::Identity;
use crate::engine::transfer::Prehash;

/// Shortest file, in bytes, for which prehashing is worth a thread.
pub(super) const PREHASH_BYTES_MIN: u64 = 8 << 20;

/// Most files at a time.
pub(super) const PREHASH_FILES_MAX: usize = 2;

/// Priority of a file: the likelihood that it will be requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Priority {
    /// The file changed: worth all processors.
    High,
    /// The file is large: worth one processor. With all of them the connection took 12 ms longer on
    /// a machine with two, which ran the other side as well.
    Low,
}

/// Files that are being prehashed.
#[derive(Default)]
pub(super) struct Prehashes {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    begun: HashMap<Identity, Begun>,
    /// The requested files are known by now, so no prehash starts any more.
    is_late: bool,
}

struct Begun {
    thread: JoinHandle<()>,
    job: Arc<Job>,
}

struct Job {
    file: SparseFile<File>,
    finding: Finding,
    is_over: AtomicBool,
}

impl Content for Job {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.is_over.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.file.read_at(buffer, offset)
    }

    fn zeros_at(&self, offset: u64) -> u64 {
        self.file.zeros_at(offset)
    }
}

impl Begun {
    fn end(&self) {
        self.job.is_over.store(true, Ordering::Relaxed);
    }
}

impl Prehashes {
    /// Starts to hash a file in blocks of this size.
    pub(super) fn begin(&self, identity: Identity, file: File, block: BlockSize, priority: Priority) {
        let mut state = self.state();
        if state.is_late {
            return;
        }
        let finding = Finding::of_all(identity.size, block);
        let file = SparseFile::of(file, identity.size);
        let job = Arc::new(Job { file, finding, is_over: AtomicBool::new(false) });
        let beginning = Arc::clone(&job);
        let help = move || {
            give_way();
            // Bytes that could not be read are missing in the end.
            let _ = match priority {
                Priority::High => beginning.finding.help(&*beginning),
                Priority::Low => beginning.finding.take_turns(&*beginning),
            };
        };
        // If no thread can start, the file is hashed when it is requested.
        if let Ok(thread) = thread::Builder::new().spawn(help) {
            state.begun.insert(identity, Begun { thread, job });
        }
    }

    /// Takes the nodes of a file, waiting until they are complete; `None` if the hash was never
    /// started, or failed.
    pub(super) fn take(&self, identity: &Identity) -> Option<Nodes> {
        let Begun { thread, job } = self.state().begun.remove(identity)?;
        // A peer waits now, so this thread helps at normal priority: on a busy machine that makes
        // all the difference.
        let helped = job.finding.help(&*job);
        thread.join().ok()?;
        helped.ok().and_then(|()| job.finding.finish())
    }

    /// State of the hash of a file.
    pub(super) fn state_of(&self, identity: &Identity) -> Prehash {
        match self.state().begun.get(identity) {
            None => Prehash::Absent,
            Some(begun) if begun.thread.is_finished() => Prehash::Done,
            Some(_) => Prehash::UnderWay,
        }
    }

    /// Cancels a file that nobody will request.
    pub(super) fn cancel(&self, identity: &Identity) {
        self.state().begun.remove(identity).inspect(Begun::end);
    }

    /// Cancels all files but these, and starts no others.
    pub(super) fn only(&self, may_be_asked_for: impl Fn(&Identity) -> bool) {
        let mut state = self.state();
        state.is_late = true;
        state.begun.retain(|identity, begun| {
            let stays = may_be_asked_for(identity);
            if !stays {
                begun.end();
            }
            stays
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lowers the thread's priority, so that the connection, which is made meanwhile, goes first. Only
/// on Linux: elsewhere a niceness applies to the whole process.
fn give_way() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
}

impl Drop for Prehashes {
    fn drop(&mut self) {
        self.state().begun.values().for_each(Begun::end);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::content::blocks::outline;
    use crate::disk::stat::identity_of;

    const SIZE: u64 = 3_000_000;

    fn file() -> (File, Identity) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; SIZE as usize]).unwrap();
        let identity = identity_of(&file).unwrap();
        (file, identity)
    }

    /// The identity of the same file with another size.
    fn other(identity: Identity, size: u64) -> Identity {
        Identity { size, ..identity }
    }

    #[test]
    fn nodes_exist_once_and_only_for_files_that_were_begun() {
        let (file, identity) = file();
        let block = BlockSize::for_size(SIZE);
        let due = outline(SIZE, block, &SparseFile::of(&file, SIZE)).unwrap();
        let prehashes = Prehashes::default();
        prehashes.begin(identity, file.try_clone().unwrap(), block, Priority::High);
        assert_eq!(prehashes.take(&other(identity, 1)), None);
        assert_eq!(prehashes.take(&identity).unwrap().outline(block), Some(due));
        assert_eq!(prehashes.take(&identity), None);
        prehashes.begin(identity, file.try_clone().unwrap(), block, Priority::High);
        prehashes.cancel(&identity);
        assert_eq!(prehashes.take(&identity), None);
        let longer = other(identity, SIZE + 1);
        prehashes.begin(longer, file, block, Priority::Low);
        assert_eq!(prehashes.take(&longer), None, "a file that shrank");
    }

    #[test]
    fn only_requested_files_are_hashed_once_they_are_known() {
        let (file, identity) = file();
        let (block, shorter) = (BlockSize::for_size(SIZE), other(identity, SIZE - 1));
        let prehashes = Prehashes::default();
        for begun in [identity, shorter] {
            prehashes.begin(begun, file.try_clone().unwrap(), block, Priority::High);
        }
        prehashes.only(|&begun| begun == shorter);
        assert_eq!(prehashes.take(&identity), None);
        prehashes.begin(identity, file, block, Priority::Low);
        assert_eq!(prehashes.take(&identity), None);
        assert!(prehashes.take(&shorter).is_some());
    }
}
