//! Folding of names: names that a filesystem takes for one, and the spelling that it lists.
//!
//! Probe files in the state directory show how the filesystem handles a name. Each probe file is
//! removed at once.

use std::ffi::CString;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use crate::disk::directory_stack::names;
use crate::disk::error::{DiskError, DiskErrorKind, During};
use crate::disk::resolve::DIRECTORY;
use crate::disk::stat::{Inode, Stat};
use crate::disk::state::{PART, StateDir, in_state};
use crate::disk::swap::rename_to_nothing;
use crate::disk::writable::WritableRoot;
use crate::tree::path::{COMPONENT_BYTES_MAX, STATE_DIR, TreePath};

const VERB: &str = "rename";

/// Three names that a filesystem may fold: another case, and another Unicode form.
const FOLDABLE: [&str; 3] = ["case-and-form-\u{c9}", "case-and-form-\u{e9}", "case-and-form-e\u{301}"];

impl WritableRoot {
    /// True if the filesystem folds any names at all.
    ///
    /// # Errors
    /// No state directory can be created.
    pub fn folds_names(&self) -> Result<bool, DiskError> {
        let paths: Vec<TreePath> =
            FOLDABLE.iter().filter_map(|name| TreePath::new(name.as_bytes()).ok()).collect();
        self.folded(&paths.iter().collect::<Vec<_>>()).map(|folded| !folded.is_empty())
    }

    /// Finds names that the filesystem folds, among new `paths` of one directory. Each pair holds
    /// the position of a name and of an earlier one that the filesystem takes for the same.
    ///
    /// # Errors
    /// No state directory, or no file in it, can be created.
    pub fn folded(&self, paths: &[&TreePath]) -> Result<Vec<(usize, usize)>, DiskError> {
        let Some(first) = paths.first() else { return Ok(Vec::new()) };
        self.with_state_for(first, |state| {
            let mut made: Vec<(usize, CString)> = Vec::new();
            let mut folded = Vec::new();
            for (index, path) in paths.iter().enumerate() {
                let Some(name) = probe(path.name()) else { continue };
                if make(state, &name)? {
                    made.push((index, name));
                    continue;
                }
                let inode = inode_of(state, name.as_bytes());
                match made.iter().find(|(_, made)| inode_of(state, made.as_bytes()) == inode) {
                    Some(&(first, _)) => folded.push((index, first)),
                    // A run that was killed left this file.
                    None => {
                        state.remove(name.as_bytes())?;
                        if make(state, &name)? {
                            made.push((index, name));
                        }
                    }
                }
            }
            made.iter().try_for_each(|(_, name)| state.remove(name.as_bytes()))?;
            Ok(folded)
        })
    }

    /// True if the filesystem lists the name of `path` in another spelling than `old`, which it
    /// takes for the same name.
    ///
    /// # Errors
    /// No state directory, or no file in it, can be created.
    pub fn shows_other_than(&self, path: &TreePath, old: &[u8]) -> Result<bool, DiskError> {
        let (Some(new), Some(old)) = (probe(path.name()), probe(old)) else { return Ok(false) };
        self.with_state_for(path, |state| {
            state.remove(new.as_bytes())?;
            if !make(state, &new)? {
                return Ok(false);
            }
            let listed = openat(state, c".", DIRECTORY, Mode::empty()).and_then(|state| names(&state));
            state.remove(new.as_bytes())?;
            let listed = listed.during("list", STATE_DIR.as_bytes())?;
            Ok(!listed.iter().any(|name| name.name == old))
        })
    }

    /// Renames `old` in the directory of `path` to the name of `path`, which the filesystem takes
    /// for the same name. Linux does nothing if both names lead to one inode, so the rename goes
    /// through a third name. A run that is killed in between leaves the entry under the third name,
    /// and the next run reuses its content.
    ///
    /// # Errors
    /// The two names no longer lead to one entry ([`DiskError::is_conflict`]), or the directory may
    /// not be changed.
    pub fn respell(&self, path: &TreePath, old: &[u8]) -> Result<(), DiskError> {
        let location = self.locate(path).during(VERB, path.as_bytes())?;
        let conflict = || DiskError::new(VERB, path.as_bytes(), DiskErrorKind::Conflict);
        let is_one =
            inode_of(&location, old).is_some_and(|inode| inode_of(&location, location.name) == Some(inode));
        if !is_one {
            return Err(conflict());
        }
        let between = self.staged_name(path, ".ksync");
        let between = between.as_bytes();
        rename_to_nothing(&location, old, &location, between).during(VERB, path.as_bytes())?;
        let renamed = rename_to_nothing(&location, between, &location, location.name);
        if inode_of(&location, between).is_some() {
            rename_to_nothing(&location, between, &location, old).during(VERB, path.as_bytes())?;
            renamed.during(VERB, path.as_bytes())?;
            return Err(conflict());
        }
        renamed.during(VERB, path.as_bytes())
    }
}

/// The name of the probe file for a name; `None` if it would be too long. Its suffix makes the
/// clean-up of staged files remove it, if this process is killed.
fn probe(name: &[u8]) -> Option<CString> {
    let probe = [b"probe.", name, PART.as_bytes()].concat();
    CString::new(probe).ok().filter(|probe| probe.as_bytes().len() <= COMPONENT_BYTES_MAX)
}

/// Creates an empty file; `false` if there is one already, or no file can have this name.
fn make(state: &StateDir, name: &CString) -> Result<bool, DiskError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(state, name, flags, Mode::RUSR | Mode::WUSR) {
        Ok(_) => Ok(true),
        Err(Errno::EXIST | Errno::INVAL | Errno::ILSEQ) => Ok(false),
        Err(error) => Err(error).during("make", &in_state(name.as_bytes())),
    }
}

/// The file or directory that a name leads to, if there is one and the filesystem tells which.
pub(crate) fn inode_of(directory: impl AsFd, name: &[u8]) -> Option<Inode> {
    let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Stat::of(&stat).as_ref().and_then(Inode::known)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::disk::testing::{Fixture, path};

    #[test]
    fn probes_find_no_folding_and_leave_no_file() {
        let fixture = Fixture::new();
        assert!(!fixture.root.folds_names().unwrap());
        let paths = ["d/A", "d/a", "d/\u{e9}"].map(path);
        assert_eq!(fixture.root.folded(&paths.each_ref()).unwrap(), []);
        assert!(fixture.root.shows_other_than(&paths[0], b"a").unwrap());
        assert!(!fixture.root.shows_other_than(&paths[0], b"A").unwrap());
        assert_eq!(fs::read_dir(fixture.at(".ksync")).unwrap().count(), 0);
    }

    #[test]
    fn a_probe_file_of_a_killed_run_is_replaced() {
        let fixture = Fixture::new();
        fs::create_dir(fixture.at(".ksync")).unwrap();
        fs::write(fixture.at(".ksync/probe.a.part"), "").unwrap();
        assert_eq!(fixture.root.folded(&[&path("A"), &path("a")]).unwrap(), []);
        assert_eq!(fs::read_dir(fixture.at(".ksync")).unwrap().count(), 0);
    }

    #[test]
    fn names_of_two_entries_are_not_respelled() {
        let fixture = Fixture::new();
        fs::write(fixture.at("a"), "a").unwrap();
        assert!(fixture.root.respell(&path("A"), b"a").unwrap_err().is_conflict());
        fs::write(fixture.at("A"), "A").unwrap();
        assert!(fixture.root.respell(&path("A"), b"a").unwrap_err().is_conflict());
        assert_eq!(fs::read(fixture.at("a")).unwrap(), b"a");
    }

    #[test]
    fn a_failed_respelling_restores_both_names() {
        let fixture = Fixture::new();
        fs::write(fixture.at("a"), "a").unwrap();
        fs::hard_link(fixture.at("a"), fixture.at("A")).unwrap();
        assert!(fixture.root.respell(&path("A"), b"a").is_err());
        assert_eq!(fs::read_dir(fixture.at("")).unwrap().count(), 2);
    }
}
