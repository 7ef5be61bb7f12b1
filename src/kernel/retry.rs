//! Whether a call is made again, and when. The rules are those of the official SDKs; nothing here waits, asks
//! a clock, or throws dice.
//!
//! They make every call again, also one that may have done its work already: a session that was made although
//! the answer got lost is made twice, and a command may run twice. So whatever ksync runs through the API
//! must be such that a second time does no harm.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often a call is made again.
const RETRIES_MAX: u32 = 2;

/// How long to wait before the first time, in seconds. Each further wait is twice as long.
const DELAY_S_MIN: f64 = 0.5;

/// The longest wait that is not asked for, in seconds.
const DELAY_S_MAX: f64 = 8.0;

/// The part of a wait that the dice may take off, so that not all clients come back at once.
const JITTER: f64 = 0.25;

/// The longest wait that the API may ask for, in seconds. What asks for more is not listened to.
const ASKED_DELAY_S_MAX: f64 = 60.0;

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Outcome {
    /// No answer, since there was no connection, or no longer, or nothing came over it.
    NoAnswer,
    /// An answer that is not what was asked for.
    Answer {
        /// The HTTP status.
        status: u16,
        /// What it says about trying again.
        advice: Advice,
    },
    /// Something that stays as it is.
    Final,
}

/// What an answer's headers say about trying again.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Advice {
    should_retry: Option<bool>,
    /// How long to wait, in seconds.
    delay_s: Option<f64>,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Decision {
    /// Make the call again after this time.
    RetryAfter(Duration),
    /// Be content with the outcome.
    GiveUp,
}

impl Advice {
    /// Reads the headers `x-should-retry`, `retry-after-ms` and `Retry-After`; the last one may be a date,
    /// which is compared with `now`.
    pub(super) fn read<'a>(header: impl Fn(&str) -> Option<&'a str>, now: SystemTime) -> Self {
        let should_retry = match header("x-should-retry") {
            Some("true") => Some(true),
            Some("false") => Some(false),
            _ => None,
        };
        let number = |name| header(name).and_then(|text| text.trim().parse::<f64>().ok());
        let until = || {
            let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs_f64();
            #[allow(clippy::cast_precision_loss)]
            http_date(header("retry-after")?.trim()).map(|seconds| seconds as f64 - now)
        };
        let delay_s = number("retry-after-ms").map(|ms| ms / 1000.0);
        Self { should_retry, delay_s: delay_s.or_else(|| number("retry-after")).or_else(until) }
    }

    /// How long the API asks to wait, where that is a time at all, however long.
    pub(super) fn delay(&self) -> Option<Duration> {
        let delay_s = self.delay_s.filter(|delay_s| *delay_s > 0.0)?;
        Duration::try_from_secs_f64(delay_s).ok()
    }
}

/// Whether to make a call again after `attempts` of them have failed, the last one with `outcome`. `dice` is
/// a random number from 0 to 1.
pub(super) fn decide(attempts: u32, outcome: Outcome, dice: f64) -> Decision {
    let (may_help, asked) = match outcome {
        Outcome::NoAnswer => (true, None),
        Outcome::Answer { status, advice } => {
            let by_status = matches!(status, 408 | 409 | 429 | 500..);
            (advice.should_retry.unwrap_or(by_status), advice.delay())
        }
        Outcome::Final => (false, None),
    };
    if !may_help || attempts > RETRIES_MAX {
        return Decision::GiveUp;
    }
    let doublings = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
    let delay_s = (DELAY_S_MIN * 2.0_f64.powi(doublings)).min(DELAY_S_MAX);
    let delay = Duration::from_secs_f64(delay_s * (1.0 - JITTER * dice.clamp(0.0, 1.0)));
    let asked = asked.filter(|asked| asked.as_secs_f64() <= ASKED_DELAY_S_MAX);
    Decision::RetryAfter(asked.unwrap_or(delay))
}

/// Reads a date as HTTP writes it today, `Sun, 06 Nov 1994 08:49:37 GMT`; in seconds since 1970.
fn http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.strip_suffix(" GMT")?.split_once(", ")?.1.split(' ');
    let day = ranged(words.next()?, 1, 31)?;
    let month = words.next().and_then(|word| MONTHS.iter().position(|month| *month == word))?;
    let year = ranged(words.next()?, 1970, 9999)?;
    let mut clock = words.next()?.split(':');
    let (hour, minute) = (ranged(clock.next()?, 0, 23)?, ranged(clock.next()?, 0, 59)?);
    // A leap second is 60.
    let second = ranged(clock.next()?, 0, 60)?;
    if words.next().is_some() || clock.next().is_some() {
        return None;
    }
    // Years begin in March, so that the leap day is the last one.
    let months = (i64::try_from(month).ok()? + 10) % 12;
    let year = if months >= 10 { year - 1 } else { year };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (months * 153 + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

fn ranged(text: &str, min: i64, max: i64) -> Option<i64> {
    let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()?;
    (min..=max).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advice(headers: &[(&'static str, &'static str)]) -> Advice {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        Advice::read(|name| headers.iter().find(|(known, _)| *known == name).map(|(_, value)| *value), now)
    }

    fn after(status: u16, headers: &[(&'static str, &'static str)]) -> Decision {
        decide(1, Outcome::Answer { status, advice: advice(headers) }, 0.0)
    }

    fn retry(seconds: f64) -> Decision {
        Decision::RetryAfter(Duration::from_secs_f64(seconds))
    }

    #[test]
    fn the_status_decides() {
        for status in [408, 409, 429, 500, 502, 503, 504, 529, 599] {
            assert_eq!(after(status, &[]), retry(0.5), "{status}");
        }
        for status in [400, 401, 403, 404, 410, 422, 428] {
            assert_eq!(after(status, &[]), Decision::GiveUp, "{status}");
        }
        assert_eq!(decide(1, Outcome::NoAnswer, 0.0), retry(0.5));
        assert_eq!(decide(1, Outcome::Final, 0.0), Decision::GiveUp);
    }

    #[test]
    fn the_api_may_say_otherwise() {
        assert_eq!(after(404, &[("x-should-retry", "true")]), retry(0.5));
        assert_eq!(after(500, &[("x-should-retry", "false")]), Decision::GiveUp);
        assert_eq!(after(500, &[("x-should-retry", "perhaps")]), retry(0.5));
    }

    #[test]
    fn it_is_tried_twice_more_each_time_later() {
        let waits = [1, 2, 3].map(|attempts| decide(attempts, Outcome::NoAnswer, 0.0));
        assert_eq!(waits, [retry(0.5), retry(1.0), Decision::GiveUp]);
        let stubborn = Outcome::Answer { status: 500, advice: advice(&[("x-should-retry", "true")]) };
        assert_eq!(decide(3, stubborn, 0.0), Decision::GiveUp);
        assert_eq!(decide(u32::MAX, Outcome::NoAnswer, 0.0), Decision::GiveUp);
    }

    #[test]
    fn the_dice_take_off_a_quarter_at_most() {
        for (dice, seconds) in [(0.0, 0.5), (0.5, 0.4375), (1.0, 0.375), (7.0, 0.375), (-7.0, 0.5)] {
            assert_eq!(decide(1, Outcome::NoAnswer, dice), retry(seconds), "{dice}");
        }
    }

    #[test]
    fn a_wait_that_is_asked_for_is_kept_if_it_is_sane() {
        for (name, value, seconds) in [
            ("retry-after", "7", 7.0),
            ("retry-after", "0.25", 0.25),
            ("retry-after", "60", 60.0),
            ("retry-after-ms", "1500", 1.5),
            ("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
            ("retry-after", "61", 0.5),
            ("retry-after", "0", 0.5),
            ("retry-after", "-3", 0.5),
            ("retry-after", "inf", 0.5),
            ("retry-after", "NaN", 0.5),
            ("retry-after", "1e300", 0.5),
            ("retry-after", "soon", 0.5),
            ("retry-after", "", 0.5),
            ("retry-after-ms", "60001", 0.5),
            ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT", 0.5),
            ("retry-after", "Sun, 06 Nov 1994 08:59:37 GMT", 0.5),
        ] {
            assert_eq!(after(429, &[(name, value)]), retry(seconds), "{name}: {value}");
        }
        // The finer one counts, even where it is of no use.
        assert_eq!(after(429, &[("retry-after", "7"), ("retry-after-ms", "20")]), retry(0.02));
        assert_eq!(after(429, &[("retry-after", "7"), ("retry-after-ms", "99999")]), retry(0.5));
        assert_eq!(after(429, &[("retry-after", "7"), ("retry-after-ms", "x")]), retry(7.0));
        assert_eq!(advice(&[("retry-after", "120")]).delay(), Some(Duration::from_secs(120)));
    }

    #[test]
    fn dates_are_read_or_refused() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Tue, 29 Feb 2000 23:59:59 GMT", 951_868_799),
            ("Wed, 01 Mar 2000 00:00:00 GMT", 951_868_800),
            ("Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_799),
        ] {
            assert_eq!(http_date(text), Some(seconds), "{text}");
        }
        for text in [
            "",
            "GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun, 06 Nov 1994 08:49:37 +0000",
            "Sun, 32 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:49:37 GMT",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 06 Nov 1994 08:49:37:00 GMT",
            "Sun, 06 Nov 99999999999999999999 08:49:37 GMT",
            "Sun, +6 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 x GMT",
        ] {
            assert_eq!(http_date(text), None, "{text}");
        }
    }
}
