//! The progress of a run, as numbers and as text.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ksync::monitor::{Event, Written};
use ksync::tree::path::escape;

use crate::report::Direction;
use crate::status::{cut, width};
use crate::units::{bytes, count, counted, span};

/// Time span of the displayed speed: short enough to show that a link slowed down, long enough not
/// to jump with every file.
const SPEED_SPAN: Duration = Duration::from_secs(5);

/// Fewest reports in that span. Over a slow link they come seldom.
const REPORTS_MIN: usize = 3;

/// Span of reports after which the time before the first one no longer counts: the link was idle
/// then.
const WARM_UP: Duration = Duration::from_secs(1);

/// Terminal width from which there is a bar, and from which it is long.
const BAR_COLUMNS: usize = 60;
const LONG_BAR_COLUMNS: usize = 100;

/// Fewest columns for a name.
const NAME_COLUMNS_MIN: usize = 8;

/// Average size of a file below which their number says more than their bytes.
const SMALL_BYTES: u64 = 1_000_000;

/// The progress of a run.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    /// True after the other side has answered.
    is_connected: bool,
    entries: u64,
    written: Written,
    /// The file whose transfer began last.
    name: Vec<u8>,
}

impl Progress {
    pub(crate) fn observe(&mut self, event: Event) {
        match event {
            Event::Scanned { entries, .. } => self.entries = self.entries.max(entries),
            Event::Written(written) => self.written = written,
            Event::Began { path } => self.name = path,
            Event::Resolved { .. } => self.is_connected = true,
            _ => {}
        }
    }

    /// True once it is known what is missing.
    pub(crate) fn is_planned(&self) -> bool {
        self.written.total_files > 0
    }

    /// True once all content is written. Links, times and deletions follow.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_planned() && self.written.files >= self.written.total_files
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

    fn percent(&self) -> u64 {
        let Written { bytes, total_bytes, files, total_files } = self.written;
        let of = |part: u64, all: u64| part.saturating_mul(100).checked_div(all);
        of(bytes, total_bytes).or(of(files, total_files)).unwrap_or(100).min(100)
    }

    fn amount(&self) -> String {
        format!("{} of {}", bytes(self.written.bytes), bytes(self.written.total_bytes))
    }

    fn files(&self) -> String {
        format!("{} of {} files", count(self.written.files), count(self.written.total_files))
    }

    fn has_small_files(&self) -> bool {
        let Written { total_bytes, total_files, .. } = self.written;
        total_files > 1 && total_bytes / total_files < SMALL_BYTES
    }

    /// The speed, and the remaining time at that speed.
    fn speed(&self, speed: Speed) -> Vec<String> {
        match speed {
            Speed::Unknown => Vec::new(),
            Speed::None => vec!["stalled".to_owned()],
            Speed::Bytes { per_second, since } => {
                let left_bytes = self.written.total_bytes.saturating_sub(self.written.bytes);
                let left =
                    Duration::try_from_secs_f64(left_bytes as f64 / per_second).unwrap_or(Duration::MAX);
                let left = format!("{} left", span(left.saturating_sub(since)));
                vec![format!("{}/s", bytes(per_second as u64)), left]
            }
        }
    }

    fn end(&self, direction: Direction) -> &'static str {
        match direction {
            Direction::Up => "waiting for the other side to finish",
            Direction::Down | Direction::Local => "finishing",
        }
    }

    /// The progress line where there is no terminal.
    pub(crate) fn line(&self, speed: Speed, direction: Direction) -> String {
        if !self.is_planned() {
            return format!("ksync: {}", self.waiting());
        }
        let mut parts = vec![format!("{} ({} %)", self.amount(), self.percent())];
        if self.is_complete() {
            parts.push(self.end(direction).to_owned());
        } else {
            parts.extend(self.speed(speed));
            parts.extend((self.written.total_files > 1).then(|| self.files()));
            parts.extend((!self.name.is_empty()).then(|| escape(&self.name).into_owned()));
        }
        format!("ksync: {}", parts.join(", "))
    }

    /// The status line on a terminal, at most this wide. In a narrow one the bar goes first, then
    /// the name, then numbers.
    pub(crate) fn status(&self, speed: Speed, direction: Direction, columns: usize) -> String {
        let bar = match columns + 1 {
            LONG_BAR_COLUMNS.. => self.bar(20),
            BAR_COLUMNS.. => self.bar(10),
            _ => String::new(),
        };
        let percent = format!("{} %", self.percent());
        let amount = self.amount();
        let full = format!("{amount} ({percent})");
        // The bar shows the percentage, too.
        let brief = if bar.is_empty() { percent.clone() } else { amount.clone() };
        let (speed, files) = (self.speed(speed), self.files());
        let left = speed.last().cloned().into_iter().collect::<Vec<_>>();
        let texts: Vec<Vec<String>> = if self.is_complete() {
            let end = self.end(direction).to_owned();
            vec![
                vec![amount, end.clone()],
                vec![percent, end.clone()],
                vec![end],
                vec!["finishing".to_owned()],
            ]
        } else if self.has_small_files() {
            vec![
                [vec![full], speed.clone(), vec![files.clone()]].concat(),
                [vec![brief], speed.clone(), vec![files.clone()]].concat(),
                [vec![files.clone()], speed].concat(),
                [vec![files.clone()], left].concat(),
                vec![files],
                vec![percent],
            ]
        } else {
            let count = (self.written.total_files > 1).then_some(files);
            vec![
                [vec![full.clone()], speed.clone(), count.into_iter().collect()].concat(),
                [vec![full], speed.clone()].concat(),
                [vec![brief], speed.clone()].concat(),
                [vec![percent.clone()], speed].concat(),
                [vec![percent.clone()], left].concat(),
                vec![percent],
            ]
        };
        let mut lines = texts.iter().map(|parts| format!("{bar}{}", parts.join(", ")));
        let (first, fitting) = (lines.next(), |line: &String| width(line) <= columns);
        if let Some(line) = first.filter(fitting) {
            let room = columns.saturating_sub(width(&line) + 2);
            let is_named = !self.is_complete() && !self.name.is_empty() && room >= NAME_COLUMNS_MIN;
            return if is_named { format!("{line}  {}", end_of(&escape(&self.name), room)) } else { line };
        }
        lines.find(fitting).unwrap_or_else(|| cut(&format!("{} %", self.percent()), columns))
    }

    /// A bar of plain characters, as wide as this inside.
    fn bar(&self, inside: usize) -> String {
        let done = inside * self.percent() as usize / 100;
        let head = if done < inside { ">" } else { "" };
        format!("[{:<inside$}] ", format!("{}{head}", "=".repeat(done)))
    }
}

/// The end of a name: files of one directory differ there.
fn end_of(name: &str, columns: usize) -> String {
    if width(name) <= columns {
        return name.to_owned();
    }
    let backwards: String = name.chars().rev().collect();
    let end: String = cut(&backwards, columns.saturating_sub(3)).chars().rev().collect();
    format!("...{end}")
}

/// The speed of a transfer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Speed {
    /// Too little has been written.
    Unknown,
    /// Nothing has been written for long.
    None,
    Bytes {
        per_second: f64,
        /// Time since the last report.
        since: Duration,
    },
}

/// Measures the speed by the receiver's reports of the last five seconds.
#[derive(Debug, Default)]
pub(crate) struct SpeedMeter {
    /// Times of the reports, with the bytes written until then.
    reports: VecDeque<(Instant, u64)>,
    /// True if the first of them is the beginning, before anything was written.
    has_beginning: bool,
}

impl SpeedMeter {
    /// Takes in a report.
    pub(crate) fn observe(&mut self, now: Instant, written_bytes: u64) {
        match self.reports.back() {
            Some(&(_, bytes)) if bytes == written_bytes => return,
            // Another attempt, or another round, begins.
            Some(&(_, bytes)) if bytes > written_bytes => *self = Self::default(),
            _ => {}
        }
        self.has_beginning |= self.reports.is_empty() && written_bytes == 0;
        self.reports.push_back((now, written_bytes));
        let since = |index: usize| self.reports.get(index).map_or(Duration::ZERO, |&(then, _)| now - then);
        let is_warm = self.has_beginning && self.reports.len() >= REPORTS_MIN && since(1) >= WARM_UP;
        if is_warm || self.reports.len() > REPORTS_MIN && since(1) >= SPEED_SPAN {
            self.reports.pop_front();
            self.has_beginning = false;
        }
    }

    pub(crate) fn speed(&self, now: Instant) -> Speed {
        let (Some(&(begin, before)), Some(&(last, bytes))) = (self.reports.front(), self.reports.back())
        else {
            return Speed::Unknown;
        };
        if self.reports.len() < 2 {
            return Speed::Unknown;
        }
        let since = now.saturating_duration_since(last);
        let pauses =
            self.reports.iter().zip(self.reports.iter().skip(1)).map(|((one, _), (next, _))| *next - *one);
        let longest = pauses.max().unwrap_or_default();
        if since >= SPEED_SPAN.max(longest * 3) {
            return Speed::None;
        }
        // A report that is late shows that the link slowed down.
        let is_late = since > longest * 2 + WARM_UP;
        let took = if is_late { now - begin } else { last - begin };
        let per_second = (bytes - before) as f64 / took.as_secs_f64().max(0.001);
        Speed::Bytes { per_second, since: if is_late { Duration::ZERO } else { since } }
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

    fn written(files: u64, total_files: u64, bytes: u64, total_bytes: u64) -> Event {
        Event::Written(Written { files, total_files, bytes, total_bytes })
    }

    const MOVING: Speed = Speed::Bytes { per_second: 1e6, since: Duration::from_secs(2) };

    #[test]
    fn a_line_names_the_present_step() {
        let line = |events: &[Event]| progress(events).line(Speed::Unknown, Direction::Up);
        let scanned = Event::Scanned { entries: 1234, bytes: 9 };
        let resolved = Event::Resolved { path: b"/x".to_vec() };
        assert_eq!(line(&[]), "ksync: connecting");
        assert_eq!(line(std::slice::from_ref(&scanned)), "ksync: connecting");
        assert_eq!(line(std::slice::from_ref(&resolved)), "ksync: listing");
        assert_eq!(line(&[scanned, resolved]), "ksync: comparing 1,234 entries");
    }

    #[test]
    fn a_line_counts_what_is_written_of_what_must_travel() {
        let began = Event::Began { path: b"css/a\nb.css".to_vec() };
        let one = progress(&[began.clone(), written(0, 1, 10_000_000, 40_000_000)]);
        let line = |speed| one.line(speed, Direction::Up);
        assert_eq!(line(MOVING), "ksync: 10.0 MB of 40.0 MB (25 %), 1.0 MB/s, 28.0 s left, css/a\\nb.css");
        assert_eq!(line(Speed::None), "ksync: 10.0 MB of 40.0 MB (25 %), stalled, css/a\\nb.css");
        assert_eq!(line(Speed::Unknown), "ksync: 10.0 MB of 40.0 MB (25 %), css/a\\nb.css");
        let many = progress(&[written(12, 3456, 10_000_000, 40_000_000)]);
        let line = many.line(MOVING, Direction::Up);
        assert_eq!(line, "ksync: 10.0 MB of 40.0 MB (25 %), 1.0 MB/s, 28.0 s left, 12 of 3,456 files");
        let all = progress(&[began, written(1, 1, 40_000_000, 40_000_000)]);
        let end = "ksync: 40.0 MB of 40.0 MB (100 %), waiting for the other side to finish";
        assert_eq!(all.line(MOVING, Direction::Up), end);
        assert_eq!(all.line(MOVING, Direction::Down), "ksync: 40.0 MB of 40.0 MB (100 %), finishing");
    }

    #[test]
    fn a_narrow_terminal_loses_the_bar_then_the_name_then_numbers() {
        let began = Event::Began { path: b"release/image-of-the-disk.bin".to_vec() };
        let one = progress(&[began, written(0, 1, 10_000_000, 40_000_000)]);
        let many = progress(&[written(1234, 80_000, 10_000_000, 40_000_000)]);
        let all = progress(&[written(1, 1, 40_000_000, 40_000_000)]);
        for (progress, columns, expected) in [
            (
                &one,
                120,
                "[=====>              ] 10.0 MB of 40.0 MB (25 %), 1.0 MB/s, 28.0 s left  release/image-of-the-disk.bin",
            ),
            (&one, 80, "[==>       ] 10.0 MB of 40.0 MB (25 %), 1.0 MB/s, 28.0 s left  ...-the-disk.bin"),
            (&one, 60, "[==>       ] 10.0 MB of 40.0 MB, 1.0 MB/s, 28.0 s left"),
            (&one, 59, "10.0 MB of 40.0 MB (25 %), 1.0 MB/s, 28.0 s left  ...k.bin"),
            (&one, 58, "10.0 MB of 40.0 MB (25 %), 1.0 MB/s, 28.0 s left"),
            (&one, 40, "25 %, 1.0 MB/s, 28.0 s left"),
            (&one, 20, "25 %, 28.0 s left"),
            (&one, 10, "25 %"),
            (&one, 3, "25"),
            (&many, 80, "[==>       ] 10.0 MB of 40.0 MB, 1.0 MB/s, 28.0 s left, 1,234 of 80,000 files"),
            (&many, 59, "25 %, 1.0 MB/s, 28.0 s left, 1,234 of 80,000 files"),
            (&many, 60, "[==>       ] 1,234 of 80,000 files, 1.0 MB/s, 28.0 s left"),
            (&many, 40, "1,234 of 80,000 files, 28.0 s left"),
            (&many, 30, "1,234 of 80,000 files"),
            (&many, 10, "25 %"),
            (&all, 80, "[==========] 40.0 MB of 40.0 MB, waiting for the other side to finish"),
            (&all, 40, "waiting for the other side to finish"),
            (&all, 20, "finishing"),
        ] {
            let line = progress.status(MOVING, Direction::Up, columns - 1);
            assert_eq!(line, expected, "{columns} columns");
            assert!(line.len() < columns, "{columns} columns");
        }
    }

    /// The speed that a meter shows at a time in milliseconds, and the time that it counts down.
    fn measured(reports: &[(u64, u64)], now_ms: u64) -> Option<(u64, u64)> {
        let (start, mut meter) = (Instant::now(), SpeedMeter::default());
        let at = |ms| start + Duration::from_millis(ms);
        reports.iter().for_each(|&(ms, bytes)| meter.observe(at(ms), bytes));
        match meter.speed(at(now_ms)) {
            Speed::Bytes { per_second, since } => Some((per_second as u64, since.as_millis() as u64)),
            Speed::None => Some((0, 0)),
            Speed::Unknown => None,
        }
    }

    #[test]
    fn the_speed_is_that_of_the_last_five_seconds() {
        assert_eq!(measured(&[], 9000), None);
        assert_eq!(measured(&[(0, 0)], 9000), None);
        assert_eq!(measured(&[(0, 0), (1000, 100)], 1000), Some((100, 0)));
        let steady: Vec<_> = (0..20).map(|second| (1000 * second, 100 * second)).collect();
        assert_eq!(measured(&steady, 19_500), Some((100, 500)));
        let faster: Vec<_> = (0..20).map(|second| (1000 * second, 100 * second * second)).collect();
        assert_eq!(measured(&faster, 19_000), Some((3300, 0)), "from 14 s to 19 s");
    }

    #[test]
    fn the_time_before_the_first_content_does_not_count() {
        assert_eq!(measured(&[(0, 0), (900, 100), (1900, 200)], 1900), Some((100, 0)));
    }

    #[test]
    fn another_attempt_is_measured_anew() {
        let lost = [(0, 0), (1000, 500), (2000, 1000), (9000, 0), (10_000, 100), (11_000, 200)];
        assert_eq!(measured(&lost[..4], 9000), None);
        assert_eq!(measured(&lost, 11_000), Some((100, 0)));
    }

    #[test]
    fn a_late_report_lowers_the_speed_and_a_very_late_one_is_a_stall() {
        let steady = [(0, 0), (1000, 100), (2000, 200), (3000, 300)];
        assert_eq!(measured(&steady, 5900), Some((100, 2900)));
        assert_eq!(measured(&steady, 7000), Some((33, 0)));
        assert_eq!(measured(&steady, 8000), Some((0, 0)));
        let slow = [(0, 0), (8000, 100), (16_000, 200), (24_000, 300)];
        assert_eq!(measured(&slow, 31_000), Some((12, 7000)), "such a link stalls later");
    }
}
