//! Small files that only we may read, written as a whole or not at all.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A file's text, or as much of it as such a file can have.
///
/// # Errors
/// It cannot be read, or is no text.
pub(super) fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(file)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a file, whatever is there; its directory is made where it is missing.
///
/// # Errors
/// It cannot be written.
pub(super) fn replace(file: &Path, text: &str) -> io::Result<()> {
    aside(file, text, |new| fs::rename(new, file))
}

/// Writes a file that is not there yet.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] where somebody was faster; else it cannot be written.
pub(super) fn make(file: &Path, text: &str) -> io::Result<()> {
    aside(file, text, |new| fs::hard_link(new, file))
}

/// Writes under another name, and puts that into its place.
fn aside(file: &Path, text: &str, place: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    if let Some(directory) = file.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let new = file.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&new);
    let mut made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let placed = made.write_all(text.as_bytes()).and_then(|()| place(&new));
    let _ = fs::remove_file(&new);
    placed
}
