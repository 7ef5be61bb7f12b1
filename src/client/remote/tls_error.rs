//! `TlsError`: the reason why a TLS handshake failed, and a hint what to do about it.

use std::io;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, Error, OtherError};

use crate::tree::path::escape;

/// The name of webpki's error for a CA's certificate that a server shows as its own.
const CA_AS_SERVER: &str = "CaUsedAsEndEntity";

/// Names of a certificate that a message shows.
const NAMES_MAX: usize = 3;

/// The reason why a TLS handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The server shows a CA's own certificate.
    #[error("its certificate is self-signed")]
    SelfSigned,
    /// No trusted root has signed the certificate.
    #[error("its certificate is signed by an authority that this machine does not know")]
    UnknownAuthority,
    /// The certificate is no longer valid.
    #[error("its certificate expired {0} ago by this machine's clock")]
    Expired(String),
    /// The certificate is not valid yet.
    #[error("its certificate is not valid yet: it will be in {0} by this machine's clock")]
    NotYetValid(String),
    /// The certificate is for other hosts.
    #[error("its certificate is valid for {presented}, and not for {expected}")]
    OtherName {
        /// The host in the endpoint.
        expected: String,
        /// The names in the certificate.
        presented: String,
    },
    /// The certificate is unusable for another reason.
    #[error("its certificate cannot be used: {0}")]
    Certificate(String),
    /// This machine trusts no authority at all.
    #[error("this machine has no root certificates")]
    NoRoots,
    /// The server refused the handshake.
    #[error("the server refused the TLS handshake: {0}")]
    Alert(String),
    /// The answer is not TLS as ksync speaks it.
    #[error("{0}")]
    Other(String),
    /// The connection failed during the handshake.
    #[error(transparent)]
    Io(io::Error),
}

impl TlsError {
    /// Advice for the user about the next step.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::SelfSigned => "If you trust it, give the certificate itself with --ca-cert FILE.",
            Self::UnknownAuthority => {
                "For a private CA give its certificate with --ca-cert FILE, or name a file with all roots in SSL_CERT_FILE."
            }
            Self::Expired(_) => "Check this machine's clock; if it is right, the server needs a new certificate.",
            Self::NotYetValid(_) => "Check this machine's clock.",
            Self::OtherName { .. } => "Write the host as it is in the certificate, or check that this is the right host.",
            Self::Certificate(_) => "The server needs another certificate.",
            Self::NoRoots => {
                "Install the system's certificates (the package ca-certificates), or give a file of them with --ca-cert."
            }
            Self::Alert(_) => "Check the host and the port: ksync speaks TLS 1.2 and 1.3.",
            Self::Other(_) | Self::Io(_) => "Check the host and the port.",
        }
        .into()
    }

    /// Reports if the certificate is the problem, and not the connection.
    #[must_use]
    pub fn is_about_trust(&self) -> bool {
        !matches!(self, Self::Alert(_) | Self::Other(_) | Self::Io(_))
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            // Another authority of the same name has another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownAuthority,
            CertificateError::ExpiredContext { time, not_after } => {
                Self::Expired(span(time.as_secs().saturating_sub(not_after.as_secs())))
            }
            CertificateError::NotValidYetContext { time, not_before } => {
                Self::NotYetValid(span(not_before.as_secs().saturating_sub(time.as_secs())))
            }
            CertificateError::NotValidForNameContext { expected, presented } => Self::OtherName {
                expected: escape(expected.to_str().as_bytes()).into_owned(),
                presented: names(presented),
            },
            CertificateError::Other(OtherError(other)) if other.to_string() == CA_AS_SERVER => {
                Self::SelfSigned
            }
            CertificateError::Revoked => Self::Certificate("it is revoked".to_owned()),
            CertificateError::BadEncoding => Self::Certificate("it is malformed".to_owned()),
            CertificateError::Other(_) => Self::Certificate("it is not made for servers".to_owned()),
            CertificateError::UnhandledCriticalExtension => {
                Self::Certificate("it has a critical extension that ksync does not know".to_owned())
            }
            _ => Self::Certificate("it is not valid, or uses an unknown algorithm".to_owned()),
        }
    }
}

impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> Self {
        let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>()) else {
            return Self::Io(error);
        };
        cause.into()
    }
}

impl From<&Error> for TlsError {
    fn from(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(error) => Self::of_certificate(error),
            Error::AlertReceived(alert) => Self::Alert(alert_text(*alert)),
            Error::InvalidMessage(_) | Error::PeerMisbehaved(_) | Error::InappropriateMessage { .. } => {
                Self::Other("it does not speak TLS as it should".to_owned())
            }
            Error::PeerIncompatible(_) => Self::Other("it speaks TLS 1.1 or older".to_owned()),
            Error::General(text) if text.contains("No CA certificates") => Self::NoRoots,
            Error::General(text) => Self::Other(escape(text.as_bytes()).into_owned()),
            error => Self::Other(escape(error.to_string().as_bytes()).into_owned()),
        }
    }
}

fn alert_text(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::HandshakeFailure => "no common algorithms".to_owned(),
        AlertDescription::ProtocolVersion => "no common version".to_owned(),
        AlertDescription::UnrecognisedName => "it does not know this host name".to_owned(),
        AlertDescription::CertificateRequired => "it asks for a client certificate".to_owned(),
        AlertDescription::InternalError => "an internal error".to_owned(),
        other => format!("alert {}", u8::from(other)),
    }
}

/// The names that a certificate is for, as in "a, b and 7 more".
fn names(presented: &[String]) -> String {
    // webpki names the kinds of names: `DnsName("a")`.
    let plain = |name: &String| {
        let inside = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
        escape(inside.unwrap_or(name).trim_matches('"').as_bytes()).into_owned()
    };
    let shown = presented.iter().take(NAMES_MAX).map(plain).collect::<Vec<_>>().join(", ");
    match presented.len().saturating_sub(NAMES_MAX) {
        _ if presented.is_empty() => "no host".to_owned(),
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// A rough span of time.
fn span(seconds: u64) -> String {
    const HOUR: u64 = 3600;
    const DAY: u64 = 24 * HOUR;
    let counted = |number: u64, unit: &str| format!("{number} {unit}{}", if number == 1 { "" } else { "s" });
    match Duration::from_secs(seconds).as_secs() {
        seconds if seconds < HOUR => counted((seconds / 60).max(1), "minute"),
        seconds if seconds < DAY => counted(seconds / HOUR, "hour"),
        seconds => counted(seconds / DAY, "day"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_shows_a_type_of_rust() {
        let names = |names: &[&str]| CertificateError::NotValidForNameContext {
            expected: "vm.example".try_into().unwrap(),
            presented: names.iter().map(|name| format!("DnsName({name:?})")).collect(),
        };
        let seconds = |seconds| rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let expired =
            CertificateError::ExpiredContext { time: seconds(3 * 86_400), not_after: seconds(86_400) };
        let early = CertificateError::NotValidYetContext { time: seconds(0), not_before: seconds(7200) };
        for (error, text) in [
            (CertificateError::UnknownIssuer, "signed by an authority that this machine does not know"),
            (expired, "expired 2 days ago by this machine's clock"),
            (early, "not valid yet: it will be in 2 hours by this machine's clock"),
            (names(&["localhost"]), "valid for localhost, and not for vm.example"),
            (names(&["a", "b", "c", "d", "e"]), "valid for a, b, c and 2 more, and not for vm.example"),
            (names(&[]), "valid for no host, and not for vm.example"),
            (CertificateError::BadSignature, "signed by an authority that this machine does not know"),
            (CertificateError::ApplicationVerificationFailure, "not valid, or uses an unknown algorithm"),
            (CertificateError::Revoked, "cannot be used: it is revoked"),
        ] {
            let error = TlsError::from(io::Error::other(Error::InvalidCertificate(error)));
            assert!(error.is_about_trust() && error.to_string().ends_with(text), "{error}");
        }
        let alert = Error::AlertReceived(AlertDescription::HandshakeFailure);
        let error = TlsError::from(io::Error::other(alert));
        assert_eq!(error.to_string(), "the server refused the TLS handshake: no common algorithms");
        assert!(!error.is_about_trust());
        let none = Error::General("No CA certificates were loaded from the system".to_owned());
        assert_eq!(TlsError::from(&none).to_string(), "this machine has no root certificates");
    }
}
