//! The memory: a record of what was offered last, one file for each source and destination.
//!
//! It saves bytes and decides nothing: a peer is told the digest of a record, and only what has that very digest
//! is built upon. So whatever is wrong with a memory (it is gone, damaged, not ours, another run wrote it
//! meanwhile, the disk is full) has one consequence: nothing is remembered, and everything is offered.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, fchmod, fstat, futimens,
    mkdirat, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::content::hash::{Hash, Hasher};
use crate::content::hex::to_hex;
use crate::tree::filter::IgnoreFile;
use crate::tree::manifest::Manifest;
use crate::tree::record::{self, Record};

/// The first bytes of a file. Another form of records gets another number.
const MAGIC: [u8; 8] = *b"KSYNCR\x001";

/// Magic and digest.
const HEADER_BYTES: usize = MAGIC.len() + 32;

/// Longest record that is kept: some 36 bytes an entry, so that of the largest tree fits.
const RECORD_BYTES_MAX: u64 = 192 << 20;

/// Most bytes of all records. The one that was just written stays in any case.
const TOTAL_BYTES_MAX: u64 = 256 << 20;

/// Most records.
const FILES_MAX: usize = 64;

/// After how long a record that nobody asked for goes.
const UNUSED_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// After how long a record that was never completed goes: whoever wrote it was killed.
const UNFINISHED_MAX: Duration = Duration::from_secs(24 * 3600);

/// Ends the name of a record that is being written.
const NEW: &str = ".new";

/// Only we may look in and change it.
const PRIVATE: u32 = 0o700;

/// Where the record of one source and destination is kept.
#[derive(Debug, Clone)]
pub struct Memory {
    directory: PathBuf,
    name: String,
}

impl Memory {
    /// The memory called `key` in `directory`, which is made when there is something to be kept. The directory
    /// above it is there, or nothing is kept.
    #[must_use]
    pub fn new(directory: PathBuf, key: &[u8; 16]) -> Self {
        Self { directory, name: to_hex(key) }
    }

    /// The digest of the record that is kept, by what stands before it.
    #[must_use]
    pub fn digest(&self) -> Option<Hash> {
        self.open().ok().map(|(_, digest, _)| digest)
    }

    /// The record that is kept, if it is sound.
    #[must_use]
    pub fn recall(&self) -> Option<Record> {
        let (file, digest, length) = self.open().ok()?;
        let mut bytes = Vec::with_capacity(usize::try_from(length).ok()?);
        (&file).take(length).read_to_end(&mut bytes).ok()?;
        Record::new(bytes).filter(|record| record.digest() == digest)
    }

    /// Keeps the record of `manifest` and `ignores` instead of what was kept before; `false` where that cannot
    /// be done.
    pub fn remember(&self, manifest: &Manifest, ignores: &[IgnoreFile]) -> bool {
        let Ok(directory) = self.make_directory() else { return false };
        let new = format!("{}.{}{NEW}", self.name, std::process::id());
        let written = write_new(&directory, &new, manifest, ignores)
            .and_then(|()| Ok(renameat(&directory, &new, &directory, &self.name)?));
        if written.is_err() {
            let _ = unlinkat(&directory, &new, AtFlags::empty());
        }
        // A full disk is the better for it too.
        let _ = clear_old(&directory, self.name.as_bytes());
        written.is_ok()
    }

    /// The file behind its header, the digest that stands there, and how many bytes follow. It has been used
    /// now.
    fn open(&self) -> io::Result<(File, Hash, u64)> {
        // Without NONBLOCK a planted FIFO would keep us waiting.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let descriptor = openat(self.open_directory()?, &self.name, flags, Mode::empty())?;
        let stat = fstat(&descriptor)?;
        let length = u64::try_from(stat.st_size).ok().and_then(|size| size.checked_sub(HEADER_BYTES as u64));
        let length = length.filter(|&length| length <= RECORD_BYTES_MAX);
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let (Some(length), true) = (length, is_file && stat.st_uid == geteuid().as_raw()) else {
            return Err(not_ours());
        };
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let _ = futimens(&descriptor, &Timestamps { last_access: now, last_modification: now });
        let mut file = File::from(descriptor);
        let (mut magic, mut digest) = ([0; MAGIC.len()], [0; 32]);
        file.read_exact(&mut magic)?;
        file.read_exact(&mut digest)?;
        if magic == MAGIC { Ok((file, Hash::from_bytes(digest), length)) } else { Err(not_ours()) }
    }

    fn make_directory(&self) -> io::Result<OwnedFd> {
        match mkdirat(CWD, &self.directory, Mode::from_raw_mode(PRIVATE as _)) {
            Ok(()) | Err(Errno::EXIST) => self.open_directory(),
            Err(error) => Err(error.into()),
        }
    }

    /// A directory of our own, no link to one, that nobody else can look into.
    fn open_directory(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(CWD, &self.directory, flags, Mode::empty())?;
        let stat = fstat(&directory)?;
        if stat.st_uid != geteuid().as_raw() {
            return Err(not_ours());
        }
        if Mode::from_raw_mode(stat.st_mode) != Mode::from_raw_mode(PRIVATE as _) {
            fchmod(&directory, Mode::from_raw_mode(PRIVATE as _))?;
        }
        Ok(directory)
    }
}

fn write_new(directory: &OwnedFd, name: &str, manifest: &Manifest, ignores: &[IgnoreFile]) -> io::Result<()> {
    // Of a process that was killed and had our number.
    let _ = unlinkat(directory, name, AtFlags::empty());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(&[0; HEADER_BYTES])?;
    let (mut hasher, mut length) = (Hasher::new(), 0_u64);
    record::write(manifest, ignores, &mut |bytes| {
        length += bytes.len() as u64;
        if length > RECORD_BYTES_MAX {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        hasher.update(bytes);
        file.write_all(bytes)
    })?;
    let header = [&MAGIC[..], hasher.finish().as_bytes()].concat();
    file.write_all_at(&header, 0)
}

/// Removes what has not been used for long, and of the rest the oldest as long as there is too much.
fn clear_old(directory: &OwnedFd, own: &[u8]) -> io::Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut others = records(directory)?;
    let own_bytes = others.iter().find(|(name, ..)| name.to_bytes() == own).map_or(0, |(.., length)| *length);
    others.retain(|(name, ..)| name.to_bytes() != own);
    others.retain(|(name, used, _)| {
        let unfinished = name.to_bytes().ends_with(NEW.as_bytes());
        // What is dated in the future was used just now.
        let stays = now.saturating_sub(*used) <= if unfinished { UNFINISHED_MAX } else { UNUSED_MAX };
        if !stays {
            let _ = unlinkat(directory, name, AtFlags::empty());
        }
        stays
    });
    let too_much = |others: &[(CString, Duration, u64)]| {
        let bytes: u64 = others.iter().map(|(.., length)| length).sum();
        others.len() >= FILES_MAX || own_bytes + bytes > TOTAL_BYTES_MAX
    };
    // There are hardly more than allowed, unless somebody else put them there: no need to sort.
    while too_much(&others) {
        let oldest = others.iter().enumerate().min_by_key(|(_, (_, used, _))| *used);
        let Some(oldest) = oldest.map(|(index, _)| index) else { break };
        let (name, ..) = others.swap_remove(oldest);
        let _ = unlinkat(directory, &name, AtFlags::empty());
    }
    Ok(())
}

/// What looks as if we had written it: name, when it was last used (since 1970), length.
fn records(directory: &OwnedFd) -> io::Result<Vec<(CString, Duration, u64)>> {
    let mut records = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if !is_record(name) {
            continue;
        }
        if let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            let used = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
            records.push((name.to_owned(), used, u64::try_from(stat.st_size).unwrap_or(0)));
        }
    }
    Ok(records)
}

fn is_record(name: &CStr) -> bool {
    let name = name.to_bytes();
    let (key, rest) = name.split_at_checked(32).unwrap_or((name, &[]));
    key.len() == 32
        && key.iter().all(u8::is_ascii_hexdigit)
        && (rest.is_empty() || rest.ends_with(NEW.as_bytes()))
}

fn not_ours() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;
    use crate::tree::change::testing::{entries, ignores};

    const KEY: [u8; 16] = [0xa7; 16];

    struct Place {
        folder: TempDir,
        memory: Memory,
    }

    impl Place {
        fn new() -> Self {
            let folder = TempDir::new().unwrap();
            fs::create_dir(folder.path().join("state")).unwrap();
            let memory = Memory::new(folder.path().join("state/offers"), &KEY);
            Self { folder, memory }
        }

        /// One that remembers ten files.
        fn filled() -> Self {
            let place = Self::new();
            assert!(place.memory.remember(&tree(10), &ignores("x")));
            place
        }

        fn directory(&self) -> PathBuf {
            self.folder.path().join("state/offers")
        }

        fn file(&self) -> PathBuf {
            self.directory().join("a7".repeat(16))
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.directory()).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }

        fn recalls_nothing(&self) {
            assert!(self.memory.digest().is_none() && self.memory.recall().is_none());
        }
    }

    fn tree(count: u64) -> Manifest {
        Manifest::new(entries(count)).unwrap()
    }

    fn set_age(path: &Path, age: Duration) {
        let time = SystemTime::now() - age;
        File::open(path).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn what_is_kept_comes_back_and_is_private() {
        let place = Place::new();
        place.recalls_nothing();
        assert!(!place.directory().exists(), "nothing is made before there is need");
        for count in [5000, 3] {
            let manifest = tree(count);
            assert!(place.memory.remember(&manifest, &ignores("x")));
            let digest = record::digest(&manifest, &ignores("x"));
            assert_eq!(place.memory.digest(), Some(digest));
            let record = place.memory.recall().unwrap();
            assert_eq!((record.digest(), record.ignores()), (digest, &ignores("x")[..]));
            let entries: Vec<_> = record.into_parts().1.map(Result::unwrap).collect();
            assert!(manifest.entries().eq(entries.iter().map(|entry| entry.view())));
        }
        let mode = |path: PathBuf| path.metadata().unwrap().mode() & 0o7777;
        assert_eq!((mode(place.directory()), mode(place.file())), (0o700, 0o600));
        assert_eq!(place.names(), ["a7".repeat(16)]);
    }

    #[test]
    fn where_there_is_no_place_nothing_is_kept() {
        let place = Place::new();
        fs::remove_dir(place.folder.path().join("state")).unwrap();
        assert!(!place.memory.remember(&tree(1), &[]));
        place.recalls_nothing();
        assert!(!place.folder.path().join("state").exists());
    }

    #[test]
    fn a_damaged_record_is_none() {
        let place = Place::filled();
        let whole = fs::read(place.file()).unwrap();
        for length in 0..whole.len() {
            fs::write(place.file(), &whole[..length]).unwrap();
            assert!(place.memory.recall().is_none(), "cut at {length}");
        }
        for position in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[position] ^= 1;
            fs::write(place.file(), &bytes).unwrap();
            assert!(place.memory.recall().is_none(), "damaged at {position}");
        }
        fs::write(place.file(), &whole).unwrap();
        assert!(place.memory.recall().is_some());
    }

    #[test]
    fn a_record_that_is_too_long_is_not_read() {
        let place = Place::filled();
        let file = File::options().write(true).open(place.file()).unwrap();
        file.set_len(RECORD_BYTES_MAX + HEADER_BYTES as u64 + 1).unwrap();
        place.recalls_nothing();
    }

    #[test]
    fn a_planted_link_pipe_or_directory_is_not_followed_and_what_can_be_replaced_is() {
        let place = Place::filled();
        let elsewhere = place.folder.path().join("elsewhere");
        fs::rename(place.file(), &elsewhere).unwrap();
        let before = fs::read(&elsewhere).unwrap();
        symlink(&elsewhere, place.file()).unwrap();
        place.recalls_nothing();
        assert!(place.memory.remember(&tree(2), &[]));
        assert_eq!(fs::read(&elsewhere).unwrap(), before);
        assert!(place.file().symlink_metadata().unwrap().is_file());

        fs::remove_file(place.file()).unwrap();
        rustix::fs::mkfifoat(CWD, place.file(), Mode::RUSR | Mode::WUSR).unwrap();
        place.recalls_nothing();
        fs::remove_file(place.file()).unwrap();
        fs::create_dir(place.file()).unwrap();
        let untouched = SystemTime::UNIX_EPOCH + UNUSED_MAX;
        File::open(place.file()).unwrap().set_modified(untouched).unwrap();
        place.recalls_nothing();
        assert_eq!(place.file().metadata().unwrap().modified().unwrap(), untouched);
        assert!(!place.memory.remember(&tree(2), &[]));
        assert_eq!(place.names(), ["a7".repeat(16)], "nothing half is left behind");
    }

    #[test]
    fn what_belongs_to_somebody_else_is_not_used() {
        let place = Place::filled();
        if chown(place.file(), Some(65534), None).is_ok() {
            place.recalls_nothing();
            chown(place.file(), Some(geteuid().as_raw()), None).unwrap();
            assert!(place.memory.recall().is_some());
            chown(place.directory(), Some(65534), None).unwrap();
            place.recalls_nothing();
            assert!(!place.memory.remember(&tree(2), &[]));
        }
    }

    #[test]
    fn a_directory_that_is_a_link_is_not_used_and_an_open_one_is_closed() {
        let place = Place::filled();
        fs::set_permissions(place.directory(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(place.memory.recall().is_some());
        assert_eq!(place.directory().metadata().unwrap().mode() & 0o7777, 0o700);
        let elsewhere = place.folder.path().join("elsewhere");
        fs::rename(place.directory(), &elsewhere).unwrap();
        symlink(&elsewhere, place.directory()).unwrap();
        place.recalls_nothing();
        assert!(!place.memory.remember(&tree(2), &[]));
        fs::remove_file(place.directory()).unwrap();
        fs::write(place.directory(), "a file").unwrap();
        place.recalls_nothing();
        assert!(!place.memory.remember(&tree(2), &[]));
    }

    #[test]
    fn old_records_go_and_recent_ones_stay() {
        let place = Place::filled();
        let other = |name: &str, age: Duration| {
            fs::write(place.directory().join(name), "x").unwrap();
            set_age(&place.directory().join(name), age);
        };
        let day = Duration::from_secs(24 * 3600);
        other(&"0".repeat(32), 31 * day);
        other(&"1".repeat(32), 29 * day);
        other(&format!("{}.7.new", "2".repeat(32)), 2 * day);
        other(&format!("{}.7.new", "3".repeat(32)), day / 2);
        other("something else", 99 * day);
        set_age(&place.file(), 99 * day);
        assert!(place.memory.recall().is_some(), "to be asked for is to be used");
        other(&"4".repeat(32), Duration::ZERO);
        assert!(Memory::new(place.directory(), &[5; 16]).remember(&tree(1), &[]));
        let expected = ["05".repeat(16), "1".repeat(32), format!("{}.7.new", "3".repeat(32)), "4".repeat(32)];
        let expected = [&expected[..], &["a7".repeat(16), "something else".to_owned()]].concat();
        assert_eq!(place.names(), expected);
    }

    #[test]
    fn there_are_never_more_records_or_bytes_than_allowed() {
        let place = Place::filled();
        let hour = Duration::from_secs(3600);
        for number in 0..FILES_MAX as u32 + 9 {
            let path = place.directory().join(format!("{number:032x}"));
            fs::write(&path, "x").unwrap();
            set_age(&path, hour * (number + 1));
        }
        assert!(place.memory.remember(&tree(1), &[]));
        let names = place.names();
        assert_eq!(names.len(), FILES_MAX);
        assert!(names.contains(&format!("{:032x}", 0)) && !names.contains(&format!("{FILES_MAX:032x}")));

        let large = place.directory().join(format!("{:032x}", 1));
        File::options().write(true).open(&large).unwrap().set_len(TOTAL_BYTES_MAX).unwrap();
        set_age(&large, hour * 2);
        assert!(place.memory.remember(&tree(1), &[]));
        assert_eq!(place.names(), [format!("{:032x}", 0), "a7".repeat(16)]);
    }
}
