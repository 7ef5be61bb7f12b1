//! The options of backups.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use ksync::wire::hello::BackupOptions;
use serde_bytes::ByteBuf;

use crate::report::CliError;

/// The suffix of a backup beside its original, as with rsync.
const SUFFIX: &str = "~";

/// Backups of what a run replaces or deletes, with rsync's meanings.
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// Keep files that are replaced or deleted, each beside its place with ~ after its name
    #[arg(short = 'b', long)]
    backup: bool,
    /// Keep them in DIR instead, under their paths; a relative DIR is inside DEST. Implies --backup
    #[arg(long, value_name = "DIR")]
    backup_dir: Option<OsString>,
    /// The ending of a backup's name [default: ~, none with --backup-dir]
    #[arg(long, value_name = "SUFFIX", allow_hyphen_values = true)]
    suffix: Option<OsString>,
}

impl BackupArgs {
    /// The backups of a run, if it keeps any.
    pub(crate) fn options(&self) -> Result<Option<BackupOptions>, CliError> {
        if !self.backup && self.backup_dir.is_none() {
            return Ok(None);
        }
        let directory = self.backup_dir.as_ref().map(|path| ByteBuf::from(path.as_bytes()));
        let default = if directory.is_some() { "" } else { SUFFIX };
        let suffix = self.suffix.as_deref().unwrap_or(default.as_ref()).as_bytes().to_vec();
        let options = BackupOptions { directory, suffix };
        if options.is_valid() {
            return Ok(Some(options));
        }
        let told = if options.directory.as_ref().is_some_and(|path| path.is_empty()) {
            "--backup-dir names no directory"
        } else {
            "--suffix is no ending of a name: it may hold no /, and without --backup-dir it must not be empty"
        };
        Err(CliError::usage(told, "For example --suffix=.old, or --backup-dir=../backups."))
    }
}
