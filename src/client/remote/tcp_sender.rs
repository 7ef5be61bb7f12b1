//! The TCP sender below a connection, as Linux shows it in `/proc/net/tcp`.
//!
//! The socket is found by the process's own descriptors and the server's port. So it is not known
//! behind a proxy, nor while the process has several connections to that port.

use std::collections::HashSet;
use std::fs;

/// The kernel's shortest retransmission timeout, in milliseconds, on top of the smoothed round trip
/// (`TCP_RTO_MIN` in Linux's include/net/tcp.h).
const TIMEOUT_MIN_MS: u64 = 200;

/// A tick of the times in `/proc`, in milliseconds (`USER_HZ`).
const TICK_MS: u64 = 10;

/// `ssthresh` as shown before the first loss.
const NO_THRESHOLD: &str = "-1";

/// The state of a TCP sender at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpSender {
    /// Bytes that the program has written and the other side has not acknowledged.
    pub unacknowledged_bytes: u64,
    /// Packets that may be in flight.
    pub window_packets: u64,
    /// The slow start threshold, which each loss sets anew; `None` before the first loss.
    pub threshold_packets: Option<u64>,
    /// Upper bound of the smoothed round trip, in milliseconds.
    pub round_trip_ms: u64,
}

/// Looks at the sender of the only connection of this process to `port`.
pub(super) fn look(port: u16) -> Option<TcpSender> {
    let own: HashSet<String> = fs::read_dir("/proc/self/fd")
        .ok()?
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let tables =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    only(&tables.concat(), port, &own)
}

/// The sender of the only established connection to `port` whose socket is one of `own`.
fn only(tables: &str, port: u16, own: &HashSet<String>) -> Option<TcpSender> {
    let port = format!(":{port:04X}");
    let mut found = tables.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // sl local remote state tx:rx timer:when retransmits uid timeout inode references pointer
        // rto ato flags cwnd ssthresh; state 1 is established.
        let [_, _, remote, "01", queues, _, _, _, _, inode, _, _, rto, _, _, window, threshold] = fields[..]
        else {
            return None;
        };
        let timeout_ms = rto.parse::<u64>().ok()? * TICK_MS;
        (remote.ends_with(&port) && own.contains(inode)).then_some(TcpSender {
            unacknowledged_bytes: u64::from_str_radix(queues.split(':').next()?, 16).ok()?,
            window_packets: window.parse().ok()?,
            threshold_packets: if threshold == NO_THRESHOLD { None } else { Some(threshold.parse().ok()?) },
            round_trip_ms: timeout_ms.saturating_sub(TIMEOUT_MIN_MS),
        })
    });
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0000000000000000 100 0 0 10 0
   1: 01004D0A:D2F4 04004D0A:1F90 01 0003D090:00000000 01:0000001A 00000000     0        0 12 2 0000000000000000 31 4 30 14 9
   2: 0100007F:D2F6 0100007F:0016 01 00000000:00000000 02:000004A1 00000000     0        0 13 2 0000000000000000 20 4 30 10 -1
   3: 0100007F:0016 0100007F:D2F6 01 00000000:00000000 02:000004A1 00000000     0        0 14 2 0000000000000000 20 4 30 10 -1
";

    fn own(inodes: &[&str]) -> HashSet<String> {
        inodes.iter().map(|&inode| inode.to_owned()).collect()
    }

    #[test]
    fn the_sender_of_the_only_own_connection_is_found() {
        let sender = only(TABLE, 8080, &own(&["11", "12", "13", "14"])).unwrap();
        let (unacknowledged_bytes, window_packets) = (0x3d090, 14);
        let expected = TcpSender {
            unacknowledged_bytes,
            window_packets,
            threshold_packets: Some(9),
            round_trip_ms: 110,
        };
        assert_eq!(sender, expected);
        assert_eq!(only(TABLE, 22, &own(&["13"])).unwrap().threshold_packets, None);
        assert_eq!(only(TABLE, 8080, &own(&["13"])), None, "another process's socket");
        assert_eq!(only(TABLE, 23, &own(&["12", "13"])), None);
        let twice = TABLE.replace("0:D2F4 ", "0:D2F5 ") + TABLE;
        assert_eq!(only(&twice, 8080, &own(&["12"])), None, "two connections to one port");
    }
}
