//! A small SSH client: [`Client`], a state machine without sockets and clocks, and [`Session`],
//! which drives it over a stream of tokio.
//!
//! ```text
//! driver, channel, shared ─ the task, the handles, what they share
//!   └ client ─┬ login, channels ─ the layers above the transport
//!     flight  └ transport ─┬ packet ─ cipher ─ mac ─ umac
//!                          └ negotiation, kex, hostkey
//! ```
//!
//! It has what ksync needs, and nothing else: sessions with a command or a shell, logins by public
//! key, no compression, no forwarding, no passwords. All cryptography comes from aws-lc, save UMAC,
//! which only arranges AES, and Streamlined NTRU Prime, a crate of its own.
//!
//! # What holds throughout
//! - The caller accepts the host key before anything but the key exchange is sent. Keys of later
//!   exchanges must be the same one.
//! - The strict key exchange (CVE-2023-48795) is offered always, and enforced if the server has it.
//! - Every length that the server tells is compared with a limit before memory is taken for it.
//! - A key exchange may begin at any time, by either side, and stops no channel for good.

#![cfg_attr(test, allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used))]

mod channel;
mod channels;
mod cipher;
mod client;
mod driver;
mod encoding;
mod error;
mod flight;
mod hostkey;
mod kex;
mod login;
mod mac;
mod negotiation;
mod packet;
#[cfg(any(test, feature = "fuzzing"))]
pub mod play;
#[cfg(any(test, feature = "fuzzing"))]
mod server;
mod shared;
#[cfg(test)]
mod tests;
mod transport;
mod umac;

pub use channel::{Channel, ChannelReader, ChannelWriter};
pub use channels::{ChannelEvent, ChannelId, Request};
pub use client::{Client, Config, Event};
pub use driver::{ConnectError, Keepalive, OpenError, Session};
pub use error::{AlgorithmKind, SshError};
pub use flight::{Facts, Fallback, Guess, Order, fallback};
pub use hostkey::HostKey;
pub use login::{LoginKey, LoginReply};
pub use negotiation::{Algorithms, CIPHERS, HOST_KEYS, KEY_EXCHANGES, MACS, Negotiated};
pub use transport::RekeyLimit;
