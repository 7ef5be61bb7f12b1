//! The directories of `--compare-dest`, `--copy-dest` and `--link-dest`: opened, listed, read.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::disk::error::DiskError;
use crate::disk::identities::Identities;
use crate::disk::root::Root;
use crate::disk::scan::{self, Away, scan};
use crate::disk::stat::Identity;
use crate::engine::WorkError;
use crate::engine::transfer::basis::basis_changed;
use crate::exchange::common::{renamed, scan_options, unwritable};
use crate::log::debug;
use crate::tree::basis_trees::BasisTrees;
use crate::tree::manifest::Manifest;
use crate::tree::path::{TreePath, escape};
use crate::wire::hello::{BasisOptions, Options};
use crate::wire::message::Subject;

/// The basis trees on the disk.
#[derive(Default)]
pub(super) struct OpenBases {
    pub(super) listed: Arc<BasisTrees>,
    opened: Vec<OpenBasisTree>,
}

struct OpenBasisTree {
    root: Root,
    /// Name of a single file in `root`.
    single: Option<TreePath>,
    manifest: Arc<Manifest>,
    identities: Arc<Identities>,
}

impl OpenBases {
    /// The tree of a position, the path in its root, and the identity when it was listed.
    pub(super) fn at(&self, at: u32) -> Option<(&Root, TreePath, Identity)> {
        let (index, at) = self.listed.locate(at)?;
        let tree = self.opened.get(index)?;
        let path = tree.single.clone().or_else(|| Some(tree.manifest.path(at)?.to_path()))?;
        Some((&tree.root, path, tree.identities.get(&tree.manifest, at)?))
    }

    /// Identity of an entry when it was listed.
    pub(super) fn identity(&self, at: u32) -> Option<Identity> {
        self.at(at).map(|(_, _, seen)| seen)
    }

    /// Opens a file, if it is still the same. A further name that this run made changes its ctime.
    pub(super) fn open(&self, at: u32) -> Option<Result<(File, Identity), WorkError>> {
        let (root, path, seen) = self.at(at)?;
        let opened = root.open_file(&path).map_err(unwritable);
        Some(opened.and_then(|(file, stat)| {
            if is_same(&stat.identity, &seen) { Ok((file, stat.identity)) } else { Err(basis_changed()) }
        }))
    }
}

/// True if both are one unchanged file, perhaps with another number of names.
pub(super) fn is_same(now: &Identity, seen: &Identity) -> bool {
    Identity { ctime: seen.ctime, ..*now } == *seen
}

impl OpenBases {
    /// Opens and lists the basis trees of a destination at `own`, or of the file `single` in it. A
    /// directory that is missing is passed over, as with rsync.
    pub(super) fn open_all(
        options: &Options,
        own: &Path,
        single: Option<&TreePath>,
        subject: &Subject,
    ) -> Result<Self, DiskError> {
        let Some(bases) = &options.bases else { return Ok(Self::default()) };
        let (mut listed, mut opened) = (BasisTrees::default(), Vec::new());
        for path in paths(bases, options, own) {
            let root = match Root::open_for_receiver(&path) {
                Ok(root) => root,
                Err(error) if error.is_not_found() || error.is_in_the_way() => {
                    listed.missing.push(path.as_os_str().as_bytes().to_vec());
                    continue;
                }
                Err(error) => return Err(error),
            };
            let tree = OpenBasisTree::list(root, options, single, subject)?;
            debug!(
                "basis-tree role=receiver entries={} path={}",
                tree.manifest.len(),
                escape(path.as_os_str().as_bytes())
            );
            listed.trees.push(Arc::clone(&tree.manifest));
            opened.push(tree);
        }
        Ok(Self { listed: Arc::new(listed), opened })
    }
}

impl OpenBasisTree {
    fn list(
        root: Root,
        options: &Options,
        single: Option<&TreePath>,
        subject: &Subject,
    ) -> Result<Self, DiskError> {
        let which = single.map_or(scan::Subject::Whole, |single| scan::Subject::One(single.clone()));
        let mut scanned = scan(&root, &which, &scan_options(options, &which), None, &mut Away)?;
        if let Subject::File { name } = subject
            && let Ok(name) = TreePath::new(name.as_slice())
            && let Ok(manifest) = renamed(&scanned.manifest, &name)
        {
            // The file is compared under its offered name.
            scanned.manifest = Arc::new(manifest);
        }
        let (manifest, identities) = (scanned.manifest, scanned.identities);
        Ok(Self { root, single: single.cloned(), manifest, identities })
    }
}

/// The paths of the basis directories. Where SOURCE goes into DEST by its name, so it is in them:
/// relative paths are relative to DEST itself.
fn paths(bases: &BasisOptions, options: &Options, own: &Path) -> Vec<PathBuf> {
    let inside = Path::new(OsStr::from_bytes(&options.anchor));
    let base = if own.ends_with(inside) { own.ancestors().nth(inside.components().count()) } else { None };
    let base = base.unwrap_or(own);
    let path = |directory: &[u8]| {
        let mut path = base.join(OsStr::from_bytes(directory));
        if !options.anchor.is_empty() {
            path.push(inside);
        }
        // The way out of a DEST that does not exist, as in a dry run, is in the words alone.
        if base.exists() { path } else { collapsed(&path) }
    };
    bases.directories.iter().map(|directory| path(directory)).collect()
}

/// The path without `..`, by its words.
fn collapsed(path: &Path) -> PathBuf {
    let mut collapsed = PathBuf::new();
    for part in path.components() {
        let is_named = matches!(collapsed.components().next_back(), Some(Component::Normal(_)));
        match part {
            Component::ParentDir if is_named => {
                collapsed.pop();
            }
            part => collapsed.push(part),
        }
    }
    collapsed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_out_of_a_missing_directory_is_in_the_words() {
        for (path, expected) in
            [("/a/b/../c", "/a/c"), ("a/../../c", "../c"), ("/a/./b", "/a/b"), ("../x", "../x"), ("a/..", "")]
        {
            assert_eq!(collapsed(Path::new(path)), Path::new(expected), "{path}");
        }
    }
}
