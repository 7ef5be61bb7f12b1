//! The driver over a stream in memory: bytes that leave while the host key is being checked.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{sleep, timeout};

use super::{CURVE, GCM, fast, key};
use crate::channels::{ChannelEvent, Request};
use crate::client::Config;
use crate::driver::{ConnectError, Session};
use crate::encoding::{
    CHANNEL_OPEN_CONFIRMATION, DEBUG, EXT_INFO, GLOBAL_REQUEST, IGNORE, KEX_ECDH_INIT, KEXINIT, Message,
    SERVICE_ACCEPT, UNIMPLEMENTED, USERAUTH_SUCCESS,
};
use crate::error::SshError;
use crate::login::LoginReply;
use crate::packet::{PacketReader, PacketWriter};
use crate::server::Server;

/// Longer than anything takes. The clock is paused, so nobody waits.
const LONG: Duration = Duration::from_secs(3600);

/// Outcome of the check of a host key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// None, until the caller gives the connection up.
    Never,
    Refused,
}

/// Plays the server, and inserts bytes before some of its packets. Records the client's bytes.
async fn serve(
    mut stream: DuplexStream,
    mut server: Server,
    inserted: Vec<(usize, Vec<u8>)>,
    recorded: Arc<Mutex<Vec<u8>>>,
) {
    let mut number = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        for packet in std::mem::take(&mut server.sent) {
            for (_, bytes) in inserted.iter().filter(|(at, _)| *at == number) {
                let _ = stream.write_all(bytes).await;
            }
            let _ = stream.write_all(&packet).await;
            number += 1;
        }
        match stream.read(&mut buffer).await {
            Ok(count) if count > 0 => {
                recorded.lock().unwrap().extend_from_slice(&buffer[..count]);
                server.feed(&buffer[..count]);
            }
            _ => return,
        }
    }
}

/// Numbers of the packets behind the id. There are no keys yet, so anybody can read them.
fn numbers(recorded: &[u8]) -> Vec<u8> {
    if recorded.is_empty() {
        // The server was wrong from its first byte on.
        return Vec::new();
    }
    let end = recorded.iter().position(|&byte| byte == b'\n').expect("an id");
    let mut reader = PacketReader::new();
    reader.buffer.extend_from_slice(&recorded[end + 1..]);
    let numbers = std::iter::from_fn(|| reader.next().unwrap().map(|payload| payload[0])).collect();
    assert!(reader.buffer.is_empty(), "half a packet left");
    numbers
}

/// Connects with this verdict. Returns the numbers of the packets that left, and if the host key
/// was asked for.
fn connect(
    config: Config,
    server: Server,
    inserted: Vec<(usize, Vec<u8>)>,
    verdict: Verdict,
) -> (Vec<u8>, bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let (ours, theirs) = duplex(1 << 16);
        let recorded = Arc::default();
        let serving = tokio::spawn(serve(theirs, server, inserted, Arc::clone(&recorded)));
        let is_asked = Mutex::new(false);
        let check = async |_: &crate::hostkey::HostKey| {
            *is_asked.lock().unwrap() = true;
            if verdict != Verdict::Refused {
                std::future::pending::<()>().await;
            }
            Err(())
        };
        let ended = timeout(LONG, Session::connect(ours, config, None, check)).await;
        let is_asked = *is_asked.lock().unwrap();
        match ended {
            // The check goes on, or the server is silent.
            Err(_) => assert!(!is_asked || verdict == Verdict::Never),
            Ok(Err(ConnectError::HostKey(()))) => assert_eq!(verdict, Verdict::Refused),
            Ok(Err(ConnectError::Ssh(error))) => assert!(!matches!(error, SshError::HostKeyRefused)),
            Ok(Ok(_)) => panic!("a connection"),
        }
        // Nobody needs the stream any more.
        timeout(LONG, serving).await.expect("an end").unwrap();
        (numbers(&recorded.lock().unwrap()), is_asked)
    })
}

/// Plays the server, and lets time pass between its packets.
async fn serve_slowly(mut stream: DuplexStream, mut server: Server, recorded: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        for packet in std::mem::take(&mut server.sent) {
            let _ = stream.write_all(&packet).await;
            sleep(Duration::from_millis(1)).await;
        }
        match stream.read(&mut buffer).await {
            Ok(count) if count > 0 => {
                recorded.lock().unwrap().extend_from_slice(&buffer[..count]);
                server.feed(&buffer[..count]);
            }
            _ => return,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_key_exchange_travels_with_the_login_in_the_fast_order() {
    let (ours, theirs) = duplex(1 << 16);
    let recorded = Arc::default();
    tokio::spawn(serve_slowly(theirs, Server::new(CURVE, GCM, true), Arc::clone(&recorded)));
    let connected = Session::connect(ours, fast(), None, async |_| Ok::<_, ()>(())).await;
    let session = connected.unwrap_or_else(|_| panic!("no connection"));
    // NEWKEYS and EXT_INFO arrive behind the reply, while the caller still signs.
    let announced = session.signature_algorithms(LONG).await;
    assert_eq!(announced.unwrap(), ["ssh-ed25519", "rsa-sha2-512"]);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(numbers(&recorded.lock().unwrap()), [KEXINIT, KEX_ECDH_INIT]);
    let command = Request::Exec(b"out".to_vec());
    let (mut channel, _) = session.start("me", &key("right"), b"signature", &command, b"").unwrap();
    assert_eq!(session.login_reply().await.unwrap(), LoginReply::Success);
    assert_eq!(channel.next().await, Some(ChannelEvent::Opened));
}

/// A packet that anybody on the way can make up while there are no keys.
fn packet(message: Message) -> Vec<u8> {
    let mut writer = PacketWriter::new();
    writer.write(&message.into_bytes()).unwrap();
    writer.out
}

fn hostile() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(packet(Message::new(IGNORE).string("x"))),
        Just(packet(Message::new(DEBUG).boolean(true).string("x").string(""))),
        Just(packet(Message::new(UNIMPLEMENTED).u32(0))),
        Just(packet(Message::new(EXT_INFO).u32(0))),
        Just(packet(Message::new(SERVICE_ACCEPT).string("ssh-userauth"))),
        Just(packet(Message::new(USERAUTH_SUCCESS))),
        Just(packet(Message::new(GLOBAL_REQUEST).string("keepalive@openssh.com").boolean(true))),
        Just(packet(Message::new(CHANNEL_OPEN_CONFIRMATION).u32(0).u32(0).u32(9).u32(9))),
        any::<[u8; 24]>().prop_map(|bytes| bytes.to_vec()),
    ]
}

#[test]
fn nothing_but_the_key_exchange_leaves_while_the_host_key_is_checked() {
    for config in [Config::default(), fast()] {
        for verdict in [Verdict::Never, Verdict::Refused] {
            let (numbers, is_asked) =
                connect(config.clone(), Server::new(CURVE, GCM, true), Vec::new(), verdict);
            assert!(is_asked);
            assert_eq!(numbers, [KEXINIT, KEX_ECDH_INIT], "{verdict:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_server_gets_anything_but_the_key_exchange_before_the_check(
        inserted in proptest::collection::vec((0_usize..6, hostile()), 0..4),
        is_fast: bool,
        is_strict: bool,
        lies: bool,
        verdict in prop_oneof![Just(Verdict::Never), Just(Verdict::Refused)],
    ) {
        let config = if is_fast { fast() } else { Config::default() };
        let mut server = Server::new(CURVE, GCM, is_strict);
        server.lies = lies;
        let (numbers, is_asked) = connect(config, server, inserted, verdict);
        prop_assert!(!(lies && is_asked));
        prop_assert!([KEXINIT, KEX_ECDH_INIT].starts_with(&numbers), "{:?}", numbers);
    }
}
