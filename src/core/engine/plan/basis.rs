//! New entries that a basis tree holds already, or something like them.

use super::listing;
use crate::monitor::{Action, Differs};
use crate::tree::basis_trees::{BasisTrees, Likeness};
use crate::tree::compare::{Change, Rules};
use crate::tree::entry::{EntryRef, Kind};
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

/// The way to an entry that a basis tree has, or the like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The entry of the tree serves, and DEST need not have it.
    Nothing,
    /// A further name of the tree's entry at this position.
    Link(u32),
    /// A copy of the tree's file at this position.
    Copy(u32),
    /// A delta against the tree's file at this position.
    Delta(u32),
    /// As without the tree.
    Own,
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

/// The entry of a change that may come from a basis tree, as with rsync.
pub(super) fn place(change: Change, wanted: &Manifest, present: &Manifest) -> Option<(u32, Place)> {
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

/// The way to an entry, by the most alike one of the basis trees, and its line in the list, if it
/// has one. `None` if no tree has the like.
pub(super) fn find(
    entry: EntryRef<'_>,
    place: Place,
    bases: Bases<'_>,
    rules: Rules,
    has_followers: bool,
) -> Option<(Way, Option<(Action, Differs)>)> {
    let (at, likeness) = bases.trees.best(entry, rules)?;
    // A file of DEST serves as well as one that is not quite the wanted one.
    if place == Place::File && (likeness != Likeness::All || bases.purpose != BasisPurpose::Link) {
        return None;
    }
    let old = bases.trees.get(at)?;
    let differs = listing::differs(entry, old, rules.mode_mask, rules.attributes, rules.time_rule);
    // An obstacle may not just go, and DEST must have the content of further names.
    let may_lack = place == Place::Free && !has_followers;
    let (way, action) = match (entry.kind, likeness, bases.purpose) {
        (Kind::Directory, ..) => (Way::Own, Action::Copy),
        (_, Likeness::All, BasisPurpose::Compare) if may_lack => (Way::Nothing, Action::Copy),
        (_, Likeness::All, BasisPurpose::Link) => (Way::Link(at), Action::Copy),
        (Kind::File { .. }, Likeness::All | Likeness::Content, _) => (Way::Copy(at), Action::Copy),
        (Kind::File { .. }, Likeness::Kind, _) => (Way::Delta(at), Action::Update),
        (Kind::Symlink { .. }, ..) => (Way::Own, Action::Update),
    };
    Some((way, (likeness != Likeness::All).then_some((action, differs))))
}
