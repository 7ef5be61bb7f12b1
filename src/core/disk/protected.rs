//! Protected directories: the machine or the login needs them, so nothing in them is deleted unless
//! the user names them explicitly. A directory is recognised by its identity, not by its spelling:
//! links, bind mounts, `..` and slashes lead to the same directory.

use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::Path;

use rustix::fs::{AtFlags, statat};

use crate::disk::homes::{home, homes, users};
use crate::disk::root::Root;
use crate::disk::stat::Stat;

/// Directories that every machine needs.
const OF_THE_SYSTEM: [&str; 7] = ["/", "/etc", "/usr", "/var", "/home", "/root", "/Users"];

/// Directories that hold the homes of people.
const HOLD_HOMES: [&str; 2] = ["/home", "/Users"];

impl Root {
    /// True if this is a directory of the system, a home, or holds the login's `.ssh`.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        let home = home();
        OF_THE_SYSTEM.iter().any(|path| self.is_at(path.as_ref()))
            || home.as_ref().is_some_and(|home| self.is_at(home))
            || homes(&users()).iter().any(|(_, home)| self.is_at(home))
            || HOLD_HOMES.iter().any(|path| self.is_directly_in(path.as_ref()))
            || home.is_some_and(|home| self.holds(&home.join(".ssh")))
    }

    /// True if `path` leads to this directory.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|there| self.is(there.dev(), there.ino()))
    }

    fn is(&self, dev: u64, ino: u64) -> bool {
        (self.dev(), self.inode().ino) == (dev, ino)
    }

    /// True if `directory` is the parent of this one, or lists it: the parent of a bind mount is
    /// another one.
    fn is_directly_in(&self, directory: &Path) -> bool {
        let Ok(there) = fs::metadata(directory) else { return false };
        let above = statat(self.descriptor(), c"..", AtFlags::empty()).ok().and_then(|stat| Stat::of(&stat));
        if above.is_some_and(|stat| (stat.identity.dev, stat.identity.ino) == (there.dev(), there.ino())) {
            return true;
        }
        let own = self.inode().ino;
        // Only names with the same inode number are opened: an automounter may mount homes on
        // access.
        let mut names = fs::read_dir(directory).into_iter().flatten().flatten();
        names.any(|entry| entry.ino() == own && self.is_at(&entry.path()))
    }

    /// True if `path` exists and is in this directory, at any depth, either itself or its link
    /// target.
    fn holds(&self, path: &Path) -> bool {
        if fs::symlink_metadata(path).is_err() {
            return false;
        }
        let real = fs::canonicalize(path).ok();
        let named = path.parent().and_then(|parent| fs::canonicalize(parent).ok());
        let above = real.iter().flat_map(|real| real.ancestors().skip(1));
        named.iter().flat_map(|named| named.ancestors()).chain(above).any(|above| self.is_at(above))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::disk::testing::Fixture as Folder;
    use crate::disk::testing::skip::needs;

    fn protected(path: impl AsRef<Path>) -> bool {
        Root::open(path.as_ref()).unwrap().is_protected()
    }

    #[test]
    fn system_directories_and_homes_are_protected_in_any_spelling() {
        let folder = Folder::new();
        for path in ["/", "/etc", "/usr", "/var", "//etc/", "/usr/../etc/.", "/var/.."] {
            assert!(protected(path), "{path}");
        }
        for path in OF_THE_SYSTEM.iter().filter(|path| Path::new(path).is_dir()) {
            let link = folder.at(&format!("link{}", path.replace('/', "-")));
            symlink(path, &link).unwrap();
            assert!(protected(&link), "{path}");
        }
        let home = home().filter(|home| home.is_dir());
        if needs(home.is_some(), "this user has no home") {
            assert!(home.is_some_and(protected));
        }
    }

    #[test]
    fn other_directories_are_not_protected() {
        let folder = Folder::new();
        assert!(!folder.root.is_protected());
        assert!(!protected("/usr/lib"));
    }

    #[test]
    fn a_directory_holds_a_path_also_through_its_links() {
        let folder = Folder::new();
        fs::create_dir_all(folder.at("a/home")).unwrap();
        fs::create_dir_all(folder.at("b/keys")).unwrap();
        let holds = |name: &str| Root::open(&folder.at(name)).unwrap().holds(&folder.at("a/home/.ssh"));
        assert!(!holds("a") && !holds("a/home"), "there is none");
        symlink(folder.at("b/keys"), folder.at("a/home/.ssh")).unwrap();
        assert!(holds("a") && holds("a/home") && holds("b"));
        assert!(!holds("b/keys"), "it is the thing itself");
    }

    #[test]
    fn only_direct_children_are_directly_in_a_directory() {
        let folder = Folder::new();
        fs::create_dir_all(folder.at("homes/me/deep")).unwrap();
        let is_in = |name: &str| Root::open(&folder.at(name)).unwrap().is_directly_in(&folder.at("homes"));
        assert!(is_in("homes/me") && !is_in("homes/me/deep") && !is_in("homes"));
    }
}
