//! `KeptTrees`: scans that a kept agent keeps for the next run.
//!
//! A tree that a run listed is listed once more after that run, by a thread of its own that watches
//! each directory first. The next run then scans the touched paths only, and none if nothing was
//! touched. Any doubt leads to a real scan: lost events, other rules, another mount, a root that
//! was replaced, a scan of more than ten minutes ago. `--checksum` always scans.
//!
//! inotify watches the directories, up to a share of the number that the user may watch. Beyond
//! that, fanotify watches the whole filesystem, where this user may. inotify comes first, since it
//! hears nothing of other programs.
//!
//! A small tree is scanned each time: that takes a millisecond or two.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::disk::error::DiskError;
use crate::disk::root::Root;
use crate::disk::scan::snapshot::{Doubt, Ground, Snapshot};
use crate::disk::scan::{Look, ScanOptions, Scanned, Subject, begin, scan};
use crate::disk::stat::Inode;
use crate::exchange::common::scan_options;
use crate::log::debug;
use crate::tree::filter::{Filter, IgnoreFile};
use crate::tree::path::TreePath;
use crate::tree::subtrees::{Coverage, SubtreeSet};
use crate::watch::changes::Changes;
use crate::watch::settle::Touched;
use crate::wire::hello::{Options, Role};

/// Fewest entries of a kept tree. The scan of so many takes about 2 ms, and has no doubts.
pub const ENTRIES_MIN: usize = 1000;

/// Most entries of a kept tree: about 50 MB of memory.
const ENTRIES_MAX: usize = 500_000;

/// Most kept trees.
const TREES_MAX: usize = 2;

/// Age from which a whole tree is scanned again. Writes through a mapping that lasts, or through a
/// name that a file got outside of the tree, cause no event.
const AGE_MAX: Duration = Duration::from_secs(600);

/// Part of the directories that this user may watch, for one tree.
const WATCHES_SHARE: usize = 4;

/// Most watched directories of a tree, and the number if the system tells no limit.
const DIRECTORIES_MAX: usize = 1 << 16;

/// A scan pays if it is about at most this share of a tree.
const TOUCHED_SHARE: usize = 4;

/// Most directories of a tree that inotify may watch for this user.
fn watches_max() -> usize {
    let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").ok();
    let limit = limit.and_then(|text| text.trim().parse::<usize>().ok());
    limit.map_or(DIRECTORIES_MAX, |limit| DIRECTORIES_MAX.min(limit / WATCHES_SHARE))
}

/// All that shapes the scan of a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    role: Role,
    /// Those that shape the filter.
    run: Options,
    options: ScanOptions,
}

impl View {
    /// A source or a destination as these options show it.
    pub(super) fn new(role: Role, options: &Options) -> Self {
        let scan = scan_options(options, &Subject::Whole);
        let scan = match role {
            Role::Sender => ScanOptions {
                set_id_owner: options.set_id_owner,
                cross_mounts: !options.one_file_system,
                follows: options.follows,
                ..scan
            },
            Role::Receiver => ScanOptions { doubts: true, is_destination: true, ..scan },
        };
        let run = Options {
            rules: options.rules.clone(),
            anchor: options.anchor.clone(),
            delete_excluded: options.delete_excluded,
            gitignore: options.gitignore,
            nul_ended: options.nul_ended,
            ..Options::default()
        };
        Self { role, run, options: scan }
    }

    fn filter(&self) -> Filter {
        match self.role {
            Role::Sender => self.run.hiding(&self.run.anchor),
            Role::Receiver => self.run.protecting(),
        }
    }

    fn is_source(&self) -> bool {
        !self.options.is_destination
    }
}

/// The scans that a kept agent keeps.
pub struct KeptTrees {
    state: Mutex<State>,
    /// Signals that a tree is no longer busy.
    rested: Condvar,
    entries_min: usize,
    directories_max: usize,
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
}

#[derive(Default)]
struct State {
    /// The trees, the one used last at the end.
    trees: Vec<KeptTree>,
    /// Roots that are to be kept.
    wanted: Vec<(PathBuf, View)>,
    /// The trees that some thread brings up to date.
    busy: Vec<Id>,
    /// True while a thread works on what is wanted and due.
    is_attended: bool,
}

/// A root, and the way to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Id {
    inode: Inode,
    view: View,
}

struct KeptTree {
    id: Id,
    path: PathBuf,
    ground: Ground,
    changes: Changes,
    /// Begin of the scan of the whole tree.
    listed: Instant,
    snapshot: Snapshot,
    ignores: Vec<IgnoreFile>,
    /// True if a run has used it since it was brought up to date.
    is_due: bool,
}

impl KeptTrees {
    /// Keeps nothing yet, and no tree of less than `entries_min` entries. `clock` tells the time.
    pub fn new(entries_min: usize, clock: impl Fn() -> Instant + Send + Sync + 'static) -> Arc<Self> {
        Self::with_watches(watches_max(), entries_min, clock)
    }

    /// As [`new`](Self::new), with at most `directories_max` directories of a tree under inotify.
    fn with_watches(
        directories_max: usize,
        entries_min: usize,
        clock: impl Fn() -> Instant + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            rested: Condvar::new(),
            entries_min,
            directories_max,
            clock: Box::new(clock),
        })
    }

    /// Lists a whole tree: by its kept scan and its changes since, or by a scan.
    ///
    /// # Errors
    /// As [`scan`].
    pub(super) fn list(
        &self,
        root: &Root,
        view: View,
        filter: &mut Filter,
        look: &mut dyn Look,
    ) -> Result<Scanned, DiskError> {
        self.list_telling(root, view, filter, look).map(|(scanned, _)| scanned)
    }

    /// As [`list`](Self::list), and tells how many paths were touched, or why all were scanned.
    fn list_telling(
        &self,
        root: &Root,
        view: View,
        filter: &mut Filter,
        look: &mut dyn Look,
    ) -> Result<(Scanned, Result<usize, Doubt>), DiskError> {
        if filter.has_merges() {
            // Any directory may bring rules for those below it, and for others by a nested file.
            return Ok((scan(root, &Subject::Whole, &view.options, Some(filter), look)?, Err("merge-files")));
        }
        let id = Id { inode: root.inode(), view };
        let why = match self.take(&id) {
            Some(tree) => match tree.listed_again(root, (self.clock)()) {
                Ok((tree, scanned, touched)) => {
                    begin(root, filter)?;
                    debug!("scan kept=true entries={} touched={touched}", scanned.manifest.len());
                    for file in &tree.ignores {
                        let _ = filter.add(file.clone());
                    }
                    self.rest(&id, Some(KeptTree { is_due: true, ..tree }));
                    return Ok((scanned, Ok(touched)));
                }
                Err(why) => why,
            },
            None => "new",
        };
        debug!("scan kept=false why={why}");
        self.rest(&id, None);
        let scanned = scan(root, &Subject::Whole, &id.view.options, Some(filter), look)?;
        let count = scanned.manifest.len();
        let is_fit = Snapshot::of(root, &id.view.options, &scanned, Vec::new()).is_ok();
        // The run may fill a destination.
        let may_grow = id.view.options.is_destination;
        let is_sized = (count >= self.entries_min || may_grow) && count <= ENTRIES_MAX;
        if is_fit && is_sized && !id.view.options.hash {
            self.want(root.path().to_owned(), id.view);
        }
        Ok((scanned, Err(why)))
    }

    /// Keeps a tree that somebody is likely to ask for.
    pub fn warm(self: &Arc<Self>, role: Role, path: &Path, options: &Options) {
        let view = View::new(role, options);
        let filter = view.filter();
        let is_excluded = role == Role::Sender && filter.excludes_tree();
        if !options.checksum && !is_excluded && !filter.has_merges() {
            self.want(path.to_owned(), view);
            self.settle();
        }
    }

    /// Brings the trees that runs have used up to date, and lists those that are wanted, on a
    /// thread of its own. The next run waits for it only if it is about the same tree.
    pub fn settle(self: &Arc<Self>) {
        let mut state = self.state();
        if state.is_attended || state.wanted.is_empty() && !state.trees.iter().any(|tree| tree.is_due) {
            return;
        }
        let this = Arc::clone(self);
        state.is_attended = thread::Builder::new().spawn(move || this.attend()).is_ok();
    }

    fn attend(&self) {
        loop {
            let mut state = self.state();
            if let Some(at) = state.trees.iter().position(|tree| tree.is_due) {
                let tree = state.trees.remove(at);
                let (id, path) = (tree.id.clone(), tree.path.clone());
                state.busy.push(id.clone());
                drop(state);
                let again = Root::open(&path).map_err(|_| "root-gone");
                let again = again.and_then(|root| tree.listed_again(&root, (self.clock)()));
                let again = again.map(|(tree, ..)| KeptTree { is_due: false, ..tree });
                if let Err(why) = &again {
                    debug!("keep ok=false why={why}");
                    self.want(path, id.view.clone());
                }
                self.rest(&id, again.ok());
            } else if let Some((path, view)) = state.wanted.pop() {
                drop(state);
                self.keep(&path, view);
            } else {
                state.is_attended = false;
                return;
            }
        }
    }

    /// Scans a tree to keep it.
    fn keep(&self, path: &Path, view: View) {
        let Ok(root) = Root::open(path) else { return };
        let id = Id { inode: root.inode(), view };
        let mut state = self.state();
        if state.busy.contains(&id) || state.trees.iter().any(|tree| tree.id == id) {
            return;
        }
        state.busy.push(id.clone());
        drop(state);
        let begin = (self.clock)();
        let tree = KeptTree::list(&root, &id, begin, self.directories_max);
        let tree = tree.and_then(|tree| match tree.snapshot.len() {
            count if count < self.entries_min => Err("small-tree"),
            count if count > ENTRIES_MAX => Err("large-tree"),
            _ => Ok(tree),
        });
        match &tree {
            Ok(tree) => debug!(
                "keep ok=true entries={} ms={}",
                tree.snapshot.len(),
                ((self.clock)() - begin).as_millis()
            ),
            Err(why) => debug!("keep ok=false why={why}"),
        }
        self.rest(&id, tree.ok());
    }

    fn want(&self, path: PathBuf, view: View) {
        let mut state = self.state();
        state.wanted.retain(|(other, other_view)| (other, other_view) != (&path, &view));
        state.wanted.push((path, view));
        if state.wanted.len() > TREES_MAX {
            state.wanted.remove(0);
        }
    }

    /// Takes a tree out, once no other thread works on it.
    fn take(&self, id: &Id) -> Option<KeptTree> {
        let waiting = |state: &mut State| state.busy.contains(id);
        let waited = self.rested.wait_while(self.state(), waiting);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.busy.push(id.clone());
        let at = state.trees.iter().position(|tree| tree.id == *id)?;
        Some(state.trees.remove(at))
    }

    /// Puts a tree back, if it is still good.
    fn rest(&self, id: &Id, tree: Option<KeptTree>) {
        let mut state = self.state();
        state.busy.retain(|busy| busy != id);
        state.trees.extend(tree);
        let surplus = state.trees.len().saturating_sub(TREES_MAX);
        state.trees.drain(..surplus);
        drop(state);
        self.rested.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeptTree {
    /// Scans a whole tree whose directories are watched first.
    fn list(root: &Root, id: &Id, listed: Instant, directories_max: usize) -> Result<Self, Doubt> {
        let is_source = id.view.is_source();
        let inotify = || Changes::begin(is_source, directories_max);
        let fanotify = || Changes::begin_on_filesystem(root.descriptor(), is_source);
        Self::list_watched(root, id, listed, inotify()).or_else(|why| {
            if why == "watch" { Self::list_watched(root, id, listed, fanotify()) } else { Err(why) }
        })
    }

    fn list_watched(root: &Root, id: &Id, listed: Instant, changes: Changes) -> Result<Self, Doubt> {
        if changes.blindness().is_some() {
            return Err("watch");
        }
        let ground = Ground::of(root).ok_or("filesystem")?;
        let mut filter = id.view.filter();
        let mut looking = Looking { changes: &changes, excluded: Vec::new() };
        let scanned = scan(root, &Subject::Whole, &id.view.options, Some(&mut filter), &mut looking);
        let scanned = scanned.map_err(|_| "unreadable")?;
        let snapshot = Snapshot::of(root, &id.view.options, &scanned, looking.excluded)?;
        if changes.blindness().is_some() {
            return Err("watch");
        }
        let (path, ignores) = (root.path().to_owned(), filter.files().to_vec());
        Ok(Self { id: id.clone(), path, ground, changes, listed, snapshot, ignores, is_due: false })
    }

    /// Lists the tree as it is now, and tells how many paths were touched.
    fn listed_again(self, root: &Root, now: Instant) -> Result<(Self, Scanned, usize), Doubt> {
        let options = self.id.view.options.clone();
        if now.saturating_duration_since(self.listed) >= AGE_MAX {
            return Err("age");
        }
        if Ground::of(root).as_ref() != Some(&self.ground) {
            return Err("mount-or-root");
        }
        let touched = match self.changes.take() {
            Some(Touched::Everything) => return Err("everything-touched"),
            Some(Touched::Subtrees(touched)) => touched,
            None => SubtreeSet::default(),
        };
        let count = touched.subtrees().len();
        let unwatched = self.snapshot.unwatched(&options).map(|path| (path.clone(), false));
        let scope = SubtreeSet::new(touched.subtrees().iter().cloned().chain(unwatched));
        let tree = if scope.is_empty() { self } else { self.updated(root, &scope)? };
        if tree.changes.blindness().is_some() {
            return Err("watch");
        }
        let scanned = tree.snapshot.scanned(root, &options)?;
        Ok((tree, scanned, count))
    }

    /// Scans parts of the tree.
    fn updated(self, root: &Root, scope: &SubtreeSet) -> Result<Self, Doubt> {
        let View { options, .. } = self.id.view.clone();
        if scope.subtrees().len() > self.snapshot.len() / TOUCHED_SHARE {
            return Err("much-touched");
        }
        let is_source = self.id.view.is_source();
        let mut filter = self.id.view.filter();
        if is_source && scope.subtrees().iter().any(|(path, _)| filter.is_rule_file(path.name())) {
            return Err("rules-touched");
        }
        let mut looking = Looking { changes: &self.changes, excluded: Vec::new() };
        let subject = Subject::Subtrees(scope.clone(), Arc::default());
        let part = scan(root, &subject, &options, Some(&mut filter), &mut looking);
        let part = part.map_err(|_| "unreadable")?;
        if is_source && !self.has_rules(filter.files(), scope) {
            return Err("rules-touched");
        }
        let snapshot = self.snapshot.updated(root, &options, scope, &part, looking.excluded)?;
        let directory = |file: &IgnoreFile| TreePath::new(file.directory.clone());
        let is_there = |file| directory(file).map_or(true, |path| snapshot.has_directory(&path));
        if self.ignores.iter().all(is_there) { Ok(Self { snapshot, ..self }) } else { Err("rules-touched") }
    }

    /// True if the ignore files that the scan of a scope read are the known ones.
    fn has_rules(&self, read: &[IgnoreFile], scope: &SubtreeSet) -> bool {
        let is_read = |file: &&IgnoreFile| {
            let coverage = TreePath::new(file.directory.clone()).map(|path| scope.coverage(&path));
            file.directory.is_empty() || matches!(coverage, Ok(Coverage::Above | Coverage::Recursive))
        };
        self.ignores.iter().filter(is_read).count() == read.len()
            && read.iter().all(|file| self.ignores.contains(file))
    }
}

/// Watches each directory that is read, and records what is excluded.
struct Looking<'a> {
    changes: &'a Changes,
    excluded: Vec<TreePath>,
}

impl Look for Looking<'_> {
    fn enter(&mut self, directory: BorrowedFd<'_>, path: Option<&TreePath>) {
        self.changes.enter(directory, path);
    }

    fn exclude(&mut self, path: &[u8], _reason: &dyn Fn() -> Option<String>) {
        self.excluded.extend(TreePath::new(path).ok());
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;
