//! The record of a watched directory, which its session keeps.

use std::sync::Arc;

use notify::RecommendedWatcher;
use serde_json::Value;
use tokio::sync::{Mutex, mpsc};

use crate::rooted::Entry;

/// A watched directory. Dropping it ends its stream of events.
#[derive(Debug)]
pub(super) struct Watch {
    /// Events that no client has read.
    pub(super) events: Arc<Mutex<mpsc::Receiver<Value>>>,
    /// Sends the events.
    pub(super) _watcher: RecommendedWatcher,
    /// The watched path goes through this entry's descriptor.
    pub(super) _entry: Entry,
}
