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
use crate::remote::session::{Session, SshAgent};
use crate::remote::ssh_config;
use crate::tree::path::escape;

/// Time for an ended session to store its disconnect reason.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Problems of skipped key files that an error names.
const SKIPPED_SHOWN: usize = 3;

/// Logs in with the first key that the server accepts.
///
/// ksync never tries to log in without a key. The attempt costs a round trip, and nobody should
/// copy files to a server that lets everybody in.
pub(super) async fn authenticate(
    session: &mut Session,
    user: &str,
    keys: &Keys,
    endpoint: &str,
    timeout: Duration,
    connection_status: &ConnectionStatus,
) -> Result<(), RemoteError> {
    let loaded = keys::load(keys)?;
    let mut agent = if loaded.needs_ssh_agent() { ssh_agent(session, &keys.ssh_agent).await } else { None };
    let in_agent = match &mut agent {
        // An agent that cannot list its identities counts as empty.
        Some(agent) => agent.request_identities().await.unwrap_or_default(),
        None => Vec::new(),
    };
    let (offers, skipped) = loaded.offers(&in_agent)?;
    if let (true, [_]) = (offers.is_empty(), skipped.as_slice()) {
        // The only key that there is.
        return skipped.into_iter().next().map_or(Ok(()), Err);
    }
    let refused = |reason: String| {
        let skipped = skipped.iter().take(SKIPPED_SHOWN).map(|problem| format!("; {}", with_cause(problem)));
        RemoteError::NotAuthorised {
            endpoint: endpoint.into(),
            user: escape(user.as_bytes()).into_owned(),
            reason: reason + &skipped.collect::<String>(),
        }
    };
    if offers.is_empty() {
        return Err(refused("there is no key to try".into()));
    }
    let mut accepts = String::new();
    let tried = offers.len();
    let hash = if offers.iter().any(Offer::is_rsa) { session.rsa_hash().await } else { HashAlg::Sha512 };
    for (index, offer) in offers.into_iter().enumerate() {
        let (kind, signer) = offer.kind();
        let attempt = attempt(session, user, offer, hash, agent.as_mut());
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
            // The key did not sign; another one may.
            None => {}
        }
    }
    Err(refused(match tried {
        1 => format!("it did not accept the key (it accepts: {accepts})"),
        _ => format!("it accepted none of {tried} keys (it accepts: {accepts})"),
    }))
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
