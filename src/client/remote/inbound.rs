//! Channels that the server opens: connections to the listeners that ksync asked for.

use std::sync::{Arc, OnceLock};

use russh::Channel;
use russh::client::{ChannelOpenHandle, Msg};
use tokio::sync::mpsc;

/// A listener on the server, as the request for it named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Listener {
    Tcp { address: String, port: u32 },
    Unix(String),
}

/// A connection to a listener on the server.
pub(super) struct Incoming {
    pub(super) listener: Listener,
    pub(super) channel: Channel<Msg>,
    /// The server's answer. Dropping it rejects the connection.
    pub(super) reply: ChannelOpenHandle,
}

/// The queue of connections. It is empty until ksync asks for the first listener, and the server's
/// channels are rejected.
#[derive(Debug, Clone, Default)]
pub(super) struct Inbound(Arc<OnceLock<mpsc::Sender<Incoming>>>);

impl Inbound {
    /// Accepts connections from now on: at most `count` that wait.
    pub(super) fn listen(&self, count: usize) -> mpsc::Receiver<Incoming> {
        let (sender, receiver) = mpsc::channel(count);
        let _ = self.0.set(sender);
        receiver
    }

    /// Queues a connection, or rejects it.
    pub(super) fn offer(&self, incoming: Incoming) {
        if let Some(queue) = self.0.get() {
            let _ = queue.try_send(incoming);
        }
    }
}
