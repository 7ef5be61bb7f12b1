//! Keeping a session's VM awake: an open CDP WebSocket counts as activity, SSH does not.

use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::remote::{self, RemoteError};

/// How long to wait before the WebSocket is opened again: at first, and at most. A VM stands by after five seconds
/// without one, and is deleted only when its own timeout, ten seconds at least, has run from then on.
const AGAIN_FIRST: Duration = Duration::from_millis(250);
const AGAIN_MAX: Duration = Duration::from_secs(4);

/// One that was open for so long is opened again at once: the platform closes them after about an hour.
const LONG: Duration = Duration::from_secs(60);

/// Holds a session active until it is dropped.
#[derive(Debug)]
pub struct KeepAlive(JoinHandle<()>);

impl KeepAlive {
    /// Opens the WebSocket `url`, and opens it again whenever it is closed. That it cannot be opened harms nothing but
    /// that the session's own clock may run: nobody is told.
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
