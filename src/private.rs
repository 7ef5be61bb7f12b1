//! Small files that only we may read. But for one that grows they are written as a whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// The mode of such a file.
const MODE: u32 = 0o600;

/// The mode of a directory that has such files.
const DIRECTORY_MODE: u32 = 0o700;

/// A file's text, or as much of it as such a file can have.
///
/// # Errors
/// It cannot be read, or is no text.
pub(crate) fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(file)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a file, whatever is there; its directory is made where it is missing.
///
/// # Errors
/// It cannot be written.
pub(crate) fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    aside(file, content, |new| fs::rename(new, file))
}

/// Writes a file that is not there yet.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] where somebody was faster; else it cannot be written.
pub(crate) fn make(file: &Path, content: &[u8]) -> io::Result<()> {
    aside(file, content, |new| fs::hard_link(new, file))
}

/// Opens a file for reading it and for writing behind what is there; it is made where it is missing.
///
/// # Errors
/// It cannot be opened.
pub(crate) fn grow(file: &Path) -> io::Result<File> {
    make_parent(file)?;
    OpenOptions::new().read(true).append(true).create(true).mode(MODE).open(file)
}

/// Writes under another name, and puts that into its place.
fn aside(file: &Path, content: &[u8], place: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    make_parent(file)?;
    let new = file.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&new);
    let mut made = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&new)?;
    let placed = made.write_all(content).and_then(|()| place(&new));
    let _ = fs::remove_file(&new);
    placed
}

fn make_parent(file: &Path) -> io::Result<()> {
    match file.parent() {
        Some(directory) => DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory),
        None => Ok(()),
    }
}
