//! Prefetch candidates: the files of a destination that will probably be requested, guessed before
//! there is an offer.

use std::cmp::Reverse;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::disk::bounded_scan::bounded_scan;
use crate::disk::root::Root;
use crate::disk::stat::Identity;
use crate::exchange::prehash::{PREHASH_BYTES_MIN, PREHASH_FILES_MAX};
use crate::tree::entry::Time;
use crate::tree::path::TreePath;

/// Most entries of a tree that is scanned. In a larger tree no single file is most of it, and
/// scanning so many takes a millisecond.
const ENTRIES_MAX: usize = 1000;

/// Age up to which a further change of a file may leave no trace: the kernel's file clock ticks
/// every few milliseconds.
const YOUNG: Duration = Duration::from_millis(100);

/// Age for filesystems whose times are whole seconds or, as on FAT, multiples of two seconds.
const YOUNG_COARSE: Duration = Duration::from_secs(3);

/// Large files that make up most of the tree at `path`, with their identities. `name` is the source
/// name of a single file.
pub(super) fn large_files(path: &Path, name: Option<&[u8]>) -> Vec<(File, Identity)> {
    let now = SystemTime::now();
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
    let since = u64::try_from(ctime.seconds()).unwrap_or(0);
    let changed = SystemTime::UNIX_EPOCH + Duration::new(since, ctime.nanos());
    // A change time in the future comes from another clock.
    now.duration_since(changed).map_or(true, |age| age < young)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::*;

    fn sizes(path: &Path, name: Option<&[u8]>) -> Vec<u64> {
        large_files(path, name).into_iter().map(|(_, identity)| identity.size).collect()
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
        thread::sleep(2 * YOUNG);
        assert_eq!(sizes(folder.path(), None), [PREHASH_BYTES_MIN + 1]);
        assert_eq!(sizes(&at("large"), None), [PREHASH_BYTES_MIN + 1]);
        assert!(sizes(&at("small"), None).is_empty());
        assert!(sizes(&at("nothing"), Some(b"large")).is_empty());
        fs::create_dir(at("many")).unwrap();
        for n in 0..10 {
            make(&at("many").join(n.to_string()), 2 * PREHASH_BYTES_MIN);
        }
        thread::sleep(2 * YOUNG);
        assert!(sizes(folder.path(), None).is_empty());
        assert_eq!(sizes(folder.path(), Some(b"large")), [PREHASH_BYTES_MIN + 1]);
        assert!(sizes(folder.path(), Some(b"../x")).is_empty());
    }

    #[test]
    fn file_that_changed_a_moment_ago_is_no_candidate() {
        let folder = tempfile::tempdir().unwrap();
        make(&folder.path().join("f"), PREHASH_BYTES_MIN);
        assert!(sizes(folder.path(), None).is_empty());
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let time = |seconds, nanos| Time::new(seconds, nanos).unwrap();
        assert!(is_young(time(999, 950_000_000), now) && !is_young(time(999, 850_000_000), now));
        assert!(is_young(time(998, 0), now) && !is_young(time(997, 0), now));
        assert!(is_young(time(1001, 0), now) && !is_young(time(-5, 1), now));
    }
}
