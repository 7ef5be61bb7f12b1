//! Small files that only this user may read. Each is written as a whole or not at all, except the
//! one that grows.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::geteuid;

/// Maximum length of a file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// The mode of such a file.
const MODE: u32 = 0o600;

/// The mode of a directory with such files.
const DIRECTORY_MODE: u32 = 0o700;

/// Mode bits of other users, which such a directory must not have.
const OTHERS: u32 = 0o077;
const OTHERS_WRITE: u32 = 0o022;

/// The text of a file, up to the maximum length.
///
/// # Errors
/// The file cannot be read, or is no text.
pub(crate) fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(file)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a file, and replaces an existing one. Creates its directory if it is missing.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    aside(file, content, |new| fs::rename(new, file))
}

/// Creates a file that does not exist yet.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if another process was faster; otherwise the file cannot be
/// written.
pub(crate) fn make(file: &Path, content: &[u8]) -> io::Result<()> {
    aside(file, content, |new| fs::hard_link(new, file))
}

/// Checks that a directory belongs to this user, and that no other user can change it. A directory
/// that others can list is made private; a missing one will be created private.
///
/// # Errors
/// It fails this check, with its path and the reason, or its metadata cannot be read.
pub(crate) fn check(directory: &Path) -> io::Result<()> {
    let refused = |why: String| {
        let text = format!("{} {why}", directory.display());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    };
    let data = match fs::metadata(directory) {
        Ok(data) => data,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return refused(format!("cannot be looked at: {error}")),
    };
    let (owner, own, mode) = (data.uid(), geteuid().as_raw(), data.mode() & 0o7777);
    if !data.is_dir() {
        refused("is no directory".to_owned())
    } else if owner != own {
        refused(format!("belongs to another user (uid {owner}, and this is uid {own})"))
    } else if mode & OTHERS_WRITE != 0 {
        // Another user may have put files into it by now.
        refused(format!("can be changed by other users (mode {mode:04o})"))
    } else if mode & OTHERS != 0 {
        // Others saw no more than names so far: each file has a mode of its own.
        let closed = fs::set_permissions(directory, Permissions::from_mode(mode & !OTHERS));
        closed.or_else(|_| refused(format!("is open to other users (mode {mode:04o})")))
    } else {
        Ok(())
    }
}

/// Opens a file for reading, and for appending; creates it if it is missing. A symbolic link is not
/// followed, since it may lead to a file that another program uses.
///
/// # Errors
/// The file cannot be opened.
pub(crate) fn grow(file: &Path) -> io::Result<File> {
    make_parent(file)?;
    let no_link = i32::try_from(OFlags::NOFOLLOW.bits()).map_err(io::Error::other)?;
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(MODE).custom_flags(no_link);
    options.open(file).map_err(|error| match fs::symlink_metadata(file) {
        Ok(data) if data.is_symlink() => {
            io::Error::other("it is a symbolic link, which is not written through")
        }
        _ => error,
    })
}

/// Writes to a temporary name, and puts that file into its place.
fn aside(file: &Path, content: &[u8], place: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    make_parent(file)?;
    let new = file.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&new);
    let mut made = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&new)?;
    let placed = made.write_all(content).and_then(|()| place(&new));
    let _ = fs::remove_file(&new);
    placed
}

fn make_parent(file: &Path) -> io::Result<()> {
    match file.parent() {
        Some(directory) => DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    #[test]
    fn a_directory_that_others_own_or_can_change_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("ksync");
        check(&state).unwrap();
        fs::create_dir(&state).unwrap();
        let set = |mode| fs::set_permissions(&state, Permissions::from_mode(mode)).unwrap();
        for (mode, closed) in [(0o700, 0o700), (0o500, 0o500), (0o755, 0o700), (0o711, 0o700)] {
            set(mode);
            check(&state).unwrap();
            assert_eq!(fs::metadata(&state).unwrap().mode() & 0o7777, closed);
        }
        for mode in [0o770, 0o777, 0o722, 0o1777] {
            set(mode);
            let text = format!("{} can be changed by other users (mode {mode:04o})", state.display());
            assert_eq!(check(&state).unwrap_err().to_string(), text);
        }
        set(0o700);
        symlink("ksync", folder.path().join("link")).unwrap();
        check(&folder.path().join("link")).unwrap();
        if chown(&state, Some(65534), None).is_ok() {
            let text = check(&state).unwrap_err().to_string();
            assert!(text.contains("belongs to another user (uid 65534, and this is uid"), "{text}");
        }
    }

    #[test]
    fn no_file_is_written_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (link, elsewhere) = (folder.path().join("link"), folder.path().join("elsewhere"));
        for there in [false, true] {
            if there {
                fs::write(&elsewhere, "theirs").unwrap();
            }
            let _ = fs::remove_file(&link);
            symlink("elsewhere", &link).unwrap();
            let text = grow(&link).unwrap_err().to_string();
            assert!(text.contains("symbolic link"), "{text}");
            assert_eq!(elsewhere.exists(), there);
        }
        replace(&link, b"ours").unwrap();
        assert_eq!(
            (fs::read(&link).unwrap(), fs::read(&elsewhere).unwrap()),
            (b"ours".into(), b"theirs".into())
        );
    }
}
