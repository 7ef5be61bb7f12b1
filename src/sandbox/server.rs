//! The SSH server: login, session requests, and requests to forward. It answers as the VM's sshd
//! does: public keys only, ten sessions, a window of 2 MiB, no compression.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::ssh_key::authorized_keys::Entry;
use russh::keys::{Algorithm, PrivateKey, PublicKey};
use russh::server::{
    Auth, ChannelOpenHandle, Config, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey, run_stream,
};
use russh::{
    Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Preferred, Pty, SshId, cipher, compression,
};
use rustix::fs::OFlags;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use super::forward::Forwards;
use super::process::{self, Processes};
use super::rooted::Root;
use super::{subsystem, terminal};

/// OpenSSH's channel window in bytes (`CHAN_SES_WINDOW_DEFAULT`), which limits every client of the
/// VM.
const WINDOW: u32 = 2 << 20;

/// OpenSSH's `MaxSessions`.
const SESSIONS_MAX: usize = 10;

/// OpenSSH's `MaxAuthTries`.
const AUTH_ATTEMPTS_MAX: usize = 6;

/// Delay of the answer to a failed login. It is short, because nothing here is worth protecting
/// from guesses.
const REJECTION_DELAY: Duration = Duration::from_millis(50);

const CIPHERS: &[cipher::Name] = &[
    cipher::CHACHA20_POLY1305,
    cipher::AES_128_CTR,
    cipher::AES_192_CTR,
    cipher::AES_256_CTR,
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
];

const COMPRESSIONS: &[compression::Name] = &[compression::NONE];

/// File of root's keys in a VM.
const AUTHORIZED_KEYS: &str = "/root/.ssh/authorized_keys";

/// State shared by all connections.
#[derive(Debug)]
pub(super) struct Server {
    config: Arc<Config>,
    lock: Arc<Lock>,
    processes: Arc<Processes>,
}

/// The keys that the server accepts.
#[derive(Debug)]
pub(super) struct Lock {
    /// The sandbox's own key.
    pub(super) key: Option<PublicKey>,
    /// The VM's files, whose [`AUTHORIZED_KEYS`] has more keys in OpenSSH's format, read at each
    /// login. As with sshd's `StrictModes`, a file that others than its owner may write is ignored.
    pub(super) root: Option<Root>,
}

impl Lock {
    fn admits(&self, key: &PublicKey) -> bool {
        // Compare the key data, because the keys carry comments.
        let fits = |known: &PublicKey| known.key_data() == key.key_data();
        self.key.as_ref().is_some_and(fits) || self.authorized().iter().any(fits)
    }

    fn authorized(&self) -> Vec<PublicKey> {
        let read = || {
            let root = self.root.as_ref()?;
            let is_strict = |metadata: Metadata| metadata.mode() & 0o022 == 0;
            let directory = root.find(Path::new(AUTHORIZED_KEYS).parent()?).ok()?;
            let mut file = root.open(AUTHORIZED_KEYS, OFlags::RDONLY, 0).ok()?;
            let mut text = String::new();
            file.read_to_string(&mut text).ok()?;
            (is_strict(directory.metadata().ok()?) && is_strict(file.metadata().ok()?)).then_some(text)
        };
        let text = read().unwrap_or_default();
        // A malformed line does not affect the others.
        text.lines()
            .filter_map(|line| Some(line.trim().parse::<Entry>().ok()?.public_key().clone()))
            .collect()
    }
}

impl Server {
    /// Makes a server with this host key that accepts the keys of `lock`.
    pub(super) fn new(host_key: PrivateKey, lock: Lock, processes: Arc<Processes>) -> Server {
        let config = Config {
            server_id: SshId::Standard(Cow::Borrowed("SSH-2.0-sandbox")),
            methods: MethodSet::from([MethodKind::PublicKey].as_slice()),
            auth_rejection_time: REJECTION_DELAY,
            auth_rejection_time_initial: Some(Duration::ZERO),
            keys: vec![host_key],
            window_size: WINDOW,
            preferred: Preferred {
                key: Cow::Borrowed(&[Algorithm::Ed25519]),
                cipher: Cow::Borrowed(CIPHERS),
                compression: Cow::Borrowed(COMPRESSIONS),
                ..Preferred::default()
            },
            max_auth_attempts: AUTH_ATTEMPTS_MAX,
            inactivity_timeout: None,
            nodelay: true,
            ..Config::default()
        };
        Server { config: Arc::new(config), lock: Arc::new(lock), processes }
    }

    /// Speaks SSH on `stream` until either side ends the connection.
    ///
    /// # Errors
    /// The client breaks the protocol, or drops the connection without a disconnect message.
    pub(super) async fn serve<S>(&self, stream: S) -> Result<(), russh::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let connection = Connection {
            lock: Arc::clone(&self.lock),
            processes: Arc::clone(&self.processes),
            sessions: Arc::new(Semaphore::new(SESSIONS_MAX)),
            busy: HashSet::new(),
            forwards: Forwards::new(),
        };
        run_stream(Arc::clone(&self.config), stream, connection).await?.await
    }
}

/// One client connection.
struct Connection {
    lock: Arc<Lock>,
    processes: Arc<Processes>,
    sessions: Arc<Semaphore>,
    /// Channels that run a command: each may ask for one only.
    busy: HashSet<ChannelId>,
    forwards: Forwards,
}

impl Connection {
    fn judge(&self, key: &PublicKey) -> Auth {
        if self.lock.admits(key) { Auth::Accept } else { Auth::reject() }
    }

    fn begin(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        if self.busy.insert(channel) {
            session.channel_success(channel)
        } else {
            session.channel_failure(channel)
        }
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(self.judge(offer.public_key))
    }

    async fn auth_publickey(
        &mut self,
        _user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(self.judge(key.public_key))
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let Ok(permit) = Arc::clone(&self.sessions).try_acquire_owned() else {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return Ok(());
        };
        reply.accept().await;
        let handle = session.handle();
        let processes = Arc::clone(&self.processes);
        tokio::spawn(async move {
            process::serve(channel, handle, processes).await;
            drop(permit);
        });
        Ok(())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.busy.remove(&channel);
        Ok(())
    }

    /// The channel's own task starts the command; this handler only answers the request.
    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _command: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.begin(channel, session)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        self.begin(channel, session)
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        // The channel's own task opens the terminal when it starts the command.
        if terminal::leader_maker().is_ok() {
            session.channel_success(channel)
        } else {
            session.channel_failure(channel)
        }
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        _value: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(channel)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(channel)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        match subsystem::command(name) {
            Some(_) => self.begin(channel, session),
            None => session.channel_failure(channel),
        }
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _from_address: &str,
        _from_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.forwards.connect(channel, reply, host.to_owned(), port).await;
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, russh::Error> {
        Ok(self.forwards.listen(address, port, &session.handle()).await)
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        Ok(self.forwards.cancel(address, port))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use russh::keys::key::safe_rng;

    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn keys_of_a_vm_come_from_its_own_files_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = folder.path().join("vm/root/.ssh");
        fs::create_dir_all(&directory).expect("a directory");
        let key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).expect("a key");
        let line = key.public_key().to_openssh().expect("a line");
        let (outside, inside) = (folder.path().join("keys"), directory.join("authorized_keys"));
        for path in [&outside, &inside] {
            fs::write(path, &line).expect("a file");
            fs::set_permissions(path, Permissions::from_mode(0o600)).expect("a mode");
        }
        let lock = Lock { key: None, root: Some(Root::new(folder.path().join("vm"))) };
        assert!(lock.admits(key.public_key()));
        fs::set_permissions(&inside, Permissions::from_mode(0o620)).expect("a mode");
        assert!(!lock.admits(key.public_key()));
        fs::remove_file(&inside).expect("removal");
        symlink(&outside, &inside).expect("a link");
        assert!(!lock.admits(key.public_key()));
    }
}
