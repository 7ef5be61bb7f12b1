//! The progress of a run, as numbers and as text.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ksync::monitor::Event;
use ksync::tree::path::escape;

use crate::units::{bytes, counted, span};

/// Time span of the displayed speed: short enough to show that a link slowed down, long enough not
/// to jump with every file.
const PACE_SPAN: Duration = Duration::from_secs(5);

/// The progress of a run.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    /// True after the other side has answered.
    is_connected: bool,
    entries: u64,
    /// True once some content is known to be missing.
    pub(crate) is_planned: bool,
    planned_bytes: u64,
    matched_bytes: u64,
    pub(crate) moved_bytes: u64,
    /// The file whose transfer began last.
    pub(crate) name: Vec<u8>,
}

impl Progress {
    pub(crate) fn observe(&mut self, event: Event) {
        match event {
            Event::Scanned { entries, .. } => self.entries = self.entries.max(entries),
            Event::Planned { bytes, .. } => {
                self.is_planned |= bytes > 0;
                self.planned_bytes = self.planned_bytes.saturating_add(bytes);
            }
            Event::Matched { bytes } => self.matched_bytes = self.matched_bytes.saturating_add(bytes),
            Event::Moved { bytes } => self.moved_bytes = self.moved_bytes.saturating_add(bytes),
            Event::Began { path } => self.name = path,
            Event::Resolved { .. } => self.is_connected = true,
            Event::Excluded { .. }
            | Event::StateExcluded { .. }
            | Event::LinksExcluded { .. }
            | Event::Change { .. }
            | Event::Left { .. }
            | Event::Grew { .. }
            | Event::Polling { .. }
            | Event::Braked(_)
            | Event::Paired(_)
            | Event::Problem(_) => {}
        }
    }

    /// Total bytes to transfer. Content that is sent a second time increases it.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.planned_bytes.saturating_sub(self.matched_bytes).max(self.moved_bytes)
    }

    /// The status while no content moves.
    pub(crate) fn waiting(&self) -> String {
        if self.entries > 0 && self.is_connected {
            format!("comparing {}", counted(self.entries, "entry", "entries"))
        } else if self.is_connected {
            "listing".to_owned()
        } else {
            "connecting".to_owned()
        }
    }

    /// The speed, and the remaining time at that speed.
    pub(crate) fn rate_text(&self, bytes_per_second: f64) -> String {
        let left_bytes = self.total_bytes().saturating_sub(self.moved_bytes);
        let left = Duration::try_from_secs_f64(left_bytes as f64 / bytes_per_second);
        match left {
            Ok(left) => format!("{}/s, {} left", bytes(bytes_per_second as u64), span(left)),
            Err(_) => "stalled".to_owned(),
        }
    }

    /// The progress line where there is no bar.
    pub(crate) fn line(&self, bytes_per_second: f64) -> String {
        if !self.is_planned {
            return format!("ksync: {}", self.waiting());
        }
        let total = self.total_bytes();
        let percent = self.moved_bytes.saturating_mul(100).checked_div(total).unwrap_or(100);
        format!(
            "ksync: {} of {} ({percent} %), {}, {}",
            bytes(self.moved_bytes),
            bytes(total),
            self.rate_text(bytes_per_second),
            escape(&self.name)
        )
    }
}

/// The speed over the last five seconds, or since the previous sample if that is older.
#[derive(Debug, Default)]
pub(crate) struct RateMeter(VecDeque<(Instant, u64)>);

impl RateMeter {
    /// Starts the measurement before the first content.
    pub(crate) fn begin(&mut self, now: Instant) {
        if self.0.is_empty() {
            self.0.push_back((now, 0));
        }
    }

    /// Records the moved bytes, and returns the speed in bytes per second.
    pub(crate) fn look(&mut self, now: Instant, moved_bytes: u64) -> f64 {
        self.0.push_back((now, moved_bytes));
        while self.0.len() > 2
            && self.0.get(1).is_some_and(|(then, _)| now.duration_since(*then) >= PACE_SPAN)
        {
            self.0.pop_front();
        }
        let (then, before) = self.0.front().copied().unwrap_or((now, moved_bytes));
        let seconds = now.duration_since(then).as_secs_f64().max(0.001);
        moved_bytes.saturating_sub(before) as f64 / seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(events: &[Event]) -> Progress {
        let mut progress = Progress::default();
        events.iter().cloned().for_each(|event| progress.observe(event));
        progress
    }

    #[test]
    fn a_line_names_the_present_step() {
        let scanned = Event::Scanned { entries: 1234, bytes: 9 };
        let resolved = Event::Resolved { path: b"/x".to_vec() };
        assert_eq!(progress(&[]).line(0.0), "ksync: connecting");
        assert_eq!(progress(std::slice::from_ref(&scanned)).line(0.0), "ksync: connecting");
        assert_eq!(progress(std::slice::from_ref(&resolved)).line(0.0), "ksync: listing");
        assert_eq!(progress(&[scanned, resolved]).line(0.0), "ksync: comparing 1,234 entries");
    }

    #[test]
    fn a_line_counts_only_content_that_must_be_sent() {
        let progress = progress(&[
            Event::Planned { files: 2, bytes: 60_000_000 },
            Event::Began { path: b"css/a\nb.css".to_vec() },
            Event::Matched { bytes: 20_000_000 },
            Event::Moved { bytes: 10_000_000 },
        ]);
        assert_eq!(
            progress.line(1e6),
            "ksync: 10.0 MB of 40.0 MB (25 %), 1.0 MB/s, 30.0 s left, css/a\\nb.css"
        );
        assert_eq!(progress.line(0.0), "ksync: 10.0 MB of 40.0 MB (25 %), stalled, css/a\\nb.css");
    }

    #[test]
    fn the_speed_is_that_of_the_last_five_seconds() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut meter = RateMeter::default();
        meter.begin(start);
        meter.begin(at(1));
        assert_eq!(meter.look(at(2), 200), 100.0);
        assert_eq!(meter.look(at(5), 500), 100.0);
        assert_eq!(meter.look(at(10), 500), 0.0);
        assert_eq!(meter.look(at(20), 1500), 100.0);
    }
}
