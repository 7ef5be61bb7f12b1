//! Writes into a file that stays the same file: its other names get the content, too.
//!
//! This is the one way to change a file that is not atomic. Whoever reads it meanwhile sees a
//! mixture, and a run that is stopped leaves one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags, fsync, openat};

use crate::disk::durability::Origin;
use crate::disk::error::{DiskError, DiskErrorKind, During};
use crate::disk::root::stat_of;
use crate::disk::stage::{Metadata, set_metadata};
use crate::disk::stat::{FileKind, Identity};
use crate::disk::writable::WritableRoot;
use crate::tree::path::TreePath;

const VERB: &str = "write into";

/// Bytes that are compared and written at a time.
const BLOCK_BYTES: usize = 256 << 10;

impl WritableRoot {
    /// Gives the file at `path` the first bytes of `content`, and its metadata. Only blocks that
    /// differ are written, and these are read back. Returns the metadata that the filesystem
    /// refused to set.
    ///
    /// # Errors
    /// It is no longer the file that was `seen` ([`DiskError::is_conflict`]), or it cannot be
    /// written; then it may hold a part of the new content.
    pub fn write_in_place(
        &self,
        path: &TreePath,
        seen: &Identity,
        content: Option<(&File, u64)>,
        metadata: &Metadata,
        is_durable: bool,
    ) -> Result<Option<Box<DiskError>>, DiskError> {
        let location = self.locate(path).during(VERB, path.as_bytes())?;
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let descriptor =
            openat(&location, location.name, flags, Mode::empty()).during(VERB, path.as_bytes())?;
        let stat = stat_of(&descriptor, path)?;
        if stat.kind() != FileKind::File {
            return Err(DiskError::new(VERB, path.as_bytes(), DiskErrorKind::NotRegular));
        }
        // A backup or another name of this run may have changed the ctime.
        if (Identity { ctime: seen.ctime, ..stat.identity }) != *seen {
            return Err(DiskError::new(VERB, path.as_bytes(), DiskErrorKind::Conflict));
        }
        let file = File::from(descriptor);
        // Before the first byte: a power cut may leave any mixture.
        self.mark_change(path, seen.dev, Origin::Now)?;
        if let Some((content, length)) = content {
            write_differing(&file, seen.size, content, length).during(VERB, path.as_bytes())?;
        }
        let refused = set_metadata(&file, self, path, metadata)?;
        if is_durable {
            fsync(&file).during("sync", path.as_bytes())?;
        }
        self.mark(path, &stat_of(&file, path)?.identity)?;
        Ok(refused)
    }
}

/// Makes `file`, of `present` bytes, equal to the first `length` bytes of `content`.
fn write_differing(file: &File, present: u64, content: &File, length: u64) -> io::Result<()> {
    let (mut new, mut old) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
    let mut at = 0;
    while at < length {
        let count = usize::try_from(length - at).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
        let (Some(new), Some(old)) = (new.get_mut(..count), old.get_mut(..count)) else { break };
        content.read_exact_at(new, at)?;
        let is_same = at + count as u64 <= present && file.read_exact_at(old, at).is_ok() && old == new;
        if !is_same {
            file.write_all_at(new, at)?;
            file.read_exact_at(old, at)?;
            if old != new {
                return Err(io::Error::other("the bytes that were written cannot be read back"));
            }
        }
        at += count as u64;
    }
    if present > length { file.set_len(length) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;
    use crate::disk::testing::{Fixture, path};
    use crate::tree::entry::Time;

    fn metadata() -> Metadata {
        Metadata { mode: 0o640, mtime: Time::new(7, 0).unwrap(), attributes: None }
    }

    #[test]
    fn content_is_written_into_the_same_file() {
        let fixture = Fixture::new();
        let old: Vec<u8> = (0..600_000_u32).map(|n| (n % 251) as u8).collect();
        let (mut edited, longer) = (old.clone(), [&old[..], b"more"].concat());
        edited[300_000] ^= 1;
        for new in [&edited[..], &longer, &old[..5], b""] {
            fs::write(fixture.at("f"), &old).unwrap();
            let _ = fs::remove_file(fixture.at("other"));
            fs::hard_link(fixture.at("f"), fixture.at("other")).unwrap();
            fs::write(fixture.outside().join("new"), new).unwrap();
            let content = File::open(fixture.outside().join("new")).unwrap();
            let seen = fixture.root.stat(&path("f")).unwrap().unwrap().identity;
            let content = Some((&content, new.len() as u64));
            fixture.root.write_in_place(&path("f"), &seen, content, &metadata(), false).unwrap();
            assert!(fs::read(fixture.at("other")).unwrap() == new, "{}", new.len());
            let now = fixture.at("f").metadata().unwrap();
            assert_eq!((now.ino(), now.mtime(), now.mode() & 0o777), (seen.ino, 7, 0o640));
        }
    }

    #[test]
    fn another_file_and_a_link_are_not_written_into() {
        let fixture = Fixture::new();
        fs::write(fixture.at("f"), "old").unwrap();
        let seen = fixture.root.stat(&path("f")).unwrap().unwrap().identity;
        let content = File::open(fixture.at("f")).unwrap();
        fs::remove_file(fixture.at("f")).unwrap();
        fs::write(fixture.at("f"), "mine").unwrap();
        let write =
            || fixture.root.write_in_place(&path("f"), &seen, Some((&content, 3)), &metadata(), false);
        assert!(write().unwrap_err().is_conflict());
        fs::remove_file(fixture.at("f")).unwrap();
        symlink(fixture.outside().join("canary"), fixture.at("f")).unwrap();
        write().unwrap_err();
        fixture.assert_canary_untouched();
    }
}
