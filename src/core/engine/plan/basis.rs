//! New entries that a basis tree holds already, or something like them.

use std::collections::HashSet;

use super::{Plan, listing};
use crate::engine::fetch::Fetch;
use crate::engine::work::Step;
use crate::monitor::{Action, Differs};
use crate::tree::basis_trees::{BasisTrees, Likeness};
use crate::tree::compare::{Change, Rules};
use crate::tree::entry::Kind;
use crate::tree::manifest::Manifest;
use crate::wire::hello::BasisPurpose;

/// The basis trees of a plan, and their purpose.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine) struct Bases<'a> {
    pub(in crate::engine) trees: &'a BasisTrees,
    pub(in crate::engine) purpose: BasisPurpose,
}

/// The part of a new entry that is left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// No tree has the like: everything.
    Everything,
    /// The plan has the steps already.
    Planned,
    /// Nothing: a tree has it, and DEST need not.
    Nothing,
}

impl Plan {
    /// The entry that a change makes anew, and whether nothing is in its place: as with rsync, also a
    /// file in the place of a link.
    pub(super) fn made_anew(
        &self,
        change: Change,
        wanted: &Manifest,
        present: &Manifest,
    ) -> Option<(u32, bool)> {
        match change {
            Change::Create { id } => Some((id, true)),
            Change::Update { id, at } => {
                let kinds = wanted.get(id).zip(present.get(at)).map(|(entry, old)| (entry.kind, old.kind));
                let is_other = matches!(kinds, Some((Kind::File { .. }, Kind::Symlink { .. })));
                is_other.then_some((id, false))
            }
            _ => None,
        }
    }

    /// Plans to make a new entry from the most alike entry of the basis trees. Unless its place
    /// `is_free`, the entry is made in any case, since what is there may not just go.
    pub(super) fn add_from_bases(
        &mut self,
        (id, is_free): (u32, bool),
        bases: Bases<'_>,
        wanted: &Manifest,
        rules: Rules,
        followed: &HashSet<u32>,
    ) -> Left {
        let Some(entry) = wanted.get(id).filter(|_| !self.leaders.contains_key(&id)) else {
            return Left::Everything;
        };
        let Some((at, likeness)) = bases.trees.best(entry, rules) else { return Left::Everything };
        let Some(old) = bases.trees.get(at) else { return Left::Everything };
        let differs = listing::differs(entry, old, rules.mode_mask, rules.attributes, rules.time_rule);
        let is_listed = likeness != Likeness::All;
        let mut line = |action: Action, differs: Differs| {
            self.lines.insert(id, is_listed.then_some((action, differs)));
        };
        match (entry.kind, likeness, bases.purpose) {
            (Kind::Directory, ..) => {
                line(Action::Copy, differs);
                Left::Everything
            }
            // DEST must have the content of its further names.
            (_, Likeness::All, BasisPurpose::Compare) if is_free && !followed.contains(&id) => Left::Nothing,
            (_, Likeness::All, BasisPurpose::Link) => {
                line(Action::Copy, differs);
                self.adjust.push(Step::LinkBasis { id, at });
                self.linked.insert(id);
                Left::Planned
            }
            (Kind::File { .. }, Likeness::All | Likeness::Content, _) => {
                line(Action::Copy, differs);
                self.adjust.push(Step::CopyBasis { id, at });
                Left::Planned
            }
            (Kind::File { .. }, Likeness::Kind, _) => {
                line(Action::Update, differs);
                self.fetch.push_back(Fetch { id, at: Some(at), elsewhere: true, is_doubted: false });
                Left::Planned
            }
            (Kind::Symlink { .. }, ..) => {
                line(Action::Update, differs);
                Left::Everything
            }
        }
    }

    /// True if an entry becomes a further name of a basis tree's, so that it takes no inode.
    pub(in crate::engine) fn is_linked(&self, id: u32) -> bool {
        self.linked.contains(&id)
    }
}
