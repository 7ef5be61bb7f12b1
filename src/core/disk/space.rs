//! Free space: what a filesystem has left, how reliable that number is, and the reserve for other
//! programs.

use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::fstatvfs;
use rustix::process::geteuid;

use crate::disk::error::{DiskError, DiskErrorKind, During};
use crate::disk::root::Root;
use crate::disk::stage::shares_extents;

/// Maximum bytes that a run leaves free: room for a shell, a log and a database's journal to report
/// that the disk is full.
const RESERVE_BYTES_MAX: u64 = 4 << 20;

/// Divisor: the reserve is at most this fraction of a filesystem, 64 KiB of 16 MiB.
const RESERVE_OF_TOTAL: u64 = 256;

/// Divisor: the reserve is at most this fraction of the free space at the start of the run. So a
/// nearly full disk still takes a small file.
const RESERVE_OF_FREE: u64 = 16;

/// Maximum bytes that are written between two queries of the free space: other programs write too.
const UNWATCHED_BYTES_MAX: u64 = 64 << 20;

/// The space that a filesystem has left for this user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Free bytes.
    pub bytes: u64,
    /// Total bytes, used or not.
    pub total_bytes: u64,
    /// Free inodes; `u64::MAX` if the filesystem does not count them.
    pub inodes: u64,
    /// Block size: a file's content is rounded up to it, in bytes.
    pub block_bytes: u64,
    /// True if a file occupies exactly its length. Unknown, hence false, where content is packed,
    /// shared or stored elsewhere.
    pub is_exact: bool,
    /// True if copies within the filesystem may occupy nothing.
    pub shares_extents: bool,
}

impl Space {
    /// Bytes that a run leaves free.
    #[must_use]
    pub fn reserve_bytes(&self) -> u64 {
        RESERVE_BYTES_MAX.min(self.total_bytes / RESERVE_OF_TOTAL).min(self.bytes / RESERVE_OF_FREE)
    }
}

impl Root {
    /// The space that the filesystem has left.
    ///
    /// # Errors
    /// The filesystem does not report it.
    pub fn space(&self) -> Result<Space, DiskError> {
        let path = self.path().as_os_str().as_bytes();
        let stat = fstatvfs(self.descriptor()).during("ask for the space in", path)?;
        // The superuser may use the blocks that are reserved for it.
        let is_root = geteuid().is_root();
        let (blocks, inodes) =
            if is_root { (stat.f_bfree, stat.f_ffree) } else { (stat.f_bavail, stat.f_favail) };
        Ok(Space {
            bytes: blocks.saturating_mul(stat.f_frsize),
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            inodes: if stat.f_files == 0 { u64::MAX } else { inodes },
            block_bytes: stat.f_frsize.max(1),
            is_exact: stat.f_blocks > 0 && self.stores_content_as_it_is(stat.f_files > 0),
            shares_extents: shares_extents(self.descriptor()),
        })
    }

    /// True if this filesystem neither packs content nor shares it unasked. An overlay reports the
    /// numbers of the filesystem below it. Only one thing is known of the filesystem below: Btrfs
    /// counts no inodes.
    #[cfg(target_os = "linux")]
    fn stores_content_as_it_is(&self, counts_inodes: bool) -> bool {
        use crate::disk::magic::{EXFAT, EXT, OVERLAY, TMPFS, VFAT, XFS, magic_of};

        match magic_of(self.descriptor()) {
            Some(EXT | XFS | TMPFS | VFAT | EXFAT) => true,
            Some(OVERLAY) => counts_inodes,
            _ => false,
        }
    }

    #[cfg(not(target_os = "linux"))]
    #[allow(clippy::unused_self)]
    fn stores_content_as_it_is(&self, _counts_inodes: bool) -> bool {
        false
    }
}

/// Keeps a run from filling a filesystem to its last block. Queries the free space only after the
/// promised bytes may have been written.
#[derive(Debug)]
pub struct Reserve {
    bytes: u64,
    /// Bytes that may be written before the next query.
    unwatched: AtomicU64,
}

impl Reserve {
    /// The reserve of a run that starts with this space; `None` if the numbers are not exact.
    #[must_use]
    pub fn of(space: &Space) -> Option<Self> {
        space.is_exact.then(|| Self { bytes: space.reserve_bytes(), unwatched: AtomicU64::new(0) })
    }

    /// Called before a write below `root` that takes between `at_least` and `at_most` bytes.
    ///
    /// # Errors
    /// [`DiskError::is_no_space`]: the write would leave less than the reserve.
    pub fn before_writing(&self, root: &Root, at_least: u64, at_most: u64) -> Result<(), DiskError> {
        let take = |left: u64| left.checked_sub(at_most);
        if self.unwatched.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            return Ok(());
        }
        // If the filesystem does not report its space, the write itself will fail.
        let Ok(space) = root.space() else { return Ok(()) };
        if space.bytes < self.bytes.saturating_add(at_least) {
            let path = root.path().as_os_str().as_bytes();
            return Err(DiskError::new("write to", path, DiskErrorKind::Reserve(space.bytes)));
        }
        // Several threads write, so only half of the free space is promised.
        let free = space.bytes.saturating_sub(self.bytes).saturating_sub(at_most);
        let promised = (free / 2).min(UNWATCHED_BYTES_MAX);
        self.unwatched.store(promised, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::testing::Fixture;

    fn space(bytes: u64, total_bytes: u64) -> Space {
        Space { bytes, total_bytes, inodes: 10, block_bytes: 4096, is_exact: true, shares_extents: false }
    }

    #[test]
    fn space_reports_the_filesystems_numbers() {
        let space = Fixture::new().root.space().unwrap();
        assert!(space.bytes > 0 && space.inodes > 0 && space.block_bytes > 0);
        assert!(space.total_bytes >= space.bytes);
    }

    #[test]
    fn the_reserve_is_small_beside_the_free_space() {
        assert_eq!(space(1 << 40, 1 << 41).reserve_bytes(), 4 << 20);
        assert_eq!(space(16 << 20, 16 << 20).reserve_bytes(), 64 << 10);
        assert_eq!(space(160 << 10, 1 << 40).reserve_bytes(), 10 << 10);
        assert_eq!(space(0, 1 << 40).reserve_bytes(), 0);
    }

    #[test]
    fn no_write_goes_into_the_reserve() {
        let fixture = Fixture::new();
        let free = fixture.root.space().unwrap();
        let reserve = Reserve { bytes: free.bytes / 2, unwatched: AtomicU64::new(0) };
        reserve.before_writing(&fixture.root, 1 << 10, 1 << 10).unwrap();
        assert!(reserve.unwatched.load(Ordering::Relaxed) <= UNWATCHED_BYTES_MAX);
        // A hole may be longer than the disk.
        reserve.before_writing(&fixture.root, 0, 1 << 60).unwrap();
        let error = reserve.before_writing(&fixture.root, free.bytes, free.bytes).unwrap_err();
        assert!(error.is_no_space(), "{error}");
        assert!(error.to_string().contains("reserve"), "{error}");
    }
}
