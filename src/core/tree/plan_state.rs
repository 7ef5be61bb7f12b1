//! `PlanState`: what a plan is bound to.

use serde::{Deserialize, Serialize};

use crate::content::hash::Hash;

/// The state of both sides: digests of the listed trees, and of the metadata of their roots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanState {
    /// The offered tree.
    pub source: Hash,
    /// The tree in the destination.
    pub destination: Hash,
}
