//! Performs works on trees in memory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde_bytes::ByteBuf;

use super::baseline::Baseline;
use super::brake::known;
use super::content::{blocks, chunks, window_of};
use super::tree::{Node, Tree, What, manifest, remove_with_all_below, time};
use crate::content::blocks::BlockSize;
use crate::content::chunk::Chunk;
use crate::content::delta;
use crate::content::hash::Hash;
use crate::content::sample::Samples;
use crate::content::testing::reader;
use crate::engine::work::{
    Advertised, CopiedFile, Destination, Found, Opened, Outcome, PushedFile, ReadContent, ReadFile,
    ReadOrder, Room, Scanned, SignOrder, SignedFile, SmallContent, SmallFile, SourceNext, SourceStep, Step,
    Work, WorkError,
};
use crate::monitor::ProblemKind;
use crate::tree::doubt::{Doubt, Doubts};
use crate::tree::entry::{Entry, EntryRef, Kind, Time};
use crate::tree::filter::Filter;
use crate::tree::manifest::Manifest;
use crate::tree::path::TreePath;
use crate::tree::record;
use crate::tree::subtrees::{Coverage, SubtreeSet};
use crate::tree::tree_id::{Pair, TreeId};
use crate::wire::message::{
    AbortKind, BasisReport, Blocks, Holes, Op, Stretch, Subject, Want, Window, is_signed,
};

/// Bytes of a piece; small, so that a file travels in many pieces.
const PIECE_BYTES: usize = 24 << 10;

/// A source's lie about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lie {
    /// The basis is the same.
    Same,
    /// The file has another hash.
    Hash,
}

/// The sender's disk.
pub(super) struct SenderDisk {
    pub(super) tree: Tree,
    pub(super) root: (u16, Time),
    pub(super) tree_id: TreeId,
    pub(super) complete: bool,
    /// Files that cannot be read.
    pub(super) unreadable: HashSet<TreePath>,
    /// Lies by file, with the number of times they are told.
    pub(super) lies: HashMap<TreePath, (Lie, usize)>,
    pub(super) filter: Filter,
    pub(super) piece_bytes: usize,
    pub(super) baseline: Baseline,
    /// The offered part of the tree, if not all of it.
    pub(super) scope: Option<SubtreeSet>,
    /// Length in bytes up to which files are pushed with a partial offer.
    pub(super) pushed_bytes_max: usize,
    /// True if pushed files carry wrong hashes.
    pub(super) pushes_lies: bool,
    /// True if the offer carries samples of all files that are long enough.
    pub(super) samples: bool,
    /// Holes of its files.
    pub(super) holes: Holes,
    offered: Arc<Manifest>,
    streams: HashMap<u32, Stream>,
}

/// A file on its way out.
struct Stream {
    content: Arc<Vec<u8>>,
    at: usize,
    ops: Vec<Op>,
    window: Option<Window>,
    signed: bool,
    signature: Option<Vec<u8>>,
    same: bool,
    to_cut: Option<u64>,
}

/// Length in bytes above which a basis is cut into chunks.
const CUT_BYTES_MIN: u32 = 100_000;

impl SenderDisk {
    pub(super) fn new(tree: Tree) -> Self {
        Self {
            tree,
            root: (0o755, time(77)),
            tree_id: TreeId::default(),
            complete: true,
            unreadable: HashSet::new(),
            lies: HashMap::new(),
            filter: Filter::default(),
            piece_bytes: PIECE_BYTES,
            baseline: Baseline::default(),
            offered: Arc::default(),
            streams: HashMap::new(),
            scope: None,
            pushed_bytes_max: 0,
            pushes_lies: false,
            samples: false,
            holes: Holes::default(),
        }
    }

    pub(super) fn perform(&mut self, work: Work) -> Outcome {
        match work {
            Work::Find => {
                let subject = Subject::directory(self.root.0, self.root.1, self.tree_id);
                let is_partial = self.scope.is_some();
                let baseline = self.baseline.digest().filter(|_| !is_partial);
                Outcome::Find(Ok(Found { subject, baseline, is_partial }))
            }
            Work::StoreBaseline { manifest, ignores } => self.baseline.store(&manifest, &ignores),
            Work::Scan => Outcome::Scan(Ok(self.scan())),
            Work::Read(orders) => {
                Outcome::Read(orders.into_iter().map(|order| (order.want.id, self.read(&order))).collect())
            }
            Work::Diff(files) => {
                Outcome::Read(files.into_iter().map(|signed| (signed.id, self.diff(&signed))).collect())
            }
            Work::Source { id, step } => Outcome::Source(id, self.step(id, step)),
            other => panic!("not a sender's: {other:?}"),
        }
    }

    fn scan(&mut self) -> Scanned {
        let seen: Tree = self
            .tree
            .iter()
            .filter(|(path, node)| !self.filter.excludes_within(path, node.is_directory()))
            .filter(|(path, _)| {
                self.scope.as_ref().is_none_or(|scope| scope.coverage(path) != Coverage::Outside)
            })
            .map(|(path, node)| (path.clone(), node.clone()))
            .collect();
        self.offered = manifest(&seen);
        let ignores = self.filter.files();
        let changed = self.baseline.changed(&self.offered, ignores);
        let is_new = self.scope.is_none()
            && self.baseline.stores
            && self.baseline.digest() != Some(record::digest(&self.offered, ignores));
        Scanned {
            manifest: Arc::clone(&self.offered),
            ignores: self.filter.files().to_vec(),
            problems: Vec::new(),
            complete: self.complete,
            excluded: (self.tree.len() - seen.len()) as u64,
            changed,
            is_new,
            scope: self.scope.as_ref().map(|scope| scope.as_found(&self.offered)),
            pushed: self.pushed(),
            sampled: self.offered.iter().filter_map(|(id, entry)| Some((id, self.samples(entry)?))).collect(),
            holes: self.holes.clone(),
        }
    }

    fn samples(&self, entry: EntryRef<'_>) -> Option<Samples> {
        let What::File(content) = &self.tree[&entry.path.to_path()].what else { return None };
        self.samples.then(|| Samples::of(content.len() as u64, &reader(content)).unwrap())
    }

    /// Contents of files that are short enough to push.
    fn pushed(&self) -> Vec<PushedFile> {
        let files =
            self.offered.iter().filter_map(|(id, entry)| match &self.tree[&entry.path.to_path()].what {
                What::File(content) if content.len() <= self.pushed_bytes_max => {
                    let hash = Hash::of(if self.pushes_lies { b"another" } else { content });
                    Some(PushedFile { id, hash, data: content.to_vec() })
                }
                _ => None,
            });
        files.collect()
    }

    fn content(&self, id: u32) -> Result<Arc<Vec<u8>>, WorkError> {
        let path = &self.offered.path(id).unwrap().to_path();
        match &self.tree[path].what {
            What::File(content) if !self.unreadable.contains(path) => Ok(Arc::clone(content)),
            _ => Err(WorkError::Entry(ProblemKind::Unreadable, "it cannot be read".to_owned())),
        }
    }

    /// The lie about this file, if one is due.
    fn lie(&mut self, id: u32) -> Option<Lie> {
        let (lie, count) = self.lies.get_mut(&self.offered.path(id).unwrap().to_path())?;
        *count = count.checked_sub(1)?;
        Some(*lie)
    }

    fn read(&mut self, order: &ReadOrder) -> Result<ReadFile, WorkError> {
        let ReadOrder { want, may_ask } = order;
        let content = self.content(want.id)?;
        let hash = Hash::of(&content);
        let same =
            want.basis_blocks().is_some_and(|basis| *basis == blocks(&content, content.len(), content.len()));
        let whole = || ReadContent::Whole(content.to_vec());
        let (content, hash) = match (self.lie(want.id), want.basis_blocks()) {
            (Some(Lie::Same), _) => (ReadContent::Same, Hash::of(b"a lie")),
            (Some(Lie::Hash), _) => (whole(), Hash::of(b"a lie")),
            (None, _) if same => (ReadContent::Same, hash),
            (None, Some(basis)) if *may_ask => (ReadContent::Differs { basis_length: basis.length }, hash),
            (None, _) => (whole(), hash),
        };
        Ok(ReadFile { content, hash })
    }

    fn diff(&mut self, signed: &SignedFile) -> Result<ReadFile, WorkError> {
        let content = self.content(signed.id)?;
        let hash = Hash::of(&content);
        let protocol = |error: delta::DeltaError| WorkError::Fatal(AbortKind::Protocol, error.to_string());
        let delta = if signed.signature.is_empty() {
            None
        } else {
            let signature = delta::Signature::check(&signed.signature, signed.basis_length as usize);
            signature.map_err(protocol)?.diff(&content).map_err(protocol)?
        };
        let content = delta.map_or_else(|| ReadContent::Whole(content.to_vec()), ReadContent::Delta);
        Ok(ReadFile { content, hash })
    }

    fn step(&mut self, id: u32, step: SourceStep) -> Result<(Vec<Op>, SourceNext), WorkError> {
        match step {
            SourceStep::Begin(want) => {
                let stream = Stream::begin(self.content(id)?, &want);
                self.streams.insert(id, stream);
            }
            SourceStep::Signatures(signatures) => {
                let stream = self.streams.get_mut(&id).unwrap();
                (stream.signed, stream.signature) = (true, signatures.into_iter().next());
            }
            SourceStep::Cut => return Ok((Vec::new(), SourceNext::Chunks)),
            SourceStep::Chunks(theirs) => self.streams.get_mut(&id).unwrap().continue_at(&theirs),
            SourceStep::More => {}
        }
        self.content(id)?;
        let (ops, next) = self.streams.get_mut(&id).unwrap().produce(self.piece_bytes)?;
        let wrong = Hash::of(b"a lie");
        let next = match next {
            SourceNext::End(_) if self.lie(id).is_some() => SourceNext::End(wrong),
            SourceNext::Same(_) if self.lie(id).is_some() => SourceNext::Same(wrong),
            next => next,
        };
        Ok((ops, next))
    }
}

impl Stream {
    fn begin(content: Arc<Vec<u8>>, want: &Want) -> Self {
        let mut stream = Self {
            content,
            at: 0,
            ops: Vec::new(),
            window: None,
            signed: false,
            signature: None,
            same: false,
            to_cut: None,
        };
        if let Some(staged) = &want.staged {
            let kept = stream.matching(staged);
            if kept > 0 {
                stream.at = kept;
                stream.ops.push(Op::Keep { length: kept as u64 });
            }
        }
        if let Some(basis) = want.basis_blocks() {
            let length = u32::try_from(basis.length).unwrap_or(u32::MAX);
            stream.same = stream.at == 0
                && *basis == blocks(&stream.content, stream.content.len(), stream.content.len());
            stream.window = (length > 0).then_some(Window { offset: 0, length });
            // Any range would do; the engines do not look at it.
            stream.to_cut = (length > CUT_BYTES_MIN && !stream.same).then_some(basis.length);
            let shared = stream.matching(basis);
            if stream.at == 0 && shared > 0 {
                stream.at = shared;
                stream.ops.push(Op::Copy { offset: 0, length: shared as u64 });
            }
        }
        stream
    }

    /// Takes over the beginning that the chunks of the basis share.
    fn continue_at(&mut self, theirs: &[Chunk]) {
        self.to_cut = None;
        let ours = chunks(&self.content);
        let shared = ours.iter().zip(theirs).take_while(|(ours, theirs)| ours == theirs);
        let shared: usize = shared.map(|(chunk, _)| chunk.length as usize).sum();
        if self.at == 0 && shared > 0 {
            self.at = shared;
            self.ops.push(Op::Copy { offset: 0, length: shared as u64 });
        }
    }

    /// Bytes of the beginning that equal this, in whole blocks.
    fn matching(&self, other: &Blocks) -> usize {
        let size = self.content.len();
        let beginning = self.content.get(..other.length as usize).unwrap_or(&self.content);
        let same =
            blocks(beginning, size, size).ids.iter().zip(&other.ids).take_while(|(a, b)| a == b).count();
        (same * BlockSize::for_size(size as u64).bytes() as usize).min(beginning.len())
    }

    fn produce(&mut self, piece_bytes: usize) -> Result<(Vec<Op>, SourceNext), WorkError> {
        if self.same {
            return Ok((Vec::new(), SourceNext::Same(Hash::of(&self.content))));
        }
        if let Some(length) = self.to_cut {
            return Ok((Vec::new(), SourceNext::Cut(Stretch { offset: 0, length })));
        }
        let mut ops = std::mem::take(&mut self.ops);
        if let (Some(window), false) = (self.window, self.signed || self.at == self.content.len()) {
            return Ok((ops, SourceNext::Sign(vec![window])));
        }
        let end = (self.at + piece_bytes).min(self.content.len());
        let piece = &self.content[self.at..end];
        let delta = match (self.window, &self.signature) {
            (Some(window), Some(signature)) => {
                let signature = delta::Signature::check(signature, window.length as usize)
                    .map_err(|error| WorkError::Fatal(AbortKind::Protocol, error.to_string()))?;
                signature.diff(piece).unwrap().map(|delta| (window, delta))
            }
            _ => None,
        };
        match delta {
            _ if piece.is_empty() => {}
            Some((window, delta)) => {
                let length = piece.len() as u32;
                ops.push(Op::Delta { window, length, delta: ByteBuf::from(delta) });
            }
            None => ops.push(Op::Data(ByteBuf::from(piece))),
        }
        self.at = end;
        let ended = self.at == self.content.len();
        Ok((ops, if ended { SourceNext::End(Hash::of(&self.content)) } else { SourceNext::More }))
    }
}

/// The receiver's disk.
pub(super) struct ReceiverDisk {
    pub(super) tree: Tree,
    pub(super) root: (u16, Time),
    pub(super) complete: bool,
    /// Staged contents, by path.
    pub(super) staged: BTreeMap<TreePath, Vec<u8>>,
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
    wanted: Option<Arc<Manifest>>,
    pub(super) present: Arc<Manifest>,
    /// The tree at the time of listing: the entries that may be replaced.
    pub(super) listed: Tree,
    begun: HashSet<u32>,
    /// Bases for which samples arrived, lengthened with zeros, by position.
    with_gap: HashMap<u32, Arc<Vec<u8>>>,
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
            wanted: None,
            present: Arc::default(),
            listed: Tree::new(),
            begun: HashSet::new(),
            with_gap: HashMap::new(),
        }
    }

    /// The same disk, for another run.
    pub(super) fn again(self) -> Self {
        Self { wanted: None, begun: HashSet::new(), with_gap: HashMap::new(), ..self }
    }

    pub(super) fn perform(&mut self, work: Work) -> Outcome {
        match work {
            Work::Open { scope, .. } => Outcome::Open(Ok(self.open(scope.as_ref()))),
            Work::Resolve(questions) => Outcome::Resolve(self.resolve(&questions)),
            Work::Plan { wanted, present, spelling, .. } => {
                self.wanted = Some(wanted);
                self.take_names(&present, &spelling);
                assert_eq!(present, self.present);
                Outcome::Plan(Ok(()))
            }
            Work::Sign(orders) => {
                Outcome::Sign(orders.iter().map(|order| (order.id, Ok(self.sign(order)))).collect())
            }
            Work::SignWindows { id, at, windows } => {
                Outcome::SignWindows(id, self.sign_windows(at, &windows))
            }
            Work::SignFiles(files) => {
                let sign = |at| delta::sign(&self.basis(at).ok_or_else(corrupt)?).map_err(|_| corrupt());
                Outcome::SignFiles(files.into_iter().map(|(id, at)| (id, sign(at))).collect())
            }
            Work::Cut { id, at, stretch } => Outcome::Cut(id, self.cut(at, stretch).ok_or_else(corrupt)),
            Work::Store(files) => Outcome::Store(files.into_iter().map(|file| self.store(file)).collect()),
            Work::Sink { id, at, ops, end } => Outcome::Sink(id, self.sink(id, at, ops, end)),
            Work::Copy(files) => Outcome::Copy(files.into_iter().map(|file| self.copy(file)).collect()),
            Work::Apply(steps) => {
                Outcome::Apply(steps.into_iter().map(|step| (step, self.apply(step))).collect())
            }
            Work::Close { metadata, .. } => {
                self.staged.clear();
                if let Some((mode, time)) = metadata {
                    self.root = (mode.unwrap_or(self.root.0), time);
                }
                Outcome::Close(Ok(()))
            }
            Work::LoadBaseline(_) => Outcome::LoadBaseline(self.baseline.load()),
            Work::StoreBaseline { manifest, ignores } => self.baseline.store(&manifest, &ignores),
            other => panic!("not a receiver's: {other:?}"),
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
            kept: crate::tree::kept::Kept::default(),
            unclear: Arc::default(),
            has_staged: !self.staged.is_empty(),
            room: self.room.clone(),
            destination: Destination { metadata: Some(self.root), ..self.destination.clone() },
        }
    }

    fn wanted(&self, id: u32) -> Entry {
        let wanted = self.wanted.as_ref().expect("works on the tree come after the plan");
        wanted.get(id).expect("ids are those of the manifest").to_entry()
    }

    fn basis(&self, at: u32) -> Option<Arc<Vec<u8>>> {
        if let Some(with_gap) = self.with_gap.get(&at) {
            return Some(Arc::clone(with_gap));
        }
        match &self.listed.get(&self.present.path(at)?.to_path())?.what {
            What::File(content) => Some(Arc::clone(content)),
            _ => None,
        }
    }

    fn sign(&mut self, order: &SignOrder) -> Advertised {
        let SignOrder { id, at, .. } = *order;
        let staged = self.staged.get(&self.wanted(id).path).filter(|bytes| !bytes.is_empty());
        let size = self.wanted(id).size() as usize;
        let staged = staged.map(|bytes| blocks(bytes, size, size));
        let mut basis = at.and_then(|at| self.basis(at));
        let has_gap = order.samples.is_some() && basis.as_ref().is_some_and(|basis| basis.len() < size);
        if let (Some(at), Some(basis), true) = (at, &mut basis, has_gap) {
            Arc::make_mut(basis).resize(size, 0);
            self.with_gap.insert(at, Arc::clone(basis));
        }
        let report_of = |content: &Arc<Vec<u8>>| {
            let length = content.len() as u64;
            if staged.is_none() && is_signed(size as u64, length) {
                return BasisReport::Signed {
                    length,
                    signature: ByteBuf::from(delta::sign(content).unwrap()),
                };
            }
            BasisReport::Blocks(blocks(content, size, 2 * size))
        };
        let report = basis.as_ref().map(report_of);
        let hash = basis
            .filter(|_| matches!(report, Some(BasisReport::Blocks(_))))
            .map(|content| Hash::of(&content));
        Advertised { want: Want { id, staged, basis: report }, hash, has_gap }
    }

    fn cut(&self, at: u32, stretch: Stretch) -> Option<Vec<Chunk>> {
        let (offset, length) = (usize::try_from(stretch.offset).ok()?, usize::try_from(stretch.length).ok()?);
        self.basis(at)?.get(offset..offset.checked_add(length)?).map(chunks)
    }

    fn sign_windows(&self, at: u32, windows: &[Window]) -> Result<Vec<Vec<u8>>, WorkError> {
        let basis = self.basis(at).ok_or_else(corrupt)?;
        let sign = |window: &Window| {
            let basis = window_of(&basis, *window).ok_or_else(corrupt)?;
            delta::sign(basis).map_err(|_| corrupt())
        };
        windows.iter().map(sign).collect()
    }

    fn store(&mut self, file: SmallFile) -> (u32, Done) {
        let data = match file.content {
            SmallContent::Whole(data) => Some(data),
            SmallContent::Delta { at, delta } => {
                let size = self.wanted(file.id).size() as usize;
                self.basis(at).and_then(|basis| delta::apply(&basis, &delta, size).ok())
            }
        };
        let data = data.filter(|data| Hash::of(data) == file.hash);
        (file.id, data.ok_or_else(corrupt).and_then(|data| self.install(file.id, data)))
    }

    fn copy(&mut self, file: CopiedFile) -> (u32, Done) {
        let content = self.basis(file.at).filter(|content| Hash::of(content) == file.hash);
        let result = content.ok_or_else(corrupt);
        (file.id, result.and_then(|content| self.install(file.id, content.to_vec())))
    }

    fn sink(&mut self, id: u32, at: Option<u32>, ops: Vec<Op>, end: Option<Hash>) -> Done {
        let path = self.wanted(id).path;
        let basis = at.and_then(|at| self.basis(at));
        let mut content = self.staged.remove(&path).unwrap_or_default();
        let mut failed = false;
        if self.begun.insert(id) {
            let kept = if let Some(Op::Keep { length }) = ops.first() { *length } else { 0 };
            failed = kept > content.len() as u64;
            content.truncate(kept as usize);
        }
        for op in ops {
            let basis = basis.as_ref().map(|basis| basis.as_slice()).unwrap_or_default();
            let more = match &op {
                Op::Keep { .. } => Some(Vec::new()),
                Op::Data(bytes) => Some(bytes.to_vec()),
                Op::Copy { offset, length } => usize::try_from(*offset).ok().and_then(|offset| {
                    Some(basis.get(offset..offset.checked_add(usize::try_from(*length).ok()?)?)?.to_vec())
                }),
                Op::Delta { window, length, delta } => window_of(basis, *window)
                    .and_then(|window| delta::apply(window, delta, *length as usize).ok()),
                Op::Zeros { length } => Some(vec![0; usize::try_from(*length).unwrap()]),
            };
            failed |= more.is_none();
            content.extend(more.unwrap_or_default());
        }
        let wrong = end.is_some_and(|hash| Hash::of(&content) != hash);
        if end.is_some() || failed {
            self.begun.remove(&id);
        }
        if wrong || failed {
            return Err(corrupt());
        }
        if end.is_some() {
            self.install(id, content)
        } else {
            self.staged.insert(path, content);
            Ok(())
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
