//! The sockets of keepers: in a directory that belongs to this user alone.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::geteuid;
use tokio::net::{UnixListener, UnixStream};

use crate::sync::target::state_dir;

/// Longest path of a socket, in bytes, with the NUL behind it: `sun_path`.
const PATH_BYTES_MAX: usize = if cfg!(target_os = "linux") { 108 } else { 104 };

/// Suffixes of a keeper's socket and of its lock.
const SOCKET: &str = "sock";
const LOCK: &str = "lock";

/// The directories in which sockets may be, the preferred one first: the runtime directory, which
/// the system removes at logout, or else one in the state directory.
fn directories() -> impl Iterator<Item = PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let state = state_dir().ok().map(|state| state.join("keep"));
    runtime.map(|runtime| runtime.join("ksync")).into_iter().chain(state)
}

/// True if a directory is one, belongs to this user, and is closed to others. A link is none.
fn is_private(directory: &Path) -> bool {
    fs::symlink_metadata(directory)
        .is_ok_and(|data| data.is_dir() && data.uid() == geteuid().as_raw() && data.mode() & 0o077 == 0)
}

/// The place of a keeper's socket.
#[derive(Debug, Clone)]
pub(super) struct Place {
    directory: PathBuf,
    name: String,
}

impl Place {
    /// The place for a keeper of this name: the first directory that is private, or can be made so,
    /// and whose path is short enough.
    pub(super) fn of(name: &str) -> Option<Self> {
        let place = |directory| Self { directory, name: name.to_owned() };
        directories().map(place).find(|place| place.fits() && place.make_directory().is_ok())
    }

    /// The places of all keepers.
    pub(super) fn all() -> Vec<Self> {
        let mut places = Vec::new();
        for directory in directories().filter(|directory| is_private(directory)) {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let path = entry.path();
                let name = path.file_stem().and_then(|name| name.to_str()).map(str::to_owned);
                // One that starts has a lock, and no socket yet.
                let is_keepers = path.extension().is_some_and(|suffix| suffix == SOCKET || suffix == LOCK);
                let is_new = |name: &String| {
                    !places.iter().any(|place: &Self| place.directory == directory && place.name == *name)
                };
                if is_keepers && let Some(name) = name.filter(is_new) {
                    places.push(Self { directory: directory.clone(), name });
                }
            }
        }
        places
    }

    /// The name of the keeper.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn fits(&self) -> bool {
        self.socket().as_os_str().as_bytes().len() < PATH_BYTES_MAX
    }

    fn make_directory(&self) -> io::Result<()> {
        if !self.directory.exists() {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        }
        if is_private(&self.directory) { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }

    fn socket(&self) -> PathBuf {
        self.directory.join(format!("{}.{SOCKET}", self.name))
    }

    /// True if a keeper listens here, or has left its socket.
    pub(super) fn has_socket(&self) -> bool {
        fs::symlink_metadata(self.socket()).is_ok()
    }

    fn lock_file(&self) -> PathBuf {
        self.directory.join(format!("{}.{LOCK}", self.name))
    }

    /// True if a keeper of this name runs or starts.
    pub(super) fn is_taken(&self) -> bool {
        let Ok(file) = File::open(self.lock_file()) else { return false };
        matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock))
    }

    /// Takes the lock of this name; `None` if another keeper has it.
    pub(super) fn lock(&self) -> io::Result<Option<Lock>> {
        let path = self.lock_file();
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => return Ok(None),
                Err(fs::TryLockError::Error(error)) => return Err(error),
            }
            // A keeper that ends removes the file. Its lock holds for that file only.
            if self.has_lock_file(&file) {
                return Ok(Some(Lock { place: self.clone(), file }));
            }
        }
    }

    /// True if this is the lock file of this name.
    fn has_lock_file(&self, file: &File) -> bool {
        let files = fs::symlink_metadata(self.lock_file()).ok().zip(file.metadata().ok());
        files.is_some_and(|(now, own)| (now.dev(), now.ino()) == (own.dev(), own.ino()))
    }

    /// Connects to the keeper, if its process belongs to this user.
    pub(super) async fn connect(&self) -> Option<UnixStream> {
        // The directory may have changed hands since.
        if !is_private(&self.directory) {
            return None;
        }
        let stream = UnixStream::connect(self.socket()).await.ok()?;
        is_ours(&stream).then_some(stream)
    }
}

/// True if the process at the other end belongs to this user.
pub(super) fn is_ours(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == geteuid().as_raw())
}

/// The lock of a name. Dropping it removes the socket.
pub(super) struct Lock {
    place: Place,
    file: File,
}

impl Lock {
    /// The lock that another process took and passed to this one as its stdout. `None` if it did
    /// not.
    pub(super) fn inherited(place: &Place) -> Option<Self> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned().ok()?);
        let is_lock = place.has_lock_file(&file) && file.try_lock().is_ok();
        is_lock.then(|| Self { place: place.clone(), file })
    }

    /// The stdout for a process that takes over the lock. All copies of the descriptor hold it.
    pub(super) fn stdout(&self) -> io::Result<Stdio> {
        Ok(self.file.try_clone()?.into())
    }

    /// Leaves the lock and its file to the process that has inherited it.
    pub(super) fn hand_over(self) {
        std::mem::forget(self);
    }

    /// Listens. A socket that a killed keeper left is removed first.
    pub(super) fn listen(&self) -> io::Result<Listening> {
        let path = self.place.socket();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        let data = fs::symlink_metadata(&path)?;
        Ok(Listening { listener, path, socket: (data.dev(), data.ino()) })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The socket goes first: whoever takes the lock next makes another one.
        let _ = fs::remove_file(self.place.socket());
        let _ = fs::remove_file(self.place.lock_file());
    }
}

/// A socket that a keeper listens on.
pub(super) struct Listening {
    pub(super) listener: UnixListener,
    path: PathBuf,
    socket: (u64, u64),
}

impl Listening {
    /// True as long as the socket is where it was made. It vanishes at logout.
    pub(super) fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|data| (data.dev(), data.ino()) == self.socket)
    }
}
