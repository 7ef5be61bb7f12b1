//! The baseline store: the last agreed snapshot, one file (a record) for each source and
//! destination.
//!
//! A baseline saves bytes and decides nothing. A peer learns a record's digest, and only a peer
//! with that very digest builds upon it. A record may be gone, damaged or another user's, another
//! run may have replaced it, or the disk may be full. All these have the same consequence: there is
//! no baseline, and the sender offers everything.

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

/// The first bytes of a file. Each record format has its own number.
const MAGIC: [u8; 8] = *b"KSYNCR\x001";

/// Length of magic and digest.
const HEADER_BYTES: usize = MAGIC.len() + 32;

/// Maximum length of a kept record: an entry takes about 36 bytes, so the largest tree fits.
const RECORD_BYTES_MAX: u64 = 192 << 20;

/// Maximum bytes of all records. The record that was just written stays in any case.
const TOTAL_BYTES_MAX: u64 = 256 << 20;

/// Maximum number of records.
const FILES_MAX: usize = 64;

/// Age at which an unused record is removed.
const UNUSED_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Age at which an unfinished record is removed: its writer was killed.
const UNFINISHED_MAX: Duration = Duration::from_secs(24 * 3600);

/// Suffix of a record that is being written.
const NEW: &str = ".new";

/// The directory's mode: only this user may list and change it.
const PRIVATE: u32 = 0o700;

/// Names the file that holds the baseline of one source and destination.
#[derive(Debug, Clone)]
pub struct Baseline {
    directory: PathBuf,
    name: String,
}

impl Baseline {
    /// The baseline called `key` in `directory`. The first write creates this directory, but not
    /// its parent: without the parent nothing is kept.
    #[must_use]
    pub fn new(directory: PathBuf, key: &[u8; 16]) -> Self {
        Self { directory, name: to_hex(key) }
    }

    /// The digest in the header of the stored record.
    #[must_use]
    pub fn digest(&self) -> Option<Hash> {
        self.open().ok().map(|(_, digest, _)| digest)
    }

    /// The stored record, if it is sound.
    #[must_use]
    pub fn load(&self) -> Option<Record> {
        let (file, digest, length) = self.open().ok()?;
        let mut bytes = Vec::with_capacity(usize::try_from(length).ok()?);
        (&file).take(length).read_to_end(&mut bytes).ok()?;
        Record::new(bytes).filter(|record| record.digest() == digest)
    }

    /// Replaces the stored record by one of `manifest` and `ignores`. Returns `false` if that
    /// fails.
    pub fn store(&self, manifest: &Manifest, ignores: &[IgnoreFile]) -> bool {
        let Ok(directory) = self.make_directory() else { return false };
        let new = format!("{}.{}{NEW}", self.name, std::process::id());
        let written = write_new(&directory, &new, manifest, ignores)
            .and_then(|()| Ok(renameat(&directory, &new, &directory, &self.name)?));
        if written.is_err() {
            let _ = unlinkat(&directory, &new, AtFlags::empty());
        }
        // A full disk needs the clean-up too.
        let _ = clear_old(&directory, self.name.as_bytes());
        written.is_ok()
    }

    /// Opens the file. Returns it positioned behind its header, the digest in the header, and the
    /// number of bytes that follow. Sets the file's time, since it has been used now.
    fn open(&self) -> io::Result<(File, Hash, u64)> {
        // Without NONBLOCK, opening a planted FIFO would wait for a writer.
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

    /// Opens the directory, not a link to one. It must belong to this user; other users lose
    /// access.
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
    // A killed process with the same process id may have left a file.
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

/// Removes records that were unused for long, then the oldest of the rest until they fit the
/// limits.
fn clear_old(directory: &OwnedFd, own: &[u8]) -> io::Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut others = records(directory)?;
    let own_bytes = others.iter().find(|(name, ..)| name.to_bytes() == own).map_or(0, |(.., length)| *length);
    others.retain(|(name, ..)| name.to_bytes() != own);
    others.retain(|(name, used, _)| {
        let unfinished = name.to_bytes().ends_with(NEW.as_bytes());
        // A date in the future counts as just used.
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
    // Usually few records exceed the limits, so sorting does not pay.
    while too_much(&others) {
        let oldest = others.iter().enumerate().min_by_key(|(_, (_, used, _))| *used);
        let Some(oldest) = oldest.map(|(index, _)| index) else { break };
        let (name, ..) = others.swap_remove(oldest);
        let _ = unlinkat(directory, &name, AtFlags::empty());
    }
    Ok(())
}

/// The files with names of records: name, time of last use (since 1970), length.
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
    use crate::disk::testing::give_away;
    use crate::tree::change::testing::{entries, ignores};

    const KEY: [u8; 16] = [0xa7; 16];

    struct Fixture {
        folder: TempDir,
        baseline: Baseline,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = TempDir::new().unwrap();
            fs::create_dir(folder.path().join("state")).unwrap();
            let baseline = Baseline::new(folder.path().join("state/offers"), &KEY);
            Self { folder, baseline }
        }

        /// A fixture whose baseline holds ten files.
        fn filled() -> Self {
            let fixture = Self::new();
            assert!(fixture.baseline.store(&tree(10), &ignores("x")));
            fixture
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

        fn loads_nothing(&self) {
            assert!(self.baseline.digest().is_none() && self.baseline.load().is_none());
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
    fn a_stored_record_comes_back_and_is_private() {
        let fixture = Fixture::new();
        fixture.loads_nothing();
        assert!(!fixture.directory().exists(), "nothing is made before there is need");
        for count in [5000, 3] {
            let manifest = tree(count);
            assert!(fixture.baseline.store(&manifest, &ignores("x")));
            let digest = record::digest(&manifest, &ignores("x"));
            assert_eq!(fixture.baseline.digest(), Some(digest));
            let record = fixture.baseline.load().unwrap();
            assert_eq!((record.digest(), record.ignores()), (digest, &ignores("x")[..]));
            let entries: Vec<_> = record.into_parts().1.map(Result::unwrap).collect();
            assert!(manifest.entries().eq(entries.iter().map(|entry| entry.view())));
        }
        let mode = |path: PathBuf| path.metadata().unwrap().mode() & 0o7777;
        assert_eq!((mode(fixture.directory()), mode(fixture.file())), (0o700, 0o600));
        assert_eq!(fixture.names(), ["a7".repeat(16)]);
    }

    #[test]
    fn a_missing_parent_directory_keeps_no_record() {
        let fixture = Fixture::new();
        fs::remove_dir(fixture.folder.path().join("state")).unwrap();
        assert!(!fixture.baseline.store(&tree(1), &[]));
        fixture.loads_nothing();
        assert!(!fixture.folder.path().join("state").exists());
    }

    #[test]
    fn a_damaged_record_is_not_read() {
        let fixture = Fixture::filled();
        let whole = fs::read(fixture.file()).unwrap();
        for length in 0..whole.len() {
            fs::write(fixture.file(), &whole[..length]).unwrap();
            assert!(fixture.baseline.load().is_none(), "cut at {length}");
        }
        for position in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[position] ^= 1;
            fs::write(fixture.file(), &bytes).unwrap();
            assert!(fixture.baseline.load().is_none(), "damaged at {position}");
        }
        fs::write(fixture.file(), &whole).unwrap();
        assert!(fixture.baseline.load().is_some());
    }

    #[test]
    fn an_overlong_record_is_not_read() {
        let fixture = Fixture::filled();
        let file = File::options().write(true).open(fixture.file()).unwrap();
        file.set_len(RECORD_BYTES_MAX + HEADER_BYTES as u64 + 1).unwrap();
        fixture.loads_nothing();
    }

    #[test]
    fn a_planted_link_pipe_or_directory_is_not_followed() {
        let fixture = Fixture::filled();
        let elsewhere = fixture.folder.path().join("elsewhere");
        fs::rename(fixture.file(), &elsewhere).unwrap();
        let before = fs::read(&elsewhere).unwrap();
        symlink(&elsewhere, fixture.file()).unwrap();
        fixture.loads_nothing();
        assert!(fixture.baseline.store(&tree(2), &[]));
        assert_eq!(fs::read(&elsewhere).unwrap(), before);
        assert!(fixture.file().symlink_metadata().unwrap().is_file());

        fs::remove_file(fixture.file()).unwrap();
        rustix::fs::mkfifoat(CWD, fixture.file(), Mode::RUSR | Mode::WUSR).unwrap();
        fixture.loads_nothing();
        fs::remove_file(fixture.file()).unwrap();
        fs::create_dir(fixture.file()).unwrap();
        let untouched = SystemTime::UNIX_EPOCH + UNUSED_MAX;
        File::open(fixture.file()).unwrap().set_modified(untouched).unwrap();
        fixture.loads_nothing();
        assert_eq!(fixture.file().metadata().unwrap().modified().unwrap(), untouched);
        assert!(!fixture.baseline.store(&tree(2), &[]));
        assert_eq!(fixture.names(), ["a7".repeat(16)], "nothing half is left behind");
    }

    #[test]
    fn a_record_of_another_user_is_not_used() {
        let fixture = Fixture::filled();
        if give_away(&fixture.file()) {
            fixture.loads_nothing();
            chown(fixture.file(), Some(geteuid().as_raw()), None).unwrap();
            assert!(fixture.baseline.load().is_some());
            assert!(give_away(&fixture.directory()));
            fixture.loads_nothing();
            assert!(!fixture.baseline.store(&tree(2), &[]));
        }
    }

    #[test]
    fn a_linked_directory_is_not_used_and_loose_modes_are_tightened() {
        let fixture = Fixture::filled();
        fs::set_permissions(fixture.directory(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(fixture.baseline.load().is_some());
        assert_eq!(fixture.directory().metadata().unwrap().mode() & 0o7777, 0o700);
        let elsewhere = fixture.folder.path().join("elsewhere");
        fs::rename(fixture.directory(), &elsewhere).unwrap();
        symlink(&elsewhere, fixture.directory()).unwrap();
        fixture.loads_nothing();
        assert!(!fixture.baseline.store(&tree(2), &[]));
        fs::remove_file(fixture.directory()).unwrap();
        fs::write(fixture.directory(), "a file").unwrap();
        fixture.loads_nothing();
        assert!(!fixture.baseline.store(&tree(2), &[]));
    }

    #[test]
    fn old_records_go_and_recent_ones_stay() {
        let fixture = Fixture::filled();
        let other = |name: &str, age: Duration| {
            fs::write(fixture.directory().join(name), "x").unwrap();
            set_age(&fixture.directory().join(name), age);
        };
        let day = Duration::from_secs(24 * 3600);
        other(&"0".repeat(32), 31 * day);
        other(&"1".repeat(32), 29 * day);
        other(&format!("{}.7.new", "2".repeat(32)), 2 * day);
        other(&format!("{}.7.new", "3".repeat(32)), day / 2);
        other("something else", 99 * day);
        set_age(&fixture.file(), 99 * day);
        assert!(fixture.baseline.load().is_some(), "to be asked for is to be used");
        other(&"4".repeat(32), Duration::ZERO);
        assert!(Baseline::new(fixture.directory(), &[5; 16]).store(&tree(1), &[]));
        let expected = ["05".repeat(16), "1".repeat(32), format!("{}.7.new", "3".repeat(32)), "4".repeat(32)];
        let expected = [&expected[..], &["a7".repeat(16), "something else".to_owned()]].concat();
        assert_eq!(fixture.names(), expected);
    }

    #[test]
    fn records_never_exceed_the_limits_of_count_and_bytes() {
        let fixture = Fixture::filled();
        let hour = Duration::from_secs(3600);
        for number in 0..FILES_MAX as u32 + 9 {
            let path = fixture.directory().join(format!("{number:032x}"));
            fs::write(&path, "x").unwrap();
            set_age(&path, hour * (number + 1));
        }
        assert!(fixture.baseline.store(&tree(1), &[]));
        let names = fixture.names();
        assert_eq!(names.len(), FILES_MAX);
        assert!(names.contains(&format!("{:032x}", 0)) && !names.contains(&format!("{FILES_MAX:032x}")));

        let large = fixture.directory().join(format!("{:032x}", 1));
        File::options().write(true).open(&large).unwrap().set_len(TOTAL_BYTES_MAX).unwrap();
        set_age(&large, hour * 2);
        assert!(fixture.baseline.store(&tree(1), &[]));
        assert_eq!(fixture.names(), [format!("{:032x}", 0), "a7".repeat(16)]);
    }
}
