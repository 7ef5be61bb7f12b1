//! The bounded scan: lists the files of a small tree with their lengths. For prefetch candidates
//! only; the result is neither complete nor final.

use rustix::fs::{AtFlags, statat};

use crate::disk::directory_stack::names;
use crate::disk::root::Root;
use crate::disk::stat::{FileKind, Stat};
use crate::tree::path::TreePath;

/// The files below `root` with their lengths in bytes; `None` if there are more than `entries_max`
/// entries. Unreadable entries are skipped.
#[must_use]
pub fn bounded_scan(root: &Root, entries_max: usize) -> Option<Vec<(TreePath, u64)>> {
    let (mut files, mut seen) = (Vec::new(), 0);
    let mut directories: Vec<Option<TreePath>> = vec![None];
    while let Some(path) = directories.pop() {
        let Ok(directory) = root.open_directory(path.as_ref()) else { continue };
        let names = names(&directory).unwrap_or_default();
        seen += names.len();
        if seen > entries_max {
            return None;
        }
        for name in names {
            let bytes = name.name.as_bytes();
            let Ok(path) = path.as_ref().map_or_else(|| TreePath::new(bytes), |path| path.join(bytes)) else {
                continue;
            };
            if name.kind == Some(FileKind::Directory) {
                directories.push(Some(path));
                continue;
            }
            let stat = statat(&directory, &*name.name, AtFlags::SYMLINK_NOFOLLOW).ok();
            match stat.and_then(|stat| Stat::of(&stat)) {
                Some(stat) if stat.kind() == FileKind::File => files.push((path, stat.size())),
                Some(stat) if stat.kind() == FileKind::Directory => directories.push(Some(path)),
                _ => {}
            }
        }
    }
    Some(files)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::disk::testing::{Fixture, path};

    #[test]
    fn files_of_a_small_tree_are_seen_and_links_are_not_followed() {
        let fixture = Fixture::new();
        fs::create_dir_all(fixture.at("a/b")).unwrap();
        fs::write(fixture.at("a/b/f"), "12345").unwrap();
        fs::write(fixture.at("f"), "1").unwrap();
        symlink(fixture.outside(), fixture.at("out")).unwrap();
        symlink("f", fixture.at("link")).unwrap();
        let mut files = bounded_scan(&fixture.root, 6).unwrap();
        files.sort_by_key(|&(_, size)| size);
        assert_eq!(files, [(path("f"), 1), (path("a/b/f"), 5)]);
        assert_eq!(bounded_scan(&fixture.root, 5), None);
    }
}
