//! Makes, changes and removes names, modes and times.

use crate::content::hash::Hash;
use crate::disk::stage::Metadata;
use crate::disk::stat::{FileKind, Inode, Stat};
use crate::disk::xattr::Namespaces;
use crate::engine::{Step, WorkError};
use crate::exchange::common::{metadata_error, unwritable};
use crate::exchange::receiving::basis_trees::is_same;
use crate::exchange::receiving::tree::{PlannedTree, unknown};
use crate::log::debug;
use crate::tree::attributes::Compared;
use crate::tree::compare::differing_attributes;
use crate::tree::entry::{EntryRef, Kind};
use crate::tree::path::escape;

impl PlannedTree {
    pub(super) fn apply(&self, step: Step) -> Result<(), WorkError> {
        let result = self.apply_step(step);
        if let (Err(_), Some(undone)) = (&result, &self.open.undone) {
            undone.has_failed();
        }
        result
    }

    fn apply_step(&self, step: Step) -> Result<(), WorkError> {
        match step {
            Step::Clear { at } => self.clear(at),
            Step::Unlock { at } => {
                let entry = self.present.get(at).ok_or_else(unknown)?;
                let made = self.root.make_directory(&entry.path.to_path(), entry.mode);
                made.map(drop).map_err(|error| self.unwritable(&error))
            }
            Step::MakeDirectory { id } => {
                let made = self.root.make_directory(&self.path(id)?, self.entry(id)?.mode);
                made.map(|made| self.directories.add(id, made.inode)).map_err(|error| self.unwritable(&error))
            }
            Step::MakeLink { id } => self.make_link(id),
            Step::HardLink { id, to } => self.make_hard_link(id, to),
            Step::LinkBasis { id, at } => self.link_basis(id, at),
            Step::CopyBasis { id, at } => self.copy(id, at, None),
            Step::Recall { id } => self.recall(id),
            Step::Adjust { id } => self.adjust(id),
            Step::Respell { id } => self.respell(id),
            Step::Move { id, at, hash } => self.move_file(id, at, hash),
            Step::Remove { at } => self.remove(at),
            Step::Restore { at } => self.restore(at),
        }
    }

    fn make_link(&self, id: u32) -> Result<(), WorkError> {
        let entry = self.entry(id)?;
        let Kind::Symlink { target } = entry.kind else { return Err(unknown()) };
        let (path, seen) = (self.path(id)?, self.seen_and_backed_up(id)?);
        let made = match entry.special() {
            Some(special) => self.root.make_special(&path, special, &self.metadata(id)?, seen.as_ref()),
            None if target.is_empty() => return Err(unknown()),
            None => {
                let attributes = entry.attributes.map(|attributes| &**attributes);
                self.root.make_symlink(&path, target, entry.mtime, attributes, seen.as_ref())
            }
        };
        made.map_err(|error| if error.is_refused() { metadata_error(error) } else { self.unwritable(&error) })
    }

    /// Makes an entry a further name of a basis tree's. Where that cannot be, it becomes a copy.
    pub(super) fn link_basis(&self, id: u32, at: u32) -> Result<(), WorkError> {
        let (root, from, seen) = self.open.bases.at(at).ok_or_else(unknown)?;
        let is_right = |stat: &Stat| is_same(&stat.identity, &seen);
        let old = self.seen_and_backed_up(id)?;
        let linked = self.root.make_hard_link_from(root, &from, &self.path(id)?, is_right, old.as_ref());
        match linked {
            Err(error) if error.cannot_be_linked() => match self.entry(id)?.kind {
                Kind::File { .. } => self.copy(id, at, None),
                _ => self.make_link(id),
            },
            result => result.map_err(unwritable),
        }
    }

    /// Makes an entry a further name of another one, which must have arrived.
    fn make_hard_link(&self, id: u32, to: u32) -> Result<(), WorkError> {
        let (from, path, wanted) = (self.path(to)?, self.path(id)?, self.entry(to)?);
        let is_right = |stat: &Stat| {
            let is_file = matches!(wanted.kind, Kind::File { .. });
            is_file == (stat.kind() == FileKind::File)
                && stat.kind() != FileKind::Directory
                && stat.size() == wanted.size()
                && (stat.mtime().seconds() - wanted.mtime.seconds()).abs() <= 2
        };
        let linked = self.root.make_hard_link(&from, &path, is_right, self.seen_and_backed_up(id)?.as_ref());
        linked.map_err(|error| self.unwritable(&error))?;
        self.settle_doubt(id);
        Ok(())
    }

    fn adjust(&self, id: u32) -> Result<(), WorkError> {
        let (root, path, entry) = (&self.root, self.path(id)?, self.entry(id)?);
        let adjusted = match entry.kind {
            Kind::Directory => {
                // A directory that could not be made has been reported already.
                let Some(expected) = self.expected_directory(id)? else { return Ok(()) };
                root.set_directory(&path, &self.metadata(id)?, expected)
            }
            // A link or special file with other attributes is as cheap to make anew.
            Kind::Symlink { target } if target.is_empty() || entry.attributes.is_some() => {
                return self.make_link(id);
            }
            Kind::Symlink { target } => {
                let seen = self.seen(id)?.ok_or_else(unknown)?;
                root.set_link_time(&path, target, entry.mtime, &seen)
            }
            Kind::File { .. } => {
                let seen = self.seen(id)?.ok_or_else(unknown)?;
                self.settle_doubt(id);
                if self.is_as_wanted(id)? {
                    return root.vouch_for(&path, &seen).map_err(unwritable);
                }
                match root.set_file(&path, &self.metadata(id)?, &seen) {
                    Err(error) if error.must_be_anew() && self.is_in_place => {
                        return self.write_in_place(id, &seen, None);
                    }
                    // A file's hard links may lie outside and must not change: write the file anew.
                    Err(error) if error.must_be_anew() => return self.separate(id),
                    result => result.map(drop),
                }
            }
        };
        adjusted.map_err(metadata_error)
    }

    /// True if the file in place has the wanted mode and time.
    fn is_as_wanted(&self, id: u32) -> Result<bool, WorkError> {
        let (entry, present, policy) = (self.entry(id)?, &self.present, self.root.policy());
        let old = present.position(entry.path).and_then(|at| present.get(at));
        let Namespaces { xattrs, acls, .. } = policy.namespaces;
        let differ = |old| differing_attributes(entry, old, Compared { xattrs, acls }).any();
        Ok(old.is_some_and(|old| {
            old.mtime == entry.mtime && policy.mode(old.mode) == policy.mode(entry.mode) && !differ(old)
        }))
    }

    /// The directory that was made for an entry, or existed before.
    fn expected_directory(&self, id: u32) -> Result<Option<Inode>, WorkError> {
        if let Some(made) = self.directories.get(id) {
            return Ok(Some(made));
        }
        let seen = self.position(id)?.and_then(|at| self.identity(at));
        Ok(seen.filter(|seen| seen.kind == FileKind::Directory).map(|seen| Inode::from(&seen)))
    }

    fn move_file(&self, id: u32, at: u32, hash: Hash) -> Result<(), WorkError> {
        let (from, seen) = self.basis(at)?;
        let to = self.path(id)?;
        // The old name's backup needs a file of its own.
        if self.backups.is_some() || self.undo.is_some() {
            self.copy(id, at, Some(hash))?;
            return self.remove(at);
        }
        match self.root.move_file(&from, &seen, &to, &self.metadata(id)?) {
            // Hard links may lie outside and must not change with it. And a rename cannot cross
            // filesystems.
            Err(error) if error.must_be_anew() || error.is_cross_device() => {
                self.copy(id, at, Some(hash))?;
                self.remove(at)
            }
            result => {
                debug!(
                    "file role=receiver how=rename why=same-content ok={} path={}",
                    result.is_ok(),
                    escape(to.as_bytes())
                );
                self.doubted().remove(&at);
                result.map_err(unwritable)
            }
        }
    }

    /// Restores a directory's original mode and time. If set-id bits may not be set, they cannot be
    /// restored, and the directory stays as it is.
    fn restore(&self, at: u32) -> Result<(), WorkError> {
        let (root, entry) = (&self.root, self.present.get(at).ok_or_else(unknown)?);
        let seen = self.identity(at).filter(|_| root.policy().mode(entry.mode) == entry.mode);
        let Some(seen) = seen else { return Ok(()) };
        let (mode, mtime, attributes) = (entry.mode, entry.mtime, entry.attributes.cloned());
        let metadata = Metadata { mode, mtime, attributes };
        root.set_directory(&entry.path.to_path(), &metadata, Inode::from(&seen)).map_err(unwritable)
    }

    /// Writes a file with hard links anew, with the same content.
    fn separate(&self, id: u32) -> Result<(), WorkError> {
        let at = self.position(id)?.ok_or_else(unknown)?;
        self.copy(id, at, None)
    }

    /// Removes the listed entries at and below a position, and nothing else.
    pub(super) fn clear(&self, at: u32) -> Result<(), WorkError> {
        self.present.subtree(at).rev().try_for_each(|at| self.remove(at))
    }

    fn backs_up_removed(&self, entry: EntryRef<'_>) -> bool {
        self.backups.as_ref().is_some_and(|backups| backups.takes_removed(entry.path.name()))
    }

    fn remove(&self, at: u32) -> Result<(), WorkError> {
        let entry = self.present.get(at).ok_or_else(unknown)?;
        let seen = self.identity(at);
        let path = self.present_path(at).ok_or_else(unknown)?;
        let root = &self.root;
        let removed = match (entry.kind, seen) {
            (Kind::Directory, _) => root.remove_directory(&path),
            (_, Some(seen)) if self.backs_up_removed(entry) => {
                root.remove_file(&path, Some(&self.back_up(at, seen, true)?))
            }
            (_, Some(seen)) => root.remove_file(&path, Some(&self.keep(at, seen, true)?)),
            (_, None) => root.remove_file(&path, None),
        };
        removed.map_err(unwritable)?;
        self.doubted().remove(&at);
        Ok(())
    }
}
