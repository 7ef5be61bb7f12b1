//! Changes: a manifest as its differences to an earlier one.
//!
//! A change walks through the earlier manifest from its beginning: some entries stay, some go, some
//! come in their place, and so on. The rest stays. A change cannot step back, and it can name only
//! existing entries. The result is checked like any manifest.

use serde::{Deserialize, Serialize};

use crate::content::hash::Hash;
use crate::tree::block::{BlockReader, BlockWriter};
use crate::tree::entry::{Entry, EntryRef};
use crate::tree::filter::IgnoreFile;
use crate::tree::manifest::{Builder, Manifest, ManifestError};
use crate::tree::path_ref::PathRef;
use crate::tree::record::{Entries, Record};

/// Most edits in one [`Change`].
pub const EDITS_MAX: usize = 4096;

/// One step through the earlier manifest, which drops or adds entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// Number of its entries that stay.
    pub keep: u32,
    /// Number of entries after them that go.
    pub drop: u32,
    /// Number of entries that come in their place.
    pub add: u32,
}

/// A part of the differences.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The steps: 1 to [`EDITS_MAX`].
    pub edits: Vec<Edit>,
    /// All new entries, as a block.
    #[serde(with = "serde_bytes")]
    pub entries: Vec<u8>,
}

/// Failure to apply a change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The earlier manifest is damaged. It is this side's own, so the peer is not to blame.
    #[error("the stored baseline is damaged")]
    Baseline,
    /// A step does nothing, or leads beyond the end.
    #[error("a change of the manifest is malformed")]
    Malformed,
    /// The result is not a manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// Positions of the new entries in the manifest that the changes make.
pub fn added(changes: &[Change]) -> impl Iterator<Item = u32> {
    changes
        .iter()
        .flat_map(|change| &change.edits)
        .scan(0_u32, |at, edit| {
            let begin = at.saturating_add(edit.keep);
            *at = begin.saturating_add(edit.add);
            Some(begin..*at)
        })
        .flatten()
}

/// Computes the changes from the entries of `baseline` to `manifest`, in parts that each fit in a
/// message. `None` if more than half of the entries are new, so that changes are not worth it, or
/// if `baseline` is damaged.
#[must_use]
pub fn between(baseline: Entries, manifest: &Manifest) -> Option<Vec<Change>> {
    let mut baseline = baseline;
    let mut writer = ChangeWriter::default();
    let mut old = baseline.next().transpose().ok()?;
    for entry in manifest.entries() {
        while old.as_ref().is_some_and(|old| PathRef::from(&old.path) < entry.path) {
            writer.edit.drop += 1;
            old = baseline.next().transpose().ok()?;
        }
        match &old {
            Some(same) if same.view() == entry => {
                writer.keep();
                old = baseline.next().transpose().ok()?;
            }
            Some(other) if entry.path == other.path => {
                writer.edit.drop += 1;
                writer.add(entry);
                old = baseline.next().transpose().ok()?;
            }
            _ => writer.add(entry),
        }
        if writer.added > manifest.len() / 2 {
            return None;
        }
    }
    while old.is_some() {
        writer.edit.drop += 1;
        old = baseline.next().transpose().ok()?;
    }
    writer.end_change();
    Some(writer.changes)
}

#[derive(Default)]
struct ChangeWriter {
    changes: Vec<Change>,
    edits: Vec<Edit>,
    edit: Edit,
    block: BlockWriter,
    added: usize,
}

impl ChangeWriter {
    fn keep(&mut self) {
        self.end_edit();
        self.edit.keep += 1;
    }

    fn add(&mut self, entry: EntryRef<'_>) {
        self.edit.add += 1;
        self.added += 1;
        self.block.push(entry);
        if self.block.is_full() {
            self.end_change();
        }
    }

    /// Ends a step, if there is one. Entries that stay up to the end need no step.
    fn end_edit(&mut self) {
        if self.edit.drop > 0 || self.edit.add > 0 {
            self.edits.push(std::mem::take(&mut self.edit));
            if self.edits.len() == EDITS_MAX {
                self.end_change();
            }
        }
    }

    fn end_change(&mut self) {
        if self.edit.drop > 0 || self.edit.add > 0 {
            self.edits.push(std::mem::take(&mut self.edit));
        }
        if !self.edits.is_empty() {
            self.changes.push(Change { edits: std::mem::take(&mut self.edits), entries: self.block.take() });
        }
    }
}

/// Builds a manifest from an earlier one and its changes. Only one of them is ever in memory as a
/// whole.
#[derive(Debug)]
pub struct Rebuild {
    digest: Hash,
    ignores: Vec<IgnoreFile>,
    baseline: Entries,
    builder: Builder,
    changed: bool,
    /// The earlier manifest, decoded ahead, until the first change.
    ahead: Option<Manifest>,
}

impl Rebuild {
    /// Begins with the baseline.
    #[must_use]
    pub fn new(baseline: Record) -> Self {
        let digest = baseline.digest();
        let (ignores, entries) = baseline.into_parts();
        Self { digest, ignores, baseline: entries, builder: Builder::default(), changed: false, ahead: None }
    }

    /// Decodes the earlier manifest ahead, while its changes are still awaited: most often there
    /// are none. A damaged one fails later.
    #[must_use]
    pub fn ahead(mut self) -> Self {
        let mut builder = Builder::default();
        let is_whole = loop {
            match self.next_of_baseline() {
                Ok(Some(entry)) if builder.add(entry.view()).is_ok() => {}
                result => break matches!(result, Ok(None)),
            }
        };
        self.baseline.rewind();
        self.ahead = is_whole.then(|| builder.finish());
        self
    }

    /// The ignore files of the earlier manifest.
    #[must_use]
    pub fn ignores(&self) -> &[IgnoreFile] {
        &self.ignores
    }

    /// The digest of the earlier manifest's record, if nothing has changed since.
    #[must_use]
    pub fn unchanged(&self) -> Option<Hash> {
        (!self.changed).then_some(self.digest)
    }

    /// Takes in the next change.
    ///
    /// # Errors
    /// [`ChangeError`]; the rebuild must not be used afterwards.
    pub fn apply(&mut self, change: &Change) -> Result<(), ChangeError> {
        (self.changed, self.ahead) = (true, None);
        if change.edits.is_empty() {
            return Err(ChangeError::Malformed);
        }
        let mut new = BlockReader::new(&change.entries);
        for &Edit { keep, drop, add } in &change.edits {
            // A step without effect is refused, so that no peer can have steps made without end.
            if drop == 0 && add == 0 {
                return Err(ChangeError::Malformed);
            }
            for _ in 0..keep {
                let entry = self.next_of_baseline()?.ok_or(ChangeError::Malformed)?;
                self.builder.add(entry.view())?;
            }
            for _ in 0..drop {
                self.next_of_baseline()?.ok_or(ChangeError::Malformed)?;
            }
            for _ in 0..add {
                let entry = new.next().ok_or(ChangeError::Malformed)??;
                self.builder.add(entry.view())?;
            }
        }
        if new.next().is_some() { Err(ChangeError::Malformed) } else { Ok(()) }
    }

    /// The manifest after all changes.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn finish(mut self) -> Result<Manifest, ChangeError> {
        if let Some(manifest) = self.ahead {
            return Ok(manifest);
        }
        while let Some(entry) = self.next_of_baseline()? {
            self.builder.add(entry.view())?;
        }
        Ok(self.builder.finish())
    }

    fn next_of_baseline(&mut self) -> Result<Option<Entry>, ChangeError> {
        self.baseline.next().transpose().map_err(|_| ChangeError::Baseline)
    }
}

/// Entries and records for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::tree::entry::{Kind, Time};
    use crate::tree::path::TreePath;

    pub(crate) fn entry(path: &str, kind: Kind) -> Entry {
        let path = TreePath::new(path.as_bytes()).unwrap();
        Entry { path, kind, mode: 0o644, mtime: Time::new(1, 2).unwrap(), attributes: None }
    }

    pub(crate) fn file(path: &str, size: u64) -> Entry {
        entry(path, Kind::File { size, hash: None })
    }

    /// A directory with `count` files in it.
    pub(crate) fn entries(count: u64) -> Vec<Entry> {
        let files = (0..count).map(|number| file(&format!("d/{number:06}"), number));
        std::iter::once(entry("d", Kind::Directory)).chain(files).collect()
    }

    pub(crate) fn ignores(text: &str) -> Vec<IgnoreFile> {
        vec![IgnoreFile { directory: b"d".to_vec(), text: text.as_bytes().to_vec() }]
    }

    pub(crate) fn record_bytes(manifest: &Manifest, ignores: &[IgnoreFile]) -> Vec<u8> {
        let mut bytes = Vec::new();
        crate::tree::record::write(manifest, ignores, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
        bytes
    }

    pub(crate) fn record(manifest: &Manifest, ignores: &[IgnoreFile]) -> Record {
        Record::new(record_bytes(manifest, ignores)).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::testing::{entries, entry, file, record, record_bytes};
    use super::*;
    use crate::tree::entry::Kind;

    fn baseline() -> Manifest {
        Manifest::new(entries(10)).unwrap()
    }

    fn change(edits: &[(u32, u32, u32)], new: &[Entry]) -> Change {
        let mut block = BlockWriter::default();
        new.iter().for_each(|entry| block.push(entry.view()));
        let edits = edits.iter().map(|&(keep, drop, add)| Edit { keep, drop, add }).collect();
        Change { edits, entries: block.take() }
    }

    fn apply(baseline: &Manifest, changes: &[Change]) -> Result<Manifest, ChangeError> {
        let mut rebuild = Rebuild::new(record(baseline, &[]));
        changes.iter().try_for_each(|change| rebuild.apply(change))?;
        rebuild.finish()
    }

    fn between(baseline: &Manifest, manifest: &Manifest) -> Option<Vec<Change>> {
        super::between(record(baseline, &[]).into_parts().1, manifest)
    }

    #[test]
    fn new_entries_are_named_by_their_positions() {
        let edit = |keep, drop, add| Edit { keep, drop, add };
        let change = |edits: &[Edit]| Change { edits: edits.to_vec(), entries: Vec::new() };
        let changes = [change(&[edit(2, 1, 1), edit(0, 5, 0)]), change(&[edit(1, 0, 2), edit(9, 1, 0)])];
        assert_eq!(added(&changes).collect::<Vec<_>>(), [2, 4, 5]);
    }

    #[test]
    fn empty_change_leaves_everything() {
        assert_eq!(between(&baseline(), &baseline()), Some(Vec::new()));
        assert_eq!(apply(&baseline(), &[]).unwrap(), baseline());
    }

    #[test]
    fn neighbours_share_a_step() {
        let mut new = entries(10);
        new[3] = file("d/000002", 99);
        new[4] = file("d/000003", 99);
        new.insert(5, file("d/000003x", 99));
        let changes = between(&baseline(), &Manifest::new(new).unwrap()).unwrap();
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].edits, [Edit { keep: 3, drop: 2, add: 3 }]);
    }

    #[test]
    fn mostly_new_manifest_is_no_change() {
        let new = |count| Manifest::new(entries(count)).unwrap();
        assert!(between(&new(100), &new(199)).is_some());
        assert!(between(&new(100), &new(210)).is_none());
        assert!(between(&new(0), &new(10)).is_none());
    }

    #[test]
    fn long_change_comes_in_parts() {
        let mut new = entries(20_000);
        new.iter_mut().skip(2).step_by(3).for_each(|entry| entry.mode = 0o600);
        let new = Manifest::new(new).unwrap();
        let baseline = Manifest::new(entries(20_000)).unwrap();
        let changes = between(&baseline, &new).unwrap();
        assert!(changes.len() > 3);
        assert!(changes.iter().all(|change| (1..=EDITS_MAX).contains(&change.edits.len())));
        assert_eq!(apply(&baseline, &changes).unwrap(), new);
        // Drops alone, each with an entry kept between: they add no entries, so only their number
        // ends a part.
        let mut index = 0;
        let mut few = entries(20_000);
        few.retain(|entry| {
            index += 1;
            entry.is_directory() || index % 2 == 0
        });
        let few = Manifest::new(few).unwrap();
        let changes = between(&baseline, &few).unwrap();
        assert!(changes.len() > 1 && changes.iter().all(|change| change.edits.len() <= EDITS_MAX));
        assert_eq!(apply(&baseline, &changes).unwrap(), few);
    }

    #[test]
    fn change_that_leads_nowhere_is_refused() {
        let malformed =
            |changes: &[Change]| assert_eq!(apply(&baseline(), changes), Err(ChangeError::Malformed));
        malformed(&[change(&[], &[])]);
        malformed(&[change(&[(3, 0, 0)], &[])]);
        malformed(&[change(&[(11, 1, 0)], &[])]);
        malformed(&[change(&[(12, 0, 1)], &[file("e", 1)])]);
        malformed(&[change(&[(0, 12, 0)], &[])]);
        malformed(&[change(&[(u32::MAX, u32::MAX, u32::MAX)], &[])]);
        malformed(&[change(&[(0, u32::MAX, 0)], &[])]);
        malformed(&[change(&[(11, 0, 2)], &[file("e", 1)])]);
        malformed(&[change(&[(11, 0, 1)], &[file("e", 1), file("f", 1)])]);
        malformed(&[change(&[(1, 1, 0)], &[]), change(&[(10, 1, 0)], &[])]);
        let garbage = Change { entries: vec![0xff; 9], ..change(&[(11, 0, 1)], &[]) };
        assert_eq!(apply(&baseline(), &[garbage]), Err(ChangeError::Manifest(ManifestError::Malformed)));
    }

    #[test]
    fn result_of_a_change_must_be_a_manifest() {
        let no_manifest =
            |change| assert!(matches!(apply(&baseline(), &[change]), Err(ChangeError::Manifest(_))));
        no_manifest(change(&[(11, 0, 1)], &[file("a", 1)]));
        no_manifest(change(&[(11, 0, 1)], &[file("d/000009", 1)]));
        no_manifest(change(&[(11, 0, 1)], &[file("e/f", 1)]));
        // The directory goes, and its entries stay.
        no_manifest(change(&[(0, 1, 0)], &[]));
        no_manifest(change(&[(0, 1, 1)], &[entry("d", Kind::Symlink { target: b"/"[..].into() })]));
    }

    #[test]
    fn damaged_baseline_is_distinct_from_a_wrong_change() {
        let mut bytes = record_bytes(&baseline(), &[]);
        bytes.pop();
        let rebuild = Rebuild::new(Record::new(bytes.clone()).unwrap());
        assert_eq!(rebuild.finish(), Err(ChangeError::Baseline));
        let mut rebuild = Rebuild::new(Record::new(bytes.clone()).unwrap());
        assert_eq!(rebuild.apply(&change(&[(10, 1, 0)], &[])), Err(ChangeError::Baseline));
        assert_eq!(super::between(Record::new(bytes).unwrap().into_parts().1, &baseline()), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

        #[test]
        fn change_turns_one_manifest_into_the_other(
            old in proptest::collection::vec(0_u8..4, 60), new in proptest::collection::vec(0_u8..4, 60),
        ) {
            let tree = |sizes: &[u8]| {
                let files = sizes.iter().enumerate().filter(|(_, size)| **size > 0);
                Manifest::new(files.map(|(n, size)| file(&format!("{n:02}"), (*size).into())).collect()).unwrap()
            };
            let (old, new) = (tree(&old), tree(&new));
            if let Some(changes) = between(&old, &new) {
                prop_assert_eq!(apply(&old, &changes).unwrap(), new);
            }
        }

        #[test]
        fn any_edits_are_a_change_or_an_error(
            edits in proptest::collection::vec((0_u32..6, 0_u32..4, 0_u32..3), 0..6),
            names in proptest::collection::vec(0_u64..30, 0..5),
        ) {
            let new: Vec<Entry> = names.iter().map(|name| file(&format!("d/{name:06}"), 7)).collect();
            if let Ok(manifest) = apply(&baseline(), &[change(&edits, &new)]) {
                prop_assert!(Manifest::new(manifest.entries().map(EntryRef::to_entry).collect()).is_ok());
            }
        }
    }
}
