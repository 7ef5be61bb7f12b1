//! The keys and certificates that a login offers: from files and from ssh-agent, in OpenSSH's
//! order.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::agent::AgentIdentity;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, Certificate, Error as KeyError, PrivateKey, PublicKey, decode_secret_key};

use crate::remote::error::RemoteError;
use crate::remote::ssh_config::SshAgent;

/// Default key files below the home directory: OpenSSH's names.
const DEFAULT_FILES: [&str; 5] = ["id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk"];

/// Longest key or certificate file that ksync reads, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The keys that a login may use.
///
/// `Keys` has no `Debug`, because it may hold a private key.
#[derive(Clone, Default)]
pub struct Keys {
    /// A private key in memory. ksync offers it first.
    pub text: Option<String>,
    /// Key files: private keys, or public halves of keys in ssh-agent.
    pub files: Vec<PathBuf>,
    /// Certificate files. A certificate in `FILE-cert.pub` counts without being named.
    pub certificates: Vec<PathBuf>,
    /// The ssh-agent to ask.
    pub ssh_agent: SshAgent,
    /// Offer no key of ssh-agent that is not one of `files`.
    pub only_files: bool,
    /// The user named the files, so one that cannot be used is an error. Otherwise ksync skips it.
    pub must_be_usable: bool,
}

impl Keys {
    /// These files, and no other key. ssh-agent signs for a file with a passphrase, and for a
    /// public half.
    #[must_use]
    pub fn named(files: Vec<PathBuf>) -> Self {
        Self { files, only_files: true, must_be_usable: true, ..Self::default() }
    }

    /// The keys of ssh-agent, and the default files below `home`.
    #[must_use]
    pub fn usual(home: &Path) -> Self {
        let files = DEFAULT_FILES.iter().map(|name| home.join(".ssh").join(name));
        Self { files: files.collect(), ..Self::default() }
    }
}

/// A key or certificate to offer, and who signs with it.
#[derive(Clone)]
pub(super) struct Offer {
    pub(super) shown: Shown,
    /// The private key; `None`: ssh-agent signs.
    pub(super) private: Option<Arc<PrivateKey>>,
}

/// The public side of a key, as the server sees it.
#[derive(Clone)]
pub(super) enum Shown {
    Key(PublicKey),
    Certificate(Box<Certificate>),
}

impl Offer {
    /// Type of the key and its signer, for the log.
    pub(super) fn kind(&self) -> (String, &'static str) {
        let kind = match &self.shown {
            Shown::Key(key) => key.algorithm().to_string(),
            Shown::Certificate(certificate) => certificate.algorithm().to_certificate_type(),
        };
        (kind, if self.private.is_some() { "ksync" } else { "ssh-agent" })
    }

    /// The key or certificate, as SSH encodes it.
    pub(super) fn blob(&self) -> Option<Vec<u8>> {
        match &self.shown {
            Shown::Key(key) => key.to_bytes().ok(),
            Shown::Certificate(certificate) => certificate.to_bytes().ok(),
        }
    }

    pub(super) fn is_rsa(&self) -> bool {
        let algorithm = match &self.shown {
            Shown::Key(key) => key.algorithm(),
            Shown::Certificate(certificate) => certificate.algorithm(),
        };
        matches!(algorithm, Algorithm::Rsa { .. })
    }
}

/// The files' keys, before ssh-agent was asked.
pub(super) struct Loaded {
    keys: Vec<Half>,
    certificates: Vec<Certificate>,
    only_files: bool,
    must_be_usable: bool,
    /// Problems of files that were skipped.
    skipped: Vec<RemoteError>,
}

/// A key of a file: its private half, or only its public one.
struct Half {
    public: PublicKey,
    private: Option<Arc<PrivateKey>>,
    /// Reason why the file holds no usable private half.
    problem: Option<RemoteError>,
}

/// Loads the files of `keys`.
pub(super) fn load(keys: &Keys) -> Result<Loaded, RemoteError> {
    let (only_files, must_be_usable) = (keys.only_files, keys.must_be_usable);
    let mut loaded = Loaded {
        keys: Vec::new(),
        certificates: Vec::new(),
        only_files,
        must_be_usable,
        skipped: Vec::new(),
    };
    if let Some(text) = &keys.text {
        let failed = |source| RemoteError::Identity { name: "given as text".into(), source };
        loaded.keys.push(half(text, None, failed)?);
    }
    for file in &keys.files {
        match load_file(file) {
            Ok(Content::Key(key)) => loaded.keys.push(*key),
            Ok(Content::Certificate(certificate)) => loaded.certificates.push(*certificate),
            Err(RemoteError::Identity { source: KeyError::IO(error), .. })
                if !keys.must_be_usable && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if keys.must_be_usable => return Err(error),
            Err(error) => loaded.skipped.push(error),
        }
        loaded.certificates.extend(certificate(&beside(file, "-cert.pub")).ok());
    }
    for file in &keys.certificates {
        match certificate(file) {
            Ok(certificate) => loaded.certificates.push(certificate),
            Err(source) => {
                loaded.skipped.push(RemoteError::Identity { name: file.display().to_string(), source });
            }
        }
    }
    loaded.certificates.retain(|certificate| certificate.cert_type() == CertType::User);
    Ok(loaded)
}

impl Loaded {
    /// True if the answer of ssh-agent makes a difference.
    pub(super) fn needs_ssh_agent(&self) -> bool {
        !self.only_files
            || self.keys.iter().any(|key| key.private.is_none())
            || self.certificates.iter().any(|certificate| self.private(certificate.public_key()).is_none())
    }

    fn private(&self, public: &KeyData) -> Option<Arc<PrivateKey>> {
        self.keys.iter().find(|key| key.public.key_data() == public)?.private.clone()
    }

    /// The offers in OpenSSH's order, and the problems of files that are skipped: certificates,
    /// then the files' keys that ssh-agent holds, its other keys, and the other files' keys.
    pub(super) fn offers(
        mut self,
        in_agent: &[AgentIdentity],
    ) -> Result<(Vec<Offer>, Vec<RemoteError>), RemoteError> {
        let agent_keys: Vec<&PublicKey> = in_agent.iter().filter_map(plain).collect();
        let agent_has = |key: &KeyData| agent_keys.iter().any(|held| held.key_data() == key);
        let mut offers: Vec<Offer> = Vec::new();
        for certificate in &self.certificates {
            let private = self.private(certificate.public_key());
            let in_agent = || in_agent.iter().filter_map(certified).any(|held| held == certificate);
            if private.is_some() || agent_has(certificate.public_key()) || in_agent() {
                offers.push(Offer { shown: Shown::Certificate(Box::new(certificate.clone())), private });
            }
        }
        for certificate in in_agent.iter().filter_map(certified) {
            let is_named = self.keys.iter().any(|key| key.public.key_data() == certificate.public_key());
            if (is_named || !self.only_files) && !self.certificates.contains(certificate) {
                let shown = Shown::Certificate(Box::new(certificate.clone()));
                offers.push(Offer { shown, private: None });
            }
        }
        let has_certificate = |key: &Half, offers: &[Offer]| {
            offers.iter().any(|offer| {
                matches!(&offer.shown, Shown::Certificate(certificate)
                if certificate.public_key() == key.public.key_data())
            })
        };
        let mut others = Vec::new();
        for key in std::mem::take(&mut self.keys) {
            let is_in_agent = agent_has(key.public.key_data());
            let offer = Offer { shown: Shown::Key(key.public.clone()), private: key.private.clone() };
            match key.problem {
                _ if is_in_agent => offers.push(offer),
                None => others.push(offer),
                // The certificate of this key is in ssh-agent, and its plain key is not.
                Some(_) if has_certificate(&key, &offers) => {}
                Some(problem) if self.must_be_usable => return Err(problem),
                Some(problem) => self.skipped.push(problem),
            }
        }
        if !self.only_files {
            for key in agent_keys {
                let is_offered = offers
                    .iter()
                    .any(|offer| matches!(&offer.shown, Shown::Key(offered) if offered.key_data() == key.key_data()));
                if !is_offered {
                    offers.push(Offer { shown: Shown::Key(key.clone()), private: None });
                }
            }
        }
        offers.extend(others);
        Ok((offers, self.skipped))
    }
}

fn plain(identity: &AgentIdentity) -> Option<&PublicKey> {
    match identity {
        AgentIdentity::PublicKey { key, .. } => Some(key),
        AgentIdentity::Certificate { .. } => None,
    }
}

fn certified(identity: &AgentIdentity) -> Option<&Certificate> {
    match identity {
        AgentIdentity::Certificate { certificate, .. } => Some(certificate),
        AgentIdentity::PublicKey { .. } => None,
    }
}

/// Content of a key file.
enum Content {
    Key(Box<Half>),
    Certificate(Box<Certificate>),
}

/// Loads a key file. If only its public half is there, or beside it in a `.pub` file, that is a key
/// for ssh-agent.
fn load_file(file: &Path) -> Result<Content, RemoteError> {
    let name = file.display().to_string();
    let failed = |source| RemoteError::Identity { name: name.clone(), source };
    let public_beside = || public_half(&read(&beside(file, ".pub")).ok()?);
    let text = match read(file) {
        Ok(text) => text,
        Err(error) => match public_beside() {
            Some(public) => return Ok(Content::Key(Box::new(Half::in_agent(public, name)))),
            None => return Err(failed(error.into())),
        },
    };
    if let Ok(certificate) = Certificate::from_openssh(text.trim()) {
        return Ok(Content::Certificate(Box::new(certificate)));
    }
    if let Some(public) = public_half(&text) {
        return Ok(Content::Key(Box::new(Half::in_agent(public, name))));
    }
    check_protected(file)?;
    half(&text, public_beside(), failed).map(|half| Content::Key(Box::new(half)))
}

impl Half {
    /// A public half, whose private half ssh-agent must hold.
    fn in_agent(public: PublicKey, name: String) -> Self {
        Self { public, private: None, problem: Some(RemoteError::OnlyPublic { name }) }
    }
}

/// Parses a private key. The public half of a key with a passphrase or of an unknown type is in
/// OpenSSH's format itself, or it is the one that was found `beside` it.
fn half(
    text: &str,
    beside: Option<PublicKey>,
    failed: impl Fn(KeyError) -> RemoteError,
) -> Result<Half, RemoteError> {
    match parse(text) {
        Ok(key) => {
            let public = key.public_key().clone();
            Ok(Half { public, private: Some(Arc::new(key)), problem: None })
        }
        Err(error) => {
            let inside = PrivateKey::from_openssh(text).ok().map(|key| key.public_key().clone());
            match inside.or(beside) {
                Some(public) => Ok(Half { public, private: None, problem: Some(failed(error)) }),
                None => Err(failed(error)),
            }
        }
    }
}

fn parse(text: &str) -> Result<PrivateKey, KeyError> {
    // Lines as editors and mail leave them.
    let lines: String = text.lines().flat_map(|line| [line.trim(), "\n"]).collect();
    // The parser takes an encrypted PEM file for a damaged one.
    if lines.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || lines.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(KeyError::KeyIsEncrypted);
    }
    let key = decode_secret_key(&lines, None)?;
    match key.algorithm() {
        // A security key signs only through ssh-agent.
        Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256 => Err(KeyError::UnsupportedKeyType {
            key_type_string: key.algorithm().to_string(),
            key_type_raw: Vec::new(),
        }),
        _ => Ok(key),
    }
}

/// The public key in a text of one line.
fn public_half(text: &str) -> Option<PublicKey> {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'))?;
    PublicKey::from_openssh(line).ok()
}

fn certificate(file: &Path) -> Result<Certificate, KeyError> {
    Ok(Certificate::from_openssh(read(file)?.trim())?)
}

fn read(file: &Path) -> io::Result<String> {
    use io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The file whose name is that of `file` with `ending` after it.
fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Rejects a private key file that others can read. As in OpenSSH (`sshkey_perm_ok`), only a file
/// of the current user counts; the mode of another owner's file is that owner's business.
fn check_protected(file: &Path) -> Result<(), RemoteError> {
    let Ok(data) = std::fs::metadata(file) else { return Ok(()) };
    let mode = data.mode() & 0o7777;
    if data.uid() == rustix::process::getuid().as_raw() && mode & 0o077 != 0 {
        return Err(RemoteError::Unprotected { path: file.to_owned(), mode });
    }
    Ok(())
}
