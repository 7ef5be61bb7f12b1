//! The lock of a destination: one run at a time, and no other user can take it.
//!
//! It is a `flock` on a file in the state directory, which only this user can enter. A lock on the
//! destination itself would be open to everybody. Any user who may read a directory may lock it,
//! and could block all runs for ever. The file exists while it is locked. A killed run leaves it
//! behind, and the next run takes it over.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, Stat as RawStat, Timespec, Timestamps, UTIME_OMIT, flock, fstat,
    futimens, openat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::disk::error::{DiskError, DiskErrorKind, During};
use crate::disk::resolve::DIRECTORY;
use crate::disk::root::Root;
use crate::disk::stat::{FileKind, Stat, is_same_inode};
use crate::disk::state::{StateDir, in_state};
use crate::tree::path::STATE_DIR;

/// The lock's name in the state directory.
const NAME: &str = "lock";

/// Maximum number of attempts. An attempt fails if a run that just ended removed the locked file.
const ATTEMPTS: usize = 16;

/// A held lock. Dropping it releases it.
#[derive(Debug)]
pub(crate) struct Held {
    root: OwnedFd,
    state: OwnedFd,
    file: OwnedFd,
}

/// Takes the lock of `root`.
pub(crate) fn take(root: &Root) -> Result<Held, DiskError> {
    let path = in_state(NAME.as_bytes());
    let mut last = DiskError::new("lock", &path, DiskErrorKind::Busy);
    for _ in 0..ATTEMPTS {
        match try_to_take(root, &path) {
            Ok(Some(held)) => return Ok(held),
            Ok(None) => {}
            // A run that just ended removed the state directory, or its entries.
            Err(error) if error.is_not_found() => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Takes the lock; `None` if a run that just ended removed the locked file.
fn try_to_take(root: &Root, path: &[u8]) -> Result<Option<Held>, DiskError> {
    let state = keeping_time(root.descriptor(), || StateDir::create(root.descriptor()))?;
    // Without NONBLOCK, opening a planted FIFO would wait for a writer.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(&state, NAME, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => file,
        Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO | Errno::ACCESS) => {
            state.remove(NAME.as_bytes())?;
            return Ok(None);
        }
        Err(error) => return Err(error).during("make", path),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Err(DiskError::new("lock", path, DiskErrorKind::Busy)),
        result => result.during("lock", path)?,
    }
    let stat = fstat(&file).during("look at", path)?;
    if !is_named(&state, NAME, &stat) {
        return Ok(None);
    }
    let is_ours = Stat::of(&stat).is_some_and(|stat| {
        stat.kind() == FileKind::File && stat.nlink == 1 && stat.uid == geteuid().as_raw()
    });
    if !is_ours {
        state.remove(NAME.as_bytes())?;
        return Ok(None);
    }
    let state = openat(&state, c".", DIRECTORY, Mode::empty()).during("open", STATE_DIR.as_bytes())?;
    let is_there = fstat(&state).is_ok_and(|stat| is_named(root.descriptor(), STATE_DIR, &stat));
    if !is_there {
        return Ok(None);
    }
    Ok(Some(Held { root: root.open_directory(None)?, state, file }))
}

/// True if `name` leads to the very file or directory of `stat`.
fn is_named(directory: impl AsFd, name: &str, stat: &RawStat) -> bool {
    let named = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    named.is_ok_and(|named| is_same_inode(&named, stat))
}

/// Runs `work`, which changes the entries of a directory, and sets its time back: a run with
/// nothing to do leaves no trace. The time of another user's directory cannot be set, and stays
/// new.
pub(crate) fn keeping_time<T>(directory: BorrowedFd<'_>, work: impl FnOnce() -> T) -> T {
    let before = fstat(directory);
    let result = work();
    if let (Ok(before), Ok(after)) = (before, fstat(directory)) {
        let time = |stat: &RawStat| (stat.st_mtime, stat.st_mtime_nsec);
        if time(&before) != time(&after) {
            let omitted = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
            #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
            let kept = Timespec { tv_sec: before.st_mtime.into(), tv_nsec: before.st_mtime_nsec as _ };
            let _ = futimens(directory, &Timestamps { last_access: omitted, last_modification: kept });
        }
    }
    result
}

impl Drop for Held {
    fn drop(&mut self) {
        // Remove only our own file: a user who may write to the destination can have put another
        // directory in its place.
        if fstat(&self.file).is_ok_and(|stat| is_named(&self.state, NAME, &stat)) {
            let _ = unlinkat(&self.state, NAME, AtFlags::empty());
        }
        keeping_time(self.root.as_fd(), || {
            let _ = unlinkat(&self.root, STATE_DIR, AtFlags::REMOVEDIR);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::{Duration, SystemTime};

    use crate::disk::clear_leftovers;
    use crate::disk::testing::Fixture;
    use crate::disk::writable::WritableRoot;

    #[test]
    fn a_second_run_gets_a_busy_error_from_the_first_runs_lock() {
        let fixture = Fixture::new();
        fixture.root.lock().unwrap();
        let second = WritableRoot::open(fixture.root.path()).unwrap();
        let error = second.lock().unwrap_err();
        assert!(error.is_busy());
        assert!(error.to_string().ends_with("another run is using it"), "{error}");
        drop(fixture.root);
        second.lock().unwrap();
    }

    #[test]
    fn locks_on_the_destination_itself_keep_no_run_out() {
        let fixture = Fixture::new();
        fs::create_dir(fixture.at("below")).unwrap();
        fs::write(fixture.at("below/file"), "").unwrap();
        let held: Vec<File> = ["", "below", "below/file"]
            .iter()
            .map(|name| {
                let file = File::open(fixture.at(name)).unwrap();
                file.lock().unwrap();
                file
            })
            .collect();
        fixture.root.lock().unwrap();
        assert!(WritableRoot::open(fixture.root.path()).unwrap().lock().unwrap_err().is_busy());
        assert_eq!(fixture.at(".ksync").metadata().unwrap().mode() & 0o7777, 0o700);
        assert_eq!(fixture.at(".ksync/lock").metadata().unwrap().mode() & 0o7777, 0o600);
        drop(held);
    }

    #[test]
    fn the_lock_leaves_no_trace() {
        let fixture = Fixture::new();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let set = || File::open(fixture.root.path()).unwrap().set_modified(time).unwrap();
        let is_set = || fixture.root.path().metadata().unwrap().modified().unwrap() == time;
        set();
        fixture.root.lock().unwrap();
        assert!(is_set() && fixture.at(".ksync/lock").exists());
        fixture.root.unlock();
        assert!(is_set() && !fixture.at(".ksync").exists());
        // Staged files stay, and a killed run's lock file is taken over.
        fs::create_dir(fixture.at(".ksync")).unwrap();
        fs::write(fixture.at(".ksync/lock"), "").unwrap();
        fs::write(fixture.at(".ksync/0.part"), "").unwrap();
        fixture.root.lock().unwrap();
        assert_eq!(clear_leftovers(&fixture.root, |_| true).unwrap(), 0);
        assert!(WritableRoot::open(fixture.root.path()).unwrap().lock().unwrap_err().is_busy());
        fixture.root.unlock();
        assert!(fixture.at(".ksync/0.part").exists() && !fixture.at(".ksync/lock").exists());
    }

    #[test]
    fn a_planted_lock_file_is_replaced() {
        let fixture = Fixture::new();
        fs::create_dir(fixture.at(".ksync")).unwrap();
        symlink(fixture.outside(), fixture.at(".ksync/lock")).unwrap();
        fixture.root.lock().unwrap();
        fixture.root.unlock();
        fs::create_dir(fixture.at(".ksync")).unwrap();
        fs::write(fixture.at("other"), "").unwrap();
        fs::hard_link(fixture.at("other"), fixture.at(".ksync/lock")).unwrap();
        fixture.root.lock().unwrap();
        fixture.root.unlock();
        assert!(fixture.at("other").exists());
        fixture.assert_canary_untouched();
    }

    #[test]
    fn only_one_of_many_runs_holds_the_lock() {
        let fixture = Fixture::new();
        let (inside, entered) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let root = WritableRoot::open(fixture.root.path()).unwrap();
                        if root.lock().is_ok() {
                            // The lock is really held: `lock` also succeeds where no lock can
                            // exist.
                            assert!(root.is_locked());
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            entered.fetch_add(1, Ordering::SeqCst);
                            thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert!(entered.load(Ordering::SeqCst) > 0);
        assert!(!fixture.at(".ksync").exists());
    }
}
