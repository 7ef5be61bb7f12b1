//! `Snapshot`: the scan of a whole tree without problems, which scans of its touched parts update.

use std::ops::Range;
use std::sync::Arc;

use rustix::fs::{AtFlags, statat};

use crate::disk::identities::Identities;
use crate::disk::marker::Mount;
use crate::disk::mount::{mount_of, mounts, tells_changes};
use crate::disk::root::Root;
use crate::disk::scan::{LINKED_MAX, SPARSE_FILES_MAX, ScanOptions, Scanned, Skipped, Sparse};
use crate::disk::stat::Inode;
use crate::disk::unconfirmed::{read_attribute, undoubted};
use crate::tree::entry::EntryRef;
use crate::tree::manifest::{Builder, Manifest};
use crate::tree::path::TreePath;
use crate::tree::subtrees::{Coverage, SubtreeSet};

/// Most excluded entries of a snapshot.
const EXCLUDED_MAX: usize = 1 << 14;

/// The reason why a scan cannot be kept, or can no longer be believed.
pub type Doubt = &'static str;

/// Facts about a root on which a snapshot of it relies, besides the entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ground {
    inode: Inode,
    mount: Mount,
    /// All mounts: one over a directory of the tree hides what is in it, and causes no event.
    mounts: Vec<u8>,
    access: (u16, u32, u32),
}

impl Ground {
    /// The facts about a root; `None` if changes in it may pass unseen.
    #[must_use]
    pub fn of(root: &Root) -> Option<Self> {
        let stat = root.own_stat().ok().filter(|stat| stat.identity.ino != 0)?;
        if !tells_changes(root.descriptor()) {
            return None;
        }
        let access = (stat.mode, stat.uid, stat.gid);
        Some(Self {
            inode: Inode::from(&stat),
            mount: mount_of(root.descriptor())?,
            mounts: mounts()?,
            access,
        })
    }

    /// The root itself.
    #[must_use]
    pub fn inode(&self) -> Inode {
        self.inode
    }
}

/// The scan of a whole tree without problems.
#[derive(Debug)]
pub struct Snapshot {
    manifest: Arc<Manifest>,
    identities: Arc<Identities>,
    sparse: Vec<(TreePath, u64)>,
    linked: Vec<TreePath>,
    excluded: Vec<TreePath>,
}

impl Snapshot {
    /// Keeps a scan of a whole tree, and the entries that it excluded.
    ///
    /// # Errors
    /// It had problems, or lists something that an update could not.
    pub fn of(
        root: &Root,
        options: &ScanOptions,
        scanned: &Scanned,
        excluded: Vec<TreePath>,
    ) -> Result<Self, Doubt> {
        check(root, options, scanned)?;
        let snapshot = Self {
            manifest: Arc::clone(&scanned.manifest),
            identities: Arc::clone(&scanned.identities),
            sparse: scanned.sparse.files.clone(),
            linked: scanned.linked.clone(),
            excluded,
        };
        snapshot.within_limits()
    }

    /// Entries that may change without an event: files with further names, perhaps outside, and
    /// directories of a destination that no scan enters.
    pub fn unwatched(&self, options: &ScanOptions) -> impl Iterator<Item = &TreePath> {
        let closed = self.excluded.iter().filter(|_| options.is_destination);
        self.linked.iter().chain(closed)
    }

    /// True if there is a directory at `path`.
    #[must_use]
    pub fn has_directory(&self, path: &TreePath) -> bool {
        is_directory(&self.manifest, path)
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.manifest.len()
    }

    /// True if there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.manifest.is_empty()
    }

    /// The result of a scan that would find the tree like this.
    ///
    /// # Errors
    /// A file of a destination is doubted by now.
    pub fn scanned(&self, root: &Root, options: &ScanOptions) -> Result<Scanned, Doubt> {
        let markers =
            if options.doubts { undoubted(root).ok_or("doubted-files")? } else { Default::default() };
        Ok(Scanned {
            manifest: Arc::clone(&self.manifest),
            identities: Arc::clone(&self.identities),
            markers,
            skipped: Skipped { excluded: self.excluded.len() as u64, ..Skipped::default() },
            sparse: Sparse { files: self.sparse.clone(), others_bytes: 0 },
            linked: self.linked.clone(),
            is_kept: true,
            ..Scanned::default()
        })
    }

    /// The snapshot after a scan of the touched parts in `scope`.
    ///
    /// # Errors
    /// The scan of the parts had problems, or it does not fit this snapshot.
    pub fn updated(
        &self,
        root: &Root,
        options: &ScanOptions,
        scope: &SubtreeSet,
        part: &Scanned,
        excluded: Vec<TreePath>,
    ) -> Result<Self, Doubt> {
        check(root, options, part)?;
        self.check_directories(root, options, scope, part, &excluded)?;
        let replaced = self.replaced(scope, &part.manifest);
        self.check_linked(&replaced, part)?;
        let (manifest, identities) = if self.is_same(&replaced, part) {
            (Arc::clone(&self.manifest), Arc::clone(&self.identities))
        } else {
            let (manifest, identities) = self.merged(&replaced, part)?;
            (Arc::new(manifest), Arc::new(identities))
        };
        let is_directory = |path: &TreePath| is_directory(&manifest, path);
        let stays = |path: &TreePath| {
            scope.coverage(path) == Coverage::Outside
                && path.parent().is_none_or(|parent| is_directory(&parent))
        };
        let sparse = self.sparse.iter().filter(|(path, _)| stays(path)).chain(&part.sparse.files);
        let linked = self.linked.iter().filter(|path| stays(path)).chain(&part.linked);
        let excluded = self.excluded.iter().filter(|path| stays(path)).cloned().chain(excluded).collect();
        let (sparse, linked) = (sparse.cloned().collect(), linked.cloned().collect());
        Self { manifest, identities, sparse, linked, excluded }.within_limits()
    }

    fn within_limits(self) -> Result<Self, Doubt> {
        if self.sparse.len() > SPARSE_FILES_MAX {
            return Err("many-sparse-files");
        }
        if self.linked.len() > LINKED_MAX {
            return Err("many-linked-files");
        }
        if self.excluded.len() > EXCLUDED_MAX { Err("many-excluded-entries") } else { Ok(self) }
    }

    /// Checks the directories that were touched, but not entered: what is in them was listed
    /// before.
    fn check_directories(
        &self,
        root: &Root,
        options: &ScanOptions,
        scope: &SubtreeSet,
        part: &Scanned,
        excluded: &[TreePath],
    ) -> Result<(), Doubt> {
        for (path, recursive) in scope.subtrees() {
            if *recursive || !is_directory(&part.manifest, path) {
                continue;
            }
            let inode = |manifest: &Manifest, identities: &Identities| {
                let id = manifest.position(path)?;
                identities.get(manifest, id).map(|identity| Inode::from(&identity))
            };
            if inode(&self.manifest, &self.identities) != inode(&part.manifest, &part.identities) {
                return Err("replaced-directory");
            }
            // Excluded ones of a destination are listed, and never entered.
            if options.is_destination && excluded.contains(path) {
                continue;
            }
            let directory = root.open_directory(Some(path)).map_err(|_| "closed-directory")?;
            statat(&directory, c".", AtFlags::empty()).map_err(|_| "closed-directory")?;
            if options.doubts && read_attribute(&directory).is_some() {
                return Err("marker-below");
            }
        }
        Ok(())
    }

    /// Checks that no other entry is a further name of a file in the part. A new name causes no
    /// event about the old one, and neither does a write through it.
    fn check_linked(&self, replaced: &[Range<u32>], part: &Scanned) -> Result<(), Doubt> {
        if part.linked.is_empty() {
            return Ok(());
        }
        let number = |path: &TreePath| {
            let id = part.manifest.position(path)?;
            part.identities.get(&part.manifest, id).map(|identity| identity.ino)
        };
        let linked: Vec<u64> = part.linked.iter().filter_map(number).collect();
        let mut numbers = (0..).zip(self.identities.inode_numbers());
        let is_other = |id: u32| !replaced.iter().any(|range| range.contains(&id));
        let has_other = numbers.any(|(id, number)| linked.contains(&number) && is_other(id));
        if has_other { Err("linked-files") } else { Ok(()) }
    }

    /// The ids of the entries that the part replaces, in order and apart.
    fn replaced(&self, scope: &SubtreeSet, part: &Manifest) -> Vec<Range<u32>> {
        let mut apart: Vec<Range<u32>> = Vec::new();
        for (path, recursive) in scope.subtrees() {
            let mut way: Vec<_> = std::iter::successors(path.parent(), TreePath::parent).collect();
            way.reverse();
            for (path, recursive) in way.iter().map(|above| (above, false)).chain([(path, *recursive)]) {
                let Some(id) = self.manifest.position(path) else { continue };
                let is_alone = !recursive && is_directory(part, path);
                let range = if is_alone { id..id + 1 } else { self.manifest.subtree(id) };
                match apart.last_mut() {
                    // A directory above an earlier part as well, or one below what is gone.
                    Some(last) if range.start < last.end => last.end = last.end.max(range.end),
                    _ => apart.push(range),
                }
            }
        }
        apart
    }

    /// True if the part lists just what it replaces.
    fn is_same(&self, replaced: &[Range<u32>], part: &Scanned) -> bool {
        let old = replaced.iter().flat_map(Clone::clone);
        old.clone().count() == part.manifest.len()
            && old.zip(part.manifest.iter()).all(|(id, (at, entry))| {
                self.manifest.get(id) == Some(entry)
                    && self.identities.get(&self.manifest, id) == part.identities.get(&part.manifest, at)
            })
    }

    fn merged(&self, replaced: &[Range<u32>], part: &Scanned) -> Result<(Manifest, Identities), Doubt> {
        let mut merge = Merge { tree: Builder::default(), identities: Identities::default() };
        let mut next = 0;
        let mut replaced = replaced.iter().peekable();
        // The old entries up to an id, without the replaced ones.
        let mut keep = |merge: &mut Merge, until: u32| -> Result<(), Doubt> {
            while next < until {
                match replaced.peek() {
                    Some(range) if range.start <= next => {
                        next = next.max(range.end);
                        replaced.next();
                    }
                    gone => {
                        let end = gone.map_or(until, |range| until.min(range.start));
                        (next..end).try_for_each(|id| merge.add(&self.manifest, &self.identities, id))?;
                        next = end;
                    }
                }
            }
            Ok(())
        };
        for (at, entry) in part.manifest.iter() {
            let place = self.manifest.search(entry.path).unwrap_or_else(|place| place);
            keep(&mut merge, place)?;
            merge.add(&part.manifest, &part.identities, at)?;
        }
        keep(&mut merge, self.manifest.end())?;
        merge.identities.shrink();
        Ok((merge.tree.finish(), merge.identities))
    }
}

struct Merge {
    tree: Builder,
    identities: Identities,
}

impl Merge {
    fn add(&mut self, manifest: &Manifest, identities: &Identities, id: u32) -> Result<(), Doubt> {
        const UNFIT: Doubt = "parts-do-not-fit";
        let entry: EntryRef<'_> = manifest.get(id).ok_or(UNFIT)?;
        self.tree.add(entry).map_err(|_| UNFIT)?;
        let identity = identities.get(manifest, id).ok_or(UNFIT)?;
        if self.identities.push(&identity) { Ok(()) } else { Err(UNFIT) }
    }
}

/// Checks that a scan lists nothing that an update of it could not.
fn check(root: &Root, options: &ScanOptions, scanned: &Scanned) -> Result<(), Doubt> {
    let Scanned { skipped, .. } = scanned;
    let doubts = [
        (scanned.problems.is_empty(), "problems"),
        // The referent of a link changes without an event in the tree.
        (scanned.followed == 0, "followed-links"),
        (scanned.inaccessible.is_empty(), "closed-directories"),
        (scanned.unclear.is_empty(), "folded-names"),
        (scanned.boundaries.is_empty() && skipped.mounts == 0, "mounts-below"),
        (scanned.identities.all_lie_on(root.dev()), "mounts-below"),
        (scanned.doubts.positions().next().is_none(), "doubted-files"),
        (scanned.markers.is_at_root_only(), "marker-below"),
        (scanned.sparse.others_bytes == 0, "many-sparse-files"),
        (options.is_destination || skipped.state == 0, "state-directories"),
    ];
    doubts.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, why)| Err(why))
}

fn is_directory(manifest: &Manifest, path: &TreePath) -> bool {
    manifest.position(path).and_then(|id| manifest.get(id)).is_some_and(|entry| entry.is_directory())
}
