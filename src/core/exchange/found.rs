//! A source that is found: a directory, or a single file in one.

use std::error::Error;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::disk::error::DiskError;
use crate::disk::root::Root;
use crate::disk::scan::Scanned;
use crate::exchange::common::chain;
use crate::monitor::{Problem, ProblemKind};
use crate::tree::links::FollowedLinks;
use crate::tree::path::TreePath;

/// A source.
#[derive(Debug)]
pub(super) struct Found {
    /// The directory, or that of a single file.
    pub(super) root: Root,
    /// A single file.
    pub(super) single: Option<Single>,
}

/// A single file.
#[derive(Debug)]
pub(super) struct Single {
    pub(super) local: TreePath,
    /// The name under which it is offered.
    pub(super) offered: TreePath,
}

/// Finds the source at `path`. A link that is named as source stands for its target, under the
/// link's own name, as with `scp`.
///
/// # Errors
/// Nothing is there, or it cannot be opened.
pub(super) fn find(path: &Path, follows: FollowedLinks) -> Result<Found, Box<dyn Error>> {
    if fs::metadata(path)?.is_dir() {
        return Ok(Found { root: Root::open(path)?.following(follows), single: None });
    }
    let name_of = |path: &Path| -> Result<TreePath, Box<dyn Error>> {
        let name = path.file_name().ok_or("it has no name")?;
        Ok(TreePath::new(name.as_bytes())?)
    };
    let offered = name_of(path)?;
    let real = fs::canonicalize(path)?;
    let local = name_of(&real)?;
    let root = Root::open(real.parent().unwrap_or(Path::new("/")))?;
    Ok(Found { root, single: Some(Single { local, offered }) })
}

/// The entries of one source in a listing.
#[derive(Debug)]
pub(super) struct Part {
    /// The id of its first entry.
    pub(super) first: u32,
    pub(super) root: Root,
    /// The local name of a single file.
    pub(super) single: Option<TreePath>,
    /// The path of the root in the offer; `None` if it is the offer's own root.
    pub(super) prefix: Option<TreePath>,
}

impl Part {
    /// The path in the root of an offered entry.
    pub(super) fn local(&self, offered: TreePath) -> io::Result<TreePath> {
        if let Some(single) = &self.single {
            return Ok(single.clone());
        }
        let Some(prefix) = &self.prefix else { return Ok(offered) };
        let rest = offered.as_bytes().get(prefix.as_bytes().len() + 1..).unwrap_or_default();
        TreePath::new(rest).map_err(io::Error::other)
    }
}

/// The entries that a scan could not list.
pub(super) fn listing_problems(scanned: &Scanned) -> impl Iterator<Item = Problem> + '_ {
    scanned.problems.iter().map(|error: &DiskError| Problem {
        kind: ProblemKind::Unreadable,
        path: error.path().to_vec(),
        cause: chain(error),
    })
}
