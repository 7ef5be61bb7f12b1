//! A WebSocket client that can also break the protocol.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::world::DEADLINE;

pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// Largest payload that the bridge sends.
const SENT_BYTES_MAX: usize = 64 << 10;

/// The example request of RFC 6455, whose answer is known.
pub(crate) const REQUEST: &str = "GET /any?path HTTP/1.1\r\nHost: vm\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                                  Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// An open WebSocket.
pub(crate) struct Client(pub(crate) TcpStream);

/// Opens a TCP connection without sending anything.
#[track_caller]
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream.set_write_timeout(Some(DEADLINE)).expect("a timeout");
    stream
}

/// Reads the head of an HTTP answer.
pub(crate) fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("text")
}

/// Makes a frame, masked like those of every client.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [1, 2, 3, 4];
    let mut frame = vec![first];
    match payload.len() {
        length @ ..126 => frame.push(0x80 | u8::try_from(length).expect("short")),
        length @ ..0x1_0000 => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(length).expect("short").to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

impl Client {
    #[track_caller]
    pub(crate) fn open(address: SocketAddr) -> Client {
        let mut stream = connect(address);
        stream.write_all(REQUEST.as_bytes()).expect("a request");
        let answer = head(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
        Client(stream)
    }

    /// The same connection, for another thread.
    pub(crate) fn clone(&self) -> Client {
        Client(self.0.try_clone().expect("a descriptor"))
    }

    /// Sends an unfragmented message.
    #[track_caller]
    pub(crate) fn send(&mut self, opcode: u8, payload: &[u8]) {
        self.0.write_all(&frame(0x80 | opcode, payload)).expect("a frame");
    }

    /// Receives the next frame; `None` after the last.
    #[track_caller]
    pub(crate) fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut start = [0; 2];
        match self.0.read(&mut start[..1]).expect("a frame") {
            0 => return None,
            _ => self.0.read_exact(&mut start[1..]).expect("a length"),
        }
        assert_eq!(start[0] & 0xf0, 0x80, "whole messages without extensions");
        let length = match start[1] {
            length @ ..126 => u64::from(length),
            126 => {
                let mut length = [0; 2];
                self.0.read_exact(&mut length).expect("a length");
                u16::from_be_bytes(length).into()
            }
            127 => {
                let mut length = [0; 8];
                self.0.read_exact(&mut length).expect("a length");
                u64::from_be_bytes(length)
            }
            _ => panic!("a server masks nothing"),
        };
        let length = usize::try_from(length).expect("a length");
        assert!(length <= SENT_BYTES_MAX, "{length}");
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).expect("a payload");
        Some((start[0] & 0xf, payload))
    }

    /// Receives `count` bytes of the target's output.
    #[track_caller]
    pub(crate) fn receive_bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            let (opcode, payload) = self.receive().expect("more");
            assert_eq!(opcode, BINARY);
            bytes.extend(payload);
        }
        bytes
    }

    /// Receives the target's whole output, and the code of the bridge's close; 0 if it has none.
    #[track_caller]
    pub(crate) fn receive_all(&mut self) -> (Vec<u8>, u16) {
        let mut bytes = Vec::new();
        loop {
            match self.receive().expect("a close") {
                (BINARY, payload) => bytes.extend(payload),
                (CLOSE, payload) => {
                    let code = payload.first_chunk().map_or(0, |code| u16::from_be_bytes(*code));
                    return (bytes, code);
                }
                (opcode, _) => panic!("an opcode {opcode}"),
            }
        }
    }
}
