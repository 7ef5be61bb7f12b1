//! Destinations that files of projects name and that this user has typed once. A tree that somebody
//! else wrote may bring such a file.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;

use crate::private;
use crate::sync::error::SyncError;
use crate::sync::target::state_dir;

/// True if the user has typed the destination that a project's file names.
#[must_use]
pub fn is_known_destination(file: &Path, destination: &OsStr) -> bool {
    record(file, destination).is_ok_and(|record| record.exists())
}

/// Records that the user has typed the destination that a project's file names.
///
/// # Errors
/// [`SyncError`], if the state directory cannot be used.
pub fn know_destination(file: &Path, destination: &OsStr) -> Result<(), SyncError> {
    let record = record(file, destination)?;
    let directory = record.parent().unwrap_or(&record);
    let written = fs::create_dir_all(directory).and_then(|()| private::replace(&record, b""));
    written.map_err(SyncError::State)
}

fn record(file: &Path, destination: &OsStr) -> Result<PathBuf, SyncError> {
    let mut text = Vec::new();
    for part in [file.as_os_str(), destination] {
        let bytes = part.as_encoded_bytes();
        text.extend((bytes.len() as u64).to_le_bytes());
        text.extend(bytes);
    }
    let name = HEXLOWER.encode(digest::digest(&digest::SHA256, &text).as_ref());
    Ok(state_dir()?.join("projects").join(name))
}
