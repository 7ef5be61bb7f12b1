//! Identification of a root's directory, by numbers that outlast a mount.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

use rustix::fs::fstatvfs;
use rustix::process::geteuid;

use crate::content::hash::Hash;
use crate::disk::root::Root;
use crate::tree::entry::{MODE_MASK, Time};
use crate::tree::tree_id::TreeId;

impl Root {
    /// Numbers that identify this directory. A number that the system does not report is 0.
    #[must_use]
    pub fn tree_id(&self) -> TreeId {
        let metadata = self.metadata();
        let inode = self.inode().ino;
        let born = metadata.and_then(|metadata| metadata.created().ok()?.duration_since(UNIX_EPOCH).ok());
        let born = born.unwrap_or_default().as_nanos().to_le_bytes();
        TreeId {
            filesystem: self.filesystem(),
            directory: number(&[&inode.to_le_bytes()[..], &born].concat()),
            boot: boot(),
        }
    }

    /// The directory's own mode and modification time, if a tree can hold them.
    #[must_use]
    pub fn own_metadata(&self) -> Option<(u16, Time)> {
        let metadata = self.metadata()?;
        let mtime = Time::new(metadata.mtime(), u32::try_from(metadata.mtime_nsec()).ok()?)?;
        Some(((metadata.mode() & u32::from(MODE_MASK)) as u16, mtime))
    }

    /// True if this user may set the directory's mode and time.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        geteuid().is_root() || self.metadata().is_some_and(|metadata| metadata.uid() == geteuid().as_raw())
    }

    fn metadata(&self) -> Option<std::fs::Metadata> {
        File::from(self.descriptor().try_clone_to_owned().ok()?).metadata().ok()
    }

    /// A number of the filesystem's type and its id, which most filesystems keep from one mount to
    /// the next.
    fn filesystem(&self) -> u32 {
        let id = fstatvfs(self.descriptor()).map_or(0, |stat| stat.f_fsid);
        number(&[id.to_le_bytes(), self.filesystem_type().to_le_bytes()].concat())
    }

    #[cfg(target_os = "linux")]
    // The field's type differs between architectures.
    #[allow(clippy::unnecessary_cast)]
    fn filesystem_type(&self) -> u64 {
        rustix::fs::fstatfs(self.descriptor()).map_or(0, |stat| stat.f_type as u64)
    }

    #[cfg(not(target_os = "linux"))]
    fn filesystem_type(&self) -> u64 {
        0
    }
}

/// A number of the machine's boot; 0 if the system does not report it.
fn boot() -> u32 {
    let id = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if id.is_empty() { 0 } else { number(&id) }
}

/// A 32-bit hash of these bytes.
fn number(bytes: &[u8]) -> u32 {
    Hash::of(bytes).as_bytes().first_chunk().map_or(0, |first| u32::from_le_bytes(*first))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::disk::testing::Fixture as Folder;
    use crate::disk::writable::WritableRoot;

    #[test]
    fn a_recreated_directory_has_another_number() {
        let folder = Folder::new();
        let at = folder.at("root");
        let first = WritableRoot::create(&at).unwrap().tree_id();
        assert!(Root::open(&at).unwrap().tree_id().is_same_directory(&first));
        fs::rename(&at, folder.at("moved")).unwrap();
        let second = WritableRoot::create(&at).unwrap().tree_id();
        assert!(!second.is_same_directory(&first));
        assert_eq!((second.filesystem, second.boot), (first.filesystem, first.boot));
        assert!(Root::open(&folder.at("moved")).unwrap().tree_id().is_same_directory(&first));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn another_filesystem_has_another_number() {
        let folder = Folder::new();
        let proc = Root::open("/proc".as_ref()).unwrap().tree_id();
        assert_ne!(folder.root.tree_id().filesystem, proc.filesystem);
        assert_ne!(proc.boot, 0);
    }
}
