//! Progress of the removals from a source.

use std::collections::HashSet;

use crate::wire::hello::Options;

/// Progress of the removals.
#[derive(Debug)]
pub(super) struct Removal {
    /// True if this side's own options ask for it.
    pub(super) is_wanted: bool,
    pub(super) lists: bool,
    /// Entries that the receiver has named.
    pub(super) named: HashSet<u32>,
    pub(super) is_complete: bool,
    pub(super) works: usize,
}

impl Removal {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            is_wanted: options.remove_source && !options.dry_run,
            lists: options.list_changes,
            named: HashSet::new(),
            is_complete: false,
            works: 0,
        }
    }

    /// True from the first named entry until all are removed.
    pub(super) fn is_under_way(&self) -> bool {
        self.works > 0 || !self.named.is_empty() && !self.is_complete
    }
}
