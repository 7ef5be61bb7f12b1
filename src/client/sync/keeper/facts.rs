//! The facts that a keeper's connection depends on: the target, and a name. The name is a hash of
//! everything that decides where a connection leads and whether it may be made.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::content::hash::Hasher;
use crate::remote::{HostKeys, Target, Transport};
use crate::sync::endpoint::Endpoint;
use crate::sync::job::ConnectOptions;
use crate::sync::kernel::{Session, known, target_of};
use crate::sync::target::{cache_dir, common, target};

/// Hexadecimal digits of a name. The path of a socket has about a hundred bytes.
const NAME_DIGITS: usize = 20;

/// Most bytes of a key file or of known hosts that count.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Variables that decide about a connection.
const VARIABLES: [&str; 13] = [
    "SSH_AUTH_SOCK",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "REQUEST_METHOD",
    "XDG_STATE_HOME",
];

/// The facts about the connection to an endpoint.
pub(in crate::sync) struct Facts {
    /// The name of the keeper.
    pub(super) name: String,
    /// The endpoint, without a path.
    pub(super) endpoint: Endpoint,
    /// The connection's target.
    pub(super) target: Target,
    /// The session, if the endpoint is one.
    pub(in crate::sync) session: Option<Session>,
}

impl Facts {
    /// The facts as they are now; `None` where nothing is kept: the endpoint is on this machine, or
    /// nobody has connected to it yet.
    pub(in crate::sync) fn of(endpoint: &Endpoint, connect_options: &ConnectOptions) -> Option<Self> {
        let endpoint = endpoint.clone().with_path(b"");
        let (target, session) = match &endpoint {
            Endpoint::Local(_) => return None,
            // Each emulator has keys and a port of its own.
            Endpoint::Sandbox { .. } => (common(connect_options, HostKeys::Exactly(String::new())), None),
            Endpoint::Session { name, .. } => {
                let session = known(name, connect_options)?;
                (target_of(&session.stored, connect_options), Some(session))
            }
            endpoint => (target(endpoint, connect_options).ok()?, None),
        };
        let name = name(&endpoint, &target, session.as_ref(), connect_options)?;
        Some(Self { name, endpoint, target, session })
    }
}

/// A hash of texts and files, each with its length in front.
struct Digest(Hasher);

impl Digest {
    fn add(&mut self, part: &[u8]) {
        self.0.update(&(part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    /// A file's content, or that it cannot be read.
    fn add_file(&mut self, path: &Path) {
        // The keeper runs in another directory.
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        self.add(absolute.as_os_str().as_bytes());
        let mut content = Vec::new();
        let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut content));
        self.add(&[u8::from(read.is_ok())]);
        self.add(&content);
    }
}

fn name(
    endpoint: &Endpoint,
    target: &Target,
    session: Option<&Session>,
    connect_options: &ConnectOptions,
) -> Option<String> {
    let mut digest = Digest(Hasher::new());
    digest.add(&build(connect_options)?);
    digest.add(format!("{endpoint:?}").as_bytes());
    if let Endpoint::Sandbox { .. } = endpoint {
        digest.add(&[u8::from(connect_options.host_files)]);
        digest.add(cache_dir().ok()?.as_os_str().as_bytes());
    }
    digest.add(target.user.as_bytes());
    match &target.transport {
        Transport::Tcp { host, port, family, from } => {
            digest.add(format!("{host:?} {port} {family:?} {from:?}").as_bytes());
        }
        Transport::WebSocket { url, ca_cert, .. } => {
            digest.add(url.as_bytes());
            ca_cert.iter().for_each(|file| digest.add_file(file));
        }
    }
    digest.add(format!("{:?}", target.host_keys).as_bytes());
    digest.add(target.host_keys.records().as_bytes());
    let keys = &target.keys;
    digest.add(format!("{:?} {} {}", keys.ssh_agent, keys.only_files, keys.must_be_usable).as_bytes());
    digest.add(keys.text.as_deref().unwrap_or_default().as_bytes());
    for file in keys.files.iter().chain(&keys.certificates) {
        digest.add_file(file);
        let mut certificate = file.clone().into_os_string();
        certificate.push("-cert.pub");
        digest.add_file(Path::new(&certificate));
    }
    if let Some(Session { meant, stored }) = session {
        // A token that the API renews leads to the same VM.
        for part in [meant, &stored.session_id, &stored.host_key, &stored.vm_domain, &stored.base_url] {
            digest.add(part.as_bytes());
        }
    }
    if let Some(api) = &connect_options.api {
        digest.add(api.base_url.as_bytes());
        digest.add(api.key.secret().as_bytes());
        digest.add(api.project.as_deref().unwrap_or_default().as_bytes());
    }
    for variable in VARIABLES {
        let value = std::env::var_os(variable);
        digest.add(&[u8::from(value.is_some())]);
        digest.add(value.unwrap_or_default().as_bytes());
    }
    let digits = digest.0.finish().to_string();
    digits.get(..NAME_DIGITS).map(str::to_owned)
}

/// Tells this build from others, also from one with the same version.
fn build(connect_options: &ConnectOptions) -> Option<Vec<u8>> {
    let exe = fs::metadata("/proc/self/exe").or_else(|_| fs::metadata(std::env::current_exe()?)).ok()?;
    let text = format!(
        "{} {} {} {} {} {}",
        env!("CARGO_PKG_VERSION"),
        connect_options.agent.sha256,
        exe.ino(),
        exe.size(),
        exe.mtime(),
        exe.mtime_nsec()
    );
    Some(text.into_bytes())
}
