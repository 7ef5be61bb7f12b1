//! Login with the keys of files and of ssh-agent.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaKeyPair};
use russh::client::AuthResult;
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::pkcs8::encode_pkcs8;
use russh::keys::signature::Signer as _;
use russh::keys::ssh_encoding::Encode;
use russh::keys::ssh_key::{Error as SshKeyError, Signature};
use russh::keys::{Algorithm, HashAlg, PrivateKey};

use crate::log::debug;
use crate::remote::error::{ConnectionStatus, DisconnectReason, RemoteError};
use crate::remote::keys::{self, Keys, Offer};
use crate::remote::own::{Own, Signed};
use crate::remote::session::{Session, SshAgent};
use crate::remote::ssh_config;
use crate::tree::path::escape;

/// Time for an ended session to store its disconnect reason.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Problems of skipped key files that an error names.
const SKIPPED_SHOWN: usize = 3;

/// The login on a server.
pub(super) struct LoginOn<'a> {
    pub(super) user: &'a str,
    pub(super) endpoint: &'a str,
    /// Timeout for each key.
    pub(super) timeout: Duration,
    pub(super) status: &'a ConnectionStatus,
}

/// The keys to offer, in order.
#[derive(Default)]
pub(super) struct Logins {
    offers: Vec<Offer>,
    /// Problems of key files that are not offered.
    skipped: Vec<RemoteError>,
    agent: Option<SshAgent>,
}

impl Logins {
    /// Loads the keys' files, and asks ssh-agent for its keys.
    pub(super) async fn load(session: &Session, keys: &Keys) -> Result<Self, RemoteError> {
        let loaded = keys::load(keys)?;
        let mut agent =
            if loaded.needs_ssh_agent() { ssh_agent(session, &keys.ssh_agent).await } else { None };
        let in_agent = match &mut agent {
            // An agent that cannot list its identities counts as empty.
            Some(agent) => agent.request_identities().await.unwrap_or_default(),
            None => Vec::new(),
        };
        let (offers, mut skipped) = loaded.offers(&in_agent)?;
        // The only key that there is.
        if offers.is_empty()
            && skipped.len() == 1
            && let Some(problem) = skipped.pop()
        {
            return Err(problem);
        }
        Ok(Self { offers, skipped, agent })
    }

    /// The place of the first key for which `is_it` holds.
    pub(super) fn position(&self, is_it: impl Fn(&[u8]) -> bool) -> Option<usize> {
        self.offers.iter().position(|offer| offer.blob().is_some_and(|blob| is_it(&blob)))
    }

    /// Signs a login with the key at this place. OpenSSH's servers take SHA-512 for RSA keys.
    pub(super) async fn sign(&mut self, own: &Own, index: usize, user: &str) -> Option<Signed> {
        let offer = self.offers.get(index)?.clone();
        let hash = offer.is_rsa().then_some(HashAlg::Sha512);
        match (offer.private, &mut self.agent) {
            (Some(key), _) => own.sign(user, offer.shown, hash, &mut PrivateSigner(key)).await,
            (None, Some(agent)) => own.sign(user, offer.shown, hash, agent).await,
            (None, None) => None,
        }
    }

    /// Logs in with the first key that the server accepts, and returns that key. `refused` is the
    /// place of a key that this server has refused, with its answer.
    ///
    /// ksync never tries to log in without a key. The attempt costs a round trip, and nobody should
    /// copy files to a server that lets everybody in.
    pub(super) async fn log_in(
        mut self,
        session: &mut Session,
        on: &LoginOn<'_>,
        refused: Option<(usize, AuthResult)>,
    ) -> Result<Option<Vec<u8>>, RemoteError> {
        let not_authorised = |reason: String| {
            let skipped =
                self.skipped.iter().take(SKIPPED_SHOWN).map(|problem| format!("; {}", with_cause(problem)));
            RemoteError::NotAuthorised {
                endpoint: on.endpoint.into(),
                user: escape(on.user.as_bytes()).into_owned(),
                reason: reason + &skipped.collect::<String>(),
            }
        };
        if self.offers.is_empty() {
            return Err(not_authorised("there is no key to try".into()));
        }
        let mut accepts = String::new();
        let tried = self.offers.len();
        let (refused_index, mut refusal) = refused.unzip();
        let is_left = |index: usize| Some(index) != refused_index;
        let mut left = self.offers.iter().enumerate().filter(|(index, _)| is_left(*index));
        let hash =
            if left.any(|(_, offer)| offer.is_rsa()) { session.rsa_hash().await } else { HashAlg::Sha512 };
        for (index, offer) in self.offers.iter().cloned().enumerate() {
            let (kind, signer) = offer.kind();
            let blob = offer.blob();
            let result = if is_left(index) {
                let attempt = attempt(session, on.user, offer, hash, self.agent.as_mut());
                tokio::time::timeout(on.timeout, attempt).await.map_err(|_| RemoteError::TimedOut {
                    verb: "log in on",
                    endpoint: on.endpoint.into(),
                    after: on.timeout,
                })?
            } else {
                refusal.take()
            };
            let is_accepted = matches!(result, Some(AuthResult::Success));
            debug!(
                "auth method=publickey key={}/{tried} type={kind} signer={signer} accepted={is_accepted}",
                index + 1
            );
            // russh reports the end of the session as a failure without methods. A server that
            // refuses a key names methods, or goes on.
            let is_refusal = matches!(&result, Some(AuthResult::Failure { remaining_methods, .. })
            if !remaining_methods.is_empty());
            if session.is_closed() && !is_refusal && !is_accepted {
                return Err(match ended(session, on.status).await {
                    // sshd ends the session like this after too many keys.
                    Some(DisconnectReason::Dismissed(message)) => not_authorised(format!(
                        "it accepted none of the keys, and ended the session ({message})"
                    )),
                    _ => on.status.error(on.endpoint),
                });
            }
            match result {
                Some(AuthResult::Success) => return Ok(blob),
                Some(AuthResult::Failure { remaining_methods, partial_success }) => {
                    if partial_success {
                        return Err(not_authorised("it wants more than a key".into()));
                    }
                    accepts = remaining_methods.iter().map(<&str>::from).collect::<Vec<_>>().join(", ");
                }
                // The key did not sign; another one may.
                None => {}
            }
        }
        Err(not_authorised(match tried {
            1 => format!("it did not accept the key (it accepts: {accepts})"),
            _ => format!("it accepted none of {tried} keys (it accepts: {accepts})"),
        }))
    }
}

fn with_cause(problem: &RemoteError) -> String {
    match problem.source() {
        Some(cause) => format!("{problem}: {cause}"),
        None => problem.to_string(),
    }
}

/// Waits for the disconnect reason of a session that is ending. Its task stores the reason as its
/// last act.
async fn ended(session: &mut Session, connection_status: &ConnectionStatus) -> Option<DisconnectReason> {
    if connection_status.known().is_none() {
        let _ = tokio::time::timeout(END_TIMEOUT, session.ended()).await;
    }
    connection_status.known()
}

/// Offers a key, and signs with it if the server accepts it. Returns `None` if it did not sign.
async fn attempt(
    session: &mut Session,
    user: &str,
    offer: Offer,
    hash: HashAlg,
    agent: Option<&mut SshAgent>,
) -> Option<AuthResult> {
    let hash = offer.is_rsa().then_some(hash);
    match (offer.private, agent) {
        (Some(key), _) => session.authenticate(user, offer.shown, hash, &mut PrivateSigner(key)).await,
        (None, Some(agent)) => session.authenticate(user, offer.shown, hash, agent).await,
        (None, None) => None,
    }
}

/// Signs with a private key that ksync holds.
struct PrivateSigner(Arc<PrivateKey>);

/// Reason why [`PrivateSigner`] did not sign.
#[derive(Debug, thiserror::Error)]
enum SignError {
    #[error(transparent)]
    Send(#[from] russh::SendError),
    #[error(transparent)]
    Key(#[from] SshKeyError),
}

impl russh::Signer for PrivateSigner {
    type Error = SignError;

    /// Appends the signature of `data` to it, as a login request holds it.
    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        hash: Option<HashAlg>,
        mut data: Vec<u8>,
    ) -> Result<Vec<u8>, SignError> {
        let signature = match hash {
            Some(hash) => sign_rsa(&self.0, hash, &data)?,
            None => self.0.try_sign(&data).map_err(SshKeyError::from)?,
        };
        signature.encode_prefixed(&mut data).map_err(SshKeyError::from)?;
        Ok(data)
    }
}

/// Signs with an RSA key in constant time, which the crate that russh would use does not promise.
/// aws-lc takes keys of 2048 to 8192 bits. The others are not safe anyhow, or rare.
fn sign_rsa(key: &PrivateKey, hash: HashAlg, data: &[u8]) -> Result<Signature, SshKeyError> {
    let der = encode_pkcs8(key).map_err(|_| SshKeyError::FormatEncoding)?;
    let Ok(pair) = RsaKeyPair::from_pkcs8(&der) else {
        let pair = key.key_data().rsa().ok_or(SshKeyError::Crypto)?;
        return (pair, Some(hash)).try_sign(data).map_err(SshKeyError::from);
    };
    let scheme = if hash == HashAlg::Sha256 { &RSA_PKCS1_SHA256 } else { &RSA_PKCS1_SHA512 };
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(scheme, &SystemRandom::new(), data, &mut signature).map_err(|_| SshKeyError::Crypto)?;
    Signature::new(Algorithm::Rsa { hash: Some(hash) }, signature)
}

/// Connects to ssh-agent and binds the connection to this session, so that keys restricted to some
/// hosts can be used.
async fn ssh_agent(session: &Session, which: &ssh_config::SshAgent) -> Option<SshAgent> {
    let agent = match which {
        ssh_config::SshAgent::OfEnvironment => AgentClient::connect_env().await.ok()?.dynamic(),
        ssh_config::SshAgent::At(socket) => AgentClient::connect_uds(socket).await.ok()?.dynamic(),
        ssh_config::SshAgent::Off => return None,
    };
    session.bind(agent).await
}
