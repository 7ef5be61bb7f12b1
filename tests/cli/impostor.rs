//! An SSH server with an impostor in the agent's place.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey, key::safe_rng};
use russh::server::{
    Auth, ChannelOpenHandle, Config, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey, run_stream,
};
use russh::{Channel, ChannelId, ChannelMsg};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use crate::world::{Run, World};

/// A server that ends when it is dropped.
pub(crate) struct Impostor {
    address: SocketAddr,
    host_key: String,
    _runtime: Runtime,
}

impl Impostor {
    /// Starts a server on loopback that accepts every user, answers every command with `script`,
    /// and then reads until the client leaves. Puts a key for the client into the world.
    pub(crate) fn start(world: &World, script: Vec<u8>) -> Impostor {
        Self::dripping(world, script, Vec::new(), Duration::MAX)
    }

    /// As [`Impostor::start`], and then sends `drip` again and again.
    pub(crate) fn dripping(world: &World, script: Vec<u8>, drip: Vec<u8>, pause: Duration) -> Impostor {
        let fresh_key = || PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).expect("a key");
        let client_key = fresh_key().to_openssh(LineEnding::LF).expect("text");
        world.tree(".").file("key", client_key.as_bytes()).mode("key", 0o600);
        let server_key = fresh_key();
        let host_key = server_key.public_key().to_openssh().expect("text");
        let config = Arc::new(Config { keys: vec![server_key], ..Config::default() });
        let runtime = Runtime::new().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address");
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = Connection { script: script.clone(), drip: drip.clone(), pause };
                let running = run_stream(Arc::clone(&config), stream, connection);
                tokio::spawn(async move {
                    if let Ok(session) = running.await {
                        let _ = session.await;
                    }
                });
            }
        });
        Impostor { address, host_key, _runtime: runtime }
    }

    fn endpoint(&self) -> String {
        format!("ssh://me@{}/anywhere", self.address)
    }

    /// Runs `ksync` with these options to download from the impostor.
    pub(crate) fn download_with(&self, world: &World, options: &[&str]) -> Run {
        world.run(self.arguments(options))
    }

    /// The arguments of `ksync` for a download.
    pub(crate) fn arguments(&self, options: &[&str]) -> Vec<String> {
        let key = ["--identity", "key", "--host-key", &self.host_key];
        key.iter()
            .chain(options)
            .map(|&text| text.to_owned())
            .chain([self.endpoint(), "box/dst".to_owned()])
            .collect()
    }

    /// Runs `ksync` to download from the impostor.
    pub(crate) fn download(&self, world: &World, destination: &str) -> Run {
        let key = ["--identity", "key", "--host-key", &self.host_key];
        world.run(key.into_iter().chain([&*self.endpoint(), destination]))
    }

    /// Runs `ksync` to upload to the impostor.
    pub(crate) fn upload(&self, world: &World, source: &str) -> Run {
        let key = ["--identity", "key", "--host-key", &self.host_key];
        world.run(key.into_iter().chain([source, &*self.endpoint()]))
    }
}

struct Connection {
    script: Vec<u8>,
    drip: Vec<u8>,
    pause: Duration,
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        _offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(Auth::Accept)
    }

    async fn auth_publickey(
        &mut self,
        _user: &str,
        _key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        mut channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        reply.accept().await;
        let (script, drip, pause) = (self.script.clone(), self.drip.clone(), self.pause);
        tokio::spawn(async move {
            let mut has_spoken = false;
            let pause = pause.min(Duration::from_secs(1 << 30));
            let mut drips = tokio::time::interval_at(Instant::now() + pause, pause);
            loop {
                tokio::select! {
                    message = channel.wait() => match message {
                        Some(ChannelMsg::Exec { .. }) => {
                            let _ = channel.data(&script[..]).await;
                            has_spoken = true;
                        }
                        Some(_) => {}
                        None => return,
                    },
                    _ = drips.tick(), if has_spoken && !drip.is_empty() => {
                        let _ = channel.data(&drip[..]).await;
                    }
                }
            }
        });
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _command: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }
}
