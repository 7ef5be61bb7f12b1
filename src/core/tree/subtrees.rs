//! `SubtreeSet`: the parts of a tree that an incremental round covers, its scope.
//!
//! An incremental round compares and changes entries in the scope and nothing else. The listing of
//! a scope must be a manifest like any other. So it includes the directories above the parts,
//! without their other entries.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::tree::manifest::Manifest;
use crate::tree::path::{PathError, TreePath};

/// Most parts of one scope. A round over more parts scans the whole tree, which then costs no more.
pub const SUBTREES_MAX: usize = 50_000;

/// One part of a tree, in its wire form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subtree {
    /// Bytes of its path.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// True if the part is recursive: it includes everything below the path.
    pub recursive: bool,
}

/// Parts of a tree, in order. None is within another that is recursive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubtreeSet {
    subtrees: Vec<(TreePath, bool)>,
}

/// The relation of an entry to a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// Neither the entry nor anything below it is in the scope.
    Outside,
    /// The entry is in the scope, and nothing below it is.
    Alone,
    /// Parts are below the entry.
    Above,
    /// The entry is in the scope with everything below it.
    Recursive,
}

impl SubtreeSet {
    /// Makes a scope of these parts: paths, each with whether it is recursive.
    #[must_use]
    pub fn new(subtrees: impl IntoIterator<Item = (TreePath, bool)>) -> Self {
        let mut sorted: BTreeMap<TreePath, bool> = BTreeMap::new();
        for (path, recursive) in subtrees {
            *sorted.entry(path).or_default() |= recursive;
        }
        let mut scope = Self::default();
        for (path, recursive) in sorted {
            // Paths below a directory follow it directly.
            let is_covered = scope
                .subtrees
                .last()
                .is_some_and(|(last, last_recursive)| *last_recursive && path.is_below(last));
            if !is_covered {
                scope.subtrees.push((path, recursive));
            }
        }
        scope
    }

    /// The parts in order.
    #[must_use]
    pub fn subtrees(&self) -> &[(TreePath, bool)] {
        &self.subtrees
    }

    /// True if there are no parts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.subtrees.is_empty()
    }

    /// The relation of an entry to the scope.
    #[must_use]
    pub fn coverage(&self, path: &TreePath) -> Coverage {
        let next = self.subtrees.partition_point(|(subtree, _)| subtree <= path);
        let before = next.checked_sub(1).and_then(|last| self.subtrees.get(last));
        match before {
            Some((subtree, true)) if subtree == path || path.is_below(subtree) => return Coverage::Recursive,
            _ if self.subtrees.get(next).is_some_and(|(subtree, _)| subtree.is_below(path)) => {
                return Coverage::Above;
            }
            Some((subtree, false)) if subtree == path => return Coverage::Alone,
            _ => {}
        }
        Coverage::Outside
    }

    /// The names in `directory` (`None` is the root) that lead to parts, in order. Not meaningful
    /// for a directory within a recursive part.
    #[must_use]
    pub fn names_in(&self, directory: Option<&TreePath>) -> Vec<&[u8]> {
        let start = directory
            .map_or(0, |directory| self.subtrees.partition_point(|(subtree, _)| subtree <= directory));
        let depth = directory.map_or(0, |directory| directory.as_bytes().len() + 1);
        let below = self.subtrees.get(start..).unwrap_or_default().iter();
        let below =
            below.take_while(|(subtree, _)| directory.is_none_or(|directory| subtree.is_below(directory)));
        let mut names: Vec<&[u8]> = below
            .filter_map(|(subtree, _)| subtree.as_bytes().get(depth..)?.split(|&byte| byte == b'/').next())
            .collect();
        names.dedup();
        names
    }

    /// The scope that the other side must scan, given this side's scan of this one. A path that is
    /// no directory here may be one there, so its part becomes recursive. If a directory above a
    /// part no longer exists, that directory is the changed part.
    #[must_use]
    pub fn as_found(&self, found: &Manifest) -> Self {
        let is_directory = |path: &TreePath| {
            found.position(path).and_then(|id| found.get(id)).is_some_and(|entry| entry.is_directory())
        };
        let subtrees = self.subtrees.iter().map(|(path, recursive)| {
            let missing = ancestors(path).find(|above| !is_directory(above));
            match missing {
                Some(above) => (above, true),
                None => (path.clone(), *recursive || !is_directory(path)),
            }
        });
        Self::new(subtrees)
    }

    /// The wire form.
    pub fn encode(&self) -> impl Iterator<Item = Subtree> {
        self.subtrees
            .iter()
            .map(|(path, recursive)| Subtree { path: path.as_bytes().to_vec(), recursive: *recursive })
    }

    /// Decodes the wire form, in any order.
    ///
    /// # Errors
    /// The reason why a path is invalid.
    pub fn decode(subtrees: impl IntoIterator<Item = Subtree>) -> Result<Self, PathError> {
        let subtrees: Result<Vec<_>, _> = subtrees
            .into_iter()
            .map(|subtree| Ok((TreePath::new(subtree.path)?, subtree.recursive)))
            .collect();
        subtrees.map(Self::new)
    }
}

/// The directories above a path, from the top.
fn ancestors(path: &TreePath) -> impl Iterator<Item = TreePath> {
    let mut above: Vec<TreePath> = std::iter::successors(path.parent(), TreePath::parent).collect();
    above.reverse();
    above.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::entry::{Entry, Kind, Time};

    fn path(text: &str) -> TreePath {
        TreePath::new(text.as_bytes()).unwrap()
    }

    /// Parts in a line; a trailing slash marks a recursive one.
    fn scope(text: &str) -> SubtreeSet {
        let subtrees = text.split_whitespace().map(|word| match word.strip_suffix('/') {
            Some(word) => (path(word), true),
            None => (path(word), false),
        });
        SubtreeSet::new(subtrees)
    }

    /// A tree in a line; a trailing slash marks a directory.
    fn tree(text: &str) -> Manifest {
        let entries = text.split_whitespace().map(|word| {
            let (word, kind) = match word.strip_suffix('/') {
                Some(word) => (word, Kind::Directory),
                None => (word, Kind::File { size: 0, hash: None }),
            };
            Entry { path: path(word), kind, mode: 0, mtime: Time::new(0, 0).unwrap(), attributes: None }
        });
        Manifest::new(entries.collect()).unwrap()
    }

    #[test]
    fn parts_are_in_order_and_none_is_within_a_recursive_one() {
        assert_eq!(scope("b a/x/ a/x/y a a.b/z"), scope("a a/x/ a.b/z b"));
        assert_eq!(scope("a/ a/b a/b/c/ a"), scope("a/"));
        assert_eq!(scope("a a/"), scope("a/"));
        assert_eq!(scope("a a/b").subtrees().len(), 2, "a directory by itself covers nothing");
        assert!(scope("").is_empty());
    }

    #[test]
    fn entry_is_outside_alone_above_or_deep() {
        let scope = scope("a/b a/d/ e g g/h");
        for (entry, coverage) in [
            ("a", Coverage::Above),
            ("a/b", Coverage::Alone),
            ("a/b/c", Coverage::Outside),
            ("a/b.c", Coverage::Outside),
            ("a/c", Coverage::Outside),
            ("a/d", Coverage::Recursive),
            ("a/d/x/y", Coverage::Recursive),
            ("a/d.x", Coverage::Outside),
            ("e", Coverage::Alone),
            ("f", Coverage::Outside),
            ("g", Coverage::Above),
            ("g/h", Coverage::Alone),
            ("z", Coverage::Outside),
        ] {
            assert_eq!(scope.coverage(&path(entry)), coverage, "{entry}");
        }
    }

    #[test]
    fn names_in_a_directory_lead_to_parts() {
        let scope = scope("a/b/c a/b/d a/e/ a.b f/g");
        assert_eq!(scope.names_in(None), [&b"a"[..], b"a.b", b"f"]);
        assert_eq!(scope.names_in(Some(&path("a"))), [&b"b"[..], b"e"]);
        assert_eq!(scope.names_in(Some(&path("a/b"))), [&b"c"[..], b"d"]);
        assert!(scope.names_in(Some(&path("a.b"))).is_empty() && scope.names_in(Some(&path("x"))).is_empty());
    }

    #[test]
    fn part_that_is_no_directory_or_gone_becomes_recursive() {
        let found = tree("a/ a/b a/d/ f");
        for (looked_at, effective) in [
            ("a/b", "a/b/"),
            ("a/d", "a/d"),
            ("a/d/", "a/d/"),
            ("a/gone", "a/gone/"),
            ("a/d/gone/x/y a/d/z", "a/d/gone/ a/d/z/"),
            ("f/was/directory", "f/"),
            ("gone/x gone/y", "gone/"),
            ("a/b a", "a a/b/"),
        ] {
            assert_eq!(scope(looked_at).as_found(&found), scope(effective), "{looked_at}");
        }
    }

    #[test]
    fn scope_survives_the_wire_and_bad_paths_do_not() {
        let scope = scope("a/b c/");
        assert_eq!(SubtreeSet::decode(scope.encode()), Ok(scope));
        let subtree = Subtree { path: b"../x".to_vec(), recursive: true };
        assert_eq!(SubtreeSet::decode([subtree]), Err(PathError::Dots));
    }
}
