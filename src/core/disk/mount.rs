//! Mounts: which mount a directory is on, and which guarantees its filesystem gives.

use std::os::fd::AsFd;

use crate::disk::marker::Mount;

/// The data that a filesystem keeps in a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nature {
    /// Nothing at all.
    Volatile,
    /// Files, with the ctimes that they had.
    Lasting,
    /// Files, but their ctimes may differ after a mount.
    Forgetful,
}

/// The nature of a directory's filesystem. An unknown filesystem counts as `Forgetful`.
#[cfg(target_os = "linux")]
pub(crate) fn nature(directory: impl AsFd) -> Nature {
    use crate::disk::magic::{BCACHEFS, BTRFS, EXT, F2FS, NFS, OVERLAY, RAMFS, TMPFS, XFS, ZFS, magic_of};

    match magic_of(directory) {
        Some(TMPFS | RAMFS) => Nature::Volatile,
        Some(EXT | XFS | BTRFS | F2FS | OVERLAY | ZFS | BCACHEFS | NFS) => Nature::Lasting,
        _ => Nature::Forgetful,
    }
}

/// The mount of a directory; `None` if it cannot be told from others.
///
/// Before Linux 6.8 a new mount may reuse the number of an old one. The boot id differs after every
/// power cut, except that of a disk that is pulled out.
#[cfg(target_os = "linux")]
pub(crate) fn mount_of(directory: impl AsFd) -> Option<Mount> {
    use std::sync::OnceLock;

    use rustix::fs::{AtFlags, StatxFlags, statx};

    const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    static BOOT: OnceLock<Option<[u8; 16]>> = OnceLock::new();

    let boot = *BOOT.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let digits: String = text.trim().chars().filter(|&char| char != '-').collect();
        u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)
    });
    // The kernel reports the fields that it knows, among those that were requested.
    let wanted = [UNIQUE, StatxFlags::MNT_ID];
    let id = wanted.into_iter().find_map(|wanted| {
        let stat = statx(&directory, c"", AtFlags::EMPTY_PATH, wanted).ok()?;
        (stat.stx_mask & wanted.bits() != 0).then_some(stat.stx_mnt_id)
    })?;
    Some(Mount { boot: boot?, id })
}

/// All mounts of this process, as text; `None` if the system does not tell.
pub(crate) fn mounts() -> Option<Vec<u8>> {
    std::fs::read("/proc/self/mountinfo").ok()
}

/// True if a filesystem tells all changes to inotify: nobody changes its files but this kernel.
#[cfg(target_os = "linux")]
pub(crate) fn tells_changes(directory: impl AsFd) -> bool {
    use crate::disk::magic::{BCACHEFS, BTRFS, EXT, F2FS, OVERLAY, RAMFS, TMPFS, XFS, ZFS, magic_of};

    matches!(magic_of(directory), Some(EXT | XFS | BTRFS | F2FS | OVERLAY | ZFS | BCACHEFS | TMPFS | RAMFS))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn tells_changes(_directory: impl AsFd) -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn nature(_directory: impl AsFd) -> Nature {
    Nature::Lasting
}

/// The mount of a directory. The boot is identified by its time, which moves when the clock is set.
/// Then files are verified once without need.
#[cfg(not(target_os = "linux"))]
// The field's type differs between systems.
#[allow(clippy::unnecessary_cast)]
pub(crate) fn mount_of(directory: impl AsFd) -> Option<Mount> {
    use rustix::time::{ClockId, clock_gettime};

    /// Precision of the boot time, in seconds.
    const GRAIN: i64 = 10;

    let (now, up) = (clock_gettime(ClockId::Realtime), clock_gettime(ClockId::Monotonic));
    let boot = i128::from((now.tv_sec as i64 - up.tv_sec as i64 + GRAIN / 2) / GRAIN);
    let id = rustix::fs::fstat(directory).ok()?.st_dev as u64;
    Some(Mount { boot: boot.to_be_bytes(), id })
}

/// Flushes a whole filesystem to the disk.
///
/// # Errors
/// The disk did not take something, now or since the last such call.
#[cfg(target_os = "linux")]
pub(crate) fn sync(directory: impl AsFd) -> rustix::io::Result<()> {
    rustix::fs::syncfs(directory)
}

/// Flushes all filesystems to the disk.
///
/// # Errors
/// The disk did not take something.
#[cfg(not(target_os = "linux"))]
pub(crate) fn sync(directory: impl AsFd) -> rustix::io::Result<()> {
    rustix::fs::sync();
    #[cfg(target_vendor = "apple")]
    return rustix::fs::fcntl_fullfsync(directory);
    #[cfg(not(target_vendor = "apple"))]
    return rustix::fs::fsync(directory);
}

/// True if a [`sync`] would take only a moment: few pages wait for any disk.
pub(crate) fn is_quiet() -> bool {
    const QUIET_KIB: u64 = 32 << 10;
    let Ok(text) = std::fs::read_to_string("/proc/meminfo") else { return !cfg!(target_os = "linux") };
    let waiting = text.lines().filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        matches!(name, "Dirty" | "Writeback")
            .then(|| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())?
    });
    waiting.sum::<u64>() <= QUIET_KIB
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;

    use super::*;
    use crate::disk::testing::skip::needs;

    #[test]
    fn a_mount_is_recognised_and_differs_from_another() {
        let mount = |path: &str| mount_of(File::open(path).unwrap()).unwrap();
        assert_eq!(mount("/"), mount("/"));
        if needs(Path::new("/proc/self").exists(), "/proc is not mounted") {
            assert_ne!(mount("/"), mount("/proc"));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn proc_counts_as_a_filesystem_that_forgets_ctimes() {
        assert_eq!(nature(File::open("/proc").unwrap()), Nature::Forgetful);
    }
}
