//! The list of changes, for display: all at once in a dry run, otherwise each as it has happened.
//!
//! The order is that of `rsync --delete`. In each directory the deletions come first, names in
//! descending order and the content of a deleted directory before the directory. Files and links
//! follow, then the directories. The lines of the root's own files come before all directories,
//! deletions first.

use std::collections::{HashMap, HashSet};

use crate::monitor::{Action, Differs, Event, Letters, What};
use crate::tree::attributes::Compared;
use crate::tree::compare::{Change, differing_attributes};
use crate::tree::entry::{EntryRef, Kind};
use crate::tree::manifest::Manifest;
use crate::tree::path_ref::PathRef;
use crate::tree::time_rule::TimeRule;

/// The entry that a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::engine) enum Item {
    Root,
    /// An index into the wanted manifest.
    Wanted(u32),
    /// A deleted entry: a position in the present manifest.
    Present(u32),
}

/// Planned changes that have not been reported.
#[derive(Debug, Default)]
pub(in crate::engine) struct Listing {
    lines: Vec<Option<Event>>,
    /// Position of each entry's line.
    places: HashMap<Item, usize>,
    /// Positions of files whose content is in doubt. They change only if it is wrong.
    doubted: Vec<usize>,
}

impl Listing {
    /// All lines of a dry run, in order.
    pub(in crate::engine) fn planned(mut self) -> impl Iterator<Item = Event> {
        for place in std::mem::take(&mut self.doubted) {
            self.lines.get_mut(place).map(Option::take);
        }
        self.lines.into_iter().flatten()
    }

    /// Takes the line of an entry whose change has happened, with its place in the list. `action`
    /// replaces the planned action.
    pub(in crate::engine) fn take(&mut self, item: Item, action: Option<Action>) -> Option<(usize, Event)> {
        let place = *self.places.get(&item)?;
        let mut event = self.lines.get_mut(place)?.take()?;
        if let (Event::Change { action: planned, .. }, Some(action)) = (&mut event, action) {
            *planned = action;
        }
        Some((place, event))
    }
}

/// Both trees of a plan, and what counts in them.
pub(super) struct Trees<'a> {
    pub(super) wanted: &'a Manifest,
    pub(super) present: &'a Manifest,
    /// Files and links whose content or target is replaced by one of the same kind.
    pub(super) updates: &'a HashSet<u32>,
    /// Lines of new entries that a basis tree has, or the like; `None` for no line.
    pub(super) lines: &'a HashMap<u32, Option<(Action, Differs)>>,
    /// The entries that become further names of others.
    pub(super) leaders: &'a HashMap<u32, u32>,
    pub(super) mode_mask: u16,
    pub(super) attributes: Compared,
    pub(super) time_rule: TimeRule,
}

impl Listing {
    /// The list of these changes; `root` is the change of the root itself.
    pub(super) fn of(changes: &[Change], root: Option<(Action, Differs)>, trees: &Trees<'_>) -> Self {
        let Trees { wanted, present, updates, lines: own, leaders, .. } = *trees;
        let Trees { mode_mask, attributes, time_rule, .. } = *trees;
        let mut lines = Lines::default();
        if let Some((action, differs)) = root {
            let (what, path, target) = (What::Directory, Vec::new(), Vec::new());
            lines.push(vec![ROOT, ITEM], Item::Root, Event::Change { action, what, differs, path, target });
        }
        let differs = |id, at| {
            let pair = wanted.get(id).zip(present.get(at));
            pair.map_or(Differs::default(), |(entry, old)| {
                differs(entry, old, mode_mask, attributes, time_rule)
            })
        };
        // The topmost of the deleted directories above an entry.
        let mut top: Option<PathRef<'_>> = None;
        for change in changes {
            match *change {
                Change::Remove { at } => {
                    let Some(entry) = present.get(at) else { continue };
                    let top = *top.insert(top.filter(|top| entry.path.is_below(*top)).unwrap_or(entry.path));
                    lines.remove(at, entry, top, false);
                }
                Change::Create { id } | Change::Update { id, .. } | Change::Adjust { id, .. }
                    if own.contains_key(&id) =>
                {
                    if let Some(&Some((action, differs))) = own.get(&id) {
                        lines.add(action, id, wanted.get(id), differs);
                    }
                }
                Change::Create { id } => lines.add(Action::Create, id, wanted.get(id), Differs::default()),
                Change::Replace { id, at } => {
                    let Some(old) = present.get(at) else { continue };
                    for below in present.subtree(at).skip(1) {
                        present.get(below).into_iter().for_each(|entry| {
                            lines.remove(below, entry, old.path, true);
                        });
                    }
                    let line = own.get(&id).copied().unwrap_or(Some((Action::Create, Differs::default())));
                    if let Some((action, differs)) = line {
                        lines.add(action, id, wanted.get(id), differs);
                    }
                }
                Change::Update { id, at } if updates.contains(&id) => {
                    lines.add(Action::Update, id, wanted.get(id), differs(id, at));
                }
                // An entry of another kind was in its place.
                Change::Update { id, .. } => {
                    lines.add(Action::Create, id, wanted.get(id), Differs::default());
                }
                Change::Adjust { id, at } => lines.add(Action::Adjust, id, wanted.get(id), differs(id, at)),
                Change::Verify { id, at, adjust } => {
                    lines.is_doubted = !adjust;
                    lines.add(Action::Adjust, id, wanted.get(id), differs(id, at));
                    lines.is_doubted = false;
                }
                Change::Obstacle { .. } => {}
            }
        }
        for (_, item, event, _) in &mut lines.lines {
            if let (Item::Wanted(id), Event::Change { what: What::File | What::Special, target, .. }) =
                (item, event)
                && let Some(leader) = leaders.get(id).and_then(|leader| wanted.path(*leader))
            {
                *target = leader.to_vec();
            }
        }
        lines.in_order()
    }
}

// Parts of a sort key, in ascending order. The first two bytes are one of the first pair and one
// of the second.
const ROOT: u8 = 0;
const BELOW: u8 = 1;
const DELETION: u8 = 0;
const ITEM: u8 = 1;
/// The deletions in a directory.
const DELETED: u8 = 1;
const FILE: u8 = 2;
const DIRECTORY: u8 = 3;
/// An entry's own line, after those of what was below it.
const OWN: u8 = 0xff;

/// Lines with their sort keys.
#[derive(Default)]
struct Lines {
    lines: Vec<(Vec<u8>, Item, Event, bool)>,
    is_doubted: bool,
}

impl Lines {
    fn push(&mut self, key: Vec<u8>, item: Item, event: Event) {
        self.lines.push((key, item, event, self.is_doubted));
    }

    fn add(&mut self, action: Action, id: u32, entry: Option<EntryRef<'_>>, differs: Differs) {
        let Some(entry) = entry else { return };
        let target = match entry.kind {
            Kind::Symlink { target } => target.to_vec(),
            Kind::Directory | Kind::File { .. } => Vec::new(),
        };
        let is_directory = entry.is_directory();
        let is_in_root = entry.path.directory().is_none() && !is_directory;
        let mut key = vec![if is_in_root { ROOT } else { BELOW }, ITEM];
        let mut names = entry.path.components().peekable();
        while let Some(name) = names.next() {
            ascending(&mut key, name, is_directory || names.peek().is_some());
        }
        key.extend((!is_directory).then_some(OWN));
        let (what, path) = (what(entry), entry.path.to_vec());
        self.push(key, Item::Wanted(id), Event::Change { action, what, differs, path, target });
    }

    /// Adds a deletion. `top` is the topmost deleted directory; if it `is_replaced`, another entry
    /// takes its place.
    fn remove(&mut self, at: u32, entry: EntryRef<'_>, top: PathRef<'_>, is_replaced: bool) {
        let is_in_root = top.directory().is_none();
        let mut key = vec![if is_in_root { ROOT } else { BELOW }, DELETION];
        let (above, mut names) = (top.components().count() - 1, entry.path.components().peekable());
        names.by_ref().take(above).for_each(|name| ascending(&mut key, name, true));
        if is_replaced {
            names.next().into_iter().for_each(|name| ascending(&mut key, name, false));
        } else {
            key.push(DELETED);
        }
        while let Some(name) = names.next() {
            descending(&mut key, name, entry.is_directory() || names.peek().is_some());
        }
        key.push(OWN);
        let (action, what, differs) = (Action::Delete, what(entry), Differs::default());
        let (path, target) = (entry.path.to_vec(), Vec::new());
        self.push(key, Item::Present(at), Event::Change { action, what, differs, path, target });
    }

    fn in_order(mut self) -> Listing {
        self.lines.sort_unstable_by(|(one, ..), (other, ..)| one.cmp(other));
        let mut listing = Listing::default();
        for (place, (_, item, event, is_doubted)) in self.lines.into_iter().enumerate() {
            listing.lines.push(Some(event));
            listing.places.insert(item, place);
            listing.doubted.extend(is_doubted.then_some(place));
        }
        listing
    }
}

/// Adds a name: files come before directories, and rsync compares a directory's name with a slash
/// at its end.
fn ascending(key: &mut Vec<u8>, name: &[u8], is_directory: bool) {
    key.push(if is_directory { DIRECTORY } else { FILE });
    key.extend_from_slice(name);
    key.extend(is_directory.then_some(b'/'));
    key.push(0);
}

/// Adds a name in the reverse of that order.
fn descending(key: &mut Vec<u8>, name: &[u8], is_directory: bool) {
    let mut name_key = Vec::with_capacity(name.len() + 3);
    ascending(&mut name_key, name, is_directory);
    key.extend(name_key.into_iter().map(|byte| !byte));
}

/// The properties in which two entries differ.
pub(super) fn differs(
    entry: EntryRef<'_>,
    old: EntryRef<'_>,
    mode_mask: u16,
    attributes: Compared,
    time_rule: TimeRule,
) -> Differs {
    let is_link = matches!(entry.kind, Kind::Symlink { .. }) && !entry.kind.is_special();
    Differs {
        size: entry.size() != old.size(),
        time: !time_rule.are_same(entry.mtime, old.mtime),
        mode: !is_link && (entry.mode ^ old.mode) & mode_mask != 0,
        attributes: Letters::of(differing_attributes(entry, old, attributes)),
    }
}

/// The kind of an entry.
pub(super) fn what(entry: EntryRef<'_>) -> What {
    match entry.kind {
        Kind::Directory => What::Directory,
        Kind::File { .. } => What::File,
        Kind::Symlink { .. } if entry.kind.is_special() => What::Special,
        Kind::Symlink { .. } => What::Symlink,
    }
}
