//! A play of server, network and caller, read from bytes: for the fuzz target, and for the property
//! test that does the same on stable.
//!
//! Whatever the bytes are, the client does not panic, asks for trust in no key but the server's,
//! and sends nothing but the key exchange before that trust.

use crate::channels::{ChannelEvent, ChannelId, Request};
use crate::client::{Client, Config, Event};
use crate::encoding::{KEX_ECDH_INIT, KEXINIT};
use crate::flight::{Guess, Order};
use crate::login::LoginKey;
use crate::packet::PacketReader;
use crate::server::{Server, blob, host_key};
use crate::transport::RekeyLimit;

/// Steps of one play.
const STEPS_MAX: usize = 400;

/// The seed of the server's key.
const KEY_SEED: u8 = 1;

const KEY_EXCHANGES: [&str; 3] = ["curve25519-sha256", "mlkem768x25519-sha256", "ecdh-sha2-nistp256"];
const CIPHERS: [&str; 3] = ["aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr"];

/// The acts of a play, one byte each. Arguments follow.
mod act {
    /// The server's bytes arrive, as many as the next byte tells; 255 is all of them.
    pub(super) const ARRIVE: u8 = 0;
    /// A bit of the server's next bytes is turned over: two bytes tell which.
    pub(super) const TURN: u8 = 1;
    /// The server sends a packet of its own making: a length, then its content.
    pub(super) const SAY: u8 = 2;
    /// Bytes are inserted on the way: a length, then the bytes.
    pub(super) const INSERT: u8 = 3;
    /// The client's bytes arrive at the server.
    pub(super) const ANSWER: u8 = 4;
    pub(super) const TRUST: u8 = 5;
    pub(super) const PROBE: u8 = 6;
    pub(super) const LOGIN: u8 = 7;
    pub(super) const OPEN: u8 = 8;
    pub(super) const OPEN_EARLY: u8 = 9;
    pub(super) const EXEC: u8 = 10;
    pub(super) const SEND: u8 = 11;
    pub(super) const EOF: u8 = 12;
    pub(super) const CLOSE: u8 = 13;
    pub(super) const KEEPALIVE: u8 = 14;
    /// The server changes keys.
    pub(super) const REKEY: u8 = 15;
    pub(super) const COUNT: u8 = 16;
}

/// The bytes of a play that were not read yet.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn bytes(&mut self) -> &'a [u8] {
        let count = self.byte().map_or(0, usize::from).min(self.0.len());
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }
}

struct Stage {
    client: Client,
    server: Server,
    /// The server's bytes that are on their way.
    down: Vec<u8>,
    /// Everything that the client sent before it was trusted.
    before_trust: Vec<u8>,
    is_asked: bool,
    is_trusted: bool,
    channel: Option<ChannelId>,
    has_output: bool,
}

/// Plays to the end, or until the client reports an error. Reports if a command had output.
pub fn play(bytes: &[u8]) -> bool {
    let mut script = Script(bytes);
    let traits = script.byte().unwrap_or_default();
    let pick = |names: [&'static str; 3], shift: u8| names[usize::from(traits >> shift & 3).min(2)];
    let (key_exchange, cipher) = (pick(KEY_EXCHANGES, 2), pick(CIPHERS, 4));
    let guess = Guess { key_exchange: key_exchange.into(), host_key: "ssh-ed25519".into() };
    let order = if traits & 1 == 0 { Order::Safe } else { Order::Fast(guess) };
    let packets = if traits & 0x40 == 0 { 1 << 31 } else { 7 };
    let rekey_limit = RekeyLimit { bytes: 1 << 30, packets };
    let config = Config { order, rekey_limit, ..Config::default() };
    let mut stage = Stage {
        client: Client::new(config).expect("keys"),
        server: Server::new(key_exchange, cipher, traits & 2 == 0),
        down: Vec::new(),
        before_trust: Vec::new(),
        is_asked: false,
        is_trusted: false,
        channel: None,
        has_output: false,
    };
    stage.server.lies = traits & 0x80 != 0;
    for _ in 0..STEPS_MAX {
        let Some(act) = script.byte() else { break };
        if stage.act(act % act::COUNT, &mut script).is_none() {
            break;
        }
    }
    let has_output = stage.has_output;
    stage.assert_only_keys_left();
    has_output
}

impl Stage {
    fn act(&mut self, act: u8, script: &mut Script<'_>) -> Option<()> {
        let key = LoginKey { algorithm: "ssh-ed25519".into(), blob: b"right".to_vec() };
        match act {
            act::ARRIVE => {
                self.down.extend(self.server.output());
                let count = script.byte().map_or(usize::MAX, |count| match count {
                    u8::MAX => usize::MAX,
                    count => count.into(),
                });
                let rest = self.down.split_off(count.min(self.down.len()));
                let arrived = std::mem::replace(&mut self.down, rest);
                let fed = self.client.feed(&arrived);
                self.take_events();
                fed.ok()?;
            }
            act::TURN => {
                self.down.extend(self.server.output());
                let at = usize::from(script.byte()?) | usize::from(script.byte()?) << 8;
                let count = self.down.len().max(1);
                if let Some(byte) = self.down.get_mut(at / 8 % count) {
                    *byte ^= 1 << (at % 8);
                }
            }
            act::SAY => {
                let payload = script.bytes().to_vec();
                if !payload.is_empty() {
                    self.server.send(payload);
                }
            }
            act::INSERT => {
                self.down.extend(self.server.output());
                self.down.extend_from_slice(script.bytes());
            }
            act::ANSWER => self.answer(),
            act::TRUST => {
                let is_right = self.is_asked && !self.is_trusted;
                if is_right {
                    self.before_trust.extend(self.client.take_output());
                }
                let trusted = self.client.trust();
                assert!(is_right || trusted.is_err(), "trusted without a question");
                self.is_trusted |= is_right;
                self.take_events();
                if is_right {
                    trusted.ok()?;
                }
            }
            act::PROBE => drop(self.client.probe("me", &key)),
            act::LOGIN => drop(self.client.login("me", &key, b"signature")),
            act::OPEN => self.channel = self.client.open().ok().or(self.channel),
            act::OPEN_EARLY => self.channel = self.client.open_early().ok().or(self.channel),
            act::KEEPALIVE => drop(self.client.keepalive()),
            act::REKEY => {
                // The first exchange began by itself.
                if self.is_trusted {
                    self.server.change_keys();
                }
            }
            act => {
                let id = self.channel?;
                let _ = match act {
                    act::EXEC => self.client.request(id, &Request::Exec(b"out".into()), true),
                    act::SEND => self.client.send(id, b"input").map(drop),
                    act::EOF => self.client.send_eof(id),
                    act::CLOSE => self.client.close(id),
                    _ => Ok(()),
                };
            }
        }
        Some(())
    }

    /// Hands the client's bytes to the server.
    fn answer(&mut self) {
        let output = self.client.take_output();
        if !self.is_trusted {
            self.before_trust.extend_from_slice(&output);
        }
        self.server.feed(&output);
    }

    fn take_events(&mut self) {
        while let Some(event) = self.client.next_event() {
            match event {
                Event::HostKey => {
                    assert!(!std::mem::replace(&mut self.is_asked, true), "asked twice");
                    assert!(!self.server.lies, "nobody signed");
                    let key = self.client.host_key().expect("a key");
                    assert_eq!(key.blob, blob(&host_key(KEY_SEED)));
                }
                Event::Channel(id, ChannelEvent::Data(data)) => {
                    self.has_output = true;
                    let _ = self.client.consume(id, data.len());
                }
                Event::Channel(..) | Event::Banner(_) | Event::Login(_) => assert!(self.is_trusted),
            }
        }
    }

    /// Nothing but the key exchange was sent in clear, or at all, before the trust.
    fn assert_only_keys_left(mut self) {
        if !self.is_trusted {
            self.before_trust.extend(self.client.take_output());
        }
        let end = self.before_trust.iter().position(|&byte| byte == b'\n');
        let mut reader = PacketReader::new();
        reader.buffer.extend_from_slice(end.map_or(&[][..], |end| &self.before_trust[end + 1..]));
        let numbers: Vec<u8> =
            std::iter::from_fn(|| reader.next().expect("a packet").map(|payload| payload[0])).collect();
        assert!([KEXINIT, KEX_ECDH_INIT].starts_with(&numbers), "{numbers:?}");
    }
}

/// Plays to begin with, for the corpus: whole connections in both orders.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    use act::{
        ANSWER, ARRIVE, CLOSE, EOF, EXEC, KEEPALIVE, LOGIN, OPEN, OPEN_EARLY, PROBE, REKEY, SEND, TRUST,
    };
    const ALL: u8 = u8::MAX;
    let keys = [ANSWER, ARRIVE, ALL, ANSWER, ARRIVE, ALL, TRUST];
    let turn = [ANSWER, ARRIVE, ALL];
    let command = [EXEC, ANSWER, ARRIVE, ALL, SEND, ANSWER, ARRIVE, ALL, EOF, ANSWER, ARRIVE, ALL, CLOSE];
    let safe =
        [&keys[..], &turn, &[PROBE], &turn, &[LOGIN], &turn, &[KEEPALIVE, OPEN], &turn, &command, &turn]
            .concat();
    let fast = [&keys[..], &[LOGIN, OPEN_EARLY, EXEC, SEND, EOF], &turn, &turn, &turn].concat();
    let rekeyed =
        [&keys[..], &[LOGIN], &turn, &[OPEN, REKEY], &turn, &turn, &turn, &command, &[REKEY], &turn, &turn]
            .concat();
    let says = (1_u8..=100).flat_map(|number| [act::SAY, 6, number, 0, 0, 0, 0, 0, ARRIVE, ALL]);
    let hostile = [&keys[..], &[LOGIN], &turn, &[OPEN], &turn, &says.collect::<Vec<_>>()].concat();
    // The first byte: the order, a lying server and so on.
    let with = |traits: u8, acts: &[u8]| [&[traits][..], acts].concat();
    vec![
        ("safe", with(0, &safe)),
        ("safe-chacha", with(0x10, &safe)),
        ("safe-ctr", with(0x20, &safe)),
        ("safe-not-strict", with(0x12, &safe)),
        ("safe-mlkem", with(0x04, &safe)),
        ("safe-nist", with(0x08, &safe)),
        ("fast", with(1, &fast)),
        ("fast-chacha-mlkem", with(0x15, &fast)),
        ("rekeyed", with(0, &rekeyed)),
        ("rekeyed-by-the-client", with(0x41, &fast)),
        ("hostile", with(0, &hostile)),
        ("lying", with(0x80, &safe)),
    ]
}
