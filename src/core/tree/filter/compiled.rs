//! Rules that are ready to be compared, and entries as they see them.

use std::borrow::Cow;
use std::sync::Arc;

use crate::tree::pattern::{Dialect, Named, Pattern};
use crate::tree::rule::{Rule, bits};

/// A rule that is ready to be compared.
#[derive(Debug, Clone)]
pub(super) struct Compiled {
    pub(super) bits: u16,
    pattern: Pattern,
    base: Base,
    /// The text as it was written.
    pub(super) text: Vec<u8>,
    /// The merge file and the line in it; `None` for a rule of the command line.
    pub(super) origin: Option<(Arc<[u8]>, usize)>,
}

/// The beginning of the path that a pattern is compared with.
#[derive(Debug, Clone)]
pub(super) enum Base {
    /// The transfer root.
    Transfer,
    /// The root of the filesystem.
    Absolute,
    /// A directory of the tree, which holds the merge file.
    Directory(Arc<[u8]>),
    /// A directory above the tree; this is the tree's path in it.
    Above(Arc<[u8]>),
}

/// An entry of a tree.
pub(super) struct Seen<'a> {
    /// Its path in the tree.
    pub(super) path: &'a [u8],
    pub(super) is_directory: bool,
    /// The entry in the transfer root, as most patterns see it.
    pub(super) transfer: Named<'a>,
    /// The tree's absolute path, without the first slash.
    pub(super) absolute: &'a [u8],
}

impl Compiled {
    /// Compiles a rule. `None` if it never matches a path.
    pub(super) fn new(rule: &Rule, base: Base, origin: Option<(Arc<[u8]>, usize)>) -> Option<Self> {
        if rule.has(bits::XATTR) {
            return None;
        }
        let pattern = Pattern::new(&rule.pattern, Dialect::Rsync)?;
        // A pattern of a merge file that begins with a slash is anchored at the file's directory.
        let base = match base {
            _ if rule.has(bits::ABSOLUTE) => Base::Absolute,
            base if rule.pattern.starts_with(b"/") => base,
            _ => Base::Transfer,
        };
        Some(Self { bits: rule.bits, pattern, base, text: rule.pattern.clone(), origin })
    }

    pub(super) fn has(&self, bits: u16) -> bool {
        self.bits & bits == bits
    }

    pub(super) fn includes(&self) -> bool {
        self.has(bits::INCLUDE)
    }

    pub(super) fn matches(&self, seen: &Seen<'_>) -> bool {
        let within = |above: &[u8]| {
            let path: Cow<'_, [u8]> =
                if above.is_empty() { seen.path.into() } else { [above, seen.path].join(&b'/').into() };
            let path = path.strip_suffix(b"/").unwrap_or(&path);
            self.pattern.matches(&Named::new(path, seen.is_directory))
        };
        let matches = match &self.base {
            Base::Transfer => self.pattern.matches(&seen.transfer),
            Base::Absolute => within(seen.absolute),
            Base::Above(tree) => within(tree),
            Base::Directory(directory) => relative(seen.path, directory)
                .is_some_and(|path| self.pattern.matches(&Named::new(path, seen.is_directory))),
        };
        matches != self.has(bits::NEGATED)
    }
}

/// The rest of a path below a directory.
fn relative<'a>(path: &'a [u8], directory: &[u8]) -> Option<&'a [u8]> {
    if directory.is_empty() { Some(path) } else { path.strip_prefix(directory)?.strip_prefix(b"/") }
}
