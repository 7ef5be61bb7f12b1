//! A real sshd with its own keys, home directory and cache, and the proxies in front of it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use flate2::{Compression, GzBuilder};
use ksync::remote::{Agent, AgentImage, BLOCK_BYTES, Connection, End, HostKeys, Target, Transport, connect};

use crate::skip::{needs_programs, program};

/// First bytes of an agent.
pub(crate) const MAGIC: &[u8] = b"\0KSYNC\r\n";

/// Longer than any test takes, and short enough to tell a hang from a slow machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// An agent that repeats its input.
pub(crate) const ECHO: &str = "exec cat";

pub(crate) struct World {
    folder: tempfile::TempDir,
    sshd: PathBuf,
    server: Option<Child>,
    port: u16,
    images: Vec<String>,
}

impl World {
    pub(crate) fn new() -> Option<Self> {
        Self::with("")
    }

    /// Starts a world with extra lines in sshd's configuration.
    pub(crate) fn with(config: &str) -> Option<Self> {
        if !needs_programs(&["sshd", "ssh-keygen"]) {
            return None;
        }
        let sshd = program("sshd")?;
        // sshd chroots into this directory before the login.
        let _ = std::fs::create_dir_all("/run/sshd");
        let folder = tempfile::tempdir().unwrap();
        let mut world = Self { folder, sshd, server: None, port: free_port(), images: Vec::new() };
        for (name, kind) in
            [("host", "ed25519"), ("host_ecdsa", "ecdsa"), ("key", "ed25519"), ("other", "ed25519")]
        {
            world.keygen(name, kind);
        }
        std::fs::create_dir(world.home()).unwrap();
        world.start(config);
        Some(world)
    }

    pub(crate) fn keygen(&self, name: &str, kind: &str) {
        for file in [self.path(name), self.path(&format!("{name}.pub"))] {
            let _ = std::fs::remove_file(file);
        }
        let path = self.path(name);
        let status = Command::new("ssh-keygen").args(["-q", "-N", "", "-t", kind, "-f"]).arg(path).status();
        assert!(status.unwrap().success());
    }

    /// Restarts sshd.
    pub(crate) fn start(&mut self, config: &str) {
        self.stop();
        let path = |name: &str| self.path(name).display().to_string();
        // The first SetEnv counts, so one in `config` replaces this one.
        let text = format!(
            "{config}\nListenAddress 127.0.0.1:{}\nHostKey {}\nHostKey {}\nAuthorizedKeysFile {}\n\
             StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n\
             SetEnv HOME={} XDG_CACHE_HOME={}\n",
            self.port,
            path("host"),
            path("host_ecdsa"),
            path("key.pub"),
            self.home().display(),
            self.cache().display(),
        );
        std::fs::write(self.path("sshd_config"), text).unwrap();
        let log = std::fs::File::create(self.path("log")).unwrap();
        let mut command = Command::new(&self.sshd);
        command.arg("-D").arg("-e").arg("-f").arg(self.path("sshd_config"));
        self.server = Some(command.stdin(Stdio::null()).stderr(log).spawn().unwrap());
        wait_for(self.port);
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Home directory on the server.
    pub(crate) fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// Cache directory on the server.
    pub(crate) fn cache(&self) -> PathBuf {
        self.path("cache")
    }

    /// The server's first choice of a directory for agents.
    pub(crate) fn agents(&self) -> PathBuf {
        self.cache().join("ksync")
    }

    pub(crate) fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A target directly at sshd, with the right keys.
    pub(crate) fn target(&self) -> Target {
        self.target_at(self.address())
    }

    pub(crate) fn target_at(&self, address: SocketAddr) -> Target {
        Target {
            transport: Transport::Tcp { host: address.ip().to_string(), port: address.port() },
            user: user(),
            host_keys: HostKeys::Exactly(self.text("host.pub")),
            identities: vec![self.path("key")],
            identity_text: None,
            use_ssh_agent: false,
            connect_timeout: Duration::from_secs(20),
            silence_timeout: Duration::from_secs(60),
        }
    }

    pub(crate) fn target_over(&self, url: &str, ca_cert: Option<PathBuf>) -> Target {
        Target { transport: Transport::WebSocket { url: url.into(), ca_cert }, ..self.target() }
    }

    pub(crate) async fn connect(&self) -> Connection {
        connect(&self.target()).await.unwrap()
    }

    /// Makes an agent: a script that prints the magic word and then runs `then`. Each one is
    /// different.
    pub(crate) fn image(&mut self, then: &str) -> AgentImage {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let unique = format!("{} {}", self.folder.path().display(), COUNT.fetch_add(1, Ordering::Relaxed));
        let script = format!(
            "#!/bin/sh\n# {unique}\n[ \"$1\" = --version ] && exit 0\nprintf '\\000KSYNC\\r\\n'\n{then}\n"
        );
        let image = pack(script.as_bytes());
        self.images.push(image.sha256.to_string());
        image
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop();
        // Fallback directories for agents.
        for directory in ["/var/tmp", "/tmp", "/dev/shm"] {
            for image in &self.images {
                let _ = std::fs::remove_file(format!("{directory}/ksync-0/agent-{image}"));
            }
            let _ = std::fs::remove_dir(format!("{directory}/ksync-0"));
        }
    }
}

pub(crate) fn pack(program: &[u8]) -> AgentImage {
    let gzip = |padding: usize| {
        let mut packer = GzBuilder::new().extra(vec![0; padding]).write(Vec::new(), Compression::default());
        packer.write_all(program).unwrap();
        packer.finish().unwrap()
    };
    let padding = (BLOCK_BYTES - gzip(0).len() % BLOCK_BYTES) % BLOCK_BYTES;
    let mut sum = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    sum.stdin.take().unwrap().write_all(program).unwrap();
    let sum = String::from_utf8(sum.wait_with_output().unwrap().stdout).unwrap();
    AgentImage { sha256: sum[..64].to_owned().into(), gzip: gzip(padding).into() }
}

pub(crate) fn user() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Writes `words` to the agent and ends its input. Returns the agent's whole output and its end.
pub(crate) async fn talk(agent: Agent, words: Vec<u8>) -> (std::io::Result<Vec<u8>>, End) {
    let Agent { mut reader, mut writer, end, .. } = agent;
    let speaking = tokio::task::spawn_blocking(move || writer.write_all(&words));
    let listening = tokio::task::spawn_blocking(move || {
        let mut heard = Vec::new();
        reader.read_to_end(&mut heard).map(|_| heard)
    });
    let heard = tokio::time::timeout(DEADLINE, listening).await.expect("no end").unwrap();
    // If the agent could not be started, the reader has reported that.
    let _ = speaking.await.unwrap();
    (heard, tokio::time::timeout(DEADLINE, end.wait()).await.expect("no end"))
}

/// Asserts that the agent repeats `words` after its magic word and exits with 0.
pub(crate) async fn echoes(agent: Agent, words: Vec<u8>) {
    let (heard, end) = talk(agent, words.clone()).await;
    let heard = heard.unwrap_or_else(|error| panic!("{error}: {:?} {end:?}", error.get_ref()));
    assert_eq!(heard.len(), MAGIC.len() + words.len());
    assert!(heard.starts_with(MAGIC) && heard.ends_with(&words));
    assert_eq!((end.exit_status, end.signal), (Some(0), None));
}

/// Pseudo-random bytes, line ends and zeros included.
pub(crate) fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

pub(crate) fn wait_for(port: u16) {
    let begin = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(begin.elapsed() < DEADLINE, "nothing listens on {port}");
        thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// `websocat` as on a VM; killed when dropped.
pub(crate) struct Websocat(Child, u16);

impl Websocat {
    pub(crate) fn to(address: SocketAddr) -> Option<Self> {
        if !needs_programs(&["websocat"]) {
            return None;
        }
        let port = free_port();
        let (listen, to) = (format!("ws-l:127.0.0.1:{port}"), format!("tcp:{address}"));
        let child = Command::new(program("websocat")?).arg("--binary").arg(listen).arg(to).spawn().unwrap();
        let websocat = Self(child, port);
        wait_for(port);
        Some(websocat)
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://127.0.0.1:{}", self.1)
    }
}

impl Drop for Websocat {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Harm that a proxy does to its traffic.
#[derive(Default)]
struct Harm {
    black: AtomicBool,
    slow: AtomicBool,
}

/// A proxy that delays, swallows, or cuts its traffic.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    harm: Arc<Harm>,
    sockets: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    /// Starts a proxy to `target` with this delay each way.
    pub(crate) fn to(target: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (harm, sockets) = (Arc::new(Harm::default()), Arc::new(Mutex::new(Vec::new())));
        let proxy = Self { address, harm: harm.clone(), sockets: sockets.clone() };
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(target) else { return };
                for socket in [&near, &far] {
                    socket.set_nodelay(true).unwrap();
                    sockets.lock().unwrap().push(socket.try_clone().unwrap());
                }
                // Otherwise the kernel buffers up to 32 MB, and hides the state of the link beyond.
                rustix::net::sockopt::set_socket_recv_buffer_size(&near, 64 * 1024).unwrap();
                carry(near.try_clone().unwrap(), far.try_clone().unwrap(), delay, harm.clone());
                carry(far, near, delay, harm.clone());
            }
        });
        proxy
    }

    /// From now on the proxy silently swallows everything.
    pub(crate) fn go_black(&self) {
        self.harm.black.store(true, Ordering::SeqCst);
    }

    /// From now on the proxy passes about 10 MB/s, so the link is the bottleneck.
    pub(crate) fn slow_down(&self) {
        self.harm.slow.store(true, Ordering::SeqCst);
    }

    /// Cuts all connections.
    pub(crate) fn cut(&self) {
        for socket in self.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, delay: Duration, harm: Arc<Harm>) {
    let (sender, receiver) = std::sync::mpsc::sync_channel::<(Instant, Vec<u8>)>(1024);
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if harm.slow.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(count as u64 / 10_000));
            }
            while harm.black.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(20));
            }
            if sender.send((Instant::now() + delay, buffer[..count].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, bytes) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
}
