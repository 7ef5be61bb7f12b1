//! Prefetch: hashes large files that will probably be requested, while the connection is made.
//!
//! A sender hashes a file before it compares it with a basis, 0.14 s for a gigabyte. Before that
//! the receiver hashes the basis, and each side waits while the other works. And before that the
//! sender waits for the receiver. The sender chooses files of its offer; a receiver that has no
//! offer yet guesses from its tree ([`candidates`]).

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use crate::content::blocks::{BlockSize, Content, Finding, Nodes};
use crate::disk::bounded_scan::bounded_scan;
use crate::disk::holes::SparseFile;
use crate::disk::root::Root;
use crate::disk::stat::Identity;
use crate::tree::entry::Time;
use crate::tree::path::TreePath;

/// Shortest file, in bytes, for which prehashing is worth a thread.
pub(super) const PREHASH_BYTES_MIN: u64 = 8 << 20;

/// Most files at a time.
pub(super) const PREHASH_FILES_MAX: usize = 2;

/// Most entries of a tree that is scanned. In a larger tree no single file is most of it, and
/// scanning so many takes a millisecond.
const ENTRIES_MAX: usize = 1000;

/// Age up to which a further change of a file may leave no trace: the kernel's file clock ticks
/// every few milliseconds.
const YOUNG: Duration = Duration::from_millis(100);

/// Age for filesystems whose times are whole seconds or, as on FAT, multiples of two seconds.
const YOUNG_COARSE: Duration = Duration::from_secs(3);

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

    /// True if [`Self::take`] would not wait for the nodes of a file.
    pub(super) fn is_ready(&self, identity: &Identity) -> bool {
        self.state().begun.get(identity).is_some_and(|begun| begun.thread.is_finished())
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

/// Large files that make up most of the tree at `path`, with their identities. `name` is the source
/// name of a single file.
pub(super) fn candidates(path: &Path, name: Option<&[u8]>, now: SystemTime) -> Vec<(File, Identity)> {
    let (root, paths) = if path.is_dir() {
        let Ok(root) = Root::open(path) else { return Vec::new() };
        let paths = single(&root, name).map_or_else(|| most(&root), |single| vec![single]);
        (root, paths)
    } else {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let name = path.file_name().and_then(|name| TreePath::new(name.as_bytes()).ok());
        let (Ok(root), Some(name)) = (Root::open(parent.unwrap_or(Path::new("."))), name) else {
            return Vec::new();
        };
        (root, vec![name])
    };
    let opened = paths.iter().filter_map(|path| root.open_file(path).ok());
    opened
        .map(|(file, stat)| (file, stat.identity))
        .filter(|(_, identity)| identity.size >= PREHASH_BYTES_MIN && !is_young(identity.ctime, now))
        .collect()
}

/// The file of this name, if it exists.
fn single(root: &Root, name: Option<&[u8]>) -> Option<TreePath> {
    let path = TreePath::new(name?).ok()?;
    root.open_file(&path).is_ok().then_some(path)
}

/// The largest files, if they are most of a tree.
fn most(root: &Root) -> Vec<TreePath> {
    let mut files = bounded_scan(root, ENTRIES_MAX).unwrap_or_default();
    let total: u64 = files.iter().map(|(_, size)| size).sum();
    files.sort_by_key(|&(_, size)| Reverse(size));
    files.truncate(PREHASH_FILES_MAX);
    let large: u64 = files.iter().map(|(_, size)| size).sum();
    if large > total / 2 { files.into_iter().map(|(path, _)| path).collect() } else { Vec::new() }
}

/// True if a file with this change time may have changed again without a new change time.
fn is_young(ctime: Time, now: SystemTime) -> bool {
    let young = if ctime.nanos() == 0 { YOUNG_COARSE } else { YOUNG };
    age(ctime, now) < young
}

/// Time since `time`; zero for one in the future, which comes from another clock.
pub(super) fn age(time: Time, now: SystemTime) -> Duration {
    let since = u64::try_from(time.seconds()).unwrap_or(0);
    let time = SystemTime::UNIX_EPOCH + Duration::new(since, time.nanos());
    now.duration_since(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;
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

    /// The sizes of the candidates among files that did not change a moment ago.
    fn sizes(path: &Path, name: Option<&[u8]>) -> Vec<u64> {
        let later = SystemTime::now() + YOUNG_COARSE;
        candidates(path, name, later).into_iter().map(|(_, identity)| identity.size).collect()
    }

    fn make(path: &Path, size: u64) {
        File::create(path).unwrap().set_len(size).unwrap();
    }

    #[test]
    fn file_is_a_candidate_if_it_is_most_of_the_tree_or_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        make(&at("large"), PREHASH_BYTES_MIN + 1);
        make(&at("small"), PREHASH_BYTES_MIN - 1);
        assert_eq!(sizes(folder.path(), None), [PREHASH_BYTES_MIN + 1]);
        assert_eq!(sizes(&at("large"), None), [PREHASH_BYTES_MIN + 1]);
        assert!(sizes(&at("small"), None).is_empty());
        assert!(sizes(&at("nothing"), Some(b"large")).is_empty());
        fs::create_dir(at("many")).unwrap();
        for n in 0..10 {
            make(&at("many").join(n.to_string()), 2 * PREHASH_BYTES_MIN);
        }
        assert!(sizes(folder.path(), None).is_empty());
        assert_eq!(sizes(folder.path(), Some(b"large")), [PREHASH_BYTES_MIN + 1]);
        assert!(sizes(folder.path(), Some(b"../x")).is_empty());
    }

    #[test]
    fn file_that_changed_a_moment_ago_is_no_candidate() {
        let folder = tempfile::tempdir().unwrap();
        make(&folder.path().join("f"), PREHASH_BYTES_MIN);
        assert_eq!(sizes(folder.path(), None), [PREHASH_BYTES_MIN]);
        assert!(candidates(folder.path(), None, SystemTime::now()).is_empty());
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let time = |seconds, nanos| Time::new(seconds, nanos).unwrap();
        assert!(is_young(time(999, 950_000_000), now) && !is_young(time(999, 850_000_000), now));
        assert!(is_young(time(998, 0), now) && !is_young(time(997, 0), now));
        assert!(is_young(time(1001, 0), now) && !is_young(time(-5, 1), now));
    }
}
