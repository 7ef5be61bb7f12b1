//! Recognises an upload that losses slow down, and not the link's rate.
//!
//! A TCP sender halves its pace at each lost packet, though the link has room. Several connections
//! then carry several times as much. On a link at its limit they would only share the same rate.
//! There, too, packets get lost, but with a full queue in front of the link: the round trip has
//! become longer, or losses are rare.

use crate::remote::TcpSender;

/// Losses that make certain.
const LOSSES: u64 = 3;

/// Packets between two losses from which losses no longer are what limits the sender. At 0.1 % loss
/// a sender has about 40 packets in flight.
const PACKETS_PER_LOSS_MAX: u64 = 1000;

/// Packets in flight from which OpenSSH's window limits the sender as well: half of 2 MiB.
const WINDOW_PACKETS_MAX: u64 = 724;

/// Share of the round trip by which an empty queue may seem to lengthen it: a quarter.
const QUEUE_SHARE: u64 = 4;

/// The losses of a sender so far.
#[derive(Debug)]
pub(super) struct Losses {
    /// The round trip without a queue, in milliseconds.
    round_trip_ms: u64,
    /// The threshold at the last sample.
    threshold_packets: Option<u64>,
    /// Longest round trip since the last loss, in milliseconds.
    longest_ms: u64,
    /// Packets sent since the first counted loss, in thousandths, and the losses counted.
    milli_packets: u64,
    losses: u64,
}

impl Losses {
    /// Begins to count over a link with this round trip or a shorter one.
    pub(super) fn over(round_trip_ms: u64) -> Self {
        Self {
            round_trip_ms: round_trip_ms.max(1),
            threshold_packets: None,
            longest_ms: 0,
            milli_packets: 0,
            losses: 0,
        }
    }

    /// Takes a sample, `passed_ms` after the last one. True once losses limit the sender.
    pub(super) fn limit(&mut self, sender: TcpSender, passed_ms: u64) -> bool {
        let before = std::mem::replace(&mut self.threshold_packets, sender.threshold_packets);
        if sender.unacknowledged_bytes == 0 || sender.window_packets >= WINDOW_PACKETS_MAX {
            (self.losses, self.milli_packets, self.longest_ms) = (0, 0, 0);
            return false;
        }
        self.longest_ms = self.longest_ms.max(sender.round_trip_ms);
        self.milli_packets += 1000 * sender.window_packets * passed_ms / self.round_trip_ms;
        // The first threshold may come from a longer round trip in slow start.
        if before.is_none() || before == sender.threshold_packets {
            return false;
        }
        let is_queue_empty = self.longest_ms <= self.round_trip_ms + self.round_trip_ms / QUEUE_SHARE + 10;
        self.longest_ms = 0;
        if !is_queue_empty {
            (self.losses, self.milli_packets) = (0, 0);
            return false;
        }
        self.losses += 1;
        self.losses >= LOSSES && self.milli_packets / 1000 / self.losses <= PACKETS_PER_LOSS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND_TRIP_MS: u64 = 100;

    /// Samples a sender each 100 ms, from its threshold and round trip, until losses limit it.
    fn samples_until_limited(
        window_packets: u64,
        samples: impl IntoIterator<Item = (Option<u64>, u64)>,
    ) -> Option<usize> {
        let mut losses = Losses::over(ROUND_TRIP_MS);
        samples.into_iter().position(|(threshold_packets, round_trip_ms)| {
            let unacknowledged_bytes = 1 << 20;
            let sender = TcpSender { unacknowledged_bytes, window_packets, threshold_packets, round_trip_ms };
            losses.limit(sender, 100)
        })
    }

    /// A threshold that changes each `period` samples, the first time from none.
    fn losses_each(period: u64, round_trip_ms: u64) -> impl Iterator<Item = (Option<u64>, u64)> {
        (0..1000).map(move |at| ((at >= period).then_some(10 + at / period % 2), round_trip_ms))
    }

    #[test]
    fn losses_with_an_empty_queue_limit_the_sender() {
        // The first threshold does not count.
        assert_eq!(samples_until_limited(15, losses_each(8, 110)), Some(8 * 4));
        assert_eq!(samples_until_limited(15, losses_each(8, 130)), Some(8 * 4));
    }

    #[test]
    fn losses_at_a_full_queue_are_the_links_rate() {
        assert_eq!(samples_until_limited(200, losses_each(30, 150)), None);
        // The queue is empty again at the time of the sample, but was full before.
        let sawtooth =
            losses_each(30, 0).enumerate().map(|(at, (threshold, _))| (threshold, 100 + at as u64 % 30 * 3));
        assert_eq!(samples_until_limited(200, sawtooth), None);
    }

    #[test]
    fn rare_losses_do_not_limit_the_sender() {
        assert_eq!(samples_until_limited(200, losses_each(50, 110)), None, "10,000 packets between two");
        assert_eq!(samples_until_limited(30, losses_each(1000, 110)), None);
    }

    #[test]
    fn a_wide_window_or_an_idle_sender_is_not_limited_by_losses() {
        assert_eq!(samples_until_limited(WINDOW_PACKETS_MAX, losses_each(2, 110)), None);
        let mut losses = Losses::over(ROUND_TRIP_MS);
        let idle = |threshold| TcpSender {
            unacknowledged_bytes: 0,
            window_packets: 15,
            threshold_packets: Some(threshold),
            round_trip_ms: 110,
        };
        assert!((0..100).all(|at| !losses.limit(idle(at), 100)));
    }
}
