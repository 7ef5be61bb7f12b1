//! Writing aside: a file grows in the state directory, under a name that the next run finds again, and is
//! renamed into place when it is complete.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, RenameFlags, Uid, fchmod, fchown, fsync, futimens, openat, renameat,
    renameat_with, symlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::disk::error::{DiskError, During, Fault};
use crate::disk::root::{Root, check_unchanged, stat_of};
use crate::disk::stat::{FileKind, Identity, Stat, times};
use crate::disk::state::{LINK, PART, StateDir, in_state, staged_name};
use crate::tree::entry::Time;
use crate::tree::path::TreePath;

/// How much is read back at a time.
const READ_BYTES: usize = 128 * 1024;

/// Runs of zeros from this length on become holes. Shorter ones are not worth a piece of the file's map.
const HOLE_BYTES_MIN: usize = 32 * 1024;

/// What a finished file is given besides its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits; the root's policy takes away those that may not be set.
    pub mode: u16,
    /// Modification time.
    pub mtime: Time,
    /// User and group, where they are to be other than ours.
    pub owner: Option<(u32, u32)>,
}

/// When a finished file is safe from a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// When the system gets round to it.
    #[default]
    Eventually,
    /// Before it is reported as finished: first its data, then its name.
    Immediately,
}

/// One file that is being written aside. Dropped half-way, it stays for the next run.
#[derive(Debug)]
pub struct Staging {
    state: StateDir,
    file: File,
    path: TreePath,
    name: String,
    len: u64,
}

impl Staging {
    /// The name, in the state directory, of what is staged for `path`.
    #[must_use]
    pub fn name(path: &TreePath) -> String {
        staged_name(path, PART)
    }

    /// Continues what an earlier run staged for `path`, or begins. Answers also how many bytes are there:
    /// they may be anything, so they are to be read back and hashed before they count.
    ///
    /// # Errors
    /// The state directory is not ours, or the disk is full or read-only.
    pub fn open(root: &Root, path: &TreePath) -> Result<(Self, u64), DiskError> {
        let state = StateDir::create(root)?;
        let name = Self::name(path);
        let (descriptor, len) = open_part(&state, &name)?;
        Ok((Self { state, file: descriptor.into(), path: path.clone(), name, len }, len))
    }

    /// What an earlier run staged for `path`, if anything; nothing is made.
    ///
    /// # Errors
    /// The state directory is not ours.
    pub fn find(root: &Root, path: &TreePath) -> Result<Option<Self>, DiskError> {
        let Some(state) = StateDir::open(root)? else { return Ok(None) };
        let name = Self::name(path);
        match rustix::fs::statat(&state, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).during("look at", &in_state(name.as_bytes())),
            Ok(_) => Self::open(root, path).map(|(staging, _)| Some(staging)),
        }
    }

    /// How many bytes are staged.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is staged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Hands all staged bytes to `visit`, those at `from` first, in pieces of at most 128 KiB.
    ///
    /// # Errors
    /// They cannot be read, or are fewer than they were.
    pub fn read_back(&self, from: u64, mut visit: impl FnMut(&[u8])) -> Result<(), DiskError> {
        let mut buffer = vec![0; READ_BYTES];
        let mut at = from;
        while at < self.len {
            let want = usize::try_from(self.len - at).unwrap_or(READ_BYTES).min(READ_BYTES);
            let piece = buffer.get_mut(..want).unwrap_or_default();
            self.file.read_exact_at(piece, at).during("read back", &self.staged_path())?;
            visit(piece);
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Keeps only the first `len` bytes; more than there are is all of them.
    ///
    /// # Errors
    /// The file cannot be cut.
    pub fn keep(&mut self, len: u64) -> Result<(), DiskError> {
        if len < self.len {
            self.file.set_len(len).during("cut", &self.staged_path())?;
            self.len = len;
        }
        Ok(())
    }

    /// Adds `bytes` at the end. Long runs of zeros take no space.
    ///
    /// # Errors
    /// Above all [`DiskError::is_no_space`].
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        let end = self.len + bytes.len() as u64;
        if bytes.len() >= HOLE_BYTES_MIN && bytes.iter().all(|&byte| byte == 0) {
            self.file.set_len(end)
        } else {
            self.file.write_all_at(bytes, self.len)
        }
        .during("write", self.path.as_bytes())?;
        self.len = end;
        Ok(())
    }

    /// Adds `len` bytes of `source`, an old version say, from `offset` on. On Linux they do not pass through
    /// this process, and filesystems that can share them do.
    ///
    /// # Errors
    /// The source is shorter than that, or as [`Staging::append`].
    pub fn append_from(&mut self, source: &File, offset: u64, len: u64) -> Result<(), DiskError> {
        let copied = copy_in_kernel(source, offset, &self.file, self.len, len);
        self.len += copied;
        let mut buffer = vec![0; READ_BYTES];
        let (mut at, end) = (offset + copied, offset + len);
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(READ_BYTES).min(READ_BYTES);
            let piece = buffer.get_mut(..want).unwrap_or_default();
            source.read_exact_at(piece, at).during("read the old version of", self.path.as_bytes())?;
            self.append(piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Puts the file into its place, complete with its metadata, if what is there is still what was `seen`
    /// there (`None`: nothing). Answers what it is now. After a conflict the staged bytes stay.
    ///
    /// # Errors
    /// [`DiskError::is_conflict`], or the place cannot be written to. Nothing has changed then, save that
    /// a failure to make it durable comes after the rename.
    pub fn finish(
        self,
        root: &Root,
        metadata: &Metadata,
        seen: Option<&Identity>,
        durability: Durability,
    ) -> Result<Stat, DiskError> {
        let path = self.path.as_bytes();
        if let Some((user, group)) = metadata.owner {
            fchown(&self.file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))
                .during("set the owner of", path)?;
        }
        let mode = Mode::from_raw_mode(root.policy().mode(metadata.mode).into());
        fchmod(&self.file, mode).during("set the mode of", path)?;
        futimens(&self.file, &times(metadata.mtime)).during("set the time of", path)?;
        if durability == Durability::Immediately {
            fsync(&self.file).during("write to the disk", path)?;
        }
        install(root, &self.state, &self.name, &self.path, seen)?;
        if durability == Durability::Immediately {
            let parent = root.open_directory(self.path.parent().as_ref())?;
            fsync(parent).during("write to the disk", path)?;
        }
        // Renaming changed the change time.
        stat_of(&self.file, &self.path)
    }

    /// Gives up what is staged.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn discard(self) -> Result<(), DiskError> {
        self.state.remove(self.name.as_bytes())
    }

    fn staged_path(&self) -> Vec<u8> {
        in_state(self.name.as_bytes())
    }
}

impl Root {
    /// Makes a symbolic link aside and renames it into place, if what is there is still what was `seen` there
    /// (`None`: nothing).
    ///
    /// # Errors
    /// [`DiskError::is_conflict`], or the place cannot be written to.
    pub fn make_symlink(
        &self,
        path: &TreePath,
        target: &[u8],
        mtime: Time,
        seen: Option<&Identity>,
    ) -> Result<(), DiskError> {
        const VERB: &str = "make the link";
        let state = StateDir::create(self)?;
        let name = staged_name(path, LINK);
        state.remove(name.as_bytes())?;
        symlinkat(target, &state, &*name).during(VERB, path.as_bytes())?;
        utimensat(&state, &*name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW).during(VERB, path.as_bytes())?;
        install(self, &state, &name, path, seen).inspect_err(|_| {
            // A link is cheap to make again, and the first error is the one that matters.
            let _ = state.remove(name.as_bytes());
        })
    }
}

/// Opens what is staged under `name`, if it is a plain file that nobody else can write to or see change,
/// and begins with an empty one otherwise.
fn open_part(state: &StateDir, name: &str) -> Result<(OwnedFd, u64), DiskError> {
    const ATTEMPTS: usize = 3;
    // Without NONBLOCK a planted FIFO would keep us waiting.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let staged_path = in_state(name.as_bytes());
    for _ in 0..ATTEMPTS {
        match openat(state, name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(descriptor) => {
                let stat = rustix::fs::fstat(&descriptor).during("look at", &staged_path)?;
                let own = Stat::of(&stat).filter(|stat| {
                    stat.kind() == FileKind::File && stat.nlink == 1 && stat.uid == geteuid().as_raw()
                });
                if let Some(stat) = own {
                    return Ok((descriptor, stat.size()));
                }
            }
            Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO | Errno::ACCESS | Errno::TXTBSY) => {}
            Err(error) => return Err(error).during("make", &staged_path),
        }
        state.remove(name.as_bytes())?;
    }
    Err(DiskError::new("make", &staged_path, Fault::NotOurs))
}

/// Renames what is staged under `name` to `path`.
fn install(
    root: &Root,
    state: &StateDir,
    name: &str,
    path: &TreePath,
    seen: Option<&Identity>,
) -> Result<(), DiskError> {
    const VERB: &str = "replace";
    let place = root.place(path).during(VERB, path.as_bytes())?;
    if seen.is_none() {
        // The kernel checks and renames in one step, where the filesystem can.
        match renameat_with(state, name, place.as_fd(), place.name, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            Err(Errno::EXIST) => return Err(DiskError::new(VERB, path.as_bytes(), Fault::Conflict)),
            result => return result.during(VERB, path.as_bytes()),
        }
    }
    check_unchanged(&place, path, VERB, seen)?;
    renameat(state, name, place.as_fd(), place.name).during(VERB, path.as_bytes())
}

/// How many bytes the kernel copied by itself: all, or fewer where it cannot.
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
