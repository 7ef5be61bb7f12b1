//! The plan puts the decisions of a comparison in an order in which they are safe to carry out.
//!
//! First, entries in the way are removed and directories made. Then contents arrive, then links and
//! times are set. When everything has arrived and is verified, renamed files move and unwanted
//! entries are removed. Directory times come last, deepest first, since every change inside a
//! directory moves its time.

mod after;
mod basis;
mod directories;
mod listing;

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet, VecDeque};

use crate::content::hash::Hash;
use crate::engine::fetch::Fetch;
use crate::engine::renames;
use crate::engine::work::Step;
use crate::monitor::{Action, Differs, Doomed, Event, HEAD_MAX, Letters, Problem, ProblemKind};
use crate::tree::attributes::{AttributesDiffer, Compared, Special};
use crate::tree::compare::{Change, Rules, below, compare_doubting};
use crate::tree::doubt::{Doubt, Doubts};
use crate::tree::entry::{EntryRef, Kind, Time};
use crate::tree::hard_links::regroup;
use crate::tree::links::leads_out;
use crate::tree::manifest::Manifest;
use crate::tree::path::TreePath;
use crate::tree::path_ref::PathRef;
use crate::tree::spelling::Spelling;
use crate::tree::time_rule::TimeRule;
use crate::wire::hello::Links;
use crate::wire::message::Tally;
pub(super) use basis::Bases;
use basis::{Left, Place, Way};
use directories::Touched;
pub(super) use listing::{Item, Listing};
use listing::{Trees, what};

/// The receiver's plan.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The changes, in path order.
    pub(super) changes: Vec<Change>,
    /// Unlock directories; then remove entries in the way and make directories, in path order.
    pub(super) first: Vec<Step>,
    pub(super) fetch: VecDeque<Fetch>,
    pub(super) adjust: Vec<Step>,
    /// Renames of respelled entries, and moves of unwanted files whose content is wanted under
    /// another name.
    pub(super) moves: Vec<Step>,
    moved: HashSet<u32>,
    /// Further names of entries that are in place.
    pub(super) links: Vec<Step>,
    /// Removals, children before their directories.
    pub(super) remove: Vec<Step>,
    /// Metadata of directories, children before their directories.
    pub(super) directory_times: Vec<Step>,
    /// True if an earlier run left something staged.
    pub(super) has_staged: bool,
    /// Files and links whose content or target is replaced by one of the same kind.
    pub(super) updates: HashSet<u32>,
    /// Files to verify, each with whether its mode differs.
    pub(super) verifies: HashMap<u32, bool>,
    /// Entries whose own mode or time differed, and not only those of their children.
    pub(super) adjusts: HashSet<u32>,
    unsafe_links: Vec<u32>,
    /// Excluded entries, each with the path that the filesystem takes for the same name.
    twins: Vec<(u32, TreePath)>,
    /// Entries that differ only in the spelling of their names.
    pub(super) respelled: HashSet<u32>,
    /// Number of entries that go with a directory that another entry replaces, by wanted id.
    cleared: HashMap<u32, u64>,
    /// Differences of the root's own metadata, if it must be set.
    pub(super) root: Option<Differs>,
    /// The entries that become further names of others.
    leaders: HashMap<u32, u32>,
    /// New entries that the basis trees have, or the like. The line of each, if it has one.
    lines: HashMap<u32, Option<(Action, Differs)>>,
    /// New entries that become further names of a basis tree's.
    linked: HashSet<u32>,
    /// Devices that this user may not make.
    devices: Vec<u32>,
    /// Links and special files that the options do not copy.
    non_regular: Vec<u32>,
    attributes: Compared,
    mode_mask: u16,
    time_rule: TimeRule,
}

/// Facts about a destination besides its manifest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Findings<'a> {
    pub(super) doubts: &'a Doubts,
    pub(super) spelling: &'a Spelling,
    /// True if an earlier run left something staged.
    pub(super) has_staged: bool,
    /// True if several names of one file stay that.
    pub(super) hard_links: bool,
    /// True if the options copy devices.
    pub(super) copies_devices: bool,
    /// True if the options copy pipes and sockets.
    pub(super) copies_specials: bool,
    /// True if this user may make no devices.
    pub(super) skips_devices: bool,
    /// The basis trees, if there are any.
    pub(super) bases: Option<Bases<'a>>,
}

impl Plan {
    /// Compares the trees and orders the works.
    pub(super) fn new(
        wanted: &Manifest,
        present: &Manifest,
        findings: Findings<'_>,
        rules: Rules,
        protects: impl Fn(EntryRef<'_>) -> bool,
        links: Links,
    ) -> Self {
        let Findings { doubts, spelling, has_staged, hard_links, skips_devices, .. } = findings;
        let Findings { copies_devices, copies_specials, bases, .. } = findings;
        let pruned = rules.transfer.pruned(wanted);
        let mut changes = compare_doubting(wanted, present, doubts, rules, &pruned, protects);
        let is_skipped =
            |entry: EntryRef<'_>| skips_devices && entry.special().is_some_and(Special::is_device);
        let is_non_regular = |entry: EntryRef<'_>| {
            let is_link = matches!(entry.kind, Kind::Symlink { .. }) && !entry.kind.is_special();
            match entry.special() {
                Some(special) if special.is_device() => !copies_devices,
                Some(_) => !copies_specials,
                None => links == Links::None && is_link,
            }
        };
        let mut leaders = HashMap::new();
        if hard_links {
            let takes_part = |id: u32, entry: EntryRef<'_>, old: Option<EntryRef<'_>>| {
                !rules.transfer.passes_over(entry, old, rules.time_rule)
                    && !spelling.leaves_out(id)
                    && !is_skipped(entry)
                    && !is_non_regular(entry)
            };
            let regrouped = regroup(changes, wanted, present, takes_part);
            (changes, leaders) = (regrouped.changes, regrouped.leaders);
        }
        // A disk that lost file contents may have lost staged ones too.
        let has_staged = has_staged && !doubts.has_lost();
        let twins = spelling.twins().map(|(id, twin)| (id, twin.clone())).collect();
        let mut plan = Self {
            has_staged,
            twins,
            leaders,
            attributes: rules.attributes,
            mode_mask: rules.mode_mask,
            time_rule: rules.time_rule,
            ..Self::default()
        };
        let followed: HashSet<u32> = plan.leaders.values().copied().filter(|_| bases.is_some()).collect();
        let mut touched = Touched::new(wanted, present, &pruned);
        for change in with_respelled(changes, wanted, present, spelling, &mut plan.respelled) {
            let id = change.wanted();
            let is_unsafe = links == Links::Safe && plan.is_unsafe(change, wanted);
            if id.is_some_and(|id| spelling.leaves_out(id)) || is_unsafe {
                continue;
            }
            // As in rsync, what the destination has under such a name stays.
            if let Some(id) = id.filter(|&id| wanted.get(id).is_some_and(is_non_regular)) {
                plan.non_regular.push(id);
                continue;
            }
            if let Some(id) = id.filter(|&id| wanted.get(id).is_some_and(is_skipped)) {
                plan.devices.push(id);
                continue;
            }
            // An entry that is made anew has the wanted name already.
            let stays =
                matches!(change, Change::Update { .. } | Change::Adjust { .. } | Change::Verify { .. });
            if let Some(id) = id.filter(|&id| stays && spelling.old_name(id).is_some()) {
                plan.moves.push(Step::Respell { id });
                // A rename touches the same directories as an update.
                touched.add(Change::Update { id, at: 0 });
            }
            let left = match (bases, basis::place(change, wanted, present)) {
                (Some(bases), Some(place)) => plan.add_from_bases(place, bases, wanted, rules, &followed),
                _ => Left::Everything,
            };
            if left == Left::Nothing {
                continue;
            }
            if left == Left::Everything && !id.is_some_and(|id| plan.respelled.contains(&id)) {
                plan.add(change, wanted, present, doubts);
            }
            touched.add(change);
            plan.changes.push(change);
        }
        // Further names come when every content is in place, moved files included.
        let mut further_names: Vec<Step> =
            plan.leaders.iter().map(|(id, to)| Step::HardLink { id: *id, to: *to }).collect();
        further_names.sort_unstable_by_key(|step| if let Step::HardLink { id, .. } = step { *id } else { 0 });
        plan.links = further_names;
        renames::find(&mut plan.fetch, wanted, present, doubts);
        plan.first.splice(..0, touched.locked.into_iter().map(|at| Step::Unlock { at }));
        plan.remove.reverse();
        let stays = |at: &u32| plan.place_of_removal(*at).is_err();
        let restored: Vec<Step> =
            touched.kept.iter().rev().copied().filter(stays).map(|at| Step::Restore { at }).collect();
        plan.directory_times = touched.directories.into_iter().rev().map(|id| Step::Adjust { id }).collect();
        plan.directory_times.extend(restored);
        plan
    }

    /// Records a change that would make a link that leads out; true if it would.
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
                let (entry, old) = (wanted.get(id), present.get(at));
                let is_file = |entry: &EntryRef<'_>| matches!(entry.kind, Kind::File { .. });
                let old_is_file = old.is_some_and(|old| is_file(&old));
                // An entry of another kind counts as new, as with rsync.
                if entry.is_some_and(|entry| is_file(&entry)) == old_is_file {
                    self.updates.insert(id);
                }
                let is_basis = old_is_file && doubts.of(at) != Some(Doubt::Lost);
                if let (Some(entry), Some(old)) = (entry, old)
                    && !self.leaders.contains_key(&id)
                    && listing::differs(entry, old, self.mode_mask, self.attributes, self.time_rule)
                        == Differs::default()
                {
                    // Without a proof by time. If the content is the same, nothing changes.
                    self.verifies.insert(id, false);
                }
                self.make(id, is_basis.then_some(at), wanted);
            }
            Change::Verify { id, at, adjust } => {
                // If the content is the same, the file is no longer an update.
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
                // A directory must exist before its entries. A link has its own step. For a file,
                // the work that installs it removes the old directory, once the content has arrived
                // and not before.
                match wanted.get(id).map(|entry| entry.kind) {
                    Some(Kind::Directory) => self.first.push(Step::Clear { at }),
                    Some(Kind::Symlink { .. }) => self.adjust.push(Step::Clear { at }),
                    Some(Kind::File { .. }) if self.leaders.contains_key(&id) => {
                        self.adjust.push(Step::Clear { at });
                    }
                    Some(Kind::File { .. }) | None => {}
                }
                let count = below(present, at).count() as u64;
                if count > 0 {
                    self.cleared.insert(id, count);
                }
                self.make(id, None, wanted);
            }
            Change::Obstacle { .. } => {}
            Change::Remove { at } => self.remove.push(Step::Remove { at }),
        }
    }

    /// Plans to make an entry from the most alike one of the basis trees.
    fn add_from_bases(
        &mut self,
        (id, place): (u32, Place),
        bases: Bases<'_>,
        wanted: &Manifest,
        rules: Rules,
        followed: &HashSet<u32>,
    ) -> Left {
        let entry = wanted.get(id).filter(|_| !self.leaders.contains_key(&id));
        let found = entry.and_then(|entry| basis::find(entry, place, bases, rules, followed.contains(&id)));
        let Some((way, line)) = found else { return Left::Everything };
        self.lines.insert(id, line);
        match way {
            Way::Nothing => return Left::Nothing,
            Way::Own => return Left::Everything,
            Way::Copy(at) => self.adjust.push(Step::CopyBasis { id, at }),
            Way::Delta(at) => {
                self.fetch.push_back(Fetch { id, at: Some(at), elsewhere: true, is_doubted: false });
            }
            Way::Link(at) => {
                self.adjust.push(Step::LinkBasis { id, at });
                self.linked.insert(id);
                self.updates.extend((place == Place::File).then_some(id));
            }
        }
        Left::Planned
    }

    /// True if an entry becomes a further name of a basis tree's, so that it takes no inode.
    pub(super) fn is_linked(&self, id: u32) -> bool {
        self.linked.contains(&id)
    }

    fn make(&mut self, id: u32, at: Option<u32>, wanted: &Manifest) {
        let Some(entry) = wanted.get(id).filter(|_| !self.leaders.contains_key(&id)) else { return };
        match &entry.kind {
            Kind::Directory => self.first.push(Step::MakeDirectory { id }),
            Kind::File { .. } => {
                self.fetch.push_back(Fetch { id, at, elsewhere: false, is_doubted: false });
            }
            Kind::Symlink { .. } => self.adjust.push(Step::MakeLink { id }),
        }
    }

    /// Plans to make a new file by moving the file at `at`, which has its content. This needs a
    /// file that is to be removed and is not moved yet.
    pub(super) fn move_here(&mut self, id: u32, at: u32, hash: Hash) -> bool {
        let is_free = self.place_of_removal(at).is_ok() && self.moved.insert(at);
        if is_free {
            self.moves.push(Step::Move { id, at, hash });
        }
        is_free
    }

    /// Finds the removal of an entry. Positions descend, since the removals are in reverse order.
    fn place_of_removal(&self, at: u32) -> Result<usize, usize> {
        self.remove.binary_search_by(|step| match *step {
            Step::Remove { at: other } => at.cmp(&other),
            _ => Ordering::Less,
        })
    }

    /// Cancels the removals of files that were to be moved: either they are gone, or moving them
    /// failed and they are better kept.
    pub(super) fn spare_moved(&mut self) {
        let moved = &self.moved;
        self.remove.retain(|step| !matches!(step, Step::Remove { at } if moved.contains(at)));
    }

    /// Records that a file has the right content already.
    pub(super) fn only_adjust(&mut self, id: u32) {
        self.updates.remove(&id);
        if self.verifies.get(&id) != Some(&false) {
            self.adjusts.insert(id);
        }
        self.adjust.push(Step::Adjust { id });
    }

    /// True if the plan changes anything.
    pub(super) fn changes_anything(&self) -> bool {
        let Self { first, adjust, moves, links, remove, directory_times, .. } = self;
        let steps = [first, adjust, moves, links, remove, directory_times];
        !self.fetch.is_empty() || steps.iter().any(|steps| !steps.is_empty())
    }

    /// Wanted entries with no present entry in their place, as far as is known.
    pub(super) fn created(&self) -> impl Iterator<Item = u32> {
        self.changes.iter().filter_map(|change| match *change {
            Change::Create { id } => Some(id),
            _ => None,
        })
    }

    /// Number of entries that go with the directory that this entry replaces.
    pub(super) fn cleared(&self, id: u32) -> u64 {
        self.cleared.get(&id).copied().unwrap_or(0)
    }

    /// Plans the root's own metadata.
    pub(super) fn set_root(
        &mut self,
        (mode, time): (u16, Time),
        present: (u16, Time),
        attributes: AttributesDiffer,
    ) {
        let (present_mode, present_time) = present;
        let differs = Differs {
            size: false,
            time: !self.time_rule.are_same(time, present_time),
            mode: (mode ^ present_mode) & self.mode_mask != 0,
            attributes: Letters::of(attributes),
        };
        self.root = Some(differs).filter(|differs| *differs != Differs::default());
    }

    /// Number of entries that would be deleted.
    pub(super) fn going(&self) -> u64 {
        self.remove.len() as u64 + self.cleared.values().sum::<u64>()
    }

    /// Number of deleted entries that come back nowhere else, as an estimate. If all deleted files
    /// are merely renamed, their directories count as renamed too.
    pub(super) fn lost(&self, present: &Manifest) -> u64 {
        let goes = |at: &u32| self.place_of_removal(*at).is_ok();
        let elsewhere = self.fetch.iter().filter(|fetch| fetch.elsewhere).filter_map(|fetch| fetch.at);
        let moved: HashSet<u32> = elsewhere.filter(goes).collect();
        let is_moved = |at: u32| {
            moved.contains(&at)
                || present.get(at).is_some_and(|entry| entry.is_directory()) && !moved.is_empty()
        };
        let is_all_moved = self.cleared.is_empty()
            && self.remove.iter().all(|step| matches!(*step, Step::Remove { at } if is_moved(at)));
        if is_all_moved { 0 } else { self.going().saturating_sub(moved.len() as u64) }
    }

    /// The first entries that would be deleted.
    pub(super) fn head(&self, present: &Manifest) -> Vec<Doomed> {
        let doomed = self.changes.iter().flat_map(|change| {
            let (own, at) = match *change {
                Change::Remove { at } => (present.get(at), None),
                Change::Replace { at, .. } => (None, Some(at)),
                _ => (None, None),
            };
            own.into_iter().chain(at.into_iter().flat_map(|at| below(present, at)))
        });
        doomed.take(HEAD_MAX).map(|entry| Doomed { what: what(entry), path: entry.path.to_vec() }).collect()
    }

    /// The entries that would be deleted, only the topmost of each subtree, in order.
    pub(super) fn withheld(&self, present: &Manifest) -> Vec<TreePath> {
        let mut paths: Vec<TreePath> = Vec::new();
        for change in &self.changes {
            let at = match *change {
                Change::Remove { at } => at,
                Change::Replace { id, at } if self.cleared.contains_key(&id) => at,
                _ => continue,
            };
            if let Some(entry) = present.get(at)
                && paths.last().is_none_or(|last| !entry.path.is_below(last))
            {
                paths.push(entry.path.to_path());
            }
        }
        paths
    }

    /// Drops the obstacles in place of directories that may not be cleared.
    pub(super) fn pass_over_obstacles(&mut self, full: &Plan) {
        self.changes
            .retain(|change| !matches!(change, Change::Obstacle { id, .. } if full.cleared.contains_key(id)));
    }

    /// Drops all obstacles.
    pub(super) fn drop_obstacles(&mut self) {
        self.changes.retain(|change| !matches!(change, Change::Obstacle { .. }));
    }

    /// True if a kept entry occupies the place of a wanted one.
    pub(super) fn has_obstacles(&self) -> bool {
        self.changes.iter().any(|change| matches!(change, Change::Obstacle { .. }))
    }

    /// Number and bytes of the files whose content is missing or must be verified, among those that
    /// `counts` selects.
    pub(super) fn content(&self, wanted: &Manifest, counts: impl Fn(&Fetch) -> bool) -> (u64, u64) {
        let files = self.fetch.iter().filter(|fetch| counts(fetch));
        let sizes = files.filter_map(|fetch| wanted.get(fetch.id)).map(|entry| entry.size());
        sizes.fold((0, 0), |(count, bytes), size| (count + 1, bytes + size))
    }

    /// Counts the planned changes.
    pub(super) fn count(&self, wanted: &Manifest, tally: &mut Tally) {
        for change in &self.changes {
            match change {
                Change::Create { .. } => tally.created += 1,
                Change::Replace { id, .. } => {
                    tally.created += 1;
                    tally.deleted += self.cleared(*id);
                }
                Change::Update { id, .. } if self.updates.contains(id) => tally.updated += 1,
                Change::Update { .. } => tally.created += 1,
                Change::Adjust { .. } | Change::Verify { adjust: true, .. } => tally.adjusted += 1,
                Change::Remove { .. } => tally.deleted += 1,
                Change::Verify { adjust: false, .. } | Change::Obstacle { .. } => {}
            }
        }
        tally.adjusted += u64::from(self.root.is_some());
        (tally.files, tally.sent_bytes) = self.content(wanted, |fetch| !fetch.is_doubted);
    }

    /// The entries that the plan excludes, with the reasons.
    pub(super) fn problems(&self, wanted: &Manifest) -> Vec<Problem> {
        let problem = |id: u32, kind, cause: &str| {
            let path = wanted.path(id).map(PathRef::to_vec).unwrap_or_default();
            Problem { kind, path, cause: cause.to_owned() }
        };
        let obstacles = self.changes.iter().filter_map(|change| match change {
            Change::Obstacle { id, .. } => Some(problem(
                *id,
                ProblemKind::Obstacle,
                "a directory stands in its place, with content that may not be deleted",
            )),
            _ => None,
        });
        let twins = self.twins.iter().map(|(id, twin)| {
            let cause = format!("the destination's filesystem takes this name and {twin} for one");
            problem(*id, ProblemKind::Obstacle, &cause)
        });
        obstacles.chain(twins).collect()
    }

    /// Entries that the plan passes over.
    pub(super) fn skipped(&self) -> impl Iterator<Item = u32> {
        [&self.unsafe_links, &self.non_regular, &self.devices].into_iter().flatten().copied()
    }

    /// Reports the links that were excluded because they lead out of the tree.
    pub(super) fn links_excluded(&self, wanted: &Manifest) -> Option<Event> {
        let first = wanted.path(*self.unsafe_links.first()?)?.to_vec();
        Some(Event::LinksExcluded { links: self.unsafe_links.len() as u64, first })
    }

    /// Reports the entries that were passed over, since the options do not copy their kind.
    pub(super) fn non_regular_skipped(&self, wanted: &Manifest) -> Option<Event> {
        let first = wanted.path(*self.non_regular.first()?)?.to_vec();
        Some(Event::NonRegularSkipped { entries: self.non_regular.len() as u64, first })
    }

    /// Reports the devices that were passed over, since only the superuser can make them.
    pub(super) fn devices_passed_over(&self, wanted: &Manifest) -> Option<Event> {
        let first = wanted.path(*self.devices.first()?)?.to_vec();
        Some(Event::DevicesPassedOver { devices: self.devices.len() as u64, first })
    }

    /// Reports present entries that are not wanted where nothing is removed. Only the topmost of
    /// each subtree, and no more than a person reads.
    pub(super) fn left(
        &self,
        wanted: &Manifest,
        present: &Manifest,
        protects: impl Fn(EntryRef<'_>) -> bool,
    ) -> Vec<Event> {
        const LEFT_MAX: usize = 100;
        if self.changes.is_empty() && wanted.len() == present.len() {
            return Vec::new();
        }
        let is_wanted = |path: PathRef<'_>| wanted.position(path).is_some();
        let left = present.entries().filter(|entry| {
            let is_uppermost = entry.path.parent().is_none_or(is_wanted);
            is_uppermost && !is_wanted(entry.path) && !protects(*entry)
        });
        left.take(LEFT_MAX)
            .map(|entry| Event::Left { what: what(entry), path: entry.path.to_vec() })
            .collect()
    }

    /// The list of the changes, for display; `root` is the change of the root itself.
    pub(super) fn listing(
        &self,
        wanted: &Manifest,
        present: &Manifest,
        root: Option<(Action, Differs)>,
    ) -> Listing {
        let trees = Trees {
            wanted,
            present,
            updates: &self.updates,
            lines: &self.lines,
            leaders: &self.leaders,
            mode_mask: self.mode_mask,
            attributes: self.attributes,
            time_rule: self.time_rule,
        };
        Listing::of(&self.changes, root, &trees)
    }
}

/// Adds a change for each entry that differs only in the spelling of its name, and records these
/// entries.
fn with_respelled(
    changes: Vec<Change>,
    wanted: &Manifest,
    present: &Manifest,
    spelling: &Spelling,
    respelled: &mut HashSet<u32>,
) -> Vec<Change> {
    let mut renamed = spelling.renamed().peekable();
    if renamed.peek().is_none() {
        return changes;
    }
    let mut adjust = |id| {
        respelled.insert(id);
        wanted.path(id).and_then(|path| present.position(path)).map(|at| Change::Adjust { id, at })
    };
    let mut merged = Vec::with_capacity(changes.len());
    for change in changes {
        if let Some(id) = change.wanted() {
            while let Some(before) = renamed.next_if(|&other| other < id) {
                merged.extend(adjust(before));
            }
            let _ = renamed.next_if_eq(&id);
        }
        merged.push(change);
    }
    merged.extend(renamed.filter_map(adjust));
    merged
}
