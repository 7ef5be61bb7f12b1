//! Ends of connections: all earlier bytes arrive.

use std::io::{Read, Write};
use std::net::Shutdown;

use crate::client::{BINARY, CLOSE, REQUEST, connect, head};
use crate::served::Served;
use crate::world::noise;

const LENGTH: usize = 3_000_001;

#[test]
fn bytes_before_a_client_closes_arrive_and_the_close_is_answered() {
    let served = Served::start();
    let (mut client, mut target) = served.pair();
    let content = noise(1, LENGTH);
    let mut sending = client.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            content.chunks(60_000).for_each(|piece| sending.send(BINARY, piece));
            sending.send(CLOSE, &[3, 232]);
        });
        let mut heard = Vec::new();
        target.read_to_end(&mut heard).unwrap();
        assert!(heard == content);
    });
    // The client reads no more, but this write must not lose earlier bytes.
    let _ = target.write_all(b"too late");
    drop(target);
    assert_eq!(client.receive(), Some((CLOSE, vec![3, 232])));
    assert_eq!(client.receive(), None);
}

#[test]
fn bytes_before_a_target_ends_arrive_and_a_close_follows() {
    let served = Served::start();
    let (mut client, mut target) = served.pair();
    let content = noise(2, LENGTH);
    let said = content.clone();
    std::thread::spawn(move || target.write_all(&said).unwrap());
    let (heard, code) = client.receive_all();
    assert!(heard == content);
    assert_eq!(code, 0);
    client.send(CLOSE, &[]);
    assert_eq!(client.receive(), None);
}

#[test]
fn a_half_closed_client_receives_the_rest() {
    let served = Served::start();
    let (mut client, mut target) = served.pair();
    client.send(BINARY, b"question");
    client.0.shutdown(Shutdown::Write).unwrap();
    let mut heard = Vec::new();
    target.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"question");
    let content = noise(3, LENGTH);
    let said = content.clone();
    std::thread::spawn(move || target.write_all(&said).unwrap());
    let (heard, _) = client.receive_all();
    assert!(heard == content);
    assert_eq!(client.receive(), None);
}

#[test]
fn a_half_closed_target_receives_the_bytes_in_flight() {
    let served = Served::start();
    let (mut client, mut target) = served.pair();
    target.write_all(b"the end").unwrap();
    target.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.receive_all(), (b"the end".to_vec(), 0));
    client.send(BINARY, b"one more");
    client.send(CLOSE, &[]);
    let mut heard = Vec::new();
    target.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"one more");
}

#[test]
fn a_lost_client_ends_the_connection_to_the_target() {
    let served = Served::start();
    let (mut client, mut target) = served.pair();
    client.send(BINARY, b"last word");
    drop(client);
    let mut heard = Vec::new();
    target.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"last word");
    // After more bytes than all buffers hold, the target learns that the client is gone.
    let told = (0..1000).try_for_each(|_| target.write_all(&[0; 64 << 10]));
    assert!(told.is_err());
    served.assert_serves();
}

#[test]
fn a_missing_target_is_reported_over_http() {
    let (served, target) = Served::to_nobody();
    let mut stream = connect(served.address);
    stream.write_all(REQUEST.as_bytes()).unwrap();
    let answer = head(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
    let mut body = String::new();
    stream.read_to_string(&mut body).unwrap();
    assert_eq!(body, format!("no connection to {target}: Connection refused (os error 111)\n"));
}
