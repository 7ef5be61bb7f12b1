//! The server to connect to, and the connect options.

use std::path::PathBuf;
use std::time::Duration;

use crate::remote::error::RemoteError;
use crate::remote::hostkey::HostKeys;
use crate::remote::keys::Keys;
use crate::remote::proxies::Proxies;
use crate::remote::ssh_config::AddressFamily;
use crate::remote::websocket::Address;
use crate::tree::path::escape;

/// The server to connect to, and the connect options.
///
/// `Target` has no `Debug`, because it may hold a private key, and a token in the URL.
#[derive(Clone)]
pub struct Target {
    /// The transport that carries the SSH session.
    pub transport: Transport,
    /// Login name on the server.
    pub user: String,
    /// Proof that the host must give of its identity.
    pub host_keys: HostKeys,
    /// The keys to log in with.
    pub keys: Keys,
    /// Timeout of each step of connecting.
    pub connect_timeout: Duration,
    /// Silence after which ksync gives the connection up.
    pub silence_timeout: Duration,
    /// A file (mode 0600) with facts about hosts, which make their next connection fast. Without
    /// it every connection is made in order.
    pub facts: Option<PathBuf>,
}

/// The transport between ksync and the SSH server.
#[derive(Clone)]
pub enum Transport {
    /// A direct TCP connection.
    Tcp {
        /// The server's name or address.
        host: String,
        /// The server's port.
        port: u16,
        /// The kind of addresses to connect to.
        family: AddressFamily,
        /// The local address to connect from.
        from: Option<String>,
    },
    /// A bridge that carries the bytes in binary WebSocket messages.
    WebSocket {
        /// `wss://…`, or `ws://…` without TLS.
        url: String,
        /// A PEM file with roots that ksync trusts in addition to the platform's.
        ca_cert: Option<PathBuf>,
        /// The proxies to go through.
        proxies: Proxies,
    },
}

impl Transport {
    /// A direct TCP connection from any local address to any address of `host`.
    #[must_use]
    pub fn tcp(host: String, port: u16) -> Self {
        Self::Tcp { host, port, family: AddressFamily::Any, from: None }
    }
}

impl Target {
    /// Scheme, host and port, for messages. The rest of a URL may hold a token.
    pub(super) fn endpoint(&self) -> Result<String, RemoteError> {
        Ok(match &self.transport {
            Transport::Tcp { host, port, .. } => format!("{}:{port}", escape(host.as_bytes())),
            Transport::WebSocket { url, .. } => Address::parse(url)?.endpoint(),
        })
    }
}
