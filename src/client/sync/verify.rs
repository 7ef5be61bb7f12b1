//! Verification: a comparison of both trees by content, for an observer that is to learn of
//! differences and of nothing that a run would do about them.

use std::sync::Arc;

use crate::monitor::{Event, Monitor, Notice, Preparation, Problem, ProblemKind, Warning};
use crate::sync::job::SharedMonitor;

/// The cause that replaces the receiver's, which speaks of deletions.
const NOT_COMPARED: &str =
    "not everything could be listed, so entries that only the second side has are not reported";

/// Wraps the observer of a verification.
pub(super) fn observing(monitor: SharedMonitor) -> SharedMonitor {
    Arc::new(Differences(monitor))
}

/// Forwards all events but those about deletions.
struct Differences(SharedMonitor);

impl Monitor for Differences {
    fn observe(&self, event: Event) {
        match event {
            Event::Braked(_) => {}
            Event::Problem(problem) if problem.kind == ProblemKind::NotDeleted => {
                self.0.observe(Event::Problem(Problem { cause: NOT_COMPARED.to_owned(), ..problem }));
            }
            event => self.0.observe(event),
        }
    }

    fn prepare(&self, preparation: Preparation) {
        self.0.prepare(preparation);
    }

    fn warn(&self, warning: Warning) {
        self.0.warn(warning);
    }

    fn notice(&self, notice: Notice) {
        self.0.notice(notice);
    }
}
