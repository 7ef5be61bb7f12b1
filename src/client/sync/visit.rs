//! `Visit`: a connection to a session's VM for a command, not for a sync.

use crate::remote::{Connection, Terminal};
use crate::sync::error::SyncError;
use crate::sync::job::{ConnectOptions, SharedMonitor};
use crate::sync::kernel::KernelSession;

/// A connection to a session's VM.
pub struct Visit {
    connection: Connection,
    session: KernelSession,
}

impl Visit {
    /// Connects to the session of this id or name.
    ///
    /// # Errors
    /// The session cannot be reached.
    pub async fn begin(
        name: &str,
        connect_options: &ConnectOptions,
        monitor: &SharedMonitor,
    ) -> Result<Self, SyncError> {
        let (connection, session) = KernelSession::connect(name, connect_options, monitor).await?;
        Ok(Self { connection, session })
    }

    /// Runs a command, or the login shell, in the VM: see [`Connection::shell`].
    ///
    /// # Errors
    /// The session is gone, or as there.
    pub async fn shell(&self, command: &[u8], terminal: Option<Terminal>) -> Result<u32, SyncError> {
        match self.connection.shell(command, terminal).await {
            Ok(status) => Ok(status),
            Err(error) => Err(self.session.explain(error.into()).await),
        }
    }

    /// Closes the connection.
    pub async fn end(self) {
        self.connection.close().await;
    }
}
