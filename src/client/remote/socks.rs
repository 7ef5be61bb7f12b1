//! The server's half of SOCKS 4, 4a and 5 (RFC 1928), for its CONNECT command without
//! authentication. Nothing here reads or writes.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Most bytes of a request: SOCKS 4a with a name of 255 bytes and a user of the same length.
const REQUEST_BYTES_MAX: usize = 8 + 2 * 256;

/// SOCKS 5: this method, no authentication.
const NO_AUTHENTICATION: u8 = 0;

/// CONNECT, in all versions.
const CONNECT: u8 = 1;

/// A negotiation with one client.
#[derive(Debug, Default)]
pub(super) struct Socks {
    input: Vec<u8>,
    /// True once a client of SOCKS 5 has been told the method.
    is_greeted: bool,
}

/// The next step of a negotiation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Wait for more input.
    More,
    /// Send this.
    Reply(Vec<u8>),
    /// Connect, and answer with [`Request::answer`].
    Connect(Request),
    /// Send this, and close the connection.
    Refuse(Vec<u8>),
}

/// A client's request to connect.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) host: String,
    pub(super) port: u16,
    /// Bytes behind the request, which belong to the target.
    pub(super) early: Vec<u8>,
    version: u8,
}

impl Request {
    /// The answer to the client.
    pub(super) fn answer(&self, is_connected: bool) -> Vec<u8> {
        match (self.version, is_connected) {
            (4, true) => four(90),
            (4, false) => four(91),
            (_, true) => five(0),
            // The reason is not known: a general failure.
            (_, false) => five(1),
        }
    }
}

impl Socks {
    /// Takes bytes from the client.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// Takes the next step.
    pub(super) fn step(&mut self) -> Step {
        let step = match self.input.first() {
            Some(4) => self.four(),
            Some(5) if self.is_greeted => self.five(),
            Some(5) => self.greeting(),
            Some(_) => Some(Step::Refuse(Vec::new())),
            None => None,
        };
        match step {
            Some(step) => step,
            None if self.input.len() > REQUEST_BYTES_MAX => Step::Refuse(Vec::new()),
            None => Step::More,
        }
    }

    fn four(&mut self) -> Option<Step> {
        let (head, rest) = self.input.split_first_chunk::<8>()?;
        let [_, command, high, low, address @ ..] = *head;
        let (_user, mut rest) = text(rest)?;
        // An address 0.0.0.x announces a name behind the user.
        let host = match address {
            [0, 0, 0, last] if last != 0 => {
                let (name, after) = text(rest)?;
                rest = after;
                String::from_utf8(name.to_vec()).ok().filter(|name| !name.is_empty())
            }
            address => Some(Ipv4Addr::from(address).to_string()),
        };
        let Some(host) = host.filter(|_| command == CONNECT) else { return Some(Step::Refuse(four(91))) };
        let port = u16::from_be_bytes([high, low]);
        Some(Step::Connect(Request { host, port, early: rest.to_vec(), version: 4 }))
    }

    fn greeting(&mut self) -> Option<Step> {
        let count = usize::from(*self.input.get(1)?);
        let methods = self.input.get(2..2 + count)?;
        if !methods.contains(&NO_AUTHENTICATION) {
            return Some(Step::Refuse(vec![5, 0xff]));
        }
        self.input.drain(..2 + count);
        self.is_greeted = true;
        Some(Step::Reply(vec![5, NO_AUTHENTICATION]))
    }

    fn five(&mut self) -> Option<Step> {
        let (head, rest) = self.input.split_first_chunk::<4>()?;
        let (host, rest) = match head {
            [_, _, _, 1] => {
                let (address, rest) = rest.split_first_chunk::<4>()?;
                (Some(Ipv4Addr::from(*address).to_string()), rest)
            }
            [_, _, _, 3] => {
                let (length, rest) = rest.split_first()?;
                let (name, rest) = rest.split_at_checked((*length).into())?;
                (String::from_utf8(name.to_vec()).ok().filter(|name| !name.is_empty()), rest)
            }
            [_, _, _, 4] => {
                let (address, rest) = rest.split_first_chunk::<16>()?;
                (Some(Ipv6Addr::from(*address).to_string()), rest)
            }
            _ => return Some(Step::Refuse(five(8))),
        };
        let (port, rest) = rest.split_first_chunk::<2>()?;
        if head.get(1) != Some(&CONNECT) {
            return Some(Step::Refuse(five(7)));
        }
        let Some(host) = host else { return Some(Step::Refuse(five(1))) };
        let port = u16::from_be_bytes(*port);
        Some(Step::Connect(Request { host, port, early: rest.to_vec(), version: 5 }))
    }
}

/// Splits off a text that a zero ends.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((bytes.get(..end)?, bytes.get(end + 1..)?))
}

/// An answer of SOCKS 4.
fn four(code: u8) -> Vec<u8> {
    vec![0, code, 0, 0, 0, 0, 0, 0]
}

/// An answer of SOCKS 5, without an address of this side.
fn five(code: u8) -> Vec<u8> {
    vec![5, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `input` byte by byte, and returns all replies and the last step.
    fn talk(input: &[u8]) -> (Vec<u8>, Step) {
        let (mut socks, mut replies) = (Socks::default(), Vec::new());
        for (at, byte) in input.iter().enumerate() {
            socks.push(&[*byte]);
            match socks.step() {
                Step::More => {}
                Step::Reply(reply) => replies.extend(reply),
                step => {
                    assert_eq!(at + 1, input.len());
                    return (replies, step);
                }
            }
        }
        (replies, Step::More)
    }

    fn connects(input: &[u8], host: &str, port: u16) -> Request {
        match talk(input).1 {
            Step::Connect(request) => {
                assert_eq!((request.host.as_str(), request.port), (host, port));
                request
            }
            step => panic!("{step:?}"),
        }
    }

    #[test]
    fn all_versions_and_addresses_are_understood_byte_by_byte() {
        let four = connects(b"\x04\x01\x1f\x90\x0a\x00\x00\x01me\0", "10.0.0.1", 8080);
        assert_eq!((four.answer(true)[1], four.answer(false)[1]), (90, 91));
        connects(b"\x04\x01\x00\x50\0\0\0\x01\0web.example\0", "web.example", 80);
        let five = connects(b"\x05\x02\x00\x02\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50", "127.0.0.1", 80);
        assert_eq!(five.answer(true), [5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(five.answer(false)[1], 1);
        connects(b"\x05\x01\x00\x05\x01\x00\x03\x03web\x01\xbb", "web", 443);
        let mut six = b"\x05\x01\x00\x05\x01\x00\x04".to_vec();
        six.extend([0; 15].iter().chain(&[1, 0, 80]));
        connects(&six, "::1", 80);
        assert_eq!(talk(&six).0, [5, 0]);
    }

    #[test]
    fn early_bytes_are_kept_for_the_target() {
        let mut socks = Socks::default();
        socks.push(b"\x05\x01\x00");
        assert_eq!(socks.step(), Step::Reply(vec![5, 0]));
        socks.push(b"\x05\x01\x00\x03\x01w\x00\x50GET /");
        let Step::Connect(request) = socks.step() else { panic!("no request") };
        assert_eq!(request.early, b"GET /");
    }

    #[test]
    fn everything_else_is_refused() {
        for (input, reply) in [
            (&b"GET / HTTP/1.1\r\n"[..1], &[][..]),
            (b"\x05\x01\x02", &[5, 0xff]),
            (b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", &[5, 7, 0, 1, 0, 0, 0, 0, 0, 0]),
            (b"\x05\x01\x00\x05\x01\x00\x09", &[5, 8, 0, 1, 0, 0, 0, 0, 0, 0]),
            (b"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50", &[5, 1, 0, 1, 0, 0, 0, 0, 0, 0]),
            (b"\x04\x02\x00\x50\x7f\x00\x00\x01\0", &[0, 91, 0, 0, 0, 0, 0, 0]),
        ] {
            assert_eq!(talk(input).1, Step::Refuse(reply.to_vec()), "{input:?}");
        }
        let mut socks = Socks::default();
        socks.push(b"\x04\x01\x00\x50\x7f\x00\x00\x01");
        socks.push(&[b'x'; REQUEST_BYTES_MAX]);
        assert_eq!(socks.step(), Step::Refuse(Vec::new()));
    }
}
