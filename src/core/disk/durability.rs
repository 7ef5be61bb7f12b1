//! Durability of a run's files: marks them before they get their names, and flushes them. The
//! markers are those of [`unconfirmed`](super::unconfirmed).

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::fs::fsync;

use crate::disk::error::{DiskError, During};
use crate::disk::marker::{Marker, Stamp};
use crate::disk::mount::{Nature, is_quiet, mount_of, nature, sync};
use crate::disk::stat::Identity;
use crate::disk::unconfirmed::{Seen, VERB, fsync_if_able, is_unable, now, read, remove, shown, write};
use crate::disk::writable::WritableRoot;
use crate::tree::path::TreePath;

/// Timeout at the end of a run for a `syncfs` that should be over by then.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(50);

/// The origin of a file's present state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This run puts the file in place, or changes it.
    Now,
    /// The file existed, and this run verified it.
    Before,
}

impl WritableRoot {
    /// Starts a run that writes here: to the tree if `recursive`, otherwise to a single file. If
    /// the run reads the `whole` tree and finds a marker, a thread flushes the filesystem
    /// meanwhile, unless that would take long.
    pub fn begin_writing(&self, recursive: bool, whole: bool) {
        let mut state = self.unconfirmed.state();
        (state.recursive, state.confirms) = (recursive, recursive && whole);
        if state.confirms && read(self.descriptor()).is_some() && is_quiet() {
            state.confirm(self, None, self.dev());
        }
    }

    /// Takes the result of a scan, before anything is written.
    pub(crate) fn seen_markers(&self, seen: Seen) {
        let mut state = self.unconfirmed.state();
        state.seen = seen;
        for (path, dev) in state.seen.places.clone() {
            if state.confirms && dev != self.dev() && is_quiet() {
                state.confirm(self, path.as_ref(), dev);
            }
        }
    }

    /// True unless the filesystem loses everything with the power, as tmpfs does. Such a filesystem
    /// has no marker.
    #[must_use]
    pub fn outlives_power(&self) -> bool {
        nature(self.descriptor()) != Nature::Volatile
    }

    /// Marks the root before the first file is put in place.
    ///
    /// # Errors
    /// The marker cannot be written to the disk.
    pub fn expect_files(&self) -> Result<(), DiskError> {
        let mut state = self.unconfirmed.state();
        state.mark(self, None, self.dev(), now()).map(drop)
    }

    /// Marks a new file with the identity `is`, which is about to get its name. When this returns,
    /// the marker that covers the file is durable.
    ///
    /// # Errors
    /// The marker cannot be written to the disk.
    pub(crate) fn mark(&self, path: &TreePath, is: &Identity) -> Result<(), DiskError> {
        self.mark_from(path, is.dev, Stamp::of(is), Origin::Now)
    }

    /// As [`WritableRoot::mark`], for an open file in the filesystem of the root. Only a filesystem
    /// with a marker, and so not tmpfs, is asked for its ctime.
    ///
    /// # Errors
    /// As there.
    #[cfg(target_os = "linux")]
    pub(crate) fn mark_open(&self, path: &TreePath, file: &std::fs::File) -> Result<(), DiskError> {
        let is_off = self.unconfirmed.state().keepers.get(&self.dev()).is_some_and(|keeper| keeper.is_off);
        if is_off { Ok(()) } else { self.mark(path, &crate::disk::root::stat_of(file, path)?.identity) }
    }

    /// Marks a file that is about to get new metadata, and with them a new ctime.
    ///
    /// # Errors
    /// As [`WritableRoot::mark`].
    pub(crate) fn mark_change(&self, path: &TreePath, dev: u64, made: Origin) -> Result<(), DiskError> {
        self.mark_from(path, dev, now(), made)
    }

    fn mark_from(&self, path: &TreePath, dev: u64, ctime: Stamp, made: Origin) -> Result<(), DiskError> {
        let mut state = self.unconfirmed.state();
        let keeper = state.mark(self, Some(path), dev, ctime)?;
        if made == Origin::Now && keeper.first.is_none_or(|first| first > ctime) {
            keeper.first = Some(ctime);
        }
        Ok(())
    }

    /// Records that the disk did not take something that this run wrote. The next run writes every
    /// file again that may not be durable, since the page cache may show bytes that the disk lacks.
    pub(crate) fn mark_lost(&self) {
        let state = &mut *self.unconfirmed.state();
        for keeper in state.keepers.values_mut().filter(|keeper| !keeper.is_off) {
            keeper.marker = keeper.marker.failing(keeper.mount);
            if let Ok(directory) = self.open_directory(keeper.path.as_ref()) {
                // The disk may not take this, either.
                let _ = write(&directory, &keeper.marker).and_then(|()| fsync_if_able(&directory));
            }
        }
    }

    /// Flushes all filesystems that this run wrote to.
    ///
    /// # Errors
    /// The disk did not take something; it is marked as lost (see `mark_lost`).
    pub fn sync_written(&self) -> Result<(), DiskError> {
        let places: Vec<_> = {
            let state = self.unconfirmed.state();
            let keepers = state.keepers.values().filter(|keeper| keeper.nature != Nature::Volatile);
            keepers.map(|keeper| keeper.path.clone()).collect()
        };
        for path in places {
            let directory = self.open_directory(path.as_ref())?;
            match sync(&directory) {
                Err(error) if !is_unable(error) => {
                    self.mark_lost();
                    return Err(error).during(VERB, self.path().as_os_str().as_bytes());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Ends the run. `verified` means that no file of the tree is doubted any more. `durable` means
    /// that the whole tree must be on the disk when this returns.
    ///
    /// # Errors
    /// The disk did not take something, of this run or an earlier one.
    pub fn settle(&self, verified: bool, durable: bool) -> Result<(), DiskError> {
        let mut state = self.unconfirmed.state();
        let state = &mut *state;
        let mut result = Ok(());
        let keepers = state.keepers.iter().map(|(dev, keeper)| (keeper.path.clone(), *dev));
        let mut places: Vec<_> = keepers.chain(state.seen.places.iter().cloned()).collect();
        if durable {
            // Also where only names changed: no marker covers a deletion or a new directory.
            for (path, dev) in self.filesystems() {
                if !places.iter().any(|(_, known)| *known == dev) {
                    places.push((path, dev));
                }
            }
        }
        places.sort();
        places.dedup();
        let mut synced: HashMap<u64, rustix::io::Result<bool>> = HashMap::new();
        for (path, dev) in places {
            let Ok(directory) = self.open_directory(path.as_ref()) else { continue };
            let outcome = *synced.entry(dev).or_insert_with(|| match state.syncs.remove(&dev) {
                _ if durable => sync(&directory).map(|()| true),
                Some(sync) => match sync.recv_timeout(CONFIRM_TIMEOUT) {
                    Ok(outcome) => outcome.map(|()| true),
                    Err(_) => Ok(false),
                },
                None => Ok(false),
            });
            let mount = mount_of(&directory);
            let keeper = state.keepers.get(&dev).filter(|keeper| keeper.path == path);
            let before = read(&directory);
            let mut marker = before.map(|marker| marker.under(mount)).unwrap_or_default();
            if verified {
                (marker.stale, marker.failed) = (None, None);
            }
            match outcome {
                // Another run may work below the root and keep its own marker.
                Ok(true) if path.is_some() && keeper.is_none() => {}
                Ok(true) => {
                    // Without `durable`, the sync began before this run put its files in place.
                    let first = keeper.and_then(|keeper| keeper.first).filter(|_| !durable);
                    let forgetful = keeper.is_some_and(|keeper| keeper.nature == Nature::Forgetful);
                    marker.own = marker.own.filter(|_| first.is_some()).map(|mut own| {
                        own.since =
                            first.filter(|_| !forgetful).map_or(own.since, |first| own.since.max(first));
                        own
                    });
                }
                // A run beside this one may have removed the marker while this one put a file in
                // place.
                Ok(false) if !state.recursive => {
                    let missing = keeper.filter(|keeper| {
                        let covers =
                            |marker: Marker| marker.own.is_some_and(|own| Some(own.since) <= keeper.first);
                        keeper.first.is_some() && !keeper.is_off && !before.is_some_and(covers)
                    });
                    if let Some(keeper) = missing {
                        let marked =
                            write(&directory, &keeper.marker).and_then(|()| fsync_if_able(&directory));
                        result = result.and(marked.during(VERB, &shown(self, keeper)));
                    }
                    continue;
                }
                Ok(false) => {}
                Err(error) if is_unable(error) => {}
                Err(error) => {
                    marker = marker.failing(mount);
                    let shown = path.as_ref().map_or(self.path().as_os_str().as_bytes(), TreePath::as_bytes);
                    result = result.and(Err(error).during(VERB, shown));
                }
            }
            if before == Some(marker) || (before.is_none() && marker.is_empty()) {
                continue;
            }
            // If a marker stays unchanged, the next run only doubts more than it needs to.
            if marker.is_empty() {
                remove(&directory);
            } else if write(&directory, &marker).is_ok() && result.is_err() {
                let _ = fsync(&directory);
            }
        }
        result
    }
}
