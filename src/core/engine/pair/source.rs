//! The sender's disk: performs works on a tree in memory.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::sync::Arc;

use super::LIMITS;
use super::baseline::Baseline;
use super::tree::{Tree, What, manifest, time};
use crate::content::blocks::{BlockSize, Content, Outline, outline};
use crate::content::hash::Hash;
use crate::content::sample::Samples;
use crate::content::testing::reader;
use crate::engine::transfer::{Difference, Source, SourceFile};
use crate::engine::work::{Found, PushedFile, Scanned, SenderOutcome, SenderWork, Sent};
use crate::engine::{Limits, SendInput, SendNext, SendTransfer, WorkError};
use crate::monitor::ProblemKind;
use crate::tree::entry::{EntryRef, Time};
use crate::tree::filter::Filter;
use crate::tree::manifest::Manifest;
use crate::tree::path::TreePath;
use crate::tree::record;
use crate::tree::subtrees::{Coverage, SubtreeSet};
use crate::tree::tree_id::TreeId;
use crate::wire::message::{Holes, Subject};

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
    pub(super) limits: Limits,
    /// True if its files are prehashed.
    pub(super) is_prehashed: bool,
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
}

/// The contents of the offered files.
#[derive(Clone)]
pub(super) struct JarSource(Arc<SourceFiles>);

struct SourceFiles {
    contents: HashMap<u32, Arc<Vec<u8>>>,
    is_prehashed: bool,
    difference: Difference,
}

impl fmt::Debug for JarSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files", self.0.contents.len())
    }
}

/// A file in memory.
#[derive(Clone)]
pub(super) struct JarFile {
    content: Arc<Vec<u8>>,
    is_prehashed: bool,
    difference: Difference,
}

impl JarFile {
    pub(super) fn new(content: Arc<Vec<u8>>) -> Self {
        Self { content, is_prehashed: false, difference: Difference::None }
    }
}

impl fmt::Debug for JarFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.content.len())
    }
}

impl JarSource {
    /// A single file, with the id 0, that differs from the offered version.
    pub(super) fn file(content: Vec<u8>, difference: Difference) -> Self {
        let contents = [(0, Arc::new(content))].into();
        Self(Arc::new(SourceFiles { contents, is_prehashed: false, difference }))
    }
}

impl Source for JarSource {
    type Found = ();
    type File = JarFile;

    fn open(&self, id: u32) -> Result<JarFile, WorkError> {
        let content = self.0.contents.get(&id).cloned();
        let unreadable = || WorkError::Entry(ProblemKind::Unreadable, "it cannot be read".to_owned());
        let SourceFiles { is_prehashed, difference, .. } = *self.0;
        content.map(|content| JarFile { content, is_prehashed, difference }).ok_or_else(unreadable)
    }
}

impl Content for JarFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        reader(&self.content)(buffer, offset)
    }
}

impl SourceFile for JarFile {
    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn prehashed(&self, block: BlockSize) -> Option<Outline> {
        self.is_prehashed.then(|| outline(self.content.len() as u64, block, self).unwrap())
    }

    fn cancel_prehash(&self) {}

    fn difference(&self) -> io::Result<Difference> {
        Ok(self.difference)
    }
}

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
            limits: LIMITS,
            is_prehashed: false,
            baseline: Baseline::default(),
            offered: Arc::default(),
            scope: None,
            pushed_bytes_max: 0,
            pushes_lies: false,
            samples: false,
            holes: Holes::default(),
        }
    }

    pub(super) fn perform(&mut self, work: SenderWork<JarSource>) -> SenderOutcome<JarSource> {
        match work {
            SenderWork::Find => {
                let subject = Subject::directory(self.root.0, self.root.1, self.tree_id);
                let is_partial = self.scope.is_some();
                let baseline = self.baseline.digest().filter(|_| !is_partial);
                SenderOutcome::Find(Ok((Found { subject, baseline, is_partial }, ())))
            }
            SenderWork::Remove { entries, .. } => {
                SenderOutcome::Remove(entries.into_iter().map(|(id, _)| (id, Ok(true))).collect())
            }
            SenderWork::StoreBaseline { manifest, ignores } => {
                self.baseline.store(&manifest, &ignores);
                SenderOutcome::StoreBaseline
            }
            SenderWork::Scan(()) => {
                let scanned = self.scan();
                SenderOutcome::Scan(Ok((scanned, self.contents())))
            }
            SenderWork::Step { source, steps } => {
                SenderOutcome::Step(steps.into_iter().map(|step| self.step(&source, step)).collect())
            }
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
            state_directories: 0,
            changed,
            is_new,
            scope: self.scope.as_ref().map(|scope| scope.as_found(&self.offered)),
            pushed: self.pushed(),
            sampled: self.offered.iter().filter_map(|(id, entry)| Some((id, self.samples(entry)?))).collect(),
            holes: self.holes.clone(),
            owners: None,
            root: None,
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

    /// The contents of all offered files that can be read.
    fn contents(&self) -> JarSource {
        let content = |id, path: TreePath| match &self.tree[&path].what {
            What::File(content) if !self.unreadable.contains(&path) => Some((id, Arc::clone(content))),
            _ => None,
        };
        let entries = self.offered.iter();
        let contents = entries.filter_map(|(id, entry)| content(id, entry.path.to_path())).collect();
        let (is_prehashed, difference) = (self.is_prehashed, Difference::None);
        JarSource(Arc::new(SourceFiles { contents, is_prehashed, difference }))
    }

    /// The lie about this file, if one is due.
    fn lie(&mut self, id: u32) -> Option<Lie> {
        let (lie, count) = self.lies.get_mut(&self.offered.path(id).unwrap().to_path())?;
        *count = count.checked_sub(1)?;
        Some(*lie)
    }

    fn step(
        &mut self,
        source: &JarSource,
        (mut transfer, input): (Box<SendTransfer<JarFile>>, SendInput),
    ) -> Sent<JarFile> {
        let is_first = matches!(input, SendInput::Begin);
        let wrong = Hash::of(b"a lie");
        let result = transfer.step(source, input).map(|(ops, next)| {
            let is_last = matches!(next, SendNext::End(_) | SendNext::Same(_));
            let path = self.offered.path(transfer.id()).unwrap().to_path();
            let is_due = match self.lies.get(&path) {
                Some((Lie::Same, _)) => is_first,
                _ => is_last,
            };
            match (if is_due { self.lie(transfer.id()) } else { None }, next) {
                (Some(Lie::Same), _) => (Vec::new(), SendNext::Same(wrong)),
                (Some(Lie::Hash), SendNext::Same(_)) => (ops, SendNext::Same(wrong)),
                (Some(Lie::Hash), _) => (ops, SendNext::End(wrong)),
                (None, next) => (ops, next),
            }
        });
        (transfer, result)
    }
}
