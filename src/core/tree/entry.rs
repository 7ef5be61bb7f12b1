//! One entry of a tree: its path, kind and metadata.

use std::sync::Arc;

use crate::content::hash::Hash;
use crate::tree::attributes::{Attributes, Special};
use crate::tree::path::TreePath;
use crate::tree::path_ref::PathRef;

/// Longest symlink target in bytes: Linux's `PATH_MAX`.
pub const LINK_BYTES_MAX: usize = 4096;

/// Largest file size in bytes: the range of a signed offset.
pub const SIZE_MAX: u64 = i64::MAX as u64;

/// The permission bits, set-id bits and sticky bit of a mode; [`Kind`] holds the type.
pub const MODE_MASK: u16 = 0o7777;

/// Largest distance of a time from 1970, in seconds either way: about 35,000 years, beyond every
/// filesystem and far from every overflow.
pub const SECONDS_MAX: i64 = 1 << 40;

/// A point in time as filesystems store it. Times are compared for equality, since clocks differ;
/// only `--update` orders them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Time {
    seconds: i64,
    nanos: u32,
}

impl Time {
    /// A time of `seconds` since 1970 (negative before it) plus `nanos`. `None` if `nanos` is a
    /// second or more, or `seconds` is beyond [`SECONDS_MAX`].
    #[must_use]
    pub fn new(seconds: i64, nanos: u32) -> Option<Self> {
        let valid = nanos < 1_000_000_000 && (-SECONDS_MAX..=SECONDS_MAX).contains(&seconds);
        valid.then_some(Self { seconds, nanos })
    }

    /// Whole seconds since 1970.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds after [`Time::seconds`].
    #[must_use]
    pub fn nanos(self) -> u32 {
        self.nanos
    }
}

/// The kind of an entry, with the fields of that kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<T = Box<[u8]>> {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Length in bytes, at most [`SIZE_MAX`].
        size: u64,
        /// The content's hash, if it was requested (`--checksum`).
        hash: Option<Hash>,
    },
    /// A symbolic link.
    Symlink {
        /// The target's bytes as stored in the link: 1 to [`LINK_BYTES_MAX`], no NUL.
        target: T,
    },
}

impl<T: Default + AsRef<[u8]>> Kind<T> {
    /// A FIFO, a socket or a device: a link without a target, which no real link has. It is no
    /// basis, and is removed without being opened. [`Attributes::special`] tells its kind. In a
    /// destination the kind may be unknown. Such an entry differs from every wanted one, and no
    /// peer can send it.
    #[must_use]
    pub fn special() -> Self {
        Self::Symlink { target: T::default() }
    }

    /// True for [`Kind::special`].
    #[must_use]
    pub fn is_special(&self) -> bool {
        matches!(self, Self::Symlink { target } if target.as_ref().is_empty())
    }
}

/// One entry of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<P = TreePath, T = Box<[u8]>, A = Option<Arc<Attributes>>> {
    /// The path below the root.
    pub path: P,
    /// The kind of entry.
    pub kind: Kind<T>,
    /// Permission bits, within [`MODE_MASK`]; always 0o777 for a symlink.
    pub mode: u16,
    /// Modification time of the content.
    pub mtime: Time,
    /// The metadata that only options copy, if there is any.
    pub attributes: A,
}

/// A borrowed entry of a manifest.
pub type EntryRef<'a> = Entry<PathRef<'a>, &'a [u8], Option<&'a Arc<Attributes>>>;

impl<P, T, A> Entry<P, T, A> {
    /// True for a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory)
    }

    /// A regular file's length in bytes, 0 for all other kinds.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self.kind {
            Kind::File { size, .. } => size,
            Kind::Directory | Kind::Symlink { .. } => 0,
        }
    }
}

impl Entry {
    /// Borrows the entry.
    #[must_use]
    pub fn view(&self) -> EntryRef<'_> {
        let kind = match &self.kind {
            Kind::Directory => Kind::Directory,
            Kind::File { size, hash } => Kind::File { size: *size, hash: *hash },
            Kind::Symlink { target } => Kind::Symlink { target: &**target },
        };
        let attributes = self.attributes.as_ref();
        Entry { path: PathRef::from(&self.path), kind, mode: self.mode, mtime: self.mtime, attributes }
    }
}

impl EntryRef<'_> {
    /// Copies the entry into memory of its own.
    #[must_use]
    pub fn to_entry(self) -> Entry {
        let kind = match self.kind {
            Kind::Directory => Kind::Directory,
            Kind::File { size, hash } => Kind::File { size, hash },
            Kind::Symlink { target } => Kind::Symlink { target: target.into() },
        };
        let attributes = self.attributes.cloned();
        Entry { path: self.path.to_path(), kind, mode: self.mode, mtime: self.mtime, attributes }
    }

    /// The kind of a special file, if it is known.
    #[must_use]
    pub fn special(&self) -> Option<Special> {
        self.attributes.and_then(|attributes| attributes.special).filter(|_| self.kind.is_special())
    }
}
