//! Flushing: waiting until everything that has been saved so far is there.
//!
//! A flush is a round about everything that began after it was asked for. Where the source is watched elsewhere, a
//! round that was on its way already cannot be told from one that was asked for; but the second one from then on is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch::{Receiver, Sender, channel};

use crate::exchange::Asker;
use crate::exchange::rounds::{Round, Watched};

/// How long to wait for a round before it is asked for again: a connection may have been lost with the question.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Rounds about everything so far.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    count: u64,
    /// When the last of them began here.
    begun: Option<Instant>,
    /// Whether deletions wait for consent.
    is_braked: bool,
}

/// What flushes wait for.
pub(super) struct Flushes {
    seen: Sender<Seen>,
    /// Here.
    source: Option<Arc<Watched>>,
    /// There.
    asker: Mutex<Option<Asker>>,
}

impl Flushes {
    /// Of a source that is watched here, or of one that is not.
    pub(super) fn new(source: Option<Arc<Watched>>) -> Self {
        Self { seen: channel(Seen::default()).0, source, asker: Mutex::default() }
    }

    /// Whom to ask from now on.
    pub(super) fn ask_with(&self, asker: Asker) {
        *self.asker.lock().unwrap_or_else(PoisonError::into_inner) = Some(asker);
    }

    /// A round is over.
    pub(super) fn seen(&self, round: &Round) {
        if round.whole {
            self.seen.send_modify(|seen| {
                let is_braked = round.summary.braked.is_some();
                *seen = Seen { count: seen.count + 1, begun: Some(round.begun), is_braked };
            });
        }
    }

    /// Waits until everything that has been saved before this call is there; `false` where
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
            // The sender is ours, and lives as long as this.
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
        // One that nobody hears any more is replaced with the next connection.
        let _ = asker.is_some_and(|asker| asker.ask());
    }
}
