//! Path resolution: opens a path below a directory without leaving that directory on the way.
//!
//! Linux does it in one call (`openat2`). Other systems, and kernels or sandboxes without that
//! call, walk the path one component at a time. Each component is opened from the previous one as
//! "a directory and not a link".
//!
//! A source whose links the user wants to be followed is the one exception: its paths lead wherever
//! the links lead. Whoever reads an entry compares its identity with the listed one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

/// Longest path that the kernel takes in one call: `PATH_MAX` is 4096 with the final NUL, and 1024
/// on systems other than Linux.
const PIECE_BYTES_MAX: usize = if cfg!(target_os = "linux") { 4095 } else { 1023 };

/// Access that is enough for the base of further names. On Linux it needs no right to read.
#[cfg(target_os = "linux")]
const ACCESS: OFlags = OFlags::PATH;
#[cfg(not(target_os = "linux"))]
const ACCESS: OFlags = OFlags::RDONLY;

/// Flags for an intermediate directory.
pub(crate) const PASSAGE: OFlags =
    ACCESS.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Flags for reading a directory or setting its metadata.
pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The method that keeps a path inside its root on this system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolver {
    /// One `openat2` that refuses links and ways out.
    #[cfg(target_os = "linux")]
    Kernel,
    /// Component by component.
    Walk,
    /// By the system's own rules, through links and out of the directory. Only for a source whose
    /// links the user wants to be followed.
    Follow {
        /// Files at the end of a path may be links.
        files: bool,
    },
}

impl Resolver {
    /// The best method that works here: some kernels and sandboxes refuse `openat2`, each with its
    /// own error.
    #[cfg(target_os = "linux")]
    pub(crate) fn probe(directory: BorrowedFd<'_>) -> Self {
        if beneath(directory, b".", PASSAGE).is_ok() { Self::Kernel } else { Self::Walk }
    }

    /// Walking is the only method on this system.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn probe(_directory: BorrowedFd<'_>) -> Self {
        Self::Walk
    }

    /// Opens `path`, the bytes of a `TreePath`, below `root`. No link is followed, not even the
    /// last component.
    pub(crate) fn open(
        self,
        root: BorrowedFd<'_>,
        path: &[u8],
        flags: OFlags,
    ) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match self {
            #[cfg(target_os = "linux")]
            Self::Kernel => match in_pieces(root, path, PASSAGE, flags, beneath) {
                // The kernel may give up when directories are renamed meanwhile.
                Err(Errno::AGAIN) => walk(root, path, flags),
                result => result,
            },
            Self::Walk => walk(root, path, flags),
            Self::Follow { files } if files || flags.contains(OFlags::DIRECTORY) => {
                follow(root, path, flags.difference(OFlags::NOFOLLOW))
            }
            Self::Follow { .. } => follow(root, path, flags),
        }
    }
}

/// Opens a path through all links.
fn follow(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let open = |at: BorrowedFd<'_>, path: &[u8], flags| openat(at, path, flags, Mode::empty());
    in_pieces(root, path, PASSAGE.difference(OFlags::NOFOLLOW), flags, open)
}

#[cfg(target_os = "linux")]
fn beneath(base: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    use rustix::fs::{ResolveFlags, openat2};
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(base, path, flags, Mode::empty(), resolve)
}

/// Opens a path that may be longer than one call can take. `passage` are the flags for the
/// directories on the way.
fn in_pieces(
    root: BorrowedFd<'_>,
    path: &[u8],
    passage: OFlags,
    flags: OFlags,
    open: impl Fn(BorrowedFd<'_>, &[u8], OFlags) -> rustix::io::Result<OwnedFd>,
) -> rustix::io::Result<OwnedFd> {
    let mut base: Option<OwnedFd> = None;
    let mut rest = path;
    while let Some(head) = rest.get(..PIECE_BYTES_MAX).filter(|_| rest.len() > PIECE_BYTES_MAX) {
        let slash = head.iter().rposition(|&byte| byte == b'/').ok_or(Errno::NAMETOOLONG)?;
        let (head, tail) = rest.split_at(slash);
        let at = base.as_ref().map_or(root, |base| base.as_fd());
        base = Some(open(at, head, passage)?);
        rest = tail.get(1..).unwrap_or_default();
    }
    open(base.as_ref().map_or(root, |base| base.as_fd()), rest, flags)
}

fn walk(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let mut base: Option<OwnedFd> = None;
    let mut components = path.split(|&byte| byte == b'/').peekable();
    while let Some(name) = components.next() {
        // A `TreePath` has neither, but the walk must not depend on that.
        if name.is_empty() || name == b".." {
            return Err(Errno::INVAL);
        }
        let at = base.as_ref().map_or(root, |base| base.as_fd());
        let last = components.peek().is_none();
        let next = openat(at, name, if last { flags } else { PASSAGE }, Mode::empty())?;
        if last {
            return Ok(next);
        }
        base = Some(next);
    }
    Err(Errno::INVAL)
}
