//! The links of the table.

use std::time::Duration;

pub(crate) use super::world::link::{Carried, Conditions, Cut, Link};

const fn conditions(
    name: &'static str,
    about: &'static str,
    rates: Option<(u64, u64)>,
    round_trip_ms: u64,
) -> Conditions {
    let (up_rate, down_rate) = match rates {
        Some((up, down)) => (Some(up), Some(down)),
        None => (None, None),
    };
    let round_trip = Duration::from_millis(round_trip_ms);
    Conditions { name, about, up_rate, down_rate, round_trip, cut: None }
}

const MBIT: u64 = 1_000_000;

/// Links of the table.
pub(crate) const LINKS: &[Conditions] = &[
    conditions("raw", "loopback", None, 0),
    conditions("l100", "100 Mbit/s, 50 ms", Some((100 * MBIT, 100 * MBIT)), 50),
    conditions("g1", "1 Gbit/s, 100 ms", Some((1000 * MBIT, 1000 * MBIT)), 100),
    conditions("home", "20 Mbit/s up, 100 down, 80 ms", Some((20 * MBIT, 100 * MBIT)), 80),
];

/// Link for everything that is not measured.
pub(crate) const RAW: Conditions = LINKS[0];
