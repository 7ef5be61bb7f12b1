//! Numbers for people.

use std::time::Duration;

/// A count with separated thousands: `1,234`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with its noun: `1 entry`, `2 entries`.
pub(crate) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// Bytes in powers of a thousand, as rsync, curl and disks count them: `999 B`, `1.2 MB`.
pub(crate) fn bytes(number: u64) -> String {
    let mut value = number as f64;
    let mut units = ["kB", "MB", "GB", "TB", "PB"].into_iter();
    let mut unit = "B";
    // From 999.95 on, one decimal would show 1000.0.
    while value >= 999.95 || (unit == "B" && value >= 1000.0) {
        let Some(larger) = units.next() else { break };
        unit = larger;
        value /= 1000.0;
    }
    if unit == "B" { format!("{number} B") } else { format!("{value:.1} {unit}") }
}

/// A number in powers of a thousand with two decimals, as rsync -h writes it: `4.10K`.
pub(crate) fn rounded(number: u64) -> String {
    let mut value = number as f64;
    let mut unit = "";
    for larger in ["K", "M", "G", "T", "P"] {
        if value < 1000.0 {
            break;
        }
        (value, unit) = (value / 1000.0, larger);
    }
    if unit.is_empty() { number.to_string() } else { format!("{value:.2}{unit}") }
}

/// A time span: `0.8 s`, `2 min 5 s`, `1 h 2 min`.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    if time < Duration::from_millis(59_950) {
        format!("{:.1} s", time.as_secs_f64())
    } else if seconds < 3600 {
        format!("{} min {} s", seconds.max(60) / 60, seconds.max(60) % 60)
    } else {
        format!("{} h {} min", count(seconds / 3600), seconds % 3600 / 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        let texts = [0, 12, 999, 1000, 1_234_567].map(count);
        assert_eq!(texts, ["0", "12", "999", "1,000", "1,234,567"]);
        assert_eq!(counted(1, "entry", "entries"), "1 entry");
        assert_eq!(counted(0, "entry", "entries"), "0 entries");
    }

    #[test]
    fn bytes_have_one_decimal_and_never_four_digits() {
        let texts = [0, 999, 1000, 999_949, 999_950, 1_200_000, 45_600_000_000].map(bytes);
        assert_eq!(texts, ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "1.2 MB", "45.6 GB"]);
    }

    #[test]
    fn spans_have_the_two_units_that_matter() {
        let texts = [80, 800, 59_949, 59_950, 125_000, 3_725_000].map(|ms| span(Duration::from_millis(ms)));
        assert_eq!(texts, ["0.1 s", "0.8 s", "59.9 s", "1 min 0 s", "2 min 5 s", "1 h 2 min"]);
    }
}
