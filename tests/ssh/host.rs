//! An sshd to connect to, and the client's side of one connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ksync_ssh::{ChannelEvent, Config, ConnectError, LoginKey, LoginReply, Request, Session};
use russh::keys::signature::Signer;
use russh::keys::ssh_encoding::Encode;
use russh::keys::{HashAlg, PrivateKey, load_secret_key};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::world::World;
use crate::world::service::{Sshd, make_key};
use crate::world::skip::needs_programs;

/// Limit of everything: a test under load waits this long before it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Types of host key of each host.
pub(crate) const HOST_KEYS: [(&str, &str); 5] = [
    ("ed25519", "ssh-ed25519"),
    ("ecdsa -b 256", "ecdsa-sha2-nistp256"),
    ("ecdsa -b 384", "ecdsa-sha2-nistp384"),
    ("ecdsa -b 521", "ecdsa-sha2-nistp521"),
    ("rsa -b 2048", "rsa-sha2-512"),
];

/// An sshd with a host key of each type, that lets `key` in.
pub(crate) struct Host {
    pub(crate) world: World,
    sshd: Sshd,
}

/// The output of a command.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) status: Option<u32>,
    pub(crate) signal: Option<String>,
}

impl Output {
    pub(crate) fn text(&self) -> &str {
        assert_eq!((self.status, self.stderr.as_slice()), (Some(0), &b""[..]));
        std::str::from_utf8(&self.stdout).expect("text")
    }
}

impl Host {
    /// Starts a host with extra lines in sshd's configuration; `None` if peers are missing.
    pub(crate) fn with(settings: &str) -> Option<Host> {
        if !needs_programs(&["sshd", "ssh-keygen"]) {
            return None;
        }
        let world = World::new();
        let mut lines = settings.to_owned();
        for (index, (kind, _)) in HOST_KEYS.into_iter().enumerate() {
            let name = format!("host-key-{index}");
            let mut command = world.command("ssh-keygen");
            command.args(["-q", "-N", "", "-t"]).args(kind.split(' ')).arg("-f").arg(world.path(&name));
            crate::world::Run::of(command).ok();
            lines.push_str(&format!("\nHostKey {}", world.path(name).display()));
        }
        for name in ["key", "stranger"] {
            make_key(&world, name, "ed25519");
        }
        lines.push_str(&format!("\nAuthorizedKeysFile {}", world.path("key.pub").display()));
        // A home without start files of a shell, which take time and say what they like.
        lines.push_str(&format!("\nSetEnv HOME={}", world.home().display()));
        let sshd = Sshd::start(&world, &lines);
        Some(Host { world, sshd })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.sshd.port).into()
    }

    pub(crate) fn key(&self, name: &str) -> Key {
        Key(Arc::new(load_secret_key(self.world.path(name), None).expect("a key")))
    }

    /// The public half of a key, as SSH encodes it.
    pub(crate) fn public(&self, name: &str) -> Vec<u8> {
        let text = std::fs::read_to_string(self.world.path(format!("{name}.pub"))).expect("a key");
        let encoded = text.split(' ').nth(1).expect("a key");
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, encoded).expect("a key")
    }

    /// Connects and logs in with the key that is let in.
    pub(crate) async fn session(&self, config: Config) -> Session {
        let session = connect(self.address(), config).await;
        assert_eq!(self.key("key").login(&session).await, LoginReply::Success);
        session
    }
}

/// Connects, whatever the host key is.
pub(crate) async fn connect(address: SocketAddr, config: Config) -> Session {
    try_connect(address, config).await.expect("a connection")
}

pub(crate) async fn try_connect(address: SocketAddr, config: Config) -> Result<Session, ConnectError<()>> {
    let stream = TcpStream::connect(address).await.expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    timeout(PATIENCE, Session::connect(stream, config, None, async |_| Ok(()))).await.expect("in time")
}

/// A key that a user has.
pub(crate) struct Key(pub(crate) Arc<PrivateKey>);

impl Key {
    pub(crate) fn public(&self) -> LoginKey {
        let blob = self.0.public_key().to_bytes().expect("a key");
        let algorithm = match self.0.algorithm().as_str() {
            "ssh-rsa" => "rsa-sha2-512".to_owned(),
            name => name.to_owned(),
        };
        LoginKey { algorithm, blob }
    }

    pub(crate) fn sign(&self, data: &[u8]) -> Vec<u8> {
        let signature = match self.0.key_data().rsa() {
            Some(pair) => (pair, Some(HashAlg::Sha512)).try_sign(data),
            None => self.0.try_sign(data),
        };
        let mut bytes = Vec::new();
        signature.expect("a signature").encode(&mut bytes).expect("a signature");
        bytes
    }

    /// Signs at once, and waits for the answer.
    pub(crate) async fn login(&self, session: &Session) -> LoginReply {
        let key = self.public();
        let signature = self.sign(&session.client(|client| client.to_sign("root", &key)));
        timeout(PATIENCE, session.login("root", &key, &signature)).await.expect("in time").expect("an answer")
    }
}

/// Runs a command with this input, which is sent while its output is read.
pub(crate) async fn run(session: &Session, command: &str, input: &[u8]) -> Output {
    let channel = timeout(PATIENCE, session.open()).await.expect("in time").expect("a channel");
    channel.writer().request(&Request::Exec(command.into()), true).expect("a command");
    let (reader, writer) = channel.split();
    let sending = async {
        writer.send(input).await.expect("input");
        writer.eof().expect("input");
    };
    let (output, ()) =
        timeout(PATIENCE, async { tokio::join!(read(reader), sending) }).await.expect("in time");
    output
}

/// Reads the output of a command to its end.
pub(crate) async fn read(mut reader: ksync_ssh::ChannelReader) -> Output {
    let mut output = Output::default();
    while let Some(event) = timeout(PATIENCE, reader.next()).await.expect("in time") {
        match event {
            ChannelEvent::Data(data) => output.stdout.extend_from_slice(&data),
            ChannelEvent::ExtendedData(_, data) => output.stderr.extend_from_slice(&data),
            ChannelEvent::ExitStatus(status) => output.status = Some(status),
            ChannelEvent::ExitSignal(name) => output.signal = Some(name),
            _ => {}
        }
    }
    output
}
