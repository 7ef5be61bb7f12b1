//! `ProxyError`: the reason why a proxy gave no connection, and a hint what to do about it.

use std::io;
use std::time::Duration;

use tokio_tungstenite::tungstenite::http::StatusCode;

use crate::remote::tls_error::TlsError;

/// The reason why a proxy gave no connection. Its `Display` continues a sentence about the proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The proxy itself cannot be reached.
    #[error("it cannot be reached")]
    Connect(#[source] io::Error),
    /// The TLS handshake with the proxy failed.
    #[error("no TLS connection with it")]
    Tls(#[source] TlsError),
    /// The proxy wants a login, or another one.
    #[error("{0}")]
    Login(String),
    /// The proxy wants a login by a method that ksync does not know.
    #[error("{0}")]
    LoginMethod(String),
    /// The proxy forbids the connection.
    #[error("{0}")]
    Forbidden(String),
    /// The proxy does not reach the host.
    #[error("{0}")]
    Unreachable(String),
    /// The proxy answered with another HTTP status.
    #[error("{0}")]
    Refused(String),
    /// The answer is not one of the proxy's protocol.
    #[error("it does not answer as {0} does")]
    Foreign(&'static str),
    /// The setting does not fit the proxy's protocol.
    #[error("{0}")]
    Unfit(&'static str),
    /// The host's name cannot be resolved on this side.
    #[error("the host's name cannot be resolved on this side")]
    Unresolved(#[source] io::Error),
    /// The proxy did not answer in time.
    #[error("no answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// The connection to the proxy broke.
    #[error("it closed the connection")]
    Closed(#[source] io::Error),
}

impl ProxyError {
    /// The error for an HTTP status of a proxy. `methods` are the login methods that it offers.
    pub(super) fn of_status(status: u16, methods: &str) -> Self {
        let name = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let answer = format!("it answered {status} {}", name.unwrap_or("(an unknown status)"));
        match status {
            407 if methods.is_empty() || methods.to_ascii_lowercase().contains("basic") => {
                Self::Login(answer)
            }
            407 => Self::LoginMethod(format!("{answer}, and takes {methods} only")),
            401 | 403 | 405 => Self::Forbidden(answer),
            502..=504 => Self::Unreachable(answer),
            _ => Self::Refused(answer),
        }
    }

    /// Reports if a retry a moment later may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Unreachable(_) | Self::TimedOut(_) | Self::Closed(_))
    }

    /// Advice for the user about the next step. `variable` names the proxy, `host` is the one
    /// behind it.
    #[must_use]
    pub fn hint(&self, variable: &str, host: &str) -> String {
        match self {
            Self::Tls(source) => source.hint(),
            Self::Login(_) => format!(
                "Give the login in {variable}, as in SCHEME://USER:PASSWORD@HOST:PORT; special characters are encoded (%40 for @)."
            ),
            Self::LoginMethod(_) => format!(
                "Let the proxy take a password (the method Basic), or lead {variable} to a helper on this machine that logs in, such as cntlm."
            ),
            Self::Forbidden(_) => format!(
                "Ask whoever runs the proxy to allow this host and port, or connect to it directly with NO_PROXY={host}."
            ),
            Self::Unreachable(_) => {
                format!("Try again in a moment; without the proxy it may be reached with NO_PROXY={host}.")
            }
            Self::Unresolved(_) => {
                format!("With the scheme socks5h or socks4a in {variable} the proxy resolves names.")
            }
            Self::Foreign(_) | Self::Unfit(_) => format!("Check the scheme and the port in {variable}."),
            Self::Connect(_) | Self::Refused(_) | Self::TimedOut(_) | Self::Closed(_) => {
                format!("Check {variable}; NO_PROXY={host} connects directly.")
            }
        }
    }
}
