//! `Visit`: a connection to a session's VM for a command, not for a sync.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;

use crate::remote::{Connection, Forwarding, Forwards, Terminal};
use crate::sync::endpoint::Endpoint;
use crate::sync::error::SyncError;
use crate::sync::job::{ConnectOptions, SharedMonitor};
use crate::sync::keeper::{self, Facts, Purpose};
use crate::sync::kernel::{KernelSession, LoginTime};

/// A connection to a session's VM.
pub struct Visit {
    connection: Connection,
    session: KernelSession,
    /// The facts by which a keeper lends the connection, if one does.
    facts: Option<Facts>,
}

impl Visit {
    /// Connects to the session of this id or name.
    ///
    /// # Errors
    /// The session cannot be reached.
    pub fn begin<'a>(
        name: &'a str,
        connect_options: &'a ConnectOptions,
        monitor: &'a SharedMonitor,
    ) -> LocalBoxFuture<'a, Result<Self, SyncError>> {
        // The futures are boxed, or each crate that calls this would compile all of it once more.
        Box::pin(async move {
            let dialling = KernelSession::connect(name, connect_options, LoginTime::First, monitor);
            let facts = connect_options.keep.and_then(|_| Facts::of(&endpoint(name), connect_options));
            let lendable = facts.as_ref().and_then(|facts| Some((facts, facts.session.as_ref()?)));
            let Some((lender, known)) = lendable else {
                let (connection, session) = dialling.await?;
                return Ok(Self { connection, session, facts: None });
            };
            match keeper::race(keeper::borrow(lender, Purpose::Command), dialling).await {
                Ok(connection) => {
                    let session = KernelSession::lent(known, connect_options, monitor)?;
                    Ok(Self { connection, session, facts })
                }
                Err(dialled) => {
                    dialled.result.map(|(connection, session)| Self { connection, session, facts: None })
                }
            }
        })
    }

    /// Runs a command, or the login shell, in the VM: see [`Connection::shell`].
    ///
    /// # Errors
    /// The session is gone, or as there.
    pub fn shell<'a>(
        &'a self,
        command: &'a [u8],
        terminal: Option<Terminal>,
    ) -> LocalBoxFuture<'a, Result<u32, SyncError>> {
        Box::pin(async move {
            let looking_after = async {
                match &self.facts {
                    Some(facts) => keeper::look_after(facts).await,
                    None => std::future::pending().await,
                }
            };
            let ended = tokio::select! {
                ended = self.connection.shell(command, terminal) => ended,
                never = looking_after => match never {},
            };
            match ended {
                Ok(status) => Ok(status),
                Err(error) => Err(self.session.explain(error.into()).await),
            }
        })
    }

    /// Upper bound of a round trip: see [`Connection::round_trip`].
    #[must_use]
    pub fn round_trip(&self) -> Duration {
        self.connection.round_trip()
    }

    /// Forwards ports: see [`Connection::forward`].
    ///
    /// # Errors
    /// The session is gone, or as there.
    pub fn forward(&self, forwards: Forwards) -> LocalBoxFuture<'_, Result<Forwarding, SyncError>> {
        Box::pin(async move {
            match self.connection.forward(forwards).await {
                Ok(forwarding) => Ok(forwarding),
                Err(error) => Err(self.session.explain(error.into()).await),
            }
        })
    }

    /// Waits until the connection is lost, and returns the reason.
    pub fn lost(&self) -> LocalBoxFuture<'_, SyncError> {
        Box::pin(async move { self.session.explain(self.connection.lost().await.into()).await })
    }

    /// Starts a keeper for the next runs, unless this connection is lent by one.
    pub fn leave(&self, name: &str, connect_options: &ConnectOptions) {
        if let Some(keep) = connect_options.keep.filter(|_| !self.connection.is_lent()) {
            keeper::start(&endpoint(name), connect_options, keep, None, false);
        }
    }

    /// Closes the connection.
    pub fn end(self) -> LocalBoxFuture<'static, ()> {
        Box::pin(self.connection.close())
    }
}

/// The endpoint of a session.
fn endpoint(name: &str) -> Endpoint {
    Endpoint::Session { name: name.to_owned(), path: Vec::new() }
}
