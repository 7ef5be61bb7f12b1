//! Extracts the domain of a VM from its session's CDP URL, by the rules of the official client.
//!
//! The URL carries a JSON web token, whose payload names the VM. ksync does not check its
//! signature, and cannot: the platform alone has the key. The check is not needed either. The token
//! comes from an answer of the authenticated API over TLS. An attacker who could forge that answer
//! could name any VM without a token.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use ureq::http::Uri;

/// Longest URL that ksync parses. Real ones have less than 2 KiB.
const URL_BYTES_MAX: usize = 16 * 1024;

/// Longest name in DNS.
const DOMAIN_BYTES_MAX: usize = 253;

/// Domain name of a VM: letters, digits, hyphens, underscores and dots. Inside a URL or a command
/// it therefore cannot be taken for anything else.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VmDomain(String);

impl VmDomain {
    fn new(name: &str) -> Result<Self, DomainError> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty() {
            Err(DomainError::Empty)
        } else if name.len() > DOMAIN_BYTES_MAX || !name.bytes().all(is_allowed) || name.starts_with('-') {
            Err(DomainError::NotADomain)
        } else {
            Ok(Self(name.to_owned()))
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VmDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The VM of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// The VM's domain.
    pub domain: VmDomain,
    /// Expiry of the URL that named the VM.
    pub expires: Option<SystemTime>,
}

/// Reason why a URL names no VM. The error holds no part of the URL, because the URL holds a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// The URL is too long.
    #[error("its CDP URL is {0} bytes long, which is more than {URL_BYTES_MAX}")]
    TooLong(usize),
    /// The text is not a URL.
    #[error("its CDP URL is not a URL")]
    NotAUrl,
    /// The token does not have three parts.
    #[error("the token in its CDP URL does not have three parts")]
    Parts,
    /// The token's payload is malformed.
    #[error("the token in its CDP URL is not base64url of JSON")]
    Payload,
    /// The token names no VM.
    #[error("the token in its CDP URL names no VM")]
    Empty,
    /// The name cannot be that of a host.
    #[error("the VM in its CDP URL has a name that no host can have")]
    NotADomain,
}

/// Finds the VM that `cdp_ws_url` leads to: the one that its token names, or its host if there is
/// no token.
pub(super) fn vm(cdp_ws_url: &str) -> Result<Vm, DomainError> {
    if cdp_ws_url.len() > URL_BYTES_MAX {
        return Err(DomainError::TooLong(cdp_ws_url.len()));
    }
    let url: Uri = cdp_ws_url.parse().map_err(|_| DomainError::NotAUrl)?;
    let host = url.host().filter(|_| url.scheme().is_some()).ok_or(DomainError::NotAUrl)?;
    match token(&url).filter(|token| !token.is_empty()) {
        Some(token) => named_by(&token),
        None => Ok(Vm { domain: VmDomain::new(host)?, expires: None }),
    }
}

/// The first `jwt` parameter of the query.
fn token(url: &Uri) -> Option<Cow<'_, str>> {
    let mut pairs = url.query()?.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| *name == "jwt")?;
    Some(percent_decode_str(value).decode_utf8_lossy())
}

fn named_by(token: &str) -> Result<Vm, DomainError> {
    #[derive(Deserialize)]
    struct Payload {
        // Any JSON value: the expiry is a convenience, and a malformed one is no error.
        exp: Option<serde_json::Value>,
        session: Option<SessionClaim>,
    }
    #[derive(Deserialize)]
    struct SessionClaim {
        fqdn: Option<String>,
    }
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(DomainError::Parts);
    };
    let payload = BASE64URL_NOPAD.decode(payload.as_bytes()).map_err(|_| DomainError::Payload)?;
    let payload: Payload = serde_json::from_slice(&payload).map_err(|_| DomainError::Payload)?;
    let name = payload.session.and_then(|session| session.fqdn).unwrap_or_default();
    let expires = payload.exp.and_then(|exp| exp.as_f64()).and_then(|seconds| {
        let since_epoch = Duration::try_from_secs_f64(seconds).ok()?;
        UNIX_EPOCH.checked_add(since_epoch)
    });
    Ok(Vm { domain: VmDomain::new(&name)?, expires })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FQDN: &str = "aged-frog-c2zy61hq.prod-iad-ukp-browsers-0.onkernel.app";

    fn url_with(payload: &str) -> String {
        let payload = BASE64URL_NOPAD.encode(payload.as_bytes());
        format!("wss://proxy.iad.onkernel.com:8443/browser/cdp?jwt=eyJh.{payload}.c2ln")
    }

    #[test]
    fn the_token_names_the_vm_and_its_expiry() {
        let payload = format!(r#"{{"exp":1790000000,"session":{{"id":"x","fqdn":"{FQDN}","more":[1]}}}}"#);
        let found = vm(&url_with(&payload)).unwrap();
        assert_eq!(found.domain.as_str(), FQDN);
        assert_eq!(found.expires, Some(UNIX_EPOCH + Duration::from_secs(1_790_000_000)));
        // The parameter may follow others, and may be percent-encoded.
        let url = url_with(&payload).replace("?jwt=", "?a=b&jwt2=no&jwt=").replace("eyJh.", "eyJh%2E");
        assert_eq!(vm(&format!("{url}&z=1")), Ok(found));
    }

    #[test]
    fn a_malformed_expiry_counts_as_none() {
        for exp in ["null", "\"soon\"", "-5", "1e300", "{}"] {
            let payload = format!(r#"{{"exp":{exp},"session":{{"fqdn":"{FQDN}"}}}}"#);
            assert_eq!(vm(&url_with(&payload)).unwrap().expires, None, "{exp}");
        }
    }

    #[test]
    fn the_host_is_the_vm_if_there_is_no_token() {
        for url in ["ws://127.0.0.1:9222/x?a=b", "ws://127.0.0.1/?jwt=", "ws://127.0.0.1?jwt"] {
            let found = vm(url).unwrap();
            assert_eq!((found.domain.as_str(), found.expires), ("127.0.0.1", None), "{url}");
        }
    }

    #[test]
    fn every_other_url_has_its_error_and_shows_nothing() {
        let named = |fqdn: &str| url_with(&format!(r#"{{"session":{{"fqdn":"{fqdn}"}}}}"#));
        let long = format!("wss://h/?jwt={}", "secret".repeat(4000));
        for (url, expected) in [
            ("secret", DomainError::NotAUrl),
            ("", DomainError::NotAUrl),
            ("/secret?jwt=a.b.c", DomainError::NotAUrl),
            ("wss://h/?jwt=secret", DomainError::Parts),
            ("wss://h/?jwt=a.secret", DomainError::Parts),
            ("wss://h/?jwt=a.b.secret.d", DomainError::Parts),
            ("wss://h/?jwt=a.secret=.c", DomainError::Payload),
            ("wss://h/?jwt=a.c2VjcmV0.c", DomainError::Payload),
            ("wss://h/?jwt=a..c", DomainError::Payload),
            (url_with("{}").as_str(), DomainError::Empty),
            (url_with(r#"{"session":null}"#).as_str(), DomainError::Empty),
            (url_with(r#"{"session":{"fqdn":null}}"#).as_str(), DomainError::Empty),
            (url_with(r#"{"session":{"fqdn":5}}"#).as_str(), DomainError::Payload),
            (named("").as_str(), DomainError::Empty),
            (named("secret:2222").as_str(), DomainError::NotADomain),
            (named("secret/x").as_str(), DomainError::NotADomain),
            (named("secret x").as_str(), DomainError::NotADomain),
            (named("-oProxyCommand").as_str(), DomainError::NotADomain),
            (named("user@secret").as_str(), DomainError::NotADomain),
            (named(&"a".repeat(254)).as_str(), DomainError::NotADomain),
            ("ws://[::1]:9222/", DomainError::NotADomain),
            (long.as_str(), DomainError::TooLong(long.len())),
        ] {
            let error = vm(url).unwrap_err();
            assert_eq!(error, expected, "{url}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        }
    }
}
