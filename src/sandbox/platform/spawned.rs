//! The record of a spawned process, which its session keeps.

use std::fmt;

use serde_json::Value;
use tokio::io::AsyncWrite;
use tokio::sync::{Mutex, mpsc, watch};

use crate::machine::Handle;
use crate::terminal::Terminal;

/// A spawned process.
pub(super) struct Spawned {
    pub(super) handle: Option<Handle>,
    pub(super) stdin: Mutex<Option<Box<dyn AsyncWrite + Send + Unpin>>>,
    pub(super) terminal: Option<Terminal>,
    pub(super) events: Mutex<mpsc::Receiver<Value>>,
    /// The exit code, once the process has ended.
    pub(super) ended: watch::Receiver<Option<i32>>,
}

impl fmt::Debug for Spawned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spawned")
            .field("handle", &self.handle)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}
