//! Progress of the content, as the receiver counts it for observers.

use crate::monitor::Written;

/// Fewest bytes and files between two reports to the peer. A report costs a packet on each hop, and
/// runs below both sizes end before anybody reads it.
const BYTES_MIN: u64 = 256 << 10;
const FILES_MIN: u64 = 256;

/// Most reports to the peer by bytes, and as many by files.
const REPORTS_MAX: u64 = 64;

/// The written content, and how much of it was reported.
#[derive(Debug, Default)]
pub(super) struct ContentProgress {
    now: Written,
    told: Option<Written>,
}

impl ContentProgress {
    /// Begins with this much missing content.
    pub(super) fn begin(&mut self, files: u64, bytes: u64) {
        self.now = Written { files: 0, total_files: files, bytes: 0, total_bytes: bytes };
    }

    /// Counts content that travelled and is written.
    pub(super) fn wrote(&mut self, bytes: u64) {
        self.now.bytes += bytes;
    }

    /// Corrects the content that has to travel.
    pub(super) fn expects(&mut self, more: u64, less: u64) {
        self.now.total_bytes = self.now.total_bytes.saturating_add(more).saturating_sub(less);
    }

    /// Counts a file that is settled: in place, or given up.
    pub(super) fn settled(&mut self) {
        self.now.files += 1;
    }

    /// True if a run is so short that its peer needs no reports.
    pub(super) fn is_short(&self) -> bool {
        self.now.total_bytes < BYTES_MIN && self.now.total_files < FILES_MIN
    }

    /// The report, if it is the first one, or if enough has changed since the last one.
    pub(super) fn due(&mut self, to_peer: bool) -> Option<Written> {
        let Written { files, total_files, bytes, total_bytes } = self.now;
        let is_due = self.told.is_none_or(|told| {
            if to_peer {
                bytes - told.bytes >= BYTES_MIN.max(total_bytes / REPORTS_MAX)
                    || files - told.files >= FILES_MIN.max(total_files / REPORTS_MAX)
            } else {
                told != self.now
            }
        });
        if is_due { self.rest() } else { None }
    }

    /// The report of everything that was not reported.
    pub(super) fn rest(&mut self) -> Option<Written> {
        (self.now.total_files > 0 && self.told.replace(self.now) != Some(self.now)).then_some(self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_gets_few_reports_and_always_the_first_and_the_last() {
        let mut progress = ContentProgress::default();
        assert_eq!((progress.due(true), progress.rest()), (None, None), "there is nothing to write");
        progress.begin(2, 64 << 20);
        assert!(progress.due(true).is_some());
        let reports = (0..1024).filter(|_| {
            progress.wrote(64 << 10);
            progress.due(true).is_some()
        });
        assert_eq!(reports.count(), 64);
        progress.wrote(1);
        progress.settled();
        assert_eq!(progress.due(true), None);
        assert_eq!(progress.due(false).unwrap().files, 1);
        progress.settled();
        progress.expects(10, 0);
        let last = progress.rest().unwrap();
        assert_eq!((last.files, last.bytes, last.total_bytes), (2, (64 << 20) + 1, (64 << 20) + 10));
        assert_eq!(progress.rest(), None);
    }

    #[test]
    fn many_small_files_are_reported_by_their_number() {
        let mut progress = ContentProgress::default();
        progress.begin(80_000, 80_000);
        assert!(!progress.is_short() && progress.due(true).is_some());
        let reports = (0..80_000).filter(|_| {
            progress.settled();
            progress.due(true).is_some()
        });
        assert_eq!(reports.count(), 64);
    }
}
