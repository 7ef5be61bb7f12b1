//! `Marker`: tells which files of a directory may not be durable. Pure;
//! [`unconfirmed`](super::unconfirmed) keeps it on the disk.
//!
//! The kernel sets the change time of a file (ctime) at every write, rename, link and chmod, and no
//! program can set it. So a marker lists no names. It says: *files whose ctime is not before this
//! time may be lost with the power*. A marker is durable before the first file that it covers gets
//! its name.
//!
//! Times belong to a [`Mount`]: one mount of the filesystem, under one boot of the kernel. During
//! that mount the page cache holds all written bytes. Under another mount only the disk's bytes are
//! left, and covered files are doubted.

use serde::{Deserialize, Serialize};

use crate::content::hash::Hash;
use crate::disk::stat::Identity;
use crate::tree::doubt::Doubt;

/// Version of a marker's layout.
const VERSION: u8 = 1;

/// Bytes of its hash at the beginning of a marker.
const CHECK_BYTES: usize = 8;

/// A time of the filesystem's clock: seconds, and nanoseconds after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Stamp(pub(crate) i64, pub(crate) u32);

impl Stamp {
    /// Earlier than every other time: covers every file, where ctimes do not survive a mount.
    pub(crate) const EVER: Self = Self(i64::MIN, 0);

    /// The ctime of a file.
    pub(crate) fn of(identity: &Identity) -> Self {
        Self(identity.ctime.seconds(), identity.ctime.nanos())
    }
}

/// One mount of a filesystem under one boot of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub(crate) boot: [u8; 16],
    pub(crate) id: u64,
}

/// Files that were written under one mount, from a time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Epoch {
    /// `None` is a mount that cannot be told from others, so it is never the present one.
    pub(crate) mount: Option<Mount>,
    pub(crate) since: Stamp,
}

impl Epoch {
    fn is_of(&self, mount: Option<Mount>) -> bool {
        self.mount.is_some() && self.mount == mount
    }

    fn covers(&self, ctime: Stamp) -> bool {
        self.since <= ctime
    }
}

/// The files in a directory that may not be durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Marker {
    /// Files written or verified under the present mount: the page cache has them, but the disk may
    /// not.
    pub(crate) own: Option<Epoch>,
    /// Files that the disk did not take completely, as it reported under the present mount. The
    /// page cache may show them complete.
    pub(crate) failed: Option<Epoch>,
    /// Files from this time on were written under earlier mounts, unless `own` covers them.
    pub(crate) stale: Option<Stamp>,
    /// True if `own` counts only after nothing is stale or failed any more. The clock was set back
    /// since, or the filesystem's ctimes do not survive a mount.
    pub(crate) tangled: bool,
    /// True if the marker covers everything below the directory, not only the files directly in it.
    pub(crate) recursive: bool,
}

impl Marker {
    /// Every file may be lost.
    pub(crate) const DISTRUST: Self =
        Self { own: None, failed: None, stale: Some(Stamp::EVER), tangled: true, recursive: true };

    pub(crate) fn encode(&self) -> Vec<u8> {
        // Numbers and arrays can always be encoded.
        let body = postcard::to_stdvec(&(VERSION, self)).unwrap_or_default();
        let hash = Hash::of(&body);
        let check = hash.as_bytes().iter().take(CHECK_BYTES);
        check.chain(&body).copied().collect()
    }

    /// Reads a marker. A damaged marker, or one of another version, means that no file is trusted.
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let Some((check, body)) = bytes.split_at_checked(CHECK_BYTES) else { return Self::DISTRUST };
        match postcard::from_bytes::<(u8, Self)>(body) {
            Ok((VERSION, marker)) if Hash::of(body).as_bytes().starts_with(check) => marker,
            _ => Self::DISTRUST,
        }
    }

    /// The marker under the present mount: files that were written under another mount are stale.
    pub(crate) fn under(mut self, mount: Option<Mount>) -> Self {
        for epoch in [&mut self.own, &mut self.failed] {
            if let Some(left) = epoch.take_if(|epoch| !epoch.is_of(mount)) {
                self.stale = Some(self.stale.map_or(left.since, |stale| stale.min(left.since)));
            }
        }
        self
    }

    /// True if the marker covers no file.
    pub(crate) fn is_empty(&self) -> bool {
        self.own.is_none() && self.failed.is_none() && self.stale.is_none()
    }

    /// True if a file with this ctime was written or verified under the present mount.
    pub(crate) fn believes(&self, ctime: Stamp) -> bool {
        self.own.is_some_and(|own| own.covers(ctime)) && (!self.tangled || self.is_settled())
    }

    /// The reason to doubt a file with this ctime, if any.
    pub(crate) fn doubt(&self, ctime: Stamp) -> Option<Doubt> {
        if self.believes(ctime) {
            return None;
        }
        if self.failed.is_some_and(|failed| failed.covers(ctime)) {
            return Some(Doubt::Lost);
        }
        self.stale.filter(|stale| *stale <= ctime).map(|_| Doubt::Unverified)
    }

    /// True if no file is doubted under the present mount.
    pub(crate) fn is_settled(&self) -> bool {
        self.failed.is_none() && self.stale.is_none()
    }

    fn earliest(&self) -> Option<Stamp> {
        let epochs = [self.own, self.failed].into_iter().flatten().map(|epoch| epoch.since);
        epochs.chain(self.stale).min()
    }

    /// The marker, extended to files from `since` on that are written under the present mount.
    /// `latest` is the latest ctime of a doubted file. If the clock was set back before `latest`,
    /// new files cannot be told from doubted ones.
    pub(crate) fn covering(mut self, mount: Option<Mount>, since: Stamp, latest: Option<Stamp>) -> Self {
        if self.own.is_none_or(|own| own.since > since) {
            let doubted = [latest, self.stale, self.failed.map(|failed| failed.since)];
            let is_tangled =
                !self.is_settled() && doubted.into_iter().flatten().any(|doubted| since <= doubted);
            self.tangled = is_tangled || (self.tangled && !self.is_settled());
            self.own = Some(Epoch { mount, since });
        }
        self
    }

    /// The marker after the disk reported a failure. It covers all files that were not durable at
    /// that time.
    pub(crate) fn failing(mut self, mount: Option<Mount>) -> Self {
        if let Some(since) = self.earliest() {
            self.failed = Some(Epoch { mount, since });
            self.own = None;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Option<Mount> = Some(Mount { boot: [1; 16], id: 7 });
    const THERE: Option<Mount> = Some(Mount { boot: [1; 16], id: 8 });

    fn at(seconds: i64) -> Stamp {
        Stamp(seconds, 5)
    }

    #[test]
    fn a_damaged_marker_trusts_no_file() {
        let marker = Marker { recursive: true, ..Marker::default() }.covering(HERE, at(3), None);
        let bytes = marker.encode();
        assert_eq!(Marker::decode(&bytes), marker);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert_eq!(Marker::decode(&damaged), Marker::DISTRUST, "byte {at}");
            assert_eq!(Marker::decode(&bytes[..at]), Marker::DISTRUST);
        }
        assert_eq!(Marker::DISTRUST.doubt(Stamp(i64::MIN, 0)), Some(Doubt::Unverified));
    }

    #[test]
    fn files_written_under_another_mount_are_doubted() {
        let marker = Marker::default().covering(HERE, at(100), None);
        assert_eq!(marker.under(HERE).doubt(at(100)), None);
        for elsewhere in [THERE, None] {
            let marker = marker.under(elsewhere);
            assert_eq!(marker.doubt(at(99)), None, "it was there before");
            assert_eq!(marker.doubt(at(100)), Some(Doubt::Unverified));
            // A verified file gets a new ctime, and is believed from then on.
            let verified = marker.covering(elsewhere, at(200), Some(at(150)));
            assert_eq!(verified.doubt(at(150)), Some(Doubt::Unverified));
            assert_eq!(verified.doubt(at(200)), None);
            let cut_again = Marker { own: verified.own.map(|own| Epoch { mount: HERE, ..own }), ..verified };
            assert_eq!(cut_again.under(THERE).doubt(at(200)), Some(Doubt::Unverified));
        }
        let unknown = Marker::default().covering(None, at(100), None);
        assert_eq!(unknown.under(None).doubt(at(100)), Some(Doubt::Unverified), "no mount is no proof");
    }

    #[test]
    fn a_failed_write_is_lost_until_the_page_cache_is_gone() {
        let failed = Marker::default().covering(HERE, at(100), None).failing(HERE);
        assert_eq!(failed.under(HERE).doubt(at(100)), Some(Doubt::Lost));
        assert_eq!(failed.under(HERE).doubt(at(99)), None);
        let again = failed.covering(HERE, at(200), Some(at(150)));
        assert_eq!((again.doubt(at(150)), again.doubt(at(200))), (Some(Doubt::Lost), None));
        assert_eq!(failed.under(THERE).doubt(at(150)), Some(Doubt::Unverified), "the disk tells the truth");
    }

    #[test]
    fn a_clock_set_back_hides_no_doubted_file() {
        let stale = Marker::default().covering(THERE, at(100), None).under(HERE);
        // A time before, among and after the stale files.
        for (since, believed) in [(at(50), None), (at(150), None), (at(201), Some(at(201)))] {
            let marker = stale.covering(HERE, since, Some(at(200)));
            assert!(marker.under(THERE).doubt(since).is_some());
            for ctime in [at(150), at(200), at(201)] {
                let is_believed = Some(ctime) == believed;
                assert_eq!(marker.doubt(ctime).is_none(), is_believed, "{since:?} {ctime:?}");
            }
            // Once everything was verified, nothing is doubted under this mount.
            assert_eq!(Marker { stale: None, ..marker }.doubt(at(150)), None);
        }
        // With nothing doubted, the start of the marker only moves.
        let back = Marker::default().covering(HERE, at(100), None).covering(HERE, at(50), None);
        assert_eq!((back.doubt(at(60)), back.under(THERE).doubt(at(60))), (None, Some(Doubt::Unverified)));
    }

    #[test]
    fn unreliable_ctimes_doubt_all_files_until_all_are_verified() {
        let marker = Marker::default().covering(THERE, Stamp::EVER, None).under(HERE);
        let marker = marker.covering(HERE, Stamp::EVER, None);
        assert_eq!(marker.doubt(at(1)), Some(Doubt::Unverified));
        assert_eq!(Marker { stale: None, ..marker }.doubt(at(1)), None);
    }
}
