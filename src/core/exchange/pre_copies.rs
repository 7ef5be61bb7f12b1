//! `PreCopies`: the pre-copies of a run, from their start until somebody patches them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::content::hash::Hash;
use crate::content::shift_map::ShiftMap;
use crate::exchange::pre_copy::{PreCopy, PreCopyParts};
use crate::wire::message::BasisReport;

/// Most pre-copies at a time, and most that are made in vain.
const PRE_COPIES_MAX: usize = 2;

/// The pre-copies of the files of a run.
#[derive(Default)]
pub(super) struct PreCopies {
    kept: Mutex<HashMap<u32, Kept>>,
    /// The shift maps under which their bases were advertised, for works that read a basis while
    /// its pre-copy is patched.
    advertised_shift_maps: Mutex<HashMap<u32, ShiftMap>>,
}

enum Kept {
    /// A slot that is taken before the pre-copy exists.
    Promised,
    Made(PreCopy),
    InThread(InThread),
}

/// A pre-copy that a thread is making.
struct InThread {
    thread: JoinHandle<Option<PreCopy>>,
    is_over: Arc<AtomicBool>,
}

impl InThread {
    fn begin(parts: PreCopyParts) -> Option<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_over);
        let make = move || Some(PreCopy::of(parts, &seen)?.advertised_unchanged());
        Some(Self { thread: thread::Builder::new().spawn(make).ok()?, is_over })
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

impl PreCopies {
    /// Makes and keeps the pre-copy of a file, if a slot is free. Returns the basis report, and the
    /// hash of the advertised shape if the sender may answer that the file is the same.
    pub(super) fn make(
        &self,
        id: u32,
        parts: impl FnOnce() -> Option<PreCopyParts>,
    ) -> Option<(BasisReport, Option<Hash>)> {
        if !self.promise(id) {
            return None;
        }
        let pre_copy = parts().and_then(|parts| PreCopy::of(parts, &AtomicBool::new(false)));
        let report = pre_copy.as_ref().and_then(PreCopy::report);
        let pre_copy = pre_copy.filter(|_| report.is_some());
        if let Some(pre_copy) = &pre_copy {
            let mut shift_maps = self.advertised_shift_maps.lock().unwrap_or_else(PoisonError::into_inner);
            shift_maps.insert(id, pre_copy.advertised_shift_map());
        }
        self.settle(id, pre_copy.map(Kept::Made));
        report
    }

    /// Starts to make a pre-copy in a thread, if a slot is free. Meanwhile the receiver advertises
    /// the unchanged basis and waits for the answer.
    pub(super) fn make_in_thread(&self, id: u32, parts: impl FnOnce() -> Option<PreCopyParts>) {
        if self.promise(id) {
            // If no thread can start, the file is made when its steps arrive.
            self.settle(id, parts().and_then(InThread::begin).map(Kept::InThread));
        }
    }

    /// Takes a slot; `false` if none is free.
    fn promise(&self, id: u32) -> bool {
        let mut kept = self.kept();
        let is_free = kept.len() < PRE_COPIES_MAX;
        if is_free {
            kept.insert(id, Kept::Promised);
        }
        is_free
    }

    /// Fills a slot, or frees it.
    fn settle(&self, id: u32, pre_copy: Option<Kept>) {
        let mut kept = self.kept();
        kept.remove(&id);
        kept.extend(pre_copy.map(|pre_copy| (id, pre_copy)));
    }

    /// The shift map under which this file's basis was advertised, if not the identity.
    pub(super) fn advertised_shift_map(&self, id: u32) -> Option<ShiftMap> {
        self.advertised_shift_maps.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
    }

    /// Takes the pre-copy of a file, if there is one; waits until it is made.
    pub(super) fn take(&self, id: u32) -> Option<PreCopy> {
        // The lock is not held while this waits.
        let kept = self.kept().remove(&id)?;
        match kept {
            Kept::Promised => None,
            Kept::Made(pre_copy) => Some(pre_copy),
            Kept::InThread(InThread { thread, .. }) => thread.join().ok().flatten(),
        }
    }

    /// Discards the pre-copy of a file, if there is one.
    pub(super) fn discard(&self, id: u32) {
        if let Some(Kept::InThread(in_thread)) = self.kept().get(&id) {
            in_thread.end();
        }
        if let Some(pre_copy) = self.take(id) {
            pre_copy.discard();
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

impl Drop for PreCopies {
    fn drop(&mut self) {
        let kept = std::mem::take(&mut *self.kept());
        for kept in kept.into_values() {
            if let Kept::InThread(in_thread) = kept {
                in_thread.end();
                // No thread outlives the run.
                let _ = in_thread.thread.join();
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
    fn parts(folder: &Path) -> PreCopyParts {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("old"), vec![7; SIZE]).unwrap();
        let root = Root::open(folder).unwrap();
        let (staging, _) = Staging::open(&root, &TreePath::new(&b"new"[..]).unwrap()).unwrap();
        PreCopyParts {
            basis: File::open(folder.join("old")).unwrap(),
            shift_map: ShiftMap::same(SIZE as u64),
            staging,
        }
    }

    fn has_staged(folder: &Path) -> bool {
        fs::read_dir(folder.join(".ksync")).unwrap().next().is_some()
    }

    #[test]
    fn few_pre_copies_are_made_and_a_failed_one_takes_no_slot() {
        let folder = tempfile::tempdir().unwrap();
        let pre_copies = PreCopies::default();
        assert!(pre_copies.make(1, || None).is_none());
        pre_copies.make_in_thread(1, || None);
        for id in 0..3 {
            let made = pre_copies.make(id, || Some(parts(&folder.path().join(id.to_string()))));
            assert_eq!(made.is_some(), id < PRE_COPIES_MAX as u32);
        }
        pre_copies.make_in_thread(2, || panic!("there is no room"));
        assert!(pre_copies.take(0).is_some() && pre_copies.take(0).is_none() && pre_copies.take(2).is_none());
    }

    #[test]
    fn pre_copy_made_beside_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pre_copies = PreCopies::default();
        pre_copies.make_in_thread(1, || Some(parts(folder.path())));
        assert_eq!(pre_copies.advertised_shift_map(1), None, "the basis is advertised unchanged");
        let pre_copy = pre_copies.take(1).unwrap();
        assert!(pre_copy.report().is_some_and(|(_, hash)| hash == Some(Hash::of(&vec![7; SIZE]))));
        assert!(pre_copies.take(1).is_none());
    }

    #[test]
    fn discarded_pre_copy_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let pre_copies = PreCopies::default();
        pre_copies.make_in_thread(1, || Some(parts(folder.path())));
        pre_copies.discard(1);
        assert!(!has_staged(folder.path()));
        pre_copies.make(1, || Some(parts(folder.path())));
        pre_copies.discard(1);
        assert!(!has_staged(folder.path()));
        pre_copies.discard(1);
    }
}
