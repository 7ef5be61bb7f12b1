//! Formatted figures, and the conditions that they depend on.

use std::fs;
use std::process::Command;
use std::time::SystemTime;

use super::place::memory_bytes;

/// Median of some values; of an even number, the higher middle one.
pub(crate) fn median<T: PartialOrd + Copy>(values: impl IntoIterator<Item = T>) -> Option<T> {
    let mut values: Vec<T> = values.into_iter().collect();
    values.sort_by(|one, other| one.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal));
    values.get(values.len() / 2).copied()
}

/// Formats a number of bytes with three digits.
pub(crate) fn bytes(count: u64) -> String {
    let units = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "kB")];
    match units.iter().find(|(unit, _)| count >= *unit) {
        Some(&(unit, name)) => {
            let value = count as f64 / unit as f64;
            let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
            format!("{value:.digits$} {name}")
        }
        None => format!("{count} B"),
    }
}

/// Describes the machine in one line.
pub(crate) fn machine_line() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str, separator: char| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_start().trim_start_matches(separator).trim().trim_matches('"').to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory_gib = memory_bytes("MemTotal") / (1 << 30);
    format!(
        "{}, {cores} cores, {memory_gib} GiB, {}, Linux {}",
        field(&read("/proc/cpuinfo"), "model name", ':'),
        field(&read("/etc/os-release"), "PRETTY_NAME=", '='),
        read("/proc/sys/kernel/osrelease").trim(),
    )
}

/// First line of a program's output on either stream.
pub(crate) fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&text).lines().find(|line| !line.trim().is_empty())?.to_owned();
    Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Today's date in UTC, as 2026-01-31.
pub(crate) fn today() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    date(since.as_secs() / 86400)
}

/// Gregorian date of a day since 1970-01-01.
fn date(days: u64) -> String {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut left) = (1970, days);
    while left >= 365 + u64::from(is_leap(year)) {
        left -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while left >= lengths[month] {
        left -= lengths[month];
        month += 1;
    }
    format!("{year}-{:02}-{:02}", month + 1, left + 1)
}
