//! `TimeRule`: the differences between two modification times that do not count.

use serde::{Deserialize, Serialize};

use crate::tree::entry::Time;

const SECOND_NANOS: i128 = 1_000_000_000;

/// Granularities of filesystems in nanoseconds, finest first: NTFS and SMB 100 ns, UDF 1 µs,
/// servers 1 ms, exFAT 10 ms, HFS+ and ext3 1 s, FAT 2 s.
const GRANULARITIES: [u32; 7] = [1, 100, 1000, 1_000_000, 10_000_000, 1_000_000_000, 2_000_000_000];

/// A time that no granularity but the finest can hold.
const PROBE: (i64, u32) = (1_000_000_001, 123_456_789);

/// The differences between the time of a source's entry and that of its copy that do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TimeRule {
    /// None.
    #[default]
    Exact,
    /// Those that a filesystem makes that stores times as multiples of this many nanoseconds.
    Granularity(u32),
    /// At most this many whole seconds, as rsync's `--modify-window`.
    Window(u32),
}

impl TimeRule {
    /// True if the difference between the times does not count.
    #[must_use]
    pub fn are_same(self, wanted: Time, present: Time) -> bool {
        wanted == present
            || match self {
                Self::Exact => false,
                // Most filesystems round down, some round up.
                Self::Granularity(granularity) => {
                    let rest = nanos(wanted).rem_euclid(granularity.into());
                    let floor = nanos(wanted) - rest;
                    rest > 0 && [floor, floor + i128::from(granularity)].contains(&nanos(present))
                }
                Self::Window(seconds) => wanted.seconds().abs_diff(present.seconds()) <= seconds.into(),
            }
    }

    /// True for a file whose source may have changed after the copy was made, with a time that
    /// rounds to the same: the copy got its time (`ctime`) before the next multiple. As Git does
    /// with "racily clean" entries of its index. A `ctime` of 0 means that the filesystem has none.
    #[must_use]
    pub fn may_hide_a_change(self, mtime: Time, ctime: Time) -> bool {
        match self {
            Self::Exact | Self::Window(_) => false,
            Self::Granularity(granularity) => {
                ctime.seconds() > 0 && nanos(ctime) < nanos(mtime) + i128::from(granularity)
            }
        }
    }

    /// The coarsest rule that all of these times fit. `Exact` means that the filesystem which holds
    /// them is as fine as any.
    pub fn coarsest(times: impl IntoIterator<Item = Time>) -> Self {
        let mut left = &GRANULARITIES[..];
        for time in times {
            if left.len() == 1 {
                break;
            }
            while let [finer @ .., last] = left
                && nanos(time).rem_euclid((*last).into()) != 0
            {
                left = finer;
            }
        }
        Self::of_granularity(left.last().copied().unwrap_or(1))
    }

    /// The rule of a filesystem that stores `times.0` as `times.1`; `None` if no filesystem does.
    #[must_use]
    pub fn of_stored((set, stored): (Time, Time)) -> Option<Self> {
        let rules = GRANULARITIES.into_iter().map(Self::of_granularity);
        rules.into_iter().find(|rule| rule.are_same(set, stored))
    }

    fn of_granularity(nanos: u32) -> Self {
        if nanos > 1 { Self::Granularity(nanos) } else { Self::Exact }
    }
}

/// A time that shows the granularity of the filesystem that stores it.
#[must_use]
pub fn probe_time() -> Option<Time> {
    Time::new(PROBE.0, PROBE.1)
}

fn nanos(time: Time) -> i128 {
    i128::from(time.seconds()) * SECOND_NANOS + i128::from(time.nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(seconds: i64, nanos: u32) -> Time {
        Time::new(seconds, nanos).unwrap()
    }

    #[test]
    fn granularity_takes_rounded_times_for_same_and_no_others() {
        let wanted = time(1_000_000_001, 123_456_789);
        for (granularity, same, differs) in [
            (100, time(1_000_000_001, 123_456_700), time(1_000_000_001, 123_456_600)),
            (100, time(1_000_000_001, 123_456_800), time(1_000_000_001, 123_456_788)),
            (1000, time(1_000_000_001, 123_456_000), time(1_000_000_001, 123_455_000)),
            (1_000_000_000, time(1_000_000_001, 0), time(1_000_000_000, 0)),
            (1_000_000_000, time(1_000_000_002, 0), time(1_000_000_003, 0)),
            (2_000_000_000, time(1_000_000_000, 0), time(1_000_000_004, 0)),
        ] {
            let rule = TimeRule::Granularity(granularity);
            assert!(rule.are_same(wanted, same), "{granularity} {same:?}");
            assert!(!rule.are_same(wanted, differs), "{granularity} {differs:?}");
            assert!(!TimeRule::Exact.are_same(wanted, same));
        }
        // Before 1970, and a time that the filesystem can hold as it is.
        assert!(TimeRule::Granularity(2_000_000_000).are_same(time(-3, 5), time(-4, 0)));
        assert!(!TimeRule::Granularity(1_000_000_000).are_same(time(5, 0), time(6, 0)));
    }

    #[test]
    fn change_within_the_granularity_of_the_copy_may_be_hidden() {
        let rule = TimeRule::Granularity(2_000_000_000);
        assert!(rule.may_hide_a_change(time(100, 0), time(101, 999)));
        assert!(!rule.may_hide_a_change(time(100, 0), time(102, 0)));
        assert!(!rule.may_hide_a_change(time(100, 0), time(0, 0)));
        assert!(!TimeRule::Exact.may_hide_a_change(time(100, 0), time(100, 0)));
    }

    #[test]
    fn window_counts_whole_seconds_as_rsync_does() {
        for (window, other, expected) in
            [(0, time(5, 9), true), (0, time(6, 0), false), (2, time(7, 999), true), (2, time(8, 0), false)]
        {
            assert_eq!(
                TimeRule::Window(window).are_same(time(5, 500), other),
                expected,
                "{window} {other:?}"
            );
        }
    }

    #[test]
    fn coarsest_rule_fits_all_times() {
        let coarsest = |nanos: &[u32]| TimeRule::coarsest(nanos.iter().map(|nanos| time(4, *nanos)));
        assert_eq!(coarsest(&[0, 0]), TimeRule::Granularity(2_000_000_000));
        assert_eq!(TimeRule::coarsest([time(4, 0), time(5, 0)]), TimeRule::Granularity(1_000_000_000));
        assert_eq!(coarsest(&[0, 5_000]), TimeRule::Granularity(1000));
        assert_eq!(coarsest(&[100, 5_000]), TimeRule::Granularity(100));
        assert_eq!(coarsest(&[0, 123_456_789]), TimeRule::Exact);
    }

    #[test]
    fn stored_probe_shows_the_granularity() {
        let set = probe_time().unwrap();
        let of = |seconds, nanos| TimeRule::of_stored((set, time(seconds, nanos)));
        assert_eq!(of(set.seconds(), set.nanos()), Some(TimeRule::Exact));
        assert_eq!(of(set.seconds(), 123_456_700), Some(TimeRule::Granularity(100)));
        assert_eq!(of(set.seconds(), 0), Some(TimeRule::Granularity(1_000_000_000)));
        assert_eq!(of(set.seconds() - 1, 0), Some(TimeRule::Granularity(2_000_000_000)));
        assert_eq!(of(7, 0), None);
    }
}
