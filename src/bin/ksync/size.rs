//! Sizes as rsync reads them: `1.5m`, `100KiB`, `1GB-1`.

/// The largest size.
const BYTES_MAX: u64 = i64::MAX as u64;

/// Digits of a fraction that count: the largest unit has fewer.
const FRACTION_DIGITS_MAX: usize = 18;

/// Parses a size. A letter alone or with `iB` counts in powers of 1,024, with `B` in powers of
/// 1,000; `+1` or `-1` at the end is one byte.
pub(crate) fn size(text: &str) -> Result<u64, &'static str> {
    parse(text, "b")
}

/// Least bytes a second, as in rsync.
const RATE_MIN: u64 = 512;

/// Parses a rate in bytes a second. Without a unit it counts in KiB.
pub(crate) fn rate(text: &str) -> Result<u64, &'static str> {
    match parse(text, "k") {
        Ok(1..RATE_MIN) => Err("a rate of at least 512b, or 0 for any rate"),
        Ok(rate) => Ok(rate),
        Err(_) => Err("a rate, such as 100 (KiB a second), 1.5m or 64KiB"),
    }
}

/// Parses a size with a unit, or in the default unit.
fn parse(text: &str, default: &str) -> Result<u64, &'static str> {
    const EXPECTED: &str = "a size, such as 100, 1.5m, 64KiB or 1GB-1";
    const TOO_LARGE: &str = "a size below 8192P";
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let (unit, offset) = match rest.strip_suffix("+1") {
        Some(unit) => (unit, 1),
        None => rest.strip_suffix("-1").map_or((rest, 0), |unit| (unit, -1)),
    };
    let unit = if unit.is_empty() { default.to_owned() } else { unit.to_ascii_lowercase() };
    let (letter, suffix) = unit.split_at_checked(1).unwrap_or_default();
    let power = if letter == "b" {
        0
    } else {
        ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == letter).ok_or(EXPECTED)?
    };
    let base: u64 = match suffix {
        "" | "ib" => 1024,
        "b" => 1000,
        _ => return Err(EXPECTED),
    };
    let unit = (0..power).fold(1, |unit: u64, _| unit.saturating_mul(base));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return Err(EXPECTED);
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| TOO_LARGE)? };
    // Parts of a byte do not count.
    let digits = fraction.chars().filter_map(|digit| digit.to_digit(10)).take(FRACTION_DIGITS_MAX);
    let (part, divisor) = digits
        .fold((0, 1), |(part, divisor): (u128, u128), digit| (part * 10 + u128::from(digit), divisor * 10));
    let part = u64::try_from(u128::from(unit) * part / divisor).map_err(|_| TOO_LARGE)?;
    let bytes = whole.checked_mul(unit).and_then(|bytes| bytes.checked_add(part)).ok_or(TOO_LARGE)?;
    let bytes = bytes.checked_add_signed(offset).ok_or(EXPECTED)?;
    if bytes > BYTES_MAX { Err(TOO_LARGE) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_rsync_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1.5", 1),
            ("1b", 1),
            ("1K", 1024),
            ("1kb", 1000),
            ("1KiB", 1024),
            ("1.5m", 3 << 19),
            ("1.5mb-1", 1_499_999),
            ("1.2k", 1228),
            ("1KiB+1", 1025),
            (".5k", 512),
            ("5.k", 5120),
            ("2g", 2 << 30),
            ("1T", 1 << 40),
            ("1P", 1 << 50),
            ("10+1", 11),
            ("10-1", 9),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in
            ["-1", "1ki", "1kbb", "1E", "10+2", "", " 5", "1.2.3", "0-1", "1X", "0x10", "1e3", "-0", "9000P"]
        {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
