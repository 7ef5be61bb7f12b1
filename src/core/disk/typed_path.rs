//! Paths that the user typed: links in them are followed, but not those of other users.
//!
//! Who may write to a directory on the way could put a link there, and lead a run of root anywhere.
//! As with rsync 3.5, a link counts only if root or this user owns it. Each component is opened
//! from the one before it, so nobody can exchange one that was checked.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use rustix::process::geteuid;

/// Most links in a path, as with the kernel.
const LINKS_MAX: usize = 40;

/// The kind of a link of another user, as an error of the system.
const FOREIGN: Errno = Errno::LOOP;

/// Opens a file for reading.
///
/// # Errors
/// The system's error, or `ELOOP` with a text for a link that neither root nor this user owns.
pub fn open_file(path: &Path) -> io::Result<File> {
    Ok(open(path, OFlags::RDONLY, Mode::empty())?.into())
}

/// Opens a file for appending, and makes it if it is missing.
///
/// # Errors
/// The system's error, or `ELOOP` with a text for a link that neither root nor this user owns.
pub fn append_to(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
    Ok(open(path, flags, Mode::from_raw_mode(0o666))?.into())
}

/// Opens what is at `path`.
///
/// # Errors
/// The system's error, or `ELOOP` with a text for a link that neither root nor this user owns.
#[cfg(target_os = "linux")]
pub(crate) fn open(path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    use crate::disk::magic::{PROC, magic_of};

    const HERE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
    let (flags, bytes) = (flags | OFlags::CLOEXEC, path.as_os_str().as_bytes());
    let top =
        |bytes: &[u8]| openat(CWD, if bytes.starts_with(b"/") { "/" } else { "." }, HERE, Mode::empty());
    let (mut at, mut rest, mut links) = (top(bytes)?, components(bytes), 0);
    // A path of slashes alone, or an empty one.
    let Some(mut name) = rest.pop_front() else { return Ok(openat(CWD, path, flags, mode)?) };
    loop {
        let is_last = rest.is_empty();
        match statat(&at, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                // Nobody can exchange this one: it is opened itself.
                let link =
                    openat(&at, &*name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
                let stat = fstat(&link)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
                    continue;
                }
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP.into());
                }
                if stat.st_uid != 0 && stat.st_uid != geteuid().as_raw() {
                    let shown = String::from_utf8_lossy(&name).into_owned();
                    let told = format!("{shown:?} in it is a link of another user, which is not followed");
                    return Err(io::Error::new(io::Error::from(FOREIGN).kind(), told));
                }
                if magic_of(&link) == Some(PROC) {
                    // Such a link names no path.
                    let flags = if is_last { flags } else { HERE };
                    at = openat(&at, &*name, flags, mode)?;
                    if is_last {
                        return Ok(at);
                    }
                } else {
                    let target = readlinkat(&link, "", Vec::new())?.into_bytes();
                    if target.starts_with(b"/") {
                        at = top(&target)?;
                    }
                    let mut new = components(&target);
                    new.append(&mut rest);
                    rest = new;
                }
            }
            _ if is_last => match openat(&at, &*name, flags | OFlags::NOFOLLOW, mode) {
                // It has become a link just now.
                Err(Errno::LOOP) if links < LINKS_MAX => {
                    links += 1;
                    continue;
                }
                opened => return Ok(opened?),
            },
            _ => match openat(&at, &*name, HERE | OFlags::NOFOLLOW, Mode::empty()) {
                Err(Errno::LOOP | Errno::NOTDIR) if links < LINKS_MAX && is_link(&at, &name) => {
                    links += 1;
                    continue;
                }
                opened => at = opened?,
            },
        }
        // A link to `/` leaves nothing but the directory itself.
        name = rest.pop_front().unwrap_or_else(|| b".".to_vec());
    }
}

#[cfg(target_os = "linux")]
fn is_link(at: &OwnedFd, name: &[u8]) -> bool {
    let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

/// The names in a path. A slash at its end means the directory.
#[cfg(target_os = "linux")]
fn components(path: &[u8]) -> VecDeque<Vec<u8>> {
    let mut names: VecDeque<Vec<u8>> =
        path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
    if path.ends_with(b"/") && !names.is_empty() {
        names.push_back(b".".to_vec());
    }
    names
}

/// Other systems have no handles of links.
#[cfg(not(target_os = "linux"))]
pub(crate) fn open(path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, flags | OFlags::CLOEXEC, mode)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::{lchown, symlink};

    use super::*;
    use crate::disk::testing::Fixture;

    fn read(path: &Path) -> io::Result<String> {
        let mut text = String::new();
        open_file(path)?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn own_links_are_followed() {
        let fixture = Fixture::new();
        fs::create_dir_all(fixture.at("d/e")).unwrap();
        fs::write(fixture.at("d/e/f"), "found").unwrap();
        symlink("d/e", fixture.at("relative")).unwrap();
        symlink(fixture.at("d"), fixture.at("absolute")).unwrap();
        symlink("../relative/f", fixture.at("d/up")).unwrap();
        for path in ["d/e/f", "relative/f", "absolute/e/f", "absolute/up", "d/../relative/./f", "d//e/f"] {
            assert_eq!(read(&fixture.at(path)).unwrap(), "found", "{path}");
        }
        symlink("loop", fixture.at("loop")).unwrap();
        for path in ["loop", "loop/f", "d/e/f/", "none", "d/e/f/g"] {
            assert!(read(&fixture.at(path)).is_err(), "{path}");
        }
        let file = File::open(fixture.at("d/e/f")).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        assert_eq!(read(Path::new(&format!("/dev/fd/{number}"))).unwrap(), "found");
        for path in ["/", ".", "..", "//"] {
            assert!(
                open(Path::new(path), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).is_ok(),
                "{path}"
            );
        }
        append_to(&fixture.at("relative/new")).unwrap();
        assert!(fixture.at("d/e/new").exists());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn links_of_other_users_are_not_followed() {
        if !geteuid().is_root() {
            return;
        }
        let fixture = Fixture::new();
        fs::create_dir(fixture.at("d")).unwrap();
        fs::write(fixture.at("d/f"), "found").unwrap();
        symlink("d", fixture.at("l")).unwrap();
        symlink("f", fixture.at("d/g")).unwrap();
        symlink("l/f", fixture.at("mine")).unwrap();
        lchown(fixture.at("l"), Some(65_534), None).unwrap();
        lchown(fixture.at("d/g"), Some(65_534), None).unwrap();
        for path in ["l/f", "d/g", "mine"] {
            let error = read(&fixture.at(path)).unwrap_err();
            assert!(error.to_string().contains("link of another user"), "{path}: {error}");
            assert!(append_to(&fixture.at(path)).is_err(), "{path}");
        }
        assert_eq!(fs::read_to_string(fixture.at("d/f")).unwrap(), "found");
    }
}
