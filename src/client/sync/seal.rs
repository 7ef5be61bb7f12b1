//! Seals: proofs that a text was written by this user on this machine.

use crate::content::hash::{Hash, Hasher};
use crate::sync::baseline::client_id;
use crate::sync::error::SyncError;
use crate::sync::target::state_dir;

/// Separates seals from the other uses of the client's id.
const CONTEXT: &[u8] = b"ksync seal\0";

/// The seal of a text: a BLAKE3 hash keyed by the client's id, which only this user can read.
///
/// # Errors
/// The state directory or the id in it cannot be used.
pub fn seal(text: &[u8]) -> Result<Hash, SyncError> {
    let id = client_id(&state_dir()?).map_err(SyncError::State)?;
    let mut hasher = Hasher::new();
    hasher.update(CONTEXT);
    hasher.update(&id);
    hasher.update(text);
    Ok(hasher.finish())
}
