//! Repetitions: a round runs again if the source changed meanwhile.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::engine::PROBLEMS_MAX;
use crate::log::debug;
use crate::monitor::{Event, Monitor, Notice, Preparation, ProblemKind, Warning};
use crate::sync::error::SyncError;
use crate::sync::job::SharedMonitor;
use crate::sync::report::{Report, Round};

/// Maximum repetitions of a run because files changed while they were read.
const REPEATS_MAX: usize = 2;

/// Repeats the round until no source file changed while it was read, or the maximum is reached.
pub(super) async fn repeat(
    monitor: SharedMonitor,
    round: impl AsyncFn(SharedMonitor) -> Result<Round, SyncError>,
) -> Result<Report, SyncError> {
    let mut report = Report::default();
    for attempt in 0..=REPEATS_MAX {
        let deferred = Arc::new(DeferredProblems::new(SharedMonitor::clone(&monitor)));
        let done = round(SharedMonitor::clone(&(Arc::clone(&deferred) as SharedMonitor))).await;
        let again = attempt < REPEATS_MAX && done.is_ok() && deferred.has_withheld();
        if !again {
            deferred.release();
        }
        report.add(done?);
        if !again {
            break;
        }
        debug!("repeat why=source-changed attempt={}", attempt + 1);
    }
    Ok(report)
}

/// Forwards events, but defers problems that a repeated round may solve.
struct DeferredProblems {
    monitor: SharedMonitor,
    withheld: Mutex<Vec<Event>>,
}

impl DeferredProblems {
    fn new(monitor: SharedMonitor) -> Self {
        Self { monitor, withheld: Mutex::default() }
    }

    fn has_withheld(&self) -> bool {
        self.lock().iter().any(|event| !matches!(event, Event::Braked(_)))
    }

    /// Forwards the deferred events.
    fn release(&self) {
        self.lock().drain(..).for_each(|event| self.monitor.observe(event));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Monitor for DeferredProblems {
    fn observe(&self, event: Event) {
        let moved = matches!(&event, Event::Problem(problem)
            if matches!(problem.kind, ProblemKind::Changed | ProblemKind::Vanished));
        // Only the last round's report about braked deletions counts.
        let withheld = moved || matches!(event, Event::Braked(_));
        if withheld && self.lock().len() < PROBLEMS_MAX {
            self.lock().push(event);
        } else {
            self.monitor.observe(event);
        }
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
