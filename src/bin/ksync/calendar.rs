//! Times as rsync writes them, in UTC.

/// The character between the date and the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Separator {
    Blank,
    Dash,
}

/// Seconds since 1970 as `2026/12/01 11:43:04`.
pub(crate) fn stamp(seconds: i64, separator: Separator) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    let between = match separator {
        Separator::Blank => ' ',
        Separator::Dash => '-',
    };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}/{month:02}/{day:02}{between}{hour:02}:{minute:02}:{second:02}")
}

/// The date of a day since 1970. A year begins with March here, so that a leap day is its last.
fn date(days: i64) -> (i64, i64, i64) {
    const ERA_DAYS: i64 = 146_097;
    // Days from the first of March of the year 0 to 1970.
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970/01/01 00:00:00"),
            (-1, "1969/12/31 23:59:59"),
            (951_782_399, "2000/02/28 23:59:59"),
            (951_827_696, "2000/02/29 12:34:56"),
            (1_767_323_045, "2026/01/02 03:04:05"),
            (4_107_542_400, "2100/03/01 00:00:00"),
        ] {
            assert_eq!(stamp(seconds, Separator::Blank), expected);
        }
        assert_eq!(stamp(0, Separator::Dash), "1970/01/01-00:00:00");
    }
}
