//! Memory of this machine for an undo: the last destination that keeps one.

use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::private;
use crate::sync::endpoint::Endpoint;
use crate::sync::error::SyncError;
use crate::sync::job::Job;
use crate::sync::target::state_dir;
use crate::wire::hello::Undo;

/// The file with the last destination.
const LAST: &str = "undo";

/// The directory that stands for the source of an undo.
const EMPTY: &str = "empty";

/// Remembers the destination of a job that can be undone. If that fails, the user has to name it.
pub(super) fn remember(job: &Job) {
    if !matches!(job.options.undo, Undo::Keep(_)) || job.options.dry_run {
        return;
    }
    let text = match &job.destination {
        Endpoint::Local(path) => std::path::absolute(path).map(|path| path.into_os_string().into_vec()),
        remote => Ok(remote.to_string().into_bytes()),
    };
    if let (Ok(text), Ok(state)) = (text, state_dir()) {
        let _ = private::replace(&state.join(LAST), &text);
    }
}

/// The last destination that keeps an undo, as it can be typed.
#[must_use]
pub fn last() -> Option<std::ffi::OsString> {
    let text = fs::read(state_dir().ok()?.join(LAST)).ok()?;
    (!text.is_empty()).then(|| std::ffi::OsStr::from_bytes(&text).to_owned())
}

/// An empty directory, the source of an undo.
///
/// # Errors
/// The state directory cannot be used.
pub fn empty_directory() -> Result<PathBuf, SyncError> {
    let directory = state_dir()?.join(EMPTY);
    fs::create_dir_all(&directory).map_err(SyncError::State)?;
    Ok(directory)
}
