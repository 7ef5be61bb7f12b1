//! Removes from a source what its copy has (`--remove-source-files`).

use std::collections::HashSet;

use crate::disk::root::Root;
use crate::disk::stat::{FileKind, Identity, Inode};
use crate::engine::WorkError;
use crate::exchange::common::chain;
use crate::monitor::ProblemKind;
use crate::tree::links::FollowedLinks;
use crate::tree::path::TreePath;

/// Removals of one work.
pub(super) struct Removal {
    pub(super) follows: FollowedLinks,
    /// Files that have lost a name, which moved the ctime of their other names.
    pub(super) touched: HashSet<Inode>,
}

impl Removal {
    /// Removes a file or link that is still the listed one; `false` if it is gone already. `copy`
    /// is the fingerprint of its copy's identity: a copy that is the file itself must stay.
    pub(super) fn remove(
        &mut self,
        root: &Root,
        path: &TreePath,
        listed: &Identity,
        copy: u64,
    ) -> Result<bool, WorkError> {
        let stays = |cause: String| Err(WorkError::Entry(ProblemKind::NotRemoved, cause));
        let own = match root.stat(path) {
            Ok(own) => own,
            Err(error) => return stays(chain(error.reason())),
        };
        let Some(mut now) = own else { return Ok(false) };
        if now.kind() == FileKind::Symlink && self.follows.any() && listed.kind != FileKind::Symlink {
            match root.stat_followed(path) {
                Ok(Some(target)) => now = target,
                // Its target was removed under another name.
                Ok(None) => return Ok(false),
                Err(error) => return stays(chain(error.reason())),
            }
        }
        let inode = Inode::from(&now);
        let ctime = if self.touched.contains(&inode) { now.identity.ctime } else { listed.ctime };
        if now.identity != (Identity { ctime, ..*listed }) {
            return stays("it changed since it was listed".to_owned());
        }
        if copy == listed.fingerprint() || copy == now.identity.fingerprint() {
            return stays("DEST has this very file, and no copy of it".to_owned());
        }
        match root.remove_entry(path) {
            Ok(()) => {
                if now.nlink > 1 {
                    self.touched.insert(inode);
                }
                Ok(true)
            }
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => stays(chain(error.reason())),
        }
    }
}
