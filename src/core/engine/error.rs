//! `WorkError`: the failure of a work.

use crate::monitor::ProblemKind;
use crate::wire::message::AbortKind;

/// Failure of a work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkError {
    /// Failure of one entry; the run goes on.
    Entry(ProblemKind, String),
    /// Failure that ends the run.
    Fatal(AbortKind, String),
}
