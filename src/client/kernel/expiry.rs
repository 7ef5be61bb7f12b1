//! Session expiry: the known facts, the foreseen end, and the warning before it.
//!
//! A session ends 72 hours after its creation in any case. It ends earlier if it is idle for its
//! timeout, and SSH does not count as use. ksync therefore holds the CDP WebSocket open (see
//! `keep_alive`). That WebSocket can be opened only until the token in its URL expires.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::kernel::domain;
use crate::kernel::session_store::StoredSession;
use crate::kernel::types::Browser;

/// Maximum age of a session.
const AGE_MAX: Duration = Duration::from_secs(72 * 60 * 60);

/// Remaining time below which a warning is due: enough to fetch valuable files.
pub const SHORT: Duration = Duration::from_secs(15 * 60);

/// Facts about a session's expiry, by the platform's clock. ksync assumes that the local clock
/// agrees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expiry {
    /// Creation time.
    pub made: Option<SystemTime>,
    /// Idle timeout.
    pub timeout: Option<Duration>,
    /// Expiry of the token that keeps the session awake.
    pub awake_until: Option<SystemTime>,
}

/// Cause of a session's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The session has reached the maximum age.
    Age,
    /// The token expires, and then the idle timeout runs.
    Token,
    /// Nothing keeps the session awake, so the idle timeout runs now.
    Timeout,
}

/// The foreseen end of a session. Unless the cause is its age, other use may prolong it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Time of the end.
    pub at: SystemTime,
    /// Cause of the end.
    pub cause: Cause,
}

impl Expiry {
    /// Reads the stored facts. A session stored by an older ksync has fewer of them.
    #[must_use]
    pub fn of(stored: &StoredSession) -> Self {
        Self {
            made: stored.created_at.as_deref().and_then(time),
            timeout: stored.timeout_seconds.map(Duration::from_secs),
            awake_until: domain::vm(&stored.cdp_ws_url).ok().and_then(|vm| vm.expires),
        }
    }

    /// Reads the facts that the API tells.
    #[must_use]
    pub fn of_browser(browser: &Browser) -> Self {
        Self {
            made: time(&browser.created_at),
            timeout: Some(Duration::from_secs(browser.timeout_seconds)),
            awake_until: browser.vm().ok().and_then(|vm| vm.expires),
        }
    }

    /// Time until the maximum age, and time until the token expires, as far as they are known.
    #[must_use]
    pub fn left(&self, now: SystemTime) -> (Option<Duration>, Option<Duration>) {
        let left = |at: SystemTime| at.duration_since(now).unwrap_or_default();
        let age = self.made.and_then(|made| made.checked_add(AGE_MAX));
        (age.map(left), self.awake_until.map(left))
    }

    /// Reports if the token in the keep-alive URL has expired, or will soon.
    #[must_use]
    pub fn is_token_short(&self, now: SystemTime) -> bool {
        self.awake_until.is_some_and(|until| until <= now + SHORT)
    }

    /// The first end foreseen at `now`, for a session in use from now on. `is_kept_awake` tells if
    /// ksync holds the keep-alive.
    #[must_use]
    pub fn end(&self, now: SystemTime, is_kept_awake: bool) -> Option<End> {
        let age = self.made.and_then(|made| made.checked_add(AGE_MAX));
        let age = age.map(|at| End { at, cause: Cause::Age });
        let timeout = self.timeout.and_then(|timeout| {
            let (from, cause) = match (is_kept_awake, self.awake_until) {
                (false, _) => (now, Cause::Timeout),
                (true, Some(until)) => (until.max(now), Cause::Token),
                (true, None) => return None,
            };
            Some(End { at: from.checked_add(timeout)?, cause })
        });
        // At equal times the age wins, because nobody can change it.
        age.into_iter().chain(timeout).min_by_key(|end| end.at)
    }
}

impl End {
    /// Time left until the end.
    #[must_use]
    pub fn left(&self, now: SystemTime) -> Duration {
        self.at.duration_since(now).unwrap_or_default()
    }

    /// Time left until the warning is due; zero if it is due now.
    #[must_use]
    pub fn is_short_in(&self, now: SystemTime) -> Duration {
        self.left(now).saturating_sub(SHORT)
    }

    /// Message for the user, and a hint: the end, its cause, and a remedy.
    #[must_use]
    pub fn told(&self, session: &str, now: SystemTime) -> (String, String) {
        let left = Left(self.left(now));
        match self.cause {
            Cause::Age => (
                format!(
                    "session {session} ends {left} at the latest, and its files with it: no session gets older \
                     than 72 hours"
                ),
                "Download the files you need, and go on in a new session: ksync session create.".to_owned(),
            ),
            Cause::Token => (
                format!(
                    "session {session} may end {left}, and its files with it: the token that keeps it awake \
                     expires"
                ),
                format!("Run ksync session setup {session}, which asks for another token."),
            ),
            Cause::Timeout => (
                format!(
                    "session {session} may end {left}, and its files with it: it is not kept awake, and SSH \
                     does not count as use"
                ),
                "Omit --no-keep-alive, or make the session with a longer --timeout.".to_owned(),
            ),
        }
    }
}

/// Remaining time in whole minutes, rounded down.
struct Left(Duration);

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() / 60 {
            0 => f.write_str("in less than a minute"),
            1 => f.write_str("in 1 minute"),
            minutes => write!(f, "in {minutes} minutes"),
        }
    }
}

/// A span of time in whole units: `90 s`, `5 minutes`, `72 hours`.
pub(super) fn span(seconds: u64) -> String {
    let counted = |number: u64, unit: &str| format!("{number} {unit}{}", if number == 1 { "" } else { "s" });
    match seconds {
        3600.. if seconds.is_multiple_of(3600) => counted(seconds / 3600, "hour"),
        60.. if seconds.is_multiple_of(60) => counted(seconds / 60, "minute"),
        _ => format!("{seconds} s"),
    }
}

/// Parses an RFC 3339 time such as `2026-08-05T13:37:00.123Z`. Returns `None` for invalid text and
/// for times before 1970.
pub(super) fn time(text: &str) -> Option<SystemTime> {
    let (date, rest) = text.trim().split_once(['T', 't', ' '])?;
    let zone = rest.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = rest.split_at_checked(zone)?;
    let [year, month, day] = numbers(date, '-')?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let [hour, minute, second] = numbers(clock, ':')?;
    // Second 60, a leap second, counts as the second after it.
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let nanos = format!("{:0<9.9}", fraction).parse().ok()?;
    let seconds = day_number(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset(zone)?;
    UNIX_EPOCH.checked_add(Duration::new(u64::try_from(seconds).ok()?, nanos))
}

/// Offset of a zone from UTC in seconds: `Z`, `+01:00`.
fn offset(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (sign, rest) = zone.split_at_checked(1)?;
    let [hours, minutes] = numbers(rest, ':')?;
    let ahead = hours * 3600 + minutes * 60;
    Some(if sign == "-" { -ahead } else { ahead })
}

/// Parses `N` numbers of at most four digits each.
fn numbers<const N: usize>(text: &str, between: char) -> Option<[i64; N]> {
    let number = |part: &str| {
        let is_number = (1..=4).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| part.parse().ok())?
    };
    text.split(between).map(number).collect::<Option<Vec<i64>>>()?.try_into().ok()
}

/// Days since 1970 of a Gregorian date. The computation lets years begin in March.
fn day_number(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    365 * year + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    #[test]
    fn the_first_end_counts_and_unknown_facts_end_nothing() {
        let secs = Duration::from_secs;
        let expiry = |made: Option<u64>, timeout: Option<u64>, awake_until: Option<u64>| Expiry {
            made: made.map(at),
            timeout: timeout.map(secs),
            awake_until: awake_until.map(at),
        };
        let all = expiry(Some(0), Some(300), Some(72 * HOUR));
        let short_token = expiry(Some(0), Some(300), Some(HOUR));
        use Cause::{Age, Timeout, Token};
        for (expiry, now, is_kept_awake, end) in [
            (Expiry::default(), 0, true, None),
            (Expiry::default(), 0, false, None),
            // The token lives as long as the session, so the age ends the session.
            (all, 0, true, Some((72 * HOUR, Age))),
            (all, 71 * HOUR, true, Some((72 * HOUR, Age))),
            (all, 80 * HOUR, true, Some((72 * HOUR, Age))),
            (all, 0, false, Some((300, Timeout))),
            (all, 72 * HOUR - 100, false, Some((72 * HOUR, Age))),
            (short_token, 0, true, Some((HOUR + 300, Token))),
            (short_token, 2 * HOUR, true, Some((2 * HOUR + 300, Token))),
            (expiry(None, Some(300), None), 7, true, None),
            (expiry(None, Some(300), None), 7, false, Some((307, Timeout))),
            (expiry(None, None, Some(HOUR)), 0, true, None),
            (expiry(Some(0), None, None), 0, false, Some((72 * HOUR, Age))),
            (expiry(Some(0), Some(72 * HOUR), None), 0, false, Some((72 * HOUR, Age))),
        ] {
            let expected = end.map(|(seconds, cause)| End { at: at(seconds), cause });
            assert_eq!(expiry.end(at(now), is_kept_awake), expected, "{expiry:?} at {now}, {is_kept_awake}");
        }
    }

    #[test]
    fn a_warning_is_due_a_quarter_of_an_hour_before_the_end() {
        let end = End { at: at(HOUR), cause: Cause::Age };
        let short_in = [0, 30 * MINUTE, 45 * MINUTE, 50 * MINUTE, 2 * HOUR];
        let short_in = short_in.map(|now| end.is_short_in(at(now)).as_secs() / MINUTE);
        assert_eq!(short_in, [45, 15, 0, 0, 0]);
    }

    #[test]
    fn each_end_has_a_message_and_a_hint() {
        let told = |cause, left: u64| {
            let (what, hint) = End { at: at(left), cause }.told("x", at(0));
            format!("{what}; {hint}")
        };
        assert_eq!(
            told(Cause::Age, 9 * MINUTE + 59),
            "session x ends in 9 minutes at the latest, and its files with it: no session gets older than \
             72 hours; Download the files you need, and go on in a new session: ksync session create."
        );
        assert_eq!(
            told(Cause::Token, 61),
            "session x may end in 1 minute, and its files with it: the token that keeps it awake expires; \
             Run ksync session setup x, which asks for another token."
        );
        assert_eq!(
            told(Cause::Timeout, 59),
            "session x may end in less than a minute, and its files with it: it is not kept awake, and SSH does \
             not count as use; Omit --no-keep-alive, or make the session with a longer --timeout."
        );
    }

    #[test]
    fn times_are_parsed_as_by_date() {
        for (text, millis) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-28T23:59:59.999Z", 951_782_399_999),
            ("2000-02-29T00:00:00.000Z", 951_782_400_000),
            ("2026-08-05T13:37:00.123456789123Z", 1_785_937_020_123),
            ("2026-08-05t15:37:00.1+02:00", 1_785_937_020_100),
            ("2026-08-05 08:07:00-05:30", 1_785_937_020_000),
            ("2100-03-01T00:00:00Z", 4_107_542_400_000),
        ] {
            let read = time(text).map(|time| time.duration_since(UNIX_EPOCH).unwrap().as_millis());
            assert_eq!(read, Some(millis), "{text}");
        }
        for text in [
            "",
            "now",
            "2026-08-05",
            "2026-08-05T13:37:00",
            "2026-13-05T13:37:00Z",
            "2026-08-05T13:37Z",
            "2026-08-05T13:37:00+1",
            "1969-12-31T23:59:59Z",
            "2026-08-05T13:37:00.xZ",
            "99999-08-05T13:37:00Z",
            "2026-08-05T13:37:00é",
        ] {
            assert_eq!(time(text), None, "{text}");
        }
    }
}
