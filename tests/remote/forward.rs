//! A server that opens channels which nobody asked for.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use ksync::remote::{Forward, Forwards, HostKeys, Keys, Target, Transport, connect};
use russh::keys::key::safe_rng;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey};
use russh::server::{Auth, Config, Handle, Handler, Session, VerifiedPublicKey, run_stream};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::world::{DEADLINE, World};

/// The port of every listener that the server claims to have.
const PORT: u32 = 4242;

/// A server that lets everybody in, and hands out its session.
struct Hostile(Sender<Handle>);

impl Handler for Hostile {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, _: &str, _: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        Ok(Auth::Accept)
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), russh::Error> {
        let _ = self.0.send(session.handle()).await;
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        _: &str,
        port: &mut u32,
        _: &mut Session,
    ) -> Result<bool, russh::Error> {
        *port = PORT;
        Ok(true)
    }
}

/// Starts the server. Returns the target for a client, and the sessions.
async fn start(world: &World) -> (Target, Receiver<Handle>) {
    let key = || PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap();
    let (host_key, client_key, file) = (key(), key(), world.path("key"));
    std::fs::write(&file, client_key.to_openssh(LineEnding::LF).unwrap()).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let host_keys = HostKeys::Exactly(host_key.public_key().to_openssh().unwrap());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, sessions) = channel(1);
    let config = Arc::new(Config { keys: vec![host_key], ..Config::default() });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let running = run_stream(Arc::clone(&config), stream, Hostile(sender.clone()));
            tokio::spawn(async move { running.await.unwrap().await });
        }
    });
    let target = Target {
        transport: Transport::tcp("127.0.0.1".into(), port),
        user: "root".into(),
        host_keys,
        keys: Keys::named(vec![file]),
        connect_timeout: DEADLINE,
        silence_timeout: Duration::from_secs(60),
        facts: None,
    };
    (target, sessions)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_cannot_open_channels_that_were_not_asked_for() {
    let world = World::new();
    let (target, mut sessions) = start(&world).await;
    let connection = connect(&target).await.unwrap();
    let server = sessions.recv().await.unwrap();
    assert!(server.channel_open_forwarded_tcpip("localhost", PORT, "127.0.0.1", 1).await.is_err());
    assert!(server.channel_open_forwarded_tcpip("localhost", 0, "127.0.0.1", 1).await.is_err());
    assert!(server.channel_open_session().await.is_err());
    assert!(server.channel_open_agent().await.is_err());
    assert!(server.channel_open_x11("127.0.0.1", 1).await.is_err());
    assert!(server.channel_open_direct_tcpip("localhost", 22, "127.0.0.1", 1).await.is_err());

    let web = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let forward = format!("0:127.0.0.1:{}", web.local_addr().unwrap().port());
    let forward = Forward::remote(&forward).unwrap();
    let forwards = Forwards::bind(vec![forward], Arc::new(|_| ())).await.unwrap();
    let forwarding = connection.forward(forwards).await.unwrap();
    assert_eq!(forwarding.allocated().len(), 1);
    // Only this address with this port was asked for.
    for (address, port) in [("localhost", PORT + 1), ("", PORT), ("localhost", 0), ("127.0.0.1", PORT)] {
        let opened = server.channel_open_forwarded_tcpip(address, port, "127.0.0.1", 1).await;
        assert!(opened.is_err(), "{address}:{port}");
    }
    assert!(server.channel_open_session().await.is_err());
    let opened = server.channel_open_forwarded_tcpip("localhost", PORT, "127.0.0.1", 1).await.unwrap();
    let (mut socket, _) = web.accept().await.unwrap();
    opened.data_bytes(&b"through"[..]).await.unwrap();
    opened.eof().await.unwrap();
    let mut through = Vec::new();
    socket.read_to_end(&mut through).await.unwrap();
    assert_eq!(through, b"through");
    drop(socket);
    forwarding.end().await;
    assert!(server.channel_open_forwarded_tcpip("localhost", PORT, "127.0.0.1", 1).await.is_err());
    connection.close().await;
}
