//! `Settle`: the debounce. Decides when changes are quiet enough for a round. Pure: the caller
//! passes the time.
//!
//! An editor touches a file several times in a few milliseconds; a checkout touches thousands in a
//! second. A touched path waits until the tree is quiet, but never long. A file that is still being
//! written waits a little longer. After a maximum it is sent as it is, so a recording arrives while
//! it grows.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::tree::path::TreePath;
use crate::tree::subtrees::{SUBTREES_MAX, SubtreeSet};

/// The default debounce.
pub const QUIET: Duration = Duration::from_millis(10);

/// Maximum time that a touched path waits.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Pause in writing after which a file is due, and the maximum time that it waits.
const PAUSE: Duration = Duration::from_millis(100);
const WRITING_MAX: Duration = Duration::from_secs(1);

/// The changes that are due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// These subtrees.
    Subtrees(SubtreeSet),
    /// The whole tree: too much happened, or the changed paths are unknown.
    Everything,
}

/// The kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// An entry was created, removed, renamed or changed in its metadata, or its writer closed it.
    Whole,
    /// The same, and everything below the entry is new as well.
    Deep,
    /// A file was written to, and its writer may continue.
    Writing,
}

/// Collects changes until they are due. Times are relative to a moment of the caller's choice.
#[derive(Debug, Default)]
pub struct Settle {
    quiet: Duration,
    everything: bool,
    subtrees: BTreeMap<TreePath, bool>,
    /// Times of the first and of the last change.
    span: Option<(Duration, Duration)>,
    /// Files that are being written: time of the first and of the last write.
    writing: HashMap<TreePath, (Duration, Duration)>,
}

impl Settle {
    /// Collects changes with a debounce of `quiet`.
    #[must_use]
    pub fn new(quiet: Duration) -> Self {
        Self { quiet: quiet.min(WAIT_MAX), ..Self::default() }
    }

    /// Records a change of `path`.
    pub fn touch(&mut self, path: TreePath, how: How, now: Duration) {
        if how == How::Writing {
            let since = self.writing.get(&path).map_or(now, |(since, _)| *since);
            self.writing.insert(path, (since, now));
            // Limits the memory, however many files are being written.
            if self.writing.len() > SUBTREES_MAX {
                self.everything(now);
            }
            return;
        }
        self.writing.remove(&path);
        self.add(path, how == How::Deep, now);
    }

    /// Records that unknown paths changed.
    pub fn everything(&mut self, now: Duration) {
        self.everything = true;
        self.subtrees.clear();
        self.writing.clear();
        self.extend(now);
    }

    fn add(&mut self, path: TreePath, recursive: bool, now: Duration) {
        self.extend(now);
        if self.everything {
            return;
        }
        *self.subtrees.entry(path).or_default() |= recursive;
        if self.subtrees.len() > SUBTREES_MAX {
            self.everything(now);
        }
    }

    fn extend(&mut self, now: Duration) {
        let first = self.span.map_or(now, |(first, _)| first);
        self.span = Some((first, now));
    }

    /// Takes the changes that are due at `now`.
    pub fn due(&mut self, now: Duration) -> Option<Touched> {
        let is_over =
            |&(since, last): &(Duration, Duration)| now >= last + PAUSE || now >= since + WRITING_MAX;
        let over: Vec<TreePath> =
            self.writing.iter().filter(|(_, span)| is_over(span)).map(|(path, _)| path.clone()).collect();
        let has_waited = !over.is_empty();
        for path in over {
            self.writing.remove(&path);
            self.add(path, false, now);
        }
        let (first, last) = self.span?;
        if !has_waited && now < last + self.quiet && now < first + WAIT_MAX {
            return None;
        }
        self.hand_on()
    }

    /// Takes all collected changes.
    fn hand_on(&mut self) -> Option<Touched> {
        self.span.take()?;
        let subtrees = std::mem::take(&mut self.subtrees);
        Some(if std::mem::take(&mut self.everything) {
            Touched::Everything
        } else {
            Touched::Subtrees(SubtreeSet::new(subtrees))
        })
    }

    /// Takes all changes at once, without waiting for quiet.
    pub fn rest(&mut self) -> Option<Touched> {
        let writing: Vec<TreePath> = std::mem::take(&mut self.writing).into_keys().collect();
        let (now, _) = self.span.unwrap_or_default();
        for path in writing {
            self.add(path, false, now);
        }
        self.hand_on()
    }

    /// The time at which to call `due` again, if nothing changes before.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        let batch = self.span.map(|(first, last)| (last + self.quiet).min(first + WAIT_MAX));
        let writing =
            self.writing.values().map(|(since, last)| (*last + PAUSE).min(*since + WRITING_MAX)).min();
        batch.into_iter().chain(writing).min()
    }
}

impl Touched {
    /// Merges these changes with later ones.
    #[must_use]
    pub fn and(self, later: Self) -> Self {
        match (self, later) {
            (Self::Subtrees(one), Self::Subtrees(other)) => {
                let scope = SubtreeSet::new(one.subtrees().iter().chain(other.subtrees()).cloned());
                if scope.subtrees().len() > SUBTREES_MAX { Self::Everything } else { Self::Subtrees(scope) }
            }
            _ => Self::Everything,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text.as_bytes()).unwrap()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn subtrees(subtrees: &[(&str, bool)]) -> Option<Touched> {
        Some(Touched::Subtrees(SubtreeSet::new(
            subtrees.iter().map(|(name, recursive)| (path(name), *recursive)),
        )))
    }

    #[test]
    fn touched_paths_wait_for_quiet() {
        let mut settle = Settle::new(QUIET);
        assert_eq!((settle.next(), settle.due(ms(0))), (None, None));
        settle.touch(path("a"), How::Whole, ms(0));
        assert_eq!((settle.next(), settle.due(ms(9))), (Some(ms(10)), None));
        settle.touch(path("b"), How::Deep, ms(9));
        assert_eq!((settle.next(), settle.due(ms(18))), (Some(ms(19)), None));
        assert_eq!(settle.due(ms(19)), subtrees(&[("a", false), ("b", true)]));
        assert_eq!((settle.next(), settle.due(ms(500))), (None, None), "once");
    }

    #[test]
    fn touched_paths_never_wait_long() {
        let mut settle = Settle::new(QUIET);
        for time in 0..100 {
            settle.touch(path("a"), How::Whole, ms(time));
            assert_eq!(settle.due(ms(time)), None, "{time}");
        }
        settle.touch(path("b"), How::Whole, ms(100));
        assert_eq!(settle.due(ms(100)), subtrees(&[("a", false), ("b", false)]));
        let mut slow = Settle::new(Duration::from_secs(9));
        slow.touch(path("a"), How::Whole, ms(0));
        assert_eq!(slow.next(), Some(WAIT_MAX));
    }

    #[test]
    fn a_file_that_is_written_waits_for_its_writer() {
        let mut settle = Settle::new(QUIET);
        settle.touch(path("f"), How::Writing, ms(0));
        settle.touch(path("a"), How::Whole, ms(0));
        assert_eq!(settle.due(ms(10)), subtrees(&[("a", false)]), "others do not wait for it");
        settle.touch(path("f"), How::Whole, ms(50));
        assert_eq!((settle.due(ms(59)), settle.due(ms(60))), (None, subtrees(&[("f", false)])));
        assert_eq!(settle.next(), None);
    }

    #[test]
    fn a_file_is_due_when_its_writer_pauses_or_takes_too_long() {
        let mut settle = Settle::new(QUIET);
        settle.touch(path("f"), How::Writing, ms(0));
        assert_eq!((settle.next(), settle.due(ms(99))), (Some(ms(100)), None));
        assert_eq!(settle.due(ms(100)), subtrees(&[("f", false)]));
        for time in (200..1200).step_by(50) {
            settle.touch(path("f"), How::Writing, ms(time));
            assert_eq!(settle.due(ms(time)), None, "{time}");
        }
        assert_eq!((settle.next(), settle.due(ms(1200))), (Some(ms(1200)), subtrees(&[("f", false)])));
    }

    #[test]
    fn too_many_touched_paths_mean_everything() {
        let mut settle = Settle::new(QUIET);
        for number in 0..=SUBTREES_MAX {
            settle.touch(path(&number.to_string()), How::Whole, ms(0));
        }
        settle.touch(path("x"), How::Whole, ms(1));
        assert_eq!(settle.due(ms(11)), Some(Touched::Everything));
        for number in 0..=SUBTREES_MAX {
            settle.touch(path(&number.to_string()), How::Writing, ms(20));
        }
        assert_eq!(settle.due(ms(30)), Some(Touched::Everything));
        assert_eq!(settle.next(), None);
    }

    #[test]
    fn a_path_touched_twice_is_reported_once() {
        let one = |name, recursive| Touched::Subtrees(SubtreeSet::new([(path(name), recursive)]));
        assert_eq!(Some(one("a", true).and(one("a/b", false))), subtrees(&[("a", true)]));
        assert_eq!(one("a", true).and(Touched::Everything), Touched::Everything);
        assert_eq!(Touched::Everything.and(one("a", true)), Touched::Everything);
    }
}
