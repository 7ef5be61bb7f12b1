//! russh's server as the other end: another implementation, and the one here that has ML-KEM.

use std::net::SocketAddr;
use std::sync::Arc;

use ksync_ssh::{Config, KEY_EXCHANGES, LoginReply, Order};
use russh::keys::{PrivateKey, load_secret_key};
use russh::server::{self, Auth, ChannelOpenHandle, Handler, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId};
use tokio::net::TcpListener;

use crate::host::{Key, connect, run};
use crate::world::World;
use crate::world::service::make_key;
use crate::world::skip::needs_programs;

/// Lets everybody in, and answers each command by itself and its input.
struct Echo;

impl Handler for Echo {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, _: &str, _: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)?;
        session.data(channel, command.to_vec())
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.data(channel, data.to_vec())
    }

    async fn channel_eof(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        session.exit_status_request(channel, 0)?;
        session.eof(channel)?;
        session.close(channel)
    }
}

async fn serve(key: PrivateKey) -> SocketAddr {
    let config = Arc::new(server::Config { keys: vec![key], ..server::Config::default() });
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let config = Arc::clone(&config);
            tokio::spawn(async move { server::run_stream(config, stream, Echo).await?.await });
        }
    });
    address
}

#[tokio::test]
async fn each_key_exchange_works_with_russh() {
    if !needs_programs(&["ssh-keygen"]) {
        return;
    }
    let world = World::new();
    make_key(&world, "key", "ed25519");
    let key = || load_secret_key(world.path("key"), None).expect("a key");
    let address = serve(key()).await;
    for name in KEY_EXCHANGES.iter().filter(|name| name.starts_with("mlkem") || name.starts_with("curve")) {
        let mut config = Config::default();
        config.algorithms.key_exchanges = vec![(*name).to_owned()];
        let session = connect(address, config).await;
        assert_eq!(session.client(|client| client.negotiated().unwrap().key_exchange.clone()), *name);
        assert_eq!(Key(Arc::new(key())).login(&session).await, LoginReply::Success, "{name}");
        assert_eq!(run(&session, "hi ", b"there").await.text(), "hi there", "{name}");
        let facts = session.client(|client| client.facts()).expect("facts");
        assert_eq!(facts.order(), Order::Safe, "{}", facts.server_id);
    }
}
