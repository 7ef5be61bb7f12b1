//! A key behind `-i`, where ssh and scp take it.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ksync::tree::path::escape;

use crate::args::SyncArgs;
use crate::report::CliError;

/// Refuses a key behind `-i`, where ssh and scp take it. With two endpoints it may be meant.
pub(crate) fn refuse(args: &SyncArgs) -> Result<(), CliError> {
    const SOURCES_AND_DEST_MIN: usize = 3;
    let Some(file) = args.behind_i.as_ref().filter(|_| args.endpoints.len() >= SOURCES_AND_DEST_MIN) else {
        return Ok(());
    };
    let shown = escape(file.as_bytes());
    let told = match is_key(Path::new(file)) {
        Some(true) => format!("-i lists the changes, and {shown} is a key"),
        None if looks_like_key(Path::new(file)) => {
            format!("-i lists the changes, and {shown} does not exist")
        }
        _ => return Ok(()),
    };
    Err(CliError::usage(told, format!("A key is given by --identity: --identity {shown}.")))
}

/// Reports if a file holds a private or public key; `None` if it does not exist.
fn is_key(path: &Path) -> Option<bool> {
    const STARTS: [&str; 6] =
        ["-----BEGIN ", "PuTTY-User-Key-File", "ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"];
    if !path.metadata().ok()?.is_file() {
        return Some(false);
    }
    let mut start = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(64).read_to_end(&mut start));
    Some(read.is_ok() && STARTS.iter().any(|known| start.starts_with(known.as_bytes())))
}

/// True for the usual names of keys.
fn looks_like_key(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_in_ssh = path.parent().is_some_and(|parent| parent.ends_with(".ssh"));
    is_in_ssh || name.starts_with("id_") || name.ends_with(".pem") || name.ends_with(".key")
}
