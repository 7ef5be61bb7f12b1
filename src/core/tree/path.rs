//! `TreePath`: the path of an entry below a root, checked once when it is made.
//!
//! Every name that a peer can send becomes a `TreePath` or an error before any other code sees it.
//! So no other code has to ask whether a name climbs out of its root.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

/// The directory for unfinished files, directly below every destination root. No tree may contain
/// it.
pub const STATE_DIR: &str = ".ksync";

/// Longest component in bytes: the limit of every common filesystem (`NAME_MAX`).
pub const COMPONENT_BYTES_MAX: usize = 255;

/// Longest path, in bytes: twice Linux's `PATH_MAX`. Paths are walked by directory handles, so the
/// kernel's limit does not bind. But a peer must not be able to grow a path without end.
pub const PATH_BYTES_MAX: usize = 8192;

/// The reason why a name is not a `TreePath`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The path has no bytes.
    #[error("the path is empty")]
    Empty,
    /// The path begins with `/`.
    #[error("the path is absolute")]
    Absolute,
    /// Two slashes follow each other, or the path ends in one.
    #[error("the path has an empty component")]
    EmptyComponent,
    /// A component is `.` or `..`.
    #[error("the path has a component `.` or `..`")]
    Dots,
    /// The path holds a zero byte.
    #[error("the path holds a NUL byte")]
    Nul,
    /// A component is longer than [`COMPONENT_BYTES_MAX`].
    #[error("a component of {0} bytes is longer than 255")]
    ComponentTooLong(usize),
    /// The path is longer than [`PATH_BYTES_MAX`].
    #[error("a path of {0} bytes is longer than 8192")]
    TooLong(usize),
    /// A component is [`STATE_DIR`], in any mixture of cases.
    #[error("`.ksync` is reserved for ksync's own files")]
    Reserved,
}

/// A relative path of one or more components; bytes, not text. No component is empty, `.`, `..` or
/// `.ksync`.
///
/// Paths are ordered component by component, so a directory stands directly before everything in
/// it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TreePath(Box<[u8]>);

impl TreePath {
    /// Checks `bytes`.
    ///
    /// # Errors
    /// The rule of [`PathError`] that the bytes break.
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Result<Self, PathError> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Err(PathError::Empty);
        }
        if bytes.len() > PATH_BYTES_MAX {
            return Err(PathError::TooLong(bytes.len()));
        }
        if bytes.starts_with(b"/") {
            return Err(PathError::Absolute);
        }
        bytes.split(|&byte| byte == b'/').try_for_each(check_component)?;
        Ok(Self(bytes))
    }

    /// Makes a path of bytes that were checked already.
    pub(super) fn of_checked(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }

    /// The child `name` of this directory.
    ///
    /// # Errors
    /// As [`TreePath::new`]. A `name` with a slash in it is more than one component, which is
    /// allowed.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        bytes.push(b'/');
        bytes.extend_from_slice(name);
        Self::new(bytes)
    }

    /// The path's bytes, with `/` between components.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The components in order, at least one.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/')
    }

    /// The last component.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.split_last().1
    }

    /// The directory that holds this entry; `None` if it is the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        // A prefix of a checked path that ends at a slash is itself a checked path.
        self.split_last().0.map(|bytes| Self(bytes.into()))
    }

    /// The parent's bytes, if the parent is not the root, and the last component.
    #[must_use]
    pub fn split_last(&self) -> (Option<&[u8]>, &[u8]) {
        match self.0.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => match (self.0.get(..slash), self.0.get(slash + 1..)) {
                (Some(parent), Some(name)) => (Some(parent), name),
                _ => (None, &self.0),
            },
            None => (None, &self.0),
        }
    }

    /// True if this path is anywhere below `directory`.
    #[must_use]
    pub fn is_below(&self, directory: &Self) -> bool {
        self.0.strip_prefix(&*directory.0).is_some_and(|rest| rest.starts_with(b"/"))
    }

    /// The path for display: lossy text with control, formatting and invalid bytes escaped, so that
    /// a name from a peer cannot steer a terminal.
    #[must_use]
    pub fn display(&self) -> Cow<'_, str> {
        escape(&self.0)
    }
}

/// Any bytes for display. Valid UTF-8 stays. Control, bidirectional and other invisible formatting
/// characters become `\u{…}`, bytes that are not UTF-8 become `\xNN`, and a backslash is doubled.
#[must_use]
pub fn escape(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.chars().any(needs_escape)
    {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(bytes.len() + 8);
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if needs_escape(character) {
                out.extend(character.escape_default());
            } else {
                out.push(character);
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    Cow::Owned(out)
}

fn needs_escape(character: char) -> bool {
    character.is_control()
        || character == '\\'
        // Bidirectional controls, zero-width characters, line separators, tags and the byte order
        // mark.
        || matches!(u32::from(character), 0x061c | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff
            | 0xe0000..=0xe007f)
}

fn check_component(component: &[u8]) -> Result<(), PathError> {
    if component.is_empty() {
        Err(PathError::EmptyComponent)
    } else if component == b"." || component == b".." {
        Err(PathError::Dots)
    } else if component.contains(&0) {
        Err(PathError::Nul)
    } else if component.len() > COMPONENT_BYTES_MAX {
        Err(PathError::ComponentTooLong(component.len()))
    } else if component.eq_ignore_ascii_case(STATE_DIR.as_bytes()) {
        Err(PathError::Reserved)
    } else {
        Ok(())
    }
}

impl Ord for TreePath {
    fn cmp(&self, other: &Self) -> Ordering {
        // Comparing bytes with `/` below every other byte is the same as comparing component by
        // component.
        let rank = |&byte: &u8| if byte == b'/' { 0 } else { u16::from(byte) + 1 };
        self.0.iter().map(rank).cmp(other.0.iter().map(rank))
    }
}

impl PartialOrd for TreePath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.display())
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(bytes: &[u8]) -> TreePath {
        TreePath::new(bytes).unwrap()
    }

    #[test]
    fn names_that_climb_or_hide_are_refused() {
        let long = vec![b'a'; 256];
        let longest = vec![b'a'; PATH_BYTES_MAX + 1];
        for (bytes, error) in [
            (&b""[..], PathError::Empty),
            (b"/", PathError::Absolute),
            (b"/etc/passwd", PathError::Absolute),
            (b".", PathError::Dots),
            (b"..", PathError::Dots),
            (b"a/../b", PathError::Dots),
            (b"a/./b", PathError::Dots),
            (b"a//b", PathError::EmptyComponent),
            (b"a/", PathError::EmptyComponent),
            (b"a\0b", PathError::Nul),
            (&long, PathError::ComponentTooLong(256)),
            (&longest, PathError::TooLong(PATH_BYTES_MAX + 1)),
            (b".ksync", PathError::Reserved),
            (b"a/.KSync/b", PathError::Reserved),
        ] {
            assert_eq!(TreePath::new(bytes), Err(error), "{}", escape(bytes));
        }
    }

    #[test]
    fn ordinary_names_pass_whatever_their_bytes() {
        for bytes in
            [&b"a"[..], b"a/b", b"...", b".ksyncignore", b"-x", b"$(touch p)", b"\xff\xfe", b"a\nb", b"a b"]
        {
            assert_eq!(path(bytes).as_bytes(), bytes);
        }
    }

    #[test]
    fn directory_stands_directly_before_its_content() {
        let mut paths = [&b"a.b"[..], b"a/b/c", b"a", b"a/b", b"a b", b"b", b"a/b.c"].map(path);
        paths.sort();
        let sorted: Vec<_> = paths.iter().map(|path| path.as_bytes()).collect();
        assert_eq!(sorted, [&b"a"[..], b"a/b", b"a/b/c", b"a/b.c", b"a b", b"a.b", b"b"]);
    }

    #[test]
    fn parents_and_names_split_at_the_last_slash() {
        assert_eq!(path(b"a/b/c").parent(), Some(path(b"a/b")));
        assert_eq!(path(b"a").parent(), None);
        assert_eq!(path(b"a/b/c").name(), b"c");
        assert!(path(b"a/b").is_below(&path(b"a")));
        assert!(!path(b"ab").is_below(&path(b"a")));
        assert!(!path(b"a").is_below(&path(b"a")));
    }

    #[test]
    fn characters_that_could_steer_a_terminal_are_escaped() {
        assert_eq!(escape("grüße".as_bytes()), "grüße");
        assert_eq!(escape(b"a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(escape("a\u{202e}b".as_bytes()), "a\\u{202e}b");
        assert_eq!(escape(b"\xffa\\"), "\\xffa\\\\");
    }
}
