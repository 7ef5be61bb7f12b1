//! Flushing: waits until everything that has been saved so far has arrived.
//!
//! A flush ends after a full round that began after the request. If the agent watches the source,
//! this side cannot tell a round that was already running from the requested one. The second round
//! after the request certainly began after it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch::{Receiver, Sender, channel};

use crate::exchange::Asker;
use crate::exchange::rounds::{Round, WatchedSource};

/// Interval of repeating a request: a connection may have been lost together with the request.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The full rounds so far.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    count: u64,
    /// Start of the last round on this machine's clock.
    begun: Option<Instant>,
    /// True if deletions wait for consent.
    is_braked: bool,
}

/// The state that flushes wait for.
pub(super) struct Flushes {
    seen: Sender<Seen>,
    /// The source, if this process watches it.
    source: Option<Arc<WatchedSource>>,
    /// The handle to the agent, if the agent watches.
    asker: Mutex<Option<Asker>>,
}

impl Flushes {
    /// `source` is the source that this process watches, if it does.
    pub(super) fn new(source: Option<Arc<WatchedSource>>) -> Self {
        Self { seen: channel(Seen::default()).0, source, asker: Mutex::default() }
    }

    /// Sets the handle to the present agent.
    pub(super) fn ask_with(&self, asker: Asker) {
        *self.asker.lock().unwrap_or_else(PoisonError::into_inner) = Some(asker);
    }

    /// Records a round that has ended.
    pub(super) fn seen(&self, round: &Round) {
        if round.is_full {
            self.seen.send_modify(|seen| {
                let is_braked = round.summary.braked.is_some();
                *seen = Seen { count: seen.count + 1, begun: Some(round.begun), is_braked };
            });
        }
    }

    /// Waits until everything that was saved before this call has arrived. Returns `false` if
    /// deletions wait for consent.
    pub(super) async fn flush(&self) -> bool {
        let (asked, mut seen) = (Instant::now(), self.seen.subscribe());
        if self.source.is_some() {
            self.wait(&mut seen, |seen| seen.begun.is_some_and(|begun| begun >= asked)).await;
        } else {
            let count = seen.borrow().count;
            self.wait(&mut seen, |seen| seen.count > count).await;
            self.wait(&mut seen, |seen| seen.count > count + 1).await;
        }
        !seen.borrow().is_braked
    }

    async fn wait(&self, seen: &mut Receiver<Seen>, is_done: impl Fn(&Seen) -> bool) {
        loop {
            self.ask();
            // `self` owns the sender, so it is still there.
            if tokio::time::timeout(ASK_AGAIN, seen.wait_for(&is_done)).await.is_ok() {
                return;
            }
        }
    }

    fn ask(&self) {
        if let Some(source) = &self.source {
            source.rescan();
        }
        let asker = self.asker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // A handle to a lost agent is replaced with the next connection.
        let _ = asker.is_some_and(|asker| asker.ask());
    }
}
