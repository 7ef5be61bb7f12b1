//! `TreeId` and `Pair`: the identity of a tree's directory, and facts about a source and its copy.
//!
//! One side tells these facts to the other. They decide only whether deletions need consent.

use serde::{Deserialize, Serialize};

/// The identity of a directory, as hashes of facts that its system reports. They are compared for
/// equality only; 0 means unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TreeId {
    /// The filesystem: its type and the id that it keeps across mounts.
    pub filesystem: u32,
    /// The directory: its inode, and the inode's birth time, since filesystems reuse inode numbers.
    pub directory: u32,
    /// The machine, as of its last boot.
    pub boot: u32,
}

impl TreeId {
    /// True if both are the same directory, as far as the filesystem tells.
    #[must_use]
    pub fn is_same_directory(&self, other: &Self) -> bool {
        (self.filesystem, self.directory) == (other.filesystem, other.directory)
    }

    /// True if the machine was rebooted between the two.
    #[must_use]
    pub fn is_of_another_boot(&self, other: &Self) -> bool {
        self.boot != 0 && other.boot != 0 && self.boot != other.boot
    }
}

/// A source and its copy, as of the last time when the copy was complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pair {
    /// The source.
    pub source: TreeId,
    /// The copy.
    pub destination: TreeId,
    /// True if the source was empty.
    pub was_empty: bool,
    /// True if ksync made the copy's own directory, so that its mode and time follow the source's.
    pub is_own: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_distinguishes_directories_and_boots() {
        let tree_id = TreeId { filesystem: 1, directory: 2, boot: 4 };
        assert!(tree_id.is_same_directory(&TreeId { boot: 9, ..tree_id }));
        for other in [TreeId { filesystem: 9, ..tree_id }, TreeId { directory: 9, ..tree_id }] {
            assert!(!tree_id.is_same_directory(&other), "{other:?}");
        }
        assert!(tree_id.is_of_another_boot(&TreeId { boot: 9, ..tree_id }));
        assert!(!tree_id.is_of_another_boot(&TreeId { boot: 0, ..tree_id }), "not known");
    }
}
