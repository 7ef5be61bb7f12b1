//! The links of the table.

use std::time::Duration;

pub(crate) use super::world::link::{Carried, Conditions, Cut, Link};
pub(crate) use super::world::network::Network;

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
    Conditions { name, about, up_rate, down_rate, round_trip, loss: 0.0, is_real_tcp: false, cut: None }
}

/// A link with real TCP end to end, which loses this share of its packets each way.
const fn real_tcp(
    name: &'static str,
    about: &'static str,
    rates: Option<(u64, u64)>,
    round_trip_ms: u64,
    loss: f64,
) -> Conditions {
    Conditions { loss, is_real_tcp: true, ..conditions(name, about, rates, round_trip_ms) }
}

const MBIT: u64 = 1_000_000;

/// Links of the table: first those that end TCP next door, which lose nothing and start at full
/// speed, then those with real TCP.
pub(crate) const LINKS: &[Conditions] = &[
    conditions("raw", "loopback", None, 0),
    conditions("l100", "100 Mbit/s, 50 ms", Some((100 * MBIT, 100 * MBIT)), 50),
    conditions("g1", "1 Gbit/s, 100 ms", Some((1000 * MBIT, 1000 * MBIT)), 100),
    conditions("home", "20 Mbit/s up, 100 down, 80 ms", Some((20 * MBIT, 100 * MBIT)), 80),
    real_tcp("tcp", "real TCP without a delay", None, 0, 0.0),
    real_tcp("tcp-l100", "real TCP, 100 Mbit/s, 50 ms", Some((100 * MBIT, 100 * MBIT)), 50, 0.0),
    real_tcp("tcp-g1", "real TCP, 1 Gbit/s, 100 ms", Some((1000 * MBIT, 1000 * MBIT)), 100, 0.0),
    real_tcp("tcp-home", "real TCP, 20 Mbit/s up, 100 down, 80 ms", Some((20 * MBIT, 100 * MBIT)), 80, 0.0),
    real_tcp("lossy", "real TCP, 100 Mbit/s, 100 ms, 1 % loss", Some((100 * MBIT, 100 * MBIT)), 100, 0.01),
];

/// Links for everything that is not measured.
pub(crate) const RAW: Conditions = LINKS[0];
const RAW_TCP: Conditions = LINKS[4];

/// The link without limits that leads the same way as `link`.
pub(crate) const fn unlimited(link: Conditions) -> Conditions {
    if link.is_real_tcp { RAW_TCP } else { RAW }
}
