//! The plan: the decisions of a comparison, put in the order in which they are safe to carry out.
//!
//! First what stands in the way goes and directories are made; then contents come; then links and times;
//! then, when everything has arrived and is verified, what has only another name moves, and what is not wanted
//! goes; directory times last and deepest first, since every change inside a directory moves its time.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use crate::content::hash::Hash;
use crate::engine::links::leads_out;
use crate::engine::relations;
use crate::engine::work::Step;
use crate::monitor::{Action, Event, Problem, Trouble, What};
use crate::tree::compare::{Change, Rules, compare_doubting};
use crate::tree::doubt::{Doubt, Doubts};
use crate::tree::entry::{EntryRef, Kind};
use crate::tree::filter::Filter;
use crate::tree::manifest::Manifest;
use crate::tree::path_ref::PathRef;
use crate::wire::message::Tally;

/// A file whose content is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fetch {
    pub(super) id: u32,
    /// The basis, a position in the present manifest: the old version, or a file elsewhere that looks as if it
    /// had been moved or copied from there.
    pub(super) at: Option<u32>,
    /// Whether the basis lies elsewhere.
    pub(super) elsewhere: bool,
    /// Whether the basis is the file that is wanted, unless a power cut came between.
    pub(super) is_doubted: bool,
}

/// What a receiver is going to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    changes: Vec<Change>,
    /// Unlock directories; then clear the way and make directories, in path order.
    pub(super) first: Vec<Step>,
    pub(super) fetch: VecDeque<Fetch>,
    pub(super) adjust: Vec<Step>,
    /// Files that are not wanted here and have the content that is wanted there.
    pub(super) moves: Vec<Step>,
    moved: HashSet<u32>,
    /// Children before their directories.
    pub(super) remove: Vec<Step>,
    /// Children before their directories.
    pub(super) directory_times: Vec<Step>,
    /// Whether an earlier run left something staged.
    pub(super) has_staged: bool,
    updates: HashSet<u32>,
    /// Files that are to be verified, and whether their modes differ.
    verifies: HashMap<u32, bool>,
    adjusts: HashSet<u32>,
    unsafe_links: Vec<u32>,
}

impl Plan {
    /// Compares the trees and puts what is to be done in order.
    pub(super) fn new(
        wanted: &Manifest,
        present: &Manifest,
        doubts: &Doubts,
        rules: Rules,
        protects: impl Fn(EntryRef<'_>) -> bool,
        safe_links: bool,
        has_staged: bool,
    ) -> Self {
        let changes = compare_doubting(wanted, present, doubts, rules, protects);
        // What the disk lost it may have lost of what is staged, too.
        let has_staged = has_staged && !doubts.has_lost();
        let mut plan = Self { has_staged, ..Self::default() };
        let mut touched = Touched::new(wanted);
        let mut locked = Locked::new(present);
        for change in &changes {
            if safe_links && plan.is_unsafe(*change, wanted) {
                continue;
            }
            plan.add(*change, wanted, present, doubts);
            touched.add(*change, present);
            locked.add(*change, wanted);
        }
        relations::find(&mut plan.fetch, wanted, present, doubts);
        plan.first.splice(..0, locked.directories.into_iter().map(|at| Step::Unlock { at }));
        plan.remove.reverse();
        plan.directory_times = touched.directories.into_iter().rev().map(|id| Step::Adjust { id }).collect();
        plan.changes = changes;
        plan
    }

    /// Whether a change would make a link that leads out; takes note of it.
    fn is_unsafe(&mut self, change: Change, wanted: &Manifest) -> bool {
        let (Change::Create { id } | Change::Update { id, .. } | Change::Replace { id, .. }) = change else {
            return false;
        };
        let leads_out = wanted.get(id).is_some_and(|entry| match entry.kind {
            Kind::Symlink { target } => leads_out(entry.path, target),
            Kind::Directory | Kind::File { .. } => false,
        });
        self.unsafe_links.extend(leads_out.then_some(id));
        leads_out
    }

    fn add(&mut self, change: Change, wanted: &Manifest, present: &Manifest, doubts: &Doubts) {
        match change {
            Change::Create { id } => self.make(id, None, wanted),
            Change::Update { id, at } => {
                self.updates.insert(id);
                let old_is_file = present.get(at).is_some_and(|old| matches!(old.kind, Kind::File { .. }));
                let is_basis = old_is_file && doubts.of(at) != Some(Doubt::Lost);
                self.make(id, is_basis.then_some(at), wanted);
            }
            Change::Verify { id, at, adjust } => {
                // Found to be the same, it is no update.
                self.updates.insert(id);
                self.verifies.insert(id, adjust);
                self.fetch.push_back(Fetch { id, at: Some(at), elsewhere: false, is_doubted: true });
            }
            Change::Adjust { id, .. } => {
                self.adjusts.insert(id);
                if wanted.get(id).is_some_and(|entry| !entry.is_directory()) {
                    self.adjust.push(Step::Adjust { id });
                }
            }
            Change::Replace { id, at } => {
                // A directory must be there before what is in it. A link has its own step. For a file whoever
                // puts it in place clears the way, when its content is there and not before.
                match wanted.get(id).map(|entry| entry.kind) {
                    Some(Kind::Directory) => self.first.push(Step::Clear { at }),
                    Some(Kind::Symlink { .. }) => self.adjust.push(Step::Clear { at }),
                    Some(Kind::File { .. }) | None => {}
                }
                self.make(id, None, wanted);
            }
            Change::Obstacle { .. } => {}
            Change::Remove { at } => self.remove.push(Step::Remove { at }),
        }
    }

    /// What differs, in path order.
    pub(super) fn changes(&self) -> &[Change] {
        &self.changes
    }

    fn make(&mut self, id: u32, at: Option<u32>, wanted: &Manifest) {
        let Some(entry) = wanted.get(id) else { return };
        match &entry.kind {
            Kind::Directory => self.first.push(Step::MakeDirectory { id }),
            Kind::File { .. } => {
                self.fetch.push_back(Fetch { id, at, elsewhere: false, is_doubted: false });
            }
            Kind::Symlink { .. } => self.adjust.push(Step::MakeLink { id }),
        }
    }

    /// Plans to have a new file by moving the one at `at`, which has its content, if that is to be removed
    /// anyway and is not moved already.
    pub(super) fn move_here(&mut self, id: u32, at: u32, hash: Hash) -> bool {
        // Positions descend, since the removals are in reverse order.
        let place = self.remove.binary_search_by(|step| match *step {
            Step::Remove { at: other } => at.cmp(&other),
            _ => Ordering::Less,
        });
        let is_free = place.is_ok() && self.moved.insert(at);
        if is_free {
            self.moves.push(Step::Move { id, at, hash });
        }
        is_free
    }

    /// What was to be moved is not to be removed: it is gone, or could not be moved and is better kept.
    pub(super) fn spare_moved(&mut self) {
        let moved = &self.moved;
        self.remove.retain(|step| !matches!(step, Step::Remove { at } if moved.contains(at)));
    }

    /// A file turned out to have the right content already.
    pub(super) fn only_adjust(&mut self, id: u32) {
        self.updates.remove(&id);
        if self.verifies.get(&id) != Some(&false) {
            self.adjusts.insert(id);
        }
        self.adjust.push(Step::Adjust { id });
    }

    /// Whether a file was only to be verified: if it is replaced, nobody was told before.
    pub(super) fn is_verify(&self, id: u32) -> bool {
        self.verifies.contains_key(&id)
    }

    pub(super) fn is_update(&self, id: u32) -> bool {
        self.updates.contains(&id)
    }

    /// Whether mode or time of this entry differed, and not only those of what is in it.
    pub(super) fn is_adjust(&self, id: u32) -> bool {
        self.adjusts.contains(&id)
    }

    /// How many files' content is missing or to be verified, and their bytes; of those that `counts` says.
    pub(super) fn content(&self, wanted: &Manifest, counts: impl Fn(&Fetch) -> bool) -> (u64, u64) {
        let files = self.fetch.iter().filter(|fetch| counts(fetch));
        let sizes = files.filter_map(|fetch| wanted.get(fetch.id)).map(|entry| entry.size());
        sizes.fold((0, 0), |(count, bytes), size| (count + 1, bytes + size))
    }

    /// Counts what would be done.
    pub(super) fn count(&self, wanted: &Manifest, tally: &mut Tally) {
        for change in &self.changes {
            match change {
                Change::Create { .. } | Change::Replace { .. } => tally.created += 1,
                Change::Update { .. } => tally.updated += 1,
                Change::Adjust { .. } | Change::Verify { adjust: true, .. } => tally.adjusted += 1,
                Change::Remove { .. } => tally.deleted += 1,
                Change::Verify { adjust: false, .. } | Change::Obstacle { .. } => {}
            }
        }
        (tally.files, tally.sent_bytes) = self.content(wanted, |fetch| !fetch.is_doubted);
    }

    /// What the plan leaves out, and why.
    pub(super) fn problems(&self, wanted: &Manifest) -> Vec<Problem> {
        let problem = |id: u32, trouble, cause: &str| {
            let path = wanted.path(id).map(PathRef::to_vec).unwrap_or_default();
            Problem { trouble, path, cause: cause.to_owned() }
        };
        let obstacles = self.changes.iter().filter_map(|change| match change {
            Change::Obstacle { id, .. } => Some(problem(
                *id,
                Trouble::Obstacle,
                "a directory stands in its place, with content that may not be deleted",
            )),
            _ => None,
        });
        let links = self
            .unsafe_links
            .iter()
            .map(|&id| problem(id, Trouble::Unsafe, "the link leads out of the tree and was left out"));
        obstacles.chain(links).collect()
    }

    /// What is present and not wanted, where nothing is removed: the uppermost, and no more than a person reads.
    pub(super) fn left(&self, wanted: &Manifest, present: &Manifest, filter: &Filter) -> Vec<Event> {
        const LEFT_MAX: usize = 100;
        let is_wanted = |path: PathRef<'_>| wanted.position(path).is_some();
        let left = present.entries().filter(|entry| {
            let is_uppermost = entry.path.parent().is_none_or(is_wanted);
            is_uppermost
                && !is_wanted(entry.path)
                && !filter.excludes_within(&entry.path.to_path(), entry.is_directory())
        });
        left.take(LEFT_MAX)
            .map(|entry| Event::Left { what: what(entry), path: entry.path.to_vec() })
            .collect()
    }

    /// The decisions in path order, for eyes.
    pub(super) fn events(&self, wanted: &Manifest, present: &Manifest) -> Vec<Event> {
        let event = |action, entry: Option<EntryRef<'_>>| {
            entry.map(|entry| Event::Change { action, what: what(entry), path: entry.path.to_vec() })
        };
        let events = self.changes.iter().filter_map(|change| match *change {
            Change::Create { id } | Change::Replace { id, .. } => event(Action::Create, wanted.get(id)),
            Change::Update { id, .. } => event(Action::Update, wanted.get(id)),
            Change::Adjust { id, .. } | Change::Verify { id, adjust: true, .. } => {
                event(Action::Adjust, wanted.get(id))
            }
            Change::Remove { at } => event(Action::Delete, present.get(at)),
            Change::Verify { adjust: false, .. } | Change::Obstacle { .. } => None,
        });
        events.collect()
    }
}

fn what(entry: EntryRef<'_>) -> What {
    match entry.kind {
        Kind::Directory => What::Directory,
        Kind::File { .. } => What::File,
        Kind::Symlink { .. } if entry.kind.is_special() => What::Special,
        Kind::Symlink { .. } => What::Symlink,
    }
}

/// Collects the directories whose own times a plan moves.
struct Touched<'a> {
    wanted: &'a Manifest,
    directories: BTreeSet<u32>,
    /// The parent that was looked up last: neighbours share it.
    last_parent: Option<Vec<u8>>,
}

impl<'a> Touched<'a> {
    fn new(wanted: &'a Manifest) -> Self {
        Self { wanted, directories: BTreeSet::new(), last_parent: None }
    }

    fn add(&mut self, change: Change, present: &Manifest) {
        let entry = match change {
            Change::Create { id }
            | Change::Update { id, .. }
            | Change::Verify { id, .. }
            | Change::Replace { id, .. } => self.wanted.get(id),
            Change::Adjust { id, .. } => {
                if self.wanted.get(id).is_some_and(|entry| entry.is_directory()) {
                    self.directories.insert(id);
                }
                return;
            }
            Change::Remove { at } => present.get(at),
            Change::Obstacle { .. } => None,
        };
        let Some(entry) = entry else { return };
        if entry.is_directory() {
            self.directories.extend(self.wanted.position(entry.path));
        }
        let parent = entry.path.directory();
        if parent != self.last_parent.as_deref() {
            self.last_parent = parent.map(<[u8]>::to_vec);
            self.directories.extend(entry.path.parent().and_then(|parent| self.wanted.position(parent)));
        }
    }
}

/// What an owner needs to change what is in a directory.
const CHANGE_BITS: u16 = 0o300;

/// Collects the directories in which a plan changes something and whose modes forbid it.
struct Locked<'a> {
    present: &'a Manifest,
    directories: BTreeSet<u32>,
    /// The parent that was looked up last: neighbours share it.
    last_parent: Option<Vec<u8>>,
}

impl<'a> Locked<'a> {
    fn new(present: &'a Manifest) -> Self {
        Self { present, directories: BTreeSet::new(), last_parent: None }
    }

    fn add(&mut self, change: Change, wanted: &Manifest) {
        let entry = match change {
            Change::Create { id } | Change::Update { id, .. } | Change::Verify { id, .. } => wanted.get(id),
            Change::Replace { at, .. } => {
                self.add_all_below(at);
                self.present.get(at)
            }
            Change::Remove { at } => self.present.get(at),
            Change::Adjust { .. } | Change::Obstacle { .. } => None,
        };
        let Some(parent) = entry.map(|entry| entry.path.directory()) else { return };
        if parent != self.last_parent.as_deref() {
            self.last_parent = parent.map(<[u8]>::to_vec);
            let at = entry.and_then(|entry| self.present.position(entry.path.parent()?));
            at.into_iter().for_each(|at| self.add_directory(at));
        }
    }

    fn add_all_below(&mut self, top: u32) {
        let path = self.present.path(top);
        let rest = top..u32::try_from(self.present.len()).unwrap_or(u32::MAX);
        for at in rest {
            let below = self.present.get(at).zip(path);
            if !below.is_some_and(|(entry, path)| at == top || entry.path.is_below(path)) {
                return;
            }
            self.add_directory(at);
        }
    }

    fn add_directory(&mut self, at: u32) {
        let is_locked = |entry: EntryRef<'_>| entry.is_directory() && entry.mode & CHANGE_BITS != CHANGE_BITS;
        if self.present.get(at).is_some_and(is_locked) {
            self.directories.insert(at);
        }
    }
}
