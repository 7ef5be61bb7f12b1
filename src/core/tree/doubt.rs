//! `Doubts`: files whose content may not match their size and time after a power cut.
//!
//! Size and time of a file reach the disk before its content does. The scan of a destination knows
//! which files may not be durable. The [comparison](crate::tree::compare) then asks for more than
//! size and time.

/// The reason to doubt a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// The disk may not have had the file's content when the power went. Reads return the disk's
    /// content, so its hash decides.
    Unverified,
    /// The disk failed to write the file. Reads may return bytes that exist in memory only, so the
    /// content is written anew.
    Lost,
}

/// The doubted files of a manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doubts(Vec<(u32, Doubt)>);

impl Doubts {
    /// Adds a doubt about the entry at `at`, which must come after all earlier ones.
    pub fn push(&mut self, at: u32, doubt: Doubt) {
        debug_assert!(self.0.last().is_none_or(|&(last, _)| last < at));
        self.0.push((at, doubt));
    }

    /// The doubt about the entry at `at`, if there is one.
    #[must_use]
    pub fn of(&self, at: u32) -> Option<Doubt> {
        let place = self.0.binary_search_by_key(&at, |&(at, _)| at).ok()?;
        self.0.get(place).map(|&(_, doubt)| doubt)
    }

    /// The positions of all doubted entries, in order.
    pub fn positions(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(|&(at, _)| at)
    }

    /// True if a file was lost: staged content is then not reliable either.
    #[must_use]
    pub fn has_lost(&self) -> bool {
        self.0.iter().any(|&(_, doubt)| doubt == Doubt::Lost)
    }

    /// Reorders the doubts with the entries: `order` holds each entry's old position.
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
