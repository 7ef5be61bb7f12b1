//! Flush requests from other processes: a Unix socket in the state directory, named after the
//! watched tree. The server sends one byte when everything that was saved before the connection has
//! arrived.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use crate::content::hash::Hash;
use crate::sync::error::SyncError;
use crate::sync::target::state_dir;
use crate::sync::watch::flush::Flushes;

/// Hexadecimal digits of a tree's name. Socket paths are limited to about a hundred bytes, and few
/// trees are watched.
const NAME_DIGITS: usize = 16;

/// The answers: everything has arrived; everything but deletions, which wait for consent.
const DONE: u8 = b'!';
const BRAKED: u8 = b'?';

/// The reason why a flush failed.
#[derive(Debug, thiserror::Error)]
pub enum NotFlushed {
    /// No process watches that tree.
    #[error("no ksync --watch keeps {} in sync", .0.display())]
    NotWatched(PathBuf),
    /// The timeout expired.
    #[error("not everything was there in time")]
    Late,
    /// The watching process has ended.
    #[error("the ksync that watched has ended")]
    Ended,
    /// Everything but deletions has arrived, and those wait for consent.
    #[error("deletions wait for consent; everything else is there")]
    Braked,
    /// There is no state directory.
    #[error(transparent)]
    Sync(#[from] SyncError),
}

/// A socket that is served until this is dropped.
pub(super) struct Control {
    path: PathBuf,
    serving: JoinHandle<()>,
}

impl Drop for Control {
    fn drop(&mut self) {
        self.serving.abort();
        let _ = fs::remove_file(&self.path);
    }
}

/// Serves flush requests of this user's other processes for the tree at `local`.
///
/// # Errors
/// The socket cannot be created.
pub(super) fn serve(state: &Path, local: &Path, flushes: &Arc<Flushes>) -> io::Result<Control> {
    let directory = directory(state);
    // No other user may connect.
    DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    let path = directory.join(format!("{}.{}", name(local), std::process::id()));
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    let flushes = Arc::clone(flushes);
    let serving = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let flushes = Arc::clone(&flushes);
            tokio::spawn(async move {
                let answer = if flushes.flush().await { DONE } else { BRAKED };
                let _ = client.write_all(&[answer]).await;
            });
        }
    });
    Ok(Control { path, serving })
}

/// Waits until everything that has been saved so far in the watched tree at `local` is in its
/// copies.
///
/// # Errors
/// [`NotFlushed`].
pub async fn request_flush(local: &Path, timeout: Duration) -> Result<(), NotFlushed> {
    let (directory, name) = (directory(&state_dir()?), name(local));
    let sockets = fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_of_tree = |path: &PathBuf| path.file_stem().is_some_and(|stem| stem.as_bytes() == name.as_bytes());
    let mut clients = Vec::new();
    for path in sockets.filter(is_of_tree) {
        match UnixStream::connect(&path).await {
            Ok(client) => clients.push(client),
            // A killed process left this socket.
            Err(_) => drop(fs::remove_file(&path)),
        }
    }
    if clients.is_empty() {
        return Err(NotFlushed::NotWatched(local.to_owned()));
    }
    let all = async {
        let mut is_braked = false;
        for mut client in clients {
            is_braked |= client.read_u8().await.map_err(|_| NotFlushed::Ended)? == BRAKED;
        }
        if is_braked { Err(NotFlushed::Braked) } else { Ok(()) }
    };
    tokio::time::timeout(timeout, all).await.unwrap_or(Err(NotFlushed::Late))
}

fn directory(state: &Path) -> PathBuf {
    state.join("watch")
}

/// The socket name of a tree, from its real path.
fn name(local: &Path) -> String {
    let real = fs::canonicalize(local).or_else(|_| std::path::absolute(local));
    let real = real.unwrap_or_else(|_| local.to_owned());
    Hash::of(real.as_os_str().as_bytes()).to_string().chars().take(NAME_DIGITS).collect()
}
