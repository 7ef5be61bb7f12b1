//! The questions to a keeper, and its answers. Each connection to the socket asks one question.

use serde::{Deserialize, Serialize};

/// A question to a keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Use of the connection. The stream then leads to an agent, if that is the purpose.
    Borrow(Purpose),
    /// A further channel, on this stream.
    Channel,
    /// The state of the keeper.
    Status,
    /// The end of the keeper.
    Stop,
}

/// The purpose for which a run borrows a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::sync) enum Purpose {
    /// An exchange with an agent.
    Exchange,
    /// A command or a shell.
    Command,
}

/// The answer to [`Ask::Borrow`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// Yes.
    Lent {
        /// The server's name, for messages.
        endpoint: String,
        /// The round trip, in microseconds.
        round_trip_us: u64,
        /// The agent to which this stream leads from now on, if it does.
        agent: Option<LentAgent>,
    },
    /// A channel is open.
    Opened,
    /// The server opens no further channel.
    Refused,
    /// No: connect by yourself.
    No,
}

/// An agent that a keeper lends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum LentAgent {
    /// It waits for a run.
    Ready,
    /// It starts now.
    Starting,
}

/// The state of a keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The endpoint, without a path.
    pub endpoint: String,
    /// The process.
    pub pid: u32,
    /// Seconds since it connected.
    pub age_seconds: u64,
    /// Seconds since the last run ended; 0 while one is served.
    pub idle_seconds: u64,
    /// Runs and commands served so far.
    pub served: u64,
    /// Seconds of idleness after which it ends.
    pub keep_seconds: u64,
}
