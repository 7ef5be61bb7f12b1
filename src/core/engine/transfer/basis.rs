//! Reads ranges of a basis, and the errors of a basis that changed.

use super::broken;
use crate::content::blocks::Content;
use crate::content::chunk::Average;
use crate::content::delta::{self, DeltaError};
use crate::content::shift_map::Mapped;
use crate::engine::error::WorkError;
use crate::monitor::ProblemKind;
use crate::wire::message::Window;

/// Signs a range of a basis.
pub(super) fn sign(basis: &dyn Content, window: Window) -> Result<Vec<u8>, WorkError> {
    let sign = |bytes: Vec<u8>| delta::sign(&bytes).map_err(|error| broken(&error.to_string()));
    read_window(basis, window).and_then(sign)
}

/// Reads a range of a basis.
fn read_window(basis: &dyn Content, window: Window) -> Result<Vec<u8>, WorkError> {
    // At most `BASIS_BYTES_MAX`: the decoder checked it.
    let mut bytes = vec![0; window.length as usize];
    basis.read_at(&mut bytes, window.offset).map_err(|_| basis_changed())?;
    Ok(bytes)
}

/// The average for cutting `length` bytes of a basis and, on the other side, the new bytes.
pub(super) fn average_for(length: u64) -> Result<Average, WorkError> {
    Average::for_size(length).ok_or_else(|| broken("a stretch too long to cut"))
}

/// Applies a delta to a range of the basis.
pub(super) fn apply_delta<B: Content>(
    basis: &Mapped<B>,
    window: Window,
    length: u32,
    delta: &[u8],
) -> Result<Vec<u8>, WorkError> {
    let basis = read_window(basis, window)?;
    delta::apply(&basis, delta, length as usize).map_err(|error: DeltaError| corrupt(&error.to_string()))
}

/// A content that is not what was announced. The receiver asks for the file once more.
pub(super) fn corrupt(cause: &str) -> WorkError {
    WorkError::Entry(ProblemKind::Corrupt, cause.to_owned())
}

pub(crate) fn wrong_hash() -> WorkError {
    corrupt("the received content does not have the announced hash")
}

/// A basis that is not the listed file any more.
pub(crate) fn basis_changed() -> WorkError {
    corrupt("its basis in the destination has changed")
}
