//! Retries: a run whose connection breaks continues over another one.
//!
//! Received content is staged or in place, so the next connection carries only the rest. Only a
//! connection that has worked is replaced, or one whose login was cut. If nothing was reached yet,
//! the waiting user wants the error at once.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::PROBLEMS_MAX;
use crate::exchange::chain;
use crate::log::debug;
use crate::monitor::{Event, Monitor, Notice, Preparation, Warning};
use crate::remote::ErrorKind;
use crate::sync::backoff::Backoff;
use crate::sync::endpoint::Endpoint;
use crate::sync::error::SyncError;
use crate::sync::job::{ConnectOptions, SharedMonitor};
use crate::sync::news::{Listener, News};
use crate::sync::pairing::Pairing;
use crate::sync::remote::{Kept, LazyConnection};
use crate::sync::repeat::repeat;
use crate::sync::report::{Report, Round};
use crate::wire::message::AbortKind;

/// Bytes from the agent that prove work: more than its hello and a heartbeat.
const SAID_BYTES_MIN: u64 = 24;

/// Runs rounds with the machine of `remote`, over as many connections as needed: first over the one
/// that an earlier job `kept`. The last connection stays open.
#[allow(clippy::too_many_arguments)]
pub(super) async fn over_connections<'a>(
    remote: &'a Endpoint,
    connect_options: &'a ConnectOptions,
    pairing: &Arc<Pairing>,
    monitor: SharedMonitor,
    listener: &Listener,
    mut kept: Option<Kept>,
    round: impl AsyncFn(&LazyConnection<'a>, SharedMonitor) -> Result<Round, SyncError>,
) -> (LazyConnection<'a>, Result<Report, SyncError>) {
    let attempt_monitor = Arc::new(AttemptMonitor::new(monitor));
    let (mut attempts, mut backoff) = (Attempts::new(connect_options.retries), Backoff::default());
    let (mut lost, mut last_lost) = (Report::default(), None);
    let mut is_login_first = false;
    loop {
        let mut connection = LazyConnection::new(remote, connect_options, Arc::clone(pairing));
        if is_login_first {
            connection = connection.with_login_first();
        }
        let monitor = Arc::clone(&attempt_monitor) as SharedMonitor;
        if connection.take_over(kept.take(), &monitor).await {
            attempts.has_worked = true;
        }
        attempt_monitor.begin();
        let result = repeat(Arc::clone(&attempt_monitor) as SharedMonitor, async |monitor| {
            round(&connection, monitor).await
        })
        .await;
        let error = match result {
            Ok(report) => return (connection, Ok(lost.and(report))),
            Err(error) => error,
        };
        if connection.may_log_in_first(&error) {
            debug!("connect step=again login=first why=refused error={}", chain(&error));
            is_login_first = true;
            connection.close().await;
            continue;
        }
        let (up_bytes, down_bytes) = connection.traffic();
        let went = attempt_monitor.went(down_bytes);
        let verdict = attempts.failed(&error, went);
        debug!(
            "lost verdict={verdict:?} moved_bytes={} left_bytes={} error={}",
            went.moved_bytes,
            went.left_bytes,
            chain(&error)
        );
        match verdict {
            Verdict::Again => {}
            Verdict::End => return (connection, Err(error)),
            // The cause of the loss is more useful than the lost agent's lock on the destination.
            Verdict::EndAsLost => return (connection, Err(last_lost.unwrap_or(error))),
        }
        if went.moved_bytes > 0 {
            backoff = Backoff::default();
        }
        connection.close().await;
        lost.summary.tally.sent_bytes += went.moved_bytes;
        lost.wire_up_bytes += up_bytes;
        lost.wire_down_bytes += down_bytes;
        lost.retries += 1;
        let wait = backoff.next();
        debug!("wait ms={} why=connection-lost retry={}", wait.as_millis(), lost.retries);
        listener(News::Lost { error: &error, wait });
        if is_loss(&error) {
            last_lost = Some(error);
        }
        tokio::time::sleep(wait).await;
    }
}

/// The progress of an attempt before its connection was lost.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Went {
    /// True if the agent was at work.
    pub(super) has_worked: bool,
    /// Bytes of content that were transferred.
    pub(super) moved_bytes: u64,
    /// Bytes of content that were missing when the attempt began, as far as known.
    pub(super) left_bytes: u64,
}

/// Counts attempts without progress.
#[derive(Debug)]
pub(super) struct Attempts {
    max: u32,
    futile: u32,
    has_worked: bool,
    /// The least missing content at the start of any attempt.
    left_bytes: u64,
    was_lost: bool,
}

/// The decision after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Again,
    /// The run ends with this error.
    End,
    /// The run ends with the error that lost the connection before.
    EndAsLost,
}

impl Attempts {
    pub(super) fn new(max: u32) -> Self {
        Self { max, futile: 0, has_worked: false, left_bytes: u64::MAX, was_lost: false }
    }

    /// Decides after a failed attempt.
    pub(super) fn failed(&mut self, error: &SyncError, went: Went) -> Verdict {
        self.has_worked |= went.has_worked || is_late_cut(error);
        // Sent content may not have arrived, so progress means that less is missing.
        if went.moved_bytes > 0 && went.left_bytes < self.left_bytes {
            self.left_bytes = went.left_bytes;
            self.futile = 0;
        }
        let is_loss = is_loss(error);
        if self.has_worked && self.futile < self.max && (is_loss || self.may_pass(error)) {
            self.futile += 1;
            self.was_lost = true;
            return Verdict::Again;
        }
        let is_busy = matches!(error, SyncError::Run(error) if error.kind == AbortKind::Busy);
        if is_busy && self.was_lost { Verdict::EndAsLost } else { Verdict::End }
    }

    /// True if a later attempt failed for a reason that may pass soon.
    fn may_pass(&self, error: &SyncError) -> bool {
        self.was_lost
            && match error {
                SyncError::Remote(error) | SyncError::PerhapsGone { source: error, .. } => {
                    error.kind() == ErrorKind::ConnectTimeout
                }
                // The agent whose connection was lost may not know it yet.
                SyncError::Run(error) => error.kind == AbortKind::Busy,
                SyncError::Kernel(error) => matches!(error.exit_code(), 10 | 30 | 35),
                SyncError::Unreachable { source, .. } => source.kind() != ErrorKind::NotAuthorised,
                _ => false,
            }
    }
}

/// True if the error means that the connection was lost.
pub(super) fn is_loss(error: &SyncError) -> bool {
    match error {
        SyncError::Remote(error) | SyncError::PerhapsGone { source: error, .. } => {
            matches!(error.kind(), ErrorKind::Socket | ErrorKind::Timeout)
        }
        SyncError::Run(error) => matches!(error.kind, AbortKind::Connection | AbortKind::Timeout),
        error => is_late_cut(error),
    }
}

/// True if a connection was cut after the host had proved its identity, during the login or later.
fn is_late_cut(error: &SyncError) -> bool {
    match error {
        SyncError::Remote(error)
        | SyncError::Unreachable { source: error, .. }
        | SyncError::PerhapsGone { source: error, .. } => error.was_cut_late(),
        _ => false,
    }
}

/// The content that one attempt moves.
#[derive(Debug, Default)]
struct Content {
    moved_bytes: AtomicU64,
    left_bytes: AtomicU64,
}

impl Content {
    fn note(&self, event: &Event) {
        match event {
            Event::Moved { bytes } => {
                self.moved_bytes.fetch_add(*bytes, Ordering::Relaxed);
            }
            Event::Planned { bytes, .. } => {
                self.left_bytes.fetch_add(*bytes, Ordering::Relaxed);
            }
            Event::Matched { bytes } => {
                let less = |left: u64| Some(left.saturating_sub(*bytes));
                let _ = self.left_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
            }
            _ => {}
        }
    }

    /// The progress of the attempt, which received `down_bytes` from the agent.
    fn went(&self, down_bytes: u64) -> Went {
        Went {
            has_worked: down_bytes >= SAID_BYTES_MIN,
            moved_bytes: self.moved_bytes.load(Ordering::Relaxed),
            left_bytes: self.left_bytes.load(Ordering::Relaxed),
        }
    }
}

/// Forwards the events of one connection, and counts the content that it moves.
pub(super) struct Counting {
    monitor: SharedMonitor,
    content: Content,
}

impl Counting {
    pub(super) fn new(monitor: SharedMonitor) -> Self {
        Self { monitor, content: Content::default() }
    }

    /// The progress of the connection, which received `down_bytes` from the agent.
    pub(super) fn went(&self, down_bytes: u64) -> Went {
        self.content.went(down_bytes)
    }
}

impl Monitor for Counting {
    fn observe(&self, event: Event) {
        self.content.note(&event);
        self.monitor.observe(event);
    }

    fn prepare(&self, preparation: Preparation) {
        self.monitor.prepare(preparation);
    }

    fn warn(&self, warning: Warning) {
        self.monitor.warn(warning);
    }

    fn notice(&self, notice: Notice) {
        self.monitor.notice(notice);
    }
}

/// Forwards events, each problem once for all attempts, and counts the content that the current
/// attempt moves.
struct AttemptMonitor {
    monitor: SharedMonitor,
    content: Content,
    problems: Mutex<HashSet<Vec<u8>>>,
}

impl AttemptMonitor {
    fn new(monitor: SharedMonitor) -> Self {
        Self { monitor, content: Content::default(), problems: Mutex::default() }
    }

    /// Starts another attempt.
    fn begin(&self) {
        self.content.moved_bytes.store(0, Ordering::Relaxed);
        self.content.left_bytes.store(0, Ordering::Relaxed);
    }

    fn went(&self, down_bytes: u64) -> Went {
        self.content.went(down_bytes)
    }
}

impl Monitor for AttemptMonitor {
    fn observe(&self, event: Event) {
        self.content.note(&event);
        if let Event::Problem(problem) = &event {
            let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
            if problems.len() < PROBLEMS_MAX && !problems.insert(problem.path.clone()) {
                return;
            }
        }
        self.monitor.observe(event);
    }

    fn prepare(&self, preparation: Preparation) {
        self.monitor.prepare(preparation);
    }

    fn warn(&self, warning: Warning) {
        self.monitor.warn(warning);
    }

    fn notice(&self, notice: Notice) {
        self.monitor.notice(notice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::RunError;
    use crate::remote::{DisconnectReason, RemoteError};

    fn run(kind: AbortKind) -> SyncError {
        SyncError::Run(RunError { kind, by_peer: false, text: String::new() })
    }

    fn went(moved_bytes: u64, left_bytes: u64) -> Went {
        Went { has_worked: true, moved_bytes, left_bytes }
    }

    #[test]
    fn a_connection_that_never_worked_is_not_retried() {
        let error = run(AbortKind::Connection);
        assert_eq!(Attempts::new(5).failed(&error, Went::default()), Verdict::End);
        assert_eq!(Attempts::new(0).failed(&error, went(9, 9)), Verdict::End);
    }

    #[test]
    fn a_login_that_is_cut_is_retried_even_if_nothing_worked_yet() {
        let lost = |source| SyncError::from(RemoteError::Lost { endpoint: "vm".to_owned(), source });
        let cut = lost(DisconnectReason::Broken("reset".to_owned()));
        let SyncError::Remote(source) = lost(DisconnectReason::Broken("reset".to_owned())) else { return };
        let in_vm = SyncError::Unreachable { session: "x".to_owned(), diagnosis: None, source };
        for error in [cut, in_vm] {
            let mut attempts = Attempts::new(1);
            let verdicts = [0, 1].map(|_| attempts.failed(&error, Went::default()));
            assert_eq!(verdicts, [Verdict::Again, Verdict::End], "{error:?}");
        }
        let refused = lost(DisconnectReason::Dismissed("no".to_owned()));
        assert_eq!(Attempts::new(1).failed(&refused, Went::default()), Verdict::End);
    }

    #[test]
    fn progress_resets_the_count_of_futile_attempts() {
        let mut attempts = Attempts::new(2);
        let verdicts = [(5, 100), (0, 0), (5, 90), (5, 90), (5, 90)]
            .map(|(moved, left)| attempts.failed(&run(AbortKind::Timeout), went(moved, left)));
        assert_eq!(verdicts, [Verdict::Again, Verdict::Again, Verdict::Again, Verdict::Again, Verdict::End]);
    }

    #[test]
    fn errors_other_than_a_lost_connection_end_the_run() {
        for (kind, first, later) in [
            (AbortKind::Connection, Verdict::Again, Verdict::Again),
            (AbortKind::Timeout, Verdict::Again, Verdict::Again),
            (AbortKind::Busy, Verdict::End, Verdict::Again),
            (AbortKind::Storage, Verdict::End, Verdict::End),
            (AbortKind::Protocol, Verdict::End, Verdict::End),
            (AbortKind::Destination, Verdict::End, Verdict::End),
        ] {
            assert_eq!(Attempts::new(5).failed(&run(kind), went(1, 1)), first, "{kind:?}");
            let mut attempts = Attempts::new(5);
            assert_eq!(attempts.failed(&run(AbortKind::Connection), went(1, 1)), Verdict::Again);
            assert_eq!(attempts.failed(&run(kind), went(0, 0)), later, "{kind:?}");
        }
    }

    #[test]
    fn a_busy_destination_after_a_loss_reports_the_loss() {
        let mut attempts = Attempts::new(1);
        assert_eq!(attempts.failed(&run(AbortKind::Timeout), went(1, 1)), Verdict::Again);
        assert_eq!(attempts.failed(&run(AbortKind::Busy), went(0, 0)), Verdict::EndAsLost);
    }
}
