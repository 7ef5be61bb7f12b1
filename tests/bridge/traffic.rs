//! Traffic through the bridge.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use crate::client::{BINARY, Client, PING, PONG, TEXT, frame};
use crate::served::Served;
use crate::world::noise;

/// Sends `length` bytes in messages of 64 KiB, receives as many meanwhile, and compares them.
#[track_caller]
fn assert_comes_back(mut client: Client, seed: u64, length: usize) {
    let content = noise(seed, length);
    std::thread::scope(|scope| {
        let mut sending = client.clone();
        let pieces = content.chunks(64 << 10);
        scope.spawn(move || pieces.for_each(|piece| sending.send(BINARY, piece)));
        assert!(client.receive_bytes(length) == content);
    });
}

#[test]
fn sent_bytes_come_back_unchanged() {
    let served = Served::echoing();
    assert_comes_back(Client::open(served.address), 1, 20_000_001);
}

#[test]
fn fifty_clients_are_served_at_once() {
    let served = Served::echoing();
    let clients: Vec<_> = (0..50).map(|_| Client::open(served.address)).collect();
    std::thread::scope(|scope| {
        for (seed, client) in (0..).zip(clients) {
            scope.spawn(move || assert_comes_back(client, seed, 1_000_003));
        }
    });
    assert!(served.memory() < 100 << 20, "{}", served.memory());
}

#[test]
fn text_and_fragments_are_passed_on_as_bytes() {
    let served = Served::start();
    let (mut client, mut target) = served.pair();
    client.send(TEXT, "tëxt".as_bytes());
    // A message in three fragments, with a ping between them.
    client.0.write_all(&frame(BINARY, b"one")).unwrap();
    client.send(PING, b"?");
    client.0.write_all(&frame(0, b"")).unwrap();
    client.0.write_all(&frame(0x80, b"two")).unwrap();
    client.send(BINARY, b"");
    client.send(BINARY, &[7; 256 << 10]);
    let mut heard = vec![0; "tëxt".len() + 6 + (256 << 10)];
    target.read_exact(&mut heard).unwrap();
    assert_eq!(&heard[..11], "tëxtonetwo".as_bytes());
    assert!(heard[11..].iter().all(|byte| *byte == 7));
    assert_eq!(client.receive(), Some((PONG, b"?".to_vec())));
}

#[test]
fn a_ping_is_answered_without_other_traffic() {
    let served = Served::start();
    let (mut client, _target) = served.pair();
    for number in 0..100_u8 {
        client.send(PING, &[number; 125]);
        assert_eq!(client.receive(), Some((PONG, vec![number; 125])));
    }
}

#[test]
fn a_target_that_reads_nothing_blocks_the_client_in_bounded_memory() {
    let served = Served::start();
    let (mut client, mut target) = served.pair();
    let content = noise(3, 64 << 10);
    let message = frame(0x80 | BINARY, &content);
    client.0.set_nonblocking(true).unwrap();
    // Write until there was no room for a second. The system's buffers hold a few megabytes.
    let (mut sent, mut waited) = (0_usize, Duration::ZERO);
    while waited < Duration::from_secs(1) {
        match client.0.write(&message[sent % message.len()..]) {
            Ok(count) => (sent, waited) = (sent + count, Duration::ZERO),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(10));
                waited += Duration::from_millis(10);
            }
            Err(error) => panic!("{error}"),
        }
        assert!(sent < 64 << 20, "it takes whatever comes");
    }
    assert!(served.memory() < 32 << 20, "{}", served.memory());

    // The other direction stays open meanwhile.
    client.0.set_nonblocking(false).unwrap();
    target.write_all(b"not held up").unwrap();
    assert_eq!(client.receive_bytes(11), b"not held up");
    // No byte was lost.
    let rest = &message[sent % message.len()..];
    let messages = sent / message.len() + 1;
    std::thread::scope(|scope| {
        scope.spawn(|| client.0.write_all(rest).unwrap());
        let mut heard = vec![0; content.len()];
        for _ in 0..messages {
            target.read_exact(&mut heard).unwrap();
            assert!(heard == content);
        }
    });
}

#[test]
fn a_client_that_reads_nothing_blocks_the_target_in_bounded_memory() {
    let served = Served::start();
    let (mut client, target) = served.pair();
    let content = noise(4, 64 << 20);
    std::thread::scope(|scope| {
        let mut writing = target.try_clone().unwrap();
        let whole = &content;
        scope.spawn(move || {
            writing.write_all(whole).unwrap();
            writing.shutdown(std::net::Shutdown::Write).unwrap();
        });
        // The upward direction stays open meanwhile, and pings are answered in their turn.
        let mut target = target;
        for number in 0..200_u8 {
            client.send(BINARY, &[number; 1000]);
            client.send(PING, &[number; 125]);
            let mut heard = [0; 1000];
            target.read_exact(&mut heard).unwrap();
            assert_eq!(heard, [number; 1000]);
        }
        assert!(served.memory() < 32 << 20, "{}", served.memory());
        let (mut bytes, mut pongs) = (Vec::new(), 0);
        while bytes.len() < content.len() {
            match client.receive().unwrap() {
                (BINARY, payload) => bytes.extend(payload),
                (PONG, _) => pongs += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(bytes == content && pongs > 0);
    });
}
