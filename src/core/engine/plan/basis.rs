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

/// The place of an entry in the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing is there.
    Free,
    /// A file is in the place of a file.
    File,
    /// An entry of another kind.
    Other,
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
    /// The entry of a change that may come from a basis tree, as with rsync.
    pub(super) fn basis_place(change: Change, wanted: &Manifest, present: &Manifest) -> Option<(u32, Place)> {
        let is_file = |id: u32| wanted.get(id).is_some_and(|entry| matches!(entry.kind, Kind::File { .. }));
        match change {
            Change::Create { id } => Some((id, Place::Free)),
            Change::Update { id, at } if is_file(id) => {
                let is_same = matches!(present.get(at)?.kind, Kind::File { .. });
                Some((id, if is_same { Place::File } else { Place::Other }))
            }
            Change::Adjust { id, .. } if is_file(id) => Some((id, Place::File)),
            Change::Replace { id, .. } if wanted.get(id)?.is_directory() => Some((id, Place::Other)),
            _ => None,
        }
    }

    /// Plans to make an entry from the most alike one of the basis trees.
    pub(super) fn add_from_bases(
        &mut self,
        (id, place): (u32, Place),
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
        // A file of DEST serves as well as one that is not quite the wanted one.
        if place == Place::File && (likeness != Likeness::All || bases.purpose != BasisPurpose::Link) {
            return Left::Everything;
        }
        let is_listed = likeness != Likeness::All;
        let mut line = |action: Action, differs: Differs| {
            self.lines.insert(id, is_listed.then_some((action, differs)));
        };
        match (entry.kind, likeness, bases.purpose) {
            (Kind::Directory, ..) => {
                line(Action::Copy, differs);
                Left::Everything
            }
            // What is in the way may not just go, and DEST must have the content of further names.
            (_, Likeness::All, BasisPurpose::Compare) if place == Place::Free && !followed.contains(&id) => {
                Left::Nothing
            }
            (_, Likeness::All, BasisPurpose::Link) => {
                line(Action::Copy, differs);
                self.adjust.push(Step::LinkBasis { id, at });
                if place == Place::File {
                    self.updates.insert(id);
                }
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
