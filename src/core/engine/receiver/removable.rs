//! Entries that are in place, so that a sender may remove them from its source.

use std::collections::BTreeSet;

/// Entries that are in place.
#[derive(Debug, Default)]
pub(super) struct Removable {
    /// True if the options ask for it.
    pub(super) is_wanted: bool,
    pub(super) ids: BTreeSet<u32>,
    /// True while the sender removes.
    pub(super) is_awaited: bool,
}

impl Removable {
    /// Records that an entry is in place, or is not.
    pub(super) fn set(&mut self, id: u32, is_there: bool) {
        if self.is_wanted && is_there {
            self.ids.insert(id);
        } else if self.is_wanted {
            self.ids.remove(&id);
        }
    }

    /// True if the sender has nothing to remove, or has removed it.
    pub(super) fn is_settled(&self) -> bool {
        self.ids.is_empty() && !self.is_awaited
    }
}
