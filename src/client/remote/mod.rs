//! The connection to a VM: WebSocket, SSH, host keys, and installing the agent. This layer knows
//! neither the engine nor the disk.
//!
//! ```text
//! tcp ─┬────────────────────────────────┬─ ssh ─ auth ─┬─ exec channel ─ bootstrap ─ agent
//!      └─ (tunnel) ─ (tls) ─ websocket ─┘   └─ hostkey  ├─ shell             └─ agent_image
//!                                                       └─ forwarding ─ carry
//! ```
//!
//! [`connect`] opens an SSH session to a [`Target`]: in order, or in the `fast` order to a host of
//! which `facts` are remembered; `line` is the connection that either makes. [`Connection::agent`]
//! starts an [`Agent`] on a channel of that session, any number of times. [`Connection::lane`]
//! starts an agent that is a further lane of another one. Everything up to the agent is
//! asynchronous. The agent's reader and writer block, because the engine's driver needs blocking
//! ones. Four rules hold throughout:
//!
//! - ksync trusts no host without proof, and learns no new key where it expects a known one;
//! - every wait for the other side has a timeout;
//! - ksync bounds whatever it keeps of the other side's output, and escapes it before showing it;
//! - no name or path ever becomes part of a command.

mod agent;
mod agent_image;
mod auth;
mod bootstrap;
mod bridge;
mod carry;
mod command;
mod connection;
mod dial;
mod error;
mod facts;
mod fast;
mod forward;
mod forwarding;
mod greeting;
mod hostkey;
mod hostkey_error;
mod inbound;
mod keys;
mod known_hosts;
mod lend;
mod lent;
mod line;
mod lines;
mod own;
mod pins;
mod probe;
mod protocol;
mod proxies;
mod proxy_error;
mod pump;
pub(crate) mod relay;
mod secrets;
mod send_window;
mod session;
mod shell;
mod socks;
mod spool;
mod ssh;
pub mod ssh_config;
mod target;
mod tcp;
mod tcp_sender;
mod timeout;
mod tls;
mod tls_error;
mod tunnel;
mod upgrade;
mod websocket;

pub use agent::{Acknowledged, Agent, AgentEnd, AgentReader, AgentWriter, End, Heard, Installed};
pub use agent_image::{AgentImage, BLOCK_BYTES};
pub use bootstrap::token;
pub use bridge::{hold_open, proxy};
pub use connection::{Connection, Loan, connect};
pub use error::{DisconnectReason, ErrorKind, RemoteError, ShellFault};
pub use facts::{HostFacts, InstalledAgent, remember};
pub use forward::{Bind, Forward, ForwardTarget, Listen, Side};
pub use forwarding::{Forwarding, Forwards, LineListener};
pub use hostkey::HostKeys;
pub use hostkey_error::HostKeyError;
pub use keys::Keys;
pub use lend::SpareChannel;
pub use lent::{NotLent, Opener};
pub use lines::Lines;
pub use protocol::{Protocol, Wanted};
pub(crate) use proxies::Scheme;
pub use proxies::{Proxies, Proxy};
pub use proxy_error::ProxyError;
pub use pump::Waiting;
pub(crate) use send_window::SERVER_WINDOW_BYTES;
pub use shell::{Size, Terminal};
pub use target::{Target, Transport};
pub use tcp_sender::TcpSender;
pub(crate) use tls::client_config;
pub use tls_error::TlsError;
pub(crate) use tunnel::{Destination, ask};
