//! `Scope`: a subtree set, the parts of a tree that an incremental round covers.
//!
//! An incremental round compares and changes entries in the scope and nothing else. The listing of
//! a scope must be a manifest like any other. So it includes the directories above the parts,
//! without their other entries.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::tree::manifest::Manifest;
use crate::tree::path::{PathError, TreePath};

/// Most parts of one scope. A round over more parts scans the whole tree, which then costs no more.
pub const PARTS_MAX: usize = 50_000;

/// One part of a tree, in its wire form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Bytes of its path.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// True if the part is recursive: it includes everything below the path.
    pub deep: bool,
}

/// Parts of a tree, in order. None is within another that is recursive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    parts: Vec<(TreePath, bool)>,
}

/// The relation of an entry to a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Neither the entry nor anything below it is in the scope.
    Outside,
    /// The entry is in the scope, and nothing below it is.
    Alone,
    /// Parts are below the entry.
    Above,
    /// The entry is in the scope with everything below it.
    Deep,
}

impl Scope {
    /// Makes a scope of these parts: paths, each with whether it is recursive.
    #[must_use]
    pub fn new(parts: impl IntoIterator<Item = (TreePath, bool)>) -> Self {
        let mut sorted: BTreeMap<TreePath, bool> = BTreeMap::new();
        for (path, deep) in parts {
            *sorted.entry(path).or_default() |= deep;
        }
        let mut scope = Self::default();
        for (path, deep) in sorted {
            // Paths below a directory follow it directly.
            let is_covered =
                scope.parts.last().is_some_and(|(last, last_deep)| *last_deep && path.is_below(last));
            if !is_covered {
                scope.parts.push((path, deep));
            }
        }
        scope
    }

    /// The parts in order.
    #[must_use]
    pub fn parts(&self) -> &[(TreePath, bool)] {
        &self.parts
    }

    /// True if there are no parts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The relation of an entry to the scope.
    #[must_use]
    pub fn reach(&self, path: &TreePath) -> Reach {
        let next = self.parts.partition_point(|(part, _)| part <= path);
        let before = next.checked_sub(1).and_then(|last| self.parts.get(last));
        match before {
            Some((part, true)) if part == path || path.is_below(part) => return Reach::Deep,
            _ if self.parts.get(next).is_some_and(|(part, _)| part.is_below(path)) => return Reach::Above,
            Some((part, false)) if part == path => return Reach::Alone,
            _ => {}
        }
        Reach::Outside
    }

    /// The names in `directory` (`None` is the root) that lead to parts, in order. Not meaningful
    /// for a directory within a recursive part.
    #[must_use]
    pub fn names_in(&self, directory: Option<&TreePath>) -> Vec<&[u8]> {
        let start =
            directory.map_or(0, |directory| self.parts.partition_point(|(part, _)| part <= directory));
        let depth = directory.map_or(0, |directory| directory.as_bytes().len() + 1);
        let below = self.parts.get(start..).unwrap_or_default().iter();
        let below = below.take_while(|(part, _)| directory.is_none_or(|directory| part.is_below(directory)));
        let mut names: Vec<&[u8]> = below
            .filter_map(|(part, _)| part.as_bytes().get(depth..)?.split(|&byte| byte == b'/').next())
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
        let parts = self.parts.iter().map(|(path, deep)| {
            let missing = ancestors(path).find(|above| !is_directory(above));
            match missing {
                Some(above) => (above, true),
                None => (path.clone(), *deep || !is_directory(path)),
            }
        });
        Self::new(parts)
    }

    /// The wire form.
    pub fn encode(&self) -> impl Iterator<Item = Part> {
        self.parts.iter().map(|(path, deep)| Part { path: path.as_bytes().to_vec(), deep: *deep })
    }

    /// Decodes the wire form, in any order.
    ///
    /// # Errors
    /// The reason why a path is invalid.
    pub fn decode(parts: impl IntoIterator<Item = Part>) -> Result<Self, PathError> {
        let parts: Result<Vec<_>, _> =
            parts.into_iter().map(|part| Ok((TreePath::new(part.path)?, part.deep))).collect();
        parts.map(Self::new)
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
    fn scope(text: &str) -> Scope {
        let parts = text.split_whitespace().map(|word| match word.strip_suffix('/') {
            Some(word) => (path(word), true),
            None => (path(word), false),
        });
        Scope::new(parts)
    }

    /// A tree in a line; a trailing slash marks a directory.
    fn tree(text: &str) -> Manifest {
        let entries = text.split_whitespace().map(|word| {
            let (word, kind) = match word.strip_suffix('/') {
                Some(word) => (word, Kind::Directory),
                None => (word, Kind::File { size: 0, hash: None }),
            };
            Entry { path: path(word), kind, mode: 0, mtime: Time::new(0, 0).unwrap() }
        });
        Manifest::new(entries.collect()).unwrap()
    }

    #[test]
    fn parts_are_in_order_and_none_is_within_a_recursive_one() {
        assert_eq!(scope("b a/x/ a/x/y a a.b/z"), scope("a a/x/ a.b/z b"));
        assert_eq!(scope("a/ a/b a/b/c/ a"), scope("a/"));
        assert_eq!(scope("a a/"), scope("a/"));
        assert_eq!(scope("a a/b").parts().len(), 2, "a directory by itself covers nothing");
        assert!(scope("").is_empty());
    }

    #[test]
    fn entry_is_outside_alone_above_or_deep() {
        let scope = scope("a/b a/d/ e g g/h");
        for (entry, reach) in [
            ("a", Reach::Above),
            ("a/b", Reach::Alone),
            ("a/b/c", Reach::Outside),
            ("a/b.c", Reach::Outside),
            ("a/c", Reach::Outside),
            ("a/d", Reach::Deep),
            ("a/d/x/y", Reach::Deep),
            ("a/d.x", Reach::Outside),
            ("e", Reach::Alone),
            ("f", Reach::Outside),
            ("g", Reach::Above),
            ("g/h", Reach::Alone),
            ("z", Reach::Outside),
        ] {
            assert_eq!(scope.reach(&path(entry)), reach, "{entry}");
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
        assert_eq!(Scope::decode(scope.encode()), Ok(scope));
        let part = Part { path: b"../x".to_vec(), deep: true };
        assert_eq!(Scope::decode([part]), Err(PathError::Dots));
    }
}
