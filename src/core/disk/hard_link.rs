//! Hard links: a further name of a file in the same root, made aside and renamed into place.

use rustix::fs::{AtFlags, linkat, statat};

use crate::disk::error::{DiskError, DiskErrorKind, During};
use crate::disk::root::Root;
use crate::disk::stat::{Identity, Stat};
use crate::disk::state::LINK;
use crate::disk::writable::WritableRoot;
use crate::tree::path::TreePath;

impl WritableRoot {
    /// Makes `to` a further name of `from`, if its path still holds the entry that was `seen` there
    /// (`None`: nothing), and `from` is what `is_right` accepts. Both are looked at after the link
    /// was made aside, where no other user can change names.
    ///
    /// # Errors
    /// [`DiskError::is_conflict`], or [`DiskError::is_cross_device`], or a path cannot be written
    /// to.
    pub fn make_hard_link(
        &self,
        from: &TreePath,
        to: &TreePath,
        is_right: impl Fn(&Stat) -> bool,
        seen: Option<&Identity>,
    ) -> Result<(), DiskError> {
        self.make_hard_link_from(self, from, to, is_right, seen)
    }

    /// The same, where `from` is an entry of another root.
    ///
    /// # Errors
    /// As [`Self::make_hard_link`], or [`DiskError::cannot_be_linked`].
    pub fn make_hard_link_from(
        &self,
        root: &Root,
        from: &TreePath,
        to: &TreePath,
        is_right: impl Fn(&Stat) -> bool,
        seen: Option<&Identity>,
    ) -> Result<(), DiskError> {
        const VERB: &str = "link";
        let name = self.staged_name(to, LINK);
        let source = root.locate(from).during(VERB, from.as_bytes())?;
        self.with_state_for(to, |state| {
            state.remove(name.as_bytes())?;
            linkat(&source, source.name, state, &*name, AtFlags::empty()).during(VERB, to.as_bytes())?;
            let staged = statat(state, &*name, AtFlags::SYMLINK_NOFOLLOW).during(VERB, to.as_bytes())?;
            let staged = Stat::of(&staged).filter(|staged| is_right(staged));
            let installed = match staged {
                None => Err(DiskError::new(VERB, from.as_bytes(), DiskErrorKind::Conflict)),
                Some(staged) => state.install(&name, Some(staged.identity), self, to, seen),
            };
            // The kernel leaves the name aside if both names lead to one file already.
            state.remove(name.as_bytes())?;
            installed
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::disk::testing::{Fixture, path};

    fn inode(fixture: &Fixture, name: &str) -> u64 {
        fixture.at(name).symlink_metadata().unwrap().ino()
    }

    #[test]
    fn hard_link_replaces_only_the_entry_that_was_seen() {
        let fixture = Fixture::new();
        fs::write(fixture.at("a"), "a").unwrap();
        fs::write(fixture.at("b"), "old").unwrap();
        let link = |seen: Option<&Identity>, is_right: bool| {
            fixture.root.make_hard_link(&path("a"), &path("b"), |_| is_right, seen)
        };
        let seen = fixture.root.stat(&path("b")).unwrap().unwrap().identity;
        assert!(link(None, true).unwrap_err().is_conflict());
        assert!(link(Some(&seen), false).unwrap_err().is_conflict());
        assert_eq!(fs::read(fixture.at("b")).unwrap(), b"old");
        link(Some(&seen), true).unwrap();
        assert_eq!(inode(&fixture, "a"), inode(&fixture, "b"));
        assert_eq!(fs::read_dir(fixture.at(".ksync")).unwrap().count(), 0);
    }

    #[test]
    fn second_link_of_the_same_two_names_changes_nothing() {
        let fixture = Fixture::new();
        fs::write(fixture.at("a"), "a").unwrap();
        fs::hard_link(fixture.at("a"), fixture.at("b")).unwrap();
        let _ = fixture.root.make_hard_link(&path("a"), &path("b"), |_| true, None).unwrap_err();
        let seen = fixture.root.stat(&path("b")).unwrap().unwrap().identity;
        let _ = fixture.root.make_hard_link(&path("a"), &path("b"), |_| true, Some(&seen));
        assert_eq!(inode(&fixture, "a"), inode(&fixture, "b"));
        assert_eq!(fixture.at("a").metadata().unwrap().nlink(), 2);
        assert_eq!(fs::read_dir(fixture.at(".ksync")).unwrap().count(), 0);
    }
}
