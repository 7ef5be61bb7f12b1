//! The scan: lists everything below a root, in order, by directory handles, without following
//! links but those that its options name.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, readlinkat, statat};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::content::blocks::HOLE_BYTES_MIN;
use crate::content::hash::{Hash, Hasher};
use crate::disk::attributes::{self, offered_mode};
use crate::disk::boundaries::is_mount_root;
use crate::disk::directory_stack::{DirectoryStack, Level, Name};
use crate::disk::error::{DiskError, DiskErrorKind, During};
use crate::disk::holes::SparseFile;
use crate::disk::identities::Identities;
use crate::disk::root::{Root, stat_of};
use crate::disk::set_id::Owner;
use crate::disk::spelling::inode_of;
use crate::disk::stat::{FileKind, Identity, Inode, Stat};
use crate::disk::unconfirmed::{Covers, Seen};
use crate::tree::attributes::Attributes;
use crate::tree::doubt::Doubts;
use crate::tree::entry::{EntryRef, Kind};
use crate::tree::filter::{Filter, IgnoreFile, UNENTERED};
use crate::tree::links::FollowedLinks;
use crate::tree::manifest::{Builder, Manifest};
use crate::tree::metadata::MetadataOptions;
use crate::tree::path::{PathError, TreePath};
use crate::tree::subtrees::{Coverage, SubtreeSet};

pub(crate) use follow::kind_at;
use follow::{check_loop, target};
use open::{may_be_folded, open_to_list, sorted_names};
pub(crate) use rules::begin;

/// Entries between two progress reports.
const REPORT_ENTRIES: usize = 1024;

/// The part of a tree that is to be scanned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// Everything below the root.
    Whole,
    /// One entry of the root directory, and everything below it if it is a directory.
    One(TreePath),
    /// A subtree set, and the directories above it. A name that leads to an entry with another name
    /// is skipped, unless it is one of the given paths, which are sorted.
    Subtrees(SubtreeSet, Arc<Vec<TreePath>>),
}

/// Options of a scan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScanOptions {
    /// Hash the content of every file that can be read undisturbed.
    pub hash: bool,
    /// The same for files of at most this many bytes.
    pub hash_bytes_max: u64,
    /// Clear set-id bits, except on files of this user and this group.
    pub set_id_owner: Option<Owner>,
    /// Enter directories on which another filesystem is mounted.
    pub cross_mounts: bool,
    /// Take in the directories above a [`Subject::Subtrees`] whatever the filter says.
    pub implied_parents: bool,
    /// Find the files that a power cut may have damaged.
    pub doubts: bool,
    /// Scan a destination. Entries that both sides exclude stay there, so they are listed, but
    /// neither opened nor entered. Ignore files have no effect. Special files may be listed
    /// without their kind.
    pub is_destination: bool,
    /// Metadata besides modes and times, if it is copied.
    pub metadata: Option<Arc<MetadataOptions>>,
    /// The links of a source that stand for what they lead to.
    pub follows: FollowedLinks,
    /// Directories above the root that belong to the offered tree.
    pub depth: usize,
}

/// The progress of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScanProgress {
    /// Entries found.
    pub entries: u64,
    /// Total length of the found files, in bytes.
    pub bytes: u64,
}

/// Observes a scan.
pub trait Look {
    /// Called about every thousand entries, and at the end.
    fn progress(&mut self, _progress: ScanProgress) {}

    /// A directory was opened, and its names will be read next. A watch that starts now misses no
    /// change: the watch sees each later change, or the scan does. `None` is the root.
    fn enter(&mut self, _directory: BorrowedFd<'_>, _path: Option<&TreePath>) {}

    /// An entry was skipped on purpose. `reason` tells which rule asked for that.
    fn exclude(&mut self, _path: &[u8], _reason: &dyn Fn() -> Option<String>) {}
}

/// Ignores all calls.
#[derive(Debug, Default, Clone, Copy)]
pub struct Away;

impl Look for Away {}

/// Counts of the entries that a scan skipped on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Skipped {
    /// Entries that the filter excludes; entries below an excluded directory are not counted.
    pub excluded: u64,
    /// State directories of ksync.
    pub state: u64,
    /// Directories that were not entered because another filesystem is mounted there.
    pub mounts: u64,
    /// Entries that vanished between being listed and being read.
    pub vanished: u64,
}

/// Maximum number of files whose holes are kept one by one.
const SPARSE_FILES_MAX: usize = 1 << 10;

/// Maximum number of files with several names that are told. A tree with more was probably made of
/// links, as package managers make them.
const LINKED_MAX: usize = 1 << 7;

/// Files that occupy less space than their length.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sparse {
    /// The first of these files, each with the number of bytes in its holes.
    pub files: Vec<(TreePath, u64)>,
    /// The bytes in the holes of all other files together.
    pub others_bytes: u64,
}

impl Sparse {
    fn add(&mut self, path: &TreePath, stat: &Stat) {
        let bytes = stat.size().saturating_sub(stat.allocated_bytes);
        // A copy has no shorter holes.
        if bytes < HOLE_BYTES_MIN {
            return;
        }
        if self.files.len() < SPARSE_FILES_MAX {
            self.files.push((path.clone(), bytes));
        } else {
            self.others_bytes = self.others_bytes.saturating_add(bytes);
        }
    }
}

/// A tree as it was found.
#[derive(Debug, Default)]
pub struct Scanned {
    /// All entries.
    pub manifest: Arc<Manifest>,
    /// The identity of each entry, which tells later if it is still the same.
    pub identities: Arc<Identities>,
    /// Files that a power cut may have damaged, if the options asked for them.
    pub doubts: Doubts,
    /// The markers that these files are doubted for.
    pub(crate) markers: Seen,
    /// Entries that could not be read. A tree with problems is not complete, so the receiver must
    /// delete nothing because of it.
    pub problems: Vec<DiskError>,
    /// Directories on another filesystem than their parents, or on another mount of it, in order.
    /// Found only in destinations.
    pub boundaries: Vec<TreePath>,
    /// Directories that are closed to this user, who owns them and could open them. Found only in
    /// destinations.
    pub inaccessible: Vec<TreePath>,
    /// Names of a [`Subject::Subtrees`] that lead to entries with other names, outside of the
    /// scope.
    pub unclear: Vec<TreePath>,
    /// Counts of the entries that were skipped on purpose.
    pub skipped: Skipped,
    /// Files with holes.
    pub sparse: Sparse,
    /// The first files that have further names, perhaps outside of the tree.
    pub linked: Vec<TreePath>,
    /// Number of links that were followed.
    pub followed: u64,
    /// True if this is an earlier scan that still holds. A file that got a further name since has
    /// another ctime by now.
    pub is_kept: bool,
}

/// Scans `subject` below `root`, without the entries that `filter` excludes. The filter takes in
/// the ignore files on the way.
///
/// # Errors
/// The root itself cannot be read, or there is more than a tree may hold. Every other failure is a
/// problem in the result.
pub fn scan(
    root: &Root,
    subject: &Subject,
    options: &ScanOptions,
    filter: Option<&mut Filter>,
    look: &mut dyn Look,
) -> Result<Scanned, DiskError> {
    let mut scanner = Scanner {
        root,
        options,
        filter,
        look,
        scope: match subject {
            Subject::Subtrees(scope, aliases) => Some((scope, &**aliases)),
            Subject::Whole | Subject::One(_) => None,
        },
        bytes: 0,
        covers: None,
        tree: Builder::default(),
        identities: Identities::default(),
        overflow: None,
        last_attributes: None,
        is_followed: false,
        above: vec![root.inode()],
        scanned: Scanned::default(),
    };
    if let Some(filter) = &mut scanner.filter {
        begin(root, filter)?;
    }
    if options.doubts {
        scanner.covers = Some(Arc::new(Covers::above(root)));
    }
    let mut stack = DirectoryStack::default();
    match subject {
        Subject::Whole | Subject::Subtrees(..) => {
            let directory = root.open_directory(None)?;
            stack.push(scanner.list(directory, None)?);
        }
        Subject::One(path) => {
            if let Err(error) = scanner.one(path, &mut stack) {
                scanner.scanned.problems.push(error);
            }
        }
    }
    scanner.run(&mut stack);
    scanner.report();
    scanner.finish()
}

struct Scanner<'a> {
    root: &'a Root,
    options: &'a ScanOptions,
    filter: Option<&'a mut Filter>,
    look: &'a mut dyn Look,
    /// The subtree set to scan; `None` is everything.
    scope: Option<(&'a SubtreeSet, &'a [TreePath])>,
    bytes: u64,
    /// The marker state of the current directory: decides which of its files are doubted.
    covers: Option<Arc<Covers>>,
    tree: Builder,
    identities: Identities,
    /// The reason why the tree takes no more entries.
    overflow: Option<DiskError>,
    last_attributes: Option<Arc<Attributes>>,
    /// True if the current entry is a link that is followed.
    is_followed: bool,
    /// The directories from the root to the scan's position.
    above: Vec<Inode>,
    scanned: Scanned,
}

impl Scanner<'_> {
    fn run(&mut self, stack: &mut DirectoryStack) {
        while let Some(level) = stack.open.back_mut().filter(|_| self.overflow.is_none()) {
            let step = level.names.next().map(|name| self.step(level, &name));
            match step {
                None => {
                    stack.pop();
                    self.above.pop();
                }
                Some(Ok(Some(below))) => self.push(stack, below),
                Some(Ok(None)) => {}
                Some(Err(error)) => self.scanned.problems.push(error),
            }
        }
    }

    fn push(&mut self, stack: &mut DirectoryStack, level: Level) {
        self.above.extend(level.inode.map(|(dev, ino)| Inode { dev, ino }));
        stack.push(level);
    }

    /// Handles one name of a directory. Returns a directory that is to be read next.
    fn step(&mut self, level: &mut Level, name: &Name) -> Result<Option<Level>, DiskError> {
        let bytes = name.name.as_bytes();
        let path = match &level.path {
            Some(parent) => parent.join(bytes),
            None => TreePath::new(bytes),
        };
        let path = match path {
            Ok(path) => path,
            Err(PathError::Reserved) => {
                self.scanned.skipped.state += 1;
                self.look.exclude(&level.shown(bytes), &|| Some("by=ksync rule=state-directory".to_owned()));
                return Ok(None);
            }
            Err(error) => {
                return Err(DiskError::new("name", &level.shown(bytes), DiskErrorKind::Path(error)));
            }
        };
        // A followed link counts as its referent.
        let kind = name.kind.filter(|kind| *kind != FileKind::Symlink || !self.options.follows.any());
        if kind.is_some_and(|kind| self.leaves_out(&path, kind)) {
            return Ok(None);
        }
        if level.directory.is_none() {
            level.reopen(self.root).inspect_err(|_| {
                // One problem for the whole rest of the directory, not one for each name.
                level.names = Vec::new().into_iter();
            })?;
        }
        self.covers.clone_from(&level.covers);
        let Some(directory) = &level.directory else { return Ok(None) };
        let stat = match statat(directory, &*name.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {
                self.scanned.skipped.vanished += 1;
                return Ok(None);
            }
            result => result.during("look at", path.as_bytes())?,
        };
        let stat = Stat::of(&stat)
            .ok_or_else(|| DiskError::new("take in", path.as_bytes(), DiskErrorKind::OutOfRange))?;
        let Some(stat) = self.followed(directory.as_fd(), &name.name, &path, stat)? else { return Ok(None) };
        if kind.is_none() && self.leaves_out(&path, stat.kind()) {
            return Ok(None);
        }
        let parent_dev = level.inode.map_or(self.root.dev(), |(dev, _)| dev);
        self.entry(directory, parent_dev, &name.name, path, stat)
    }

    /// The metadata that an entry takes part with: that of a followed link's target, else its own.
    /// `None` if the filter excludes a link that leads nowhere.
    fn followed(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CString,
        path: &TreePath,
        own: Stat,
    ) -> Result<Option<Stat>, DiskError> {
        self.is_followed = false;
        let follows = self.options.follows;
        if own.kind() != FileKind::Symlink || !follows.any() {
            return Ok(Some(own));
        }
        let depth = self.options.depth + path.as_bytes().iter().filter(|&&byte| byte == b'/').count();
        match target(directory, name, path, follows, depth) {
            Ok(None) => Ok(Some(own)),
            Ok(target) => {
                self.is_followed = true;
                self.scanned.followed += 1;
                Ok(target)
            }
            // As in rsync, the rules see it as a file and as a directory.
            Err(_) if self.leaves_out(path, FileKind::File) => Ok(None),
            Err(_) if self.leaves_out(path, FileKind::Directory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// True if the filter excludes the entry from the tree. Counts it then.
    fn leaves_out(&mut self, path: &TreePath, kind: FileKind) -> bool {
        let is_implied = self.options.implied_parents && self.coverage(Some(path)) == Coverage::Above;
        let leaves_out = !self.options.is_destination && !is_implied && self.is_excluded(path, kind);
        if leaves_out {
            self.scanned.skipped.excluded += 1;
            let filter = self.filter.as_deref();
            let reason = || filter?.reason(Some(path), kind == FileKind::Directory);
            self.look.exclude(path.as_bytes(), &reason);
        }
        leaves_out
    }

    fn is_excluded(&self, path: &TreePath, kind: FileKind) -> bool {
        self.filter.as_ref().is_some_and(|filter| filter.excludes(path, kind == FileKind::Directory))
    }

    /// True if an entry of a destination stays whatever the source holds. A listed file is offered
    /// with the directories above it, excluded or not.
    fn is_closed(&self, path: &TreePath, kind: FileKind) -> bool {
        let may_be_offered = self.scope.is_some() && self.coverage(Some(path)) == Coverage::Above;
        !may_be_offered
            && self.filter.as_ref().is_some_and(|filter| filter.closes(path, kind == FileKind::Directory))
    }

    /// Adds a found entry to the tree. Returns a directory that is to be read next.
    fn entry(
        &mut self,
        parent: impl AsFd,
        parent_dev: u64,
        name: &CString,
        path: TreePath,
        stat: Stat,
    ) -> Result<Option<Level>, DiskError> {
        let is_closed = self.options.is_destination && self.is_closed(&path, stat.kind());
        match stat.kind() {
            FileKind::Directory => return self.directory(parent, parent_dev, name, path, &stat, is_closed),
            FileKind::File => {
                let is_short = stat.size() <= self.options.hash_bytes_max && stat.size() > 0;
                let is_hashed = (self.options.hash || is_short) && !is_closed;
                let attributes = self.attributes(&parent, name, &path, &stat)?;
                match is_hashed.then(|| self.hash(&path)) {
                    Some(Ok((hash, stat))) => {
                        let kind = Kind::File { size: stat.size(), hash: Some(hash) };
                        self.add(&path, kind, &stat, attributes);
                    }
                    // The transfer that asks for its content reports why it cannot be read.
                    _ => {
                        let kind = Kind::File { size: stat.size(), hash: None };
                        self.add(&path, kind, &stat, attributes);
                    }
                }
            }
            FileKind::Symlink => {
                let target =
                    readlinkat(&parent, &**name, Vec::new()).during("read the link", path.as_bytes())?;
                let attributes = self.attributes(&parent, name, &path, &stat)?;
                self.add(&path, Kind::Symlink { target: target.as_bytes() }, &stat, attributes);
            }
            FileKind::Fifo | FileKind::Socket | FileKind::Device => {
                let mut attributes = self.attributes(&parent, name, &path, &stat)?;
                // The receiver decides if such entries are made. Even if not, the offer protects
                // what the destination has under their names.
                if !self.options.is_destination && attributes.is_none() {
                    let special = Attributes { special: stat.special, ..Attributes::default() };
                    attributes = Some(Arc::new(special));
                }
                self.add(&path, Kind::special(), &stat, attributes);
            }
        }
        Ok(None)
    }

    /// Adds a found directory to the tree. Returns it if it is to be read next.
    fn directory(
        &mut self,
        parent: impl AsFd,
        parent_dev: u64,
        name: &CString,
        path: TreePath,
        stat: &Stat,
        is_closed: bool,
    ) -> Result<Option<Level>, DiskError> {
        let is_destination = self.options.is_destination;
        let is_on_another_mount = stat.identity.dev != self.root.dev() && !self.options.cross_mounts;
        if self.options.follows.any() {
            check_loop(&self.above, &path, stat)?;
        }
        let attributes = self.attributes(&parent, name, &path, stat)?;
        let is_entered = !is_closed && !is_on_another_mount && self.coverage(Some(&path)) != Coverage::Alone;
        let opened = is_entered
            .then(|| open_to_list(parent, name, stat, self.is_followed).during("open", path.as_bytes()));
        // A source directory that cannot be listed is not offered: its mode would close the copy.
        if is_destination || !matches!(opened, Some(Err(_))) {
            self.add(&path, Kind::Directory, stat, attributes);
        }
        if is_closed {
            self.scanned.skipped.excluded += 1;
            let filter = self.filter.as_deref();
            self.look.exclude(path.as_bytes(), &|| filter?.reason(Some(&path), true));
            return Ok(None);
        }
        let is_other = is_destination && stat.identity.dev != parent_dev;
        if is_other {
            self.scanned.boundaries.push(path.clone());
        }
        match opened {
            None if is_on_another_mount && self.coverage(Some(&path)) != Coverage::Alone => {
                self.scanned.skipped.mounts += 1;
                let reason = || Some("by=command-line rule=one-file-system".to_owned());
                self.look.exclude(path.as_bytes(), &reason);
                self.protect_below(&path).map(|()| None)
            }
            None => Ok(None),
            Some(Err(error)) => {
                if is_destination && error.is_permission() && stat.uid == geteuid().as_raw() {
                    self.scanned.inaccessible.push(path);
                }
                Err(error)
            }
            Some(Ok(directory)) => {
                if is_destination && !is_other && is_mount_root(&directory) {
                    self.scanned.boundaries.push(path.clone());
                }
                self.list(directory, Some((path, stat.identity))).map(Some)
            }
        }
    }

    fn add(&mut self, path: &TreePath, kind: Kind<&[u8]>, stat: &Stat, attributes: Option<Arc<Attributes>>) {
        if matches!(kind, Kind::File { .. }) {
            self.scanned.sparse.add(path, stat);
        }
        let is_linked = stat.nlink > 1 && !matches!(kind, Kind::Directory);
        if is_linked && self.scanned.linked.len() <= LINKED_MAX {
            self.scanned.linked.push(path.clone());
        }
        let is_link = matches!(kind, Kind::Symlink { .. }) && !kind.is_special();
        // A destination shows its modes as they are.
        let metadata = self.options.metadata.as_deref().filter(|_| !self.options.is_destination);
        let mode = if is_link { 0o777 } else { offered_mode(stat, self.options.set_id_owner, metadata) };
        let attributes = attributes.as_ref();
        let entry = EntryRef { path: path.into(), kind, mode, mtime: stat.mtime(), attributes };
        self.bytes += entry.size();
        if let (Some(covers), Kind::File { .. }) = (&self.covers, &entry.kind)
            && let Some(doubt) = covers.doubt(&stat.identity, &mut self.scanned.markers)
        {
            // `ENTRIES_MAX` fits in 32 bits.
            self.scanned.doubts.push(u32::try_from(self.tree.len()).unwrap_or(u32::MAX), doubt);
        }
        if let Err(error) = self.tree.add(entry) {
            self.overflow = Some(DiskError::new("list", path.as_bytes(), DiskErrorKind::Tree(error)));
        } else if !self.identities.push(&stat.identity) {
            self.overflow = Some(DiskError::new("list", path.as_bytes(), DiskErrorKind::OutOfRange));
        }
        if self.tree.len().is_multiple_of(REPORT_ENTRIES) {
            self.report();
        }
    }

    /// The attributes of an entry, as far as the options ask for any.
    fn attributes(
        &mut self,
        parent: impl AsFd,
        name: &CString,
        path: &TreePath,
        stat: &Stat,
    ) -> Result<Option<Arc<Attributes>>, DiskError> {
        let Some(options) = &self.options.metadata else { return Ok(None) };
        let read = attributes::of(parent, name, stat, self.is_followed, options);
        let attributes = read.during("read the extended attributes of", path.as_bytes())?;
        // Neighbours often have the same ones.
        match &self.last_attributes {
            Some(last) if attributes.as_ref() == Some(&**last) => {}
            _ => self.last_attributes = attributes.clone().map(Arc::new).or(self.last_attributes.take()),
        }
        Ok(attributes.and(self.last_attributes.clone()))
    }

    fn finish(mut self) -> Result<Scanned, DiskError> {
        self.scanned.manifest = Arc::new(self.tree.finish());
        self.identities.shrink();
        self.scanned.identities = Arc::new(self.identities);
        self.overflow.map_or(Ok(self.scanned), Err)
    }

    fn report(&mut self) {
        let entries = self.tree.len() as u64;
        self.look.progress(ScanProgress { entries, bytes: self.bytes });
    }

    /// The part of the scan's scope at and below `path`; `None` is the root.
    fn coverage(&self, path: Option<&TreePath>) -> Coverage {
        match (self.scope, path) {
            (None, _) => Coverage::Recursive,
            (Some(_), None) => Coverage::Above,
            (Some((scope, _)), Some(path)) => scope.coverage(path),
        }
    }

    /// Adds a rule that tells the receiver to keep everything below a directory that is not
    /// entered.
    fn protect_below(&mut self, path: &TreePath) -> Result<(), DiskError> {
        let rule = || IgnoreFile { directory: path.as_bytes().to_vec(), text: UNENTERED.to_vec() };
        let taken = self.filter.as_mut().is_none_or(|filter| filter.add(rule()));
        if taken { Ok(()) } else { Err(DiskError::new("read", path.as_bytes(), DiskErrorKind::OutOfRange)) }
    }

    /// Starts to read a directory: first its ignore file, then all names in scope, sorted.
    fn list(&mut self, directory: OwnedFd, path: Option<(TreePath, Identity)>) -> Result<Level, DiskError> {
        let (path, inode) = path.map(|(path, is)| (path, (is.dev, is.ino))).unzip();
        self.look.enter(directory.as_fd(), path.as_ref());
        let dev = inode.map_or(self.root.dev(), |(dev, _)| dev);
        let covers = self
            .covers
            .as_ref()
            .map(|above| above.enter(&directory, path.as_ref(), dev, &mut self.scanned.markers));
        let shown = path.as_ref().map_or(&b"."[..], |path| path.as_bytes());
        let (names, is_listed) = match self.scope {
            Some((scope, aliases)) if self.coverage(path.as_ref()) == Coverage::Above => {
                (self.names_of_subtrees(scope, aliases, &directory, path.as_ref()), false)
            }
            _ => (sorted_names(&directory).during("list", shown)?, true),
        };
        if let Some(filter) = &mut self.filter {
            let listed = is_listed.then_some(&*names);
            if !self.options.is_destination {
                rules::read_ignore_files(self.root, filter, path.as_ref(), listed)?;
            }
            rules::read_merge_files(self.root, filter, path.as_ref(), listed)?;
        }
        Ok(Level { path, directory: Some(directory), inode, covers, names: names.into_iter() })
    }

    /// The names that lead to the subtree set, present or not. Names that lead to entries with
    /// other names are dropped, unless they are known `aliases`.
    fn names_of_subtrees(
        &mut self,
        scope: &SubtreeSet,
        aliases: &[TreePath],
        directory: &OwnedFd,
        path: Option<&TreePath>,
    ) -> Vec<Name> {
        // No component of a path holds a NUL.
        let names = scope.names_in(path).into_iter().filter_map(|name| CString::new(name).ok());
        let mut wanted: Vec<CString> = names.collect();
        let may_be_folded = wanted.iter().any(|name| may_be_folded(directory, name));
        // A directory that cannot be listed may still be searched.
        if may_be_folded && let Ok(listed) = sorted_names(directory) {
            let is_listed = |name: &CString| listed.binary_search_by(|other| other.name.cmp(name)).is_ok();
            let exact = wanted.iter().filter(|name| is_listed(name));
            let inodes: HashSet<_> = exact.filter_map(|name| inode_of(directory, name.as_bytes())).collect();
            wanted.retain(|name| {
                if is_listed(name) {
                    return true;
                }
                let is_another =
                    inode_of(directory, name.as_bytes()).is_some_and(|inode| !inodes.contains(&inode));
                let path = match path {
                    Some(path) => path.join(name.as_bytes()),
                    None => TreePath::new(name.as_bytes()),
                };
                let Some(path) = path.ok().filter(|_| is_another) else { return false };
                let is_known = aliases.binary_search(&path).is_ok();
                if !is_known {
                    self.scanned.unclear.push(path);
                }
                is_known
            });
        }
        wanted.into_iter().map(|name| Name { name, kind: None }).collect()
    }

    /// The hash and the metadata of a file. A file that changes meanwhile is an error.
    fn hash(&mut self, path: &TreePath) -> Result<(Hash, Stat), DiskError> {
        let (file, stat) = self.root.open_file(path)?;
        let mut hasher = Hasher::new();
        SparseFile::of(&file, stat.size())
            .visit(0..stat.size(), &mut |piece| hasher.take(piece))
            .during("read", path.as_bytes())?;
        if stat_of(&file, path)?.identity != stat.identity {
            return Err(DiskError::new("read", path.as_bytes(), DiskErrorKind::Conflict));
        }
        Ok((hasher.finish(), stat))
    }

    /// Scans one path. The user named it, so ignore files do not exclude it.
    fn one(&mut self, path: &TreePath, stack: &mut DirectoryStack) -> Result<(), DiskError> {
        let Some(stat) = self.root.stat(path)? else { return Ok(()) };
        let parent = self.root.open_directory(path.parent().as_ref())?;
        if let Some(above) = self.covers.take() {
            self.covers = Some(above.enter(
                &parent,
                path.parent().as_ref(),
                self.root.dev(),
                &mut self.scanned.markers,
            ));
        }
        let name = CString::new(path.name()).map_err(std::io::Error::other);
        let name = name.during("name", path.as_bytes())?;
        let parent_dev = stat_of(&parent, path)?.identity.dev;
        if let Some(level) = self.entry(parent, parent_dev, &name, path.clone(), stat)? {
            self.push(stack, level);
        }
        Ok(())
    }
}

mod follow;
mod open;
mod rules;
pub mod snapshot;
#[cfg(test)]
mod tests;
