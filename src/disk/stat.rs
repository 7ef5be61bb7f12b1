//! `Stat` and `Identity`: what the filesystem knows of an entry, and whether it is still the same one.

use rustix::fs::{FileType, Mode, Timespec, Timestamps, UTIME_OMIT};

use crate::tree::entry::{MODE_MASK, Time};

/// The unit of `st_blocks`, in bytes, whatever a filesystem's own blocks are.
const BLOCK_BYTES: u64 = 512;

/// What kind of thing an entry is, including those that no tree can hold.
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
    /// A block or character device, or something this program has no name for.
    Device,
}

impl FileKind {
    /// `None` where the filesystem does not say.
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
    /// The plural, for eyes.
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

/// What an open file is now.
///
/// # Errors
/// The system does not say, or its time or size is out of range.
pub fn identity_of(file: &std::fs::File) -> std::io::Result<Identity> {
    let stat = rustix::fs::fstat(file)?;
    Stat::of(&stat).map(|stat| stat.identity).ok_or_else(|| {
        std::io::Error::new(std::io::ErrorKind::InvalidData, "its time or size is out of range")
    })
}

/// What tells one state of one file from every other: equal identities mean that nobody replaced the file
/// and nobody wrote to it in between (as far as the filesystem's clock can tell).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The filesystem.
    pub dev: u64,
    /// The inode in that filesystem.
    pub ino: u64,
    /// What it is.
    pub kind: FileKind,
    /// A regular file's length in bytes; 0 of everything else.
    pub size: u64,
    /// When the content last changed, which any program may set.
    pub mtime: Time,
    /// When anything last changed, which no program can set.
    pub ctime: Time,
}

/// What the filesystem knows of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Which file in which state.
    pub identity: Identity,
    /// Number of hard links.
    pub nlink: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits, within [`MODE_MASK`].
    pub mode: u16,
    /// Bytes of the disk behind it.
    pub allocated_bytes: u64,
}

impl Stat {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        self.identity.kind
    }

    /// A regular file's length in bytes; 0 of everything else.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.identity.size
    }

    /// When the content last changed.
    #[must_use]
    pub fn mtime(&self) -> Time {
        self.identity.mtime
    }

    /// `None` where a time or the size is out of range.
    // The fields' types differ between systems.
    #[allow(clippy::unnecessary_cast)]
    pub(crate) fn of(raw: &rustix::fs::Stat) -> Option<Self> {
        let kind = FileKind::of(FileType::from_raw_mode(raw.st_mode)).unwrap_or(FileKind::Device);
        let identity = Identity {
            dev: raw.st_dev as u64,
            ino: raw.st_ino as u64,
            kind,
            size: if kind == FileKind::File { u64::try_from(raw.st_size).ok()? } else { 0 },
            mtime: Time::new(raw.st_mtime as i64, u32::try_from(raw.st_mtime_nsec).ok()?)?,
            ctime: Time::new(raw.st_ctime as i64, u32::try_from(raw.st_ctime_nsec).ok()?)?,
        };
        Some(Self {
            identity,
            nlink: raw.st_nlink as u64,
            uid: raw.st_uid,
            gid: raw.st_gid,
            mode: (raw.st_mode as u16) & MODE_MASK,
            allocated_bytes: u64::try_from(raw.st_blocks).unwrap_or(0).saturating_mul(BLOCK_BYTES),
        })
    }
}

/// Permission bits as the system takes them.
// Their type differs between systems.
#[allow(clippy::useless_conversion)]
pub(crate) fn mode_bits(mode: u16) -> Mode {
    Mode::from_raw_mode(mode.into())
}

/// The times to set so that only the modification time changes.
pub(crate) fn times(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.seconds(), tv_nsec: mtime.nanos().into() },
    }
}
