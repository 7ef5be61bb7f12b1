//! Staging: a file grows in the state directory, under a name that the next run finds again. When
//! it is complete, it is renamed into place.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;

use rustix::fs::{AtFlags, fchmod, fchown, fsync, futimens, statat};
use rustix::io::Errno;

use crate::content::blocks::{HOLE_BYTES_MIN, Run};
use crate::content::hash::{Piece, is_zero};
use crate::disk::error::{DiskError, During};
use crate::disk::holes::{SparseFile, punch};
use crate::disk::root::stat_of;
use crate::disk::stat::{Identity, mode_bits, times};
use crate::disk::state::{PART, StateDir, in_state, staged_name};
use crate::disk::writable::WritableRoot;
use crate::disk::writeback::WriteBack;
use crate::tree::attributes::Attributes;
use crate::tree::entry::Time;
use crate::tree::path::TreePath;

/// Bytes that one step of a copy through memory reads and writes. Each step starts a thread, which
/// takes 1 % of the step's time.
const COPY_BYTES: u64 = 2 << 20;

/// The metadata of a finished file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits; the root's policy clears those that may not be set.
    pub mode: u16,
    /// Modification time.
    pub mtime: Time,
    /// The metadata that only options copy, if there is any.
    pub attributes: Option<Arc<Attributes>>,
}

/// When a finished file is safe from a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// When the kernel writes it back by itself.
    #[default]
    Eventually,
    /// The data reaches the disk before the file gets its name. [`WritableRoot::settle`] flushes
    /// all names together.
    Immediately,
}

/// One file that is being staged. If it is dropped half-way, it stays for the next run.
#[derive(Debug)]
pub struct Staging {
    state: Arc<StateDir>,
    file: Arc<File>,
    path: TreePath,
    name: String,
    len: u64,
    write_back: Option<Box<WriteBack>>,
}

impl Staging {
    /// The name, in the state directory, of the staged file for `path`.
    #[must_use]
    pub fn name(path: &TreePath) -> String {
        staged_name(path, PART)
    }

    /// Opens the staged file that an earlier run left for `path`, or creates an empty one. Returns
    /// also its length. These bytes are not trusted: the caller reads and hashes them before they
    /// count.
    ///
    /// # Errors
    /// The state directory belongs to another user, or the disk is full or read-only.
    pub fn open(root: &WritableRoot, path: &TreePath) -> Result<(Self, u64), DiskError> {
        let name = root.staged_name(path, PART);
        let (state, (descriptor, len)) =
            root.with_state_for(path, |state| Ok((Arc::clone(state), state.open_part(&name)?)))?;
        let file = Arc::new(File::from(descriptor));
        Ok((Self { state, file, path: path.clone(), name, len, write_back: None }, len))
    }

    /// Opens the staged file that an earlier run left for `path`, if any. Creates nothing.
    ///
    /// # Errors
    /// The state directory belongs to another user.
    pub fn find(root: &WritableRoot, path: &TreePath) -> Result<Option<Self>, DiskError> {
        let Some(state) = root.find_state_for(path)? else { return Ok(None) };
        let name = root.staged_name(path, PART);
        match statat(&state, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).during("look at", &in_state(name.as_bytes())),
            Ok(_) => Self::open(root, path).map(|(staging, _)| Some(staging)),
        }
    }

    /// Starts write-back early, because the file will replace another one.
    #[must_use]
    pub fn replacing(self) -> Self {
        Self { write_back: Some(Box::new(WriteBack::from(self.len))), ..self }
    }

    /// The number of staged bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True if nothing is staged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Hands the staged bytes from `start` on to `visit`.
    ///
    /// # Errors
    /// The bytes cannot be read, or there are fewer than before.
    pub fn read_back(&self, start: u64, visit: &mut dyn FnMut(Piece<'_>)) -> Result<(), DiskError> {
        self.content().visit(start..self.len, visit).during("read back", &self.staged_path())
    }

    /// The staged bytes.
    #[must_use]
    pub fn content(&self) -> SparseFile<&File> {
        SparseFile::of(&self.file, self.len)
    }

    /// Fills `buffer` with the staged bytes from `offset` on.
    ///
    /// # Errors
    /// The bytes cannot be read, or there are fewer than `buffer` holds.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// Keeps only the first `len` bytes; a longer `len` keeps all of them.
    ///
    /// # Errors
    /// The file cannot be truncated.
    pub fn keep(&mut self, len: u64) -> Result<(), DiskError> {
        if len < self.len {
            self.file.set_len(len).during("cut", &self.staged_path())?;
            self.len = len;
            self.write_back = self.write_back.take().map(|_| Box::new(WriteBack::from(len)));
        }
        Ok(())
    }

    /// Appends `bytes`. Long runs of zeros take no space.
    ///
    /// # Errors
    /// The write fails, most often with [`DiskError::is_no_space`].
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        let end = self.len + bytes.len() as u64;
        write_at_end(&self.file, bytes, self.len).during("write", self.path.as_bytes())?;
        self.len = end;
        self.reached(end);
        Ok(())
    }

    /// Appends `count` zeros, which take no space.
    ///
    /// # Errors
    /// The filesystem allows no file of that length.
    pub fn append_zeros(&mut self, count: u64) -> Result<(), DiskError> {
        let end = self.len.checked_add(count).ok_or(Errno::FBIG);
        let end = end.during("write", self.path.as_bytes())?;
        self.file.set_len(end).during("write", self.path.as_bytes())?;
        self.len = end;
        self.reached(end);
        Ok(())
    }

    /// Appends `len` bytes of `source`, for example of a basis, from `offset` on. On Linux the
    /// bytes do not pass through this process, and a filesystem with shared extents shares them.
    /// Holes stay holes.
    ///
    /// # Errors
    /// The source is shorter than that, or as [`Staging::append`].
    pub fn append_from(&mut self, source: &File, offset: u64, len: u64) -> Result<(), DiskError> {
        for_each_run(source, offset, len, &mut |offset, Run { length, is_hole }| {
            if is_hole {
                return self.append_zeros(length);
            }
            self.len +=
                copy(source, offset, &self.file, self.len, length).during("copy", self.path.as_bytes())?;
            self.reached(self.len);
            Ok(())
        })
    }

    /// As [`Staging::append_from`], and hands the written bytes to `visit`, in order.
    ///
    /// If the filesystem shares extents, the copy is read back. Otherwise the bytes pass through
    /// memory, and the next piece is read while one is written. On ext4 and tmpfs this takes two
    /// thirds of the time of the kernel's copy.
    ///
    /// # Errors
    /// As [`Staging::append_from`] and [`Staging::read_back`].
    pub fn append_from_and_visit(
        &mut self,
        source: &File,
        offset: u64,
        len: u64,
        visit: &mut (dyn FnMut(Piece<'_>) + Send),
    ) -> Result<(), DiskError> {
        for_each_run(source, offset, len, &mut |offset, Run { length, is_hole }| {
            if is_hole {
                visit(Piece::Zeros(length));
                return self.append_zeros(length);
            }
            let (start, end) = (self.len, self.len + length);
            if shares_extents(&self.file) {
                copy(source, offset, &self.file, start, length).during("copy", self.path.as_bytes())?;
                let visited = self.content().visit(start..end, visit);
                visited.during("read back", &self.staged_path())?;
            } else {
                self.copy_through_memory(source, offset, start..end, visit)
                    .during("copy", self.path.as_bytes())?;
            }
            self.len = end;
            Ok(())
        })
    }

    /// True if a copy from a file beside it shares extents and copies no bytes.
    #[must_use]
    pub fn shares_extents(&self) -> bool {
        shares_extents(&self.file)
    }

    /// Starts over with `len` zeros, which take no space.
    ///
    /// # Errors
    /// The file cannot be truncated or extended to that length.
    pub fn begin_with_zeros(&mut self, len: u64) -> Result<(), DiskError> {
        self.keep(0)?;
        self.file.set_len(len).during("write", self.path.as_bytes())?;
        self.len = len;
        Ok(())
    }

    /// Writes `bytes` over a range that still holds zeros. Long runs of zeros still take no space.
    ///
    /// # Errors
    /// The disk is full, or the file is shorter than that.
    pub fn fill(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if !is_hole(bytes) {
            self.file.write_all_at(bytes, offset)?;
        }
        self.reached(offset + bytes.len() as u64);
        Ok(())
    }

    /// Overwrites `range` with zeros: with a hole where the filesystem supports holes.
    ///
    /// # Errors
    /// As [`Staging::append`].
    pub fn overwrite_with_zeros(&self, range: Range<u64>) -> Result<(), DiskError> {
        punch(&self.file, range).during("write", self.path.as_bytes())
    }

    /// Overwrites the staged bytes from `offset` on with `bytes`.
    ///
    /// # Errors
    /// As [`Staging::append`].
    pub fn overwrite(&self, bytes: &[u8], offset: u64) -> Result<(), DiskError> {
        self.file.write_all_at(bytes, offset).during("write", self.path.as_bytes())
    }

    /// [Completes](Staging::complete) and [installs](Complete::install) the file.
    #[cfg(test)]
    pub(crate) fn finish(
        self,
        root: &WritableRoot,
        metadata: &Metadata,
        seen: Option<&Identity>,
        durability: Durability,
    ) -> Result<(), DiskError> {
        self.complete(root, metadata, durability)?.install(root, seen).map(drop)
    }

    /// Completes the file: content and metadata are final, only the name is missing.
    ///
    /// # Errors
    /// The disk or the filesystem did not take all bytes. The write is not tried again.
    pub fn complete(
        self,
        root: &WritableRoot,
        metadata: &Metadata,
        durability: Durability,
    ) -> Result<Complete, DiskError> {
        self.state.close_errors().of(&self.file).during("write", self.path.as_bytes())?;
        let refused = set_metadata(&self.file, root, &self.path, metadata)?;
        let identity = stat_of(&*self.file, &self.path)?.identity;
        root.mark(&self.path, &identity)?;
        if durability == Durability::Immediately
            && let Err(error) = full_sync(&self.file)
        {
            // The staged file may look complete and not be on the disk.
            root.mark_lost();
            let path = self.path.clone();
            let _ = self.discard();
            return Err(error).during("write to the disk", path.as_bytes());
        }
        Ok(Complete { staging: self, identity, refused })
    }

    /// Removes the staged file.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn discard(self) -> Result<(), DiskError> {
        self.state.remove(self.name.as_bytes())
    }

    /// Copies to `place`, which starts at the end of the staged bytes, and hands every byte to
    /// `visit`.
    fn copy_through_memory(
        &self,
        source: &File,
        offset: u64,
        place: Range<u64>,
        visit: &mut (dyn FnMut(Piece<'_>) + Send),
    ) -> io::Result<()> {
        let mut read = |at: u64, buffer: &mut Vec<u8>| {
            // No overflow: at most `COPY_BYTES`.
            let now = COPY_BYTES.min(place.end - at) as usize;
            buffer.resize(now, 0);
            source.read_exact_at(buffer, offset + (at - place.start))?;
            visit(Piece::Bytes(buffer));
            io::Result::Ok(())
        };
        let (mut next, mut now) = (Vec::new(), Vec::new());
        let mut at = place.start;
        if at < place.end {
            read(at, &mut now)?;
        }
        while at < place.end {
            let after = at + now.len() as u64;
            if after < place.end {
                let (written, read) = thread::scope(|scope| {
                    let reader = scope.spawn(|| read(after, &mut next));
                    let written = write_at_end(&self.file, &now, at);
                    (written, reader.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked"))))
                });
                written.and(read)?;
            } else {
                write_at_end(&self.file, &now, at)?;
            }
            self.reached(after);
            std::mem::swap(&mut now, &mut next);
            at = after;
        }
        Ok(())
    }

    /// Tells the write-back that all bytes up to `end`, or nearly all, have been written.
    fn reached(&self, end: u64) {
        if let Some(write_back) = &self.write_back {
            write_back.reached(&self.file, end);
        }
    }

    /// The staged file's path below the root, for errors.
    pub(crate) fn staged_path(&self) -> Vec<u8> {
        in_state(self.name.as_bytes())
    }
}

/// A file that is in place with its content.
#[derive(Debug, Default)]
#[must_use]
pub struct Installed {
    /// The first metadata that the filesystem refused to set: a mode, a time or an owner.
    pub refused: Option<Box<DiskError>>,
}

/// A staged file that lacks nothing but its name.
#[derive(Debug)]
pub struct Complete {
    staging: Staging,
    identity: Identity,
    /// The metadata that the filesystem refused to set.
    refused: Option<Box<DiskError>>,
}

impl Complete {
    /// Renames the file into place, if its path still holds the entry that was `seen` there
    /// (`None`: nothing). After a conflict the staged bytes stay.
    ///
    /// # Errors
    /// [`DiskError::is_conflict`], or the path cannot be written to. Nothing has changed then.
    pub fn install(self, root: &WritableRoot, seen: Option<&Identity>) -> Result<Installed, DiskError> {
        let Staging { state, name, path, .. } = &self.staging;
        state.install(name, Some(self.identity), root, path, seen)?;
        Ok(Installed { refused: self.refused })
    }

    /// The file, and the number of its bytes.
    #[must_use]
    pub fn content(&self) -> (&File, u64) {
        (&self.staging.file, self.staging.len)
    }

    /// Removes the staged file.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn discard(self) -> Result<(), DiskError> {
        self.staging.discard()
    }
}

/// Flushes a file's content to the disk, not only to the disk's cache.
#[cfg(target_vendor = "apple")]
fn full_sync(file: &File) -> rustix::io::Result<()> {
    rustix::fs::fcntl_fullfsync(file)
}

/// Flushes a file's content to the disk.
#[cfg(not(target_vendor = "apple"))]
fn full_sync(file: &File) -> rustix::io::Result<()> {
    fsync(file)
}

/// Sets the final metadata of a file that is not in place yet. Returns the first part that the
/// filesystem refuses, as a destination without modes does. Content must arrive there as well.
pub(crate) fn set_metadata(
    file: &File,
    root: &WritableRoot,
    path: &TreePath,
    metadata: &Metadata,
) -> Result<Option<Box<DiskError>>, DiskError> {
    let mut refused = None;
    let mut set =
        |result: rustix::io::Result<()>, verb: &'static str| match result.during(verb, path.as_bytes()) {
            Err(error) if error.is_refused() => {
                refused.get_or_insert_with(|| Box::new(error));
                Ok(())
            }
            result => result,
        };
    let attributes = metadata.attributes.as_deref();
    if let Some((user, group)) = root.owner_for(attributes) {
        set(fchown(file, user, group), "set the owner of")?;
    }
    let xattrs = root.set_xattrs(file, path.as_bytes(), attributes);
    let mode = root.policy().mode_of(file, metadata.mode);
    set(mode.and_then(|mode| fchmod(file, mode_bits(mode))), "set the mode of")?;
    set(futimens(file, &times(metadata.mtime)), "set the time of")?;
    match xattrs {
        Err(error) if error.is_refused() => Ok(refused.or_else(|| Some(Box::new(error)))),
        result => result.map(|()| refused),
    }
}

/// True if a copy within this file's filesystem shares extents and copies no bytes.
#[cfg(target_os = "linux")]
pub(crate) fn shares_extents(file: impl AsFd) -> bool {
    use crate::disk::magic::{BCACHEFS, BTRFS, NFS, SMB, XFS, magic_of};

    // The servers of NFS and SMB copy.
    matches!(magic_of(file), Some(BTRFS | XFS | BCACHEFS | NFS | SMB))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn shares_extents(_file: impl AsFd) -> bool {
    false
}

/// Calls `visit` for each run in the `len` bytes from `offset` on, with the run's offset.
fn for_each_run(
    source: &File,
    offset: u64,
    len: u64,
    visit: &mut dyn FnMut(u64, Run) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    let holes = SparseFile::of(source, len);
    let mut left = offset..offset.saturating_add(len);
    while !left.is_empty() {
        let run = holes.first_run(&left);
        visit(left.start, run)?;
        left.start += run.length;
    }
    Ok(())
}

fn is_hole(bytes: &[u8]) -> bool {
    bytes.len() as u64 >= HOLE_BYTES_MIN && is_zero(bytes)
}

/// Writes at `end`, the end of the file. Long runs of zeros become holes.
pub(crate) fn write_at_end(file: &File, bytes: &[u8], end: u64) -> io::Result<()> {
    if is_hole(bytes) { file.set_len(end + bytes.len() as u64) } else { file.write_all_at(bytes, end) }
}

/// Writes a whole file. Long runs of zeros become holes, but the last block is always written. This
/// way the length reaches the disk together with the written bytes, and not before.
#[cfg(target_os = "linux")]
pub(crate) fn write_all(file: &File, bytes: &[u8]) -> io::Result<()> {
    const BLOCK_BYTES: usize = 4096;
    if !is_hole(bytes) {
        return file.write_all_at(bytes, 0);
    }
    let (hole, last) = bytes.split_at(bytes.len().saturating_sub(1) / BLOCK_BYTES * BLOCK_BYTES);
    file.write_all_at(last, hole.len() as u64)
}

/// Copies `len` bytes, by the kernel as far as it can. Returns the number of copied bytes: always
/// `len`.
fn copy(source: &File, offset: u64, target: &File, at: u64, len: u64) -> io::Result<u64> {
    let by_kernel = copy_in_kernel(source, offset, target, at, len);
    let mut to = at + by_kernel;
    let mut written = Ok(());
    SparseFile::of(source, len).visit(offset + by_kernel..offset + len, &mut |piece| {
        if written.is_ok() {
            (written, to) = match piece {
                Piece::Bytes(bytes) => (write_at_end(target, bytes, to), to + bytes.len() as u64),
                Piece::Zeros(count) => (target.set_len(to + count), to + count),
            };
        }
    })?;
    written.map(|()| len)
}

/// The number of bytes that the kernel copied: all, or fewer where it cannot copy them.
#[cfg(target_os = "linux")]
fn copy_in_kernel(source: &File, offset: u64, target: &File, at: u64, len: u64) -> u64 {
    let (mut from, mut to) = (offset, at);
    while from - offset < len {
        let want = usize::try_from(len - (from - offset)).unwrap_or(usize::MAX >> 1);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), want) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    from - offset
}

#[cfg(not(target_os = "linux"))]
fn copy_in_kernel(_source: &File, _offset: u64, _target: &File, _at: u64, _len: u64) -> u64 {
    0
}

#[cfg(test)]
mod tests;
