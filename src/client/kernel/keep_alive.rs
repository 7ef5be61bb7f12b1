//! Keep-alive of a session's VM: an open CDP WebSocket counts as use, SSH does not.

use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::remote::{self, RemoteError};

/// Delay before the WebSocket is reopened: the first one and the longest one. A VM goes into
/// standby after five seconds without a WebSocket. The platform deletes it only after its own
/// timeout, at least ten seconds, from then on.
const AGAIN_FIRST: Duration = Duration::from_millis(250);
const AGAIN_MAX: Duration = Duration::from_secs(4);

/// Lifetime after which the WebSocket is reopened with the first delay: the platform closes them
/// after about an hour.
const LONG: Duration = Duration::from_secs(60);

/// Keeps a session awake until it is dropped.
#[derive(Debug)]
pub struct KeepAlive(JoinHandle<()>);

impl KeepAlive {
    /// Opens the WebSocket `url`, and reopens it whenever it is closed. A failure only lets the
    /// session's idle timeout run, so it is not reported.
    #[must_use]
    pub fn begin(url: String, ca_cert: Option<PathBuf>) -> Self {
        Self(tokio::spawn(async move {
            let mut wait = AGAIN_FIRST;
            loop {
                let begun = tokio::time::Instant::now();
                let _: Result<(), RemoteError> = remote::hold_open(&url, ca_cert.as_deref()).await;
                wait = if begun.elapsed() >= LONG { AGAIN_FIRST } else { AGAIN_MAX.min(wait * 2) };
                tokio::time::sleep(wait).await;
            }
        }))
    }
}

impl Drop for KeepAlive {
    fn drop(&mut self) {
        self.0.abort();
    }
}
