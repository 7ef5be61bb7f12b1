//! `Drafts`: the pre-copies of a run, from their start until somebody patches them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::content::shift_map::ShiftMap;
use crate::content::hash::Hash;
use crate::exchange::draft::{Blank, Draft};
use crate::wire::message::BasisReport;

/// Most pre-copies at a time, and most that are made in vain.
const DRAFTS_MAX: usize = 2;

/// The pre-copies of the files of a run.
#[derive(Default)]
pub(super) struct Drafts {
    kept: Mutex<HashMap<u32, Kept>>,
    /// The shift maps under which their bases were advertised, for works that read a basis while
    /// its pre-copy is patched.
    advertised_shift_maps: Mutex<HashMap<u32, ShiftMap>>,
}

enum Kept {
    /// A slot that is taken before the pre-copy exists.
    Promised,
    Made(Draft),
    Beside(Beside),
}

/// A pre-copy that a thread is making.
struct Beside {
    thread: JoinHandle<Option<Draft>>,
    is_over: Arc<AtomicBool>,
}

impl Beside {
    fn begin(blank: Blank) -> Option<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_over);
        let make = move || Some(Draft::of(blank, &seen)?.advertised_unchanged());
        Some(Self { thread: thread::Builder::new().spawn(make).ok()?, is_over })
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

impl Drafts {
    /// Makes and keeps the pre-copy of a file, if a slot is free. Returns the basis report, and the
    /// hash of the advertised shape if the sender may answer that the file is the same.
    pub(super) fn make(&self, id: u32, blank: impl FnOnce() -> Option<Blank>) -> Option<(BasisReport, Option<Hash>)> {
        if !self.promise(id) {
            return None;
        }
        let draft = blank().and_then(|blank| Draft::of(blank, &AtomicBool::new(false)));
        let report = draft.as_ref().and_then(Draft::report);
        let draft = draft.filter(|_| report.is_some());
        if let Some(draft) = &draft {
            let mut shift_maps = self.advertised_shift_maps.lock().unwrap_or_else(PoisonError::into_inner);
            shift_maps.insert(id, draft.advertised_shift_map());
        }
        self.settle(id, draft.map(Kept::Made));
        report
    }

    /// Starts to make a pre-copy in a thread, if a slot is free. Meanwhile the receiver advertises
    /// the unchanged basis and waits for the answer.
    pub(super) fn make_beside(&self, id: u32, blank: impl FnOnce() -> Option<Blank>) {
        if self.promise(id) {
            // If no thread can start, the file is made when its steps arrive.
            self.settle(id, blank().and_then(Beside::begin).map(Kept::Beside));
        }
    }

    /// Takes a slot; `false` if none is free.
    fn promise(&self, id: u32) -> bool {
        let mut kept = self.kept();
        let is_free = kept.len() < DRAFTS_MAX;
        if is_free {
            kept.insert(id, Kept::Promised);
        }
        is_free
    }

    /// Fills a slot, or frees it.
    fn settle(&self, id: u32, draft: Option<Kept>) {
        let mut kept = self.kept();
        kept.remove(&id);
        kept.extend(draft.map(|draft| (id, draft)));
    }

    /// The shift map under which this file's basis was advertised, if not the identity.
    pub(super) fn advertised_shift_map(&self, id: u32) -> Option<ShiftMap> {
        self.advertised_shift_maps.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
    }

    /// Takes the pre-copy of a file, if there is one; waits until it is made.
    pub(super) fn take(&self, id: u32) -> Option<Draft> {
        // The lock is not held while this waits.
        let kept = self.kept().remove(&id)?;
        match kept {
            Kept::Promised => None,
            Kept::Made(draft) => Some(draft),
            Kept::Beside(Beside { thread, .. }) => thread.join().ok().flatten(),
        }
    }

    /// Discards the pre-copy of a file, if there is one.
    pub(super) fn discard(&self, id: u32) {
        if let Some(Kept::Beside(beside)) = self.kept().get(&id) {
            beside.end();
        }
        if let Some(draft) = self.take(id) {
            draft.discard();
        }
    }

    /// Discards all pre-copies.
    pub(super) fn discard_all(&self) {
        let ids: Vec<u32> = self.kept().keys().copied().collect();
        ids.into_iter().for_each(|id| self.discard(id));
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<u32, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Drafts {
    fn drop(&mut self) {
        let kept = std::mem::take(&mut *self.kept());
        for kept in kept.into_values() {
            if let Kept::Beside(beside) = kept {
                beside.end();
                // No thread outlives the run.
                let _ = beside.thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;

    use super::*;
    use crate::disk::root::Root;
    use crate::disk::stage::Staging;
    use crate::tree::path::TreePath;

    const SIZE: usize = 3_000_001;

    /// The ingredients of a pre-copy of a few megabytes.
    fn blank(folder: &Path) -> Blank {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("old"), vec![7; SIZE]).unwrap();
        let root = Root::open(folder).unwrap();
        let (staging, _) = Staging::open(&root, &TreePath::new(&b"new"[..]).unwrap()).unwrap();
        Blank { basis: File::open(folder.join("old")).unwrap(), shift_map: ShiftMap::same(SIZE as u64), staging }
    }

    fn has_staged(folder: &Path) -> bool {
        fs::read_dir(folder.join(".ksync")).unwrap().next().is_some()
    }

    #[test]
    fn few_pre_copies_are_made_and_a_failed_one_takes_no_slot() {
        let folder = tempfile::tempdir().unwrap();
        let drafts = Drafts::default();
        assert!(drafts.make(1, || None).is_none());
        drafts.make_beside(1, || None);
        for id in 0..3 {
            let made = drafts.make(id, || Some(blank(&folder.path().join(id.to_string()))));
            assert_eq!(made.is_some(), id < DRAFTS_MAX as u32);
        }
        drafts.make_beside(2, || panic!("there is no room"));
        assert!(drafts.take(0).is_some() && drafts.take(0).is_none() && drafts.take(2).is_none());
    }

    #[test]
    fn pre_copy_made_beside_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let drafts = Drafts::default();
        drafts.make_beside(1, || Some(blank(folder.path())));
        assert_eq!(drafts.advertised_shift_map(1), None, "the basis is advertised unchanged");
        let draft = drafts.take(1).unwrap();
        assert!(draft.report().is_some_and(|(_, hash)| hash == Some(Hash::of(&vec![7; SIZE]))));
        assert!(drafts.take(1).is_none());
    }

    #[test]
    fn discarded_pre_copy_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let drafts = Drafts::default();
        drafts.make_beside(1, || Some(blank(folder.path())));
        drafts.discard(1);
        assert!(!has_staged(folder.path()));
        drafts.make(1, || Some(blank(folder.path())));
        drafts.discard(1);
        assert!(!has_staged(folder.path()));
        drafts.discard(1);
    }
}
