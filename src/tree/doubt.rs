//! `Doubts`: files that may not hold what their size and time say, since a power cut came between.
//!
//! Size and time of a file reach the disk before its content does. Whoever lists a destination
//! knows which files are not known to be durable; the [comparison](crate::tree::compare) then asks
//! for more than size and time.

/// Why a file is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// The disk may not have had its content when the power went. What can be read of it is what
    /// the disk has, so its hash decides.
    Unverified,
    /// The disk failed to write it. What can be read of it may be in memory only, so its content is
    /// written anew.
    Lost,
}

/// The doubted files of a manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doubts(Vec<(u32, Doubt)>);

impl Doubts {
    /// Doubts about the entry at `at`, which comes after all that were pushed before.
    pub fn push(&mut self, at: u32, doubt: Doubt) {
        debug_assert!(self.0.last().is_none_or(|&(last, _)| last < at));
        self.0.push((at, doubt));
    }

    /// Whether the entry at `at` is doubted, and why.
    #[must_use]
    pub fn of(&self, at: u32) -> Option<Doubt> {
        let place = self.0.binary_search_by_key(&at, |&(at, _)| at).ok()?;
        self.0.get(place).map(|&(_, doubt)| doubt)
    }

    /// The positions of all doubted entries, in order.
    pub fn positions(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(|&(at, _)| at)
    }

    /// Whether a file was lost: what is staged is not to be relied on then, either.
    #[must_use]
    pub fn has_lost(&self) -> bool {
        self.0.iter().any(|&(_, doubt)| doubt == Doubt::Lost)
    }

    /// The same doubts after the entries were reordered: `order` is where each of them stood.
    #[must_use]
    pub fn reordered(&self, order: &[u32]) -> Self {
        let positions = (0..).zip(order);
        Self(positions.filter_map(|(at, &before)| Some((at, self.of(before)?))).collect())
    }

    /// Keeps the doubts about the first `count` entries.
    pub fn truncate(&mut self, count: u32) {
        self.0.retain(|&(at, _)| at < count);
    }
}
