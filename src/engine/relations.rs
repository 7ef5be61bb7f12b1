//! Files that were moved or copied: new names whose content may lie elsewhere in the destination.
//!
//! Names, sizes and times only say where to look; whether the content is the same is settled by its hash.
//! rsync sends the content of a renamed directory again; here only names travel.

use std::collections::{HashMap, VecDeque};

use crate::engine::plan::Fetch;
use crate::tree::entry::{Entry, Kind};
use crate::tree::manifest::Manifest;

/// From this size on, in bytes, an equal size alone is worth a look: hashing is cheaper than sending. Below it
/// the name or the time must fit too.
const TELLING_BYTES_MIN: u64 = 64 << 10;

/// Most files of one size that are looked at for one new name.
const LOOKS_MAX: usize = 64;

/// Gives new files a basis elsewhere, where one looks like it.
pub(super) fn find(fetches: &mut VecDeque<Fetch>, wanted: &Manifest, present: &Manifest) {
    let new_sizes = |fetch: &Fetch| wanted.get(fetch.id).filter(|_| fetch.at.is_none()).map(Entry::size);
    let mut by_size: HashMap<u64, Vec<u32>> = fetches
        .iter()
        .filter_map(new_sizes)
        .filter(|&size| size > 0)
        .map(|size| (size, Vec::new()))
        .collect();
    if by_size.is_empty() {
        return;
    }
    for (at, entry) in present.iter() {
        if let (Kind::File { size, .. }, Some(found)) = (&entry.kind, by_size.get_mut(&entry.size()))
            && *size > 0
        {
            found.push(at);
        }
    }
    for fetch in fetches.iter_mut().filter(|fetch| fetch.at.is_none()) {
        let Some(entry) = wanted.get(fetch.id) else { continue };
        let candidates = by_size.get(&entry.size()).map(Vec::as_slice).unwrap_or_default();
        let best = candidates
            .iter()
            .take(LOOKS_MAX)
            .filter_map(|&at| Some((likeness(entry, present.get(at)?)?, at)))
            .max_by_key(|(likeness, _)| *likeness);
        if let Some((_, at)) = best {
            (fetch.at, fetch.elsewhere) = (Some(at), true);
        }
    }
}

/// How much two files of one size look alike; `None` where it is not worth a look.
fn likeness(entry: &Entry, other: &Entry) -> Option<u8> {
    let same_name = entry.path.name() == other.path.name();
    let same_time = entry.mtime == other.mtime;
    let likeness = u8::from(same_name) + 2 * u8::from(same_time);
    (likeness > 0 || entry.size() >= TELLING_BYTES_MIN).then_some(likeness)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::entry::Time;
    use crate::tree::path::TreePath;

    fn tree(files: &[(&str, u64, i64)]) -> Manifest {
        let mut entries = Vec::new();
        for &(path, size, seconds) in files {
            let kind = if path.ends_with('/') { Kind::Directory } else { Kind::File { size, hash: None } };
            let path = TreePath::new(path.trim_end_matches('/').as_bytes()).unwrap();
            entries.push(Entry { path, kind, mode: 0o644, mtime: Time::new(seconds, 0).unwrap() });
        }
        Manifest::new(entries).unwrap()
    }

    /// Where the content of the first wanted entry is looked for.
    fn basis(wanted: &[(&str, u64, i64)], present: &[(&str, u64, i64)]) -> Option<String> {
        let (wanted, present) = (tree(wanted), tree(present));
        let mut fetches = VecDeque::from([Fetch { id: 0, at: None, elsewhere: false }]);
        find(&mut fetches, &wanted, &present);
        let fetch = fetches[0];
        assert_eq!(fetch.at.is_some(), fetch.elsewhere);
        Some(present.get(fetch.at?)?.path.to_string())
    }

    #[test]
    fn a_name_or_a_time_makes_two_files_of_one_size_alike() {
        let new = [("new", 5, 1)];
        assert_eq!(basis(&new, &[("old", 5, 1)]), Some("old".into()));
        assert_eq!(basis(&new, &[("d/", 0, 0), ("d/new", 5, 2)]), Some("d/new".into()));
        assert_eq!(basis(&new, &[("old", 5, 2)]), None);
        assert_eq!(basis(&new, &[("old", 6, 1)]), None);
        assert_eq!(basis(&[("new", 0, 1)], &[("old", 0, 1)]), None);
    }

    #[test]
    fn of_several_the_most_alike_is_taken() {
        let present = [("a", 5, 1), ("d/", 0, 0), ("d/new", 5, 2), ("e/", 0, 0), ("e/new", 5, 1)];
        assert_eq!(basis(&[("new", 5, 1)], &present), Some("e/new".into()));
    }

    #[test]
    fn large_files_are_compared_by_size_alone() {
        assert_eq!(basis(&[("new", 1 << 20, 1)], &[("old", 1 << 20, 2)]), Some("old".into()));
    }
}
