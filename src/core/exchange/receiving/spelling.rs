//! Asks the destination's filesystem which names it folds into one, and handles other spellings.

use crate::disk::stat::Inode;
use crate::disk::writable::WritableRoot;
use crate::engine::WorkError;
use crate::exchange::common::unwritable;
use crate::exchange::receiving::Receiving;
use crate::exchange::receiving::tree::{OpenTree, PlannedTree, unknown};
use crate::tree::path::TreePath;
use crate::tree::spelling::{Answers, Questions, Respelled, Suspects};

impl Receiving {
    /// Answers questions about names. An answer that cannot be found out counts as "not folded".
    /// The step that makes the entry then finds its place occupied.
    pub(super) fn resolve(&self, open: &OpenTree, questions: &Questions) -> Answers {
        let Some(root) = &open.root else { return Answers::default() };
        let respelled = questions.suspects.iter().flat_map(|suspects| self.respelled(root, suspects));
        let mut answers = Answers { respelled: respelled.collect(), twins: Vec::new() };
        // Only the answers about new names need temporary files.
        if !self.options.dry_run && !questions.groups.is_empty() && root.folds_names().unwrap_or(false) {
            for group in &questions.groups {
                let paths: Vec<&TreePath> = group.iter().map(|(_, path)| path).collect();
                let twins = root.folded(&paths).unwrap_or_default().into_iter();
                let ids = |(index, first): (usize, usize)| Some((group.get(index)?.0, group.get(first)?.0));
                answers.twins.extend(twins.filter_map(ids));
            }
        }
        answers
    }

    fn respelled(&self, root: &WritableRoot, suspects: &Suspects) -> Vec<Respelled> {
        let there = suspects.wanted.iter().filter_map(|(id, path)| Some((*id, path, inode(root, path)?)));
        let there: Vec<_> = there.collect();
        if there.is_empty() {
            return Vec::new();
        }
        // Candidates by inode, each with its index.
        let candidates = (0_u32..).zip(&suspects.candidates);
        let mut candidates: Vec<(u64, u32)> =
            candidates.filter_map(|(index, (_, path))| Some((inode(root, path)?.ino, index))).collect();
        candidates.sort_unstable();
        let respelled = there.into_iter().filter_map(|(id, path, inode)| {
            let begin = candidates.partition_point(|&(ino, _)| ino < inode.ino);
            let same = candidates.iter().skip(begin).take_while(|&&(ino, _)| ino == inode.ino);
            let same = same.filter_map(|&(_, index)| suspects.candidates.get(index as usize));
            // Among hard links of one file, prefer the name that differs in case alone.
            let &(at, ref candidate) =
                same.min_by_key(|(_, other)| !other.name().eq_ignore_ascii_case(path.name()))?;
            let is_it = self::inode(root, candidate) == Some(inode);
            if !is_it {
                return None;
            }
            let is_shown = if self.options.dry_run {
                candidate.name().eq_ignore_ascii_case(path.name())
            } else {
                root.shows_other_than(path, candidate.name()).unwrap_or(false)
            };
            Some(Respelled { id, at, is_shown })
        });
        respelled.collect()
    }
}

impl PlannedTree {
    pub(super) fn respell(&self, id: u32) -> Result<(), WorkError> {
        let old = self.spelling.old_name(id).ok_or_else(unknown)?;
        self.root.respell(&self.path(id)?, old).map_err(unwritable)
    }
}

fn inode(root: &WritableRoot, path: &TreePath) -> Option<Inode> {
    root.stat(path).ok()?.as_ref().and_then(Inode::known)
}
