//! A real sshd with its own keys, home directory and cache, and a bridge in front of it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flate2::{Compression, GzBuilder};
use ksync::remote::{
    Agent, AgentImage, BLOCK_BYTES, Connection, End, HostKeys, Keys, Proxies, Target, Transport, connect,
};

use crate::world::service::{Service, Sshd, make_key, websocat};
use crate::world::skip::needs_programs;
use crate::world::{DEADLINE, World};

/// First bytes of an agent.
pub(crate) const MAGIC: &[u8] = b"\0KSYNC\r\n";

/// An agent that repeats its input.
pub(crate) const ECHO: &str = "exec cat";

pub(crate) struct Server {
    sshd: Sshd,
    world: World,
    images: Vec<String>,
}

impl Deref for Server {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Server {
    /// Starts a server. Skips the test if peers are missing.
    pub(crate) fn new() -> Option<Self> {
        Self::with("")
    }

    /// Starts a server with extra lines in sshd's configuration.
    pub(crate) fn with(config: &str) -> Option<Self> {
        if !needs_programs(&["sshd", "ssh-keygen"]) {
            return None;
        }
        let world = World::new();
        for (name, kind) in
            [("host", "ed25519"), ("host_ecdsa", "ecdsa"), ("key", "ed25519"), ("other", "ed25519")]
        {
            make_key(&world, name, kind);
        }
        let sshd = Sshd::start(&world, &settings(&world, config));
        Some(Self { sshd, world, images: Vec::new() })
    }

    /// Restarts sshd.
    pub(crate) fn start(&mut self, config: &str) {
        self.sshd.restart(&self.world, &settings(&self.world, config));
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
        (Ipv4Addr::LOCALHOST, self.port()).into()
    }

    pub(crate) fn port(&self) -> u16 {
        self.sshd.port
    }

    /// Starts `websocat` as on a VM, and returns its address. Skips if it is missing.
    pub(crate) fn bridge(&self) -> Option<(SocketAddr, Service)> {
        needs_programs(&["websocat"]).then(|| {
            let (port, service) = websocat(&self.world, "ws-l", &format!("tcp:{}", self.address()));
            ((Ipv4Addr::LOCALHOST, port).into(), service)
        })
    }

    /// A target directly at sshd, with the right keys.
    pub(crate) fn target(&self) -> Target {
        self.target_at(self.address())
    }

    pub(crate) fn target_at(&self, address: SocketAddr) -> Target {
        Target {
            transport: Transport::tcp(address.ip().to_string(), address.port()),
            user: user(),
            host_keys: HostKeys::Exactly(self.text("host.pub")),
            keys: Keys::named(vec![self.path("key")]),
            connect_timeout: Duration::from_secs(20),
            silence_timeout: Duration::from_secs(60),
            facts: None,
        }
    }

    pub(crate) fn target_over(&self, url: &str, ca_cert: Option<PathBuf>) -> Target {
        Target {
            transport: Transport::WebSocket { url: url.into(), ca_cert, proxies: Proxies::none() },
            ..self.target()
        }
    }

    pub(crate) async fn connect(&self) -> Connection {
        connect(&self.target()).await.unwrap()
    }

    /// Makes an agent: a script that prints the magic word and then runs `then`. Each one is
    /// different.
    pub(crate) fn image(&mut self, then: &str) -> AgentImage {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let unique = format!("{} {}", self.path("").display(), COUNT.fetch_add(1, Ordering::Relaxed));
        let script = format!(
            "#!/bin/sh\n# {unique}\n[ \"$1\" = --version ] && exit 0\nprintf '\\000KSYNC\\r\\n'\n{then}\n"
        );
        let image = pack(script.as_bytes());
        self.images.push(image.sha256.to_string());
        image
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fallback directories for agents.
        for directory in ["/var/tmp", "/tmp", "/dev/shm"] {
            for image in &self.images {
                let _ = std::fs::remove_file(format!("{directory}/ksync-0/agent-{image}"));
            }
            let _ = std::fs::remove_dir(format!("{directory}/ksync-0"));
        }
    }
}

/// Lines of sshd's configuration. sshd takes the first SetEnv, so `config` can replace it.
fn settings(world: &World, config: &str) -> String {
    let path = |name: &str| world.path(name).display().to_string();
    format!(
        "{config}\nHostKey {}\nHostKey {}\nAuthorizedKeysFile {}\nSetEnv HOME={} XDG_CACHE_HOME={}",
        path("host"),
        path("host_ecdsa"),
        path("key.pub"),
        path("home"),
        path("cache")
    )
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

pub(crate) fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}
