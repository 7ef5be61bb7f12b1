//! Basis trees: directories beside the destination in which a wanted entry may be already
//! (`--compare-dest`, `--copy-dest`, `--link-dest`).
//!
//! Their entries have positions of their own, from [`FIRST`] on through all trees. No manifest is
//! that long, so a position tells whether it is one in the destination.

use std::sync::Arc;

use crate::tree::compare::{Rules, differing_attributes, is_same_content};
use crate::tree::entry::{EntryRef, Kind};
use crate::tree::manifest::Manifest;

/// Position of the first entry of the first tree.
pub const FIRST: u32 = 1 << 31;

/// The basis trees of a run, in the order of the options.
#[derive(Debug, Clone, Default)]
pub struct BasisTrees {
    /// The listed trees.
    pub trees: Vec<Arc<Manifest>>,
    /// Paths of the directories that do not exist.
    pub missing: Vec<Vec<u8>>,
}

/// Likeness of a basis tree's entry to the wanted one, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Likeness {
    /// Both are of one kind.
    Kind,
    /// Both have the same content, as far as the options compare it.
    Content,
    /// All that the options compare is equal.
    All,
}

impl BasisTrees {
    /// The tree of a position, and the position in it.
    #[must_use]
    pub fn locate(&self, at: u32) -> Option<(usize, u32)> {
        let mut at = at.checked_sub(FIRST)?;
        for (index, tree) in self.trees.iter().enumerate() {
            let count = u32::try_from(tree.len()).ok()?;
            if at < count {
                return Some((index, at));
            }
            at -= count;
        }
        None
    }

    /// The entry at a position.
    #[must_use]
    pub fn get(&self, at: u32) -> Option<EntryRef<'_>> {
        let (index, at) = self.locate(at)?;
        self.trees.get(index)?.get(at)
    }

    /// The entry that is most like the wanted one, as rsync chooses it: of several equally good
    /// ones, that of the first tree.
    #[must_use]
    pub fn best(&self, wanted: EntryRef<'_>, rules: Rules) -> Option<(u32, Likeness)> {
        let (mut first, mut best) = (FIRST, None::<(u32, Likeness)>);
        for tree in &self.trees {
            let found = tree.position(wanted.path).and_then(|at| {
                let likeness = likeness(wanted, tree.get(at)?, rules)?;
                Some((first.checked_add(at)?, likeness))
            });
            if let Some((at, likeness)) = found
                && best.is_none_or(|(_, other)| likeness > other)
            {
                best = Some((at, likeness));
            }
            first = first.saturating_add(u32::try_from(tree.len()).unwrap_or(u32::MAX));
        }
        best
    }
}

/// The likeness of two entries; `None` if they are of different kinds.
fn likeness(wanted: EntryRef<'_>, old: EntryRef<'_>, rules: Rules) -> Option<Likeness> {
    let same_mode = (wanted.mode ^ old.mode) & rules.mode_mask == 0;
    let same_rest = rules.time_rule.are_same(wanted.mtime, old.mtime)
        && !differing_attributes(wanted, old, rules.attributes).any();
    let (same_content, same_rest) = match (wanted.kind, old.kind) {
        (Kind::Directory, Kind::Directory) => (true, same_rest && same_mode),
        (Kind::File { .. }, Kind::File { .. }) => {
            (is_same_content(wanted, old, rules), same_rest && same_mode)
        }
        (Kind::Symlink { .. }, Kind::Symlink { .. }) if wanted.kind.is_special() != old.kind.is_special() => {
            return None;
        }
        (Kind::Symlink { .. }, Kind::Symlink { .. }) if wanted.kind.is_special() => {
            (wanted.special() == old.special(), same_rest && same_mode)
        }
        (Kind::Symlink { target }, Kind::Symlink { target: old }) => (target == old, same_rest),
        _ => return None,
    };
    Some(match (same_content, same_rest) {
        (false, _) => Likeness::Kind,
        (true, false) => Likeness::Content,
        (true, true) => Likeness::All,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::change::testing::file;

    #[test]
    fn best_basis_is_the_first_of_the_most_alike() {
        let tree = |files: &[(&str, u64, u16)]| {
            let entries = files
                .iter()
                .map(|&(name, size, mode)| crate::tree::entry::Entry { mode, ..file(name, size) });
            Arc::new(Manifest::new(entries.collect()).unwrap())
        };
        let trees = vec![
            tree(&[("a", 2, 0o644), ("b", 1, 0o600)]),
            tree(&[("a", 1, 0o600), ("b", 1, 0o644)]),
            tree(&[("a", 1, 0o644), ("b", 1, 0o644)]),
        ];
        let bases = BasisTrees { trees, missing: Vec::new() };
        let rules = Rules { mode_mask: 0o777, ..Rules::default() };
        let best = |count: usize, name: &str| {
            let bases = BasisTrees { trees: bases.trees[..count].to_vec(), missing: Vec::new() };
            let wanted = tree(&[(name, 1, 0o644)]);
            bases.best(wanted.get(0).unwrap(), rules)
        };
        assert_eq!(best(1, "a"), Some((FIRST, Likeness::Kind)));
        assert_eq!(best(2, "a"), Some((FIRST + 2, Likeness::Content)));
        assert_eq!(best(3, "a"), Some((FIRST + 4, Likeness::All)));
        assert_eq!(best(3, "b"), Some((FIRST + 3, Likeness::All)));
        assert_eq!(best(3, "c"), None);
        for at in FIRST..FIRST + 6 {
            let (index, inner) = bases.locate(at).unwrap();
            assert_eq!(bases.get(at), bases.trees[index].get(inner));
        }
        assert_eq!((bases.locate(FIRST + 6), bases.locate(0)), (None, None));
    }
}
