//! Settings of the API: its address and the key.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use ureq::http::Uri;

use crate::kernel::api_key::ApiKey;
use crate::kernel::error::ApiError;
use crate::tree::path::escape;

/// The API's default base URL.
pub const DEFAULT_BASE_URL: &str = "https://api.onkernel.com";

/// Default timeout of a call: that of the official SDKs.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Settings of the API client.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// Base URL: `https://…`, or `http://…` for this machine only. Usually [`DEFAULT_BASE_URL`].
    pub base_url: String,
    /// The API key.
    pub key: ApiKey,
    /// Id or name of the project of all calls, if not the key's own.
    pub project: Option<String>,
    /// A PEM file with roots that ksync trusts in addition to the platform's.
    pub ca_cert: Option<PathBuf>,
    /// Timeout of one call, in addition to the time that its work is meant to take.
    pub timeout: Duration,
}

/// A base URL that is safe for the key.
#[derive(Debug)]
pub(super) struct Base {
    /// The URL, without a trailing slash.
    pub(super) url: String,
    /// Scheme, host and port, for display.
    pub(super) endpoint: String,
    /// True for `https`.
    pub(super) encrypted: bool,
    /// The host, without the brackets of an IPv6 address.
    pub(super) host: String,
    /// The port of the URL, or the scheme's default.
    pub(super) port: u16,
}

impl Base {
    /// Parses `url`, and rejects it if others could read the key on the way.
    pub(super) fn parse(url: &str) -> Result<Self, ApiError> {
        let wrong = |reason| ApiError::BaseUrl { reason };
        let url = url.trim();
        if url.contains(['?', '#']) {
            return Err(wrong("it goes on after its path"));
        }
        let uri: Uri = url.parse().map_err(|_| wrong("it is not a URL"))?;
        let encrypted = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("it begins with neither https:// nor http://")),
        };
        let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        if authority.contains('@') {
            return Err(wrong("it holds a user name"));
        }
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(wrong("it has no host"));
        }
        let is_loopback = host.eq_ignore_ascii_case("localhost")
            || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if !encrypted && !is_loopback {
            return Err(wrong(
                "without https:// the key would travel in clear, for everybody on the way to read",
            ));
        }
        let scheme = if encrypted { "https" } else { "http" };
        Ok(Self {
            url: format!("{scheme}://{authority}{}", uri.path().trim_end_matches('/')),
            endpoint: format!("{scheme}://{}", escape(authority.as_bytes())),
            encrypted,
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_nowhere() {
        let key = ApiKey::new(" sk_secret\n");
        assert_eq!(format!("{key:?} {key:#?}"), "*** ***");
        assert_eq!(format!("{:?}", key.header().unwrap()), "Sensitive");
        assert_eq!(key.header().unwrap().to_str().unwrap(), "Bearer sk_secret");
        assert_eq!(key.hide_in("no such key: sk_secret!"), "no such key: ***!");
        let settings = Settings {
            base_url: DEFAULT_BASE_URL.into(),
            key,
            project: Some("p".into()),
            ca_cert: None,
            timeout: DEFAULT_TIMEOUT,
        };
        assert!(!format!("{settings:?}").contains("secret"));
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        for text in ["", " \n", "sk secret", "sk_sécret", "secret\r\nX-Other: 1"] {
            let error = ApiKey::new(text).header().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("cret"), "{error:?}");
        }
        assert_eq!(ApiKey::new("").hide_in("text"), "text");
    }

    #[test]
    fn a_key_is_sent_in_clear_to_this_machine_only() {
        for (url, expected, host, port) in [
            (DEFAULT_BASE_URL, DEFAULT_BASE_URL, "api.onkernel.com", 443),
            ("https://api.onkernel.com/", DEFAULT_BASE_URL, "api.onkernel.com", 443),
            (
                "https://proxy.example:8443/kernel/",
                "https://proxy.example:8443/kernel",
                "proxy.example",
                8443,
            ),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080", "127.0.0.1", 8080),
            ("http://127.8.9.1", "http://127.8.9.1", "127.8.9.1", 80),
            ("http://localhost:80/x", "http://localhost:80/x", "localhost", 80),
            ("http://[::1]:80", "http://[::1]:80", "::1", 80),
            ("https://127.0.0.1", "https://127.0.0.1", "127.0.0.1", 443),
        ] {
            let base = Base::parse(url).unwrap();
            assert_eq!(base.url, expected);
            assert_eq!((base.host.as_str(), base.port), (host, port), "{url}");
            assert_eq!(base.encrypted, url.starts_with("https"));
        }
        for (url, reason) in [
            ("http://api.onkernel.com", "in clear"),
            ("http://127.0.0.1.example.com", "in clear"),
            ("http://10.0.0.1", "in clear"),
            ("http://[::2]", "in clear"),
            ("ftp://127.0.0.1", "neither"),
            ("api.onkernel.com", "neither"),
            ("https://me:secret@api.onkernel.com", "user name"),
            ("http://127.0.0.1@evil.example", "user name"),
            ("https://api.onkernel.com/?a", "after its path"),
            ("https://api.onkernel.com/#a", "after its path"),
            ("https://", "not a URL"),
            ("", "not a URL"),
        ] {
            let error = Base::parse(url).unwrap_err().to_string();
            assert!(error.contains(reason) && !error.contains("secret"), "{url}: {error}");
        }
    }
}
