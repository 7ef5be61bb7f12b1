//! Retry decisions, by the rules of the official SDKs. This module neither sleeps, reads a clock
//! nor draws random numbers.
//!
//! The rules retry every call, even one that may already have done its work. If the answer is lost,
//! a session may be created twice, and a command may run twice. Every command that ksync runs
//! through the API must therefore do no harm if it runs twice.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Retries of a call.
const RETRIES_MAX: u32 = 2;

/// Delay before the first retry, in seconds. Each further delay is twice as long.
const DELAY_S_MIN: f64 = 0.5;

/// Longest delay without the API's advice, in seconds.
const DELAY_S_MAX: f64 = 8.0;

/// Largest share of a delay that the jitter removes, so that clients do not return all at once.
const JITTER: f64 = 0.25;

/// Longest delay that the API may ask for, in seconds. A longer one is ignored.
const ASKED_DELAY_S_MAX: f64 = 60.0;

/// Result of a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Outcome {
    /// No answer: the connection failed, broke, or stayed silent.
    NoAnswer,
    /// An answer with an error status.
    Answer {
        /// The HTTP status.
        status: u16,
        /// The answer's advice about a retry.
        advice: Advice,
    },
    /// A failure that a retry cannot change.
    Final,
}

impl Outcome {
    /// The result, for the log.
    pub(super) fn label(&self) -> String {
        match self {
            Self::NoAnswer => "no-answer".to_owned(),
            Self::Answer { status, .. } => format!("status-{status}"),
            Self::Final => "final".to_owned(),
        }
    }
}

/// Retry advice in an answer's headers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Advice {
    should_retry: Option<bool>,
    /// Delay in seconds.
    delay_s: Option<f64>,
}

/// Decision about a retry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Decision {
    /// Retry after this delay.
    RetryAfter(Duration),
    /// Return the failure.
    GiveUp,
}

impl Advice {
    /// Reads the headers `x-should-retry`, `retry-after-ms` and `Retry-After`. The last one may be
    /// a date; the delay then counts from `now`.
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

    /// The delay that the API asks for, if it is a valid time; of any length.
    pub(super) fn delay(&self) -> Option<Duration> {
        let delay_s = self.delay_s.filter(|delay_s| *delay_s > 0.0)?;
        Duration::try_from_secs_f64(delay_s).ok()
    }
}

/// Decides about a retry after `attempts` failed calls, of which the last ended with `outcome`.
/// `random` is a random number from 0 to 1.
pub(super) fn decide(attempts: u32, outcome: Outcome, random: f64) -> Decision {
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
    let delay = Duration::from_secs_f64(delay_s * (1.0 - JITTER * random.clamp(0.0, 1.0)));
    let asked = asked.filter(|asked| asked.as_secs_f64() <= ASKED_DELAY_S_MAX);
    Decision::RetryAfter(asked.unwrap_or(delay))
}

/// Parses today's HTTP date format, `Sun, 06 Nov 1994 08:49:37 GMT`, into seconds since 1970.
pub(super) fn http_date(text: &str) -> Option<i64> {
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
    // Years begin in March here, so that the leap day is the last one.
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
    fn the_header_overrides_the_status() {
        assert_eq!(after(404, &[("x-should-retry", "true")]), retry(0.5));
        assert_eq!(after(500, &[("x-should-retry", "false")]), Decision::GiveUp);
        assert_eq!(after(500, &[("x-should-retry", "perhaps")]), retry(0.5));
    }

    #[test]
    fn a_call_is_retried_twice_with_growing_delays() {
        let waits = [1, 2, 3].map(|attempts| decide(attempts, Outcome::NoAnswer, 0.0));
        assert_eq!(waits, [retry(0.5), retry(1.0), Decision::GiveUp]);
        let stubborn = Outcome::Answer { status: 500, advice: advice(&[("x-should-retry", "true")]) };
        assert_eq!(decide(3, stubborn, 0.0), Decision::GiveUp);
        assert_eq!(decide(u32::MAX, Outcome::NoAnswer, 0.0), Decision::GiveUp);
    }

    #[test]
    fn the_jitter_removes_a_quarter_at_most() {
        for (random, seconds) in [(0.0, 0.5), (0.5, 0.4375), (1.0, 0.375), (7.0, 0.375), (-7.0, 0.5)] {
            assert_eq!(decide(1, Outcome::NoAnswer, random), retry(seconds), "{random}");
        }
    }

    #[test]
    fn a_sane_delay_from_the_api_is_kept() {
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
        // `retry-after-ms` takes precedence, even with an unusable value.
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
