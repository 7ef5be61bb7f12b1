//! Somebody on the way to each sshd inserts a packet into the first key exchange, and drops the
//! first encrypted packet (Terrapin, CVE-2023-48795). Nothing of it goes through. The control shows
//! that it would with a client that does not offer the strict key exchange.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use ksync_ssh::{Config, ConnectError, LoginReply, Order, Request, SshError};
use tokio::time::timeout;

use crate::host::{connect, read, try_connect};
use crate::servers::{Installed, PENALTIES_SINCE, Program, Server, folder, installed, python};
use crate::world::Run;

const KEXINIT: u8 = 20;
const NEWKEYS: u8 = 21;
const KEX_ECDH_INIT: u8 = 30;
const KEX_ECDH_REPLY: u8 = 31;

/// IGNORE with an empty string, as anybody can make it while there are no keys.
const IGNORE: [u8; 16] = [0, 0, 0, 12, 6, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The client's first encrypted packet: SERVICE_REQUEST with a tag.
const SERVICE_REQUEST_BYTES: usize = 44;

/// The cipher for which the attack was found.
const CHACHA: &str = "chacha20-poly1305@openssh.com";

/// Longer than a login takes under load.
const PATIENCE: Duration = Duration::from_secs(60);

/// An attack on one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attack {
    to_server: bool,
    /// The packet before which IGNORE is inserted.
    before: Option<u8>,
    /// The first encrypted packet is dropped.
    drops: bool,
}

/// All attacks: six places, with and without the drop, and the drop alone.
fn attacks() -> Vec<Attack> {
    let places = [
        (true, Some(KEXINIT)),
        (true, Some(KEX_ECDH_INIT)),
        (true, Some(NEWKEYS)),
        (false, Some(KEXINIT)),
        (false, Some(KEX_ECDH_REPLY)),
        (false, Some(NEWKEYS)),
        (true, None),
        (false, None),
    ];
    let attack = |(to_server, before), drops| Attack { to_server, before, drops };
    let all = places.into_iter().flat_map(|place| [false, true].map(|drops| attack(place, drops)));
    all.filter(|attack| attack.before.is_some() || attack.drops).collect()
}

/// Listens for one connection after the other and carries them to `server` with an attack.
fn in_the_middle(server: SocketAddr, attack: Option<Attack>) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(server).expect("a connection");
            for to_server in [true, false] {
                let clone = |stream: &TcpStream| stream.try_clone().expect("a socket");
                let (from, to) = if to_server {
                    (clone(&client), clone(&server))
                } else {
                    (clone(&server), clone(&client))
                };
                let attack = attack.filter(|attack| attack.to_server == to_server);
                thread::spawn(move || {
                    // The ends hang up as they like.
                    let _ = carry(&from, &to, attack);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    address
}

/// Carries one direction: the id, packets up to NEWKEYS, and what is encrypted.
fn carry(mut from: &TcpStream, mut to: &TcpStream, attack: Option<Attack>) -> std::io::Result<()> {
    to.set_nodelay(true)?;
    let mut pending = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    let mut more = |pending: &mut Vec<u8>| -> std::io::Result<bool> {
        let count = from.read(&mut buffer)?;
        pending.extend_from_slice(&buffer[..count]);
        Ok(count > 0)
    };
    while !pending.contains(&b'\n') {
        if !more(&mut pending)? {
            return Ok(());
        }
    }
    let end = pending.iter().position(|&byte| byte == b'\n').expect("an id") + 1;
    to.write_all(&pending.drain(..end).collect::<Vec<_>>())?;
    loop {
        let length = pending.first_chunk().map_or(4, |&length| 4 + u32::from_be_bytes(length) as usize);
        if pending.len() < length.max(6) {
            if !more(&mut pending)? {
                return Ok(());
            }
            continue;
        }
        let packet: Vec<u8> = pending.drain(..length).collect();
        if attack.is_some_and(|attack| attack.before == Some(packet[5])) {
            to.write_all(&IGNORE)?;
        }
        to.write_all(&packet)?;
        if packet[5] == NEWKEYS {
            break;
        }
    }
    if let Some(attack) = attack.filter(|attack| attack.drops) {
        // The server's is EXT_INFO, which it sends together with NEWKEYS.
        if pending.is_empty() && !more(&mut pending)? {
            return Ok(());
        }
        let dropped = if attack.to_server { SERVICE_REQUEST_BYTES } else { pending.len() };
        while pending.len() < dropped {
            if !more(&mut pending)? {
                return Ok(());
            }
        }
        pending.drain(..dropped);
    }
    loop {
        to.write_all(&pending)?;
        pending.clear();
        if !more(&mut pending)? {
            return Ok(());
        }
    }
}

/// Connections that are stopped would be punished by newer ones.
fn without_penalties(sshd: &Installed) -> &'static str {
    if sshd.version() < PENALTIES_SINCE { "" } else { "PerSourcePenalties no" }
}

/// The first output of a connection through `address`.
async fn output(address: SocketAddr, server: &Server, order: &Order) -> Result<Vec<u8>, SshError> {
    let mut config = Config { order: order.clone(), ..Config::default() };
    config.algorithms.ciphers = vec![CHACHA.to_owned()];
    let session = match try_connect(address, config).await {
        Ok(session) => session,
        Err(ConnectError::Ssh(error)) => return Err(error),
        Err(ConnectError::HostKey(())) => panic!("another host key"),
    };
    let (key, command) = (server.key("key"), Request::Exec(b"echo hi".into()));
    let public = key.public();
    let signature = key.sign(&session.client(|client| client.to_sign("root", &public)));
    let reader = if *order == Order::Safe {
        assert_eq!(session.login("root", &public, &signature).await?, LoginReply::Success);
        let channel = session.open().await.map_err(|_| SshError::Closed)?;
        channel.writer().request(&command, false)?;
        channel.split().0
    } else {
        let (channel, _) = session.start("root", &public, &signature, &command, b"")?;
        assert_eq!(session.login_reply().await?, LoginReply::Success);
        channel.split().0
    };
    Ok(read(reader).await.stdout)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_inserted_or_dropped_goes_through_to_any_sshd() {
    for installed in installed(&[Program::Sshd]) {
        let server = installed.start(without_penalties(&installed));
        let name = server.name();
        let session = connect(server.address, Config::default()).await;
        assert_eq!(server.key("key").login(&session).await, LoginReply::Success);
        let facts = session.client(|client| client.facts()).expect("facts");
        for order in [Order::Safe, facts.order()] {
            let through = |attack| output(in_the_middle(server.address, attack), &server, &order);
            assert_eq!(through(None).await.expect("output"), b"hi\n", "{name}");
            for attack in attacks() {
                let stopped = timeout(PATIENCE, through(Some(attack))).await.expect("no silence");
                let error = stopped.expect_err("stopped");
                // Packets that arrive wrong here are seen here, maybe by a length that makes no
                // sense. The rest makes the server hang up.
                let is_here = match error {
                    SshError::NotStrict(_) => attack.before.is_some(),
                    SshError::Tampered | SshError::Length { .. } | SshError::Malformed(_) => attack.drops,
                    _ => false,
                };
                assert_eq!(is_here, !attack.to_server, "{name} {attack:?}: {error}");
            }
        }
    }
}

#[test]
fn the_attack_goes_through_where_no_strict_key_exchange_is_offered() {
    let Some(python) = python() else { return };
    for installed in installed(&[Program::Sshd]) {
        let server = installed.start(without_penalties(&installed));
        let run = |attack| {
            let mut command = server.world.command(&python);
            command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ssh/plain_client.py"));
            command.arg(in_the_middle(server.address, attack).port().to_string());
            command.arg(folder().expect("servers").join("key"));
            Run::of(command)
        };
        assert_eq!(run(None).ok().stdout, "hi\n", "{}", server.name());
        let attack = Attack { to_server: false, before: Some(NEWKEYS), drops: true };
        assert_eq!(run(Some(attack)).ok().stdout, "hi\n", "{}", server.name());
        // One without the other is noticed even so.
        assert_eq!(run(Some(Attack { drops: false, ..attack })).stdout, "", "{}", server.name());
    }
}
