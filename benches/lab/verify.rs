//! Comparison of two trees, independent of the measured programs: every name, type and byte.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// Bytes read at once.
const PIECE: usize = 256 << 10;

/// First difference between two trees, or `None`. ksync's own directory at a root is ignored.
pub(crate) fn difference(wanted: &Path, actual: &Path) -> Option<String> {
    let (entries, others) = (entries(wanted), entries(actual));
    if let Some(path) = entries.keys().find(|path| !others.contains_key(*path)) {
        return Some(format!("{} is missing", path.display()));
    }
    if let Some(path) = others.keys().find(|path| !entries.contains_key(*path)) {
        return Some(format!("{} is too much", path.display()));
    }
    let mut buffers = (vec![0; PIECE], vec![0; PIECE]);
    let differs = |(path, kind): &(&PathBuf, &Kind)| {
        others[*path] != **kind
            || **kind != Kind::Directory && !same_bytes(&wanted.join(path), &actual.join(path), &mut buffers)
    };
    let (path, _) = entries.iter().find(differs)?;
    Some(format!("{} differs", path.display()))
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    File(u64),
    Other,
}

fn entries(root: &Path) -> BTreeMap<PathBuf, Kind> {
    let walk = WalkDir::new(root).min_depth(1).into_iter();
    let own = walk.filter_entry(|entry| entry.depth() != 1 || entry.file_name() != ".ksync");
    let entry = |entry: walkdir::DirEntry| {
        let kind = match entry.file_type() {
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_file() => Kind::File(entry.metadata().map_or(u64::MAX, |meta| meta.len())),
            _ => Kind::Other,
        };
        (entry.path().strip_prefix(root).expect("below the root").to_owned(), kind)
    };
    // An unreadable entry counts as missing.
    own.flatten().map(entry).collect()
}

fn same_bytes(one: &Path, other: &Path, buffers: &mut (Vec<u8>, Vec<u8>)) -> bool {
    let (Ok(mut one), Ok(mut other)) = (File::open(one), File::open(other)) else { return false };
    loop {
        match (fill(&mut one, &mut buffers.0), fill(&mut other, &mut buffers.1)) {
            (Some(0), Some(0)) => return true,
            (Some(count), Some(same)) if count == same && buffers.0[..count] == buffers.1[..count] => {}
            _ => return false,
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> Option<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]).ok()? {
            0 => break,
            count => filled += count,
        }
    }
    Some(filled)
}
