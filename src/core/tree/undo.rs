//! The tree that an undo makes: a three-way merge of the trees before and after a run with the tree
//! that is there now.
//!
//! Only entries that the run changed take part. One that is still as the run left it, or is already
//! as it was before, becomes what it was. One that has changed since is a conflict, and stays.

use std::cmp::Ordering;
use std::collections::HashSet;

use crate::tree::entry::{EntryRef, Kind};
use crate::tree::manifest::{Builder, Manifest, ManifestError};
use crate::tree::path::TreePath;
use crate::tree::path_ref::PathRef;
use crate::tree::time_rule::TimeRule;

/// The tree that an undo makes.
#[derive(Debug)]
pub struct Undone {
    /// The tree.
    pub manifest: Manifest,
    /// Entries that changed after the run, and stay as they are.
    pub conflicts: Vec<TreePath>,
}

/// The entries of one path in the three trees.
#[derive(Clone, Copy)]
struct Three<'a> {
    path: PathRef<'a>,
    before: Option<EntryRef<'a>>,
    now: Option<EntryRef<'a>>,
    fate: Fate,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The run did not change it.
    Untouched,
    Restored,
    Conflict,
}

/// Merges the trees.
///
/// # Errors
/// The merged tree is beyond the limits of a manifest.
pub fn undone(
    before: &Manifest,
    after: &Manifest,
    now: &Manifest,
    time_rule: TimeRule,
) -> Result<Undone, ManifestError> {
    let mut all = in_step(before, after, now, time_rule);
    // Backwards, so that children come before their directory: one that holds something which stays
    // must stay a directory.
    let mut stays: Option<PathRef<'_>> = None;
    for three in all.iter_mut().rev() {
        let holds = stays.is_some_and(|path| path.is_below(three.path));
        let is_directory = |entry: Option<EntryRef<'_>>| entry.is_some_and(|entry| entry.is_directory());
        if holds && three.fate == Fate::Restored && !is_directory(three.before) {
            three.fate = Fate::Conflict;
        }
        if three.fate != Fate::Restored && three.now.is_some() {
            stays = Some(three.path);
        }
    }
    let (mut builder, mut conflicts) = (Builder::default(), Vec::new());
    let mut directories: HashSet<Vec<u8>> = HashSet::new();
    for Three { path, before, now, mut fate } in all {
        let parent = path.directory().map(|parent| parent.to_vec());
        let has_parent = parent.is_none_or(|parent| directories.contains(&parent));
        if fate == Fate::Restored && before.is_some() && !has_parent {
            fate = Fate::Conflict;
        }
        if fate == Fate::Conflict {
            conflicts.push(path.to_path());
        }
        let entry = if fate == Fate::Restored { before } else { now };
        if let Some(entry) = entry.filter(|_| has_parent) {
            builder.add(entry)?;
            if entry.is_directory() {
                directories.insert(path.to_vec());
            }
        }
    }
    Ok(Undone { manifest: builder.finish(), conflicts })
}

/// All paths of the three trees in order, each with what becomes of it.
fn in_step<'a>(
    before: &'a Manifest,
    after: &'a Manifest,
    now: &'a Manifest,
    time_rule: TimeRule,
) -> Vec<Three<'a>> {
    let mut places = [0_u32; 3];
    let mut all = Vec::with_capacity(now.len());
    loop {
        let trees = [before, after, now];
        let paths = [0, 1, 2]
            .map(|tree: usize| trees.get(tree).zip(places.get(tree)).and_then(|(of, at)| of.path(*at)));
        let Some(path) = paths.iter().flatten().copied().min_by(PathRef::cmp) else { return all };
        let mut entries = [None; 3];
        for ((entry, place), (tree, found)) in
            entries.iter_mut().zip(&mut places).zip(trees.iter().zip(paths))
        {
            if found.is_some_and(|found| found.cmp(&path) == Ordering::Equal) {
                *entry = tree.get(*place);
                *place += 1;
            }
        }
        let [before, after, now] = entries;
        let fate = if before == after {
            Fate::Untouched
        } else if now.is_none() || are_same(now, after, time_rule) || are_same(now, before, time_rule) {
            // Where nothing is, nothing can be lost.
            Fate::Restored
        } else {
            Fate::Conflict
        };
        all.push(Three { path, before, now, fate });
    }
}

/// True if two entries have the same kind and, as far as size and time tell, content. Modes and
/// owners may differ, as when a filesystem refused them.
fn are_same(one: Option<EntryRef<'_>>, other: Option<EntryRef<'_>>, time_rule: TimeRule) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => match (one.kind, other.kind) {
            (Kind::Directory, Kind::Directory) => true,
            (Kind::File { size, .. }, Kind::File { size: other_size, .. }) => {
                size == other_size && time_rule.are_same(one.mtime, other.mtime)
            }
            (Kind::Symlink { target }, Kind::Symlink { target: other }) => target == other,
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::entry::{Entry, Time};

    /// A tree in a line: `d/` is a directory, `f:3` a file of 3 bytes.
    fn tree(text: &str) -> Manifest {
        let entries = text.split_whitespace().map(|word| {
            let (path, kind) = match word.split_once(':') {
                Some((path, size)) => (path, Kind::File { size: size.parse().unwrap(), hash: None }),
                None => (word.trim_end_matches('/'), Kind::Directory),
            };
            let path = TreePath::new(path.as_bytes()).unwrap();
            Entry { path, kind, mode: 0o644, mtime: Time::new(1, 0).unwrap(), attributes: None }
        });
        Manifest::new(entries.collect()).unwrap()
    }

    fn shown(manifest: &Manifest) -> String {
        let words = manifest.entries().map(|entry| match entry.kind {
            Kind::File { size, .. } => format!("{}:{size}", entry.path.to_path()),
            _ => format!("{}/", entry.path.to_path()),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_changed_since_the_run_stays_and_all_else_is_as_before() {
        for (before, after, now, merged, conflicts) in [
            ("a:1 b:1 c:1", "a:2 c:1 n:1", "a:2 c:1 n:1", "a:1 b:1 c:1", ""),
            // The run was killed between its changes.
            ("a:1 b:1", "a:2 n:1", "a:1 b:1 n:1", "a:1 b:1", ""),
            // Edited since: a replaced file, a created one, and one that the run did not touch.
            ("a:1 c:1", "a:2 c:1 n:1", "a:9 c:9 n:9", "a:9 c:9 n:9", "a n"),
            ("a:1", "a:2", "", "a:1", ""),
            // A created directory stays if something new is in it.
            ("", "d/ d/n:1", "d/ d/n:1 d/own:1", "d/ d/own:1", "d"),
            ("d:1", "d/ d/n:1", "d/ d/n:1", "d:1", ""),
            ("d/ d/a:1", "d:2", "d:2", "d/ d/a:1", ""),
            ("d/ d/a:1", "d:2", "d:9", "d:9", "d d/a"),
            ("d/ d/a:1", "d/", "", "", "d/a"),
        ] {
            let now = tree(now);
            let undone = undone(&tree(before), &tree(after), &now, TimeRule::Exact).unwrap();
            let told: Vec<String> = undone.conflicts.iter().map(ToString::to_string).collect();
            assert_eq!((shown(&undone.manifest).as_str(), told.join(" ").as_str()), (merged, conflicts));
        }
    }
}
