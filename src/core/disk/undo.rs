//! The store of what runs replaced and deleted: `undo/RUN` in the state directory of a destination.
//!
//! Each run has the records of the tree before and after it, and a further name of each file that
//! it replaced or deleted. Only this user may enter the store, and nothing in it is synced.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, fstat, linkat, mkdirat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::content::hash::{Hash, Hasher};
use crate::disk::error::{DiskError, DiskErrorKind, During};
use crate::disk::holes::SparseFile;
use crate::disk::resolve::DIRECTORY;
use crate::disk::root::Root;
use crate::disk::stat::{Identity, Stat};
use crate::disk::state::{LINK, StateDir, staged_name};
use crate::disk::writable::WritableRoot;
use crate::tree::entry::{Entry, Kind, Time};
use crate::tree::manifest::{Builder, Manifest};
use crate::tree::path::{STATE_DIR, TreePath};
use crate::tree::record::{self, Record};

/// Name of the store in the state directory.
const STORE: &str = "undo";

/// Ending of the stored files' names.
const STORED: &str = ".old";

/// Names of the records.
const BEFORE: &str = "before";
const AFTER: &str = "after";

/// Name of the file with the modification time of the destination itself.
const ROOT: &str = "root";

/// Ending of a record that is being written.
const NEW: &str = ".new";

/// The longest record that is read: a tree of the most entries.
const RECORD_BYTES_MAX: u64 = 8 << 30;

const PRIVATE: u32 = 0o700;

/// The store of one run.
#[derive(Debug)]
pub struct UndoRun {
    /// Names the run: milliseconds since 1970.
    pub id: u64,
    root: WritableRoot,
}

/// The figures of a stored run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UndoSummary {
    /// Names the run.
    pub id: u64,
    /// Number of stored files.
    pub files: u64,
    /// Bytes in these files.
    pub bytes: u64,
}

impl UndoRun {
    /// Makes the store of a run that begins `now`. Removes the oldest runs, so that `keep` stay.
    ///
    /// # Errors
    /// The store cannot be written, or is another user's.
    pub fn create(
        destination: &WritableRoot,
        now: u64,
        keep: u32,
        before: (&Manifest, Option<Time>),
        after: &Manifest,
    ) -> Result<Self, DiskError> {
        let store = match open_store(destination)? {
            Some(store) => store,
            None => {
                let state = StateDir::create(destination.descriptor())?;
                match mkdirat(&state, STORE, Mode::from_raw_mode(PRIVATE as _)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error).during("make the directory", &in_store("")),
                }
                open_in(&state, STORE)?.ok_or_else(refused)?
            }
        };
        // A clock may go back, and the last run has the largest number.
        let mut id = ids(&store)?.into_iter().max().map_or(now, |last| now.max(last.saturating_add(1)));
        let name = loop {
            let name = id.to_string();
            match mkdirat(&store, &*name, Mode::from_raw_mode(PRIVATE as _)) {
                Ok(()) => break name,
                Err(Errno::EXIST) => id += 1,
                Err(error) => return Err(error).during("make the directory", &in_store(&name)),
            }
        };
        let run = Self::of(open_in(&store, &name)?.ok_or_else(refused)?, destination, id)?;
        // Without both records the run has changed nothing yet.
        let (before, root_time) = before;
        run.write(AFTER, &mut |file| write_record(file, after))?;
        if let Some(time) = root_time {
            run.write(ROOT, &mut |file| write!(file, "{} {}", time.seconds(), time.nanos()))?;
        }
        run.write(BEFORE, &mut |file| write_record(file, before))?;
        let mut others = ids(&store)?;
        others.retain(|other| *other != id);
        others.sort_unstable();
        let spare = others.len().saturating_sub((keep.max(1) - 1) as usize);
        others.iter().take(spare).try_for_each(|other| remove(&store, &other.to_string()))?;
        Ok(run)
    }

    /// Finds a run, or the last one.
    ///
    /// # Errors
    /// The store cannot be read, or is another user's.
    pub fn find(destination: &WritableRoot, id: Option<u64>) -> Result<Option<Self>, DiskError> {
        let Some(store) = open_store(destination)? else { return Ok(None) };
        let all = ids(&store)?;
        let found = match id {
            Some(id) => all.contains(&id).then_some(id),
            None => all.into_iter().max(),
        };
        let Some(id) = found else { return Ok(None) };
        let directory = open_in(&store, &id.to_string())?;
        directory.map(|directory| Self::of(directory, destination, id)).transpose()
    }

    /// All stored runs, the last one first.
    ///
    /// # Errors
    /// The store cannot be read, or is another user's.
    pub fn list(destination: &Root) -> Result<Vec<UndoSummary>, DiskError> {
        let Some(store) = open_store(destination)? else { return Ok(Vec::new()) };
        let mut ids = ids(&store)?;
        ids.sort_unstable_by(|one, other| other.cmp(one));
        let mut runs = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(run) = open_in(&store, &id.to_string())? else { continue };
            let mut summary = UndoSummary { id, files: 0, bytes: 0 };
            for name in names(&run)?.iter().filter(|name| name.ends_with(STORED.as_bytes())) {
                let stat = statat(&run, &**name, AtFlags::SYMLINK_NOFOLLOW).ok();
                summary.files += 1;
                summary.bytes += stat.and_then(|stat| Stat::of(&stat)).map_or(0, |stat| stat.size());
            }
            runs.push(summary);
        }
        Ok(runs)
    }

    fn of(directory: OwnedFd, destination: &WritableRoot, id: u64) -> Result<Self, DiskError> {
        let path = destination.path().join(STATE_DIR).join(STORE).join(id.to_string());
        let root = WritableRoot::of(Root::of(directory, &path)?)?.with_policy(destination.policy());
        Ok(Self { id, root })
    }

    /// The directory that takes further names of replaced and deleted files.
    #[must_use]
    pub fn root(&self) -> &WritableRoot {
        &self.root
    }

    /// The name of an entry in that directory.
    ///
    /// # Errors
    /// Never: the name is short and plain.
    pub fn name_of(path: &TreePath) -> Result<TreePath, DiskError> {
        let name = staged_name(path, STORED).into_bytes();
        TreePath::new(name)
            .map_err(|error| DiskError::new("store", path.as_bytes(), DiskErrorKind::Path(error)))
    }

    /// The tree before the run, and after it; `None` if the run has changed nothing.
    ///
    /// # Errors
    /// A record cannot be read, or is damaged.
    pub fn trees(&self) -> Result<Option<(Manifest, Manifest)>, DiskError> {
        let Some(before) = self.read(BEFORE)? else { return Ok(None) };
        Ok(Some((before, self.read(AFTER)?.ok_or_else(damaged)?)))
    }

    /// Hashes the stored files, so that an undo can verify them.
    ///
    /// # Errors
    /// A stored file cannot be read, or the record not be written.
    pub fn seal(&self, before: &Manifest) -> Result<(), DiskError> {
        let stored: HashSet<Vec<u8>> = names(self.root.descriptor())?.into_iter().collect();
        let mut builder = Builder::default();
        for entry in before.entries() {
            let mut sealed: Entry = entry.to_entry();
            if let Kind::File { hash, .. } = &mut sealed.kind {
                let is_stored = stored.contains(Self::name_of(&sealed.path)?.as_bytes());
                *hash = match if is_stored { self.stored(&sealed.path)? } else { None } {
                    Some((file, stat)) => Some(hash_of(&file, &stat).during("read", sealed.path.as_bytes())?),
                    None => None,
                };
            }
            builder.add(sealed.view()).map_err(|_| damaged())?;
        }
        let sealed = builder.finish();
        self.write(BEFORE, &mut |file| write_record(file, &sealed))
    }

    /// The modification time of the destination itself before the run.
    #[must_use]
    pub fn root_time(&self) -> Option<Time> {
        let text = String::from_utf8(self.load(ROOT).ok()??).ok()?;
        let (seconds, nanos) = text.split_once(' ')?;
        Time::new(seconds.parse().ok()?, nanos.parse().ok()?)
    }

    /// Opens a stored file, if there is one.
    fn stored(&self, path: &TreePath) -> Result<Option<(File, Stat)>, DiskError> {
        match self.root.open_file(&Self::name_of(path)?) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts a stored file back to its path in the destination, in place of the entry with the
    /// identity `seen`. `false` if the file is not stored.
    ///
    /// # Errors
    /// The stored file is not `wanted`, another entry is at the path by now, or the disk fails.
    pub fn recall(
        &self,
        destination: &WritableRoot,
        wanted: &Entry,
        seen: Option<&Identity>,
    ) -> Result<bool, DiskError> {
        const VERB: &str = "restore";
        let path = &wanted.path;
        let Kind::File { size, hash } = wanted.kind else { return Ok(false) };
        let lost = || DiskError::new(VERB, path.as_bytes(), DiskErrorKind::Conflict);
        let Some((file, stat)) = self.stored(path)? else {
            // Its hash shows that it was stored.
            return if hash.is_some() { Err(lost()) } else { Ok(false) };
        };
        let found = hash.map(|_| hash_of(&file, &stat).during("read", path.as_bytes())).transpose()?;
        if stat.size() != size || stat.mtime() != wanted.mtime || found != hash {
            return Err(lost());
        }
        let name = Self::name_of(path)?;
        let staged = destination.staged_name(path, LINK);
        let installed = destination.with_state_for(path, |state| {
            state.remove(staged.as_bytes())?;
            match linkat(self.root.descriptor(), name.as_bytes(), &**state, &*staged, AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::PERM | Errno::NOTSUP | Errno::NOSYS | Errno::MLINK | Errno::ACCESS) => {
                    renameat(self.root.descriptor(), name.as_bytes(), &**state, &*staged)
                        .during(VERB, path.as_bytes())?;
                }
                Err(Errno::XDEV) => return Ok(false),
                Err(error) => return Err(error).during(VERB, path.as_bytes()),
            }
            let installed = state.install(&staged, None, destination, path, seen);
            if installed.is_err() {
                let _ = state.remove(staged.as_bytes());
            }
            installed.map(|()| true)
        })?;
        if !installed {
            // Another filesystem is mounted there.
            self.root.copy_as_backup(&name, &stat.identity, destination, path)?;
        }
        Ok(true)
    }

    /// Removes the run from the store.
    ///
    /// # Errors
    /// An entry cannot be removed.
    pub fn forget(&self, destination: &Root) -> Result<(), DiskError> {
        let Some(store) = open_store(destination)? else { return Ok(()) };
        remove(&store, &self.id.to_string())?;
        // Other runs may be in it.
        let state = StateDir::open(destination.descriptor())?;
        if let Some(state) = state {
            let _ = unlinkat(&state, STORE, AtFlags::REMOVEDIR);
        }
        Ok(())
    }

    fn write(
        &self,
        name: &str,
        content: &mut dyn FnMut(&mut File) -> io::Result<()>,
    ) -> Result<(), DiskError> {
        let aside = format!("{name}{NEW}");
        let shown = in_store(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = self.root.descriptor();
        let file = openat(directory, &*aside, flags, Mode::RUSR | Mode::WUSR).during("make", &shown)?;
        let mut file = File::from(file);
        content(&mut file).during("write", &shown)?;
        renameat(directory, &*aside, directory, name).during("rename", &shown)
    }

    fn load(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        let shown = in_store(name);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(self.root.descriptor(), name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error).during("open", &shown),
        };
        let mut bytes = Vec::new();
        file.take(RECORD_BYTES_MAX).read_to_end(&mut bytes).during("read", &shown)?;
        Ok(Some(bytes))
    }

    fn read(&self, name: &str) -> Result<Option<Manifest>, DiskError> {
        let Some(bytes) = self.load(name)? else { return Ok(None) };
        let (_, entries) = Record::new(bytes).ok_or_else(damaged)?.into_parts();
        let mut builder = Builder::default();
        for entry in entries {
            entry.and_then(|entry| builder.add(entry.view())).map_err(|_| damaged())?;
        }
        Ok(Some(builder.finish()))
    }
}

fn write_record(file: &mut File, manifest: &Manifest) -> io::Result<()> {
    record::write(manifest, &[], &mut |bytes| file.write_all(bytes))
}

fn hash_of(file: &File, stat: &Stat) -> io::Result<Hash> {
    let mut hasher = Hasher::new();
    SparseFile::of(file, stat.size()).visit(0..stat.size(), &mut |piece| hasher.take(piece))?;
    Ok(hasher.finish())
}

/// The store of a destination, if there is one.
fn open_store(destination: &Root) -> Result<Option<OwnedFd>, DiskError> {
    match StateDir::open(destination.descriptor())? {
        Some(state) => open_in(&state, STORE),
        None => Ok(None),
    }
}

/// Opens a directory of our own, and no link to one.
fn open_in(parent: impl AsFd, name: &str) -> Result<Option<OwnedFd>, DiskError> {
    let directory = match openat(parent, name, DIRECTORY, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP | Errno::NOTDIR) => return Err(refused()),
        Err(error) => return Err(error).during("open", &in_store(name)),
    };
    let stat = fstat(&directory).during("look at", &in_store(name))?;
    if stat.st_uid == geteuid().as_raw() { Ok(Some(directory)) } else { Err(refused()) }
}

/// The runs in a store, in no order.
fn ids(store: &OwnedFd) -> Result<Vec<u64>, DiskError> {
    // A larger one is none of ours, and leaves no room for the next.
    let is_own = |id: &u64| *id <= u64::MAX / 2;
    let number = |name: &Vec<u8>| std::str::from_utf8(name).ok()?.parse::<u64>().ok().filter(is_own);
    Ok(names(store)?.iter().filter_map(number).collect())
}

fn names(directory: impl AsFd) -> Result<Vec<Vec<u8>>, DiskError> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).during("list", &in_store(""))? {
        let entry = entry.during("list", &in_store(""))?;
        names.push(entry.file_name().to_bytes().to_owned());
    }
    names.retain(|name| !matches!(&**name, b"." | b".."));
    Ok(names)
}

/// Removes the store of a run: files, and at most its own state directory.
fn remove(store: &OwnedFd, run: &str) -> Result<(), DiskError> {
    let Some(directory) = open_in(store, run)? else { return Ok(()) };
    // The records go first: a run without them is none.
    for name in [BEFORE, AFTER] {
        let _ = unlinkat(&directory, name, AtFlags::empty());
    }
    if let Some(state) = StateDir::open(&directory)? {
        names(&state)?.iter().try_for_each(|name| state.remove(name))?;
        unlinkat(&directory, STATE_DIR, AtFlags::REMOVEDIR).during("remove", &in_store(run))?;
    }
    for name in names(&directory)? {
        unlinkat(&directory, &*name, AtFlags::empty()).during("remove", &in_store(run))?;
    }
    unlinkat(store, run, AtFlags::REMOVEDIR).during("remove", &in_store(run))
}

fn in_store(name: &str) -> Vec<u8> {
    format!("{STATE_DIR}/{STORE}/{name}").into_bytes()
}

fn refused() -> DiskError {
    DiskError::new("use", &in_store(""), DiskErrorKind::NotOurs)
}

fn damaged() -> DiskError {
    let cause = io::Error::new(io::ErrorKind::InvalidData, "the record of the run is damaged");
    DiskError::new("read", &in_store(""), DiskErrorKind::System(cause))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::disk::testing::{Fixture, give_away, path};

    const SOME_TIME: u64 = 1_796_000_000_000;

    fn create(fixture: &Fixture) -> Result<UndoRun, DiskError> {
        let tree = Manifest::default();
        UndoRun::create(&fixture.root, SOME_TIME, 2, (&tree, Time::new(5, 6)), &tree)
    }

    #[test]
    fn oldest_runs_go_and_ids_never_repeat() {
        let fixture = Fixture::new();
        for number in 0..4 {
            assert_eq!(create(&fixture).unwrap().id, SOME_TIME + number);
        }
        let ids: Vec<u64> = UndoRun::list(&fixture.root).unwrap().iter().map(|run| run.id).collect();
        assert_eq!(ids, [SOME_TIME + 3, SOME_TIME + 2]);
        let last = UndoRun::find(&fixture.root, None).unwrap().unwrap();
        assert_eq!((last.id, last.root_time()), (SOME_TIME + 3, Time::new(5, 6)));
        assert!(last.trees().unwrap().is_some());
        last.forget(&fixture.root).unwrap();
        assert!(UndoRun::find(&fixture.root, Some(SOME_TIME + 3)).unwrap().is_none());
    }

    #[test]
    fn run_without_records_has_changed_nothing_and_damage_is_an_error() {
        let fixture = Fixture::new();
        let run = create(&fixture).unwrap();
        let store = fixture.at(".ksync/undo").join(run.id.to_string());
        fs::write(store.join(AFTER), [9; 100]).unwrap();
        assert!(run.trees().is_err());
        fs::remove_file(store.join(BEFORE)).unwrap();
        assert!(run.trees().unwrap().is_none());
    }

    #[test]
    fn store_behind_a_link_or_of_another_user_is_refused() {
        let fixture = Fixture::new();
        create(&fixture).unwrap();
        let store = fixture.at(".ksync/undo");
        fs::rename(&store, fixture.at("moved")).unwrap();
        symlink(fixture.outside(), &store).unwrap();
        assert!(create(&fixture).is_err() && UndoRun::list(&fixture.root).is_err());
        fs::remove_file(&store).unwrap();
        fs::create_dir(&store).unwrap();
        if give_away(&store) {
            assert!(create(&fixture).is_err() && UndoRun::find(&fixture.root, None).is_err());
        }
        fixture.assert_canary_untouched();
    }

    #[test]
    fn stored_file_comes_back_only_as_it_was_and_over_what_was_seen() {
        let fixture = Fixture::new();
        let run = create(&fixture).unwrap();
        let file = path("f");
        fs::write(fixture.at("f"), "old").unwrap();
        let seen = fixture.root.stat(&file).unwrap().unwrap();
        let kind = Kind::File { size: 3, hash: Some(Hash::of(b"old")) };
        let wanted = Entry { path: file.clone(), kind, mode: 0o644, mtime: seen.mtime(), attributes: None };
        // It is not stored yet.
        assert!(run.recall(&fixture.root, &wanted, None).is_err());
        fixture
            .root
            .back_up(&file, &seen.identity, run.root(), &UndoRun::name_of(&file).unwrap(), true)
            .unwrap();
        fs::remove_file(fixture.at("f")).unwrap();
        fs::write(fixture.at("f"), "new").unwrap();
        let now = fixture.root.stat(&file).unwrap().unwrap().identity;
        let other = Entry { kind: Kind::File { size: 3, hash: Some(Hash::of(b"other")) }, ..wanted.clone() };
        assert!(run.recall(&fixture.root, &other, Some(&now)).is_err());
        assert!(run.recall(&fixture.root, &wanted, Some(&seen.identity)).is_err());
        assert_eq!(fs::read(fixture.at("f")).unwrap(), b"new");
        assert!(run.recall(&fixture.root, &wanted, Some(&now)).unwrap());
        assert_eq!(fs::read(fixture.at("f")).unwrap(), b"old");
    }
}
