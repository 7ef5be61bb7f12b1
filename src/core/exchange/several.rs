//! Several sources in one offer: each becomes an entry of the destination directory, by its own
//! name.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::disk::attributes::offered_mode;
use crate::disk::error::DiskError;
use crate::disk::identities::Identities;
use crate::disk::scan::{self, Look, ScanOptions, Skipped, Sparse, scan};
use crate::exchange::common::chain;
use crate::exchange::found::{self, Found, Part, listing_problems};
use crate::monitor::{Problem, ProblemKind};
use crate::tree::entry::{Entry, EntryRef, Kind};
use crate::tree::filter::IgnoreFile;
use crate::tree::links::FollowedLinks;
use crate::tree::manifest::{Builder, Manifest, ManifestError};
use crate::tree::path::TreePath;
use crate::tree::subtrees::SubtreeSet;
use crate::wire::hello::Options;

/// Several sources, in the order of their names.
#[derive(Debug, Default)]
pub(super) struct FoundSeveral {
    sources: Vec<(TreePath, Found)>,
    /// Sources that are missing or have no name.
    problems: Vec<Problem>,
}

/// Several sources as they were listed.
#[derive(Debug, Default)]
pub(super) struct ListedSeveral {
    pub(super) parts: Vec<Part>,
    pub(super) manifest: Manifest,
    pub(super) identities: Identities,
    pub(super) ignores: Vec<IgnoreFile>,
    pub(super) problems: Vec<Problem>,
    pub(super) is_complete: bool,
    pub(super) skipped: Skipped,
    pub(super) sparse: Sparse,
    /// The names, and everything below them.
    pub(super) scope: SubtreeSet,
}

/// Finds the sources at these paths. A missing one does not stop the others.
pub(super) fn find<'a>(paths: impl Iterator<Item = &'a PathBuf>, follows: FollowedLinks) -> FoundSeveral {
    let mut found = FoundSeveral::default();
    for path in paths {
        match found::find(path, follows).and_then(|source| Ok((name_of(path, &source)?, source))) {
            Ok(source) => found.sources.push(source),
            Err(error) => found.problems.push(Problem {
                kind: ProblemKind::Unreadable,
                path: path.as_os_str().as_bytes().to_vec(),
                cause: chain(&*error),
            }),
        }
    }
    found.sources.sort_by(|(one, _), (other, _)| one.cmp(other));
    found
}

/// The name of a source in the destination. The name of `.` or of a home must be looked up.
fn name_of(path: &Path, source: &Found) -> Result<TreePath, Box<dyn std::error::Error>> {
    if let Some(single) = &source.single {
        return Ok(single.offered.clone());
    }
    let real = if path.file_name().is_none() { std::fs::canonicalize(path)? } else { path.to_owned() };
    let name = real.file_name().ok_or("it has no name")?;
    Ok(TreePath::new(name.as_bytes())?)
}

/// Lists the sources, and merges them into one tree.
///
/// # Errors
/// Two sources have one name, or they hold more than a tree may.
pub(super) fn list(
    found: FoundSeveral,
    run: &Options,
    options: &ScanOptions,
    look: &mut dyn Look,
) -> Result<ListedSeveral, ManifestError> {
    let mut listed = ListedSeveral { problems: found.problems, ..ListedSeveral::default() };
    let mut tree = Builder::default();
    let mut names = Vec::new();
    listed.is_complete = listed.problems.is_empty();
    for (name, source) in found.sources {
        let first = u32::try_from(tree.len()).unwrap_or(u32::MAX);
        match listed.add(&mut tree, (&name, &source), run, options, look) {
            Ok(()) => {}
            Err(AddError::Tree(error)) => return Err(error),
            Err(AddError::Disk(error)) => {
                listed.is_complete = false;
                let (path, cause) = (name.as_bytes().to_vec(), chain(&error));
                listed.problems.push(Problem { kind: ProblemKind::Unreadable, path, cause });
                continue;
            }
        }
        let prefix = source.single.is_none().then(|| name.clone());
        let single = source.single.map(|single| single.local);
        listed.parts.push(Part { first, root: source.root, single, prefix });
        names.push((name, true));
    }
    listed.manifest = tree.finish();
    listed.scope = SubtreeSet::new(names);
    Ok(listed)
}

/// A source that cannot be added.
enum AddError {
    /// It cannot be read; the others can.
    Disk(DiskError),
    Tree(ManifestError),
}

impl From<DiskError> for AddError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

impl From<ManifestError> for AddError {
    fn from(error: ManifestError) -> Self {
        Self::Tree(error)
    }
}

impl ListedSeveral {
    /// Lists one source, and adds it to the tree under its name.
    fn add(
        &mut self,
        tree: &mut Builder,
        (name, source): (&TreePath, &Found),
        run: &Options,
        options: &ScanOptions,
        look: &mut dyn Look,
    ) -> Result<(), AddError> {
        let single = source.single.as_ref();
        // The rules are anchored at the directory that all sources are in.
        let mut filter = run.hiding(if single.is_some() { b"" } else { name.as_bytes() });
        let is_excluded =
            if single.is_some() { filter.excludes(name, false) } else { filter.excludes_tree() };
        if is_excluded {
            self.skipped.excluded += 1;
            return Ok(());
        }
        let subject = single.map_or(scan::Subject::Whole, |single| scan::Subject::One(single.local.clone()));
        let own = source.root.own_stat()?;
        let mut scanned = scan(&source.root, &subject, options, Some(&mut filter), look)?;
        if single.is_none() {
            let attributes = source.root.own_attributes(options.metadata.as_deref());
            let entry: EntryRef<'_> = Entry {
                path: name.into(),
                kind: Kind::Directory,
                mode: offered_mode(&own, options.set_id_owner, options.metadata.as_deref()),
                mtime: own.mtime(),
                attributes: attributes.as_ref(),
            };
            tree.add(entry)?;
            self.identities.push(&own.identity);
        }
        let inside = |path: &[u8]| if single.is_some() { Some(name.clone()) } else { name.join(path).ok() };
        for (at, entry) in scanned.manifest.iter() {
            let Some(path) = inside(&entry.path.to_vec()) else {
                self.is_complete = false;
                let path = [name.as_bytes(), b"/", &entry.path.to_vec()].concat();
                let cause = "its path in the destination is too long".to_owned();
                self.problems.push(Problem { kind: ProblemKind::Unreadable, path, cause });
                continue;
            };
            tree.add(Entry { path: (&path).into(), ..entry })?;
            if let Some(identity) = scanned.identities.get(&scanned.manifest, at) {
                self.identities.push(&identity);
            }
        }
        self.is_complete &= scanned.problems.is_empty();
        self.problems.extend(listing_problems(&scanned).map(|problem| Problem {
            path: inside(&problem.path).map_or(problem.path, |path| path.as_bytes().to_vec()),
            ..problem
        }));
        self.ignores.extend(filter.files().iter().map(|file| IgnoreFile {
            directory: match &*file.directory {
                b"" => name.as_bytes().to_vec(),
                below => [name.as_bytes(), b"/", below].concat(),
            },
            text: file.text.clone(),
        }));
        self.skipped.excluded += scanned.skipped.excluded;
        self.skipped.state += scanned.skipped.state;
        self.sparse.others_bytes += scanned.sparse.others_bytes;
        let sparse = std::mem::take(&mut scanned.sparse.files).into_iter();
        self.sparse.files.extend(sparse.filter_map(|(path, bytes)| Some((inside(path.as_bytes())?, bytes))));
        Ok(())
    }
}
