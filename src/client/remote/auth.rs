//! Login with key files, a key in memory, and ssh-agent.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use russh::client::{AuthResult, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::{AgentClient, AgentStream};
use russh::keys::ssh_key::Algorithm;
use russh::keys::{
    Error as KeyError, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, decode_secret_key,
};

use crate::log::debug;
use crate::remote::error::{ConnectionStatus, DisconnectReason, RemoteError};
use crate::remote::ssh::Client;
use crate::tree::path::escape;

/// Default key files below the home directory: OpenSSH's names, for the supported types.
const DEFAULT_FILES: [&str; 2] = [".ssh/id_ed25519", ".ssh/id_ecdsa"];

/// Time for an ended session to store its disconnect reason.
const END_TIMEOUT: Duration = Duration::from_secs(2);

type SshAgent = AgentClient<Box<dyn AgentStream + Send + Unpin>>;

/// Credentials of a login.
pub(super) struct Credentials<'a> {
    pub(super) user: &'a str,
    pub(super) files: &'a [PathBuf],
    pub(super) text: Option<&'a str>,
    pub(super) use_ssh_agent: bool,
}

/// A key to offer.
enum Key {
    /// A private key that ksync holds.
    Private(Arc<PrivateKey>),
    /// A private key that ssh-agent holds.
    InAgent(PublicKey),
}

impl Key {
    /// Type of the key and its signer, for the log.
    fn kind(&self) -> (Algorithm, &'static str) {
        match self {
            Self::Private(key) => (key.algorithm(), "ksync"),
            Self::InAgent(key) => (key.algorithm(), "ssh-agent"),
        }
    }
}

/// Logs in with the first key that the server accepts.
///
/// ksync never tries to log in without a key. The attempt costs a round trip, and nobody should
/// copy files to a server that lets everybody in.
pub(super) async fn authenticate(
    session: &mut Handle<Client>,
    credentials: &Credentials<'_>,
    endpoint: &str,
    timeout: Duration,
    connection_status: &ConnectionStatus,
) -> Result<(), RemoteError> {
    let mut agent = if credentials.use_ssh_agent { ssh_agent(session).await } else { None };
    let keys = keys(credentials, agent.as_mut()).await?;
    let refused = |reason: String| RemoteError::NotAuthorised {
        endpoint: endpoint.into(),
        user: escape(credentials.user.as_bytes()).into_owned(),
        reason,
    };
    if keys.is_empty() {
        return Err(refused("there is no key to try".into()));
    }
    let mut accepts = String::new();
    let tried = keys.len();
    for (index, key) in keys.into_iter().enumerate() {
        let (kind, signer) = key.kind();
        let attempt = offer(session, credentials.user, key, agent.as_mut());
        let result = tokio::time::timeout(timeout, attempt).await.map_err(|_| RemoteError::TimedOut {
            verb: "log in on",
            endpoint: endpoint.into(),
            after: timeout,
        })?;
        let is_accepted = matches!(result, Some(AuthResult::Success));
        debug!(
            "auth method=publickey key={}/{tried} type={kind} signer={signer} accepted={is_accepted}",
            index + 1
        );
        // russh reports the end of the session as a failure without methods. A server that refuses
        // a key names methods, or goes on.
        let is_refusal = matches!(&result, Some(AuthResult::Failure { remaining_methods, .. })
            if !remaining_methods.is_empty());
        if session.is_closed() && !is_refusal && !matches!(result, Some(AuthResult::Success)) {
            return Err(match ended(session, connection_status).await {
                // sshd ends the session like this after too many keys.
                Some(DisconnectReason::Dismissed(message)) => {
                    refused(format!("it accepted none of the keys, and ended the session ({message})"))
                }
                _ => connection_status.error(endpoint),
            });
        }
        match result {
            Some(AuthResult::Success) => return Ok(()),
            Some(AuthResult::Failure { remaining_methods, partial_success }) => {
                if partial_success {
                    return Err(refused("it wants more than a key".into()));
                }
                accepts = remaining_methods.iter().map(<&str>::from).collect::<Vec<_>>().join(", ");
            }
            // ssh-agent did not sign; another key may work.
            None => {}
        }
    }
    Err(refused(match tried {
        1 => format!("it did not accept the key (it accepts: {accepts})"),
        _ => format!("it accepted none of {tried} keys (it accepts: {accepts})"),
    }))
}

/// Waits for the disconnect reason of a session that is ending. Its task stores the reason as its
/// last act.
async fn ended(
    session: &mut Handle<Client>,
    connection_status: &ConnectionStatus,
) -> Option<DisconnectReason> {
    if connection_status.known().is_none() {
        let _ = tokio::time::timeout(END_TIMEOUT, session).await;
    }
    connection_status.known()
}

async fn offer(
    session: &mut Handle<Client>,
    user: &str,
    key: Key,
    agent: Option<&mut SshAgent>,
) -> Option<AuthResult> {
    match (key, agent) {
        (Key::Private(key), _) => {
            session.authenticate_publickey(user, PrivateKeyWithHashAlg::new(key, None)).await.ok()
        }
        (Key::InAgent(key), Some(agent)) => {
            // An agent signs with RSA keys too. Without a named hash it would use SHA-1, which
            // every server refuses.
            let hash = matches!(key.algorithm(), Algorithm::Rsa { .. }).then_some(HashAlg::Sha512);
            session.authenticate_publickey_with(user, key, hash, agent).await.ok()
        }
        (Key::InAgent(_), None) => None,
    }
}

/// Keys to offer, in order: the named ones, or else those of ssh-agent and the default files.
async fn keys(credentials: &Credentials<'_>, agent: Option<&mut SshAgent>) -> Result<Vec<Key>, RemoteError> {
    let in_agent = match agent {
        // An agent that cannot list its identities counts as empty.
        Some(agent) => agent.request_identities().await.unwrap_or_default(),
        None => Vec::new(),
    };
    let in_agent = in_agent.into_iter().filter_map(|identity| match identity {
        AgentIdentity::PublicKey { key, .. } => Some(key),
        AgentIdentity::Certificate { .. } => None,
    });
    let in_agent: Vec<PublicKey> = in_agent.collect();
    let mut keys = Vec::new();
    if let Some(text) = credentials.text {
        let failed = |source| RemoteError::Identity { name: "given as text".into(), source };
        keys.push(parse(text, &in_agent).map_err(failed)?);
    }
    for file in credentials.files {
        check_protected(file)?;
        let failed = |source| RemoteError::Identity { name: file.display().to_string(), source };
        keys.push(load(file, &in_agent).map_err(failed)?);
    }
    if keys.is_empty() {
        let home = std::env::home_dir().unwrap_or_default();
        let files: Vec<_> = DEFAULT_FILES.iter().map(|file| home.join(file)).collect();
        keys.extend(in_agent.iter().cloned().map(Key::InAgent));
        // The user did not ask for the default files, so a missing or encrypted one is no error.
        let mut unprotected = None;
        for file in &files {
            match check_protected(file) {
                Ok(()) => keys.extend(load(file, &[]).ok()),
                Err(error) => unprotected = Some(error),
            }
        }
        if let Some(error) = unprotected.filter(|_| keys.is_empty()) {
            return Err(error);
        }
    }
    Ok(keys)
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

fn load(file: &Path, in_agent: &[PublicKey]) -> Result<Key, KeyError> {
    let text = std::fs::read_to_string(file)?;
    parse(&text, in_agent)
}

/// Parses a private key. A key with a passphrase works only if ssh-agent holds it.
fn parse(text: &str, in_agent: &[PublicKey]) -> Result<Key, KeyError> {
    match decode_secret_key(text, None) {
        Ok(key) => Ok(Key::Private(Arc::new(key))),
        Err(error) => {
            // OpenSSH's format shows the public half of a key that is encrypted or of an unknown
            // type.
            let public = PrivateKey::from_openssh(text).ok().map(|key| key.public_key().key_data().clone());
            let held = in_agent.iter().find(|key| Some(key.key_data()) == public.as_ref());
            held.cloned().map(Key::InAgent).ok_or(error)
        }
    }
}

/// Connects to ssh-agent and binds the connection to this session, so that keys restricted to some
/// hosts can be used.
async fn ssh_agent(session: &Handle<Client>) -> Option<SshAgent> {
    #[cfg(unix)]
    let mut agent = AgentClient::connect_env().await.ok()?.dynamic();
    #[cfg(windows)]
    let mut agent = AgentClient::connect_named_pipe(r"\\.\pipe\openssh-ssh-agent").await.ok()?.dynamic();
    if let Some(binding) = session.agent_session_binding() {
        // An agent without this extension refuses the request, and holds no such keys.
        let _ = agent.bind_session(binding, false).await;
    }
    Some(agent)
}
