//! Rules that lie in the scanned tree, in ignore and in merge files, and above it.
//!
//! An unreadable file is an error: the entries that it excludes must not be sent, and those that it
//! protects must not be deleted.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::disk::directory_stack::Name;
use crate::disk::error::{DiskError, DiskErrorKind, During};
use crate::disk::root::Root;
use crate::tree::filter::{BYTE_ORDER_MARK, Filter, IGNORE_BYTES_MAX, IgnoreFile, MergeError};
use crate::tree::path::TreePath;

/// Reads the merge files above a tree that the rules name.
pub(crate) fn begin(root: &Root, filter: &mut Filter) -> Result<(), DiskError> {
    let path = std::path::absolute(root.path()).unwrap_or_else(|_| root.path().to_owned());
    let mut read = |path: &Path| {
        use std::os::unix::ffi::OsStrExt;
        let shown = path.as_os_str().as_bytes();
        let file = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            result => result.during("open", shown)?,
        };
        // Opening a pipe would wait for its other end, but only the owner of the directories above
        // can have put one there.
        if !file.metadata().during("look at", shown)?.is_file() {
            return Err(DiskError::new("read", shown, DiskErrorKind::NotRegular));
        }
        bounded(file, u64::MAX, shown).map(Some)
    };
    filter.begin(&path, &mut read).map_err(merge_error)
}

/// Reads the merge files of a directory. `listed` are its names, if they are known.
pub(super) fn read_merge_files(
    root: &Root,
    filter: &mut Filter,
    directory: Option<&TreePath>,
    listed: Option<&[Name]>,
) -> Result<(), DiskError> {
    let mut read = |path: &TreePath| {
        let is_here = path.parent().as_ref() == directory;
        if is_here && listed.is_some_and(|names| !has(names, path.name())) {
            Ok(None)
        } else {
            text(root, path)
        }
    };
    filter.enter(directory, &mut read).map_err(merge_error)
}

/// Hands a directory's ignore files to the filter as one.
pub(super) fn read_ignore_files(
    root: &Root,
    filter: &mut Filter,
    directory: Option<&TreePath>,
    listed: Option<&[Name]>,
) -> Result<(), DiskError> {
    let mut joined: Option<Vec<u8>> = None;
    for name in filter.ignore_names() {
        if listed.is_some_and(|names| !has(names, name.as_bytes())) {
            continue;
        }
        let path = match directory {
            Some(directory) => directory.join(name.as_bytes()),
            None => TreePath::new(name.as_bytes()),
        };
        let shown = directory.map_or(&b"."[..], |path| path.as_bytes());
        let path = path.map_err(|error| DiskError::new("name", shown, DiskErrorKind::Path(error)))?;
        let Some(text) = text(root, &path)? else { continue };
        if text.len() > IGNORE_BYTES_MAX {
            return Err(DiskError::new("read", path.as_bytes(), DiskErrorKind::OutOfRange));
        }
        joined = Some(match joined {
            None => text,
            Some(before) => {
                [&before, &b"\n"[..], text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text)].concat()
            }
        });
    }
    let Some(text) = joined else { return Ok(()) };
    let shown = directory.map_or(&b"."[..], |path| path.as_bytes());
    let directory = directory.map(|path| path.as_bytes().to_vec()).unwrap_or_default();
    let is_taken = filter.add(IgnoreFile { directory, text });
    if is_taken {
        Ok(())
    } else {
        Err(DiskError::new("read the ignore file in", shown, DiskErrorKind::OutOfRange))
    }
}

/// The text of a file of the tree, longer than it may be if it is; `None` if there is none.
fn text(root: &Root, path: &TreePath) -> Result<Option<Vec<u8>>, DiskError> {
    let (file, stat) = match root.open_file(path) {
        Err(error) if error.is_not_found() => return Ok(None),
        result => result?,
    };
    bounded(file, stat.size(), path.as_bytes()).map(Some)
}

fn bounded(file: File, size: u64, shown: &[u8]) -> Result<Vec<u8>, DiskError> {
    let mut text = Vec::new();
    file.take(size.min(IGNORE_BYTES_MAX as u64 + 1)).read_to_end(&mut text).during("read", shown)?;
    Ok(text)
}

fn has(names: &[Name], name: &[u8]) -> bool {
    names.binary_search_by(|other| other.name.as_bytes().cmp(name)).is_ok()
}

fn merge_error(error: MergeError<DiskError>) -> DiskError {
    match error {
        MergeError::Read(error) => error,
        MergeError::Rule(path, line, reason) => {
            DiskError::new("read", &path, DiskErrorKind::Rule { line, reason })
        }
    }
}
