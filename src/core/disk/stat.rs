//! `Stat`, `Identity` and `Inode`: an entry's metadata, and the fields that tell if it is still the
//! same.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use rustix::fs::{FileType, Mode, Timespec, Timestamps, UTIME_OMIT, fstat};

use crate::content::hash::Hash;
use crate::tree::attributes::Special;
use crate::tree::entry::{MODE_MASK, Time};

/// The unit of `st_blocks`, in bytes, whatever a filesystem's own blocks are.
const BLOCK_BYTES: u64 = 512;

/// The kind of an entry, including those that no tree can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A block or character device, or a kind that is unknown here.
    Device,
}

impl FileKind {
    /// `None` if the filesystem does not report the kind.
    pub(crate) fn of(file_type: FileType) -> Option<Self> {
        match file_type {
            FileType::Directory => Some(Self::Directory),
            FileType::RegularFile => Some(Self::File),
            FileType::Symlink => Some(Self::Symlink),
            FileType::Fifo => Some(Self::Fifo),
            FileType::Socket => Some(Self::Socket),
            FileType::Unknown => None,
            _ => Some(Self::Device),
        }
    }
}

impl std::fmt::Display for FileKind {
    /// The plural, for messages.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Directory => "directories",
            Self::File => "files",
            Self::Symlink => "symbolic links",
            Self::Fifo => "named pipes",
            Self::Socket => "sockets",
            Self::Device => "devices",
        })
    }
}

/// The present identity of an open file.
///
/// # Errors
/// The system does not report it, or its time or size is out of range.
pub fn identity_of(file: &std::fs::File) -> std::io::Result<Identity> {
    let stat = rustix::fs::fstat(file)?;
    Stat::of(&stat).map(|stat| stat.identity).ok_or_else(|| {
        std::io::Error::new(std::io::ErrorKind::InvalidData, "its time or size is out of range")
    })
}

/// Identifies one state of one file. Equal identities mean that no program replaced the file or
/// wrote to it in between, as far as the filesystem's clock can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The device number of the filesystem.
    pub dev: u64,
    /// The inode number in that filesystem; 0 if it does not keep its numbers.
    pub ino: u64,
    /// The kind of the entry.
    pub kind: FileKind,
    /// A regular file's length in bytes; 0 for everything else.
    pub size: u64,
    /// Time of the last change of content, which any program may set.
    pub mtime: Time,
    /// Time of the last change of any kind, which no program can set.
    pub ctime: Time,
}

impl Identity {
    /// A hash of the identity. Two machines can tell by it that both mean one file on one disk.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let times = [self.mtime, self.ctime];
        let seconds = times.map(|time| time.seconds().to_le_bytes()).concat();
        let nanos = times.map(|time| time.nanos().to_le_bytes()).concat();
        let numbers = [self.dev, self.ino, self.size].map(u64::to_le_bytes).concat();
        let hash = Hash::of(&[numbers, seconds, nanos].concat());
        hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

/// Identity of a file or directory, valid as long as it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Inode {
    /// The device number of the filesystem.
    pub dev: u64,
    /// The inode number in that filesystem.
    pub ino: u64,
}

impl Inode {
    /// `None` if the filesystem does not keep its inode numbers.
    pub(crate) fn known(stat: &Stat) -> Option<Self> {
        Some(Self::from(stat)).filter(|inode| inode.ino != 0)
    }
}

impl From<&Identity> for Inode {
    fn from(identity: &Identity) -> Self {
        Self { dev: identity.dev, ino: identity.ino }
    }
}

impl From<&Stat> for Inode {
    fn from(stat: &Stat) -> Self {
        Self::from(&stat.identity)
    }
}

/// Device numbers of filesystems whose inode numbers differ at each call, as those of some FUSE
/// filesystems. All of their numbers count as 0, which is no inode's number.
static UNSTABLE: RwLock<BTreeSet<u64>> = RwLock::new(BTreeSet::new());

/// True once `UNSTABLE` holds a number: a lock for each `Stat` would cost more.
static IS_ANY_UNSTABLE: AtomicBool = AtomicBool::new(false);

/// Finds out if the filesystem of an open directory keeps its inode numbers.
pub(crate) fn check_inode_numbers(directory: impl AsFd) -> rustix::io::Result<()> {
    let [one, other] = [fstat(&directory)?, fstat(&directory)?];
    if one.st_ino != other.st_ino {
        note_unstable(dev_of(&one));
    }
    Ok(())
}

fn note_unstable(dev: u64) {
    UNSTABLE.write().unwrap_or_else(PoisonError::into_inner).insert(dev);
    IS_ANY_UNSTABLE.store(true, Ordering::Release);
}

/// The inode number, or 0 on a filesystem that does not keep its numbers.
// The field's type differs between systems.
#[allow(clippy::unnecessary_cast)]
fn inode_number(raw: &rustix::fs::Stat) -> u64 {
    let is_unstable = IS_ANY_UNSTABLE.load(Ordering::Acquire)
        && UNSTABLE.read().unwrap_or_else(PoisonError::into_inner).contains(&dev_of(raw));
    if is_unstable { 0 } else { raw.st_ino as u64 }
}

/// True if both describe one inode, as far as the filesystem tells.
pub(crate) fn is_same_inode(one: &rustix::fs::Stat, other: &rustix::fs::Stat) -> bool {
    (one.st_dev, inode_number(one)) == (other.st_dev, inode_number(other))
}

// The field's type differs between systems.
#[allow(clippy::unnecessary_cast)]
fn dev_of(raw: &rustix::fs::Stat) -> u64 {
    raw.st_dev as u64
}

/// The filesystem's metadata of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// The identity: which file, in which state.
    pub identity: Identity,
    /// Number of hard links.
    pub nlink: u64,
    /// User id of the owner.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permission bits, within [`MODE_MASK`].
    pub mode: u16,
    /// Allocated bytes on the disk.
    pub allocated_bytes: u64,
    /// The kind of a special file, with a device's number.
    pub special: Option<Special>,
}

impl Stat {
    /// The kind of the entry.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        self.identity.kind
    }

    /// A regular file's length in bytes; 0 for everything else.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.identity.size
    }

    /// Time of the last change of content.
    #[must_use]
    pub fn mtime(&self) -> Time {
        self.identity.mtime
    }

    /// Converts the system's structure. `None` if a time or the size is out of range.
    // The fields' types differ between systems.
    #[allow(clippy::unnecessary_cast)]
    pub(crate) fn of(raw: &rustix::fs::Stat) -> Option<Self> {
        let kind = FileKind::of(FileType::from_raw_mode(raw.st_mode)).unwrap_or(FileKind::Device);
        let identity = Identity {
            dev: dev_of(raw),
            ino: inode_number(raw),
            kind,
            size: if kind == FileKind::File { u64::try_from(raw.st_size).ok()? } else { 0 },
            mtime: Time::new(raw.st_mtime as i64, u32::try_from(raw.st_mtime_nsec).ok()?)?,
            ctime: Time::new(raw.st_ctime as i64, u32::try_from(raw.st_ctime_nsec).ok()?)?,
        };
        let special = match FileType::from_raw_mode(raw.st_mode) {
            FileType::Fifo => Some(Special::Fifo),
            FileType::Socket => Some(Special::Socket),
            FileType::CharacterDevice => Some(Special::Character(raw.st_rdev as u64)),
            FileType::BlockDevice => Some(Special::Block(raw.st_rdev as u64)),
            _ => None,
        };
        Some(Self {
            identity,
            special,
            nlink: raw.st_nlink as u64,
            uid: raw.st_uid,
            gid: raw.st_gid,
            mode: (raw.st_mode as u16) & MODE_MASK,
            allocated_bytes: u64::try_from(raw.st_blocks).unwrap_or(0).saturating_mul(BLOCK_BYTES),
        })
    }
}

/// Converts permission bits to the system's type.
// The type differs between systems.
#[allow(clippy::useless_conversion)]
pub(crate) fn mode_bits(mode: u16) -> Mode {
    Mode::from_raw_mode(mode.into())
}

/// Timestamps that change only the modification time.
pub(crate) fn times(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.seconds(), tv_nsec: mtime.nanos().into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inode_numbers_of_an_unstable_filesystem_are_all_0() {
        let raw = fstat(tempfile::tempfile().unwrap()).unwrap();
        let mut unstable = raw;
        // No filesystem of this machine has this number.
        unstable.st_dev = !0 - 6;
        note_unstable(dev_of(&unstable));
        assert_eq!(Stat::of(&unstable).unwrap().identity.ino, 0);
        assert_eq!(Inode::known(&Stat::of(&unstable).unwrap()), None);
        assert!(Inode::known(&Stat::of(&raw).unwrap()).is_some_and(|inode| inode.ino != 0));
        assert!(is_same_inode(&raw, &raw) && !is_same_inode(&raw, &unstable));
    }
}
