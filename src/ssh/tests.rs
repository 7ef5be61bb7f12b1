//! The client against a scripted server: every cut of the bytes, and servers and networks that mean
//! harm.

mod cuts;
mod driver;
mod plays;

use proptest::prelude::*;

use crate::channels::{ChannelEvent, ChannelId, Request};
use crate::client::{Client, Config, Event};
use crate::encoding::{
    CHANNEL_DATA, CHANNEL_OPEN_CONFIRMATION, IGNORE, KEXINIT, Message, NEWKEYS, USERAUTH_SUCCESS,
};
use crate::error::SshError;
use crate::flight::{Guess, Order};
use crate::login::{LoginKey, LoginReply};
use crate::packet::PacketWriter;
use crate::server::{Server, blob, host_key};
use crate::transport::RekeyLimit;

const GCM: &str = "aes256-gcm@openssh.com";
const CHACHA: &str = "chacha20-poly1305@openssh.com";
const CURVE: &str = "curve25519-sha256";
const KEY_EXCHANGES: [&str; 3] = [CURVE, "mlkem768x25519-sha256", "sntrup761x25519-sha512"];

fn key(name: &str) -> LoginKey {
    LoginKey { algorithm: "ssh-ed25519".into(), blob: name.into() }
}

fn fast() -> Config {
    let guess = Guess { key_exchange: CURVE.into(), host_key: "ssh-ed25519".into() };
    Config { order: Order::Fast(guess), ..Config::default() }
}

/// A client with its server, and the events so far.
struct Pair {
    client: Client,
    server: Server,
    events: Vec<Event>,
    /// Trusts the host at once.
    trusts: bool,
}

impl Pair {
    fn new(config: Config, server: Server) -> Self {
        Self { client: Client::new(config).unwrap(), server, events: Vec::new(), trusts: true }
    }

    /// A pair whose client is logged in.
    fn logged_in(config: Config) -> Self {
        let mut pair = Self::new(config, Server::new(CURVE, GCM, true));
        pair.run().unwrap();
        pair.client.login("me", &key("right"), b"signature").unwrap();
        pair.run().unwrap();
        assert_eq!(pair.events.pop(), Some(Event::Login(LoginReply::Success)));
        pair
    }

    /// A channel on which a command has begun.
    fn channel(&mut self) -> ChannelId {
        let id = self.client.open().unwrap();
        self.run().unwrap();
        self.client.request(id, &Request::Exec(b"out".into()), true).unwrap();
        self.run().unwrap();
        id
    }

    /// Gives bytes to the client, in pieces of this size.
    fn feed(&mut self, bytes: &[u8], piece: usize) -> Result<(), SshError> {
        for piece in bytes.chunks(piece) {
            self.client.feed(piece)?;
            while let Some(event) = self.client.next_event() {
                if event == Event::HostKey && self.trusts {
                    self.client.trust()?;
                }
                self.events.push(event);
            }
        }
        Ok(())
    }

    /// Carries bytes both ways until nobody has any more.
    fn run(&mut self) -> Result<(), SshError> {
        self.run_in_pieces(usize::MAX)
    }

    fn run_in_pieces(&mut self, piece: usize) -> Result<(), SshError> {
        loop {
            let up = self.client.take_output();
            up.chunks(piece).for_each(|piece| self.server.feed(piece));
            let down = self.server.output();
            if up.is_empty() && down.is_empty() {
                return Ok(());
            }
            self.feed(&down, piece)?;
        }
    }

    /// All data of the events, and the events without it.
    fn split_events(&mut self) -> (Vec<u8>, Vec<Event>) {
        let mut data = Vec::new();
        let rest = self.events.drain(..).filter(|event| match event {
            Event::Channel(_, ChannelEvent::Data(bytes)) => {
                data.extend_from_slice(bytes);
                false
            }
            event => !matches!(event, Event::Channel(_, ChannelEvent::Window(_))),
        });
        let rest = rest.collect();
        (data, rest)
    }
}

#[test]
fn a_whole_connection_is_the_same_at_every_cut() {
    for key_exchange in KEY_EXCHANGES {
        for piece in [1, 2, 3, 7, 16, 61, 1000, usize::MAX] {
            for config in [
                Config::default(),
                Config { rekey_limit: RekeyLimit { bytes: 200, packets: 9 }, ..Config::default() },
            ] {
                let mut pair = Pair::new(config, Server::new(key_exchange, CHACHA, true));
                pair.run_in_pieces(piece).unwrap();
                pair.client.probe("me", &key("wrong")).unwrap();
                pair.run_in_pieces(piece).unwrap();
                pair.client.probe("me", &key("right")).unwrap();
                pair.run_in_pieces(piece).unwrap();
                pair.client.login("me", &key("right"), b"signature").unwrap();
                pair.run_in_pieces(piece).unwrap();
                let id = pair.channel();
                for _ in 0..20 {
                    assert_eq!(pair.client.send(id, b"input ").unwrap(), 6);
                    pair.run_in_pieces(piece).unwrap();
                }
                pair.client.send_eof(id).unwrap();
                pair.run_in_pieces(piece).unwrap();
                let (data, rest) = pair.split_events();
                assert_eq!(data, [&b"out"[..], &b"input ".repeat(20)].concat());
                let failure = LoginReply::Failure { methods: vec!["publickey".into()], partial: false };
                let logins = [failure, LoginReply::Acceptable, LoginReply::Success].map(Event::Login);
                let channel = [
                    ChannelEvent::Opened,
                    ChannelEvent::Success,
                    ChannelEvent::ExitStatus(7),
                    ChannelEvent::Eof,
                    ChannelEvent::Closed,
                ];
                let channel = channel.map(|event| Event::Channel(id, event));
                assert_eq!(rest, [&[Event::HostKey][..], &logins, &channel].concat());
            }
        }
    }
}

/// The bytes that a server sends up to the login, for a client whose random numbers do not matter.
fn key_exchange_of(pair: &mut Pair) -> Vec<u8> {
    let mut down = Vec::new();
    let output = pair.client.take_output();
    pair.server.feed(&output);
    down.extend(pair.server.output());
    pair.feed(&down, usize::MAX).unwrap();
    let output = pair.client.take_output();
    pair.server.feed(&output);
    down.clear();
    down.extend(pair.server.output());
    down
}

#[derive(Debug, Clone)]
enum Act {
    Feed(usize),
    Probe,
    Login,
    WithoutProof,
    Open,
    OpenEarly,
    Keepalive,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (1_usize..400).prop_map(Act::Feed),
        1 => Just(Act::Probe),
        1 => Just(Act::Login),
        1 => Just(Act::WithoutProof),
        1 => Just(Act::Open),
        1 => Just(Act::OpenEarly),
        1 => Just(Act::Keepalive),
    ]
}

proptest! {
    #[test]
    fn nothing_is_sent_between_the_reply_and_the_trust(acts in proptest::collection::vec(act(), 1..40), is_fast: bool) {
        let config = if is_fast { fast() } else { Config::default() };
        let mut pair = Pair::new(config, Server::new(CURVE, GCM, true));
        pair.trusts = false;
        let mut down = Vec::new();
        loop {
            let output = pair.client.take_output();
            pair.server.feed(&output);
            down.extend(pair.server.output());
            let keys_are_asked_for = pair.server.arrived.contains(&crate::encoding::KEX_ECDH_INIT);
            if keys_are_asked_for {
                break;
            }
            let bytes = std::mem::take(&mut down);
            pair.feed(&bytes, usize::MAX).unwrap();
        }
        // The reply is under way; the rest of it, NEWKEYS and garbage arrive in any pieces.
        down.extend([0x55; 500]);
        let mut sent = pair.client.output_bytes();
        for act in acts.into_iter().chain([Act::Feed(usize::MAX)]) {
            match act {
                Act::Feed(count) => {
                    let rest = down.split_off(count.min(down.len()));
                    let _ = pair.feed(&std::mem::replace(&mut down, rest), usize::MAX);
                }
                Act::Probe => drop(pair.client.probe("me", &key("right"))),
                Act::Login => drop(pair.client.login("me", &key("right"), b"signature")),
                Act::WithoutProof => drop(pair.client.login_without_proof("me")),
                Act::Open => drop(pair.client.open()),
                Act::OpenEarly => drop(pair.client.open_early()),
                Act::Keepalive => drop(pair.client.keepalive()),
            }
            if pair.events.contains(&Event::HostKey) {
                prop_assert_eq!(pair.client.output_bytes(), sent);
            } else {
                sent = pair.client.output_bytes();
            }
        }
        prop_assert!(pair.events.contains(&Event::HostKey));
        prop_assert_eq!(sent, 0);
        let _ = pair.client.trust();
        prop_assert!(pair.client.output_bytes() > 0);
    }

    #[test]
    fn no_bytes_make_the_client_panic_or_trust(bytes: Vec<u8>, at in 0_usize..3000, bit in 0_u8..8) {
        let mut client = Client::new(Config::default()).unwrap();
        let _ = client.feed(&bytes);
        let _ = client.feed(b"SSH-2.0-x\r\n");
        let _ = client.feed(&bytes);
        assert_eq!(client.next_event(), None);
        // One wrong bit in a right exchange: outside of padding it means that there is no host key.
        let mut pair = Pair::new(fast(), Server::new(CURVE, GCM, true));
        pair.trusts = false;
        let output = pair.client.take_output();
        pair.server.feed(&output);
        let mut down = pair.server.output();
        let at = at % down.len();
        down[at] ^= 1 << bit;
        let _ = pair.feed(&down, usize::MAX);
        if pair.events.contains(&Event::HostKey) {
            prop_assert_eq!(&pair.client.host_key().unwrap().blob, &blob(&host_key(1)));
        }
    }
}

/// A packet that anybody can insert while there are no keys.
fn ignore() -> Vec<u8> {
    let mut writer = PacketWriter::new();
    writer.write(&Message::new(IGNORE).string("").into_bytes()).unwrap();
    writer.out
}

/// Outcome of a connection into which somebody inserts a packet before the server's packet `at`,
/// and drops its first encrypted packet.
fn attacked(at: usize, inserts: bool, drops: bool, is_strict: bool, cipher: &str) -> Result<bool, SshError> {
    let mut pair = Pair::new(Config::default(), Server::new(CURVE, cipher, is_strict));
    let mut number = 0;
    loop {
        let up = pair.client.take_output();
        pair.server.feed(&up);
        let packets = std::mem::take(&mut pair.server.sent);
        if packets.is_empty() {
            break;
        }
        for packet in packets {
            // The id, KEXINIT, KEX_ECDH_REPLY, NEWKEYS, then EXT_INFO.
            if number == at && inserts {
                pair.feed(&ignore(), usize::MAX)?;
            }
            if !(number == 4 && drops) {
                pair.feed(&packet, usize::MAX)?;
            }
            number += 1;
        }
    }
    pair.client.login("me", &key("right"), b"signature")?;
    pair.run()?;
    Ok(pair.events.last() == Some(&Event::Login(LoginReply::Success)))
}

#[test]
fn terrapin_is_stopped_in_all_its_variants() {
    for cipher in [GCM, CHACHA] {
        assert!(attacked(0, false, false, true, cipher).unwrap());
        for at in 1..4 {
            for drops in [false, true] {
                let error = attacked(at, true, drops, true, cipher).unwrap_err();
                assert!(matches!(error, SshError::NotStrict(_)), "{at} {drops}: {error}");
            }
        }
        assert!(!matches!(attacked(0, false, true, true, cipher), Ok(true)), "a packet is missing");
    }
    // The control: without the strict exchange the attack works, with the cipher it needs.
    assert!(attacked(3, true, true, false, CHACHA).unwrap());
}

#[test]
fn a_wrong_signature_and_a_new_key_are_refused() {
    let mut server = Server::new(CURVE, GCM, true);
    server.lies = true;
    let mut pair = Pair::new(Config::default(), server);
    assert!(matches!(pair.run().unwrap_err(), SshError::Signature));
    assert!(pair.events.is_empty());

    let mut pair = Pair::logged_in(Config::default());
    pair.server.send_kexinit();
    pair.run().unwrap();
    pair.server.key = host_key(2);
    pair.server.send_kexinit();
    assert!(matches!(pair.run().unwrap_err(), SshError::HostKeyChanged));
    assert_eq!(pair.client.take_output(), Vec::<u8>::new());
}

#[test]
fn a_server_without_the_guessed_method_is_left() {
    let mut pair = Pair::new(fast(), Server::new("ecdh-sha2-nistp256", GCM, true));
    let down = pair.server.output();
    let error = pair.feed(&down, usize::MAX).unwrap_err();
    assert!(matches!(error, SshError::NoCommon { .. }));
    let mut pair = Pair::new(fast(), Server::new(CURVE, GCM, false));
    assert!(matches!(pair.run().unwrap_err(), SshError::Guess(_)));
    let mut pair = Pair::new(fast(), Server::new(CURVE, GCM, true));
    pair.server.first_channel = 2;
    pair.run().unwrap();
    pair.client.login("me", &key("right"), b"signature").unwrap();
    pair.client.open_early().unwrap();
    assert!(matches!(pair.run().unwrap_err(), SshError::Guess(_)));
}

#[test]
fn an_early_channel_travels_with_the_login() {
    for right_key_first in [true, false] {
        let mut pair = Pair::new(fast(), Server::new(CURVE, GCM, true));
        pair.run().unwrap();
        let first = key(if right_key_first { "right" } else { "wrong" });
        pair.client.login("me", &first, b"signature").unwrap();
        let id = pair.client.open_early().unwrap();
        pair.client.request(id, &Request::Exec(b"out ".into()), false).unwrap();
        let input = vec![b'i'; 3 << 20];
        let sent = pair.client.send(id, &input).unwrap();
        assert_eq!(sent, 1 << 20);
        pair.run().unwrap();
        if !right_key_first {
            assert_eq!(pair.client.send(id, &input[sent..]).unwrap(), 0);
            pair.client.login("me", &key("right"), b"signature").unwrap();
            pair.run().unwrap();
        }
        // The server counts what came before its window opened.
        assert_eq!(pair.client.room(id), 2 << 20);
        pair.client.send_eof(id).unwrap();
        pair.run().unwrap();
        let (data, _) = pair.split_events();
        assert_eq!(data.len(), 4 + sent);
    }
}

#[test]
fn a_window_is_kept_by_both_sides() {
    let config = Config { window_bytes: 100_000, ..Config::default() };
    let mut pair = Pair::logged_in(config);
    let id = pair.channel();
    assert_eq!(pair.client.send(id, &vec![0; 5 << 20]).unwrap(), 2 << 20);
    assert_eq!(pair.client.send(id, &[0]).unwrap(), 0);
    assert!(pair.client.take_output().len() > 2 << 20);
    let receive = |pair: &mut Pair, count: usize| {
        let message = Message::new(CHANNEL_DATA).u32(0).string(vec![0; count]);
        pair.server.send(message.into_bytes());
        let down = pair.server.output();
        pair.feed(&down, usize::MAX)
    };
    // 3 bytes have come already.
    receive(&mut pair, 49_998).unwrap();
    pair.client.consume(id, 50_000).unwrap();
    assert!(pair.client.output_bytes() > 0);
    for _ in 0..3 {
        receive(&mut pair, 33_333).unwrap();
    }
    assert!(matches!(receive(&mut pair, 1).unwrap_err(), SshError::TooMuch(_)));
}

#[test]
fn packets_out_of_order_end_the_connection() {
    let before_login: [fn(&mut Pair) -> Vec<u8>; 4] = [
        |_| vec![USERAUTH_SUCCESS],
        |_| vec![NEWKEYS],
        |_| Message::new(CHANNEL_OPEN_CONFIRMATION).u32(0).u32(0).u32(9).u32(9).into_bytes(),
        |_| vec![200],
    ];
    for message in before_login {
        let mut pair = Pair::new(Config::default(), Server::new(CURVE, GCM, true));
        pair.run().unwrap();
        let message = message(&mut pair);
        pair.server.send(message.clone());
        assert!(matches!(pair.run().unwrap_err(), SshError::OutOfOrder(_)), "{message:?}");
    }
    let mut pair = Pair::logged_in(Config::default());
    let id = pair.channel();
    for message in [
        Message::new(CHANNEL_DATA).u32(9).string("x").into_bytes(),
        Message::new(CHANNEL_DATA).u32(0).u32(u32::MAX).into_bytes(),
        Message::new(CHANNEL_OPEN_CONFIRMATION).u32(0).u32(0).u32(9).u32(9).into_bytes(),
        vec![CHANNEL_DATA],
        vec![USERAUTH_SUCCESS],
        vec![KEXINIT],
    ] {
        let mut pair = Pair::logged_in(Config::default());
        assert_eq!(pair.channel(), id);
        pair.server.send(message.clone());
        assert!(pair.run().is_err(), "{message:?}");
    }
}

#[test]
fn a_server_that_asks_without_end_and_exchanges_no_keys_is_left() {
    let mut pair =
        Pair::logged_in(Config { rekey_limit: RekeyLimit { bytes: 1, packets: 1 }, ..Config::default() });
    pair.client.open().unwrap();
    // The client waits for the server's KEXINIT.
    let _ = pair.client.take_output();
    let question = Message::new(crate::encoding::GLOBAL_REQUEST).string("x").boolean(true).into_bytes();
    let error = (0..10_000_000).find_map(|_| {
        pair.server.send(question.clone());
        let down = pair.server.output();
        pair.feed(&down, usize::MAX).err()
    });
    assert!(matches!(error, Some(SshError::TooMuch(_))));
    assert_eq!(pair.client.output_bytes(), 0);
}

#[test]
fn lines_before_the_id_are_skipped_and_limited() {
    let banner = |lines: usize, length: usize| [vec![b'x'; length], b"\r\n".to_vec()].concat().repeat(lines);
    for (text, is_right) in [
        (banner(3, 100), true),
        (banner(1024, 1), false),
        (banner(1, 9000), false),
        (vec![b'x'; 9000], false),
        (b"SSH-1.5-old\r\n".to_vec(), false),
    ] {
        let mut pair = Pair::new(Config::default(), Server::new(CURVE, GCM, true));
        assert_eq!(pair.feed(&text, 50).and_then(|()| pair.run()).is_ok(), is_right);
    }
}

#[test]
fn the_key_exchange_is_read_before_the_trust_and_no_further() {
    let mut pair = Pair::new(Config::default(), Server::new(CURVE, GCM, true));
    pair.trusts = false;
    let down = key_exchange_of(&mut pair);
    pair.feed(&down, usize::MAX).unwrap();
    assert_eq!(pair.events, [Event::HostKey]);
    assert!(pair.client.unread_bytes() > 0);
    assert!(pair.client.login("me", &key("right"), b"signature").is_err());
    pair.client.trust().unwrap();
    assert_eq!(pair.client.unread_bytes(), 0);
    assert_eq!(pair.client.signature_algorithms().unwrap(), ["ssh-ed25519", "rsa-sha2-512"]);
    assert!(pair.client.trust().is_err());
}
