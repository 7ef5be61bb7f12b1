//! `PathRef`: a borrowed [`TreePath`] in two pieces, its directory and its name.
//!
//! A manifest stores the full path of each directory once, and of all other entries only the name.
//! So a borrowed path has no contiguous bytes to lend.

use std::cmp::Ordering;
use std::fmt;

use crate::tree::path::{TreePath, escape};

/// A borrowed path: checked and ordered as a [`TreePath`] is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PathRef<'a> {
    directory: Option<&'a [u8]>,
    name: &'a [u8],
}

impl<'a> PathRef<'a> {
    /// The path of `name` in `directory` (`None` is the root). Both must be parts of a checked
    /// path.
    pub(super) fn of_parts(directory: Option<&'a [u8]>, name: &'a [u8]) -> Self {
        Self { directory, name }
    }

    /// The last component.
    #[must_use]
    pub fn name(self) -> &'a [u8] {
        self.name
    }

    /// The bytes of the directory that holds this entry; `None` if it is the root.
    #[must_use]
    pub fn directory(self) -> Option<&'a [u8]> {
        self.directory
    }

    /// The directory that holds this entry; `None` if it is the root.
    #[must_use]
    pub fn parent(self) -> Option<Self> {
        let directory = self.directory?;
        let slash = directory.iter().rposition(|&byte| byte == b'/');
        let above = slash.and_then(|slash| directory.get(..slash));
        let name = slash.map_or(Some(directory), |slash| directory.get(slash + 1..))?;
        Some(Self { directory: above, name })
    }

    /// The components in order, at least one.
    pub fn components(self) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        let above = self.directory.map(|directory| directory.split(|&byte| byte == b'/'));
        above.into_iter().flatten().chain(std::iter::once(self.name))
    }

    /// Length of the path in bytes, never 0.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(self) -> usize {
        self.directory.map_or(0, |directory| directory.len() + 1) + self.name.len()
    }

    /// The path's bytes, with `/` between components.
    #[must_use]
    pub fn to_vec(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len());
        if let Some(directory) = self.directory {
            bytes.extend_from_slice(directory);
            bytes.push(b'/');
        }
        bytes.extend_from_slice(self.name);
        bytes
    }

    /// Copies the path into memory of its own.
    #[must_use]
    pub fn to_path(self) -> TreePath {
        TreePath::of_checked(self.to_vec())
    }

    /// True if this path is anywhere below `directory`.
    #[must_use]
    pub fn is_below<'p>(self, directory: impl Into<PathRef<'p>>) -> bool {
        let (above, top) = (self.directory.unwrap_or_default(), directory.into());
        let rest = match top.directory {
            None => above.strip_prefix(top.name),
            Some(directory) => above
                .strip_prefix(directory)
                .and_then(|rest| rest.strip_prefix(b"/"))
                .and_then(|rest| rest.strip_prefix(top.name)),
        };
        self.directory.is_some() && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    }

    /// True if these are the path's bytes.
    pub(super) fn is(self, path: &[u8]) -> bool {
        let Some(above) = self.directory else { return path == self.name };
        let rest = path.strip_prefix(above).and_then(|rest| rest.strip_prefix(b"/"));
        rest == Some(self.name)
    }

    /// Number of bytes at the beginning that `other` shares.
    pub(super) fn shared_bytes(self, other: &[u8]) -> usize {
        let common = |one: &[u8], other: &[u8]| one.iter().zip(other).take_while(|(a, b)| a == b).count();
        let Some(above) = self.directory else { return common(self.name, other) };
        match other.strip_prefix(above).map(<[u8]>::split_first) {
            Some(Some((b'/', rest))) => above.len() + 1 + common(self.name, rest),
            Some(_) => above.len(),
            None => common(above, other),
        }
    }

    /// Turns `bytes` into this path's bytes; the first `kept` of them are so already.
    pub(super) fn write_to(self, bytes: &mut Vec<u8>, kept: usize) {
        bytes.truncate(kept);
        if let Some(above) = self.directory {
            bytes.extend_from_slice(above.get(kept..).unwrap_or_default());
            bytes.extend((kept <= above.len()).then_some(b'/'));
        }
        let above_bytes = self.directory.map_or(0, |above| above.len() + 1);
        bytes.extend_from_slice(self.name.get(kept.saturating_sub(above_bytes)..).unwrap_or_default());
    }

    fn bytes(self) -> impl Iterator<Item = u8> {
        let above = self.directory.unwrap_or_default().iter().chain(self.directory.map(|_| &b'/'));
        above.chain(self.name).copied()
    }
}

/// Ranks bytes so that comparing ranks is the same as comparing component by component.
fn rank(byte: u8) -> u16 {
    if byte == b'/' { 0 } else { u16::from(byte) + 1 }
}

impl Ord for PathRef<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        // Neighbours in a tree share their directory, and a name has no slash.
        if self.directory == other.directory {
            return self.name.cmp(other.name);
        }
        if let (Some(one), Some(another)) = (self.directory, other.directory)
            && let Some((&one, &another)) = one.iter().zip(another).find(|(one, another)| one != another)
        {
            return rank(one).cmp(&rank(another));
        }
        self.bytes().map(rank).cmp(other.bytes().map(rank))
    }
}

impl PartialOrd for PathRef<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<'a> From<&'a TreePath> for PathRef<'a> {
    fn from(path: &'a TreePath) -> Self {
        let (directory, name) = path.split_last();
        Self { directory, name }
    }
}

impl<'a> From<&PathRef<'a>> for PathRef<'a> {
    fn from(path: &PathRef<'a>) -> Self {
        *path
    }
}

impl From<PathRef<'_>> for TreePath {
    fn from(path: PathRef<'_>) -> Self {
        path.to_path()
    }
}

impl PartialEq<TreePath> for PathRef<'_> {
    fn eq(&self, other: &TreePath) -> bool {
        *self == PathRef::from(other)
    }
}

impl fmt::Debug for PathRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", escape(&self.to_vec()))
    }
}

impl fmt::Display for PathRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn borrowed_path_is_ordered_nested_and_split_as_its_owner() {
        let texts = [
            "a", "a/b", "a/b/c", "a/b/c/d", "a/b.c", "a.b", "a b", "a b/c", "b", "ab", "ab/c", "a/bc/d",
            "a/b/cd", "b/a", "\u{e9}/x",
        ];
        let paths = texts.map(path);
        for one in &paths {
            let view = PathRef::from(one);
            assert_eq!(view.to_path(), *one);
            assert_eq!(view.to_vec(), one.as_bytes());
            assert_eq!(view.len(), one.as_bytes().len());
            assert_eq!(view.parent().map(PathRef::to_path), one.parent());
            assert!(view.components().eq(one.components()));
            assert!(view.components().rev().eq(one.components().rev()));
            assert_eq!(view.to_string(), one.to_string());
            for other in &paths {
                assert_eq!(view.cmp(&PathRef::from(other)), one.cmp(other), "{one} {other}");
                assert_eq!(view.is_below(other), one.is_below(other), "{one} {other}");
                assert_eq!(view == *other, one == other);
                assert_eq!(view.is(other.as_bytes()), one == other);
                let shared = one.as_bytes().iter().zip(other.as_bytes()).take_while(|(a, b)| a == b).count();
                assert_eq!(view.shared_bytes(other.as_bytes()), shared, "{one} {other}");
                let mut bytes = other.as_bytes().to_vec();
                view.write_to(&mut bytes, shared);
                assert_eq!(bytes, one.as_bytes(), "{one} {other}");
            }
        }
    }
}
