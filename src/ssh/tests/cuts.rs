//! Whole connections in both orders: cut at every byte, with every algorithm, with keys that change
//! at every packet, and with a server that leaves at every packet.

use std::collections::VecDeque;

use super::{CHACHA, CURVE, GCM, Pair, fast, key};
use crate::channels::{ChannelEvent, ChannelId, Request};
use crate::client::{Config, Event};
use crate::error::SshError;
use crate::flight::{Fallback, Guess, Order, fallback};
use crate::login::LoginReply;
use crate::negotiation::{CIPHERS, KEY_EXCHANGES, MACS};
use crate::server::{End, Server};
use crate::transport::RekeyLimit;

/// The input of the command. Its output precedes it.
const INPUT: &[u8] = b"some input of a command";

/// Places where the bytes of one direction are cut.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Nowhere,
    /// Once, behind this many bytes of the connection.
    Behind(usize),
    /// Everywhere: pieces of this many bytes.
    Each(usize),
}

impl Cut {
    /// Cuts the bytes that follow the first `start` ones of a connection.
    fn pieces(self, bytes: &[u8], start: usize) -> Vec<Vec<u8>> {
        let pieces: Vec<&[u8]> = match self {
            Self::Behind(at) if at > start && at < start + bytes.len() => {
                let (head, tail) = bytes.split_at(at - start);
                vec![head, tail]
            }
            Self::Each(count) => bytes.chunks(count).collect(),
            _ => vec![bytes],
        };
        pieces.into_iter().filter(|piece| !piece.is_empty()).map(<[u8]>::to_vec).collect()
    }
}

/// A connection that is carried with cuts. The client answers each piece before the next one comes.
struct Carried {
    pair: Pair,
    up: Cut,
    down: Cut,
    up_bytes: usize,
    down_bytes: usize,
}

impl Carried {
    fn new(config: Config, server: Server, up: Cut, down: Cut) -> Self {
        Self { pair: Pair::new(config, server), up, down, up_bytes: 0, down_bytes: 0 }
    }

    fn run(&mut self) -> Result<(), SshError> {
        let mut waiting = VecDeque::new();
        loop {
            let output = self.pair.client.take_output();
            for piece in self.up.pieces(&output, self.up_bytes) {
                self.pair.server.feed(&piece);
            }
            self.up_bytes += output.len();
            let input = self.pair.server.output();
            waiting.extend(self.down.pieces(&input, self.down_bytes));
            self.down_bytes += input.len();
            match waiting.pop_front() {
                Some(piece) => self.pair.feed(&piece, usize::MAX)?,
                None if output.is_empty() => return Ok(()),
                None => {}
            }
        }
    }

    /// Runs a command in the order of the client.
    fn converse(&mut self) -> Result<ChannelId, SshError> {
        let is_early = *self.pair.client.order() != Order::Safe;
        self.run()?;
        self.pair.client.login("me", &key("right"), b"signature")?;
        let id = if is_early {
            self.pair.client.open_early()?
        } else {
            self.run()?;
            let id = self.pair.client.open()?;
            self.run()?;
            id
        };
        self.pair.client.request(id, &Request::Exec(b"out ".into()), true)?;
        let mut input = INPUT;
        while !input.is_empty() {
            // In the safe order the window opens behind the request, and none does during an
            // exchange of keys.
            let sent = self.pair.client.send(id, input)?;
            input = &input[sent..];
            if sent == 0 || !is_early {
                self.run()?;
            }
        }
        self.pair.client.send_eof(id)?;
        self.run()?;
        Ok(id)
    }

    /// Runs a command, and asserts that each of its events came once and in order.
    #[track_caller]
    fn converses(mut self) -> Self {
        let id = self.converse().unwrap();
        let (data, events) = self.pair.split_events();
        assert_eq!(data, [&b"out "[..], INPUT].concat());
        let channel = [
            ChannelEvent::Opened,
            ChannelEvent::Success,
            ChannelEvent::ExitStatus(7),
            ChannelEvent::Eof,
            ChannelEvent::Closed,
        ];
        let channel = channel.map(|event| Event::Channel(id, event));
        assert_eq!(events, [&[Event::HostKey, Event::Login(LoginReply::Success)][..], &channel].concat());
        self
    }
}

/// Settings of both orders for a server with this key exchange.
fn orders(key_exchange: &str) -> [Config; 2] {
    let guess = Guess { key_exchange: key_exchange.into(), host_key: "ssh-ed25519".into() };
    [Config::default(), Config { order: Order::Fast(guess), ..Config::default() }]
}

#[test]
fn both_orders_survive_a_cut_at_every_byte() {
    for config in orders(CURVE) {
        let carried =
            |up, down| Carried::new(config.clone(), Server::new(CURVE, GCM, true), up, down).converses();
        let whole = carried(Cut::Nowhere, Cut::Nowhere);
        assert!(whole.up_bytes > 700 && whole.down_bytes > 700, "{} {}", whole.up_bytes, whole.down_bytes);
        for at in 1..whole.down_bytes {
            carried(Cut::Nowhere, Cut::Behind(at));
        }
        for at in (1..whole.up_bytes).step_by(5) {
            carried(Cut::Behind(at), Cut::Nowhere);
        }
    }
}

#[test]
fn every_algorithm_survives_single_bytes_in_both_orders() {
    let single = |config: &Config, server| {
        Carried::new(config.clone(), server, Cut::Each(1), Cut::Each(1)).converses();
    };
    for key_exchange in KEY_EXCHANGES {
        for config in orders(key_exchange) {
            single(&config, Server::new(key_exchange, CHACHA, true));
        }
    }
    for cipher in CIPHERS {
        let needs_mac = cipher.ends_with("-ctr");
        for mac in if needs_mac { MACS } else { &MACS[..1] } {
            for config in orders(CURVE) {
                let server = Server::with_mac(CURVE, cipher, mac, true);
                if needs_mac && config.order != Order::Safe {
                    // The fast order offers no such cipher, so that KEXINIT is short.
                    let mut carried = Carried::new(config, server, Cut::Nowhere, Cut::Nowhere);
                    assert!(matches!(carried.converse().unwrap_err(), SshError::NoCommon { .. }));
                } else {
                    single(&config, server);
                }
            }
        }
    }
}

#[test]
fn keys_change_behind_every_packet_of_the_server() {
    for config in orders(CURVE) {
        let server = || Server::new(CURVE, CHACHA, true);
        let whole = Carried::new(config.clone(), server(), Cut::Nowhere, Cut::Nowhere).converses();
        let packets = whole.pair.server.packets;
        for behind in 4..=packets {
            for down in [Cut::Nowhere, Cut::Each(1)] {
                let mut server = server();
                server.rekeys_behind = Some(behind);
                let carried = Carried::new(config.clone(), server, Cut::Nowhere, down).converses();
                assert!(carried.pair.server.packets > packets, "{behind}");
            }
        }
    }
}

#[test]
fn keys_change_behind_every_packet_of_the_client() {
    for config in orders(CURVE) {
        for packets in 1..20 {
            let rekey_limit = RekeyLimit { bytes: u64::MAX, packets };
            let config = Config { rekey_limit, ..config.clone() };
            Carried::new(config, Server::new(CURVE, GCM, true), Cut::Nowhere, Cut::Each(3)).converses();
        }
    }
}

#[test]
fn a_server_that_leaves_at_any_packet_is_left_cleanly() {
    for config in orders(CURVE) {
        let server = || Server::new(CURVE, GCM, true);
        let whole = Carried::new(config.clone(), server(), Cut::Nowhere, Cut::Nowhere).converses();
        for (behind, end) in
            (1..whole.pair.server.packets).flat_map(|at| [End::Silence, End::Disconnect].map(|end| (at, end)))
        {
            let mut server = server();
            server.ends_behind = Some((behind, end));
            let mut carried = Carried::new(config.clone(), server, Cut::Nowhere, Cut::Nowhere);
            let error = match (carried.until_the_server_ends(), end) {
                (Err(error @ SshError::Disconnected { .. }), End::Disconnect) => error,
                (Ok(()), End::Silence) => SshError::Silence,
                (end, _) => panic!("{behind}: {end:?}"),
            };
            // Nothing is sent into a silence.
            assert!(end == End::Disconnect || carried.pair.client.output_bytes() == 0, "{behind}");
            let rest: Vec<_> = std::iter::from_fn(|| carried.pair.client.next_event()).collect();
            let is_opened = |event: &Event| matches!(event, Event::Channel(_, ChannelEvent::Opened));
            let has_opened = carried.pair.events.iter().chain(&rest).any(is_opened);
            assert_eq!(carried.pair.client.has_opened(), has_opened, "{behind}");
            let is_repeated = config.order != Order::Safe && !has_opened;
            let expected = if is_repeated { Fallback::InOrder } else { Fallback::Never };
            assert_eq!(fallback(&config.order, &error, has_opened), expected, "{behind} {error}");
        }
    }
}

impl Carried {
    /// Does as [`Carried::converse`], as far as the server answers.
    fn until_the_server_ends(&mut self) -> Result<(), SshError> {
        self.run()?;
        let is_early = *self.pair.client.order() != Order::Safe;
        if self.pair.client.login("me", &key("right"), b"signature").is_err() {
            return Ok(());
        }
        if !is_early {
            self.run()?;
        }
        let opened = if is_early { self.pair.client.open_early() } else { self.pair.client.open() };
        let Ok(id) = opened else { return Ok(()) };
        if !is_early {
            self.run()?;
        }
        if self.pair.client.request(id, &Request::Exec(b"out ".into()), true).is_ok() {
            if !is_early {
                self.run()?;
            }
            let _ = self.pair.client.send(id, INPUT);
            let _ = self.pair.client.send_eof(id);
        }
        self.run()
    }
}

#[test]
fn an_early_channel_runs_once_behind_any_number_of_wrong_keys() {
    for wrong in 0..4 {
        for cut in [Cut::Nowhere, Cut::Each(1)] {
            let mut carried = Carried::new(fast(), Server::new(CURVE, GCM, true), cut, cut);
            carried.run().unwrap();
            let mut early = None;
            for attempt in 0..=wrong {
                let name = if attempt == wrong { "right" } else { "wrong" };
                carried.pair.client.login("me", &key(name), b"signature").unwrap();
                if early.is_none() {
                    let id = carried.pair.client.open_early().unwrap();
                    carried.pair.client.request(id, &Request::Exec(b"out ".into()), true).unwrap();
                    assert_eq!(carried.pair.client.send(id, INPUT).unwrap(), INPUT.len());
                    carried.pair.client.send_eof(id).unwrap();
                    early = Some(id);
                }
                carried.run().unwrap();
            }
            let (data, events) = carried.pair.split_events();
            assert_eq!(data, [&b"out "[..], INPUT].concat());
            let logins = events.iter().filter(|event| matches!(event, Event::Login(_))).count();
            assert_eq!(logins, wrong + 1);
            assert_eq!(events.last(), Some(&Event::Channel(early.unwrap(), ChannelEvent::Closed)));
        }
    }
}

#[test]
fn the_first_flights_of_the_fast_order_are_short() {
    let mut carried = Carried::new(fast(), Server::new(CURVE, GCM, true), Cut::Nowhere, Cut::Nowhere);
    let first = carried.pair.client.output_bytes();
    carried.run().unwrap();
    let blob = [vec![0, 0, 0, 11], b"ssh-ed25519".to_vec(), vec![0, 0, 0, 32], vec![7; 32]].concat();
    let signature = [vec![0, 0, 0, 11], b"ssh-ed25519".to_vec(), vec![0, 0, 0, 64], vec![7; 64]].concat();
    let key = crate::login::LoginKey { algorithm: "ssh-ed25519".into(), blob };
    // NEWKEYS and the request for the service left with the trust.
    let before = carried.up_bytes;
    carried.pair.client.login("root", &key, &signature).unwrap();
    let id = carried.pair.client.open_early().unwrap();
    carried.pair.client.request(id, &Request::Exec(b"echo hi".into()), false).unwrap();
    carried.pair.client.send_eof(id).unwrap();
    let second = before - first + carried.pair.client.output_bytes();
    assert!(first <= 380 && second <= 450, "{first} {second}");
}
