//! Reasons why a source or a destination cannot be used. Each text begins with the path, so that
//! the client can put the name of the machine before it.

use std::error::Error;
use std::fs::{self, FileType};
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{Access, access};
use rustix::io::Errno;

use crate::disk::error::DiskError;
use crate::disk::user;
use crate::exchange::common::chain;
use crate::tree::path::escape;

/// Explains why a source cannot be read.
pub(super) fn source(path: &Path, error: &(dyn Error + 'static)) -> String {
    let shown = shown(path);
    let cause = error.downcast_ref::<DiskError>().map_or(error, |error| error.reason() as &dyn Error);
    match fs::metadata(path).map_err(|error| error.kind()) {
        Err(ErrorKind::NotFound) if is_link(path) => format!("{shown} is a link to nowhere"),
        Err(ErrorKind::NotFound) => format!("{shown} does not exist"),
        Err(ErrorKind::NotADirectory) if shown.ends_with('/') => {
            format!("{shown} is a file, not a directory")
        }
        Err(ErrorKind::NotADirectory) => format!("{shown} does not exist"),
        _ => format!("{shown} cannot be read: {}", chain(cause)),
    }
}

/// Explains why a destination could not be opened or made: the deepest existing part of the path is
/// no directory, or not writable. `is_directory` tells if the source is a directory.
pub(super) fn destination(path: &Path, is_directory: bool, error: &DiskError) -> String {
    blocked(path, is_directory)
        .or_else(|| not_writable(deepest(path)?).filter(|_| error.is_permission()))
        .unwrap_or_else(|| format!("{} cannot be used: {}", shown(path), chain(error.reason())))
}

/// Explains why a destination can never be opened or made; `None` if nothing is in the way.
pub(super) fn blocked(path: &Path, is_directory: bool) -> Option<String> {
    let there = deepest(path)?;
    let shown = shown(there);
    match there.metadata() {
        Err(_) if is_link(there) => Some(format!("{shown} is a link to nowhere, which does not exist")),
        Ok(data) if data.is_dir() => None,
        Ok(data) if there == path && is_directory => {
            Some(format!("{shown} is {}, and the source is a directory", kind(data.file_type())))
        }
        Ok(data) => Some(format!("{shown} is {}, not a directory", kind(data.file_type()))),
        Err(_) => None,
    }
}

/// The kind of an entry that is no directory.
fn kind(kind: FileType) -> &'static str {
    if kind.is_file() {
        "a file"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// The deepest existing part of a path.
fn deepest(path: &Path) -> Option<&Path> {
    let mut parts = path.ancestors().map(|part| if part == Path::new("") { Path::new(".") } else { part });
    parts.find(|part| part.symlink_metadata().is_ok())
}

/// Explains why nothing can be made in a directory; `None` if that is not so.
pub(super) fn not_writable(directory: &Path) -> Option<String> {
    let shown = shown(directory);
    match access(directory, Access::WRITE_OK | Access::EXEC_OK) {
        Err(Errno::ROFS) => Some(format!("{shown} is on a read-only filesystem")),
        Err(Errno::ACCESS | Errno::PERM) => Some(format!("{shown} is not writable for {}", user())),
        _ => None,
    }
}

fn is_link(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|data| data.is_symlink())
}

fn shown(path: &Path) -> String {
    escape(path.as_os_str().as_encoded_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::disk::writable::WritableRoot;

    #[test]
    fn a_source_is_missing_a_file_or_a_link_to_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display().to_string();
        fs::write(folder.path().join("file"), "").unwrap();
        symlink("nowhere", folder.path().join("link")).unwrap();
        for (name, text) in [
            ("none", "does not exist"),
            ("file/below", "does not exist"),
            ("file/", "is a file, not a directory"),
            ("link", "is a link to nowhere"),
        ] {
            let error = fs::metadata(folder.path().join(name)).unwrap_err();
            let path = format!("{root}/{name}");
            assert_eq!(source(Path::new(&path), &error), format!("{path} {text}"));
        }
        let refused = io::Error::from(Errno::ACCESS);
        assert_eq!(source(folder.path(), &refused), format!("{root} cannot be read: permission denied"));
    }

    #[test]
    fn a_destination_is_a_file_a_link_to_nowhere_or_below_one() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display().to_string();
        fs::write(folder.path().join("file"), "").unwrap();
        symlink("nowhere", folder.path().join("link")).unwrap();
        symlink("/dev/null", folder.path().join("null")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
        for (name, is_directory, text) in [
            ("file", true, "/file is a file, and the source is a directory"),
            ("file", false, "/file is a file, not a directory"),
            ("file/below/it", true, "/file is a file, not a directory"),
            ("link", true, "/link is a link to nowhere, which does not exist"),
            ("link/below", true, "/link is a link to nowhere, which does not exist"),
            ("socket", true, "/socket is a socket, and the source is a directory"),
            ("null", false, "/null is a device, not a directory"),
        ] {
            let path = folder.path().join(name);
            let error = WritableRoot::create(&path).map(drop).unwrap_err();
            assert_eq!(destination(&path, is_directory, &error), format!("{root}{text}"), "{name}");
        }
    }
}
