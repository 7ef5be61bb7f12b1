//! `Scope`: the parts of a tree that a round looks at, where it does not look at all of it.
//!
//! A round over a scope compares and changes what is in the scope and nothing else. So that what it lists is a
//! manifest like any other, the directories above its parts are listed too, without what else is in them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::tree::manifest::Manifest;
use crate::tree::path::{PathError, TreePath};

/// Most parts of one scope. A round over more looks at the whole tree, which costs no more then.
pub const PARTS_MAX: usize = 50_000;

/// One part of a tree, as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Bytes of its path.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Whether everything below it belongs to it.
    pub deep: bool,
}

/// Parts of a tree, in order, none within another that is deep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    parts: Vec<(TreePath, bool)>,
}

/// How an entry stands to a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It has nothing to do with it.
    Outside,
    /// It belongs to it, and nothing below it does.
    Alone,
    /// Parts lie below it.
    Above,
    /// It belongs to it with everything below it.
    Deep,
}

impl Scope {
    /// A scope of these parts: paths, each with whether everything below it belongs to it.
    #[must_use]
    pub fn new(parts: impl IntoIterator<Item = (TreePath, bool)>) -> Self {
        let mut sorted: BTreeMap<TreePath, bool> = BTreeMap::new();
        for (path, deep) in parts {
            *sorted.entry(path).or_default() |= deep;
        }
        let mut scope = Self::default();
        for (path, deep) in sorted {
            // What lies below a directory follows it directly.
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

    /// Whether there are no parts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// How an entry stands to the scope.
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

    /// The names in `directory` (`None` is the root) that lead to parts, in order. For a directory that belongs to
    /// the scope with everything below it that is not the question.
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

    /// The scope in which the other side has to look, once it is known what is in this one: what is no directory here
    /// may be one there, so it counts with everything below it; and where a directory above a part is not there any
    /// more, that is what has changed.
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

    /// Reads the wire form, in whatever order.
    ///
    /// # Errors
    /// A path is none.
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

    /// Parts in a line; one that ends in a slash is deep.
    fn scope(text: &str) -> Scope {
        let parts = text.split_whitespace().map(|word| match word.strip_suffix('/') {
            Some(word) => (path(word), true),
            None => (path(word), false),
        });
        Scope::new(parts)
    }

    /// A tree in a line; what ends in a slash is a directory.
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
    fn parts_are_in_order_and_none_lies_within_a_deep_one() {
        assert_eq!(scope("b a/x/ a/x/y a a.b/z"), scope("a a/x/ a.b/z b"));
        assert_eq!(scope("a/ a/b a/b/c/ a"), scope("a/"));
        assert_eq!(scope("a a/"), scope("a/"));
        assert_eq!(scope("a a/b").parts().len(), 2, "a directory by itself covers nothing");
        assert!(scope("").is_empty());
    }

    #[test]
    fn an_entry_is_outside_alone_above_or_deep() {
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
    fn the_names_in_a_directory_lead_to_parts() {
        let scope = scope("a/b/c a/b/d a/e/ a.b f/g");
        assert_eq!(scope.names_in(None), [&b"a"[..], b"a.b", b"f"]);
        assert_eq!(scope.names_in(Some(&path("a"))), [&b"b"[..], b"e"]);
        assert_eq!(scope.names_in(Some(&path("a/b"))), [&b"c"[..], b"d"]);
        assert!(scope.names_in(Some(&path("a.b"))).is_empty() && scope.names_in(Some(&path("x"))).is_empty());
    }

    #[test]
    fn what_is_no_directory_or_gone_counts_with_all_below_it() {
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
    fn a_scope_survives_the_wire_and_bad_paths_do_not() {
        let scope = scope("a/b c/");
        assert_eq!(Scope::decode(scope.encode()), Ok(scope));
        let part = Part { path: b"../x".to_vec(), deep: true };
        assert_eq!(Scope::decode([part]), Err(PathError::Dots));
    }
}
