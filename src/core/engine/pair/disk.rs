//! Performs works on trees in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, MutexGuard};

use super::baseline::Baseline;
use super::brake::known;
use super::source::JarFile;
use super::tree::{Node, Tree, What, manifest, remove_with_all_below, time};
use crate::content::blocks::{BlockSize, Content, Finding, Nodes};
use crate::content::hash::{Hash, Piece};
use crate::content::testing::reader;
use crate::engine::WorkError;
use crate::engine::transfer::receive::{look, step_all};
use crate::engine::transfer::{Draft, SourceFile, Target};
use crate::engine::work::{
    Destination, Opened, Planned, ReceiverOutcome, ReceiverWork, ReportOrder, Room, RootMetadata, Step,
};
use crate::monitor::ProblemKind;
use crate::tree::change::Rebuild;
use crate::tree::doubt::{Doubt, Doubts};
use crate::tree::entry::{Entry, Kind, Time};
use crate::tree::manifest::Manifest;
use crate::tree::path::TreePath;
use crate::tree::subtrees::{Coverage, SubtreeSet};
use crate::tree::time_rule::TimeRule;
use crate::tree::tree_id::Pair;

/// State of a prehash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prehash {
    UnderWay,
    Done,
}

/// The receiver's disk.
pub(super) struct ReceiverDisk {
    state: DiskState,
    /// Holds the state while a work is performed.
    shared: JarTarget,
}

/// A file that is being made.
pub(super) type StagedContent = Arc<Mutex<Vec<u8>>>;

pub(super) struct DiskState {
    pub(super) tree: Tree,
    pub(super) root: (u16, Time),
    pub(super) complete: bool,
    /// Staged contents, by path.
    pub(super) staged: BTreeMap<TreePath, StagedContent>,
    pub(super) baseline: Baseline,
    /// Free room, if the disk reports it.
    pub(super) room: Option<Room>,
    /// Files that a power cut may have damaged.
    pub(super) doubted: BTreeMap<TreePath, Doubt>,
    /// Facts about the destination; by default that it is a copy.
    pub(super) destination: Destination,
    /// True if `a` and `A` are one name.
    pub(super) folds: bool,
    /// Names on disk that differ from the wanted names in `tree`.
    pub(super) spelled: BTreeMap<TreePath, TreePath>,
    /// State of the prehashes of all bases; `None` if there are none.
    pub(super) prehash: Option<Prehash>,
    /// Number of drafts that were discarded.
    pub(super) discarded: usize,
    /// True if no draft can be made as long as the file at once.
    pub(super) is_cramped: bool,
    wanted: Option<Arc<Manifest>>,
    pub(super) present: Arc<Manifest>,
    /// The tree at the time of listing: the entries that may be replaced.
    pub(super) listed: Tree,
}

/// The destination, as works see it.
#[derive(Clone)]
pub(super) struct JarTarget(Arc<Mutex<DiskState>>);

impl fmt::Debug for JarTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("jar")
    }
}

impl JarTarget {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(DiskState::new(Tree::new()))))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, DiskState> {
        self.0.lock().unwrap()
    }
}

impl Deref for ReceiverDisk {
    type Target = DiskState;

    fn deref(&self) -> &DiskState {
        &self.state
    }
}

impl DerefMut for ReceiverDisk {
    fn deref_mut(&mut self) -> &mut DiskState {
        &mut self.state
    }
}

/// A draft; what is in it stays staged.
#[derive(Debug)]
pub(super) struct JarDraft {
    path: TreePath,
    content: StagedContent,
    target: JarTarget,
}

impl JarDraft {
    /// An empty draft of nothing in particular.
    pub(super) fn empty() -> Self {
        let path = TreePath::new(&b"draft"[..]).unwrap();
        Self { path, content: StagedContent::default(), target: JarTarget::new() }
    }

    /// The destination that it belongs to.
    pub(super) fn target(&self) -> JarTarget {
        self.target.clone()
    }

    /// What of it stays staged.
    pub(super) fn staged(&self) -> StagedContent {
        Arc::clone(&self.content)
    }

    pub(super) fn content(&self) -> MutexGuard<'_, Vec<u8>> {
        self.content.lock().unwrap()
    }
}

impl Content for JarDraft {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        reader(&self.content())(buffer, offset)
    }
}

impl Draft<JarFile> for JarDraft {
    fn length(&self) -> u64 {
        self.content().len() as u64
    }

    fn keep(&mut self, length: u64) -> Done {
        self.content().truncate(length as usize);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Done {
        self.content().extend_from_slice(bytes);
        Ok(())
    }

    fn append_zeros(&mut self, count: u64) -> Done {
        let length = self.content().len() + count as usize;
        self.content().resize(length, 0);
        Ok(())
    }

    fn append_from(
        &mut self,
        basis: &JarFile,
        offset: u64,
        length: u64,
        visit: &mut (dyn FnMut(Piece<'_>) + Send),
    ) -> Done {
        let bytes = basis.read(offset, length as usize).map_err(|_| unwritable("the basis is shorter"))?;
        visit(Piece::Bytes(&bytes));
        self.append(&bytes)
    }

    fn read_back(&self, start: u64, visit: &mut dyn FnMut(Piece<'_>)) -> Done {
        visit(Piece::Bytes(&self.content()[start as usize..]));
        Ok(())
    }

    fn begin_with_zeros(&mut self, length: u64) -> Done {
        if self.target.state().is_cramped {
            return Err(unwritable("there is no room for all of it"));
        }
        *self.content() = vec![0; length as usize];
        Ok(())
    }

    fn fill(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.content()[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn overwrite(&mut self, bytes: &[u8], offset: u64) -> Done {
        self.fill(bytes, offset).map_err(|error| self.failed(error))
    }

    fn overwrite_with_zeros(&mut self, range: Range<u64>) -> Done {
        self.content()[range.start as usize..range.end as usize].fill(0);
        Ok(())
    }

    fn failed(&self, error: io::Error) -> WorkError {
        unwritable(&error.to_string())
    }

    fn discard(self) {
        let mut state = self.target.state();
        state.discarded += 1;
        state.staged.remove(&self.path);
    }
}

impl Target for JarTarget {
    type Opened = ();
    type Basis = JarFile;
    type Draft = JarDraft;

    fn open_basis(&self, at: u32) -> Result<JarFile, WorkError> {
        let content = self.state().basis(at).ok_or_else(corrupt)?;
        Ok(JarFile::new(content))
    }

    fn is_prehashed(&self, _: u32) -> bool {
        self.state().prehash == Some(Prehash::Done)
    }

    fn prehashed(&self, at: u32) -> Option<Nodes> {
        self.state().prehash?;
        let content = self.state().basis(at)?;
        let finding =
            Finding::of_all(content.len() as u64, BlockSize::for_size(content.len() as u64).halved());
        finding.help(&reader(&content)).unwrap();
        finding.finish()
    }

    fn cancel_prehash(&self, _: u32) {}

    fn pre_copy_room_bytes(&self) -> u64 {
        u64::MAX
    }

    fn staged(&self, id: u32) -> Result<Option<JarDraft>, WorkError> {
        let path = self.state().wanted(id).path;
        let content = self.state().staged.get(&path).cloned();
        Ok(content.map(|content| JarDraft { path, content, target: self.clone() }))
    }

    fn draft(&self, id: u32, _: bool) -> Result<JarDraft, WorkError> {
        let path = self.state().wanted(id).path;
        let content = Arc::clone(self.state().staged.entry(path.clone()).or_default());
        Ok(JarDraft { path, content, target: self.clone() })
    }

    fn install(&self, id: u32, draft: JarDraft, _: Option<JarFile>) -> Done {
        let content = draft.content().clone();
        self.state().staged.remove(&draft.path);
        self.state().install(id, content)
    }

    fn install_small(&self, files: &[(u32, Vec<u8>)]) -> Vec<Done> {
        files.iter().map(|(id, content)| self.state().install(*id, content.clone())).collect()
    }
}

pub(super) type Done = Result<(), WorkError>;

fn corrupt() -> WorkError {
    WorkError::Entry(ProblemKind::Corrupt, "it is not what was announced".to_owned())
}

fn unwritable(cause: &str) -> WorkError {
    WorkError::Entry(ProblemKind::Unwritable, cause.to_owned())
}

impl ReceiverDisk {
    pub(super) fn new(tree: Tree) -> Self {
        Self { state: DiskState::new(tree), shared: JarTarget::new() }
    }

    /// The same disk, for another run.
    pub(super) fn again(self) -> Self {
        let state = DiskState { wanted: None, ..self.state };
        Self { state, shared: JarTarget::new() }
    }

    pub(super) fn perform(&mut self, work: ReceiverWork<JarTarget>) -> ReceiverOutcome<JarTarget> {
        match work {
            ReceiverWork::Open { scope, .. } => ReceiverOutcome::Open(Ok((self.open(scope.as_ref()), ()))),
            ReceiverWork::Resolve((), questions) => ReceiverOutcome::Resolve(self.resolve(&questions)),
            ReceiverWork::Plan((), Planned { wanted, present, spelling, .. }) => {
                self.wanted = Some(wanted);
                self.take_names(&present, &spelling);
                assert_eq!(present, self.present);
                ReceiverOutcome::Plan(Ok(self.shared.clone()))
            }
            ReceiverWork::Apply(_, steps) => {
                ReceiverOutcome::Apply(steps.into_iter().map(|step| (step, self.apply(step))).collect())
            }
            ReceiverWork::Close { metadata, .. } => {
                self.staged.clear();
                if let Some(RootMetadata { mode, mtime, .. }) = metadata {
                    self.root = (mode.unwrap_or(self.root.0), mtime);
                }
                ReceiverOutcome::Close(Ok(()))
            }
            ReceiverWork::Confirm(_, ids) => {
                let removable = ids.into_iter().map(|id| (id, 0)).collect();
                ReceiverOutcome::Confirm { removable, missing: Vec::new() }
            }
            ReceiverWork::LoadBaseline(_) => {
                let record = self.baseline.load();
                ReceiverOutcome::LoadBaseline(record.map(|record| Rebuild::new(record).ahead()))
            }
            ReceiverWork::StoreBaseline { manifest, ignores } => {
                self.baseline.store(&manifest, &ignores);
                ReceiverOutcome::StoreBaseline
            }
            work => {
                std::mem::swap(&mut *self.shared.state(), &mut self.state);
                let outcome = perform_transfers(work);
                std::mem::swap(&mut *self.shared.state(), &mut self.state);
                outcome
            }
        }
    }
}

/// Performs a work on transfers, by the code that performs them in production.
fn perform_transfers(work: ReceiverWork<JarTarget>) -> ReceiverOutcome<JarTarget> {
    match work {
        ReceiverWork::Look { target, id, at, facts, samples } => {
            ReceiverOutcome::Look(id, look(&target, at, &facts, samples.as_ref()))
        }
        ReceiverWork::Report(target, orders) => {
            let report = |ReportOrder { mut transfer, strategy, may_be_staged }| {
                let reported = transfer.report(&target, strategy, may_be_staged);
                (transfer, reported)
            };
            ReceiverOutcome::Report(orders.into_iter().map(report).collect())
        }
        ReceiverWork::Query(target, queries) => {
            let replies = queries.into_iter().map(|(id, basis, query)| (id, query.reply(&target, basis)));
            ReceiverOutcome::Query(replies.collect())
        }
        ReceiverWork::Step(target, steps) => ReceiverOutcome::Step(step_all(&target, steps)),
        other => panic!("no work on transfers: {other:?}"),
    }
}

impl DiskState {
    fn new(tree: Tree) -> Self {
        Self {
            tree,
            root: (0o700, time(0)),
            complete: true,
            staged: BTreeMap::new(),
            baseline: Baseline::default(),
            room: None,
            doubted: BTreeMap::new(),
            destination: known(Pair { is_own: true, ..Pair::default() }),
            folds: false,
            spelled: BTreeMap::new(),
            prehash: None,
            discarded: 0,
            is_cramped: false,
            wanted: None,
            present: Arc::default(),
            listed: Tree::new(),
        }
    }

    fn open(&mut self, scope: Option<&SubtreeSet>) -> Opened {
        let mut seen = self.tree.clone();
        seen.retain(|path, _| scope.is_none_or(|scope| scope.coverage(path) != Coverage::Outside));
        self.present = manifest(&seen);
        self.listed = self.tree.clone();
        let mut doubts = Doubts::default();
        for (at, entry) in self.present.iter() {
            self.doubted.get(&entry.path.to_path()).into_iter().for_each(|&doubt| doubts.push(at, doubt));
        }
        Opened {
            manifest: Arc::clone(&self.present),
            doubts,
            path: b"/jar".to_vec(),
            problems: Vec::new(),
            complete: self.complete,
            inaccessible: Vec::new(),
            kept: crate::tree::kept::Kept::default(),
            filter: None,
            unclear: Arc::default(),
            time_rule: TimeRule::Exact,
            has_staged: !self.staged.is_empty(),
            room: self.room.clone(),
            accounts: None,
            bases: None,
            undoing: None,
            destination: Destination { metadata: Some(self.root), ..self.destination.clone() },
        }
    }

    fn wanted(&self, id: u32) -> Entry {
        let wanted = self.wanted.as_ref().expect("works on the tree come after the plan");
        wanted.get(id).expect("ids are those of the manifest").to_entry()
    }

    fn basis(&self, at: u32) -> Option<Arc<Vec<u8>>> {
        match &self.listed.get(&self.present.path(at)?.to_path())?.what {
            What::File(content) => Some(Arc::clone(content)),
            _ => None,
        }
    }

    fn install(&mut self, id: u32, content: Vec<u8>) -> Done {
        let entry = self.wanted(id);
        if let Some(at) = self.present.position(&entry.path)
            && self.present.get(at).is_some_and(|entry| entry.is_directory())
        {
            self.apply(Step::Clear { at })?;
        }
        self.put(
            &entry.path,
            Node { what: What::File(Arc::new(content)), mode: entry.mode, mtime: entry.mtime },
        )
    }

    /// Puts an entry into its place. It must not replace a directory, and its own directory must
    /// exist.
    fn put(&mut self, path: &TreePath, node: Node) -> Done {
        if !self.may_change(path) || self.tree.get(path).is_some_and(Node::is_directory) {
            return Err(unwritable("its directory is not there"));
        }
        self.tree.insert(path.clone(), node);
        self.touch(path);
        Ok(())
    }

    /// True if this path's directory exists and is writable.
    pub(super) fn may_change(&self, path: &TreePath) -> bool {
        let may = |node: &Node| node.is_directory() && node.mode & 0o300 == 0o300;
        path.parent().is_none_or(|parent| self.tree.get(&parent).is_some_and(may))
    }

    /// Sets the time of this path's directory, as a change in it does.
    pub(super) fn touch(&mut self, path: &TreePath) {
        let now = time(999);
        match path.parent() {
            Some(parent) => {
                if let Some(node) = self.tree.get_mut(&parent) {
                    node.mtime = now;
                }
            }
            None => self.root.1 = now,
        }
    }

    fn set(&mut self, entry: Entry) -> Done {
        let node = self.tree.get_mut(&entry.path).ok_or_else(|| unwritable("it is not there"))?;
        (node.mode, node.mtime) = (entry.mode, entry.mtime);
        Ok(())
    }

    fn apply(&mut self, step: Step) -> Done {
        match step {
            Step::Clear { at } => {
                let path = self.present.path(at).unwrap().to_path();
                let mut gone = self.tree.keys().filter(|below| **below == path || below.is_below(&path));
                assert!(gone.all(|path| self.may_change(path)), "{path} holds a locked directory");
                remove_with_all_below(&mut self.tree, &path);
                self.touch(&path);
                Ok(())
            }
            Step::Unlock { at } => {
                let path = self.present.path(at).unwrap().to_path();
                self.tree.get_mut(&path).unwrap().mode |= 0o700;
                Ok(())
            }
            Step::MakeDirectory { id } => {
                let entry = self.wanted(id);
                match self.tree.get_mut(&entry.path) {
                    Some(node) if node.is_directory() => {
                        node.mode |= 0o700;
                        Ok(())
                    }
                    Some(_) => Err(unwritable("something is in the way")),
                    None => {
                        let node = Node { what: What::Directory, mode: entry.mode | 0o700, mtime: time(999) };
                        self.put(&entry.path, node)
                    }
                }
            }
            Step::MakeLink { id } => {
                let entry = self.wanted(id);
                let Kind::Symlink { target } = entry.kind else { panic!("a link that is none") };
                let node = Node { what: What::Link(target.into()), mode: 0o777, mtime: entry.mtime };
                self.put(&entry.path, node)
            }
            Step::Restore { at } => self.set(self.present.get(at).unwrap().to_entry()),
            Step::Adjust { id } => self.set(self.wanted(id)),
            Step::Respell { id } => self.respell(&self.wanted(id).path),
            Step::Move { id, at, hash } => {
                let entry = self.wanted(id);
                let from = self.present.path(at).unwrap().to_path();
                assert!(!self.tree.contains_key(&entry.path), "{from} is moved onto something");
                assert!(self.may_change(&from), "{from} is in a locked directory");
                let Some(Node { what: What::File(content), .. }) = self.tree.remove(&from) else {
                    panic!("{from} is moved and is no file")
                };
                assert_eq!(Hash::of(&content), hash);
                self.touch(&from);
                let what = What::File(content);
                self.put(&entry.path, Node { what, mode: entry.mode, mtime: entry.mtime })
            }
            // No tree of the jar has options for that.
            Step::LinkBasis { .. } | Step::CopyBasis { .. } => unreachable!("there is no basis tree"),
            Step::HardLink { .. } | Step::Recall { .. } => unreachable!("the jar has no such options"),
            Step::Remove { at } => {
                let path = self.present.path(at).unwrap().to_path();
                let holds = self.tree.keys().any(|below| below.is_below(&path));
                assert!(!holds, "{path} is removed before what is in it");
                assert!(self.may_change(&path), "{path} is in a locked directory");
                self.tree.remove(&path);
                self.touch(&path);
                Ok(())
            }
        }
    }
}
