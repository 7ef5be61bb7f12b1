//! Rename detection: new names whose content may lie elsewhere in the destination.
//!
//! Names, sizes and times only select candidates; the hash decides whether the content is the same.
//! rsync sends the content of a renamed directory again; ksync sends only names.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::engine::fetch::Fetch;
use crate::tree::doubt::{Doubt, Doubts};
use crate::tree::entry::{EntryRef, Kind, Time};
use crate::tree::manifest::Manifest;

/// Size in bytes from which an equal size alone makes a candidate: hashing is cheaper than sending.
/// Below it the name or the time must match too.
const TELLING_BYTES_MIN: u64 = 64 << 10;

/// Most candidates for one new name among the files with one size and time, one size and name, or
/// one size.
const LOOKS_MAX: usize = 64;

/// Gives new files a basis elsewhere, where a candidate exists. A file with lost content is none:
/// moved, it would stay lost.
pub(super) fn find(fetches: &mut VecDeque<Fetch>, wanted: &Manifest, present: &Manifest, doubts: &Doubts) {
    let new_sizes =
        |fetch: &Fetch| wanted.get(fetch.id).filter(|_| fetch.at.is_none()).map(|entry| entry.size());
    let sizes: HashSet<u64> = fetches.iter().filter_map(new_sizes).filter(|&size| size > 0).collect();
    if sizes.is_empty() {
        return;
    }
    let mut places: HashMap<Trait<'_>, Vec<u32>> = HashMap::new();
    for (at, entry) in present.iter() {
        let is_lost = || doubts.of(at) == Some(Doubt::Lost);
        if matches!(entry.kind, Kind::File { .. }) && sizes.contains(&entry.size()) && !is_lost() {
            for one in Trait::of(entry) {
                let known = places.entry(one).or_default();
                if known.len() < LOOKS_MAX {
                    known.push(at);
                }
            }
        }
    }
    for fetch in fetches.iter_mut().filter(|fetch| fetch.at.is_none()) {
        let Some(entry) = wanted.get(fetch.id).filter(|entry| entry.size() > 0) else { continue };
        let candidates = Trait::of(entry).filter_map(|one| places.get(&one)).flatten();
        let best = candidates
            .filter_map(|&at| Some((likeness(entry, present.get(at)?), at)))
            .max_by_key(|&(likeness, _)| likeness);
        if let Some((_, at)) = best {
            (fetch.at, fetch.elsewhere) = (Some(at), true);
        }
    }
}

/// A property that makes two files candidates for equal content.
#[derive(PartialEq, Eq, Hash)]
enum Trait<'a> {
    SizeAndTime(u64, Time),
    SizeAndName(u64, &'a [u8]),
    Size(u64),
}

impl<'a> Trait<'a> {
    fn of(entry: EntryRef<'a>) -> impl Iterator<Item = Self> {
        let size = entry.size();
        let telling = (size >= TELLING_BYTES_MIN).then_some(Self::Size(size));
        [Self::SizeAndTime(size, entry.mtime), Self::SizeAndName(size, entry.path.name())]
            .into_iter()
            .chain(telling)
    }
}

/// Likeness of two files of one size: equal times count first, then the number of equal path
/// components at the end. Most moves are of whole directories.
fn likeness(entry: EntryRef<'_>, other: EntryRef<'_>) -> (bool, usize) {
    let pairs = entry.path.components().rev().zip(other.path.components().rev());
    (entry.mtime == other.mtime, pairs.take_while(|(one, other)| one == other).count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::entry::Entry;
    use crate::tree::path::TreePath;

    fn tree(files: &[(&str, u64, i64)]) -> Manifest {
        let mut entries = Vec::new();
        for &(path, size, seconds) in files {
            let kind = if path.ends_with('/') { Kind::Directory } else { Kind::File { size, hash: None } };
            let path = TreePath::new(path.trim_end_matches('/').as_bytes()).unwrap();
            let mtime = Time::new(seconds, 0).unwrap();
            entries.push(Entry { path, kind, mode: 0o644, mtime, attributes: None });
        }
        Manifest::new(entries).unwrap()
    }

    /// The path of the basis that is chosen for the last wanted entry.
    fn basis(wanted: &[(&str, u64, i64)], present: &[(&str, u64, i64)]) -> Option<String> {
        let (wanted, present) = (tree(wanted), tree(present));
        let id = wanted.len() as u32 - 1;
        let mut fetches = VecDeque::from([Fetch { id, at: None, elsewhere: false, is_doubted: false }]);
        find(&mut fetches, &wanted, &present, &Doubts::default());
        let fetch = fetches[0];
        assert_eq!(fetch.at.is_some(), fetch.elsewhere);
        Some(present.get(fetch.at?)?.path.to_string())
    }

    #[test]
    fn equal_size_with_equal_name_or_time_makes_a_basis() {
        let new = [("new", 5, 1)];
        assert_eq!(basis(&new, &[("old", 5, 1)]), Some("old".into()));
        assert_eq!(basis(&new, &[("d/", 0, 0), ("d/new", 5, 2)]), Some("d/new".into()));
        assert_eq!(basis(&new, &[("old", 5, 2)]), None);
        assert_eq!(basis(&new, &[("old", 6, 1)]), None);
        assert_eq!(basis(&[("new", 0, 1)], &[("old", 0, 1)]), None);
    }

    #[test]
    fn most_alike_of_several_candidates_is_the_basis() {
        let present = [("a", 5, 1), ("d/", 0, 0), ("d/new", 5, 2), ("e/", 0, 0), ("e/new", 5, 1)];
        assert_eq!(basis(&[("new", 5, 1)], &present), Some("e/new".into()));
    }

    #[test]
    fn candidate_in_a_directory_of_the_same_name_comes_first() {
        let present =
            [("a/", 0, 0), ("a/x/", 0, 0), ("a/x/f", 5, 1), ("a/y/", 0, 0), ("a/y/f", 5, 1), ("a/y/z", 5, 1)];
        for (directory, new, old) in
            [("b/x/", "b/x/f", "a/x/f"), ("b/y/", "b/y/f", "a/y/f"), ("b/v/", "b/v/z", "a/y/z")]
        {
            let wanted = [("b/", 0, 0), (directory, 0, 0), (new, 5, 1)];
            assert_eq!(basis(&wanted, &present), Some(old.into()));
        }
    }

    #[test]
    fn many_files_of_one_size_hide_no_candidate() {
        let mut present: Vec<(String, u64, i64)> = (0..500).map(|n| (format!("f{n:03}"), 5, n)).collect();
        present.sort();
        let present: Vec<_> =
            present.iter().map(|(name, size, time)| (name.as_str(), *size, *time)).collect();
        assert_eq!(basis(&[("new", 5, 499)], &present), Some("f499".into()));
        assert_eq!(basis(&[("f470", 5, 1000)], &present[..470]), None);
    }

    #[test]
    fn large_files_are_compared_by_size_alone() {
        assert_eq!(basis(&[("new", 1 << 20, 1)], &[("old", 1 << 20, 2)]), Some("old".into()));
    }
}
