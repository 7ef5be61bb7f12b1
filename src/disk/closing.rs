//! What a filesystem tells only when a file is closed: NFS, quotas, FUSE.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

/// Has the filesystem tell what became of everything written to a file, as a `close` does: each
/// `close` of any descriptor of a file makes it tell. The file stays open.
///
/// # Errors
/// Something that was written is lost.
pub(crate) fn told_at_close(file: &File) -> io::Result<()> {
    let copy = OwnedFd::from(file.try_clone()?);
    nix::unistd::close(copy).map_err(|error| io::Error::from_raw_os_error(error as i32))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn a_file_that_was_asked_stays_open() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"one").unwrap();
        told_at_close(&file).unwrap();
        file.write_all(b"two").unwrap();
        told_at_close(&file).unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "onetwo");
    }
}
