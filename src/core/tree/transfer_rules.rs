//! Transfer rules: they decide which of the offered entries the receiver passes over, with rsync's
//! meanings.
//!
//! Filters shape the offer; transfer rules do not. An entry that a rule passes over is still
//! wanted, so `--delete` keeps what is in its place. Neither its content nor its metadata are
//! touched. Only pruned directories are not wanted.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::tree::entry::{EntryRef, Kind, Time};
use crate::tree::manifest::Manifest;
use crate::tree::path_ref::PathRef;
use crate::tree::time_rule::TimeRule;

/// The transfer rules of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TransferRules {
    /// Pass over files that are newer in the destination.
    pub update: bool,
    /// Pass over entries that the destination does not have.
    pub existing: bool,
    /// Pass over entries that the destination has, except directories.
    pub ignore_existing: bool,
    /// Longest file that takes part, in bytes.
    pub size_max: Option<u64>,
    /// Shortest file that takes part, in bytes.
    pub size_min: Option<u64>,
    /// Treat directories that hold nothing but directories as not offered.
    pub prune_empty: bool,
    /// The proof that two files of one size have one content, where no hashes are compared.
    pub proof: Proof,
    /// Pass over files that are not shorter in the destination, unless size and time are equal.
    pub append: bool,
}

/// The proof that two files of one size have one content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Proof {
    /// Equal times.
    #[default]
    Time,
    /// The size alone.
    Size,
    /// None: each file is compared by its content.
    None,
}

impl TransferRules {
    /// True if the receiver passes over an entry. `old` is what the destination has in its place.
    #[must_use]
    pub fn passes_over(&self, entry: EntryRef<'_>, old: Option<EntryRef<'_>>, time_rule: TimeRule) -> bool {
        let Some(old) = old else { return self.existing || self.is_of_other_size(entry) };
        let is_kept = self.ignore_existing && !(entry.is_directory() && old.is_directory());
        let is_newer = || {
            let are_files = matches!((entry.kind, old.kind), (Kind::File { .. }, Kind::File { .. }));
            are_files && is_newer(old.mtime, entry.mtime, time_rule)
        };
        is_kept
            || self.is_of_other_size(entry)
            || self.update && is_newer()
            || self.append && is_long_enough(entry, old, time_rule)
    }

    /// The wanted directories that count as not offered.
    pub fn pruned(&self, wanted: &Manifest) -> HashSet<u32> {
        let mut pruned = HashSet::new();
        if !self.prune_empty {
            return pruned;
        }
        // The directories above the current entry that have held nothing else so far.
        let mut empty: Vec<(u32, PathRef<'_>)> = Vec::new();
        for (id, entry) in wanted.iter() {
            while let Some((above, _)) = empty.pop_if(|(_, above)| !entry.path.is_below(*above)) {
                pruned.insert(above);
            }
            if entry.is_directory() {
                empty.push((id, entry.path));
            } else {
                empty.clear();
            }
        }
        pruned.extend(empty.into_iter().map(|(id, _)| id));
        pruned
    }

    fn is_of_other_size(&self, entry: EntryRef<'_>) -> bool {
        let Kind::File { size, .. } = entry.kind else { return false };
        self.size_max.is_some_and(|most| size > most) || self.size_min.is_some_and(|least| size < least)
    }
}

/// True if the destination's file is not shorter than the source's, and differs from it.
fn is_long_enough(entry: EntryRef<'_>, old: EntryRef<'_>, time_rule: TimeRule) -> bool {
    let (Kind::File { size, .. }, Kind::File { size: present, .. }) = (entry.kind, old.kind) else {
        return false;
    };
    present > size || present == size && !time_rule.are_same(entry.mtime, old.mtime)
}

/// True if the destination's file is newer than the source's. As in rsync, a window of N seconds
/// means that the source's file must be newer by at least N.
fn is_newer(present: Time, wanted: Time, time_rule: TimeRule) -> bool {
    match time_rule {
        TimeRule::Window(seconds) => {
            i128::from(wanted.seconds()) - i128::from(present.seconds()) < i128::from(seconds)
        }
        TimeRule::Exact | TimeRule::Granularity(_) => {
            let key = |time: Time| (time.seconds(), time.nanos());
            key(present) > key(wanted) && !time_rule.are_same(wanted, present)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::entry::Entry;
    use crate::tree::path::TreePath;

    fn time(seconds: i64, nanos: u32) -> Time {
        Time::new(seconds, nanos).unwrap()
    }

    #[test]
    fn newer_files_are_those_that_rsync_calls_newer() {
        let (exact, coarse) = (TimeRule::Exact, TimeRule::Granularity(2_000_000_000));
        for (present, wanted, rule, expected) in [
            (time(11, 0), time(10, 0), exact, true),
            (time(11, 0), time(11, 0), exact, false),
            (time(11, 0), time(12, 0), exact, false),
            (time(11, 1), time(11, 0), exact, true),
            (time(12, 0), time(11, 5), coarse, false),
            (time(14, 0), time(11, 5), coarse, true),
            (time(11, 0), time(12, 0), TimeRule::Window(2), true),
            (time(11, 0), time(13, 0), TimeRule::Window(2), false),
            (time(11, 9), time(11, 0), TimeRule::Window(0), false),
        ] {
            assert_eq!(is_newer(present, wanted, rule), expected, "{present:?} {wanted:?} {rule:?}");
        }
    }

    #[test]
    fn sizes_are_limits_that_files_may_have() {
        let path = TreePath::new(&b"a"[..]).unwrap();
        let rules = TransferRules { size_max: Some(3), size_min: Some(2), ..TransferRules::default() };
        let passes_over = |kind| {
            let (mode, mtime) = (0o644, time(1, 0));
            let entry: EntryRef<'_> = Entry { path: (&path).into(), kind, mode, mtime, attributes: None };
            rules.passes_over(entry, None, TimeRule::Exact)
        };
        let sizes = [1, 2, 3, 4].map(|size| passes_over(Kind::File { size, hash: None }));
        assert_eq!(sizes, [true, false, false, true]);
        assert!(!passes_over(Kind::Directory));
        assert!(!passes_over(Kind::Symlink { target: b"longer" }));
    }
}
