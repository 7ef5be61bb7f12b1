//! Entries of a source that the user listed (`--files-from`), with the directories above them.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::disk::contents::contents;
use crate::disk::error::DiskError;
use crate::disk::root::Root;
use crate::disk::scan::{Away, ScanOptions, Scanned, Subject, begin, kind_at, scan};
use crate::disk::stat::FileKind;
use crate::exchange::found::listing_problems;
use crate::monitor::{Problem, ProblemKind};
use crate::tree::filter::Filter;
use crate::tree::path::TreePath;
use crate::tree::subtrees::{SUBTREES_MAX, SubtreeSet};
use crate::wire::hello::FileList;

/// The listed entries, as they were found.
pub(super) struct ListedFiles {
    pub(super) scanned: Scanned,
    /// Those that are there.
    pub(super) scope: SubtreeSet,
    /// Those that are not, or cannot be read.
    pub(super) problems: Vec<Problem>,
}

/// Lists the entries. A missing one does not stop the others.
///
/// # Errors
/// The root cannot be read, or there is more than a tree may hold.
pub(super) fn list(
    root: &Root,
    files: &FileList,
    options: &ScanOptions,
    filter: &mut Filter,
) -> Result<ListedFiles, DiskError> {
    let mut problems = Vec::new();
    let mut problem = |path: &[u8], cause: String| {
        problems.push(Problem { kind: ProblemKind::Unreadable, path: path.to_vec(), cause });
    };
    let mut parts: BTreeSet<(TreePath, bool)> = BTreeSet::new();
    // As in rsync, the rules see a listed path before the merge files of directories are read.
    let mut first = filter.clone();
    begin(root, &mut first)?;
    let mut excluded = 0;
    for (bytes, has_contents) in &files.paths {
        let path = if bytes.is_empty() { Ok(None) } else { TreePath::new(bytes.as_slice()).map(Some) };
        let path = match path {
            Ok(path) => path,
            Err(error) => {
                problem(bytes, error.to_string());
                continue;
            }
        };
        let found = match &path {
            Some(path) => kind_at(root, path, options.follows),
            None => Ok(Some(FileKind::Directory)),
        };
        let kind = match found {
            Ok(Some(kind)) => kind,
            Ok(None) => {
                problem(bytes, "it does not exist".to_owned());
                continue;
            }
            Err(error) => {
                problem(bytes, error.reason().to_string());
                continue;
            }
        };
        if path.as_ref().is_some_and(|path| first.excludes(path, kind == FileKind::Directory)) {
            excluded += 1;
            continue;
        }
        if *has_contents && kind == FileKind::Directory && !files.recursive {
            match contents(root, path.as_ref()) {
                Ok(contents) => parts.extend(contents.into_iter().map(|path| (path, false))),
                Err(error) => problem(bytes, error.reason().to_string()),
            }
        }
        parts.extend(path.map(|path| (path, files.recursive)));
    }
    if parts.len() > SUBTREES_MAX {
        let cause = format!("the listed directories hold more than {SUBTREES_MAX} entries");
        problem(b".", cause);
        parts.clear();
    }
    let wanted = SubtreeSet::new(parts);
    let options = ScanOptions { implied_parents: true, ..options.clone() };
    let mut scanned =
        scan(root, &Subject::Subtrees(wanted.clone(), Arc::default()), &options, Some(filter), &mut Away)?;
    scanned.skipped.excluded += excluded;
    let (mut there, known) = (Vec::new(), listing_problems(&scanned).map(|problem| problem.path));
    let known: BTreeSet<Vec<u8>> = known.collect();
    for (path, recursive) in wanted.subtrees() {
        if scanned.manifest.position(path).is_some() {
            there.push((path.clone(), *recursive));
        } else if !known.contains(path.as_bytes()) {
            let stat = root.stat(path).ok().flatten();
            // It is excluded, or a state directory, or it vanished.
            if !stat.is_some_and(|stat| filter.excludes(path, stat.kind() == FileKind::Directory)) {
                problem(path.as_bytes(), "it changed since it was looked at".to_owned());
            }
        }
    }
    problems.extend(listing_problems(&scanned));
    Ok(ListedFiles { scanned, scope: SubtreeSet::new(there), problems })
}
