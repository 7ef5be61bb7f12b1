//! `Kept`: parts of a destination from which nothing is removed, whatever the source holds.

use crate::tree::path::TreePath;

/// Paths that stay with everything below them: filesystems that are mounted below the root, and
/// directories whose content could not be listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// In order; none is below another.
    tops: Vec<TreePath>,
}

impl Kept {
    /// Keeps these paths, and everything below them.
    #[must_use]
    pub fn new(mut paths: Vec<TreePath>) -> Self {
        paths.sort_unstable();
        let mut tops: Vec<TreePath> = Vec::new();
        for path in paths {
            // Paths below a directory follow it directly.
            if tops.last().is_none_or(|last| *last != path && !path.is_below(last)) {
                tops.push(path);
            }
        }
        Self { tops }
    }

    /// True if an entry must not be removed: it is such a path, is below one, or holds one.
    #[must_use]
    pub fn holds(&self, path: &TreePath) -> bool {
        let next = self.tops.partition_point(|top| top <= path);
        let before = next.checked_sub(1).and_then(|last| self.tops.get(last));
        before.is_some_and(|top| top == path || path.is_below(top))
            || self.tops.get(next).is_some_and(|top| top.is_below(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn paths_above_at_or_below_stay_and_neighbours_go() {
        let kept = Kept::new(["m/b", "x", "m/b/c", "m.x"].map(path).to_vec());
        for stays in ["m", "m/b", "m/b/c", "m/b/c/d", "m/b/z", "x", "x/y", "m.x"] {
            assert!(kept.holds(&path(stays)), "{stays}");
        }
        for goes in ["a", "m/a", "m/b.c", "m/c", "m.", "xx", "z"] {
            assert!(!kept.holds(&path(goes)), "{goes}");
        }
        assert!(!Kept::default().holds(&path("a")));
    }
}
