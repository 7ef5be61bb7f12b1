//! An SSH session and its channels, by one of two clients.
//!
//! russh is the usual one. ksync's own client is for servers that have no algorithm in common with
//! russh: see [`own`](crate::remote::own). Both speak in russh's messages and errors. A
//! third kind is a session that another process keeps: see [`lent`](crate::remote::lent).

use std::time::Duration;

use bytes::Bytes;
use russh::client::{AuthResult, Handle, Msg};
use russh::keys::HashAlg;
use russh::keys::agent::client::{AgentClient, AgentStream};
use russh::{ChannelMsg, Disconnect, Pty};

use crate::remote::keys::Shown;
use crate::remote::lent::{Lent, LentChannel, LentReader, LentWriter};
use crate::remote::own::{Own, OwnChannel, OwnReader, OwnWriter};
use crate::remote::ssh::Client;

/// A connection to ssh-agent.
pub(super) type SshAgent = AgentClient<Box<dyn AgentStream + Send + Unpin>>;

/// The client that connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Library {
    Russh,
    Own,
}

/// An SSH session.
pub(super) enum Session {
    Russh(Box<Handle<Client>>),
    Own(Own),
    Lent(Lent),
}

/// A channel that is open.
pub(super) enum Channel {
    Russh(russh::Channel<Msg>),
    Own(OwnChannel),
    Lent(LentChannel),
}

/// The half of a channel that reads.
pub(super) enum Reader {
    Russh(russh::ChannelReadHalf),
    Own(OwnReader),
    Lent(LentReader),
}

/// The half of a channel that writes.
pub(super) enum Writer {
    Russh(russh::ChannelWriteHalf<Msg>),
    Own(OwnWriter),
    Lent(LentWriter),
}

impl Session {
    /// Fewest round trips of a login: key offer and signature. russh waits for the answer to its
    /// service request before that.
    pub(super) const fn login_round_trips(&self) -> u32 {
        match self {
            Self::Russh(_) => 3,
            Self::Own(_) => 2,
            Self::Lent(_) => 0,
        }
    }

    /// A round trip, if the client has measured one by itself. A login does not tell it: sshd up to
    /// 10.0 holds its second answer back (Nagle's algorithm) until this side's kernel acknowledges
    /// the first, which takes 40 ms on loopback.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        match self {
            Self::Russh(_) | Self::Lent(_) => None,
            Self::Own(own) => own.round_trip(),
        }
    }

    /// The client that forwards ports. ksync's own one has no channels for that yet.
    pub(super) fn forwarding(&self) -> Option<&Handle<Client>> {
        match self {
            Self::Russh(handle) => Some(handle),
            Self::Own(_) | Self::Lent(_) => None,
        }
    }

    pub(super) async fn open(&self) -> Result<Channel, russh::Error> {
        Ok(match self {
            Self::Russh(handle) => Channel::Russh(handle.channel_open_session().await?),
            Self::Own(own) => Channel::Own(own.open().await?),
            Self::Lent(lent) => Channel::Lent(lent.open().await?),
        })
    }

    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Russh(handle) => handle.is_closed(),
            Self::Own(own) => own.is_closed(),
            Self::Lent(lent) => lent.is_closed(),
        }
    }

    /// Waits until the session has ended, and has stored why.
    pub(super) async fn ended(&mut self) {
        match self {
            Self::Russh(handle) => drop(handle.await),
            Self::Own(own) => own.ended().await,
            Self::Lent(lent) => lent.ended().await,
        }
    }

    /// Tells the server that the session ends.
    pub(super) async fn disconnect(&self) {
        match self {
            // This fails if the session is already gone, which does no harm.
            Self::Russh(handle) => drop(handle.disconnect(Disconnect::ByApplication, "", "").await),
            Self::Own(own) => own.disconnect().await,
            Self::Lent(lent) => lent.end(),
        }
    }

    /// The hash for signatures of RSA keys: one that the server names, never SHA-1. Most servers
    /// name their algorithms before the login; the others are given a second.
    pub(super) async fn rsa_hash(&self) -> HashAlg {
        let named = match self {
            Self::Russh(handle) => handle.best_supported_rsa_hash().await.ok().flatten().flatten(),
            Self::Own(own) => own.rsa_hash().await,
            Self::Lent(_) => None,
        };
        named.unwrap_or(HashAlg::Sha512)
    }

    /// Offers a key, and signs with it if the server accepts it. Returns `None` if it did not sign.
    pub(super) async fn authenticate<S: russh::Signer>(
        &mut self,
        user: &str,
        shown: Shown,
        hash: Option<HashAlg>,
        signer: &mut S,
    ) -> Option<AuthResult> {
        match (self, shown) {
            (Self::Russh(handle), Shown::Key(key)) => {
                handle.authenticate_publickey_with(user, key, hash, signer).await.ok()
            }
            (Self::Russh(handle), Shown::Certificate(certificate)) => {
                handle.authenticate_certificate_with(user, *certificate, hash, signer).await.ok()
            }
            (Self::Own(own), shown) => own.authenticate(user, shown, hash, signer).await,
            // Its keeper has logged in.
            (Self::Lent(_), _) => None,
        }
    }

    /// Binds a connection to ssh-agent to this session. An agent without this extension refuses the
    /// request, and holds no keys that need it. Returns `None` if the agent has gone.
    pub(super) async fn bind(&self, mut agent: SshAgent) -> Option<SshAgent> {
        match self {
            Self::Russh(handle) => {
                if let Some(binding) = handle.agent_session_binding() {
                    let _ = agent.bind_session(binding, false).await;
                }
                Some(agent)
            }
            Self::Own(own) => {
                let mut stream = agent.into_inner();
                own.bind(&mut stream).await.ok()?;
                Some(AgentClient::connect(stream))
            }
            Self::Lent(_) => Some(agent),
        }
    }
}

impl Channel {
    pub(super) async fn exec(
        &self,
        want_reply: bool,
        command: impl Into<Vec<u8>>,
    ) -> Result<(), russh::Error> {
        match self {
            Self::Russh(channel) => channel.exec(want_reply, command).await,
            Self::Own(channel) => channel.exec(want_reply, command.into()),
            Self::Lent(channel) => channel.exec(command.into()).await,
        }
    }

    pub(super) async fn request_shell(&self, want_reply: bool) -> Result<(), russh::Error> {
        match self {
            Self::Russh(channel) => channel.request_shell(want_reply).await,
            Self::Own(channel) => channel.request_shell(want_reply),
            Self::Lent(channel) => channel.request_shell().await,
        }
    }

    pub(super) async fn request_pty(
        &self,
        term: &str,
        columns: u32,
        rows: u32,
        modes: &[(Pty, u32)],
    ) -> Result<(), russh::Error> {
        match self {
            Self::Russh(channel) => channel.request_pty(false, term, columns, rows, 0, 0, modes).await,
            Self::Own(channel) => channel.request_pty(term, columns, rows, modes),
            Self::Lent(channel) => channel.request_pty(term, columns, rows, modes).await,
        }
    }

    pub(super) async fn eof(&self) -> Result<(), russh::Error> {
        match self {
            Self::Russh(channel) => channel.eof().await,
            Self::Own(channel) => channel.eof(),
            Self::Lent(channel) => channel.eof().await,
        }
    }

    pub(super) async fn wait(&mut self) -> Option<ChannelMsg> {
        match self {
            Self::Russh(channel) => channel.wait().await,
            Self::Own(channel) => channel.wait().await,
            Self::Lent(channel) => channel.wait().await,
        }
    }

    pub(super) fn split(self) -> (Reader, Writer) {
        match self {
            Self::Russh(channel) => {
                let (reader, writer) = channel.split();
                (Reader::Russh(reader), Writer::Russh(writer))
            }
            Self::Own(channel) => {
                let (reader, writer) = channel.split();
                (Reader::Own(reader), Writer::Own(writer))
            }
            Self::Lent(channel) => {
                let (reader, writer) = channel.split();
                (Reader::Lent(reader), Writer::Lent(writer))
            }
        }
    }
}

impl Reader {
    pub(super) async fn wait(&mut self) -> Option<ChannelMsg> {
        match self {
            Self::Russh(reader) => reader.wait().await,
            Self::Own(reader) => reader.wait().await,
            Self::Lent(reader) => reader.wait().await,
        }
    }
}

impl Writer {
    pub(super) async fn data(&self, bytes: Bytes) -> Result<(), russh::Error> {
        match self {
            Self::Russh(writer) => writer.data_bytes(bytes).await,
            Self::Own(writer) => writer.data(&bytes).await,
            Self::Lent(writer) => writer.data(bytes).await,
        }
    }

    pub(super) async fn eof(&self) -> Result<(), russh::Error> {
        match self {
            Self::Russh(writer) => writer.eof().await,
            Self::Own(writer) => writer.eof(),
            Self::Lent(writer) => writer.eof().await,
        }
    }

    pub(super) async fn close(&self) -> Result<(), russh::Error> {
        match self {
            Self::Russh(writer) => writer.close().await,
            Self::Own(writer) => writer.close(),
            Self::Lent(writer) => writer.close().await,
        }
    }

    pub(super) async fn window_change(&self, columns: u32, rows: u32) -> Result<(), russh::Error> {
        match self {
            Self::Russh(writer) => writer.window_change(columns, rows, 0, 0).await,
            Self::Own(writer) => writer.window_change(columns, rows),
            Self::Lent(writer) => writer.window_change(columns, rows).await,
        }
    }
}
