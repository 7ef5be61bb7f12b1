//! The context of one round of a watched source.

use std::sync::{Arc, Mutex};

use crate::disk::root::Root;
use crate::tree::filter::Filter;
use crate::tree::subtrees::SubtreeSet;
use crate::watch::Watch;

/// Context of one round of a watched source.
#[derive(Debug, Clone)]
pub(super) struct RoundContext {
    pub(super) watch: Arc<Watch>,
    pub(super) root: Arc<Root>,
    /// The scope; `None` means everything.
    pub(super) scope: Option<SubtreeSet>,
    /// Receives the filter of a full round.
    pub(super) filter: Arc<Mutex<Filter>>,
}
