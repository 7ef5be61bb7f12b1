//! Set-user-id and set-group-id bits: a copy gets them only if it belongs to the same user and
//! group as the original.
//!
//! Owners are not copied. A user's set-user-id file that became the superuser's would give away the
//! superuser's rights; the same holds for groups. If both trees are on one machine, the user and
//! group of new entries are known in advance. Entries of exactly these keep their bits. Everywhere
//! else the bits are cleared.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{fchown, fstat};
use rustix::process::{Gid, getegid, geteuid};

use crate::disk::xattr::Namespaces;
use crate::tree::entry::MODE_MASK;

/// Runs with the rights of the file's owner.
const SET_USER_ID: u16 = 0o4000;

/// Runs with the rights of the file's group; new entries of such a directory get its group.
const SET_GROUP_ID: u16 = 0o2000;

/// A user and a group, by number.
pub type Owner = (u32, u32);

/// The metadata that a tree from elsewhere may set here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// Set-user-id and set-group-id bits are set only on files of this user and this group. `None`
    /// sets them nowhere.
    pub set_id_owner: Option<Owner>,
    /// Files get their owners from the source, and so their set-user-id bits.
    pub keeps_user: bool,
    /// Files get their groups from the source, and so their set-group-id bits.
    pub keeps_group: bool,
    /// The extended attributes that are copied.
    pub namespaces: Namespaces,
}

/// The `mode` of an entry of `user` and `group`, without the bits that a copy of `owner`'s may not
/// have.
pub(crate) fn mode_for(mode: u16, (user, group): Owner, owner: Owner) -> u16 {
    let of_user = if user == owner.0 { SET_USER_ID } else { 0 };
    let of_group = if group == owner.1 { SET_GROUP_ID } else { 0 };
    mode & !(SET_USER_ID | SET_GROUP_ID) | mode & (of_user | of_group)
}

/// The owner of everything that a run puts at `path` or below it. The superuser's new files get the
/// owner of the nearest existing directory. `None` if that cannot be read.
#[must_use]
pub fn owner_of_copies(path: &Path) -> Option<Owner> {
    if !geteuid().is_root() {
        return Some((geteuid().as_raw(), getegid().as_raw()));
    }
    let named = path.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty());
    named
        .chain([Path::new(".")])
        .find_map(|above| fs::metadata(above).ok().filter(fs::Metadata::is_dir))
        .map(|directory| (directory.uid(), directory.gid()))
}

impl Policy {
    /// The `mode` without the bits that may not be set.
    #[must_use]
    pub fn mode(self, mode: u16) -> u16 {
        let kept = if self.set_id_owner.is_some() { MODE_MASK } else { !(SET_USER_ID | SET_GROUP_ID) };
        mode & MODE_MASK & (kept | self.kept_bits())
    }

    /// The set-id bits that come with an owner or group from the source.
    #[must_use]
    pub fn kept_bits(self) -> u16 {
        let of_user = if self.keeps_user { SET_USER_ID } else { 0 };
        let of_group = if self.keeps_group { SET_GROUP_ID } else { 0 };
        of_user | of_group
    }

    /// The permitted mode of an open file or directory of ours. Its group becomes the one that the
    /// set-group-id bit needs, since a new file may get its directory's group.
    pub(crate) fn mode_of(self, file: impl AsFd, mode: u16) -> rustix::io::Result<u16> {
        let mode = self.mode(mode);
        let checked = mode & (SET_USER_ID | SET_GROUP_ID) & !self.kept_bits();
        let Some(owner) = self.set_id_owner.filter(|_| checked != 0) else {
            return Ok(mode);
        };
        let stat = fstat(&file)?;
        let is_given = checked & SET_GROUP_ID != 0
            && stat.st_uid == owner.0
            && stat.st_gid != owner.1
            && fchown(&file, None, Some(Gid::from_raw(owner.1))).is_ok();
        let group = if is_given { owner.1 } else { stat.st_gid };
        Ok(mode_for(mode, (stat.st_uid, group), owner) | mode & self.kept_bits())
    }

    /// True if an existing file of this owner may get `mode`; otherwise it must be replaced by a
    /// new file.
    pub(crate) fn fits(self, mode: u16, of: Owner) -> bool {
        let mode = self.mode(mode);
        let kept = mode & self.kept_bits();
        self.set_id_owner.is_none_or(|owner| mode_for(mode, of, owner) | kept == mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::testing::Fixture;
    use crate::disk::testing::skip::needs_superuser;

    #[test]
    fn each_bit_stays_with_its_owner() {
        for (owner, expected) in [((1, 2), 0o6755), ((1, 3), 0o4755), ((3, 2), 0o2755), ((3, 3), 0o755)] {
            assert_eq!(mode_for(0o6755, (1, 2), owner), expected, "{owner:?}");
        }
    }

    #[test]
    fn set_id_bits_of_another_owner_are_never_set() {
        let anybody = Policy::default();
        assert_eq!(anybody.mode(0o7755), 0o1755);
        assert!(anybody.fits(0o6755, (3, 3)));
        let fixture = Fixture::new();
        std::fs::write(fixture.at("f"), "").unwrap();
        let (file, stat) = fixture.root.open_file(&crate::disk::testing::path("f")).unwrap();
        let own = Policy { set_id_owner: Some((stat.uid, stat.gid)), ..Policy::default() };
        assert_eq!(own.mode_of(&file, 0o6755).unwrap(), 0o6755);
        assert!(own.fits(0o6755, (stat.uid, stat.gid)) && !own.fits(0o4755, (stat.uid + 1, stat.gid)));
        let other = Policy { set_id_owner: Some((stat.uid + 1, stat.gid + 1)), ..Policy::default() };
        assert_eq!(other.mode_of(&file, 0o6755).unwrap(), 0o755);
    }

    #[test]
    fn copies_get_the_owner_of_the_nearest_directory() {
        let fixture = Fixture::new();
        let own = fixture.at("").metadata().unwrap();
        let own = Some((own.uid(), own.gid()));
        assert_eq!(owner_of_copies(&fixture.at("a/b/c")), own);
        std::fs::write(fixture.at("f"), "").unwrap();
        assert_eq!(owner_of_copies(&fixture.at("f")), own);
        if needs_superuser() {
            std::os::unix::fs::chown(fixture.at(""), Some(65534), Some(65533)).unwrap();
            assert_eq!(owner_of_copies(&fixture.at("a/b/c")), Some((65534, 65533)));
        }
    }
}
