//! The secret of a private directory: random bytes that only its owner can read, created on first
//! use.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, linkat, openat, renameat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::content::seal::{SECRET_BYTES, Secret};

/// The file's name in its directory.
const NAME: &str = "secret";

/// Mode bits of other users, which the directory and the file must not have.
const OTHERS: u32 = 0o077;

/// The secret of a directory that only this user may enter.
///
/// # Errors
/// Other users may enter the directory, or it cannot be written to, or there are no random bytes.
pub fn secret_of(directory: &Path) -> io::Result<Secret> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(CWD, directory, flags, Mode::empty())?;
    if !is_ours_alone(&directory, FileType::Directory)? {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    read(&directory).or_else(|_| {
        make(&directory)?;
        read(&directory)
    })
}

fn is_ours_alone(descriptor: &OwnedFd, kind: FileType) -> io::Result<bool> {
    let stat = fstat(descriptor)?;
    // Some systems have narrower modes.
    #[allow(clippy::useless_conversion)]
    let others = u32::from(stat.st_mode) & OTHERS;
    Ok(FileType::from_raw_mode(stat.st_mode) == kind && stat.st_uid == geteuid().as_raw() && others == 0)
}

fn read(directory: &OwnedFd) -> io::Result<Secret> {
    // Without NONBLOCK, opening a planted FIFO would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(directory, NAME, flags, Mode::empty())?;
    let mut bytes = Vec::with_capacity(SECRET_BYTES + 1);
    if is_ours_alone(&file, FileType::RegularFile)? {
        File::from(file).take(SECRET_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    }
    bytes.try_into().map(Secret::new).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Creates a new secret. If two agents start at once, one of them creates it and both use it.
fn make(directory: &OwnedFd) -> io::Result<()> {
    let mut random = [0; SECRET_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    // The shell script that installs agents removes files of this name after a day.
    let new = format!(".new-secret-{}", std::process::id());
    let _ = unlinkat(directory, &new, AtFlags::empty());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(directory, &new, flags, Mode::RUSR | Mode::WUSR)?;
    let written = File::from(file).write_all(&random).and_then(|()| place(directory, &new));
    let _ = unlinkat(directory, &new, AtFlags::empty());
    written
}

/// Puts the new file in place, unless another agent was faster. A file that holds no secret, or
/// that other users could read, is replaced.
fn place(directory: &OwnedFd, new: &str) -> io::Result<()> {
    match linkat(directory, new, directory, NAME, AtFlags::empty()) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) if read(directory).is_ok() => Ok(()),
        // The filesystem may have no links.
        Err(_) => Ok(renameat(directory, new, directory, NAME)?),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use tempfile::TempDir;

    use super::*;

    fn private() -> TempDir {
        let folder = TempDir::new().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
        folder
    }

    #[test]
    fn a_secret_is_made_once_and_is_private() {
        let (one, other) = (private(), private());
        let secret = secret_of(one.path()).unwrap();
        assert_eq!(secret_of(one.path()).unwrap(), secret);
        assert_ne!(secret_of(other.path()).unwrap(), secret);
        let names: Vec<_> =
            fs::read_dir(one.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["secret"]);
        assert_eq!(fs::metadata(one.path().join("secret")).unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn an_exposed_or_damaged_secret_is_replaced() {
        let folder = private();
        let file = folder.path().join("secret");
        let mut known = vec![secret_of(folder.path()).unwrap()];
        let spoil: [&dyn Fn(); 4] = [
            &|| fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap(),
            &|| fs::write(&file, "short").unwrap(),
            &|| fs::write(&file, [7; SECRET_BYTES + 1]).unwrap(),
            &|| {
                fs::rename(&file, folder.path().join("elsewhere")).unwrap();
                symlink("elsewhere", &file).unwrap();
            },
        ];
        for spoil in spoil {
            spoil();
            let secret = secret_of(folder.path()).unwrap();
            assert!(!known.contains(&secret));
            assert_eq!(secret_of(folder.path()).unwrap(), secret);
            known.push(secret);
        }
    }

    #[test]
    fn a_directory_that_others_may_enter_gets_no_secret() {
        let folder = private();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o750)).unwrap();
        assert_eq!(secret_of(folder.path()).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(!folder.path().join("secret").exists());
        symlink(private().path(), folder.path().join("link")).unwrap();
        assert!(secret_of(&folder.path().join("link")).is_err());
    }
}
