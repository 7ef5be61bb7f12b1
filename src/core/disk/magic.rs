//! Numbers of filesystem types, from linux/magic.h and statfs(2).

use std::os::fd::AsFd;

/// ext2, ext3 and ext4.
pub(crate) const EXT: u32 = 0xef53;
pub(crate) const XFS: u32 = 0x5846_5342;
pub(crate) const BTRFS: u32 = 0x9123_683e;
pub(crate) const F2FS: u32 = 0xf2f5_2010;
pub(crate) const OVERLAY: u32 = 0x794c_7630;
pub(crate) const ZFS: u32 = 0x2fc1_2fc1;
pub(crate) const BCACHEFS: u32 = 0xca45_1a4e;
pub(crate) const NFS: u32 = 0x6969;
/// SMB 2 and 3.
pub(crate) const SMB: u32 = 0xfe53_4d42;
pub(crate) const PROC: u32 = 0x9fa0;
pub(crate) const TMPFS: u32 = 0x0102_1994;
pub(crate) const RAMFS: u32 = 0x8584_58f6;
pub(crate) const VFAT: u32 = 0x4d44;
pub(crate) const EXFAT: u32 = 0x2011_bab0;

/// The type of a file's filesystem; `None` if the system does not tell.
pub(crate) fn magic_of(file: impl AsFd) -> Option<u32> {
    // The field's width differs between architectures, and no number has more than 32 bits.
    rustix::fs::fstatfs(file).ok().map(|stat| stat.f_type as u32)
}
