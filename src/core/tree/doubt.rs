//! `Doubts`: files whose content may not match their size and time, most often after a power cut.
//!
//! Size and time of a file reach the disk before its content does. The scan of a destination knows
//! which files may not be durable. The [comparison](crate::tree::compare) then asks for more than
//! size and time.

/// The reason to doubt a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// The disk may not have had the file's content when the power went, or the file's time is too
    /// coarse to show a change. Reads return the disk's content, so its hash decides.
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

    /// Adds doubts of unverified files at these positions, in any order.
    pub fn add_unverified(&mut self, positions: impl IntoIterator<Item = u32>) {
        self.0.extend(positions.into_iter().map(|at| (at, Doubt::Unverified)));
        // The stronger doubt about a position comes first then.
        self.0.sort_unstable_by_key(|&(at, doubt)| (at, std::cmp::Reverse(doubt)));
        self.0.dedup_by_key(|(at, _)| *at);
    }

    /// The doubt about the entry at `at`, if there is one.
    #[must_use]
    pub fn of(&self, at: u32) -> Option<Doubt> {
        let place = self.0.binary_search_by_key(&at, |&(at, _)| at).ok()?;
        self.0.get(place).map(|&(_, doubt)| doubt)
    }

    /// True if no entry is doubted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_doubts_come_in_order_and_weaken_no_other() {
        let mut doubts = Doubts(vec![(1, Doubt::Unverified), (4, Doubt::Lost)]);
        doubts.add_unverified([4, 0, 1]);
        assert_eq!(doubts.0, [(0, Doubt::Unverified), (1, Doubt::Unverified), (4, Doubt::Lost)]);
    }
}
