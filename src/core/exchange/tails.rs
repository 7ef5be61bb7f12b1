//! Tails: the last bytes of files that are being written. A file that is longer than it was listed,
//! but still has these bytes in that place, was only appended to, as logs are. Its beginning is the
//! content that was listed.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use crate::exchange::prefetch::age;
use crate::tree::entry::Kind;
use crate::tree::manifest::Manifest;

/// Length of a tail, in bytes.
const TAIL_BYTES: u64 = 64;

/// Most files. If more are young, a program makes a tree and appends to none of them.
const FILES_MAX: usize = 256;

/// Time since the last write of a file that is probably still being written.
const YOUNG: Duration = Duration::from_secs(2);

/// The tails of a listing, by id.
#[derive(Debug, Default)]
pub(super) struct Tails(HashMap<u32, Vec<u8>>);

impl Tails {
    /// Reads the tails of the listed files that were written shortly before `now`.
    pub(super) fn of(manifest: &Manifest, now: SystemTime, open: impl Fn(u32) -> Option<File>) -> Self {
        let files = manifest.iter().filter(|(_, entry)| matches!(entry.kind, Kind::File { .. }));
        let young = files.filter(|(_, entry)| entry.size() > 0 && age(entry.mtime, now) < YOUNG);
        let read = |(id, size)| Some((id, tail(&open(id)?, size)?));
        Self(young.take(FILES_MAX).map(|(id, entry)| (id, entry.size())).filter_map(read).collect())
    }

    /// True if a file that was listed with this size, and is longer, was only appended to.
    pub(super) fn is_appended(&self, id: u32, size: u64, file: &File) -> bool {
        size == 0 || self.0.get(&id).is_some_and(|listed| tail(file, size).as_ref() == Some(listed))
    }
}

/// The last bytes of the first `size` bytes.
fn tail(file: &File, size: u64) -> Option<Vec<u8>> {
    // At most `TAIL_BYTES`.
    let mut bytes = vec![0; size.min(TAIL_BYTES) as usize];
    file.read_exact_at(&mut bytes, size.saturating_sub(TAIL_BYTES)).ok()?;
    Some(bytes)
}
