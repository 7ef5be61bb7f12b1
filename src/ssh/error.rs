//! Errors of an SSH connection.

use std::sync::Arc;

/// Kind of algorithm that both sides must have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlgorithmKind {
    /// The key exchange.
    KeyExchange,
    /// The type of host key.
    HostKey,
    /// The cipher.
    Cipher,
    /// The message authentication code.
    Mac,
    /// The compression. Only `none` is supported.
    Compression,
}

impl std::fmt::Display for AlgorithmKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::KeyExchange => "key exchange",
            Self::HostKey => "type of host key",
            Self::Cipher => "cipher",
            Self::Mac => "MAC",
            Self::Compression => "compression",
        })
    }
}

/// Reason why an SSH connection failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SshError {
    /// The server's first lines are no SSH 2 identification.
    #[error("the server does not speak SSH 2")]
    NotSsh,
    /// There is no common algorithm.
    #[error("no common {kind}: the server has {}", theirs.join(", "))]
    NoCommon {
        /// The kind of algorithm.
        kind: AlgorithmKind,
        /// The algorithms that this client offered.
        ours: Vec<String>,
        /// The algorithms that the server offered, unescaped.
        theirs: Vec<String>,
    },
    /// A packet is longer than allowed, or too short to be one.
    #[error("a packet of {wanted} bytes, where at most {allowed} are allowed")]
    Length {
        /// The length that the server told.
        wanted: usize,
        /// The limit.
        allowed: usize,
    },
    /// A packet that cannot be read.
    #[error("the server sent a malformed packet: {0}")]
    Malformed(&'static str),
    /// A packet of this number may not come now.
    #[error("the server sent packet {0} out of order")]
    OutOfOrder(u8),
    /// A packet of this number broke the rules of the strict key exchange.
    #[error("packet {0} broke the strict key exchange")]
    NotStrict(u8),
    /// The server sent more than this client allows.
    #[error("the server sent too much: {0}")]
    TooMuch(&'static str),
    /// A packet did not verify.
    #[error("a packet was changed on its way")]
    Tampered,
    /// The host key did not sign the key exchange.
    #[error("the host key's signature is wrong")]
    Signature,
    /// The host showed another key than before in this connection.
    #[error("the host changed its key within the connection")]
    HostKeyChanged,
    /// The caller does not trust the host key.
    #[error("the host key is not trusted")]
    HostKeyRefused,
    /// A short cut met a server that does not take it.
    #[error("the server differs from what was remembered: {0}")]
    Guess(&'static str),
    /// The server ended the connection.
    #[error("the server closed the session: {message}")]
    Disconnected {
        /// The reason code of RFC 4253, section 11.1.
        code: u32,
        /// The server's text.
        message: String,
    },
    /// The crypto library failed.
    #[error("a cryptographic operation failed")]
    Crypto,
    /// The network failed.
    #[error("{0}")]
    Io(Arc<std::io::Error>),
    /// The server did not answer for too long.
    #[error("the server does not answer")]
    Silence,
    /// The connection was closed.
    #[error("the connection is closed")]
    Closed,
}

impl From<std::io::Error> for SshError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

impl From<aws_lc_rs::error::Unspecified> for SshError {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Self::Crypto
    }
}
