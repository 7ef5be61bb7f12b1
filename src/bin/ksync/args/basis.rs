//! The options about files that serve new ones, and about the way in which files are written.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::{ArgAction, Args};
use ksync::wire::hello::{BASES_MAX, BasisOptions, BasisPurpose};
use serde_bytes::ByteBuf;

use crate::report::CliError;

/// Directories beside DEST, with rsync's meanings.
#[derive(Debug, Args)]
pub(crate) struct BasisArgs {
    /// Leave out new files that DIR has, equal in all that is compared; a relative DIR is relative
    /// to DEST. May be given several times, as the next two
    #[arg(long, value_name = "DIR", action = ArgAction::Append)]
    compare_dest: Vec<OsString>,
    /// Copy new files from DIR, on DEST's machine, where DIR has them
    #[arg(long, value_name = "DIR", action = ArgAction::Append)]
    copy_dest: Vec<OsString>,
    /// Make new files hard links to those of DIR that are equal in all that is compared
    #[arg(long, value_name = "DIR", action = ArgAction::Append)]
    link_dest: Vec<OsString>,
}

impl BasisArgs {
    /// The basis directories of a run, if there are any.
    pub(crate) fn options(&self, is_watch: bool) -> Result<Option<Box<BasisOptions>>, CliError> {
        let kinds = [
            (BasisPurpose::Compare, "--compare-dest", &self.compare_dest),
            (BasisPurpose::Copy, "--copy-dest", &self.copy_dest),
            (BasisPurpose::Link, "--link-dest", &self.link_dest),
        ];
        let mut given = kinds.into_iter().filter(|(_, _, directories)| !directories.is_empty());
        let Some((purpose, name, directories)) = given.next() else { return Ok(None) };
        if let Some((_, other, _)) = given.next() {
            let told = format!("{name} and {other} exclude each other");
            return Err(CliError::usage(told, "Leave one of them out."));
        }
        if is_watch {
            let told = format!("--watch and {name} exclude each other");
            return Err(CliError::usage(told, "Leave one of them out."));
        }
        let directories = directories.iter().map(|path| ByteBuf::from(path.as_bytes())).collect();
        let options = BasisOptions { purpose, directories };
        if options.is_valid() {
            return Ok(Some(Box::new(options)));
        }
        let told = format!("{name} takes up to {BASES_MAX} directories, each with a path");
        Err(CliError::usage(told, "For example --link-dest=../yesterday."))
    }
}

/// The way in which files are written.
#[derive(Debug, Args)]
pub(crate) struct InPlaceArgs {
    /// Write into the files of DEST: they stay the same files and keep their other names. Not
    /// atomic: a run that is stopped leaves a mixture
    #[arg(long, overrides_with = "no_inplace")]
    inplace: bool,
    #[arg(long, hide = true, overrides_with = "inplace")]
    no_inplace: bool,
    /// As --inplace, for files that are shorter in DEST, and pass over the others. Where DEST's
    /// part differs from SOURCE's, it becomes SOURCE's, too
    #[arg(long)]
    append: bool,
    #[arg(long, hide = true)]
    append_verify: bool,
}

impl InPlaceArgs {
    /// True if files are written into.
    pub(crate) fn is_in_place(&self) -> bool {
        self.inplace || self.appends()
    }

    /// True if only files that are shorter in DEST take part.
    pub(crate) fn appends(&self) -> bool {
        self.append || self.append_verify
    }
}
