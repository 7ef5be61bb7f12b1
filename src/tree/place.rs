//! `Place` and `Pair`: which directory a tree is in, and what was known of a source and its copy.
//!
//! Both are facts that one side tells the other. They decide only whether deletions need consent.

use serde::{Deserialize, Serialize};

/// Which directory, as hashes of what its system says. They are compared for equality only; 0 is
/// not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Place {
    /// The filesystem: its type and the id that it keeps from one mount to the next.
    pub filesystem: u32,
    /// The directory: its inode, and when that was made, since filesystems give its number to a new
    /// one again.
    pub directory: u32,
    /// The machine, since it was started.
    pub boot: u32,
}

impl Place {
    /// Whether both are the same directory, as far as the filesystem tells.
    #[must_use]
    pub fn is_same_directory(&self, other: &Self) -> bool {
        (self.filesystem, self.directory) == (other.filesystem, other.directory)
    }

    /// Whether the machine was started anew between both.
    #[must_use]
    pub fn is_of_another_boot(&self, other: &Self) -> bool {
        self.boot != 0 && other.boot != 0 && self.boot != other.boot
    }
}

/// A source and its copy, when the copy was complete last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pair {
    /// The source.
    pub source: Place,
    /// The copy.
    pub destination: Place,
    /// Whether the source held nothing.
    pub was_empty: bool,
    /// Whether ksync made the copy's own directory, so that its mode and time follow the source's.
    pub is_own: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_told_from_others_and_a_start_of_the_machine_too() {
        let place = Place { filesystem: 1, directory: 2, boot: 4 };
        assert!(place.is_same_directory(&Place { boot: 9, ..place }));
        for other in [Place { filesystem: 9, ..place }, Place { directory: 9, ..place }] {
            assert!(!place.is_same_directory(&other), "{other:?}");
        }
        assert!(place.is_of_another_boot(&Place { boot: 9, ..place }));
        assert!(!place.is_of_another_boot(&Place { boot: 0, ..place }), "not known");
    }
}
