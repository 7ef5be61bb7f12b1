//! How far a run has come, as numbers and as text.

use std::time::Duration;

use ksync::monitor::Event;
use ksync::tree::path::escape;

use crate::units::{bytes, counted, span};

/// How far it has come.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Whether the other side answers.
    is_connected: bool,
    entries: u64,
    /// Whether it is known that something has to travel.
    pub(crate) is_planned: bool,
    planned_bytes: u64,
    matched_bytes: u64,
    pub(crate) moved_bytes: u64,
    /// The file that began last.
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
            Event::Change { .. } | Event::Problem(_) => {}
        }
    }

    /// Bytes that travel in all. Something that travels a second time makes it more.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.planned_bytes.saturating_sub(self.matched_bytes).max(self.moved_bytes)
    }

    /// What is waited for while nothing travels.
    pub(crate) fn waiting(&self) -> String {
        if self.entries > 0 && self.is_connected {
            format!("comparing {}", counted(self.entries, "entry", "entries"))
        } else if self.is_connected {
            "listing".to_owned()
        } else {
            "connecting".to_owned()
        }
    }

    /// A line where there is no bar, given how much moved in the time since the last one.
    pub(crate) fn line(&self, recent_bytes: u64, time: Duration) -> String {
        if !self.is_planned {
            return format!("ksync: {}", self.waiting());
        }
        let total = self.total_bytes();
        let percent = self.moved_bytes.saturating_mul(100).checked_div(total).unwrap_or(100);
        let rate = recent_bytes as f64 / time.as_secs_f64().max(0.001);
        let left = Duration::try_from_secs_f64((total - self.moved_bytes) as f64 / rate);
        let left = left.map_or_else(|_| "stalled".to_owned(), |left| format!("{} left", span(left)));
        format!(
            "ksync: {} of {} ({percent} %), {}/s, {left}, {}",
            bytes(self.moved_bytes),
            bytes(total),
            bytes(rate as u64),
            escape(&self.name)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: Duration = Duration::from_secs(10);

    fn progress(events: &[Event]) -> Progress {
        let mut progress = Progress::default();
        events.iter().cloned().for_each(|event| progress.observe(event));
        progress
    }

    #[test]
    fn a_line_tells_what_is_waited_for() {
        let scanned = Event::Scanned { entries: 1234, bytes: 9 };
        let resolved = Event::Resolved { path: b"/x".to_vec() };
        assert_eq!(progress(&[]).line(0, TEN), "ksync: connecting");
        assert_eq!(progress(std::slice::from_ref(&scanned)).line(0, TEN), "ksync: connecting");
        assert_eq!(progress(std::slice::from_ref(&resolved)).line(0, TEN), "ksync: listing");
        assert_eq!(progress(&[scanned, resolved]).line(0, TEN), "ksync: comparing 1,234 entries");
    }

    #[test]
    fn a_line_counts_what_has_to_travel_only() {
        let progress = progress(&[
            Event::Planned { files: 2, bytes: 60_000_000 },
            Event::Began { path: b"css/a\nb.css".to_vec() },
            Event::Matched { bytes: 20_000_000 },
            Event::Moved { bytes: 10_000_000 },
        ]);
        assert_eq!(
            progress.line(10_000_000, TEN),
            "ksync: 10.0 MB of 40.0 MB (25 %), 1.0 MB/s, 30.0 s left, css/a\\nb.css"
        );
        assert_eq!(progress.line(0, TEN), "ksync: 10.0 MB of 40.0 MB (25 %), 0 B/s, stalled, css/a\\nb.css");
    }
}
