//! Malicious and malformed input.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::client::{BINARY, CLOSE, Client, PING, REQUEST, TEXT, connect, frame};
use crate::served::Served;
use crate::world::noise;

/// Close codes of RFC 6455.
const PROTOCOL_ERROR: u16 = 1002;
const TOO_BIG: u16 = 1009;

/// The bridge's limit of connections.
const CONNECTIONS_MAX: usize = 100;

/// Asserts that a connection ends, perhaps by a reset.
#[track_caller]
fn assert_ends(mut stream: &TcpStream) {
    let mut rest = [0; 4096];
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn an_invalid_handshake_ends_only_its_own_connection() {
    let served = Served::start();
    let request = |from: &str, to: &str| REQUEST.replace(from, to).into_bytes();
    let long = format!("Cookie: {}\r\n\r\n", "x".repeat(100_000));
    let many = format!("{}\r\n", "A: b\r\n".repeat(500));
    for said in [
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"GET / HTTP/1.1\r\nHost: vm\r\n\r\n".to_vec(),
        request("GET", "POST"),
        request("1.1", "1.0"),
        request("13", "8"),
        request("dGhlIHNhbXBsZSBub25jZQ==", "x"),
        request("Upgrade: websocket\r\n", ""),
        request("/any?path", "/ any path"),
        request("\r\n\r\n", "\r\nno header\r\n\r\n"),
        request("\r\n\r\n", &format!("\r\n{long}")),
        request("\r\n\r\n", &format!("\r\n{many}")),
        vec![0; 100_000],
        noise(1, 100_000),
        Vec::new(),
    ] {
        let mut stream = connect(served.address);
        // The bridge may close the connection before the write is complete.
        let _ = stream.write_all(&said);
        let _ = stream.shutdown(Shutdown::Write);
        assert_ends(&stream);
    }
    served.assert_serves();
}

#[test]
fn an_endless_request_times_out() {
    let served = Served::start();
    let mut stream = connect(served.address);
    let begun = Instant::now();
    // Send one byte at a time, so that the client is never silent for long.
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut answer = [0];
    for byte in REQUEST.bytes().cycle() {
        if stream.write_all(&[byte]).is_err() || matches!(stream.read(&mut answer), Ok(0)) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
    assert!(begun.elapsed() > Duration::from_secs(5), "a slow client has its time: {:?}", begun.elapsed());
    served.assert_serves();
}

#[test]
fn invalid_or_oversized_frames_end_with_a_close_code() {
    let served = Served::start();
    let large = (256 << 10) + 1;
    let piece = frame(0, &[0; 64 << 10]);
    let huge = |length: u64| [&[0x82, 0xff][..], &length.to_be_bytes(), &[0; 4]].concat();
    for (said, code) in [
        (huge(1 << 62), TOO_BIG),
        (huge(u64::MAX), TOO_BIG),
        (huge(large), TOO_BIG),
        // Fragments, none of which is too large, without an end.
        ([frame(BINARY, &[]), piece.repeat(5)].concat(), TOO_BIG),
        // An unmasked frame.
        (vec![0x82, 1, 0], PROTOCOL_ERROR),
        // A continuation without a start, an unknown opcode, reserved bits.
        (frame(0x80, b"x"), PROTOCOL_ERROR),
        (frame(0x83, b"x"), PROTOCOL_ERROR),
        (frame(0x8b, b"x"), PROTOCOL_ERROR),
        (frame(0xc2, b"x"), PROTOCOL_ERROR),
        // A fragmented ping, and one that is too long.
        (frame(PING, b"x"), PROTOCOL_ERROR),
        (frame(0x80 | PING, &[0; 126]), PROTOCOL_ERROR),
        // A close with half a code.
        (frame(0x80 | CLOSE, &[3]), PROTOCOL_ERROR),
        (frame(0x80 | TEXT, &[0xff]), PROTOCOL_ERROR),
    ] {
        let (mut client, mut target) = served.pair();
        client.send(BINARY, b"before");
        client.0.write_all(&said).unwrap();
        let shown = &said[..said.len().min(14)];
        assert_eq!(client.receive_all(), (Vec::new(), code), "{shown:x?}");
        assert_ends(&client.0);
        let mut heard = Vec::new();
        target.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"before", "{shown:x?}");
    }
    served.assert_serves();
    assert!(served.memory() < 16 << 20, "{}", served.memory());
}

#[test]
fn noise_instead_of_frames_does_no_harm() {
    let served = Served::start();
    for seed in 0..200 {
        let (mut client, target) = served.pair();
        let _ = client.0.write_all(&noise(seed, 5000));
        let _ = client.0.shutdown(Shutdown::Write);
        // If the noise was the beginning of a frame, the target must end the connection.
        drop(target);
        assert_ends(&client.0);
    }
    served.assert_serves();
}

#[test]
fn endless_pings_without_reads_do_not_grow_the_memory() {
    let served = Served::start();
    let (client, _target) = served.pair();
    let pings = frame(0x80 | PING, &[7; 125]).repeat(1000);
    client.0.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    for _ in 0..200 {
        (&client.0).write_all(&pings).unwrap();
    }
    assert!(served.memory() < 16 << 20, "{}", served.memory());
    served.assert_serves();
}

#[test]
fn a_connection_beyond_the_limit_waits_for_a_free_place() {
    let served = Served::start();
    let mut there: Vec<_> = (0..CONNECTIONS_MAX).map(|_| served.pair()).collect();
    let mut next = connect(served.address);
    next.write_all(REQUEST.as_bytes()).unwrap();
    next.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(next.read(&mut [0]).is_err(), "it is not served yet");
    there.pop();
    next.set_read_timeout(Some(crate::world::DEADLINE)).unwrap();
    let answer = crate::client::head(&mut next);
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let mut client = Client(next);
    client.send(BINARY, b"x");
    assert_eq!(served.arrival().read(&mut [0]).unwrap(), 1);
}
