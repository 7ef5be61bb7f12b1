//! The directory stack of a scan: the directories from the root to the scan's position, few of them
//! open at a time, with their names.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::disk::error::{DiskError, DiskErrorKind};
use crate::disk::root::{Root, stat_of};
use crate::disk::stat::FileKind;
use crate::disk::unconfirmed::Covers;
use crate::tree::path::TreePath;

/// Maximum number of open directories on the stack. In a deeper tree, the upper ones are opened
/// again on the way back.
const OPEN_MAX: usize = 64;

/// A directory that is being read.
pub(crate) struct Level {
    pub(crate) path: Option<TreePath>,
    /// `None` while it is closed, to be opened again by its path.
    pub(crate) directory: Option<OwnedFd>,
    /// Device and inode number: opening the directory again finds the same one or fails.
    pub(crate) inode: Option<(u64, u64)>,
    /// The markers that apply to the files in it.
    pub(crate) covers: Option<Arc<Covers>>,
    /// The remaining names, in order.
    pub(crate) names: std::vec::IntoIter<Name>,
}

/// The directories from the root to the scan's position.
#[derive(Default)]
pub(crate) struct DirectoryStack {
    /// Directories far from the scan's position, closed.
    closed: Vec<Level>,
    /// Directories near the scan's position, open.
    pub(crate) open: VecDeque<Level>,
}

impl DirectoryStack {
    pub(crate) fn push(&mut self, level: Level) {
        self.open.push_back(level);
        if self.open.len() > OPEN_MAX
            && let Some(mut far) = self.open.pop_front()
        {
            far.directory = None;
            self.closed.push(far);
        }
    }

    pub(crate) fn pop(&mut self) {
        self.open.pop_back();
        if self.open.is_empty()
            && let Some(level) = self.closed.pop()
        {
            self.open.push_back(level);
        }
    }
}

/// A name in a directory, and its kind if the directory reports it.
pub(crate) struct Name {
    pub(crate) name: CString,
    pub(crate) kind: Option<FileKind>,
}

impl Level {
    /// Opens a directory again that was closed on the way down.
    pub(crate) fn reopen(&mut self, root: &Root) -> Result<(), DiskError> {
        let directory = root.open_directory(self.path.as_ref())?;
        if let (Some(path), Some(inode)) = (&self.path, self.inode) {
            let now = stat_of(&directory, path)?.identity;
            if (now.dev, now.ino) != inode {
                return Err(DiskError::new("go back to", path.as_bytes(), DiskErrorKind::Conflict));
            }
        }
        self.directory = Some(directory);
        Ok(())
    }

    /// The path of a name that may be no `TreePath`.
    pub(crate) fn shown(&self, name: &[u8]) -> Vec<u8> {
        match &self.path {
            Some(parent) => [parent.as_bytes(), b"/", name].concat(),
            None => name.to_owned(),
        }
    }
}

/// All names in a directory, in the filesystem's order.
#[cfg(target_os = "linux")]
pub(crate) fn names(directory: &OwnedFd) -> rustix::io::Result<Vec<Name>> {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 32 * 1024];
    let mut raw = rustix::fs::RawDir::new(directory, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(Name { name: name.to_owned(), kind: FileKind::of(entry.file_type()) });
        }
    }
    Ok(names)
}

/// All names in a directory, in the filesystem's order.
#[cfg(not(target_os = "linux"))]
pub(crate) fn names(directory: &OwnedFd) -> rustix::io::Result<Vec<Name>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(Name { name: name.to_owned(), kind: FileKind::of(entry.file_type()) });
        }
    }
    Ok(names)
}
